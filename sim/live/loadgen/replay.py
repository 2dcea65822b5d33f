"""A scenario's demand against a real server, with the records of a simulated run."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sim import collector
from sim.analysis.entitlement_violation import lost_tokens, violations
from sim.analysis.summary import Row
from sim.errors import InputError, RunError
from sim.experiments.demands import client_chances, demands
from sim.experiments.select import with_policies
from sim.experiments.warm_up import summed, warm_ups_in_manifest
from sim.live.loadgen.attempt import LiveAttempt
from sim.live.loadgen.completions_client import Completions, PromptKind
from sim.live.loadgen.event_hooks import GatewayCapacity, Hook, LiveEvent, apply
from sim.live.loadgen.metrics_scraper import Floats, Watch, clock_ahead_s, timeline
from sim.live.loadgen.open_loop import LoadGenerator
from sim.records import provenance
from sim.records.attempt_series import AttemptSeries
from sim.records.attempt_table import attempt_columns
from sim.records.result_folder import check_output_folder, write_result
from sim.records.schema import Outcome, RequestColumns, join_tables, requests_table, timeline_table
from sim.scenario import plugins
from sim.scenario.load import Scenario, expand, scenario_hash
from workloads.generate import split_over_keys

MOST_LAG_S = 0.005
"""The P99 of the send lag above which a run says nothing about the server."""

_START_IN_S = 0.5
_GRACE_S = 1.0  # how long after the horizon the last samples may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to send requests, and where to look.

    Attributes
    ----------
    prompts : what prompts are made of, and the model's name.
    keys : API key by entitlement.
    metrics : URLs of vLLM's metrics pages, one a replica; none: the gateway's reports, if there is one.
    state, token : URL of the gateway's state, and the token that it asks for.
    hooks : what makes the scenario's events happen.
    set_capacity : URL at which the gateway is told of changes of capacity.
    begin_at_s : begin when the gateway's clock shows this, so that what its entitlements and ticks do falls where it
        does in a simulation; None: at once.
    """

    base_url: str
    prompts: PromptKind
    keys: Mapping[str, str]
    metrics: Sequence[str] = ()
    state: str | None = None
    token: str | None = None
    hooks: Sequence[Hook] = ()
    set_capacity: str | None = None
    begin_at_s: float | None = None
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, eq=False)
class LiveRun:
    """What one policy's run against a server gave; ``stats`` goes to the manifest and has the send lag."""

    requests: pa.Table
    timeline: pa.Table
    end_s: float
    stats: dict[str, Any]

    @property
    def valid(self) -> bool:
        """Whether the requests were sent when they were due, and their tokens were counted."""
        return bool(self.stats["valid"])


def check_replayable(scenario: Scenario, target: Target) -> None:
    """Raise InputError where the scenario cannot be run live: several policies or variants, or events without hook."""
    if len(scenario.policies) != 1 or scenario.vary:
        names = ", ".join(policy.name for policy in scenario.policies)
        raise InputError(
            "replay", f"several runs in one scenario ({names})",
            "name with --policy the one that is in front of the server, and --set what varies",
        )  # fmt: skip
    able = {kind for hook in target.hooks for kind in hook.kinds}
    for event in live_events(scenario):
        if event.kind not in able:
            raise InputError(
                f"the event at {event.at_s:g} s", f"nothing here can do it ({event.kind})",
                "give --slots-file or --on-event, or remove it with --set 'events=[]'",
            )  # fmt: skip


def in_front(scenario: Scenario, policy: str | None) -> Scenario:
    """Return the scenario under the policy that a gateway says it acts by, so that its records say so too.

    That is one of the scenario's, or a kind that tokenpools has with its defaults; where it is neither, or nobody says,
    the scenario stays as it is.
    """
    if policy is None or policy in plugins.POLICY_KINDS.built_in or policy in [one.name for one in scenario.policies]:
        return with_policies(scenario, [] if policy is None else [policy])
    return scenario


def live_events(scenario: Scenario) -> list[LiveEvent]:
    """Return the scenario's events with the totals that the pool has after each."""
    whole = scenario.pool.replicas * scenario.pool.profile.max_num_seqs
    blocks = scenario.pool.replicas * scenario.pool.profile.kv_blocks
    found = []
    for event in scenario.events:
        if (capacity := event.capacity) is not None:
            slots, kv = capacity.slots, capacity.kv_blocks
            found.append(LiveEvent(
                at_s=event.at_s, kind="capacity",
                slots=whole if slots is None else slots, kv_blocks=blocks if kv is None else kv,
            ))  # fmt: skip
        for kind in ("fail", "restore", "slow"):
            replica = getattr(event, kind)
            if replica is not None:
                factor = 1.0 if event.factor is None else event.factor
                found.append(LiveEvent(at_s=event.at_s, kind=kind, replica=replica, factor=factor))
    return found


