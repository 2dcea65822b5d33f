"""Run a scenario: every policy, variant and replication, and write the result."""

from __future__ import annotations

import gc
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from policies.api import AdmissionPolicy
from policies.registry import POLICIES, ROUTERS, SCALERS
from sim import provenance
from sim.analysis.promises import lost_tokens, violations
from sim.analysis.summary import Row, average_cells, summarise
from sim.analysis.warm_up import RULE, Cut, Series, cut, series_of
from sim.cluster.faults import PoolEvent
from sim.cluster.world import Outcomes, World, simulate
from sim.errors import InputError, RunError
from sim.experiments.decisions import decisions_table
from sim.records import join_tables, requests_table, timeline_table
from sim.results import check_output_folder, write_result
from sim.scenario import Cell, Event, Scenario, expand, resolved, scenario_hash
from sim.seeds import stream
from workloads.generate import WorkloadSpec, generate
from workloads.requests import Demand
from workloads.trace import TraceError

Labels = tuple[tuple[str, str], ...]
"""Paths that vary and their labels: a variant."""

Progress = Callable[[float, int], None]
"""Hears simulated seconds and ended attempts since the last call."""


@dataclass(frozen=True, slots=True, eq=False)
class CellResult:
    """What one cell gave, ready to be joined with the others. ``stats`` goes to the manifest."""

    index: int
    requests: pa.Table
    timeline: pa.Table
    decisions: pa.Table | None
    end_s: float
    stats: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class ScenarioResult:
    """A scenario's tables and summary, and the folder they are in, if they were written."""

    requests: pa.Table
    timeline: pa.Table
    decisions: pa.Table | None
    summary: list[Row]
    manifest: dict[str, Any]
    folder: Path | None


def run_scenario(
    scenario: Scenario, out: Path | None = None, *, jobs: int = 1, on_progress: Progress | None = None
) -> ScenarioResult:
    """Run every cell and, with ``out``, write the result there, whole or not at all.

    Raises
    ------
    InputError : ``out`` cannot be written, or a trace is missing or damaged.
    """
    if out is not None:
        check_output_folder(out)
    started_s, cpu_s = time.time(), _cpu_s()
    cells = expand(scenario)
    results = sorted(_run_cells(cells, jobs, on_progress), key=lambda result: result.index)
    requests = join_tables([r.requests for r in results])
    timeline = join_tables([r.timeline for r in results])
    decisions = join_tables([r.decisions for r in results if r.decisions is not None]) if any(
        r.decisions is not None for r in results
    ) else None
    cuts = found_cuts(cells, lambda i: series_of(results[i].requests))
    measures: list[Row] = []
    for cell, result in zip(cells, results, strict=True):
        result.stats["warmup_s"] = warmup_s(cell, cuts)
        measures += measured(cell, result.requests, result.stats)
    summary = average_cells(measures)
    manifest: dict[str, Any] = {
        "scenario": resolved(scenario),
        "scenario_hash": scenario_hash(scenario),
        "seed": scenario.seed,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "host": provenance.host(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started_s)),
        "wall_s": round(time.time() - started_s, 3),
        "cpu_s": round(_cpu_s() - cpu_s, 3),
        **cuts_in_words(cuts),
        "cells": [r.stats for r in results],
    }
    if out is not None:
        write_result(out, requests, timeline, summary, manifest, decisions)
    return ScenarioResult(requests, timeline, decisions, summary, manifest, out)


def run_cell(cell: Cell, on_progress: Progress | None = None) -> CellResult:
    """Run one cell."""
    scenario = cell.scenario
    started_s, cpu_s = time.perf_counter(), time.process_time()
    outcomes = _simulate(cell, on_progress)
    labels: dict[str, Any] = {
        "run_id": f"{scenario_hash(scenario)}-{cell.replication}",
        "policy": cell.policy,
        "variant": cell.variant,
        "replication": cell.replication,
    }
    requests = requests_table(outcomes.columns, **labels)
    timeline = timeline_table(outcomes.timeline, **labels)
    decisions = decisions_table(outcomes.decisions, **labels) if scenario.record_decisions else None
    stats = labels | {
        "attempts": requests.num_rows,
        "end_s": outcomes.end_s,
        "simulated_events": outcomes.simulated_events,
        "iterations": outcomes.iterations,
        "preemptions": outcomes.preemptions,
        "lost_tokens": lost_tokens(outcomes.columns),
        "violation": violations(outcomes.columns, outcomes.end_s),
        **({} if outcomes.gpu_s is None else {"gpu_s": outcomes.gpu_s}),
        "wall_s": round(time.perf_counter() - started_s, 3),
        "cpu_s": round(time.process_time() - cpu_s, 3),
    }
    return CellResult(cell.index, requests, timeline, decisions, outcomes.end_s, stats)


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
    return summarise(requests, horizon_s=end_s, warmup_s=cut_s, tenants=tenants)


def found_cuts(cells: Sequence[Cell], read: Callable[[int], Series | None]) -> dict[Labels, Cut]:
    """Return the cut of each variant whose scenario leaves it to the rule.

    Parameters
    ----------
    read : gives the series of the cell at a position; None where it failed.
    """
    found: dict[Labels, dict[str, list[Series]]] = {}
    for i, cell in enumerate(cells):
        if cell.scenario.warmup_s == RULE and (one := read(i)) is not None:
            found.setdefault(tuple(cell.variant.items()), {}).setdefault(cell.policy, []).append(one)
    return {labels: cut(by_policy) for labels, by_policy in found.items()}


