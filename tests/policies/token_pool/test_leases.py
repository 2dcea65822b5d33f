from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.tiny_world import make_core, spec

from policies.api import (
    Arrived,
    CapacityChanged,
    EntitlementState,
    Forward,
    PoolCapacity,
    Reason,
    Refuse,
    RequestView,
    ServiceClass,
    Tick,
)
from policies.core import GatewayCore
from policies.token_pool.leases import LeaseBook, lease_of
from policies.token_pool.params import TokenPool

D, G, E, S, P = ServiceClass
BOUND, DEGRADED = EntitlementState.BOUND, EntitlementState.DEGRADED


def pool(slots: int, **more: Any) -> PoolCapacity:
    return PoolCapacity(1, slots, **more)


def test_first_fit_by_class_and_then_by_age() -> None:
    specs = [
        spec("a", E, 4), spec("old", G, 6, from_s=1.0), spec("new", G, 6, from_s=2.0), spec("small", G, 3, from_s=3.0),
        spec("s", S),
    ]  # fmt: skip
    states = LeaseBook(specs).settle([each.name for each in specs], pool(10))
    # old 6, new does not fit, small 3 does, a's 4 do not, and who reserves nothing always fits.
    assert states == {"a": DEGRADED, "old": BOUND, "new": DEGRADED, "small": BOUND, "s": BOUND}


def test_a_pool_that_shrinks_takes_no_lease_back_and_one_that_recovers_binds() -> None:
    book = LeaseBook([spec("a", G, 6), spec("b", E, 6), spec("late", E, 4)])
    assert book.settle(["a", "b"], pool(12)) == {"a": BOUND, "b": BOUND}
    assert book.settle(["a", "b", "late"], pool(8)) == {"a": BOUND, "b": BOUND, "late": DEGRADED}
    assert book.promised() == (0, 0, 12)
    assert book.settle(["a", "b", "late"], pool(15))["late"] is DEGRADED
    assert book.settle(["a", "b", "late"], pool(16))["late"] is BOUND
    assert book.settle(["b", "late"], pool(8)) == {"b": BOUND, "late": BOUND}
    assert book.settle(["a", "b", "late"], pool(16))["a"] is BOUND
    assert book.settle([], pool(16)) == {}


def test_every_resource_that_is_known_must_suffice() -> None:
    book = LeaseBook([spec("a", G, 1, rate=60.0, kv_bytes=10.0), spec("b", G, 1, rate=60.0)])
    assert book.settle(["a", "b"], pool(9, tokens_per_s=100.0, kv_bytes=10.0)) == {"a": BOUND, "b": DEGRADED}
    book = LeaseBook([spec("a", G, 1, rate=60.0, kv_bytes=10.0), spec("b", G, 1, rate=60.0)])
    assert set(book.settle(["a", "b"], pool(9)).values()) == {BOUND}


def test_overcommit_is_the_share_of_a_baseline_that_is_reserved() -> None:
    specs = [spec("a", G, 8), spec("b", E, 8)]
    assert set(LeaseBook(specs, 0.5).settle(["a", "b"], pool(8)).values()) == {BOUND}
    assert lease_of(specs[0], 0.5) == (0, 0, 4)
    assert lease_of(spec("s", S, 8)) == (0, 0, 0)


leases = st.lists(st.tuples(st.sampled_from([D, G, E, S]), st.integers(0, 9)), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(leases, st.lists(st.tuples(st.integers(0, 30), st.sets(st.integers(0, 7))), max_size=8))
def test_what_is_bound_fits_or_was_bound_before(
    made: list[tuple[ServiceClass, int]], steps: list[tuple[int, set[int]]]
) -> None:
    specs = [spec(f"e{i}", service_class, slots) for i, (service_class, slots) in enumerate(made)]
    book = LeaseBook(specs)
    bound: set[str] = set()
    for slots, present in steps:
        in_force = [specs[i].name for i in sorted(present) if i < len(specs)]
        states = book.settle(in_force, pool(slots))
        after = {name for name, state in states.items() if state is BOUND}
        assert set(states) == set(in_force)
        assert bound & set(in_force) <= after
        size = {each.name: lease_of(each)[2] for each in specs}
        fresh = [name for name in after - bound if size[name]]
        if fresh:
            assert sum(size[name] for name in after) <= slots
        for name in set(in_force) - after:  # nobody is left out who would fit
            assert sum(size[other] for other in after) + size[name] > slots
        bound = after


def arrive(core: GatewayCore, name: str, now_s: float, number: list[int] = [0]) -> Any:  # noqa: B006
    number[0] += 1
    return core.handle(Arrived(RequestView(f"r{number[0]}", name, "t", 10, 10)), now_s)[-1]


def test_the_degraded_are_refused_until_there_is_room() -> None:
    late = spec("late", G, 6, from_s=5.0, until_s=20.0)
    core = make_core(TokenPool(), [spec("a", G, 6), spec("b", G, 6, until_s=10.0), late], slots=12)
    core.start(0.0)
    assert core.pool.entitlements["late"].state is EntitlementState.PENDING
    assert isinstance(arrive(core, "b", 1.0), Forward)
    core.handle(Tick(), 5.0)
    refusal = arrive(core, "late", 6.0)
    assert (refusal.reason, refusal.status, refusal.retry_after_s) == (Reason.NOT_BOUND, 429, 5.0)
    assert core.pool.entitlements["late"].state is DEGRADED
    core.handle(Tick(), 10.0)
    assert core.pool.entitlements["b"].state is EntitlementState.EXPIRED
    assert isinstance(arrive(core, "late", 10.0), Forward)
    core.handle(CapacityChanged(pool(4), (0,)), 11.0)
    assert {each.state for name, each in core.pool.entitlements.items() if name != "b"} == {BOUND}
    core.handle(Tick(), 20.0)
    assert isinstance(arrive(core, "late", 20.0), Refuse)
    promised = {each.metric: each.value for each in core.gauges(20.0) if each.metric.startswith("promised")}
    assert promised == {"promised_slots": 6}


@pytest.mark.parametrize("binding", ["in-force", "leased"])
def test_binding_is_one_field(binding: Any) -> None:
    core = make_core(TokenPool(binding=binding), [spec("a", G, 6), spec("b", G, 6)], slots=8)
    core.start(0.0)
    assert core.pool.entitlements["b"].state is (BOUND if binding == "in-force" else DEGRADED)
    assert math.isfinite(sum(each.value for each in core.gauges(0.0)))
