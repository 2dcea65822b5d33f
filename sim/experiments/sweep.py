"""Sweeps: every cell of a scenario once, wherever it runs, and what a killed sweep finished is not run again."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.analysis.summary import Row, average_cells
from sim.analysis.warm_up import SERIES_COLUMNS, Series, WarmUp, series_of
from sim.errors import InputError, RunError
from sim.experiments.cells import Done, Failed, Task, WrongCode, cell_key, code_hash, run_task, task
from sim.experiments.executors import Executor, Lost
from sim.experiments.store import CellStore, Stored
from sim.experiments.warm_up import Labels, measured, warm_ups, warm_ups_in_manifest, warmup_s
from sim.records import provenance
from sim.records.result_folder import replace_file, write_manifest, write_summary
from sim.scenario.load import Cell, Scenario, expand

ASSUMED_REQUESTS_PER_CPU_S = 20_000.0
"""For an estimate where no cell is finished yet; benchmarks/throughput.py measures it."""


@dataclass(frozen=True, slots=True)
class Count:
    """How far a sweep is: cells finished (``kept`` of them by an earlier run), failed, and all."""

    finished: int
    kept: int
    failed: int
    total: int


OnCell = Callable[[Count], None]


@dataclass(frozen=True, slots=True, eq=False)
class SweepResult:
    """What a sweep left in its folder. ``measures`` has rows as in ``summary.csv``, one for each cell and tenant."""

    folder: Path
    summary: list[Row]
    measures: list[Row]
    count: Count
    errors: list[str]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a sweep would run.

    Attributes
    ----------
    cells, finished : how many there are, and how many of them need not run again.
    variants : for each its labels, its runs (policies times replications), those to run, and the requests of one.
    requests : first attempts that the rest would simulate, from the demand of each variant's first replication.
    requests_per_cpu_s : measured on the finished cells, or assumed (``measured`` says which).
    """

    cells: int
    finished: int
    requests: int
    requests_per_cpu_s: float
    measured: bool
    variants: tuple[tuple[str, int, int, int], ...]

    @property
    def cpu_s(self) -> float:
        """The CPU seconds that the rest would take."""
        return self.requests / self.requests_per_cpu_s


def sweep(
    scenario: Scenario, folder: Path, *, executor: Executor | None = None, on_cell: OnCell | None = None
) -> SweepResult:
    """Run every cell that ``folder`` does not hold yet, and write what all of them gave.

    Each cell is kept as soon as it is finished. A cell that fails is a row with its error in ``cells.csv`` and runs
    again next time; the others go on.

    Raises
    ------
    InputError : the folder is in use by something else or cannot be written, or a worker has other code.
    RunError : writing broke off.
    """
    started_s = time.time()
    store = CellStore(folder)
    store.check()
    cells = expand(scenario)
    code = code_hash()
    keys = [cell_key(cell, code) for cell in cells]
    found: list[Stored | Failed | None] = [store.read(key) for key in keys]
    kept = sum(one is not None for one in found)
    todo = [i for i, one in enumerate(found) if one is None]
    finished, failed = kept, 0
    if on_cell is not None:
        on_cell(Count(finished, kept, failed, len(cells)))
    tasks: list[Task] = [task(cells[i], keys[i]) for i in todo]
    for position, answer in (executor or Executor()).map(run_task, tasks):
        i = todo[position]
        found[i] = _taken(answer, store, keys[i], code)
        finished += isinstance(found[i], Stored)
        failed += isinstance(found[i], Failed)
        if on_cell is not None:
            on_cell(Count(finished, kept, failed, len(cells)))
    store.tidy()
    cuts = _warm_ups(cells, found, store)
    finished, failed = (sum(isinstance(one, kind) for one in found) for kind in (Stored, Failed))
    return _written(scenario, store, cells, found, cuts, Count(finished, kept, failed, len(cells)), started_s)