def replay_live(scenario: Scenario, target: Target, *, replication: int = 0) -> LiveRun:
    """Run the demand of one replication against the target, in real time.

    Raises
    ------
    InputError : see `check_replayable`; or the server asks for another key.
    RunError : an event could not be made to happen.
    """
    check_replayable(scenario, target)
    started_s, cpu_s = time.time(), time.process_time()
    workloads, parts = split_over_keys([w.spec() for w in scenario.workload], demands(scenario, replication))
    chances = client_chances(scenario, replication)
    chances += [None] * (len(workloads) - len(chances))
    interval_s = scenario.timeline_interval_s
    watch = Watch(target.metrics, target.state, interval_s=interval_s or 1.0, token=target.token)

    hooks = list(target.hooks)
    if target.set_capacity is not None:
        hooks.append(GatewayCapacity(target.set_capacity, target.token))

    async def go() -> tuple[list[LiveAttempt], float]:
        loop = asyncio.get_running_loop()
        origin_s = await _origin_s(target)
        async with Completions(target.base_url, origin_s=origin_s, timeout_s=target.timeout_s) as completions:
            load = LoadGenerator(
                workloads, parts, send=completions.ask, prompts=target.prompts, chances=chances, keys=target.keys,
                horizon_s=scenario.horizon_s,
            )  # fmt: skip
            watching = loop.create_task(watch.run(origin_s, scenario.horizon_s or math.inf))
            changing = loop.create_task(apply(live_events(scenario), hooks, origin_s))
            running = loop.create_task(load.run(origin_s))
            try:
                done, _ = await asyncio.wait({changing, running}, return_when=asyncio.FIRST_COMPLETED)
                if changing in done:
                    changing.result()  # an event that failed ends the run
                end_s = await running
                await asyncio.wait({watching}, timeout=_GRACE_S)
            finally:
                for task in (running, watching, changing):
                    task.cancel()
                await asyncio.gather(running, watching, changing, return_exceptions=True)
        return load.attempts, end_s

    with collector.paused():  # a collection of everything that is loaded takes longer than a request may be late
        attempts, end_s = asyncio.run(go())
    entitlements = [entitlement.spec() for entitlement in scenario.pool.entitlements]
    per_event = count_by_usage(attempts)
    columns = attempt_columns(attempts, [w.entitlement for w in workloads], entitlements)
    labels: dict[str, Any] = {
        "run_id": f"{scenario_hash(scenario)}-{replication}-live",
        "policy": scenario.policies[0].name,
        "variant": {},
        "replication": replication,
    }
    lag = send_lag(attempts)
    stats = labels | {
        "attempts": len(attempts),
        "end_s": end_s,
        "send_lag": lag,
        "valid": lag["p99_s"] <= MOST_LAG_S and not uncounted(attempts),
        "wrong_lengths": wrong_lengths(attempts),
        "uncounted": uncounted(attempts),
        "tokens_per_event": round(per_event, 4),
        "missed_samples": watch.missed,
        "base_url": target.base_url,
        "lost_tokens": lost_tokens(columns),
        "violation": violations(columns, end_s),
        "wall_s": round(time.time() - started_s, 3),
        "cpu_s": round(time.process_time() - cpu_s, 3),
    }
    return LiveRun(
        requests_table(columns, **labels),
        timeline_table(_timeline(scenario, target, watch, columns, end_s), **labels),
        end_s,
        stats,
    )


async def _origin_s(target: Target) -> float:
    """Return the loop's time at which the run begins.

    Raises
    ------
    RunError : that time has passed.
    """
    loop = asyncio.get_running_loop()
    if target.begin_at_s is None or target.state is None:
        return loop.time() + _START_IN_S
    clock_s = await clock_ahead_s(target.state, target.token)
    origin_s = target.begin_at_s - clock_s
    if origin_s < loop.time() + _START_IN_S:
        raise RunError(f"the gateway's clock is past {target.begin_at_s:g} s; start it anew, or begin later")
    return origin_s


