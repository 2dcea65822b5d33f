"""Where a result comes from: scenario, versions, commit, host."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sim.scenario import plugins
from sim.scenario.load import Scenario, resolved, scenario_hash

_LIBRARIES = ("tokenpools", "simpy", "numpy", "pyarrow", "pydantic")


def origin(scenario: Scenario) -> dict[str, Any]:
    """Return what a manifest says of the scenario and the code that a result is of."""
    return {
        "scenario": resolved(scenario),
        "scenario_hash": scenario_hash(scenario),
        "seed": scenario.seed,
        "versions": versions(),
        "commit": commit(),
        **plugins.in_manifest(scenario),
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """Return the commit of the checkout this code runs from, with ``-dirty`` after local changes; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changes else head


def host() -> dict[str, Any]:
    """Return what matters of the machine for the time a run took."""
    return {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count(), "python": sys.version}


def _git(root: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
