"""The core's tests and the bytes of a summary on every Python from 3.11 on that this machine has: `make pythons`.

Each gets an environment of its own with the core and pytest, under ``build/pythons``; one that cannot be made, for want
of a wheel, is named and counts as not obtainable.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
TESTS = ("tests/policies", "tests/workloads/test_lengths.py", "tests/cluster/test_fleet.py")
TOOLS = ("pytest", "hypothesis", "scipy")
ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "pythons"


def interpreter(version: str) -> str | None:
    """Return a Python of this version, from the path or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [*map(str, sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)), f"python{version}"]
    for one in candidates:
        found = shutil.which(one)
        if found is None:
            continue
        asked = [found, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == version:
            return found
    return None


def prepared(version: str, python: str) -> Path | str:
    """Return the environment's Python, or what kept it from being made."""
    folder = BUILD / version
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    commands = (
        [python, "-m", "venv", str(folder)],
        [*pip, "--constraint", str(ROOT / "constraints.txt"), str(ROOT), *TOOLS],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["failed"])[-1]
    return folder / "bin/python"


def digest(python: Path, folder: Path) -> str:
    """Run the paper's first experiment and return the hash of its summary."""
    shutil.rmtree(folder, ignore_errors=True)
    asked = ["run", "paper-exp1", "--replications", "3", "--out", str(folder)]
    subprocess.run([str(python), "-m", "sim", *asked], cwd=BUILD, capture_output=True, check=True)
    return hashlib.sha256((folder / "summary.csv").read_bytes()).hexdigest()[:16]


def main() -> int:
    """Print a line for each version; 1 if a test failed or the bytes differ."""
    BUILD.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    failed = False
    existing = [test for test in TESTS if (ROOT / test).exists()]
    for version in VERSIONS:
        python = interpreter(version)
        made = "no such interpreter here" if python is None else prepared(version, python)
        if isinstance(made, str):
            print(f"{version}  not obtainable: {made}")
            continue
        digests[version] = digest(made, BUILD / f"result-{version}")
        tests = subprocess.run(
            [str(made), "-m", "pytest", "-q", "-p", "no:cacheprovider", *existing],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        failed |= tests.returncode != 0
        last = (tests.stdout.strip().splitlines() or [tests.stderr.strip()])[-1]
        print(f"{version}  summary.csv {digests[version]}  {last}", flush=True)
    return 1 if failed or len(set(digests.values())) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
