"""Windows that grow with answers and shrink with refusals, worked out by hand and in the simulator."""

from __future__ import annotations

import functools

from sim.experiments.run import run_scenario
from sim.scenario.load import parse_scenario
from sim.seeds import stream
from workloads.aimd import Aimd
from workloads.generate import WorkloadSpec, generate
from workloads.lengths import Constant, Lognormal
from workloads.requests import Demand


def demand(law: Aimd, until_s: float = 100.0, requests: int | None = None) -> Demand:
    spec = WorkloadSpec(
        name="w", entitlement="e", arrivals=law, requests=requests, prompt_tokens=Lognormal(mean=100, cv=1.0),
        output_tokens=Constant(value=50),
    )
    return generate(spec, functools.partial(stream, 3, 0), until_s, None)


def test_a_window_grows_by_one_for_a_window_full_of_answers_and_is_halved_by_a_refusal() -> None:
    run = demand(Aimd(clients=1, start_s=0.0)).plan.begin()  # type: ignore[union-attr]
    assert [one.step for one in run.ended(0, 1, True, 1.0)] == [2, 3]  # 1 + 1/1
    assert [one.step for one in run.ended(0, 2, True, 2.0)] == [4]  # 2 + 1/2
    assert [one.step for one in run.ended(0, 3, True, 2.0)] == [5]  # 2.5 + 1/2.5 = 2.9
    assert [one.step for one in run.ended(0, 4, True, 3.0)] == [6, 7]  # 3.24: three may be open
    assert run.ended(0, 5, False, 4.0) == []  # 1.62: two are open already
    assert run.ended(0, 6, False, 4.5) == []  # the same congestion: 1.62 still, and one is open
    (again,) = run.ended(0, 7, False, 6.0)  # 1, and nothing is open
    assert (again.step, again.delay_s) == (8, 1.0)


def test_a_window_has_a_largest_and_work_ends_with_the_workload() -> None:
    run = demand(Aimd(clients=1, first=2, most=2, start_s=0.0), until_s=10.0).plan.begin()  # type: ignore[union-attr]
    assert len(run.ended(0, 1, True, 1.0)) == 2
    assert len(run.ended(0, 2, True, 1.0)) == 1
    assert run.ended(0, 3, True, 10.0) == []
    limited = demand(Aimd(clients=1, first=4, start_s=0.0), requests=3).plan.begin()  # type: ignore[union-attr]
    assert len(limited.ended(0, 1, True, 1.0)) == 2


def test_the_same_requests_come_whoever_is_served_first() -> None:
    found = demand(Aimd(clients=3))
    one, other = (found.plan.begin() for _ in range(2))  # type: ignore[union-attr]
    fast = [step.prompt_tokens for _ in range(20) for step in one.ended(1, 0, True, 1.0)]
    slow = [step.prompt_tokens for _ in range(5) for step in other.ended(1, 0, True, 50.0)]
    assert slow == fast[: len(slow)]


def test_windows_fill_what_there_is_and_no_more_than_they_may() -> None:
    tree = {
        "version": 1, "seed": 1, "horizon_s": 60, "timeline_interval_s": 1,
        "pool": {
            "profile": {
                "step_time": {"kind": "linear", "base_s": 0.05}, "max_num_seqs": 8,
                "max_num_batched_tokens": 512, "kv_blocks": 1000,
                "kv_bytes_per_token": 1,
            },
            "entitlements": [{"name": "a", "service_class": "elastic"}],
        },
        "workload": [
            {"entitlement": "a", "arrivals": {"kind": "aimd", "clients": 2, "most": 3}, "prompt_tokens": 10,
             "output_tokens": 10},
        ],
        "policies": ["none"],
    }  # fmt: skip
    result = run_scenario(parse_scenario(tree, "x"))
    running = [
        row["value"] for row in result.timeline.to_pylist() if row["scope"] == "pool" and row["metric"] == "in_flight"
    ]
    assert max(running) == 6
    assert running[-1] == 6
