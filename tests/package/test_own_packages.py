"""A user's own files may have the names of tokenpools' packages."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from experiments.small import TREE

HOSTILE = ("policies.py", "sim.py", "workloads.py", "scenarios/__init__.py", "scenarios/paper-exp1.yaml")
COMMAND = Path(sys.executable).parent / "tokenpools"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a file for each name, none of which may be read."""
    for name in HOSTILE:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise RuntimeError('this is the file of the user')\n")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TREE))
    return tmp_path


def ran(*command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, env=os.environ | variables, check=False
    )


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_script_among_them_runs_here_and_in_workers(folder: Path, jobs: int) -> None:
    script = folder / "study.py"
    script.write_text(
        "import tokenpools\n"
        "if __name__ == '__main__':\n"
        f"    found = tokenpools.sweep('mine.yaml', 'out', jobs={jobs})\n"
        "    print(len(found.replications), found.errors, 'paper-exp1' in tokenpools.shipped_scenarios())\n"
    )
    done = ran(sys.executable, str(script), folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[1:] == ["[]", "True"]


@pytest.mark.parametrize("path", ["", "."], ids=["as it is", "on PYTHONPATH"])
@pytest.mark.parametrize("command", [[str(COMMAND)], [sys.executable, "-m", "tokenpools"]], ids=["script", "module"])
def test_the_command_among_them_runs(folder: Path, command: list[str], path: str) -> None:
    if path and command[0] == str(COMMAND) and "tokenpools" not in COMMAND.read_text().split("import main")[0]:
        pytest.skip("this environment was installed before the command had a module of its own")
    done = ran(*command, "run", "mine.yaml", "--out", "out", folder=folder, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "summary.csv").exists()


def test_a_notebook_among_them_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    assert find_spec("ipykernel") is not None
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    cells = ["import tokenpools\nresults = tokenpools.run('mine.yaml')", "results", "results.findings"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    client(notebook, timeout=120, resources={"metadata": {"path": os.fspath(folder)}}).execute()
    shown = ["".join(output.get("data", {}).get("text/html", "") for output in c.outputs) for c in notebook.cells]
    assert "<table" in shown[1]
    assert shown[2].startswith("<ul><li>")


def test_one_that_was_imported_before_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "policies.py").write_text("MINE = 1\n")
    (tmp_path / "study.py").write_text("import policies\nimport tokenpools\n")
    done = ran(sys.executable, "study.py", folder=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tokenpools has a package 'policies' of its own, and ")
    assert "/policies.py was imported under that name before; " in last
    assert last.endswith("; rename that file, or import tokenpools first")


def test_the_package_says_what_it_has_and_imports_nothing_until_asked() -> None:
    code = (
        "import tokenpools, sys; print(sorted({'numpy', 'pandas', 'pydantic', 'scipy', 'sim'} & set(sys.modules)));"
        "print(set(tokenpools.__all__) <= set(dir(tokenpools)), tokenpools.__version__);"
        "[getattr(tokenpools, name) for name in tokenpools.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["[]", "True"]


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    import tokenpools

    with pytest.raises(AttributeError, match=r"no attribute 'sweeep'; it has .*sweep"):
        tokenpools.sweeep  # noqa: B018