def write_live(scenario: Scenario, runs: Sequence[LiveRun], out: Path) -> list[Row]:
    """Write the runs of one scenario, one a policy, as a result, and return its summary.

    ``scenario`` has the policies of all the runs. The manifest says ``"kind": "live"`` and whether each run is valid.
    """
    check_output_folder(out)
    requests = join_tables([run.requests for run in runs])
    timeline_ = join_tables([run.timeline for run in runs])
    cell_of = {cell.policy: cell for cell in expand(scenario)}
    cells = [cell_of[run.stats["policy"]] for run in runs]
    summary, cuts = summed(cells, [run.requests for run in runs], [run.stats for run in runs])
    manifest: dict[str, Any] = {
        "kind": "live",
        **provenance.origin(scenario),
        "host": provenance.host(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - runs[0].stats["wall_s"])),
        "wall_s": round(sum(run.stats["wall_s"] for run in runs), 3),
        "cpu_s": round(sum(run.stats["cpu_s"] for run in runs), 3),
        "valid": all(run.valid for run in runs),
        **warm_ups_in_manifest(cuts),
        "cells": [run.stats for run in runs],
    }
    write_result(out, requests, timeline_, summary, manifest)
    return summary


def send_lag(attempts: Sequence[LiveAttempt]) -> dict[str, float]:
    """Return the P50, P99 and greatest send lag of what was sent, in seconds, and how long connecting took at P99."""
    lags = np.asarray([a.lag_s for a in attempts if not math.isnan(a.lag_s)])
    connects = np.asarray([a.connect_s for a in attempts if not math.isnan(a.lag_s)])
    if not len(lags):
        return {"sent": 0, "p50_s": math.nan, "p99_s": math.nan, "max_s": math.nan, "connect_p99_s": math.nan}
    p50, p99 = np.quantile(lags, (0.5, 0.99))
    return {
        "sent": len(lags),
        "p50_s": round(float(p50), 6),
        "p99_s": round(float(p99), 6),
        "max_s": round(float(lags.max()), 6),
        "connect_p99_s": round(float(np.quantile(connects, 0.99)), 6),
    }


def wrong_lengths(attempts: Sequence[LiveAttempt]) -> int:
    """Return how many finished with other output than was drawn: the server did not do what ``min_tokens`` asks."""
    return sum(a.outcome is Outcome.FINISHED and a.delivered_tokens != a.output_tokens for a in attempts)


def uncounted(attempts: Sequence[LiveAttempt]) -> int:
    """Return how many finished with nobody saying how long: no usage, and other events than tokens were drawn."""
    return sum(
        a.outcome is Outcome.FINISHED and a.usage_tokens < 0 and a.events != a.output_tokens for a in attempts
    )


def count_by_usage(attempts: Sequence[LiveAttempt]) -> float:
    """Return the tokens of an event, by the usage of what finished, and count what broke off by that.

    The usage comes with the end. A server that sends several tokens an event (speculative decoding, vLLM's
    ``--stream-interval``) would otherwise seem to have computed that much less for whoever was cut off.
    """
    counted = [a for a in attempts if a.outcome is Outcome.FINISHED and a.usage_tokens >= 0 and a.events]
    events = sum(a.events for a in counted)
    per_event = max(1.0, sum(a.usage_tokens for a in counted) / events) if events else 1.0
    for attempt in attempts:
        if attempt.usage_tokens < 0 and attempt.outcome is not Outcome.FINISHED and attempt.events:
            about = min(attempt.output_tokens, round(attempt.events * per_event))
            attempt.delivered_tokens = max(attempt.events, about)
    return per_event


def _timeline(
    scenario: Scenario, target: Target, watch: Watch, columns: RequestColumns, end_s: float
) -> list[Any]:
    t_s = np.asarray(watch.samples.times_s)
    counted = AttemptSeries(columns, t_s, scenario.timeline_interval_s or 1.0, end_s)
    series: dict[str | None, Mapping[str, Floats]] = {None: counted.of(None)}
    series |= {e.name: counted.of(i) for i, e in enumerate(columns.entitlements)}
    slots = np.full(len(t_s), float(scenario.pool.replicas * scenario.pool.profile.max_num_seqs))
    for event in live_events(scenario):
        if event.kind == "capacity":
            slots[t_s >= event.at_s] = event.slots
    return timeline(watch.samples, engines=len(target.metrics), capacity_slots=slots, series=series)
