"""What a shell completes: names of scenarios, policies, profiles and traces, and the paths of `--set`.

A completion that fails says nothing: a broken file must not put a traceback on somebody's command line.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from importlib.resources import files
from pathlib import Path
from typing import Any

from typer import Context

Found = list[tuple[str, str] | str]
_MOST = 60  # above this, paths are shown up to their next dot only


def answer(commands: Any) -> None:
    """Answer a shell that asks for completions, and end the process."""
    code = 1
    with contextlib.suppress(Exception):
        try:
            commands.main(prog_name="tokenpools", standalone_mode=False)
        except SystemExit as stop:
            code = int(stop.code or 0)
    sys.exit(code)


def not_installed(error: OSError | UnicodeError) -> str:
    """Return in words why completion could not be installed: a start-up file that cannot be read or written."""
    if isinstance(error, OSError):
        place, why = error.filename or "the shell's start-up file", error.strerror or str(error)
    else:
        place, why = "the shell's start-up file", "it is not UTF-8"
    fix = "mend it, or put what --show-completion prints where the shell reads it"
    return f"--install-completion: {place}: {why}; {fix}"


def _quiet(complete: Callable[..., Found]) -> Callable[..., Found]:
    @wraps(complete)
    def asked(ctx: Context, incomplete: str) -> Found:
        try:
            return complete(ctx, incomplete)
        except Exception:  # whatever is wrong will be said when the command runs
            return []

    return asked


def _beginning(names: Iterable[str], incomplete: str) -> Found:
    return [name for name in names if name.startswith(incomplete)]


def _shipped(package: str) -> list[str]:
    names = sorted(entry.name for entry in files(package).iterdir())
    return [name.removesuffix(".yaml") for name in names if name.endswith(".yaml")]


def _own_files(incomplete: str) -> list[str]:
    folder = Path(incomplete).parent if "/" in incomplete else Path()
    prefix = incomplete[: incomplete.rfind("/") + 1]
    found = [f"{prefix}{one.name}" for one in folder.iterdir() if one.suffix in (".yaml", ".yml")]
    found += [f"{prefix}{one.name}/" for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")]
    return sorted(found)


@_quiet
def scenarios(ctx: Context, incomplete: str) -> Found:  # noqa: ARG001
    """Return scenarios: those that are shipped, and the files at hand."""
    own: list[str] = []
    with contextlib.suppress(OSError):
        own = _own_files(incomplete)
    return _beginning([*_shipped("scenarios"), *own], incomplete)


@_quiet
def policies(ctx: Context, incomplete: str) -> Found:  # noqa: ARG001
    """Return the kinds of policies."""
    from policies.registry import POLICIES

    return _beginning(POLICIES, incomplete)


@_quiet
def profiles(ctx: Context, incomplete: str) -> Found:  # noqa: ARG001
    """Return the profiles that are shipped."""
    return _beginning(_shipped("sim.profiles"), incomplete)


@_quiet
def traces(ctx: Context, incomplete: str) -> Found:  # noqa: ARG001
    """Return the names of traces."""
    from workloads.catalogue import TRACES

    return _beginning(TRACES, incomplete)


@_quiet
def data_sets(ctx: Context, incomplete: str) -> Found:  # noqa: ARG001
    """Return the names of the data sets that `trace fetch` knows."""
    from sim.traces.catalogue import DATA_SETS

    return _beginning(DATA_SETS, incomplete)


@_quiet
def set_paths(ctx: Context, incomplete: str) -> Found:
    """Return what `--set` takes: paths of the scenario that is named, and after ``=`` the words that fit."""
    return _paths(ctx, incomplete, words=True)


@_quiet
def range_paths(ctx: Context, incomplete: str) -> Found:
    """Return what `--over` takes: the same paths; what comes after ``=`` is a range."""
    return _paths(ctx, incomplete, words=False)


def _paths(ctx: Context, incomplete: str, *, words: bool) -> Found:
    from sim.scenario.load import json_schema, load_scenario, resolved
    from sim.scenario.paths import choices
    from sim.scenario.paths import set_paths as paths_of

    named = ctx.params.get("scenario") or _scenario_typed()
    tree = {}
    if named:
        with contextlib.suppress(Exception):  # a scenario that is broken has the paths of the schema still
            tree = resolved(load_scenario(named))
    schema = json_schema()
    path, equals, value = incomplete.partition("=")
    if equals:
        fits = choices(path, tree, schema) if words else []
        return [f"{path}={word}" for word in fits if word.startswith(value)]
    found = [(f"{one}=", text) for one, text in paths_of(tree, schema) if one.startswith(incomplete)]
    return list(found) if len(found) <= _MOST else _up_to_a_dot([one for one, _ in found], incomplete)


def _scenario_typed() -> str | None:
    """Return the scenario on the line that the shell sent: typer leaves off at an option that has no value yet."""
    line = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", ""))
    shipped = set(_shipped("scenarios"))
    words = (word.strip("'\"") for word in line.split())
    return next((word for word in words if word in shipped or word.endswith((".yaml", ".yml"))), None)


def _up_to_a_dot(paths: Iterable[str], incomplete: str) -> Found:
    """Return the paths cut at the next dot; where all go on alike, at the one after it."""
    at = len(incomplete)
    whole = list(paths)
    while True:
        ends = [path.find(".", at) for path in whole]
        cut = list(dict.fromkeys(path if end < 0 else path[: end + 1] for path, end in zip(whole, ends, strict=True)))
        if len(cut) > 1 or not cut[0].endswith("."):
            return list(cut)
        at = len(cut[0])
