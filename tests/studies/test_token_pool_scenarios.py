"""The shipped scenarios of token pools, at small size: what each one shows must show."""

from __future__ import annotations

from typing import Any

import pytest

from sim.experiments.run import ScenarioResult, run_scenario
from sim.scenario.load import load_scenario
from sim.studies.convergence import measure
from sim.studies.token_pools_robust import by_field


def run(name: str, *changes: str) -> ScenarioResult:
    return run_scenario(load_scenario(name, overrides=changes))


def row(result: ScenarioResult, policy: str, tenant: str, **labels: str) -> Any:
    (found,) = [
        one for one in result.summary
        if (one["policy"], one["tenant"]) == (policy, tenant) and all(one[k] == v for k, v in labels.items())
    ]  # fmt: skip
    return found


def stats(result: ScenarioResult, policy: str) -> dict[str, Any]:
    return {cell["policy"]: cell for cell in result.manifest["cells"]}[policy]


@pytest.mark.parametrize("name", ["burst-prompts", "burst-outputs", "burst-sessions", "burst-requests"])
def test_a_burst_hurts_the_neighbour_under_a_rate_limit_and_not_under_token_pools(name: str) -> None:
    result = run(name, "timeline_interval_s=null")
    pools = row(result, "token-pool", "chat")
    assert pools["slo_attainment"] > 0.94
    for policy in ("rate-limit", "requests-per-min", "tokens-per-min"):
        limit = row(result, policy, "chat")
        assert limit["slo_attainment"] < pools["slo_attainment"] - 0.03, policy
        assert limit["ttft_p99_s"] > 4 * pools["ttft_p99_s"], policy
    assert pools["refused"] <= 0.01 * pools["offered"]
    violated = [stats(result, policy)["violation"]["chat"] for policy in ("token-pool", "rate-limit", "none")]
    assert violated[0] < 0.02 < violated[1] < violated[2] + 0.001


def test_experiment_2_in_robust_mode_field_by_field() -> None:
    refused = {
        cells[0]: [float(share) for share in cells[1].removesuffix("%").split("/")]
        for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in by_field(2).splitlines()[2:])
    }  # before, in and after the outage, and with reports
    assert len(refused) == 2 + 2 * 7
    # Free places only, and no limits that follow demand: the last places go to whoever comes first, whatever it weighs.
    assert min(refused["`robust`, but `limits: static`"][1], refused["`paper`, but `full_pool: free-or-evict`"][1]) > 50
    # With those limits copilot has its 5 slots, and evenly spaced arrivals that need 5.2 lose one in six.
    assert 10 < refused["`robust`"][1] < 20
    assert refused["`robust`"][2] < 2
    assert refused["`robust`"][3] < 8
    assert max(refused["`paper`"]) < 3


def test_each_class_gets_what_it_was_promised() -> None:
    result = run("five-classes")
    trading = row(result, "token-pool", "trading")
    assert trading["slo_attainment"] == 1.0
    assert trading["refused"] == 0
    filler = row(result, "token-pool", "filler")
    assert filler["evicted"] > 20
    assert stats(result, "token-pool")["lost_tokens"] > 0
    table = result.timeline.to_pandas()
    flying = table[(table.policy == "token-pool") & (table.scope == "entitlement") & (table.metric == "in_flight")]
    lent = flying[~flying.name.isin(["trading", "chat"]) & (flying.t_s < 180)].groupby("t_s").value.sum()
    assert 48 <= lent.max() <= 64 - 12  # idle dedicated slots are not lent
    for policy in ("rate-limit", "none"):
        assert row(result, policy, "trading")["slo_attainment"] < 0.1


def test_a_limiter_starves_the_autoscaler_and_one_capacity_model_does_not() -> None:
    changes = ("horizon_s=1800", "timeline_interval_s=null", "workload.agents.arrivals.period_s=1800",
               "workload.agents.arrivals.peak_s=900")  # fmt: skip
    result = run("day-with-a-peak", *changes)
    pools, limit = row(result, "pool+capacity", "all"), row(result, "limit+utilisation", "all")
    assert limit["refused"] > 0.2 * limit["offered"]
    assert pools["refused"] < 0.1 * pools["offered"]
    assert row(result, "pool+capacity", "chat")["ttft_p99_s"] < 0.5
    assert stats(result, "limit+utilisation")["gpu_s"] < stats(result, "pool+capacity")["gpu_s"]
    assert stats(result, "pool+capacity")["gpu_s"] < 6 * 1800


def test_what_is_needed_of_the_promises_is_provisioned_but_while_a_replica_starts() -> None:
    table = run("day-with-a-peak", "policies=[token-pool]").timeline.to_pandas()
    pool = table[table.scope == "pool"].pivot(index="t_s", columns="metric", values="value")
    settled = pool[pool.starting_replicas == 0]
    assert len(settled) > 0.9 * len(pool)
    for unit in ("tokens_per_s", "slots", "kv_bytes"):
        assert (settled[f"needed_{unit}"] <= settled[f"provisioned_{unit}"]).all(), unit


def test_guarantees_hold_as_far_as_capacity_allows() -> None:
    result = run("half-the-pool-lost", "pool.on_failure=fail", "pool.notice_s=0.05")
    pools, none = stats(result, "token-pool")["violation"], stats(result, "none")["violation"]
    assert pools["chat"] < 0.04 < 0.1 < none["chat"]
    assert pools["docs"] <= pools["notes"] + 0.02
    assert row(result, "token-pool", "chat")["ttft_p99_s"] < 1.0


def test_debt_brings_shares_closer_and_adding_up_differences_makes_them_equal() -> None:
    without = measure("convergence", {"alpha_debt": 0}, 120, 360)
    debt = measure("convergence", {"alpha_debt": 4}, 120, 360)
    adding = measure("convergence", {"alpha_debt": 4, "equalise": 0.3}, 120, 360)
    assert without.unfairness > 0.45
    assert 0.15 < debt.unfairness < without.unfairness - 0.1
    assert adding.unfairness < 0.1
    assert adding.wobble < 0.06
