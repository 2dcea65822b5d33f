"""What holds of every run: nobody is lost, causes come first, books balance, and all the tables say one thing."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from cluster.worlds import Row, Run
from policies.api import Arrived, Evict, Forward, Hold, Refuse, ServiceClass
from policies.class_slots import ClassSlotsPolicy
from sim.records.schema import Outcome
from workloads.clients import Retry

ENDED = (Outcome.FINISHED, Outcome.REFUSED, Outcome.EVICTED, Outcome.FAILED)
OPEN = (Outcome.RUNNING, Outcome.WAITING)
ROUNDING = 1 + 1e-9

# --------------------------------------------------------------------------------------------------------------------
# Nobody is lost


def check_conservation(run: Run) -> None:
    """Every request that was made has its attempts, in order, and exactly one last one."""
    attempts = run.attempts()
    for w, demand in enumerate(run.world.demands):
        arrived = int(np.count_nonzero(demand.arrival_s < run.outcomes.end_s)) if run.world.horizon_s else len(demand)
        mine = {name: rows for name, rows in attempts.items() if rows[0].workload == w}
        assert sorted(rows[0].number for rows in mine.values()) == list(range(arrived))
        for rows in mine.values():
            check_attempts(run, rows, demand.arrival_s[rows[0].number])
    assert len(attempts) == sum(row.final for row in run.rows)
    outcomes = Counter(row.outcome for row in run.rows if row.final)
    assert outcomes.keys() <= {*ENDED, *OPEN}
    if run.world.horizon_s is None:
        assert outcomes.keys() <= set(ENDED)


def check_attempts(run: Run, rows: list[Row], arrival_s: float) -> None:
    client = run.world.workloads[rows[0].workload].client
    assert [row.attempt for row in rows] == list(range(1, len(rows) + 1))
    assert [row.final for row in rows] == [False] * (len(rows) - 1) + [True]
    assert len(rows) <= (client.max_attempts if isinstance(client, Retry) else 1)
    assert rows[0].arrival_s == arrival_s
    assert {row.first_arrival_s for row in rows} == {arrival_s}
    for last, row in pairwise(rows):
        assert isinstance(client, Retry)
        told = client.honour_retry_after and not math.isnan(last.retry_after_s)
        wait_s = last.retry_after_s if told else client.delay_s
        assert row.arrival_s == last.finish_s + wait_s
        assert last.outcome in (Outcome.REFUSED, Outcome.EVICTED, Outcome.FAILED)


# --------------------------------------------------------------------------------------------------------------------
# Causes come first, nothing is free


def check_times(run: Run) -> None:
    step, end_s = run.world.profile.step_time, run.outcomes.end_s
    for row in run.rows:
        reached = [row.first_arrival_s, row.arrival_s, row.forwarded_s, row.first_token_s, row.finish_s, end_s]
        reached = [at_s for at_s in reached if not math.isnan(at_s)]
        assert reached == sorted(reached)
        if math.isnan(row.first_token_s):
            continue
        # Its own work alone takes this long: the whole prompt at once, then the rest with nobody beside it.
        p = row.prompt_tokens
        ttft_s = row.first_token_s - row.forwarded_s
        assert ttft_s * ROUNDING >= step.iteration_s(p, p * (p + 1) / 2, 0, 0)
        if row.outcome is Outcome.FINISHED and row.output_tokens > 1:
            decode_s = row.finish_s - row.first_token_s
            assert decode_s * ROUNDING >= step.decode_run_s(1, p + 1, row.output_tokens - 1)


def held_of(run: Run) -> set[tuple[str, int]]:
    """Return the attempts that the gateway held for a while: their verdict came later."""
    held: set[tuple[str, int]] = set()
    attempt: dict[str, int] = {}
    for _, event, steps in run.outcomes.decisions:
        if isinstance(event, Arrived):
            attempt[event.request.request_id] = event.request.attempt
        held |= {(step.request_id, attempt[step.request_id]) for step in steps if isinstance(step, Hold)}
    return held


def check_outcomes(run: Run) -> None:
    """An attempt's columns say one thing."""
    world = run.world
    held = held_of(run)
    for row in run.rows:
        demand = world.demands[row.workload]
        wanted, asked = int(demand.output_tokens[row.number]), int(demand.max_output_tokens[row.number])
        wanted = min(wanted, asked or world.default_max_output_tokens)
        assert row.max_output_tokens == asked
        sent = not math.isnan(row.forwarded_s)
        assert sent == (row.replica >= 0)
        begun = not math.isnan(row.first_token_s)
        assert math.isnan(row.finish_s) == (row.outcome in OPEN)
        assert begun <= sent
        assert begun == (row.output_tokens > 0) or row.outcome is Outcome.EVICTED
        if row.outcome is Outcome.FINISHED:
            assert (row.output_tokens, row.http_status, row.reason) == (wanted, 200, "")
        elif row.outcome is Outcome.REFUSED:
            assert not sent
            assert row.finish_s == row.arrival_s or (row.request_id, row.attempt) in held
            assert row.http_status in (400, 403, 408, 429, 503, 504, 529)
            assert row.reason
        else:
            assert row.output_tokens <= wanted
            at_gateway = row.outcome in (Outcome.WAITING, Outcome.CANCELLED) and (row.request_id, row.attempt) in held
            assert sent or at_gateway
            status = {Outcome.EVICTED: (503, "preempted"), Outcome.FAILED: (502, "replica_failed")}
            assert (row.http_status, row.reason) == status.get(row.outcome, (0, ""))
        if row.outcome is Outcome.EVICTED:
            spec = next(e for e in world.entitlements if e.name == row.entitlement)
            classes = list(ServiceClass)
            allowed = classes[1:] if isinstance(world.policy, ClassSlotsPolicy) else [ServiceClass.PREEMPTIBLE]
            assert spec.service_class in allowed


