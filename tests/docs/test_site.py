"""The documentation builds without a warning, and a dead link is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    find_spec("sphinx") is None or find_spec("myst_nb") is None or find_spec("furo") is None,
    reason="the docs extra is not installed",
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("generated"))
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    return tmp_path / "docs"


def build(sources: Path, notebooks: str = "off") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(sources), str(sources.parent / "site")]
    environment = os.environ | {"NOTEBOOKS": notebooks}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)


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


def test_a_page_of_a_notebook_has_its_outputs_and_a_cell_that_fails_stops_the_build(sources: Path) -> None:
    for path in (sources.parent / "notebooks").glob("*.md"):
        path.unlink()
    for path in sources.glob("*.md"):
        path.unlink()
    (sources / "index.md").write_text("# All\n\n```{toctree}\n:glob:\n\ngenerated/*\n```\n")
    head = (ROOT / "notebooks/3-reading-results.md").read_text().split("# 3.")[0]
    notebook = sources.parent / "notebooks/1-small.md"
    notebook.write_text(f"{head}# Small\n\n```{{code-cell}} ipython3\nprint(6 * 7 * 1000)\n```\n")
    done = build(sources, "cache")
    assert done.returncode == 0, done.stderr
    assert "42000" in (sources.parent / "site/generated/tutorial-1-small.html").read_text()
    notebook.write_text(notebook.read_text().replace("6 * 7", "6 / 0"))
    assert build(sources, "cache").returncode != 0
