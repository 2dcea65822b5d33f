"""The parts of predictive pools against numbers worked out by hand."""

from __future__ import annotations

import random

import pytest

from policies.api import (
    EntitlementLedger,
    EntitlementSpec,
    EntitlementState,
    InFlight,
    PoolCapacity,
    PoolLedger,
    RequestView,
    Resources,
)
from policies.api import ServiceClass as Class
from policies.parts.trend import Trend
from policies.predictive_pool.headroom import Headroom
from policies.predictive_pool.leaves import BURST, ELASTIC, PROMISED, SPOT, Leaf, Turn, grow
from policies.predictive_pool.lengths import Lengths
from policies.predictive_pool.pace import Drain, Prefill


def flight(name: str, at_s: float, replica_id: int = 0) -> InFlight:
    spec = EntitlementSpec(name="a", tenant="a", service_class=Class.SPOT)
    ledger = EntitlementLedger(spec, EntitlementState.BOUND)
    return InFlight(RequestView(name, "a", "a", 100, 10), ledger, replica_id, at_s, 10, 110)


def test_an_answer_is_taken_to_be_as_long_as_a_quantile_of_the_last_ones() -> None:
    lengths = Lengths(q=0.5, last=10)
    assert lengths.expected("a", 400) == 400
    for tokens in (10, 20, 30, 40):
        lengths.learn("a", tokens)
    assert lengths.expected("a", 400) == 400  # four are not enough
    lengths.learn("a", 50)
    assert lengths.expected("a", 400) == 30
    assert lengths.expected("a", 25) == 25  # max_tokens bounds it
    assert lengths.expected("b", 400) == 30  # who has none of its own is judged by everybody's


def test_what_has_run_for_a_while_is_compared_with_the_answers_that_were_longer() -> None:
    lengths = Lengths(q=0.5, last=10)
    for tokens in (10, 20, 30, 40, 50, 60):
        lengths.learn("a", tokens)
    assert lengths.expected_after("a", 0, 400) == 40
    assert lengths.expected_after("a", 30, 400) == 50  # of 40, 50, 60
    assert lengths.expected_after("a", 45, 400) == 60  # of 50, 60: half way
    assert lengths.expected_after("a", 80, 400) == 100  # longer than all: a quarter more
    assert lengths.expected_after("a", 390, 400) == 400


def test_only_the_last_answers_count() -> None:
    lengths = Lengths(q=0.5, last=5)
    for tokens in (500, 500, 500, 1, 2, 3, 4, 5):
        lengths.learn("a", tokens)
    assert lengths.expected("a", 1000) == 3


def test_a_trend_goes_through_its_points_and_never_falls() -> None:
    trend = Trend(0.9)
    assert trend.line() is None
    trend.learn(100.0, 1.5)
    assert trend.line() == (1.5, 0.0)
    trend.learn(300.0, 2.5)
    at_0, slope = trend.line() or (0.0, 0.0)
    assert (at_0, slope) == (pytest.approx(1.0), pytest.approx(0.005))
    falling = Trend(0.9)
    falling.learn(100.0, 2.0)
    falling.learn(200.0, 1.0)
    assert (falling.line() or (0.0, 1.0))[1] == 0.0


def test_prefill_learns_what_a_prompt_token_costs_and_what_a_first_token_takes_anyway() -> None:
    prefill = Prefill()
    for name, tokens, took_s in (("a", 100.0, 0.15), ("b", 300.0, 0.25)):  # 0.1 s, and 0.5 ms a token
        one = flight(name, 0.0)
        prefill.admitted(one, tokens)
        prefill.first_token(one, took_s)
    assert prefill.base_s == pytest.approx(0.1)
    assert prefill.per_token_s == pytest.approx(0.0005)
    prefill.admitted(flight("c", 1.0), 1000.0)
    assert prefill.ttft_s(200.0, 1) == pytest.approx(0.1 + 0.0005 * 1200)
    assert prefill.ttft_s(200.0, 2) == pytest.approx(0.1 + 0.0005 * 700)  # over two replicas


