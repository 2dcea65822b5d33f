"""The documentation builds without a warning, and a dead link is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    find_spec("sphinx") is None or find_spec("myst_parser") is None or find_spec("furo") is None,
    reason="the docs extra is not installed",
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("generated"))
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    return tmp_path / "docs"


def build(sources: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(sources), str(sources.parent / "site")]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_the_site_builds_and_a_dead_link_stops_it(sources: Path) -> None:
    done = build(sources)
    assert done.returncode == 0, done.stderr
    site = sources.parent / "site"
    assert "token-pool" in (site / "generated/reference-policies.html").read_text()
    assert (site / "generated/tutorial-1-first-steps.html").exists()
    page = sources / "experiments.md"
    page.write_text(page.read_text() + "\nSee [nothing](nowhere.md).\n")
    done = build(sources)
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
