"""A policy that dozes decides as one that is asked at every tick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from policies.api import Arrived, CallMeAt, Forward, Hold, ReplicaReport, RequestView, Tick
from policies.llm_d_flow_control import LlmDFlowControl, LlmDFlowControlPolicy
from sim.cluster.world import World, simulate
from sim.experiments.run import world_of
from sim.scenario.load import expand, load_scenario, parse_scenario, resolved
from sim.studies.tournament_loads import at_load
from tokenpools.testing.policy_contract import SPECS, make_core

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "its own metrics": {},
    "reports of a second": {"stale_s": 4.0},
    "stale for most of the time": {"scrape_interval_s": 1.0},
    "books": {"detector": "concurrency", "load": 8.0},
    "ceilings": {
        "fairness": "round-robin", "ceilings": "holdback", "stale_s": 0.5, "ordering": "slo-deadline",
        "staleness": "ignore", "scrape_interval_s": 0.3,
    },
    "two gateways": {"gateways": 2},
}  # fmt: skip
COLUMNS = (
    "outcome", "forwarded_s", "first_token_s", "finish_s", "retry_after_s", "output_tokens", "replica", "reason",
)  # fmt: skip


def world(own: Mapping[str, Any]) -> World:
    own = dict(own)
    scenario = at_load(load_scenario("tournament-noisy-neighbour"), own.pop("load", 1.0))
    tree = resolved(scenario) | {"horizon_s": 25.0, "warmup_s": 0.0, "vary": {}}
    for one in tree["workload"]:
        one["from_s"], one["until_s"] = 0.0, None
    tree["pool"]["scrape_interval_s"] = own.pop("scrape_interval_s", 0.05)
    if "gateways" in own:
        tree["pool"]["gateways"] = own.pop("gateways")
    # Between two ticks: what happens in the instant of one that was left out counts as after it.
    tree["events"] = [{"at_s": 10.0005, "fail": 1}, {"at_s": 15.0005, "restore": 1}]
    tree["policies"] = [{"kind": "llm-d-flow-control", "name": "llm-d", **own}]
    return world_of(expand(parse_scenario(tree, "x"))[0])


@pytest.mark.parametrize("name", SETTINGS)
def test_ticks_that_are_left_out_would_have_changed_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = {"dozing": 0, "awake": 0}
    heard = LlmDFlowControlPolicy.on_tick
    found: dict[str, Any] = {}
    for how in ticks:
        def on_tick(policy: Any, pool: Any, now_s: float, how: str = how) -> None:
            ticks[how] += 1
            heard(policy, pool, now_s)

        monkeypatch.setattr(LlmDFlowControlPolicy, "on_tick", on_tick)
        if how == "awake":
            monkeypatch.setattr(LlmDFlowControlPolicy, "quiet_until_s", lambda _policy, _pool, now_s: now_s)
        found[how] = simulate(world(SETTINGS[name])).columns
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(found["dozing"], column), getattr(found["awake"], column), err_msg=column)
    held = found["awake"].forwarded_s > found["awake"].arrival_s
    assert held.sum() > 20, "nothing waited: this shows nothing"
    assert ticks["awake"] >= 24_000
    assert ticks["dozing"] < ticks["awake"] / 4


def test_it_is_called_when_something_waits_and_not_before() -> None:
    """By hand: nobody waits, no tick; a shut gate, the time of its stale report; an event, the tick after it."""
    core = make_core(LlmDFlowControl(), replicas=1, slots=2)
    assert core.start(0.0) == (CallMeAt(0.001),)
    core.handle(ReplicaReport(0, 0.0, 0, 5, 0.0), 0.0)  # five wait there: full
    assert core.handle(Tick(), 0.001) == (CallMeAt(5.0),)  # when an entitlement ends
    hold, call = core.handle(Arrived(RequestView("a", SPECS[0].name, "t", 1, 1)), 0.0305)
    assert (type(hold), call) == (Hold, CallMeAt(0.031))
    (call,) = core.handle(Tick(), 0.031)
    assert isinstance(call, CallMeAt)
    assert call.at_s == pytest.approx(0.2, abs=0.0011)  # the report is too old then; a cycle early at most
    call = core.handle(ReplicaReport(0, 0.1, 0, 0, 0.0), 0.1)[-1]
    assert isinstance(call, CallMeAt)
    assert call.at_s == pytest.approx(0.101)
    forward, _ = core.handle(Tick(), 0.1011)
    assert isinstance(forward, Forward)
