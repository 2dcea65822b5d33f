"""Build hook: a wheel and an sdist carry the commit that they were made from, as ``sim/_build.py``.

An editable install asks git when it runs; where there is no git, the file says nothing and ``commit`` is unknown.

With ``TOKENPOOLS_COMPILE=1`` in the environment a wheel also carries its hot modules compiled by mypyc, beside their
source, which Python then passes over. It takes a C compiler, 2 GB and some minutes; where there is no compiler, it says
so and the wheel is the plain one. ``TOKENPOOLS_COMPILE_LEVEL=1`` has the C compiler optimise less, in half of its time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "sim/_build.py"
ASKED = "TOKENPOOLS_COMPILE"
LEVEL = "TOKENPOOLS_COMPILE_LEVEL"
PACKAGES = ("policies", "workloads", "sim", "scenarios", "tokenpools")
HOT = tuple(
    f"{room}/{name}.py"
    for room, names in (
        ("policies", ("base", "core", "ledgers", "meters", "pool_state", "routing")),
        ("policies/parts", ("heaps", "lines", "queueing", "room", "trend")),
        ("policies/predictive_pool", ("books", "headroom", "leaves", "lengths", "lineup", "pace", "policy")),
        ("policies/token_pool", ("allocation", "leases", "limits", "metering", "policy", "priority", "threshold")),
        ("sim/cluster", (
            "agenda", "arrivals", "attempt", "batch", "discipline", "disaggregated", "engine_inbox", "engine_request",
            "flow_prefill", "gateway", "kv_cache", "prefix_cache", "ranks", "replica", "sampler", "scheduler",
            "uneven_contexts", "waiting",
        )),
        ("sim/engine", ("decode_curve", "interpolation", "linear_times")),
    )
    for name in names
)  # fmt: skip
"""What is compiled: the core, token pools, the simulated gateway and the engine. Left out are classes that SimPy's or
pydantic's ways need as they are (the clock, settings and step times), and events, which are tuples in both forms."""
FOLLOWED = (
    "policies.*", "workloads.*", "sim", "sim.cluster.*", "sim.engine.*", "sim.errors", "sim.records.*",
    "sim.scenario.*", "sim.seeds", "numpy.*", "pydantic.*", "pydantic_core.*", "simpy.*",
)  # fmt: skip
"""Whose types the compiler reads. All others, through `sim.api`, are ten times as many lines, and no compiled line is
another for them; mypy by itself reads them all (``make lint``)."""
FLAGS = (
    "-DNDEBUG", "-fwrapv",  # as Python is built: what is in the environment takes the place of Python's own flags
    "-fno-semantic-interposition",  # nobody puts functions of his own between ours, so that calls of them are direct
    # Python rounds every product and sum; a compiler may make one rounding of both where the processor can (ARM).
    "-ffp-contract=off",
)  # fmt: skip
SETUP = """
import gc, os, sys
gc.disable()  # what the types are made of lives until the end, and is then left where it is
from setuptools import setup  # first: it brings distutils
from mypyc.build import mypycify
options = ["--config-file", "mypy.toml", "--follow-imports", "skip"]
level, *hot = sys.argv[1:]
hot = mypycify([*options, *hot], opt_level=level, debug_level="0", group_name="tokenpools")
setup(name="tokenpools", ext_modules=hot, script_args=["build_ext", "--inplace"])
sys.stdout.flush()
os._exit(0)
"""


_OVERRIDE = f'''
[[tool.mypy.overrides]]
module = {list(FOLLOWED)}
follow_imports = "normal"
'''


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds ``sim/_build.py`` to what is built; the tree stays as it is."""

    PLUGIN_NAME = "custom"
    _folder: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling's documentation of build hooks."""
        if version == "editable":
            return
        root = Path(self.root)
        if self.target_name == "wheel" and os.environ.get(ASKED) == "1":
            self._compile(root, build_data)
        if not (root / ".git").exists():  # an sdist has the file already; a bare tree has nothing to say
            return
        commit = commit_of(root)
        if commit is None:
            return
        made = self._scratch() / "_build.py"
        made.write_text(f'"""What this was built from."""\n\nCOMMIT = "{commit}"\n', encoding="utf-8")
        build_data["force_include"][str(made)] = PLACE

    def dependencies(self) -> list[str]:
        """Return what a build in isolation needs besides: mypyc reads the types of what the package depends on."""
        if self.target_name != "wheel" or os.environ.get(ASKED) != "1":
            return []
        return [*self.metadata.core.dependencies, "mypy", "setuptools"]

    def _scratch(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="tokenpools-build-"))
        return self._folder

    def _compile(self, root: Path, build_data: dict[str, Any]) -> None:
        """Compile the hot modules in a copy of the tree, and take the results along."""
        if not compiler():
            sys.stderr.write("no C compiler, or no headers of Python: the wheel is built without compiled modules\n")
            return
        copy = self._scratch() / "tree"
        for name in PACKAGES:
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        # setuptools would read a pyproject.toml as its own; mypy takes its settings from any .toml.
        settings = (root / "pyproject.toml").read_text(encoding="utf-8")
        (copy / "mypy.toml").write_text(settings + _OVERRIDE, encoding="utf-8")
        hot = [path for path in HOT if (copy / path).exists()]
        flags = os.environ | {"CFLAGS": " ".join([*FLAGS, os.environ.get("CFLAGS", "")]).strip()}
        command = [sys.executable, "-c", SETUP, os.environ.get(LEVEL, "2"), *hot]
        subprocess.run(command, cwd=copy, check=True, stdout=sys.stderr, env=flags)
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        for made in [*copy.glob(f"*{suffix}"), *(copy / path.replace(".py", suffix) for path in hot)]:
            build_data["force_include"][str(made)] = str(made.relative_to(copy))
        build_data["pure_python"], build_data["infer_tag"] = False, True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was made for the build."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def compiler() -> bool:
    """Return whether the C compiler is there that extensions of this Python are built with, and Python's headers."""
    named = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(str(named).split()[0]) is not None and headers.exists()


def commit_of(root: Path) -> str | None:
    """Return the commit of a checkout, with ``-dirty`` after local changes; None where git cannot say."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changes else head
