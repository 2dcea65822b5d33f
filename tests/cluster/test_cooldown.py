"""Agents whose calls share a cooldown: none of a session's calls comes while one of them was told to wait."""

from __future__ import annotations

from typing import Any

import pytest

from sim.experiments.run import run_scenario
from sim.scenario.load import load_scenario
from workloads.clients import SharedCooldown


def attempts(client: str) -> Any:
    overrides = [
        "horizon_s=120", "warmup_s=5", "timeline_interval_s=null", f"workload[0].client={client}",
        "policies=[{kind: rate-limit, requests_per_min: 60}]",
    ]
    scenario = load_scenario("agents-cooldown", overrides=overrides)
    return run_scenario(scenario, check_invariants=True).requests.to_pandas()


def broken_cooldowns(found: Any) -> int:
    """How many attempts came while their session was told to wait."""
    found = found.assign(session=found["request_id"].str.partition(".")[0])
    broken = 0
    for _, mine in found.groupby("session"):
        refused = mine[mine["outcome"] == "refused"]
        for at_s, retry_s in zip(refused["finish_s"], refused["retry_after_s"], strict=True):
            came = mine["arrival_s"]
            broken += int(((came > at_s) & (came < at_s + min(60.0, retry_s) - 1e-9)).sum())
    return broken


def test_a_session_keeps_still_until_the_longest_retry_after_is_over() -> None:
    shared, alone = attempts("{kind: shared-cooldown, max_attempts: 8}"), attempts("{kind: retry, max_attempts: 8}")
    assert (shared["outcome"] == "refused").sum() > 10
    assert broken_cooldowns(shared) == 0
    assert broken_cooldowns(alone) > 10
    assert shared["request_id"][shared["final"]].is_unique


@pytest.mark.parametrize(("outcome", "retry_after_s", "wait_s"), [
    ("refused", 4.0, 4.0), ("refused", None, 1.0), ("refused", 600.0, 60.0), ("evicted", None, 1.0),
    ("finished", None, 0.0), ("cancelled", None, 0.0),
])  # fmt: skip
def test_how_long_a_session_keeps_still(outcome: str, retry_after_s: float | None, wait_s: float) -> None:
    assert SharedCooldown().cooldown_s(outcome, retry_after_s) == wait_s
