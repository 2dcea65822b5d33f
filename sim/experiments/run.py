"""Run a scenario: every policy, variant and replication, and write the result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from policies.api import AdmissionPolicy
from policies.registry import SCALERS
from sim import collector
from sim.analysis.entitlement_violation import by_tenant, lost_tokens, shortfalls
from sim.analysis.summary import ALL, Row
from sim.cluster.faults import PoolEvent
from sim.cluster.world import Outcomes, World, simulate
from sim.errors import InputError, RunError, TokenpoolsError
from sim.experiments.caveats import caveats
from sim.experiments.demands import client_chances, demands, named_chance
from sim.experiments.warm_up import summed, warm_ups_in_manifest
from sim.records import provenance
from sim.records.decisions import decisions_table, opinions_table
from sim.records.result_folder import check_output_folder, write_result
from sim.records.schema import join_tables, requests_table, timeline_table
from sim.scenario import plugins
from sim.scenario.idle_fields import idle_fields
from sim.scenario.idle_slots import idle_slots
from sim.scenario.load import Cell, Event, Scenario, expand, scenario_hash

Progress = Callable[[float, int], None]
"""Hears simulated seconds and ended attempts since the last call."""


@dataclass(frozen=True, slots=True, eq=False)
class CellResult:
    """What one cell gave, ready to be joined with the others. ``stats`` goes to the manifest."""

    index: int
    requests: pa.Table
    timeline: pa.Table
    decisions: pa.Table | None
    shadows: pa.Table | None
    end_s: float
    stats: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class ScenarioResult:
    """A scenario's tables and summary, and the folder they are in, if they were written."""

    requests: pa.Table
    timeline: pa.Table
    decisions: pa.Table | None
    shadows: pa.Table | None
    summary: list[Row]
    manifest: dict[str, Any]
    folder: Path | None


def run_scenario(
    scenario: Scenario, out: Path | None = None, *, jobs: int = 1, on_progress: Progress | None = None,
    check_invariants: bool = False,
) -> ScenarioResult:
    """Run every cell and, with ``out``, write the result there, whole or not at all.

    Parameters
    ----------
    check_invariants : whether `policies.invariants` looks on at every gateway core.

    Raises
    ------
    InputError : ``out`` cannot be written, or a trace is missing or damaged.
    RunError : an invariant did not hold.
    """
    if out is not None:
        check_output_folder(out)
    started_s, cpu_s = time.time(), _cpu_s()
    cells = expand(scenario)
    results = sorted(_run_cells(cells, jobs, on_progress, check_invariants), key=lambda result: result.index)
    requests = join_tables([r.requests for r in results])
    timeline = join_tables([r.timeline for r in results])
    decisions = _joined([r.decisions for r in results])
    shadows = _joined([r.shadows for r in results])
    summary, cuts = summed(cells, [r.requests for r in results], [r.stats for r in results])
    notes = caveats((cells[r.index].scenario.pool.profile, r.requests) for r in results)
    notes += dict.fromkeys(words for cell in cells for words in idle_slots(cell.scenario.pool, cell.scenario.policies))
    notes += idle_fields([cell.scenario for cell in cells])
    manifest: dict[str, Any] = {
        **provenance.origin(scenario),
        "host": provenance.host(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started_s)),
        "wall_s": round(time.time() - started_s, 3),
        "cpu_s": round(_cpu_s() - cpu_s, 3),
        **warm_ups_in_manifest(cuts),
        **({"caveats": notes} if notes else {}),
        "cells": [r.stats for r in results],
    }
    if out is not None:
        write_result(out, requests, timeline, summary, manifest, decisions, shadows)
    return ScenarioResult(requests, timeline, decisions, shadows, summary, manifest, out)


def run_cell(cell: Cell, on_progress: Progress | None = None, check_invariants: bool = False) -> CellResult:
    """Run one cell.

    Raises
    ------
    RunError : an invariant did not hold.
    """
    scenario = cell.scenario
    started_s, cpu_s = time.perf_counter(), time.process_time()
    world = world_of(cell)
    try:
        outcomes = _simulate(world, scenario.record_decisions, on_progress, check_invariants)
    except TokenpoolsError:
        raise
    except Exception as error:
        if check_invariants and _is_broken(error):
            raise RunError(f"{cell.policy}, replication {cell.replication}: {error}; please report it") from None
        if whose := plugins.raised_by(scenario, error):
            raise RunError(whose) from error
        raise
    labels: dict[str, Any] = {
        "run_id": f"{scenario_hash(scenario)}-{cell.replication}",
        "policy": cell.policy,
        "variant": cell.variant,
        "replication": cell.replication,
    }
    requests = requests_table(outcomes.columns, **labels)
    timeline = timeline_table(outcomes.timeline, **labels)
    decisions = decisions_table(outcomes.decisions, **labels) if scenario.record_decisions else None
    shadows = opinions_table(outcomes.opinions, **labels) if scenario.shadow else None
    # A rule's cut comes later: under one, promises count from the start.
    promised_from_s = 0.0 if isinstance(scenario.warmup_s, str) else scenario.warmup_s
    short = shortfalls(outcomes.columns, outcomes.end_s, from_s=promised_from_s)
    stats = labels | {
        "attempts": requests.num_rows,
        "end_s": outcomes.end_s,
        "simulated_events": outcomes.simulated_events,
        "iterations": outcomes.iterations,
        "preemptions": outcomes.preemptions,
        "lost_tokens": lost_tokens(outcomes.columns),
        "violation": {name: unserved / owed for name, (unserved, owed) in short.items()},
        "violation_by_tenant": by_tenant(short, outcomes.columns.entitlements, ALL),
        **({"recorded": found} if (found := _recorded(world)) else {}),
        **({"oracle": True} if _knows_more(scenario) else {}),
        **({} if outcomes.gpu_s is None else {"gpu_s": outcomes.gpu_s}),
        "wall_s": round(time.perf_counter() - started_s, 3),
        "cpu_s": round(time.process_time() - cpu_s, 3),
    }
    return CellResult(cell.index, requests, timeline, decisions, shadows, outcomes.end_s, stats)


