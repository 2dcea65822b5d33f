"""What runs measured, each behind its warm-up: as stated, or cut by a rule that looks at all that are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from sim.analysis.summary import Row, average_cells, summarise, with_violations
from sim.analysis.warm_up import RULE, Series, WarmUp, series_of, warm_up_of
from sim.errors import InputError
from sim.scenario.load import Cell

Labels = tuple[tuple[str, str], ...]
"""Paths that vary and their labels: a variant."""


def summed(
    cells: Sequence[Cell], requests: Sequence[pa.Table], stats: Sequence[dict[str, Any]]
) -> tuple[list[Row], dict[Labels, WarmUp]]:
    """Return ``summary.csv`` of runs and the cuts that a rule made; each run's stats get the ``warmup_s`` it has.

    Raises
    ------
    InputError : a run ended within its warm-up.
    """
    cuts = warm_ups(cells, lambda i: series_of(requests[i]))
    measures: list[Row] = []
    for cell, table, one in zip(cells, requests, stats, strict=True):
        one["warmup_s"] = warmup_s(cell, cuts)
        measures += measured(cell, table, one)
    return average_cells(measures), cuts


def measured(cell: Cell, requests: pa.Table, stats: Mapping[str, Any]) -> list[Row]:
    """Return the rows of ``summary.csv`` of one cell by itself: each tenant that has a workload, and all.

    Raises
    ------
    InputError : the run, which ends with its last request, ended within the warm-up.
    """
    scenario, cut_s = cell.scenario, stats["warmup_s"]
    end_s = stats["end_s"] if scenario.horizon_s is None else scenario.horizon_s
    if requests.num_rows and cut_s >= end_s:
        problem = f"{cut_s:g} leaves nothing: under {cell.policy} the run ended with its last request at {end_s:.3g} s"
        raise InputError("warmup_s", problem, f"give less than {end_s:.3g}, or a horizon_s")
    tenant_of = {one.name: one.spec().tenant for one in scenario.pool.entitlements}
    tenants = [tenant_of[workload.entitlement] for workload in scenario.workload]
    rows = summarise(requests, horizon_s=end_s, warmup_s=cut_s, tenants=tenants)
    return with_violations(rows, stats)


def warm_ups(cells: Sequence[Cell], read: Callable[[int], Series | None]) -> dict[Labels, WarmUp]:
    """Return the cut of each variant whose scenario leaves it to the rule.

    Parameters
    ----------
    read : gives the series of the cell at a position; None where it failed.
    """
    found: dict[Labels, dict[str, list[Series]]] = {}
    for i, cell in enumerate(cells):
        if cell.scenario.warmup_s == RULE and (one := read(i)) is not None:
            found.setdefault(tuple(cell.variant.items()), {}).setdefault(cell.policy, []).append(one)
    return {labels: warm_up_of(by_policy) for labels, by_policy in found.items()}


def warmup_s(cell: Cell, cuts: Mapping[Labels, WarmUp]) -> float:
    """Return the seconds to leave out of a cell's summary: as stated, or its variant's cut."""
    stated = cell.scenario.warmup_s
    return cuts[tuple(cell.variant.items())].warmup_s if isinstance(stated, str) else stated


def warm_ups_in_manifest(cuts: Mapping[Labels, WarmUp]) -> dict[str, Any]:
    """Return what the manifest says of cuts that a rule made, if there are any."""
    if not cuts:
        return {}
    variants = [
        {
            "variant": dict(labels),
            "warmup_s": one.warmup_s,
            "by_policy": {policy: None if math.isnan(at_s) else at_s for policy, at_s in one.by_policy.items()},
        }
        for labels, one in cuts.items()
    ]
    return {"warm_up": {"rule": RULE, "cuts": variants}}
