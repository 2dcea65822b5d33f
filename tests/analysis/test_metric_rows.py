"""Each metric of docs/metrics.md that is taken from records, on a table made by hand."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
import pytest
from analysis.toy import NAN, columns

from policies.api import EntitlementSpec, Resources, ServiceClass
from sim.analysis import refusals
from sim.analysis.metric_rows import Run, average, changes, convergence_rows, measure
from sim.analysis.service import attempts_of, backlogged_gap, service_of, weights_of
from sim.records.schema import REASONS, Outcome, RequestColumns, TimelineBlock, requests_table, timeline_table

CONCURRENCY = REASONS.index("concurrency")


def spec(name: str, tokens_per_s: float | None = None, slo_s: float | None = 1.0) -> EntitlementSpec:
    return EntitlementSpec(
        name=name, tenant=name, service_class=ServiceClass.ELASTIC, ttft_slo_s=slo_s, baseline=Resources(tokens_per_s)
    )


def served(
    tenant: int, at_s: float, first_s: float, end_s: float, prompt: int, output: int, **more: Any
) -> dict[str, Any]:
    return {
        "entitlement": tenant, "arrival_s": at_s, "forwarded_s": at_s, "replica": 0, "first_token_s": first_s,
        "finish_s": end_s, "prompt_tokens": prompt, "output_tokens": output, "max_output_tokens": output,
        "outcome": Outcome.FINISHED, **more,
    }  # fmt: skip


def refused(tenant: int, at_s: float, prompt: int, asked: int, **more: Any) -> dict[str, Any]:
    return {
        "entitlement": tenant, "arrival_s": at_s, "finish_s": at_s, "prompt_tokens": prompt,
        "max_output_tokens": asked, "outcome": Outcome.REFUSED, "reason": CONCURRENCY, "http_status": 429, **more,
    }  # fmt: skip


def scenario(*specs: EntitlementSpec, **more: Any) -> dict[str, Any]:
    entitlements = [
        {"name": one.name, "tenant": one.tenant, "baseline": {"tokens_per_s": one.baseline.tokens_per_s}}
        for one in specs
    ]
    return {
        "warmup_s": 0.0,
        "pool": {"entitlements": entitlements, "gpus_per_replica": 2, "replicas": 1,
                 "profile": {"kv_blocks": 10, "block_tokens": 16}},
        "workload": [{"name": one.name, "entitlement": one.name} for one in specs],
        **more,
    }  # fmt: skip


def run_of(rows: list[dict[str, Any]], *specs: EntitlementSpec, end_s: float = 40.0, pool: dict[str, Any] | None = None,
           alone: dict[str, Any] | None = None, stats: dict[str, Any] | None = None, **more: Any) -> Run:  # fmt: skip
    labels: dict[str, Any] = {"run_id": "r", "policy": "p", "variant": {}, "replication": 0}
    blocks = [] if pool is None else [TimelineBlock("pool", "pool", pool.pop("t_s"), pool)]
    return Run(
        labels={"policy": "p"}, replication=0, requests=requests_table(columns(specs, rows), **labels),
        timeline=timeline_table(blocks, **labels), scenario=scenario(*specs, **more), stats=stats or {}, end_s=end_s,
        alone=alone,
    )  # fmt: skip


def test_service_and_fair_shares_by_hand() -> None:
    # a: 100 + 2 * 50 = 200 at 1..11 s; b: 100 prompt, 200 output at 2..22 s = 500, and 700 refused.
    rows = [served(0, 0, 1, 11, 100, 50), served(1, 1, 2, 22, 100, 200), refused(1, 12, 300, 200)]
    run = run_of(rows, spec("a", 100.0), spec("b", 300.0), end_s=40.0)
    found = attempts_of(run.requests)
    service = service_of(found, from_s=0.0, end_s=40.0, window_s=10.0)
    assert service.served.tolist() == pytest.approx(
        np.asarray([[190.0, 10, 0, 0], [100 + 16 * 10, 200.0, 40, 0]])  # b: 10 output tokens a second count 20
    )
    assert service.asked.tolist() == [[200, 0, 0, 0], [500, 300 + 2 * 200, 0, 0]]
    rows_ = measure(run, window_s=10.0)
    a, b, everyone = rows_
    assert (a["service"], b["service"], everyone["service"]) == pytest.approx((200, 500, 700))
    # 700 divided one to three would be 175 to 525; nobody is full.
    assert (a["fair_share"], b["fair_share"]) == pytest.approx((175, 525))
    x = np.asarray([200 / 175, 500 / 525])
    assert everyone["jain"] == pytest.approx(x.sum() ** 2 / (2 * (x**2).sum()))
    assert everyone["max_min_gap"] == pytest.approx(x[0] - x[1])
    assert everyone["min_max_ratio"] == pytest.approx(x[1] / x[0])
    assert everyone["gini"] == pytest.approx((x[0] - x[1]) / (2 * x.sum()))
    # Windows: 1: a 190 of 200, b 260 of 500: min(260-190, 10) + min(0, 240) = 10. 2: a 10 of 0: min(190, 10) = 10;
    # b 200 of 700: 0. 3: a 0 of 0, b 40 of 0: 0. 4: nothing.
    assert everyone["service_difference_max"] == pytest.approx(10)
    assert everyone["service_difference_avg"] == pytest.approx(5)
    assert everyone["service_difference_var"] == pytest.approx(25)
    assert everyone["backlogged_gap_bound"] == 2 * max(300, 2 * 160)


def test_attainment_counts_what_was_offered() -> None:
    rows = [
        served(0, 0, 0.5, 2, 10, 4), served(0, 1, 3.0, 4, 10, 6), refused(0, 2, 10, 4),
        refused(0, 3, 10, 4, request_id="x", final=False, retry_after_s=2.0),
        served(0, 5, 5.1, 7, 10, 20, request_id="x", attempt=2, first_arrival_s=3.0),
    ]  # fmt: skip
    one = measure(run_of(rows, spec("a")))[0]
    assert one["offered"] == 4
    assert one["slo_attainment"] == 0.25  # the retried one began 2.1 s after it first came
    assert one["good_tokens_per_s"] == 4 / 40
    assert one["completion_share"] == 0.75
    ntpot = sorted([2 / 4, 3 / 6, 4 / 20])
    assert one["ntpot_p50_s"] == pytest.approx(ntpot[1])


def test_refusals_and_waste_by_hand() -> None:
    rows = [
        served(0, 0, 1, 5, 10, 7, outcome=Outcome.EVICTED),  # late: 17 tokens for nothing
        served(0, 0, NAN, 5, 10, 0, outcome=Outcome.EVICTED),  # before its first token: nothing was computed
        served(0, 0, 1, 5, 10, 3, outcome=Outcome.CANCELLED),  # 13, but the client wanted it so
        refused(0, 1, 10, 5, request_id="x", final=False, retry_after_s=4.0),
        refused(0, 6, 10, 5, request_id="x", attempt=2, first_arrival_s=1.0, final=False, retry_after_s=1.0),
        served(0, 8, 9, 12, 10, 5, request_id="x", attempt=3, first_arrival_s=1.0),
        refused(0, 2, 10, 5, request_id="y", final=False, retry_after_s=5.0),
        refused(0, 3, 10, 5, request_id="y", attempt=2, first_arrival_s=2.0),  # came too early
    ]  # fmt: skip
    found = attempts_of(run_of(rows, spec("a")).requests)
    every = np.ones(len(rows), dtype=np.bool_)
    assert refusals.late_rejects(found, every) == 1
    assert refusals.wasted_tokens(found, every) == 17 + 13
    assert refusals.lost_tokens(found, every) == 7
    assert refusals.retry_amplification(found, every) == 8 / 5
    kept, error_s, n = refusals.retry_after(found, every)
    assert (kept, n) == (0.5, 2)  # x came when told, twice, and was let in once
    assert error_s == pytest.approx(8 - 1 - 4.0)  # told 4 s, let in 7 s later
    assert refusals.completion_share(found, every) == 0.5
    nobody = refusals.retry_after(found, ~every)
    assert math.isnan(nobody[0])
    assert math.isnan(nobody[1])


def test_isolation_pairs_requests_that_finished_in_both() -> None:
    shared = [served(0, 0, 2, 6, 1, 2, request_id="a-0"), served(0, 1, 5, 9, 1, 2, request_id="a-1"),
              refused(0, 2, 1, 2, request_id="a-2")]  # fmt: skip
    alone = [served(0, 0, 1, 3, 1, 2, request_id="a-0"), served(0, 1, 2, 5, 1, 2, request_id="a-1"),
             served(0, 2, 3, 4, 1, 2, request_id="a-2")]  # fmt: skip
    beside = run_of(alone, spec("a")).requests
    one = measure(run_of(shared, spec("a"), alone={"a": beside}))[0]
    assert one["isolation_n"] == 2
    assert one["isolation_ttft_mean"] == pytest.approx((2 + 4) / (1 + 1))
    assert one["isolation_e2e_mean"] == pytest.approx((6 + 8) / (3 + 4))


def test_work_conservation_and_cost_by_hand() -> None:
    t = [0.0, 10.0, 20.0, 30.0]
    pool = {
        "t_s": t, "running": [4.0, 2, 4, 1], "waiting": [0.0, 0, 3, 0], "capacity_slots": [4.0, 4, 4, 4],
        "refused_per_s": [0.0, 1, 1, 0], "ready_replicas": [1.0, 1, 1, 1],
    }  # fmt: skip
    rows = [served(0, 0, 0.5, 40, 10, 500), {"entitlement": 0, "arrival_s": 29.0}]  # the second is held to the end
    everyone = measure(run_of(rows, spec("a"), pool=pool))[-1]
    assert everyone["utilisation"] == 11 / 16
    assert everyone["work_conservation"] == pytest.approx(1 / 3)  # at 10, 20 and 30 s somebody was kept out
    assert everyone["gpu_s"] == 80
    assert everyone["gpu_s_per_good_1000_tokens"] == 160
    scaled = measure(run_of(rows, spec("a"), stats={"gpu_s": 10.0, "violation_by_tenant": {"a": 0.5}}))
    assert scaled[-1]["gpu_s"] == 10
    assert scaled[0]["violation"] == 0.5


def test_what_scaled_replicas_held_in_the_warm_up_is_not_in_their_gpu_seconds() -> None:
    held = {"t_s": [0, 10, 20, 30, 40], "gpu_s": [0, 20, 40, 50, 60], "running": [1] * 5, "capacity_slots": [4] * 5,
            "waiting": [0] * 5, "refused_per_s": [0] * 5}  # fmt: skip
    run = run_of([served(0, 20, 21, 25, 10, 10)], spec("a"), pool=held, stats={"gpu_s": 60.0})
    assert measure(run)[-1]["gpu_s"] == 60
    warm = dataclasses.replace(run, warmup_s=15.0)
    assert measure(warm)[-1]["gpu_s"] == 60 - 30  # 20 at 10 s and 40 at 20 s: 30 at 15 s
    assert measure(warm)[-1]["gpu_s_per_good_1000_tokens"] == 3000


def test_who_never_got_a_token_waits_at_the_last_edge_too() -> None:
    # From 0 to the end at 40 s two of a and one of b wait; a is served 100 prompt tokens, of another request, at 35 s.
    stuck = [{"entitlement": i, "arrival_s": -1.0, "outcome": Outcome.WAITING} for i in (0, 1)]
    found = attempts_of(run_of([*stuck, served(0, 34, 35, 39, 100, 1)], spec("a"), spec("b")).requests, from_s=-2.0)
    assert backlogged_gap(service_of(found, from_s=0.0, end_s=40.0, window_s=10.0)) == pytest.approx(100 + 2)


def test_an_interval_ends_where_its_measure_does() -> None:
    rows: list[Any] = [
        {"policy": "p", "replication": i, "tenant": "a", "jain": jain, "good_tokens_per_s": good,
         "retry_after_error_s": error_s}
        for i, (jain, good, error_s) in enumerate(((0.9, 0.0, -1.0), (1.0, 3.0, 1.0)))
    ]  # fmt: skip
    (one,) = average(rows)
    assert (one["jain_ci_high"], one["good_tokens_per_s_ci_low"]) == (1.0, 0.0)
    assert float(one["jain_ci_low"]) == pytest.approx(max(0.0, 0.95 - 12.706 * 0.05), abs=1e-3)
    assert float(one["retry_after_error_s_ci_low"]) == pytest.approx(-12.706, abs=1e-3)  # t(1) by the deviation 1
    assert float(one["good_tokens_per_s_ci_high"]) == pytest.approx(1.5 + 12.706 * 1.5, abs=1e-2)


def test_backlogged_gap_counts_only_while_both_wait() -> None:
    # Both wait from 0 to 20 s, a is served 100 prompt tokens at 5 s and at 25 s: only the first counts.
    rows = [served(0, 0, first_s, first_s, 100, 0) for first_s in (5.0, 25.0, 35.0)] + [served(1, 0, 21, 21, 1, 0)]
    found = attempts_of(run_of(rows, spec("a"), spec("b")).requests)
    assert backlogged_gap(service_of(found, from_s=0.0, end_s=40.0, window_s=10.0)) == pytest.approx(100)


def test_weights_are_what_everybody_is_promised() -> None:
    promised = [
        {"tenant": "a", "baseline": {"tokens_per_s": 10.0, "slots": 4}}, {"tenant": "b", "baseline": {"slots": 2}}
    ]  # fmt: skip
    assert weights_of(["a", "b"], promised).tolist() == [4, 2]
    assert weights_of(["a", "b"], [*promised, {"tenant": "b", "baseline": {"tokens_per_s": 5.0}}]).tolist() == [10, 5]
    assert weights_of(["a", "b"], promised[:1]).tolist() == [1, 1]


def test_changes_and_convergence() -> None:
    # b begins at 20 s; from then on each should have half, and a has all until 30 s.
    rows = [served(0, t, t + 0.5, t + 0.5, 20 if t < 30 else 10, 0) for t in range(60)]
    rows += [served(1, t, t + 0.5, t + 0.5, 10, 0) if t >= 30 else refused(1, t, 10, 1) for t in range(20, 60)]
    run = run_of(
        rows, spec("a"), spec("b"), end_s=60.0, events=[{"at_s": 50.0, "fail": 0}],
        workload=[{"name": "a"}, {"name": "b", "from_s": 20.0}],
    )  # fmt: skip
    assert [(one.at_s, one.what) for one in changes(run.scenario, 60.0)] == [(20.0, "b begins"), (50.0, "fail 0")]
    found = {(row["tenant"], row["changed_s"]): row for row in convergence_rows(run, hold_s=10.0)}
    assert found["b", 20.0]["reached_s"] == 10.0
    assert found["a", 20.0]["settled_s"] == 10.0


def test_averages_have_intervals_and_counts_have_none() -> None:
    rows = [
        {"policy": "p", "replication": i, "tenant": "a", "offered": 10, "jain": jain}
        for i, jain in enumerate((0.8, 0.9))
    ]
    (one,) = average(rows)
    assert one["jain"] == pytest.approx(0.85)
    assert one["replications"] == 2
    assert float(one["jain_ci_low"]) < 0.85 < float(one["jain_ci_high"])
    assert "offered_ci_low" not in one


def test_a_million_attempts_in_seconds() -> None:
    n = 1_000_000
    rng = np.random.default_rng(0)
    arrival = np.sort(rng.uniform(0, 3600, n))
    empty = np.full(n, np.nan)
    first = arrival + rng.exponential(0.2, n)
    whole = RequestColumns(
        request_id=[f"r{i}" for i in range(n)], attempt=np.ones(n), final=np.ones(n, bool),
        entitlement=rng.integers(0, 20, n), entitlements=[spec(f"t{i}") for i in range(20)],
        prompt_tokens=rng.integers(1, 500, n), max_output_tokens=np.full(n, 300),
        output_tokens=rng.integers(1, 300, n),
        cached_tokens=np.zeros(n), arrival_s=arrival, first_arrival_s=arrival, forwarded_s=arrival, replica=np.zeros(n),
        first_token_s=first, finish_s=first + 2, outcome=np.zeros(n), reason=np.full(n, -1), http_status=np.ones(n),
        retry_after_s=empty, preemptions=np.zeros(n),
    )  # fmt: skip
    labels: dict[str, Any] = {"run_id": "r", "policy": "p", "variant": {}, "replication": 0}
    specs = [spec(f"t{i}") for i in range(20)]
    run = Run(
        labels={"policy": "p"}, replication=0, requests=requests_table(whole, **labels),
        timeline=timeline_table([], **labels), scenario=scenario(*specs), stats={}, end_s=3600.0,
    )  # fmt: skip
    started_s = time.process_time()
    rows = measure(run)
    assert time.process_time() - started_s < 10
    assert sum(int(row["offered"]) for row in rows[:-1]) == n