def _is_broken(error: Exception) -> bool:
    """Whether an error says that an invariant did not hold."""
    from policies.invariants import InvariantError

    return isinstance(error, InvariantError)


def _knows_more(scenario: Scenario) -> bool:
    """Whether policy or router know what no gateway can, output lengths or caches: every such result says so."""
    params = scenario.policies[0].params
    estimate = getattr(params, "estimate", None)
    looks = any(getattr(one, "index", None) == "exact" for one in (params, scenario.pool.router))
    return looks or getattr(estimate, "kind", None) == "oracle"


def world_of(cell: Cell) -> World:
    """Build what one cell runs: demand, policy and router, with their seeds."""
    scenario = cell.scenario
    pool = scenario.pool
    entitlements = [entitlement.spec() for entitlement in pool.entitlements]

    def built(stream_name: str, params: Any = scenario.policies[0].params) -> AdmissionPolicy:
        return plugins.POLICY_KINDS[params.kind].build(
            params,
            entitlements=entitlements,
            kv_bytes_per_token=pool.profile.kv_bytes_per_token,
            chance=named_chance(scenario.seed, cell.replication, stream_name),
        )

    policy = built("policy/chance")
    if pool.share == "leases":
        from policies.limit_leases import why_unfit

        if why := why_unfit(policy):
            raise InputError(f"policy {scenario.policies[0].name}", f"{why}, as pool.share: leases asks", "give totals")
    router = plugins.ROUTER_KINDS[pool.router.kind]
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
        leases=pool.share == "leases",
        also=pool.profiles[pool.replicas :],
        hierarchy=pool.hierarchy(),
        shadows={
            one.name: (built(f"policy/chance/shadow/{one.name}", one.params), router.build(pool.router))
            for one in scenario.shadow
        },
        router=router.build(pool.router),
        events=[_pool_event(event) for event in scenario.events],
        horizon_s=scenario.horizon_s,
        default_max_output_tokens=pool.default_max_output_tokens,
        timeline_interval_s=scenario.timeline_interval_s,
        scrape_interval_s=pool.scrape_interval_s,
        chances=client_chances(scenario, cell.replication),
    )


def _joined(tables: Sequence[pa.Table | None]) -> pa.Table | None:
    kept = [table for table in tables if table is not None]
    return join_tables(kept) if kept else None


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


def _recorded(world: World) -> dict[str, dict[str, int]]:
    """Return what workloads left out of their recordings, raised or filled in, of those that did."""
    return {
        workload.name: {"failed": demand.failed, "raised": demand.raised}
        | ({"unanswered": demand.unanswered} if demand.unanswered else {})
        for workload, demand in zip(world.workloads, world.demands, strict=True)
        if demand.failed or demand.raised or demand.unanswered
    }


def _simulate(
    world: World, record_decisions: bool, on_progress: Progress | None, check_invariants: bool
) -> Outcomes:
    # Nothing a run makes is garbage in a cycle, so looking for cycles in millions of live objects only costs time.
    with collector.paused():
        return simulate(
            world, record_decisions=record_decisions, on_progress=_steps(on_progress), check_invariants=check_invariants
        )


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


def _run_cells(
    cells: Sequence[Cell], jobs: int, on_progress: Progress | None, check_invariants: bool
) -> Iterator[CellResult]:
    if jobs == 1 or len(cells) == 1:
        for cell in cells:
            yield run_cell(cell, on_progress, check_invariants)
        return
    from sim.experiments.executors import Executor, Lost

    for i, result in Executor(jobs=min(jobs, len(cells))).map(partial(_run_or_error, check_invariants), cells):
        if isinstance(result, Lost):
            raise RunError(f"{cells[i].policy}, replication {cells[i].replication}: {result.problem}")
        if isinstance(result, Exception):
            raise result
        if on_progress is not None:
            on_progress(result.end_s, result.requests.num_rows)
        yield result


def _run_or_error(check_invariants: bool, cell: Cell) -> CellResult | Exception:
    try:
        return run_cell(cell, check_invariants=check_invariants)
    except Exception as error:
        return error


def _cpu_s() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
