from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.examples import EXAMPLES
from parity.tiny_world import make_core

from policies.api import (
    Arrived,
    CapacityChanged,
    EntitlementSpec,
    Finished,
    Forward,
    PoolCapacity,
    RequestView,
    Resources,
    ServiceClass,
    Tick,
)
from policies.limit_leases import POOL, SLOTS, Book, Holder, Need, exchange_parts, renew, targets, why_unfit
from policies.rate_limit import RateLimit
from policies.token_pool.params import TokenPool

TTL_US = 1_000_000
amounts = st.floats(0, 50)


@given(st.floats(0, 100), st.dictionaries(st.sampled_from("abcdef"), amounts, min_size=1), st.booleans())
def test_targets_are_no_more_than_there_is_and_nobody_gets_less_than_an_even_part_it_wants(
    total: float, wants: dict[str, float], whole: bool
) -> None:
    if whole:
        total = math.floor(total)
    found = targets(total, wants, whole=whole)
    assert math.fsum(found.values()) <= total + 1e-6
    assert not whole or all(each == int(each) for each in found.values())
    if math.fsum(wants.values()) >= total:
        even = total / len(wants)
        assert all(found[name] >= min(want, even) - 1 - 1e-6 for name, want in wants.items())
    else:
        assert math.fsum(found.values()) == pytest.approx(total, abs=1e-6)


steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["renew", "use", "end", "silent", "lower", "forget", "crash"]),
              st.integers(0, 12)),
    max_size=80,
)  # fmt: skip


@settings(deadline=None)
@given(steps)
def test_parts_never_sum_to_more_than_the_limit_but_for_who_was_lost(actions: list[Any]) -> None:
    """Gateways that renew, forget to, lose the book, crash: what is held and good never passes the limit."""
    book, total, now_us = Book(0), 20.0, 0
    holds = dict.fromkeys("abc", 0.0)
    in_use = dict.fromkeys("abc", 0)
    good_until_us = dict.fromkeys("abc", 0)
    lost_with = dict.fromkeys("abc", 0)
    lowered = False
    for name, what, amount in actions:
        now_us += 40_000 * (amount + 1)
        for one in "abc":
            if good_until_us[one] < now_us and holds[one]:
                lost_with[one] = in_use[one]
                holds[one] = 0.0
        if what == "renew":
            need = {POOL: Need(total, in_use[name], min(total, in_use[name] + amount))}
            book, parts = renew(book, name, {POOL: holds[name]}, need, now_us, TTL_US)
            holds[name], good_until_us[name] = parts[POOL], now_us + TTL_US
            lost_with[name] = min(lost_with[name], in_use[name])
        elif what == "use" and holds[name] > in_use[name]:
            in_use[name] += 1
        elif what == "end":
            in_use[name] = max(0, in_use[name] - amount)
            lost_with[name] = min(lost_with[name], in_use[name])
        elif what == "lower":
            total, lowered = max(1.0, total - amount / 4), True
        elif what == "forget":  # Redis was killed; nothing that is free is dealt out for as long as parts may be good
            book = Book(now_us + TTL_US)
        elif what == "crash":
            holds[name], in_use[name], good_until_us[name], lost_with[name] = 0.0, 0, 0, 0
        if not lowered:
            assert sum(in_use.values()) <= total + sum(lost_with.values())
            good = [holds[one] for one in "abc" if good_until_us[one] >= now_us]
            assert sum(good) <= total + sum(lost_with.values())
            assert all(holds[one] == int(holds[one]) for one in "abc")


SPECS = [
    EntitlementSpec(name="e", tenant="t", service_class=ServiceClass.ELASTIC, limit=Resources(100.0, None, 5)),
    EntitlementSpec(name="g", tenant="t", service_class=ServiceClass.GUARANTEED, baseline=Resources(50.0, None, 4)),
    EntitlementSpec(name="s", tenant="t", service_class=ServiceClass.SPOT),
]


def group(params: Any, n: int = 3) -> dict[str, Holder]:
    holders = {}
    for number in range(n):
        core = make_core(params, SPECS, slots=12, replicas=2, tokens_per_s=200.0)
        core.start(0.0)
        holders[str(number)] = Holder(core)
    return holders


@pytest.mark.parametrize("params", [TokenPool(max_request_tokens=60), TokenPool(mode="robust", max_request_tokens=60)])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["e", "g", "s", "end", "end", "renew", "less", "tick"])),
                max_size=120))  # fmt: skip
def test_no_limit_of_slots_is_passed_by_all_gateways_together(params: Any, actions: list[Any]) -> None:
    holders, book = group(params), Book(0)
    for _ in range(3):
        book = exchange_parts(holders, book, 0, TTL_US)
    flying: list[tuple[str, str, str]] = []
    now_us, slots = 0, 12
    for number, (which, what) in enumerate(actions):
        now_us += 50_000
        now_s, holder = now_us / 1e6, holders[str(which)]
        if what in ("e", "g", "s"):
            said = holder.core.handle(Arrived(RequestView(f"r{number}", what, "t", 5, 5)), now_s)
            holder.heard({f"r{number}": what}, said)
            if any(type(step) is Forward for step in said):
                flying.append((str(which), what, f"r{number}"))
        elif what == "end" and flying:
            gateway, _, name = flying.pop(which % len(flying))
            holders[gateway].core.handle(Finished(name, 5), now_s)
        elif what == "renew":
            book = exchange_parts(holders, book, now_us, TTL_US)
        elif what == "less":
            slots = 6 if slots == 12 else 12
            for one in holders.values():
                event = CapacityChanged(PoolCapacity(2, slots, 200.0), (0, 1))
                one.before(event)
                one.core.handle(event, now_s)
            if slots == 6:
                book = exchange_parts(holders, book, now_us, TTL_US)
        else:
            holder.core.handle(Tick(), now_s)
        counts = {name: sum(each == name for _, each, _ in flying) for name in ("e", "g", "s")}
        assert counts["e"] <= 5
        assert counts["g"] <= 4
        if "less" not in [action for _, action in actions]:
            # Of the pool's slots, what was promised to g may be entered when it is full, as with one gateway.
            assert len(flying) <= 12 + 4


