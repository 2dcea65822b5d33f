"""What the core's ledgers begin with, share out and pass on, in numbers that were worked out on paper."""

from __future__ import annotations

import random
from typing import Any

import pytest

from policies.api import (
    Arrived,
    Cancelled,
    CapacityChanged,
    Deny,
    EntitlementSpec,
    EntitlementState,
    Failed,
    Finished,
    Forward,
    Hold,
    PoolCapacity,
    Reason,
    Refuse,
    ReplicaReport,
    RequestView,
    ServiceClass,
    Tick,
)
from policies.cap import Cap, CapPolicy
from policies.core import GatewayCore
from policies.handover import hand_over, leaving, part_of
from policies.ledgers import EntitlementLedger, InFlight, PoolLedger, ReplicaLedger
from policies.no_control import NoControlPolicy
from policies.routing import LeastOutstandingTokensRouter

E = EntitlementSpec(name="e", tenant="t", service_class=ServiceClass.ELASTIC)


def ask(name: str, prompt: int = 10, most: int | None = 20, **more: Any) -> Arrived:
    return Arrived(RequestView(name, more.pop("entitlement", "e"), "t", prompt, most, **more))


def core(**changes: Any) -> GatewayCore:
    given: dict[str, Any] = {
        "entitlements": [E], "capacity": PoolCapacity(2, 8), "replica_ids": [0, 1], "policy": NoControlPolicy(),
        "router": LeastOutstandingTokensRouter(),
    }  # fmt: skip
    made = GatewayCore(**given | changes)
    made.start(0.0)
    return made


def capped(slots: int = 1, **changes: Any) -> GatewayCore:
    policy = CapPolicy(
        Cap(max_in_flight_per_replica=slots, queue_requests=9, timeout_s=None), entitlements=[E],
        kv_bytes_per_token=None, chance=random.Random(0),
    )  # fmt: skip
    return core(policy=policy, capacity=PoolCapacity(1, 4), replica_ids=[0], **changes)


def test_books_begin_with_nothing() -> None:
    book = EntitlementLedger(E, EntitlementState.BOUND)
    assert (book.in_flight, book.reserved_tokens, book.worked_tokens, book.demanded_tokens, book.demanded_requests,
            book.admitted, book.refused, book.mean_service_s) == (0, 0, 0, 0, 0, 0, 0, None)  # fmt: skip
    flight = InFlight(RequestView("r", "e", "t", 1, 1), book, 0, 0.0, 1, 2)
    assert (flight.prompt_credited, flight.output_tokens, flight.failed_at, flight.only_at, flight.cached_tokens,
            flight.counted_demand) == (False, 0, (), None, 0, False)  # fmt: skip
    replica = ReplicaLedger(3)
    assert (replica.ready, replica.in_flight, replica.outstanding_tokens, replica.report) == (True, 0, 0, None)
    pool = PoolLedger(PoolCapacity(1, 1), {}, [])
    assert (pool.mean_service_s, pool.first_tokens, pool.waited_s, pool.sequences_in_flight, pool.others_in_flight,
            pool.others_reserved_tokens, pool.recount) == (None, 0, 0.0, 0, 0, 0, None)  # fmt: skip
    assert pool.all_in_flight == 0
    pool.sequences_in_flight, pool.others_in_flight = 3, 4
    assert pool.all_in_flight == 7


def test_a_part_of_a_pool_by_hand() -> None:
    whole = PoolCapacity(4, 64, 4000.0, 8e9)
    assert part_of(whole, 1) == PoolCapacity(1, 16, 1000.0, 2e9)
    assert part_of(whole, 3, 60) == PoolCapacity(3, 48, 3000.0, 6e9)
    assert part_of(whole, 3, 48) == PoolCapacity(3, 48, 3000.0, 6e9)
    assert part_of(whole, 1, 12) == PoolCapacity(1, 12, 750.0, 2e9)  # three quarters of the slots, and of the rate
    assert part_of(PoolCapacity(3, 10), 1, 2) == PoolCapacity(1, 2)
    assert part_of(PoolCapacity(3, 10), 1) == PoolCapacity(1, 3)
    assert part_of(PoolCapacity(0, 0, 500.0, 8e9), 2) == PoolCapacity(2, 0, 0.0, 0.0)