# --------------------------------------------------------------------------------------------------------------------
# Books


def check_books(run: Run) -> None:
    """The core's books say what the records say."""
    (core,) = run.watch.cores
    assert core.late_events == 0
    still = {row.request_id: row for row in run.rows if row.outcome in OPEN}
    flying = {request_id for request_id, row in still.items() if row.replica >= 0}
    assert core.pool.in_flight.keys() == flying
    assert core._held.keys() == still.keys() - flying
    for name, ledger in core.pool.entitlements.items():
        assert ledger.in_flight == run.of(name, lambda row: row.outcome in OPEN and row.replica >= 0)
        assert ledger.admitted == run.of(name, lambda row: row.replica >= 0)
        assert ledger.refused == run.of(name, lambda row: row.outcome is Outcome.REFUSED)
        mine = [flight for flight in core.pool.in_flight.values() if flight.ledger is ledger]
        assert ledger.reserved_tokens == sum(flight.reserved_tokens for flight in mine)
        # Output that came back after the last look at an evicted or a running request is not known to the gateway.
        made = [(row.outcome, row.prompt_tokens + row.output_tokens) for row in run.rows
                if row.entitlement == name and row.output_tokens]  # fmt: skip
        surely = sum(tokens for outcome, tokens in made if outcome in (Outcome.FINISHED, Outcome.FAILED))
        assert surely <= ledger.worked_tokens <= sum(tokens for _, tokens in made)
    for replica in core.pool.replicas:
        there = [flight for flight in core.pool.in_flight.values() if flight.replica_id == replica.replica_id]
        assert replica.in_flight == len(there)
        assert replica.outstanding_tokens == sum(flight.reserved_tokens for flight in there)


def check_drained(run: Run) -> None:
    """After the last request nothing is left anywhere."""
    run.watch.settle()
    assert not run.watch.cores[0].pool.in_flight
    for node in run.watch.nodes:
        replica = node.replica
        assert replica.running_count == replica.waiting_count == replica.kv.used_blocks == 0
        if run.outcomes.end_s > 4.0:  # when the pool is whole again
            assert replica.max_num_seqs == run.world.profile.max_num_seqs
            assert replica.kv.total_blocks == run.world.profile.kv_blocks
    policy: Any = run.world.policy
    assert getattr(policy, "_reserved_tokens", 0) == 0
    assert not getattr(policy, "_preemptible", {})
    assert not getattr(policy, "_charges", {})


