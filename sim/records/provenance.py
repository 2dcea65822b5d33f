"""Where a result comes from: scenario, versions, commit, host."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sim.scenario import plugins
from sim.scenario.load import Scenario, resolved, scenario_hash

UNKNOWN = "unknown"
COMPILED, PURE = "compiled", "pure Python"
_LIBRARIES = ("tokenpools", "simpy", "numpy", "pyarrow", "pydantic")


def origin(scenario: Scenario) -> dict[str, Any]:
    """Return what a manifest says of the scenario and the code that a result is of."""
    return {
        "scenario": resolved(scenario),
        "scenario_hash": scenario_hash(scenario),
        "seed": scenario.seed,
        "versions": versions(),
        "commit": commit(),
        "form": form(),
        **plugins.in_manifest(scenario),
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}}


def _version(name: str) -> str:
    """Return what an imported library says of itself; else what is installed, for which its metadata are parsed."""
    try:
        return str(getattr(sys.modules.get(name), "__version__", None) or version(name))
    except PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """Return the commit of the checkout this code runs from, or of the one that the installed package was built from.

    ``-dirty`` follows it after local changes; `UNKNOWN` where nobody knows, as in a copy of the files.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return _built_from()
    try:
        said = _git(root, "status", "--porcelain=v2", "--branch", "--no-ahead-behind", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return _built_from()
    lines = said.splitlines()
    head = lines[0].removeprefix("# branch.oid ")
    if head == "(initial)":
        return _built_from()
    return head if all(line.startswith("#") for line in lines) else f"{head}-dirty"


def form() -> str:
    """Return whether the hot modules run compiled or as they are written; both give the same bytes."""
    engine = import_module("sim.cluster.replica")
    return PURE if str(engine.__file__).endswith(".py") else COMPILED


def version_line() -> str:
    """Return version, form and commit in a line."""
    try:
        number = version("tokenpools")
    except PackageNotFoundError:
        number = UNKNOWN
    return f"tokenpools {number}, {form()}, commit {commit()}"


def _built_from() -> str:
    """Return what `hatch_build.py` wrote into the package."""
    try:
        return str(import_module("sim._build").COMMIT)
    except (ImportError, AttributeError):
        return UNKNOWN


def host() -> dict[str, Any]:
    """Return what matters of the machine for the time a run took."""
    return {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count(), "python": sys.version}


def _git(root: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
