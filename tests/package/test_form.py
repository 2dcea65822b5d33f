"""The hot modules run as they are written or compiled by mypyc, and say in which form."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from sim.records.provenance import COMPILED, PURE, form, version_line

ROOT = Path(__file__).parents[2]


@pytest.fixture
def build() -> Any:
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_hot_modules_are_of_one_form_and_the_version_says_which(build: Any) -> None:
    names = [path.removesuffix(".py").replace("/", ".") for path in build.HOT]
    forms = {PURE if str(importlib.import_module(name).__file__).endswith(".py") else COMPILED for name in names}
    assert forms == {form()}
    assert f", {form()}, " in version_line()


def test_the_compiler_reads_the_types_of_whatever_a_hot_module_imports(build: Any) -> None:
    """Of another module it would know nothing, and would compile every use of it as a use of any object."""
    rooms = tuple(name.removesuffix("*") for name in build.FOLLOWED if name.endswith("*"))
    imported = {
        name for path in build.HOT for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom)
            else [each.name for each in node.names] if isinstance(node, ast.Import) else []
        )
    }  # fmt: skip
    assert "sim.cluster.scheduler" in imported
    unread = {name for name in imported if name not in build.FOLLOWED and not f"{name}.".startswith(rooms)}
    assert not {name for name in unread if name.partition(".")[0] not in sys.stdlib_module_names}


def test_a_wheel_is_plain_unless_it_is_asked_for_and_a_compiler_is_there(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def built() -> dict[str, Any]:
        data: dict[str, Any] = {"force_include": {}}
        hook = build.CommitHook(str(tmp_path), {}, None, None, "", "wheel")
        hook.initialize("standard", data)
        hook.finalize("standard", data, "")
        return data

    monkeypatch.delenv(build.ASKED, raising=False)
    assert built() == {"force_include": {}}
    monkeypatch.setenv(build.ASKED, "1")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert built() == {"force_include": {}}
    assert "no C compiler" in capsys.readouterr().err


@pytest.mark.parametrize("level", [None, "1"])
def test_a_compiled_wheel_carries_every_hot_module(
    build: Any, monkeypatch: pytest.MonkeyPatch, level: str | None
) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")

    def compiled(command: list[str], *, cwd: Path, **_: Any) -> None:
        (cwd / f"tokenpools__mypyc{suffix}").touch()
        assert command[3] == (level or "2")
        for path in command[4:]:
            (cwd / path.replace(".py", suffix)).touch()

    monkeypatch.delenv(build.LEVEL, raising=False)
    if level is not None:
        monkeypatch.setenv(build.LEVEL, level)
    monkeypatch.setattr(build, "compiler", lambda: True)
    monkeypatch.setattr(build.subprocess, "run", compiled)
    hook = build.CommitHook(str(ROOT), {}, None, None, "", "wheel")
    data: dict[str, Any] = {"force_include": {}}
    try:
        hook._compile(ROOT, data)
    finally:
        hook.finalize("standard", data, "")
    wanted = {path.replace(".py", suffix) for path in build.HOT} | {f"tokenpools__mypyc{suffix}"}
    assert set(data["force_include"].values()) == wanted
    assert not data["pure_python"]