def test_prompts_that_wait_fill_the_replicas_until_their_first_tokens_are_overdue() -> None:
    prefill = Prefill()
    assert not prefill.is_full(0.1, 1)
    prefill.admitted(flight("a", 0.0), 3000.0)
    assert prefill.is_full(0.1, 1)
    assert not prefill.is_full(0.1, 2)
    prefill.ticked(1.9)
    assert prefill.is_full(0.1, 1)
    prefill.ticked(2.1)  # an answer in one piece has no first token of its own
    assert not prefill.is_full(0.1, 1)
    prefill.ended(flight("a", 0.0))
    assert prefill.waiting_tokens == 0.0


def test_a_line_moves_on_as_fast_as_it_did_and_slower_when_it_stands_still() -> None:
    drain = Drain()
    assert drain.wait_s(3, 0.0, 0.5) == pytest.approx(2.0)  # nothing seen: the guess, four times
    drain.began(10.0)
    drain.moved(11.0)
    assert drain.wait_s(3, 11.0, 0.5) == pytest.approx(4.0)
    drain.moved(13.0)  # 1 + 0.2 * (2 - 1)
    assert drain.wait_s(0, 13.0, 0.5) == pytest.approx(1.2)
    assert drain.wait_s(1, 16.2, 0.5) == pytest.approx(2 * (1.2 + 0.2 * 2.0))


def test_start_time_fair_queueing_shares_by_weight_and_remembers_no_idleness() -> None:
    root, heavy, light = Turn(1.0), Turn(2.0), Turn(1.0)
    served = []
    for _ in range(6):
        one = min((heavy, light), key=lambda turn: turn.start(root))
        served.append("heavy" if one is heavy else "light")
        one.charge(root, 1.0)
    assert served.count("heavy") == 4
    late = Turn(1.0)
    assert late.start(root) == root.virtual  # neither credit for having been away nor debt


def spec(name: str, service_class: Class, tenant: str = "", **promised: float) -> EntitlementSpec:
    return EntitlementSpec(
        name=name, tenant=tenant or name, service_class=service_class, baseline=Resources(**promised)
    )


def leaf_of(one: EntitlementSpec) -> tuple[Leaf, EntitlementLedger]:
    leaves, _ = grow([one], {}, by_tree=True, bucket_s=10.0, timeout_s=60.0)
    return leaves[one.name], EntitlementLedger(one, EntitlementState.BOUND)


def test_a_promise_of_tokens_goes_first_until_it_is_used_up() -> None:
    leaf, ledger = leaf_of(spec("a", Class.GUARANTEED, tokens_per_s=100.0, slots=1))
    ledger.in_flight = 5  # tokens decide where they are promised
    assert leaf.tier(ledger, 1, 0.0) == PROMISED
    leaf.charge(1000.0, 0.0)
    assert leaf.tier(ledger, 1, 0.0) == BURST
    assert leaf.tier(ledger, 1, 1.0) == PROMISED
    leaf.charge(-50.0, 1.0)
    assert leaf.bucket is not None
    assert leaf.bucket.available(1.0) == pytest.approx(150.0)


def test_a_promise_of_slots_counts_what_is_in_flight() -> None:
    leaf, ledger = leaf_of(spec("a", Class.ELASTIC, slots=2))
    ledger.in_flight = 1
    assert leaf.tier(ledger, 1, 0.0) == ELASTIC
    assert leaf.tier(ledger, 2, 0.0) == BURST
    spot, ledger = leaf_of(spec("s", Class.SPOT))
    assert spot.tier(ledger, 1, 0.0) == SPOT