# --------------------------------------------------------------------------------------------------------------------
# Timeline and decisions


def check_timeline(run: Run, most_slots: int) -> None:
    pool = next(block for block in run.outcomes.timeline if block.scope == "pool")
    t_s, capacity = np.asarray(pool.t_s), np.asarray(pool.metrics["capacity_slots"])
    running, waiting = np.asarray(pool.metrics["running"]), np.asarray(pool.metrics["waiting"])
    assert np.array_equal(t_s, 0.5 * np.arange(len(t_s)))
    assert np.all(running <= most_slots)
    assert np.all(np.asarray(pool.metrics["kv_used_fraction"]) <= 1.0)
    # Where slots are lost, those running go on; until the next change nobody joins above the new capacity.
    settled = capacity[1:] == capacity[:-1]
    if len(run.watch.nodes) == 1 and not any(e.fail is not None for e in run.world.events):
        changes_s = {event.at_s for event in run.world.events}
        settled &= np.array([not any(a <= c <= b for c in changes_s) for a, b in pairwise(t_s)], bool)
        assert np.all(running[1:][settled] <= np.maximum(capacity[1:], running[:-1])[settled])
    # Whoever was sent and has not ended is at a replica; an evicted one until its iteration is over.
    start = np.array([row.forwarded_s for row in run.rows])
    stop = np.array([math.inf if math.isnan(row.finish_s) else row.finish_s for row in run.rows])
    evicted = np.array([row.outcome is Outcome.EVICTED for row in run.rows], bool)
    for at_s, present in zip(t_s, running + waiting, strict=True):
        least = np.count_nonzero((start < at_s) & (stop > at_s))
        most = np.count_nonzero((start <= at_s) & ((stop >= at_s) | evicted))
        assert least <= present <= most


def check_decisions(run: Run) -> None:
    """Each attempt was judged once, at the moment it came or after it was held; every verdict is in the records."""
    held = held_of(run)
    attempts = {(row.request_id, row.attempt): row for row in run.rows}
    asked: dict[str, int] = {}
    judged, ended = set(), set()
    last_s = 0.0
    for now_s, event, steps in run.outcomes.decisions:
        assert now_s >= last_s
        last_s = now_s
        if isinstance(event, Arrived):
            view = event.request
            asked[view.request_id] = view.attempt
            row = attempts[view.request_id, view.attempt]
            assert (now_s, view.prompt_tokens, view.max_output_tokens or 0, view.entitlement) == (
                row.arrival_s, row.prompt_tokens, row.max_output_tokens, row.entitlement,
            )  # fmt: skip
        for step in steps:
            if not isinstance(step, Forward | Refuse | Evict):
                continue
            key = (step.request_id, asked[step.request_id])
            row = attempts[key]
            if isinstance(step, Evict):
                assert (row.outcome, row.reason, row.finish_s) == (Outcome.EVICTED, step.reason, now_s)
                ended.add(key)
                continue
            assert key in held or isinstance(event, Arrived)
            assert key in held or key == (event.request.request_id, event.request.attempt)
            assert key not in judged
            judged.add(key)
            if isinstance(step, Forward):
                assert (row.forwarded_s, row.replica) == (now_s, step.replica_id)
            else:
                assert (row.outcome, row.reason, row.http_status) == (Outcome.REFUSED, step.reason, step.status)
                assert step.retry_after_s == (None if math.isnan(row.retry_after_s) else row.retry_after_s)
    never = {key for key in held if attempts[key].outcome in (Outcome.WAITING, Outcome.CANCELLED)}
    assert attempts.keys() - never <= judged <= attempts.keys()
    assert ended == {key for key, row in attempts.items() if row.outcome is Outcome.EVICTED}


def check_all(run: Run, most_slots: int) -> None:
    check_conservation(run)
    check_times(run)
    check_outcomes(run)
    check_books(run)
    check_timeline(run, most_slots)
    check_decisions(run)
    if run.world.horizon_s is None:
        check_drained(run)