def test_a_request_of_several_sequences_takes_and_gives_back_as_many() -> None:
    made = core()
    made.handle(ask("a", 10, 20, sequences=3), 0.0)
    book, replica = made.pool.entitlements["e"], made.pool.replicas[0]
    assert (made.pool.sequences_in_flight, book.in_flight, book.admitted, book.reserved_tokens) == (3, 3, 1, 30)
    assert (replica.in_flight, replica.outstanding_tokens) == (3, 30)
    assert book.demanded_requests == 3
    shown = {(g.scope, g.name, g.metric): g.value for g in made.gauges(0.0)}
    assert shown["pool", "pool", "in_flight"] == shown["entitlement", "e", "in_flight"] == 3
    assert (shown["replica", "0", "in_flight"], shown["replica", "1", "in_flight"]) == (3, 0)
    assert (shown["pool", "pool", "ready_replicas"], shown["pool", "pool", "capacity_slots"]) == (2, 8)
    made.handle(Finished("a", 4), 2.0)
    assert (made.pool.sequences_in_flight, book.in_flight, replica.in_flight, replica.outstanding_tokens) == (0,) * 4


@pytest.mark.parametrize("replicas", [3, 40])
def test_a_router_hears_of_every_change_of_the_replicas(replicas: int) -> None:
    """Against a look at each replica, whatever fails, comes back, is new, or gets lighter. 40 stand in a heap."""
    rng = random.Random(5)
    made = core(replica_ids=range(replicas), capacity=PoolCapacity(replicas, 9999), retry_failed=True)
    at_s, number, running = 0.0, 0, []
    for step in range(600):
        at_s += 0.01
        if step % 40 == 0:
            ready = tuple(i for i in range(replicas + step // 80) if rng.random() < 0.6) or (0,)
            made.handle(CapacityChanged(PoolCapacity(len(ready), 9999), ready), at_s)
            assert [book.replica_id for book in made.pool.replicas if book.ready] == list(ready)
            assert made.gauges(at_s)[1].value == len(ready)
        if running and rng.random() < 0.45:
            ended = running.pop(rng.randrange(len(running)))
            made.handle(rng.choice([Finished(ended, 3), Cancelled(ended, 1)]), at_s)
            continue
        least = min(
            (book for book in made.pool.replicas if book.ready), key=lambda b: (b.outstanding_tokens, b.replica_id)
        )
        number += 1
        (said,) = made.handle(ask(f"r{number}", rng.randrange(1, 60), rng.randrange(1, 60)), at_s)
        assert isinstance(said, Forward)
        assert said.replica_id == least.replica_id
        running.append(said.request_id)


class Above:
    """A limit above the entitlements that lets so many tokens in, and notes what it hears."""

    def __init__(self, most_tokens: int) -> None:
        self.left = most_tokens
        self.heard_of: list[str] = []

    def heard(self, request: RequestView, now_s: float) -> None:
        self.heard_of.append(request.request_id)

    def denies(self, request: RequestView, max_output_tokens: int, now_s: float) -> Deny | None:
        need = request.prompt_tokens + max_output_tokens
        return Deny(Reason.TOKENS, need, self.left, 7.0) if need > self.left else None

    def admitted(self, flight: InFlight, now_s: float) -> None:
        self.left -= flight.reserved_tokens

    def ended(self, flight: InFlight, now_s: float) -> None: ...


def test_who_waited_is_refused_where_others_used_what_is_above_it_meanwhile() -> None:
    above = Above(70)
    made = capped(hierarchy=above)
    assert made.handle(ask("a"), 0.0) == (Forward("a", 0, 20),)  # 40 left
    assert isinstance(made.handle(ask("b"), 1.0)[0], Hold)
    assert isinstance(made.handle(ask("c"), 1.0)[0], Hold)
    assert made.handle(ask("d", 30, 20), 1.5) == (Refuse("d", Reason.TOKENS, 429, 7.0, 50, 40),)  # not even held
    assert made.handle(Finished("a", 20), 2.0) == (Forward("b", 0, 20),)  # 10 left
    book = made.pool.entitlements["e"]
    assert (book.refused, book.demanded_tokens, book.demanded_requests) == (1, 90, 3)
    assert made.handle(Finished("b", 20), 3.0) == (Refuse("c", Reason.TOKENS, 429, 7.0, 30, 10),)
    assert not made.held
    # To the policy it was no demand: 90 tokens of three requests less 30 of one.
    assert (book.refused, book.demanded_tokens, book.demanded_requests) == (2, 60, 2)
    assert above.heard_of == ["a", "b", "c", "d"]


def test_a_report_and_a_tick_let_in_who_waits_only_where_there_is_room() -> None:
    made = capped()
    made.handle(ask("a"), 0.0)
    made.handle(ask("b"), 0.0)
    report = ReplicaReport(0, 1.0, 1, 0, 0.5)
    assert made.handle(report, 1.0) == ()
    assert made.pool.replicas[0].report is report
    assert made.handle(ReplicaReport(9, 1.0, 1, 0, 0.5), 1.0) == ()  # of nobody
    assert not [step for step in made.handle(Tick(), 1.0) if isinstance(step, Forward)]
    assert made.handle(Failed("a"), 2.0) == (Forward("b", 0, 20),)
    made.handle(ask("c"), 2.5)
    said = made.handle(CapacityChanged(PoolCapacity(2, 8), (0, 1)), 3.0)
    assert said == (Forward("c", 1, 20),)
    assert made.handle(CapacityChanged(PoolCapacity(1, 4), (1,)), 4.0) == ()
    assert [book.ready for book in made.pool.replicas] == [False, True]


def test_states_change_when_promises_begin_and_end() -> None:
    later = EntitlementSpec(name="l", tenant="t", service_class=ServiceClass.SPOT, from_s=10.0, until_s=20.0)
    made = core(entitlements=[E, later])
    book = made.pool.entitlements["l"]
    seen = []
    for at_s in (0.0, 9.5, 10.0, 19.5, 20.0):
        made.handle(Tick(), at_s)
        made.handle(ask(f"r{at_s}", entitlement="l"), at_s)
        seen.append(book.state)
    pending, bound, expired = EntitlementState.PENDING, EntitlementState.BOUND, EntitlementState.EXPIRED
    assert seen == [pending, pending, bound, bound, expired]
    assert (book.admitted, book.refused) == (2, 3)


def test_a_handover_keeps_times_reports_and_who_waits() -> None:
    gone = EntitlementSpec(name="g", tenant="t", service_class=ServiceClass.SPOT)
    old = capped(entitlements=[E, gone])
    old.handle(ask("x"), 0.0)
    old.handle(Finished("x", 1), 4.0)
    old.handle(ReplicaReport(0, 4.5, 2, 1, 0.25), 4.5)
    old.handle(ask("a"), 5.0)
    for name in ("e1", "g1"):
        assert isinstance(old.handle(ask(name, entitlement=name[0]), 6.0)[0], Hold)
    assert leaving(old, ["e"], 7.0) == []  # what is held is not in flight
    flight = old.pool.in_flight["a"]
    flight.failed_at, flight.only_at, flight.cached_tokens = (3,), (0, 3), 5
    new = GatewayCore(
        entitlements=[E], capacity=PoolCapacity(1, 4), replica_ids=[0], policy=NoControlPolicy(),
        router=LeastOutstandingTokensRouter(),
    )  # fmt: skip
    said = hand_over(old, new, PoolCapacity(1, 3), 7.0)
    assert said == [Forward("e1", 0, 20), Refuse("g1", Reason.NOT_BOUND, 403, None, 1, 0)]
    mine = new.pool.in_flight["a"]
    assert (mine.failed_at, mine.only_at, mine.cached_tokens, mine.forwarded_s) == ((3,), (0, 3), 5, 5.0)
    assert new.pool.mean_service_s == new.pool.entitlements["e"].mean_service_s == 4.0
    assert new.pool.capacity == PoolCapacity(1, 3)
    report = new.pool.replicas[0].report
    assert report is not None
    assert (report.waiting, report.kv_used_fraction) == (1, 0.25)


def test_a_denial_is_429_unless_it_says_otherwise() -> None:
    made = core(policy=NoControlPolicy(), hierarchy=Above(0))
    assert Deny(Reason.TOKENS, 1, 0, None).status == 429
    assert made.handle(ask("a"), 0.0) == (Refuse("a", Reason.TOKENS, 429, 7.0, 30, 0),)


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True), (False, False)])
def test_limits_above_are_inherited_where_there_are_some_before_and_after(before: bool, after: bool) -> None:
    class Heir(Above):
        def inherit(self, earlier: Above, now_s: float) -> None:
            self.heard_of.append(f"{earlier.left} at {now_s:g}")

    heir = Heir(500)
    old = core(hierarchy=Above(77) if before else None)
    new = GatewayCore(
        entitlements=[E], capacity=PoolCapacity(2, 8), replica_ids=[0, 1], policy=NoControlPolicy(),
        router=LeastOutstandingTokensRouter(), hierarchy=heir if after else None,  # type: ignore[arg-type]
    )  # fmt: skip
    hand_over(old, new, PoolCapacity(2, 8), 3.0)
    assert heir.heard_of == (["77 at 3"] if before and after else [])