def warmup_s(cell: Cell, cuts: Mapping[Labels, Cut]) -> float:
    """Return the seconds to leave out of a cell's summary: as stated, or its variant's cut."""
    stated = cell.scenario.warmup_s
    return cuts[tuple(cell.variant.items())].warmup_s if isinstance(stated, str) else stated


def cuts_in_words(cuts: Mapping[Labels, Cut]) -> dict[str, Any]:
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


def demands(scenario: Scenario, replication: int) -> list[Demand]:
    """Return the requests of every workload. No policy is in a stream's name, so all policies meet the same."""
    horizon_s = math.inf if scenario.horizon_s is None else scenario.horizon_s
    data = os.environ.get("TOKENPOOLS_DATA")
    return [_demand(w.spec(), scenario.seed, replication, horizon_s, data) for w in scenario.workload]


def world_of(cell: Cell) -> World:
    """Build what one cell runs: demand, policy and router, with their seeds."""
    scenario = cell.scenario
    pool = scenario.pool
    entitlements = [entitlement.spec() for entitlement in pool.entitlements]
    params = scenario.policies[0].params

    def built(stream_name: str) -> AdmissionPolicy:
        return POLICIES[params.kind].build(
            params,
            entitlements=entitlements,
            kv_bytes_per_token=pool.profile.kv_bytes_per_token,
            chance=_chance(scenario.seed, cell.replication, stream_name),
        )

    policy = built("policy/chance")
    router = ROUTERS[pool.router.kind]
    scaling = scenario.autoscaler_of(scenario.policies[0])
    scaler = SCALERS[scaling.kind].build(
        scaling, policy=policy, entitlements=entitlements, per_replica=pool.capacity(1)
    )
    return World(
        profile=pool.profile,
        replicas=pool.replicas,
        entitlements=entitlements,
        workloads=[w.spec() for w in scenario.workload],
        demands=demands(scenario, cell.replication),
        policy=policy,
        scaler=scaler,
        most_replicas=getattr(scaling, "max_replicas", None),
        life=pool.life(),
        retry_failed=pool.on_failure == "retry",
        notice_s=pool.notice_s,
        others=[(built(f"policy/chance/{i}"), router.build(pool.router)) for i in range(1, pool.gateways)],
        share_s=pool.share_every_s,
        router=router.build(pool.router),
        events=[_pool_event(event) for event in scenario.events],
        horizon_s=scenario.horizon_s,
        default_max_output_tokens=pool.default_max_output_tokens,
        timeline_interval_s=scenario.timeline_interval_s,
        scrape_interval_s=pool.scrape_interval_s,
        chances=[_chance(scenario.seed, cell.replication, f"{w.name}/client") for w in scenario.workload],
    )


def _chance(seed: int, replication: int, name: str) -> random.Random:
    return random.Random(int(stream(seed, replication, name).integers(2**63)))


def _pool_event(event: Event) -> PoolEvent:
    capacity = event.capacity
    return PoolEvent(
        at_s=event.at_s,
        sets_capacity=capacity is not None,
        slots=None if capacity is None else capacity.slots,
        kv_blocks=None if capacity is None else capacity.kv_blocks,
        fail=event.fail,
        restore=event.restore,
        slow=event.slow,
        factor=1.0 if event.factor is None else event.factor,
    )


def _simulate(cell: Cell, on_progress: Progress | None) -> Outcomes:
    world = world_of(cell)
    # Nothing a run makes is garbage in a cycle, so looking for cycles in millions of live objects only costs time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return simulate(
            world, record_decisions=cell.scenario.record_decisions, on_progress=_steps(on_progress)
        )
    finally:
        if collecting:
            gc.enable()


def _steps(on_progress: Progress | None) -> Progress | None:
    """Turn totals into what came since the last call."""
    if on_progress is None:
        return None
    last = (0.0, 0)

    def step(now_s: float, ended: int) -> None:
        nonlocal last
        on_progress(now_s - last[0], ended - last[1])
        last = (now_s, ended)

    return step


def _run_cells(cells: Sequence[Cell], jobs: int, on_progress: Progress | None) -> Iterator[CellResult]:
    if jobs == 1 or len(cells) == 1:
        for cell in cells:
            yield run_cell(cell, on_progress)
        return
    from sim.experiments.executors import Executor, Lost

    for i, result in Executor(jobs=min(jobs, len(cells))).map(_run_or_error, cells):
        if isinstance(result, Lost):
            raise RunError(f"{cells[i].policy}, replication {cells[i].replication}: {result.problem}")
        if isinstance(result, Exception):
            raise result
        if on_progress is not None:
            on_progress(result.end_s, result.requests.num_rows)
        yield result


def _run_or_error(cell: Cell) -> CellResult | Exception:
    try:
        return run_cell(cell)
    except Exception as error:
        return error


@lru_cache(maxsize=8)
def _demand(spec: WorkloadSpec, seed: int, replication: int, horizon_s: float, data: str | None) -> Demand:
    try:
        return generate(spec, partial(stream, seed, replication), horizon_s, Path(data) if data else None)
    except (TraceError, ValueError) as error:
        raise InputError(f"workload {spec.name}", str(error), "") from error


def _cpu_s() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
