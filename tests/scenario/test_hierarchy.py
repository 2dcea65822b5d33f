"""The tree of groups, keys and budgets in scenarios: what contradicts itself is refused, what runs keeps its limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scenario.examples import changed

from sim.errors import ScenarioError
from sim.experiments.run import run_scenario
from sim.scenario.load import load_scenario, parse_scenario, resolved

POOL = {
    "groups": [{"name": "org", "limit": {"slots": 12}}, {"name": "team", "parent": "org", "limit": {"slots": 10}}],
    "prices": [{"prompt_per_million": 1, "output_per_million": 2}],
}
DAY = {"per": "day", "limit": 100}


def scenario(**pool: Any) -> dict[str, Any]:
    found = changed(["pool", "groups"], POOL["groups"])
    found["pool"] = {**found["pool"], "prices": POOL["prices"], **pool}
    return found


def on_chat(found: dict[str, Any], **fields: Any) -> dict[str, Any]:
    found["pool"]["entitlements"][0] = {**found["pool"]["entitlements"][0], **fields}
    return found


BAD: list[tuple[Callable[[], dict[str, Any]], str, str]] = [
    (lambda: scenario(groups=[{"name": "a", "parent": "b"}]), "pool.groups[0].parent", "unknown group"),
    (lambda: scenario(groups=[{"name": "a", "parent": "b"}, {"name": "b", "parent": "a"}]), "pool.groups[0].parent",
     "a is in b is in a"),
    (lambda: scenario(groups=[{"name": "a"}, {"name": "a"}]), "pool.groups", "2 are called"),
    (lambda: scenario(groups=[{"name": "a", "limit": {"slots": 2}}, {"name": "b", "parent": "a",
     "limit": {"slots": 3}}]), "pool.groups[1].limit.slots", "3 is above the 2 of a"),
    (lambda: on_chat(scenario(groups=[{"name": "a", "limit": {"slots": 1}}]), parent="a"),
     "pool.entitlements[0].limit.slots", "is above the 1 of a"),
    (lambda: on_chat(scenario(groups=[{"name": "a", "limit": {"slots": 12}},
     {"name": "b", "parent": "a", "baseline": {"slots": 11}}]), parent="a"),
     "pool.groups[0].limit.slots", "12 is below the baselines"),
    (lambda: on_chat(scenario(groups=[{"name": "a", "budgets": [DAY]}]), parent="a",
     budgets=[{"per": "day", "limit": 200}]), "pool.entitlements[0].budgets[0].limit", "200 tokens a day is above"),
    (lambda: scenario(groups=[{"name": "a", "budgets": [DAY, {"per": "month", "limit": 50}]}]),
     "pool.groups[0].budgets[0].limit", "100 a day is above its own 50 a month"),
    (lambda: scenario(groups=[{"name": "a", "budgets": [DAY, DAY]}]), "pool.groups[0].budgets[1]", "a second budget"),
    (lambda: scenario(groups=[{"name": "a", "budgets": [{**DAY, "unit": "money"}]}], prices=[]),
     "pool.groups[0].budgets[0].unit", "money, but pool.prices"),
    (lambda: scenario(groups=[{"name": "a", "budgets": [{**DAY, "carry_most": 5}]}]),
     "pool.groups[0].budgets[0].carry_most", "nothing unused"),
    (lambda: scenario(keys=[{"name": "k", "entitlement": "nobody"}]), "pool.keys[0].entitlement", "unknown"),
    (lambda: scenario(gateways=2), "pool.gateways", "books of its own"),
    (lambda: scenario(calendar={"starts": "yesterday"}), "pool.calendar.starts", "is no time"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_tree_that_contradicts_itself_is_refused_with_place_and_problem(number: int) -> None:
    make, field, problem = BAD[number]
    with pytest.raises(ScenarioError) as refused:
        parse_scenario(make(), "bad.yaml")
    assert refused.value.args[1] == field
    assert problem in refused.value.args[2]
    assert refused.value.args[3]


def test_the_shipped_organisations_keep_their_limits_and_are_there_again_after_midnight() -> None:
    loaded = load_scenario("organisations", overrides=["policies=[none]"])
    result = run_scenario(loaded)
    frame = result.requests.to_pandas()
    shop = frame[(frame.entitlement == "shop")]
    over = shop[shop.reason == "budget"]
    assert 400 < over.arrival_s.min() < 600
    before = shop[(shop.arrival_s > over.arrival_s.min()) & (shop.arrival_s < 600)]
    assert (before.outcome == "refused").mean() > 0.9
    assert (shop[(shop.arrival_s > 600) & (shop.arrival_s < 700)].outcome == "finished").all()
    first = over.iloc[0]
    assert first.retry_after_s == pytest.approx(600 - first.arrival_s)
    admitted = frame[frame.entitlement.isin(["support", "research"]) & (frame.outcome == "finished")]
    ends = [*((at, 1) for at in admitted.arrival_s), *((at, -1) for at in admitted.finish_s)]
    most = now = 0
    for _, change in sorted(ends):
        now += change
        most = max(most, now)
    assert most == 20
    served = frame[frame.entitlement == "support"]
    assert (served.reason == "parent_limit").sum() < 10


def test_a_scenario_without_a_tree_resolves_to_what_it_did_before_there_was_one() -> None:
    text = str(resolved(load_scenario("five-classes")))
    for name in ("groups", "calendar", "prices", "count_use", "parent", "budgets"):
        assert name not in text
