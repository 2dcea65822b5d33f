from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from parity.tiny_world import make_core

from policies import snapshot
from policies.api import (
    Arrived,
    EntitlementSpec,
    Finished,
    Forward,
    PoolCapacity,
    Refuse,
    RequestView,
    Resources,
    ServiceClass,
    Tick,
)
from policies.core import GatewayCore
from policies.handover import hand_over, leaving
from policies.no_control import NoControl
from policies.rate_limit import RateLimit
from policies.token_pool.params import TokenPool

SPECS = [
    EntitlementSpec(
        name="kept", tenant="a", service_class=ServiceClass.ELASTIC, baseline=Resources(60.0, slots=3)
    ),
    EntitlementSpec(name="gone", tenant="b", service_class=ServiceClass.SPOT, limit=Resources(slots=4)),
]
NEW = EntitlementSpec(name="new", tenant="c", service_class=ServiceClass.GUARANTEED, baseline=Resources(slots=2))
POOL = TokenPool(tick_s=1.0, max_request_tokens=100)


def core(params: object, specs: list[EntitlementSpec]) -> GatewayCore:
    return make_core(params, specs, slots=8, replicas=2, tokens_per_s=500.0)


def asks(name: str, entitlement: str) -> Arrived:
    return Arrived(RequestView(name, entitlement, "t", 10, 20))


@pytest.mark.parametrize("before", [NoControl(), POOL, RateLimit(requests_per_min=60, window="sliding")])
@pytest.mark.parametrize("after", [NoControl(), POOL, RateLimit(requests_per_min=60, tokens_per_min=9000)])
def test_what_is_in_flight_stays_in_the_books_and_ends_in_them(before: object, after: object) -> None:
    old = core(before, SPECS)
    old.start(0.0)
    for number in range(2):
        assert isinstance(old.handle(asks(f"k{number}", "kept"), 0.5)[0], Forward)
        old.handle(asks(f"g{number}", "gone"), 0.5)
    left = leaving(old, ["kept", "new"], 2.0)
    assert [(spec.name, spec.until_s) for spec in left] == [("gone", 2.0)]
    new = core(after, [SPECS[0], NEW, *left])
    said = hand_over(old, new, PoolCapacity(2, 10, 500.0), 2.0)
    assert not any(isinstance(step, Forward | Refuse) for step in said)
    assert list(new.pool.in_flight) == ["k0", "g0", "k1", "g1"]
    assert new.pool.capacity.slots == 10
    assert isinstance(new.handle(asks("late", "gone"), 2.5)[0], Refuse)
    assert isinstance(new.handle(asks("n0", "new"), 2.5)[0], Forward)
    for name in ("k0", "k1", "g0", "g1", "n0"):
        new.handle(Finished(name, 5), 3.0)
    assert all((book.in_flight, book.reserved_tokens) == (0, 0) for book in new.pool.entitlements.values())
    assert all((book.in_flight, book.outstanding_tokens) == (0, 0) for book in new.pool.replicas)
    json.dumps(snapshot.take(new), allow_nan=False)


def test_debts_and_buckets_go_over() -> None:
    old = core(POOL, SPECS)
    old.start(0.0)
    old.handle(asks("k", "kept"), 0.1)
    for second in range(1, 6):
        old.handle(Tick(), float(second))
    before = old.policy._accounts["kept"]  # type: ignore[attr-defined]
    assert before.debt > 0
    new = core(replace(POOL, retry_jitter=0.0), [SPECS[0], NEW, *leaving(old, ["kept", "new"], 5.5)])
    hand_over(old, new, old.pool.capacity, 5.5)
    after = new.policy._accounts["kept"]  # type: ignore[attr-defined]
    assert (after.debt, after.burst) == (before.debt, before.burst)
    assert after.bucket.available(5.5) == min(after.bucket.depth, before.bucket.available(5.5))
    assert [spec.name for spec in leaving(old, ["kept"], 5.5)] == []


def test_the_same_handover_gives_the_same_core_everywhere() -> None:
    states = []
    for _ in range(2):
        old = core(POOL, SPECS)
        old.start(0.0)
        for number in range(20):
            old.handle(asks(f"r{number}", random.Random(number).choice(["kept", "gone"])), 0.1 * number)
        new = core(POOL, [SPECS[0], NEW, *leaving(old, ["kept", "new"], 3.0)])
        hand_over(old, new, old.pool.capacity, 3.0)
        states.append(json.dumps(snapshot.take(new)))
    assert states[0] == states[1]