def estimate(scenario: Scenario, folder: Path | None) -> Estimate:
    """Return what a sweep would run, without running it."""
    from sim.experiments.demands import demands

    cells = expand(scenario)
    code = code_hash()
    store = None if folder is None else CellStore(folder)
    stored = [None if store is None else store.read(cell_key(cell, code)) for cell in cells]
    done = [one for one in stored if one is not None]
    offered: dict[Labels, int] = {}
    runs: dict[Labels, list[bool]] = {}
    for cell, one in zip(cells, stored, strict=True):
        variant = tuple(cell.variant.items())
        if variant not in offered:
            offered[variant] = sum(len(demand.arrival_s) for demand in demands(cell.scenario, 0))
        runs.setdefault(variant, []).append(one is None)
    requests = sum(sum(todo) * offered[variant] for variant, todo in runs.items())
    variants = [
        (", ".join(f"{path}={label}" for path, label in variant), len(todo), sum(todo), offered[variant])
        for variant, todo in runs.items()
    ]
    cpu_s = sum(one.stats["cpu_s"] for one in done)
    speed = sum(one.stats["attempts"] for one in done) / cpu_s if cpu_s > 0 else ASSUMED_REQUESTS_PER_CPU_S
    return Estimate(len(cells), len(done), requests, speed, cpu_s > 0, tuple(variants))


def _taken(answer: Done | Failed | WrongCode | Lost, store: CellStore, key: str, code: str) -> Stored | Failed:
    if isinstance(answer, Done):
        return store.write(answer)
    if isinstance(answer, WrongCode):
        raise RunError(f"a worker runs other code ({answer.found}) than this process ({code}); install the same there")
    return Failed(key, answer.problem, "") if isinstance(answer, Lost) else answer


def _warm_ups(cells: Sequence[Cell], found: list[Stored | Failed | None], store: CellStore) -> Mapping[Labels, WarmUp]:
    """Measure cells again whose warm-up a rule ends: it needs all replications and policies of a variant."""

    def series(i: int) -> Series | None:
        one = found[i]
        return series_of(store.requests(one.key, SERIES_COLUMNS)) if isinstance(one, Stored) else None

    cuts = warm_ups(cells, series)
    for i, (cell, one) in enumerate(zip(cells, found, strict=True)):
        if isinstance(one, Stored) and one.stats["warmup_s"] != (cut_s := warmup_s(cell, cuts)):
            stats = {**one.stats, "warmup_s": cut_s}
            try:
                again = Stored(one.key, stats, measured(cell, store.requests(one.key), stats))
            except InputError as error:
                found[i] = Failed(one.key, str(error), "")
                continue
            store.rewrite(again)
            found[i] = again
    return cuts


def _written(
    scenario: Scenario,
    store: CellStore,
    cells: Sequence[Cell],
    found: Sequence[Stored | Failed | None],
    cuts: Mapping[Labels, WarmUp],
    count: Count,
    started_s: float,
) -> SweepResult:
    stats: list[dict[str, Any]] = []
    measures: list[Row] = []
    errors: list[str] = []
    for cell, one in zip(cells, found, strict=True):
        labels: dict[str, Any] = {"policy": cell.policy, "variant": cell.variant, "replication": cell.replication}
        if isinstance(one, Stored):
            stats.append({"key": one.key, "error": None} | one.stats)
            # A cell's measures repeat its labels but for the replication, which a single run has no need of.
            measures += [{**row, "replication": cell.replication} for row in one.measures]
        elif one is not None:
            where = ", ".join([cell.policy, *(f"{p}={v}" for p, v in cell.variant.items()), f"#{cell.replication}"])
            errors.append(f"{where}: {one.error}")
            stats.append({"key": one.key, "error": one.error} | labels)
    summary = average_cells(measures)
    write_summary(summary, store.folder)
    replace_file(store.folder / "cells.csv", _cells_csv(cells, stats))
    write_manifest(
        {
            "kind": "sweep",
            **provenance.origin(scenario),
            "code": code_hash(),
            "host": provenance.host(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started_s)),
            "wall_s": round(time.time() - started_s, 3),
            "cpu_s": round(sum(one.get("cpu_s", 0.0) for one in stats), 3),
            **warm_ups_in_manifest(cuts),
            "cells": stats,
        },
        store.folder,
    )
    return SweepResult(store.folder, summary, measures, count, errors)


def _cells_csv(cells: Sequence[Cell], stats: Sequence[dict[str, Any]]) -> str:
    paths = list(cells[0].variant)
    costs = ("attempts", "warmup_s", "end_s", "wall_s", "cpu_s", "error")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "policy", *paths, "replication", *costs])
    for one in stats:
        values = [one["variant"][path] for path in paths]
        writer.writerow([one["key"], one["policy"], *values, one["replication"], *(one.get(name) for name in costs)])
    return text.getvalue()