def test_a_part_goes_where_it_is_wanted() -> None:
    holders, book = group(TokenPool(max_request_tokens=60), 2), Book(0)
    for round_ in range(12):
        now_us = round_ * 500_000
        for number in range(8):
            name = f"{round_}/{number}"
            said = holders["0"].core.handle(Arrived(RequestView(name, "e", "t", 1, 1)), now_us / 1e6)
            holders["0"].heard({name: "e"}, said)
        book = exchange_parts(holders, book, now_us, TTL_US)
    held = [holder.parts[SLOTS + "e"] for holder in holders.values()]
    assert sum(held) == 5
    assert held[0] >= 4  # one stays with the other, for who comes there first
    assert holders["0"].core.pool.entitlements["e"].in_flight == 5  # its own, and what the other may have


@pytest.mark.parametrize(("params", "each"), [(TokenPool(max_request_tokens=60), 60.0),
                                              (RateLimit(tokens_per_min=6000, burst_s=10.0), 1000.0)])  # fmt: skip
def test_rates_together_are_passed_by_a_depth_for_each_gateway_at_most(params: Any, each: float) -> None:
    """100 tokens a second with a depth of 1000, for 20 s; a part's depth is at least the largest request."""
    holders, book = group(params), Book(0)
    admitted, number = 0, 0
    for tick in range(2000):
        now_us = tick * 10_000
        if tick % 50 == 0:
            book = exchange_parts(holders, book, now_us, 10 * TTL_US)
        for name, holder in holders.items():
            if tick // 400 % 3 in (0, int(name)):  # demand moves from gateway to gateway
                number += 1
                said = holder.core.handle(Arrived(RequestView(f"r{number}", "e", "t", 10, 10)), now_us / 1e6)
                if any(type(step) is Forward for step in said):
                    admitted += 20
                    holder.core.handle(Finished(f"r{number}", 10), now_us / 1e6)
    assert admitted <= 100.0 * 20 + 1000.0 + len(holders) * each
    assert admitted >= 0.8 * 100.0 * 20


def asked_for_too_much(holders: dict[str, Holder], seconds: int) -> int:
    """Return the tokens that gateways let in together where each is asked for 400 a second; a request takes 0.5 s."""
    book, admitted, number = Book(0), 0, 0
    ends: list[tuple[int, str, str]] = []
    for tick in range(100 * seconds):
        now_us = tick * 10_000
        if tick % 50 == 0:
            book = exchange_parts(holders, book, now_us, 10 * TTL_US)
        while ends and ends[0][0] <= now_us:
            _, name, request_id = ends.pop(0)
            holders[name].core.handle(Finished(request_id, 10), now_us / 1e6)
        for name, holder in holders.items():
            if tick % 100 == 0:
                holder.core.handle(Tick(), now_us / 1e6)
            if tick % 5 == 0:
                number += 1
                said = holder.core.handle(Arrived(RequestView(f"r{number}", "s", "t", 10, 10)), now_us / 1e6)
                if any(type(step) is Forward for step in said):
                    admitted += 20
                    ends.append((now_us + 500_000, name, f"r{number}"))
    return admitted


def test_a_rate_that_is_allocated_is_parted_too() -> None:
    """Nobody limits s, so its rate is what the pool has left, 200 tokens a second: of all gateways, not of each."""
    params = TokenPool(mode="robust", max_request_tokens=60, tick_s=1.0, bucket_s=1.0)
    found = {}
    for count in (1, 3):
        holders = {}
        for number in range(count):
            core = make_core(params, [SPECS[2]], slots=400, replicas=2, tokens_per_s=200.0)
            holders[str(number)] = Holder(core)  # before it was begun, as a gateway does
            core.start(0.0)
        found[count] = asked_for_too_much(holders, 20)
    assert 0.8 * 200 * 20 <= found[1] <= 200 * 20 + 300
    assert found[3] <= found[1] + 3 * 200  # and a depth of the bucket for each


def test_only_policies_whose_limits_can_be_parted_are_fit() -> None:
    unfit = {name for name, params in EXAMPLES.items() if why_unfit(make_core(params, SPECS_OF_ALL).policy)}
    assert {"rate-limit, sliding", "window", "reserve", "ptu"} <= unfit
    assert not {"none", "cap", "token-pool", "token-pool, robust", "rate-limit", "vtc", "class-slots"} & unfit


SPECS_OF_ALL = [
    EntitlementSpec(name=each.value, tenant="t", service_class=each) for each in ServiceClass
]
