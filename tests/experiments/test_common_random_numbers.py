"""A change of policy, of another tenant or of a client's retries moves nobody else's draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sim.experiments.demands import client_chances, demands
from sim.experiments.run import run_scenario
from sim.scenario.load import Scenario, parse_scenario

CHAT: dict[str, Any] = {
    "entitlement": "chat", "arrivals": {"kind": "poisson", "rate_per_s": 2.0}, "prompt_tokens": 40,
    "output_tokens": {"kind": "uniform", "low": 5, "high": 40},
}  # fmt: skip
OTHER: dict[str, Any] = {
    "entitlement": "other", "arrivals": {"kind": "gamma", "rate_per_s": 1.5, "cv": 2.0}, "output_tokens": 20,
    "prompt_tokens": {"kind": "lognormal", "mean": 100, "cv": 1.0},
}  # fmt: skip


def scenario(chat: dict[str, Any] = CHAT, other: dict[str, Any] | None = OTHER, **changes: Any) -> Scenario:
    names = ["chat"] if other is None else ["chat", "other"]
    third = [{"name": "third", "service_class": "spot"}]
    return parse_scenario({
        "version": 1, "seed": 7, "horizon_s": 40, "policies": ["none"],
        "pool": {
            "profile": "dgx-spark-qwen3-8b-nvfp4",
            "entitlements": [{"name": name, "service_class": "elastic"} for name in names] + third,
        },
        "workload": [chat, *([] if other is None else [other]), *changes.pop("more", [])], **changes,
    }, "here")  # fmt: skip


def drawn(one: Scenario, name: str, replication: int = 0) -> list[Any]:
    number = [w.name for w in one.workload].index(name)
    demand = demands(one, replication)[number]
    return [demand.arrival_s.tolist(), demand.prompt_tokens.tolist(), demand.output_tokens.tolist()]


CHANGES: dict[str, Scenario] = {
    "another policy": scenario(policies=["vtc", {"kind": "cap", "queue_requests": 1}]),
    "another tenant's rate": scenario(other={**OTHER, "arrivals": {"kind": "poisson", "rate_per_s": 9.0}}),
    "another tenant's lengths": scenario(other={**OTHER, "prompt_tokens": 7}),
    "no other tenant": scenario(other=None),
    "a third": scenario(more=[{"entitlement": "third", "arrivals": {"kind": "poisson", "rate_per_s": 5},
                               "prompt_tokens": 9, "output_tokens": 9}]),
    "another tenant's retries": scenario(other={**OTHER, "client": {"kind": "retry", "max_attempts": 5}}),
    "its own retries": scenario(chat={**CHAT, "client": "openai-sdk"}),
}  # fmt: skip


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES.keys())
def test_nobody_elses_draws_move(changed: Scenario) -> None:
    for replication in (0, 3):
        assert drawn(changed, "chat", replication) == drawn(scenario(), "chat", replication)
    assert drawn(scenario(), "chat", 0) != drawn(scenario(), "chat", 3)


def test_the_jitter_of_one_client_is_not_anothers() -> None:
    one = scenario(chat={**CHAT, "client": "openai-sdk"})
    two = scenario(chat={**CHAT, "client": "openai-sdk"}, other={**OTHER, "client": "openai-sdk"})
    mine, beside = client_chances(one, 0), client_chances(two, 0)
    assert mine[0] is not None
    assert beside[0] is not None
    assert beside[1] is not None
    rolls = [chance.random() for chance in (beside[1], beside[1], beside[0], mine[0])]  # the other's first
    assert rolls[2] == rolls[3] != rolls[0]


def test_runs_meet_the_same_requests_under_every_policy_and_beside_every_neighbour() -> None:
    def firsts(table: pa.Table, policy: str) -> list[tuple[Any, ...]]:
        frame = table.to_pandas()
        chosen = frame[(frame["policy"] == policy) & (frame["tenant"] == "chat") & (frame["attempt"] == 1)]
        return sorted(zip(chosen["request_id"], chosen["arrival_s"], chosen["prompt_tokens"], strict=True))

    client = {"kind": "retry", "max_attempts": 4}
    storm = {**OTHER, "arrivals": {"kind": "poisson", "rate_per_s": 20.0}, "client": client}
    policies = ["none", {"kind": "cap", "max_in_flight_per_replica": 4, "queue_requests": 1}]
    plain, stormy = scenario(policies=policies), scenario(other=storm, policies=policies)
    seen = [firsts(run_scenario(one).requests, policy) for one in (plain, stormy) for policy in ("none", "cap")]
    assert len(seen[0]) > 50
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert np.diff([at_s for _, at_s, _ in sorted(seen[0], key=lambda row: row[1])]).min() >= 0
