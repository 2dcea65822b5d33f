from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from experiments.small import TREE

import sim


def test_four_names_are_enough(tmp_path: Path) -> None:
    results = sim.sweep(TREE | {"replications": 3}, tmp_path / "s")
    assert results.errors == []
    assert set(results.summary["policy"]) == {"none", "token-pool"}
    assert len(results.replications) == 2 * 3 * 3
    assert results.findings[0].startswith("token-pool met")
    assert results.cautions
    assert "<table" in results._repr_html_()
    assert "2 runs" not in repr(results)
    assert {"fair-share", "tail-latency", "refusals"} <= set(results.figures)  # what `plot` writes
    for name in results.figures:
        assert results.figure(name).axes
    assert results.report().stat().st_size > 1_000_000
    again = sim.Results(tmp_path / "s")
    assert again.summary.equals(results.summary)


def test_results_without_a_folder_are_gone_with_the_object() -> None:
    results = sim.run(TREE)
    folder = results.folder
    assert (folder / "manifest.json").exists()
    del results
    assert not folder.exists()


def test_unknown_names_are_said() -> None:
    results = sim.run(TREE)
    with pytest.raises(ValueError, match="tail-latency"):
        results.figure("tail")
    with pytest.raises(ValueError, match="give one of: none, token-pool"):
        results.differences(["offered"], baseline="nobody")


def test_the_package_imports_nothing_until_asked() -> None:
    code = "import sim, sys; print(sorted({'numpy', 'pandas', 'pydantic', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
