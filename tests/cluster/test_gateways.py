from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.tiny_world import make_core

from policies.api import Arrived, EntitlementSpec, Failed, Finished, Forward, RequestView, Resources, ServiceClass, Tick
from policies.sharing import Peers, exchange
from policies.token_pool.params import TokenPool
from sim.cluster.gateways import Gateways
from sim.errors import ScenarioError
from sim.experiments.run import run_cell
from sim.scenario.load import expand, load_scenario

SPECS = [
    EntitlementSpec(name="e", tenant="t", service_class=ServiceClass.ELASTIC, baseline=Resources(50.0, None, 4)),
    EntitlementSpec(name="s", tenant="t", service_class=ServiceClass.SPOT),
]


def cores(n: int) -> list[Any]:
    made = [make_core(TokenPool(), SPECS, slots=12, replicas=2, tokens_per_s=200.0) for _ in range(n)]
    for core in made:
        core.start(0.0)
    return made


kinds = st.sampled_from(["arrive", "arrive", "finish", "fail", "share", "tick"])
actions = st.lists(st.tuples(st.integers(0, 2), kinds, st.booleans()), max_size=60)


@settings(max_examples=80, deadline=None)
@given(actions, st.integers(0, 99))
def test_after_an_exchange_everybody_s_books_hold_everything(steps: list[Any], seed: int) -> None:
    made = cores(3)
    peers = [Peers(core.pool, core._policy) for core in made]
    chance, flying, now_s = random.Random(seed), [set() for _ in made], 0.0  # type: ignore[var-annotated]
    for number, (which, what, spot) in enumerate(steps):
        now_s += 0.25
        core = made[which]
        if what == "arrive":
            name = f"r{number}"
            said = core.handle(Arrived(RequestView(name, "s" if spot else "e", "t", 10, 20)), now_s)
            flying[which] |= {name for step in said if isinstance(step, Forward)}
        elif what == "share":
            exchange(peers, now_s)
        elif what == "tick":
            core.handle(Tick(), now_s)
        elif flying[which]:
            name = chance.choice(sorted(flying[which]))
            flying[which].remove(name)
            core.handle(Finished(name, 20) if what == "finish" else Failed(name, 3), now_s)
    exchange(peers, now_s)
    for core in made:
        assert sum(book.in_flight for book in core.pool.entitlements.values()) == sum(map(len, flying))
        assert sum(book.in_flight for book in core.pool.replicas) == sum(map(len, flying))
        assert len(core.pool.in_flight) + core.pool.others_in_flight == sum(map(len, flying))
        for name, book in core.pool.entitlements.items():
            others = made[0].pool.entitlements[name]
            for metric in ("reserved_tokens", "worked_tokens", "demanded_tokens", "demanded_requests"):
                assert getattr(book, metric) == getattr(others, metric)
    for peer, mine in zip(peers, flying, strict=True):
        assert sum(told.in_flight for told in peer.own()[0].values()) == len(mine)


def test_what_others_have_in_flight_fills_the_pool_for_all() -> None:
    one, two = cores(2)
    for number in range(12):
        one.handle(Arrived(RequestView(f"r{number}", "s", "t", 1, 1)), 0.0)
    assert isinstance(two.handle(Arrived(RequestView("x", "s", "t", 1, 1)), 0.0)[0], Forward)
    exchange([Peers(core.pool, core._policy) for core in (one, two)], 0.0)
    assert not isinstance(two.handle(Arrived(RequestView("y", "s", "t", 1, 1)), 0.0)[0], Forward)


def test_each_is_called_when_it_asked_and_no_more() -> None:
    made = cores(3)
    group = Gateways(made, [core._policy for core in made], 0.5)
    pending = [step.at_s for step in group.start(0.0)]  # type: ignore[union-attr]
    ticks = 0
    while pending and pending[0] < 20.0:
        assert len(pending) == 1
        now_s = pending.pop()
        ticks += 1
        pending += [step.at_s for step in group.handle(Tick(), now_s)]  # type: ignore[union-attr]
    assert ticks == 39  # every half second; the cores' own ticks fall on those


def queue_of(share_every_s: str, gateways: int = 4) -> float:
    changes = [f"pool.share_every_s={share_every_s}", f"pool.gateways={gateways}", "horizon_s=60", "warmup_s=10"]
    scenario = load_scenario("several-gateways", overrides=changes)
    (cell,) = expand(scenario)
    table = run_cell(cell).timeline.to_pandas()
    return float(table[(table.scope == "pool") & (table.metric == "waiting") & (table.t_s > 20)].value.mean())


def test_the_longer_they_do_not_talk_the_longer_the_queue() -> None:
    alone, often, seldom, never = queue_of("null", 1), queue_of("0.1"), queue_of("10"), queue_of("null")
    assert alone <= 1
    assert often <= 2
    assert often < seldom < never
    assert never > 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pool.gateways=1", "share_every_s: given although there is one gateway"),
        ("pool.share_every_s=null", "share_every_s: not given for 4 gateways beside an autoscaler"),
    ],
)
def test_what_does_not_go_with_several_gateways_is_refused(change: str, message: str) -> None:
    scaled = "policies.token-pool.autoscaler=capacity"
    with pytest.raises(ScenarioError, match=message):
        load_scenario("several-gateways", overrides=["pool.share_every_s=1", scaled, change])


def test_dedicated_slots_that_others_use_are_not_held_idle_as_well() -> None:
    specs = [
        EntitlementSpec(name="d", tenant="t", service_class=ServiceClass.DEDICATED, baseline=Resources(None, None, 4)),
        EntitlementSpec(name="s", tenant="t", service_class=ServiceClass.SPOT),
    ]
    one, two = (make_core(TokenPool(), specs, slots=12) for _ in range(2))
    for core in (one, two):
        core.start(0.0)
    for number in range(4):
        assert isinstance(one.handle(Arrived(RequestView(f"d{number}", "d", "t", 1, 1)), 0.0)[0], Forward)
    exchange([Peers(core.pool, core._policy) for core in (one, two)], 0.0)
    said = [two.handle(Arrived(RequestView(f"s{number}", "s", "t", 1, 1)), 0.0)[0] for number in range(9)]
    assert [isinstance(step, Forward) for step in said] == [True] * 8 + [False]


@pytest.mark.parametrize("kind", ["capacity", "utilisation", "saturation", "sla"])
def test_an_autoscaler_beside_several_gateways_follows_all_their_traffic(kind: str) -> None:
    def ready(gateways: int) -> float:
        changes = [
            "pool.replicas=2", f"pool.gateways={gateways}", "horizon_s=150", "timeline_interval_s=5",
            f"policies=[{{kind: token-pool, autoscaler: {{kind: {kind}, max_replicas: 6}}}}]", "pool.start_up_s=10",
            f"pool.share_every_s={'null' if gateways == 1 else 0.5}",
        ]  # fmt: skip
        (cell,) = expand(load_scenario("several-gateways", overrides=changes))
        table = run_cell(cell).timeline.to_pandas()
        return float(table[(table.metric == "ready_replicas") & (table.t_s > 60)].value.mean())

    assert abs(ready(4) - ready(1)) < 0.5
