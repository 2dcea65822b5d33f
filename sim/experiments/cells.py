"""One cell of a sweep as a task: what names it, and a function that runs it anywhere and never raises."""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.analysis.summary import Row
from sim.scenario import plugins
from sim.scenario.load import Cell, normalised, resolved
from workloads.catalogue import locate
from workloads.formats.errors import TraceError

_ROOT = Path(__file__).resolve().parent.parent.parent
# What decides a cell's records. A change of a report or of a document runs nothing again.
_DECIDING = ("policies", "workloads", "sim/cluster", "sim/engine", "sim/profiles")
_DECIDING_FILES = (
    "sim/records/arrow_columns.py",
    "sim/scenario/plugins.py",
    "sim/scenario/pool.py",
    "sim/scenario/profile.py",
    "sim/records/schema.py",
    "sim/records/result_folder.py",
    "sim/scenario/model.py",
    "sim/seeds.py",
    "sim/records/metrics.py",
    "sim/analysis/entitlement_violation.py",
    "sim/analysis/summary.py",
    "sim/analysis/warm_up.py",
    "sim/experiments/cells.py",
    "sim/experiments/warm_up.py",
    "sim/records/decisions.py",
    "sim/experiments/run.py",
)
_LIBRARIES = ("numpy", "pyarrow", "simpy")


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker needs to run one cell, and the code that it must have."""

    key: str
    cell: Cell
    code: str


@dataclass(frozen=True, slots=True)
class Done:
    """A finished cell: the bytes of its files by name, what it cost and what it measured.

    ``stats`` are the labels, counts and times of the manifest. ``measures`` are rows as in ``summary.csv``, one for
    each tenant and one for all.
    """

    key: str
    files: dict[str, bytes]
    stats: dict[str, Any]
    measures: list[Row]


@dataclass(frozen=True, slots=True)
class Failed:
    """A cell that broke: the error in one line, and where it was raised."""

    key: str
    error: str
    trace: str


@dataclass(frozen=True, slots=True)
class WrongCode:
    """A worker that has other code than the process that sent it the cell."""

    found: str


def cell_key(cell: Cell, code: str) -> str:
    """Return the name of a cell: the hash of all that decides its records.

    Title, phases and the number of replications do not: more replications leave the first ones where they are. The
    content of the files that workloads replay does.
    """
    whole = {
        "scenario": normalised(resolved(_alone(cell).scenario)),
        "variant": cell.variant,
        "replication": cell.replication,
        "data": [_content(workload.arrivals) for workload in cell.scenario.workload],
        "code": code,
        **plugins.in_manifest(cell.scenario),
    }
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Return the hash of the code and of the libraries' versions that decide a cell's records."""
    from importlib.metadata import version

    digest = hashlib.sha256()
    paths = [path for folder in _DECIDING for path in (_ROOT / folder).rglob("*.py")]
    paths += [_ROOT / name for name in _DECIDING_FILES]
    for path in sorted(paths):
        digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(" ".join(f"{name}={version(name)}" for name in _LIBRARIES).encode())
    return digest.hexdigest()[:16]


def task(cell: Cell, key: str) -> Task:
    """Return a cell ready to be sent."""
    return Task(key, _alone(cell), code_hash())


def run_task(task: Task) -> Done | Failed | WrongCode:
    """Run a cell and pack its records. Whatever goes wrong is part of the answer."""
    if task.code != code_hash():
        return WrongCode(code_hash())
    try:
        return _done(task)
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        return Failed(task.key, line, traceback.format_exc())


def _done(task: Task) -> Done:
    from sim.experiments.run import run_cell
    from sim.experiments.warm_up import measured, warmup_s
    from sim.records.result_folder import table_bytes

    result = run_cell(task.cell)
    # Where a rule makes the cut it depends on other cells, and the sweep measures again when all are done.
    ruled = isinstance(task.cell.scenario.warmup_s, str)
    result.stats["warmup_s"] = 0.0 if ruled else warmup_s(task.cell, {})
    measures = measured(task.cell, result.requests, result.stats)
    files = {"requests": table_bytes(result.requests), "timeline": table_bytes(result.timeline)}
    for name, table in (("decisions", result.decisions), ("shadows", result.shadows)):
        if table is not None:
            files[name] = table_bytes(table)
    return Done(task.key, files, result.stats, measures)


def _content(arrivals: object) -> str | None:
    """Return the hash of the file or folder that a workload replays; None where there is none, or it is missing."""
    named = getattr(arrivals, "file", None) or getattr(arrivals, "folder", None)
    return _hash_of(named, os.environ.get("TOKENPOOLS_DATA")) if isinstance(named, str) else None


@lru_cache(maxsize=64)
def _hash_of(named: str, data: str | None) -> str | None:
    folder = Path(data) if data else None
    for want_folder in (False, True):
        try:
            place = locate(named, folder, want_folder=want_folder)
            paths = sorted(path for path in place.rglob("*") if path.is_file()) if want_folder else [place]
            digest = hashlib.sha256()
            for path in paths:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            return digest.hexdigest()[:16]
        except (TraceError, OSError):
            continue
    return None


def _alone(cell: Cell) -> Cell:
    """Return the cell without what its records do not depend on."""
    bare: dict[str, Any] = {"replications": 1, "title": None, "description": None, "phases": (), "vary": {}}
    bare["scored"] = ()
    return replace(cell, index=0, scenario=cell.scenario.model_copy(update=bare))
