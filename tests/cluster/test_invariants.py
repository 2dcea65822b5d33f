"""What holds in every run, whatever the scenario, and what no run depends on."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.examples import EXAMPLES, renamed

from cluster.busy_day import busy
from cluster.checks import check_all
from cluster.worlds import POLICIES, Mapped, Row, cell_of, play, scenarios, tenants, total_slots
from policies.api import Arrived, CapacityChanged, Failed, Finished, Progress
from sim.experiments.demands import demands
from sim.experiments.run import run_cell
from sim.records.schema import Outcome, RequestColumns
from sim.scenario.load import expand, parse_scenario

many = settings(max_examples=150, deadline=None)
some = settings(max_examples=50, deadline=None)

@many
@given(scenarios())
def test_every_run_adds_up(scenario: Mapped) -> None:
    check_all(play(scenario), total_slots(scenario))


@many
@given(scenarios(("robust", "paper"), drained=True))
def test_every_run_of_token_pools_adds_up_to_the_last_request(scenario: Mapped) -> None:
    check_all(play(scenario), total_slots(scenario))


EVERY_REASON = {
    "none": {"no_capacity", "not_bound", "context_length"},
    "bucket": {"no_capacity", "not_bound", "context_length", "requests", "tokens"},
    "window": {"no_capacity", "not_bound", "context_length", "requests"},
    "paper": {"no_capacity", "not_bound", "context_length", "concurrency", "tokens", "too_large", "low_priority"},
    "robust": {"no_capacity", "not_bound", "concurrency", "tokens", "kv_cache", "pool_full"},
    "frozen": {"no_capacity", "not_bound", "concurrency", "kv_cache", "pool_full"},
}


@pytest.mark.parametrize("horizon_s", [40.0, None], ids=["to the horizon", "to the last request"])
@pytest.mark.parametrize("policy", EVERY_REASON)
def test_a_busy_day_adds_up(policy: str, horizon_s: float | None) -> None:
    scenario = busy(policy, horizon_s)
    run = play(scenario)
    check_all(run, total_slots(scenario))
    # That the checks above had something to check.
    seen = {row.outcome for row in run.rows}
    assert seen >= {Outcome.FINISHED, Outcome.REFUSED, Outcome.FAILED}
    assert Outcome.EVICTED in seen or policy not in ("robust", "frozen")
    assert {row.reason for row in run.rows if row.outcome is Outcome.REFUSED} >= EVERY_REASON[policy]
    assert max(row.attempt for row in run.rows) == 3
    # Whoever reserves KV cache at admission leaves the engine nothing to preempt.
    assert any(row.preemptions for row in run.rows) or policy in ("robust", "frozen")
    kinds = {type(event) for _, event, _ in run.outcomes.decisions}
    assert kinds >= {Arrived, Finished, Failed, CapacityChanged}
    assert (Progress in kinds) == (policy in ("paper", "robust"))  # those who meter work


@pytest.mark.parametrize("horizon_s", [40.0, None], ids=["to the horizon", "to the last request"])
@pytest.mark.parametrize("name", [name for name in EXAMPLES if not name.startswith(("none", "rate-limit", "token"))])
def test_a_busy_day_adds_up_under_every_other_policy(name: str, horizon_s: float | None) -> None:
    params = renamed(EXAMPLES[name], {"spot": "t4", "elastic": "t2"})
    scenario = busy("none", horizon_s) | {"policies": [{"name": name, **asdict(params)}]}
    run = play(scenario)
    check_all(run, total_slots(scenario))
    assert {row.outcome for row in run.rows} >= {Outcome.FINISHED, Outcome.REFUSED}


ITERATION_S = 0.125


@many
@given(scenarios())
def test_tokens_come_one_by_one_with_the_iterations(scenario: Mapped) -> None:
    # All iterations alike, and KV cache for everyone: after its first token a request gets one every ITERATION_S.
    scenario["pool"]["profile"].update({"step_time": {"kind": "linear", "base_s": ITERATION_S}, "kv_blocks": 10_000})
    scenario["events"] = [event for event in scenario["events"] if "kv_blocks" not in event.get("capacity", ())]
    run = play(scenario)

    def made(row: Row, at_s: float) -> int:
        begun = row.first_token_s <= at_s
        return 1 + int((at_s - row.first_token_s) / ITERATION_S) if begun else 0

    rows = {(row.request_id, row.attempt): row for row in run.rows}
    end_s = run.outcomes.end_s
    seen = [(row, end_s if math.isnan(row.finish_s) else row.finish_s, row.output_tokens) for row in run.rows]
    current: dict[str, Row] = {}
    for now_s, event, _ in run.outcomes.decisions:
        if isinstance(event, Arrived):
            current[event.request.request_id] = rows[event.request.request_id, event.request.attempt]
        elif isinstance(event, Progress | Failed | Finished):
            seen.append((current[event.request_id], now_s, event.output_tokens))
    for row, at_s, output_tokens in seen:
        assert made(row, at_s - 1e-9) <= output_tokens <= made(row, at_s + 1e-9)


# --------------------------------------------------------------------------------------------------------------------
# What a run must not depend on


def as_bytes(scenario: Mapped) -> bytes:
    """Return the tables of a run, as they would be written."""
    cell = run_cell(cell_of(scenario))
    sink = pa.BufferOutputStream()
    for table in (cell.requests, cell.timeline, cell.decisions):
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    return sink.getvalue().to_pybytes()


@some
@given(scenarios())
def test_same_seed_same_bytes(scenario: Mapped) -> None:
    assert as_bytes(scenario) == as_bytes(scenario)


def test_another_process_writes_the_same_bytes() -> None:
    # Another hash seed too, so that nothing hangs on the order of a set.
    script = "from cluster.test_invariants import digest; print(digest())"
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == digest()


def digest() -> str:
    return hashlib.sha256(b"".join(as_bytes(busy(policy)) for policy in EVERY_REASON)).hexdigest()


def doubled(scenario: Mapped) -> Mapped:
    """Return a scenario in which everything takes twice as long."""
    slow = copy.deepcopy(scenario)

    def twice(mapping: Mapped, *names: str, by: float = 2.0) -> None:
        for name in names:
            if mapping.get(name) is not None:
                mapping[name] *= by

    twice(slow, "horizon_s", "timeline_interval_s")
    pool = slow["pool"]
    twice(pool["profile"], "tokens_per_s", by=0.5)
    step = pool["profile"]["step_time"]
    twice(step, *(name for name in step if name != "kind"))
    for entitlement in pool["entitlements"]:
        twice(entitlement, "ttft_slo_s", "from_s", "until_s")
        for amounts in ("baseline", "limit"):
            twice(entitlement.get(amounts, {}), "tokens_per_s", by=0.5)
    for workload in slow["workload"]:
        twice(workload["arrivals"], "phase_s")
        twice(workload["arrivals"], "rate_per_s", by=0.5)
        twice(workload["client"], "delay_s")
    for event in slow["events"]:
        twice(event, "at_s")
    (policy,) = slow["policies"]
    twice(policy, "tick_s", "bucket_s", "burst_s", "mean_slo_s")
    twice(policy, "requests_per_min", "tokens_per_min", by=0.5)
    return slow


# The sliding window is 60 s by definition, so it is left out.
@some
@given(scenarios(("none", "bucket", "paper", "robust")))
def test_doubling_every_time_doubles_every_time(scenario: Mapped) -> None:
    for workload in scenario["workload"]:  # Retry-After is in whole seconds, whatever the rest is in
        if workload["client"]["kind"] == "retry":
            workload["client"]["honour_retry_after"] = False
    (policy,) = scenario["policies"]
    if policy["kind"] == "token-pool":  # what has a default must be given, to be doubled
        policy.update({"bucket_s": policy.get("bucket_s", 10), "mean_slo_s": 15.25})
    once, twice = play(scenario), play(doubled(scenario))
    assert twice.outcomes.end_s == 2 * once.outcomes.end_s
    for name in RequestColumns.__dataclass_fields__:
        if name in ("entitlements", "retry_after_s"):
            continue
        mine, theirs = (np.asarray(getattr(run.outcomes.columns, name)) for run in (once, twice))
        np.testing.assert_array_equal(theirs, 2 * mine if name.endswith("_s") else mine, err_msg=name)
    for mine, theirs in zip(once.outcomes.timeline, twice.outcomes.timeline, strict=True):
        np.testing.assert_array_equal(theirs.t_s, 2 * np.asarray(mine.t_s))
        for metric, values in mine.metrics.items():
            scale = 0.5 if metric.endswith("_per_s") else 1.0
            np.testing.assert_array_equal(theirs.metrics[metric], scale * np.asarray(values), err_msg=metric)


@some
@given(scenario=scenarios(), tenant=tenants(9, 0.0), at=st.integers(0, 4))
def test_a_new_tenant_moves_nobody_elses_requests(scenario: Mapped, tenant: Any, at: int) -> None:
    def requests(of: Mapped) -> dict[str, list[list[float]]]:
        parsed = parse_scenario(of, "random.yaml")
        columns = ("arrival_s", "prompt_tokens", "output_tokens", "max_output_tokens")
        return {
            workload.name: [getattr(demand, name).tolist() for name in columns]
            for workload, demand in zip(parsed.workload, demands(parsed, 0), strict=True)
        }

    crowded = copy.deepcopy(scenario)
    crowded["pool"]["entitlements"].insert(at, tenant[0])
    crowded["workload"].insert(at, tenant[1])
    after = requests(crowded)
    assert len(after.pop("t9")[0]) <= tenant[1]["requests"]
    assert after == requests(scenario)


@some
@given(scenario=scenarios())
def test_policies_meet_identical_traffic(scenario: Mapped) -> None:
    scenario["policies"] = [{"name": name, **params} for name, params in POLICIES.items()]
    met = []
    for cell in expand(parse_scenario(scenario, "random.yaml")):
        table = run_cell(cell).requests
        names = ("attempt", "request_id", "entitlement", "arrival_s", "prompt_tokens", "max_output_tokens")
        rows = zip(*(table[name].to_pylist() for name in names), strict=True)
        met.append([row for row in rows if row[0] == 1])
    assert len(met) == len(POLICIES)
    assert all(other == met[0] for other in met)


@pytest.mark.parametrize("policy", ["none", "paper", "robust", "frozen"])
def test_a_failure_takes_nobody_from_the_replica_that_is_left(policy: str) -> None:
    scenario = small(90, [{"at_s": 3.0, "fail": 0}])
    scenario["policies"] = [{"name": policy, **POLICIES[policy]}]
    scenario["pool"]["profile"].update({"max_num_seqs": 3, "kv_blocks": 10_000})
    scenario["pool"]["entitlements"][0].update({"service_class": "preemptible", "baseline": {}})
    scenario["workload"][0].update({"prompt_tokens": {"kind": "constant", "value": 10}, "requests": 6})
    rows = play(scenario).rows
    assert {row.outcome for row in rows if row.replica == 1} == {Outcome.FINISHED}
    assert any(row.outcome is Outcome.FAILED for row in rows)


# --------------------------------------------------------------------------------------------------------------------
# Every run ends


def small(output_tokens: int, events: list[Mapped]) -> Mapped:
    scenario = busy("none", None)
    del scenario["pool"]["profile"]["max_model_tokens"]  # 40 blocks of 4 tokens are all there is
    constant = {"kind": "constant", "value": output_tokens}
    scenario["workload"] = [{
        "entitlement": "t0", "arrivals": {"kind": "even", "rate_per_s": 2.0}, "requests": 9,
        "prompt_tokens": {"kind": "constant", "value": 100}, "output_tokens": constant,
    }]  # fmt: skip
    scenario["events"] = events
    return scenario


@pytest.mark.parametrize(("output_tokens", "outcome"), [(60, Outcome.FINISHED), (61, Outcome.REFUSED)])
def test_what_could_never_fit_into_the_kv_cache_is_refused(output_tokens: int, outcome: Outcome) -> None:
    run = play(small(output_tokens, []))
    check_all(run, 10)
    assert {row.outcome for row in run.rows} == {outcome}


def test_a_run_ends_although_the_slots_it_waits_for_never_come_back() -> None:
    run = play(small(10, [{"at_s": 2.2, "capacity": {"slots": 0}}]))
    assert [row.final for row in run.rows] == [True] * 9
    assert {row.outcome for row in run.rows} == {Outcome.FINISHED, Outcome.WAITING}


def test_a_client_that_would_come_again_after_the_end_is_counted() -> None:
    scenario = small(10, [{"at_s": 0.0, "fail": 0}, {"at_s": 0.0, "fail": 1}])  # so Retry-After is 5 s
    scenario["horizon_s"] = 6.0
    scenario["workload"][0]["client"] = {"kind": "retry", "max_attempts": 3}
    run = play(scenario)
    check_all(run, 10)
    assert sum(row.final for row in run.rows) == 9
