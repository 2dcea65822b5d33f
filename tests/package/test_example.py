"""The example package installs beside tokenpools and passes its own tests, as in CI of an outside project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "fair-halves"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of the example, and ``site`` in it, where it is installed."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("example") / "fair-halves"
    shutil.copytree(EXAMPLE, folder)
    offline = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(folder / "site"), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


def ran(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(folder / "site")}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=variables, capture_output=True, text=True, timeout=600,
        check=False,
    )


def test_its_own_tests_pass(installed: Path) -> None:
    done = ran(installed, "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_its_kinds_are_listed_and_run(installed: Path) -> None:
    done = ran(installed, "tokenpools", "list", "policies")
    assert "fair-halves" in done.stdout
    done = ran(installed, "tokenpools", "run", "scenario.yaml", "--out", "out", "--no-progress")
    assert done.returncode == 0, done.stderr
    assert "fair-halves" in (installed / "out" / "summary.csv").read_text()


def test_the_suite_finds_a_router_that_names_replicas_that_are_not_ready(installed: Path) -> None:
    file = installed / "site" / "fair_halves" / "router.py"
    file.write_text(file.read_text().replace("for book in replicas if book.ready]", "for book in replicas]"))
    done = ran(installed, "pytest", "-q", "-p", "no:cacheprovider", "--contract", "fair_halves.router:TwoChoices")
    assert done.returncode == 1
    assert "test_it_names_a_ready_replica_or_none" in done.stdout
