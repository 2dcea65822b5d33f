"""A result names the commit it is of, wherever the code was installed from."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from sim.records import provenance

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The module as if it lay in site-packages, where there is no checkout."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "sim" / "records" / "provenance.py"))


def test_a_built_package_names_its_commit(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.ModuleType("sim._build")
    made.COMMIT = "0123abc"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sim._build", made)
    assert provenance.commit() == "0123abc"
    assert provenance.version_line().endswith(", commit 0123abc")


def test_where_nobody_knows_it_says_so(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sim._build", None)
    assert provenance.commit() == "unknown"


def test_a_checkout_without_git_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "sim._build", None)
    assert provenance.commit() == "unknown"


def test_the_commit_of_a_checkout_and_whether_it_was_changed(installed: None, tmp_path: Path) -> None:
    def git(*command: str) -> str:
        named = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run([*named, *command], capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    assert provenance.commit() == provenance._built_from(), "nothing was committed yet"
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    head = git("rev-parse", "HEAD")
    assert provenance.commit() == head
    (tmp_path / "b").write_text("1")
    assert provenance.commit() == head, "what git does not track changes nothing"
    (tmp_path / "a").write_text("2")
    assert provenance.commit() == f"{head}-dirty"
    git("checkout", "-q", "--detach", head)
    assert provenance.commit() == f"{head}-dirty"
    git("checkout", "-q", "a")
    assert provenance.commit() == head


def test_versions_are_those_of_the_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {name: version(name) for name in provenance._LIBRARIES}
    assert provenance.versions() == {"python": platform.python_version(), **installed}
    monkeypatch.delitem(sys.modules, "pydantic")
    assert provenance.versions()["pydantic"] == installed["pydantic"], "what is not imported is looked up"
    monkeypatch.setattr(provenance, "_LIBRARIES", ("no-such-library",))
    assert provenance.versions()["no-such-library"] == "not installed"


def test_versions_of_what_is_imported_parse_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(provenance, "version", lambda name: asked.append(name) or "1")
    monkeypatch.setattr(provenance, "_LIBRARIES", ("simpy", "numpy", "pyarrow", "pydantic", "no-such-library"))
    import pyarrow  # noqa: F401
    import simpy  # noqa: F401

    provenance.versions()
    assert asked == ["no-such-library"]


def hook() -> Any:
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_hook_writes_the_commit_of_a_checkout_and_nothing_without_one(tmp_path: Path) -> None:
    module = hook()

    def built(version: str) -> dict[str, str]:
        data: dict[str, Any] = {"force_include": {}}
        made = module.CommitHook(str(tmp_path), {}, None, None, "", "wheel")
        made.initialize(version, data)
        found = {place: Path(file).read_text() for file, place in data["force_include"].items()}
        made.finalize(version, data, "")
        assert not any(Path(file).exists() for file in data["force_include"])
        return found

    assert built("standard") == {}
    (tmp_path / ".git").mkdir()
    assert built("standard") == {}, "a .git that git does not know"
    (tmp_path / ".git").rmdir()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert f'COMMIT = "{head}"' in built("standard")["sim/_build.py"]
    (tmp_path / "a").write_text("2")
    assert f'COMMIT = "{head}-dirty"' in built("standard")["sim/_build.py"]
    assert built("editable") == {}
