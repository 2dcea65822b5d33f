"""Notebooks: the two halves of each pair agree, they define nothing, they run, and say what they should."""

from __future__ import annotations

import ast
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
TEXTS = sorted(FOLDER.glob("*.md"))
# What the outputs must hold, and how many pictures there must be.
EXPECTED: dict[str, tuple[list[str], int]] = {
    "1-first-steps": (["token-pool met the objective of", "of different requests", "experiment 1"], 1),
    "2-the-papers-experiments": (["spot-b", "guaranteed-a", "refused_share"], 1),
    "3-reading-results": (["finished", "refused", "token-pool"], 3),
    "4-your-own-policy": ([r"\['Forward', 'Forward', 'Refuse'\]", "'Forward'", "at-most-2", "cap:Cap"], 0),
    "5-calibrating-a-profile": (["on 7 other iterations: mean [0-4]", "weights_s"], 0),
    "6-planning-capacity": (["'none': {'pool.replicas': [2-6]}", "True"], 1),
}

pytestmark = [
    pytest.mark.skipif(
        find_spec("jupytext") is None or find_spec("nbclient") is None, reason="the notebooks extra is not installed"
    ),
    pytest.mark.filterwarnings("ignore"),  # Jupyter's own
]


def test_every_notebook_is_checked() -> None:
    assert [path.stem for path in TEXTS] == sorted(EXPECTED)


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_both_halves_of_a_pair_agree(text: Path) -> None:
    import jupytext

    halves = (jupytext.read(text), jupytext.read(text.with_suffix(".ipynb")))
    mine, theirs = ([(cell.cell_type, cell.source) for cell in half.cells] for half in halves)
    assert mine == theirs, f"jupytext --sync notebooks/{text.name}"
    assert not any(cell.get("outputs") for cell in halves[1].cells), "clear the outputs: they are made in CI"


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_they_import_functions_and_define_none(text: Path) -> None:
    import jupytext

    for cell in jupytext.read(text).cells:
        if cell.cell_type == "code":
            source = re.sub(r"^%", "#", cell.source, flags=re.MULTILINE)
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
            assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(source)))


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_they_run_and_say_what_they_should(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jupytext
    from nbclient import NotebookClient

    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = jupytext.read(text)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": os.fspath(FOLDER)}})
    client.execute()
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "\n".join(
        str(output.get("text", "")) + "".join(str(v) for k, v in output.get("data", {}).items() if k.startswith("text"))
        for output in outputs
    )
    phrases, pictures = EXPECTED[text.stem]
    for phrase in phrases:
        assert re.search(phrase, said), (phrase, said[:3000])
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= pictures
    assert not any(output.output_type == "stream" and output.name == "stderr" for output in outputs), said[:3000]