def test_parents_weigh_what_their_leaves_were_promised_and_keys_of_one_tenant_share_one_part() -> None:
    specs = [
        spec("a", Class.ELASTIC, slots=6), spec("b", Class.ELASTIC, slots=2),
        spec("k1", Class.SPOT, tenant="many"), spec("k2", Class.SPOT, tenant="many"), spec("k3", Class.SPOT),
    ]
    leaves, _ = grow(specs, {}, by_tree=True, bucket_s=10.0, timeout_s=None)
    assert leaves["a"].parent.weight == pytest.approx(0.75)
    assert leaves["k1"].parent is leaves["k2"].parent
    assert leaves["k1"].parent.weight == leaves["k3"].parent.weight == pytest.approx(0.25)
    apart, _ = grow(specs, {}, by_tree=False, bucket_s=10.0, timeout_s=None)
    assert apart["k1"].parent is not apart["k2"].parent
    named, _ = grow(specs, {"k3": "many"}, by_tree=True, bucket_s=10.0, timeout_s=None)
    assert named["k3"].parent is named["k1"].parent


def test_slots_kept_free_grow_with_each_promised_request_that_was_late_up_to_what_is_likely_to_be_needed() -> None:
    spec = EntitlementSpec(
        name="a", tenant="a", service_class=Class.GUARANTEED, ttft_slo_s=1.0, baseline=Resources(slots=8)
    )
    leaves, _ = grow([spec], {}, by_tree=True, bucket_s=10.0, timeout_s=60.0)
    ledger = EntitlementLedger(spec, EntitlementState.BOUND, demanded_requests=400, mean_service_s=1.0)
    pool = PoolLedger(PoolCapacity(1, 16, None, None), {"a": ledger}, [], mean_service_s=1.0, sequences_in_flight=16)
    headroom = Headroom(leaves, margin=1.0, late=0.1)
    headroom.ticked(pool, 0.5, 100.0)  # 4/s of a second each: 4 at once and two more; 8 slots come back within 0.5 s
    assert headroom.slots == 0.0
    for _ in range(3):
        headroom.served("a", late=True)
    headroom.moved("a", 3)
    assert headroom.slots == pytest.approx(2.7)  # three late ones, less a tenth each
    assert headroom.kept_for_others("b") == 2
    assert headroom.kept_for_others("a") == 0
    headroom.moved("a", 5)
    assert headroom.slots == pytest.approx(1.0, abs=1e-3)  # six less five: it will not need more
    for _ in range(27):
        headroom.served("a", late=False)
    headroom.moved("a", 3)
    assert headroom.slots == pytest.approx(0.0)


@pytest.mark.parametrize("back_per_s", [3.0, 6.0])
def test_in_the_long_run_the_share_that_was_asked_for_is_late(back_per_s: float) -> None:
    """Arrivals at 2/s take a free slot or, where there is none, are late; slots come back one at a time."""
    spec = EntitlementSpec(
        name="a", tenant="a", service_class=Class.GUARANTEED, ttft_slo_s=10.0, baseline=Resources(slots=50)
    )
    leaves, _ = grow([spec], {}, by_tree=True, bucket_s=10.0, timeout_s=60.0)
    ledger = EntitlementLedger(spec, EntitlementState.BOUND, in_flight=30, mean_service_s=25.0)
    pool = PoolLedger(PoolCapacity(1, 99, None, None), {"a": ledger}, [], mean_service_s=25.0, sequences_in_flight=75)
    headroom = Headroom(leaves, margin=1.0, late=0.1)
    chance, free, late, came = random.Random(7), 0, 0, 0
    now_s, tick_s = 0.0, 0.25
    while came < 4000:
        now_s += chance.expovariate(2.0 + back_per_s)
        while tick_s <= now_s:
            headroom.ticked(pool, 0.0, tick_s)
            tick_s += 0.25
        if chance.random() < back_per_s / (2.0 + back_per_s):
            headroom.moved("a", 30)
            free += free < headroom.kept_for_others("b")  # what is not kept, others take at once
            continue
        came += 1
        ledger.demanded_requests = came
        late += free == 0
        headroom.served("a", late=free == 0)
        free -= free > 0
    assert late / came == pytest.approx(0.1, abs=0.03)
