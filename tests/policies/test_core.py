from __future__ import annotations

from collections.abc import Iterator

import pytest
from parity.tiny_world import make_core

from policies.api import (
    ADMIT,
    Admit,
    Arrived,
    CallMeAt,
    Cancelled,
    CapacityChanged,
    Deny,
    EntitlementSpec,
    EntitlementState,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Hold,
    PoolCapacity,
    PoolLedger,
    Progress,
    Queue,
    Reason,
    Refuse,
    ReplicaReport,
    RequestView,
    ServiceClass,
    Tick,
    Verdict,
)
from policies.core import GatewayCore
from policies.no_control import NoControl, NoControlPolicy
from policies.routing import LeastOutstandingTokensRouter

A = EntitlementSpec(name="a", tenant="t", service_class=ServiceClass.ELASTIC)
B = EntitlementSpec(name="b", tenant="t", service_class=ServiceClass.SPOT, from_s=10.0, until_s=20.0)


def ask(name: str, entitlement: str = "a", prompt: int = 10, most: int | None = 20, attempt: int = 1) -> Arrived:
    return Arrived(RequestView(name, entitlement, "t", prompt, most, attempt))


class OneAtATime(NoControlPolicy):
    """Holds what comes while something is in flight; evicts where the request says so by its priority."""

    tick_s = 2.5

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self.held: dict[str, RequestView] = {}

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        if request.priority > 0 and not pool.in_flight:
            return Deny(Reason.POOL_FULL, 1, 0, None)
        if request.priority < 0:
            return Admit(tuple(pool.in_flight))
        return Queue(Reason.POOL_FULL) if pool.in_flight else ADMIT

    def on_held(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> None:
        self.held[request.request_id] = request

    def on_withdrawn(self, request_id: str, now_s: float) -> None:
        del self.held[request_id]

    def dispatch(self, pool: PoolLedger, now_s: float) -> Iterator[tuple[str, Verdict]]:
        while self.held and pool.capacity.ready_replicas:
            request_id, request = next(iter(self.held.items()))
            verdict = self.decide(request, 1, pool, now_s)
            if isinstance(verdict, Queue):
                return
            del self.held[request_id]
            yield request_id, verdict

    def on_ended(self, flight, pool, now_s):  # type: ignore[no-untyped-def]
        assert flight.request.request_id not in pool.in_flight
        self.calls.append((f"ended {flight.request.request_id} after {flight.output_tokens}", now_s))

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        self.calls.append(("tick", now_s))


def one_at_a_time(*specs: EntitlementSpec) -> tuple[GatewayCore, OneAtATime]:
    policy = OneAtATime()
    core = GatewayCore(
        entitlements=specs or (A,), capacity=PoolCapacity(2, 8), replica_ids=[5, 3], policy=policy,
        router=LeastOutstandingTokensRouter(),
    )
    core.start(0.0)
    return core, policy


def test_the_books_of_one_request() -> None:
    core = make_core(NoControl(), [A])
    assert core.start(0.0) == ()
    assert core.handle(ask("x"), 1.0) == (Forward("x", 0, 20),)
    ledger, replica = core.pool.entitlements["a"], core.pool.replicas[0]
    assert (ledger.in_flight, ledger.reserved_tokens, ledger.demanded_tokens, ledger.worked_tokens) == (1, 30, 30, 0)
    assert (replica.in_flight, replica.outstanding_tokens) == (1, 30)
    core.handle(FirstToken("x"), 2.0)
    core.handle(FirstToken("x"), 2.0)
    assert ledger.worked_tokens == 10
    core.handle(Progress("x", 5), 3.0)
    core.handle(Progress("x", 4), 3.0)  # a report overtaken by another
    assert ledger.worked_tokens == 15
    assert core.handle(Finished("x", 12), 5.0) == ()
    assert ledger.worked_tokens == 22
    assert (ledger.in_flight, ledger.reserved_tokens, replica.in_flight, replica.outstanding_tokens) == (0, 0, 0, 0)
    assert ledger.mean_service_s == core.pool.mean_service_s == 4.0
    core.handle(ask("y", most=None), 10.0)
    assert ledger.reserved_tokens == 10 + 256
    core.handle(Finished("y", 7), 24.0)
    assert ledger.mean_service_s == pytest.approx(0.9 * 4 + 0.1 * 14)
    assert ledger.worked_tokens == 22 + 17
    core.handle(ask("z", attempt=2), 30.0)
    assert ledger.demanded_tokens == 30 + 266  # a retry is not new demand
    core.handle(Failed("z"), 31.0)
    assert ledger.worked_tokens == 22 + 17  # nothing came back: no work is known
    assert core.late_events == 0
    assert [core.handle(late("z"), 31.0) for late in (FirstToken, Failed, Cancelled)] == [(), (), ()]
    assert core.handle(Progress("z", 1), 31.0) == core.handle(Finished("z", 1), 31.0) == ()
    assert core.late_events == 5


def test_an_estimated_prompt_is_settled_by_the_upstreams_count() -> None:
    core = make_core(NoControl(), [A])
    core.start(0.0)
    ledger, replica = core.pool.entitlements["a"], core.pool.replicas[0]
    core.handle(ask("x"), 1.0)
    core.handle(FirstToken("x"), 2.0)
    core.handle(Finished("x", 12, prompt_tokens=7), 5.0)
    assert ledger.worked_tokens == 7 + 12
    core.handle(ask("y"), 6.0)
    core.handle(Finished("y", 12, prompt_tokens=15), 7.0)  # in one piece
    assert ledger.worked_tokens == 19 + 15 + 12
    assert (ledger.reserved_tokens, replica.outstanding_tokens) == (0, 0)


def test_what_no_policy_could_let_in_is_refused_in_order() -> None:
    core = make_core(NoControl(), [A, B], max_context_tokens=30)
    assert core.start(0.0) == (CallMeAt(10.0),)
    core.handle(CapacityChanged(PoolCapacity(0, 0), ()), 1.0)
    assert core.handle(ask("p", "b", 99), 4.0) == (Refuse("p", Reason.NOT_BOUND, 403, 6.0, 1, 0),)
    (refusal,) = core.handle(ask("q", "a", 99), 4.0)
    assert (refusal.reason, refusal.status, refusal.retry_after_s) == (Reason.NO_CAPACITY, 503, 5.0)
    core.handle(CapacityChanged(PoolCapacity(1, 8), (0,)), 5.0)
    assert core.handle(ask("q", "a", 11), 5.0) == (Refuse("q", Reason.CONTEXT_LENGTH, 400, None, 31, 30),)
    assert core.handle(ask("q"), 5.0) == (Forward("q", 0, 20),)
    assert core.pool.entitlements["a"].refused == 2
    with pytest.raises(KeyError, match="names entitlement 'nobody'"):
        core.handle(ask("n", "nobody"), 5.0)
    with pytest.raises(ValueError, match="in flight or held"):
        core.handle(ask("q"), 5.0)


def test_states_follow_time_even_where_an_arrival_overtakes_the_tick() -> None:
    core = make_core(NoControl(), [B])
    core.start(0.0)
    ledger = core.pool.entitlements["b"]
    assert ledger.state is EntitlementState.PENDING
    assert core.handle(ask("x", "b"), 10.0) == (Forward("x", 0, 20),)
    assert core.handle(Tick(), 10.0) == (CallMeAt(20.0),)
    assert core.handle(Tick(), 19.9999) == (CallMeAt(20.0),)  # early
    assert core.handle(Tick(), 20.0) == ()
    assert ledger.state is EntitlementState.EXPIRED
    assert core.handle(ask("y", "b"), 20.0) == (Refuse("y", Reason.NOT_BOUND, 403, None, 1, 0),)


def test_ticks_are_multiples_of_the_start_however_late_they_come() -> None:
    core, policy = one_at_a_time(EntitlementSpec(name="a", tenant="t", service_class=ServiceClass.SPOT, until_s=5.0))
    assert core.start(0.1) == (CallMeAt(2.6),)
    assert core.handle(Tick(), 2.75) == (CallMeAt(5.0),)
    assert core.handle(Tick(), 5.0) == (CallMeAt(0.1 + 2 * 2.5),)
    assert core.handle(Tick(), 13.0) == (CallMeAt(0.1 + 6 * 2.5),)  # the ticks that were slept through are one
    assert [call for call in policy.calls if call[0] == "tick"] == [("tick", 2.75), ("tick", 13.0)]


def test_held_requests_wait_leave_and_are_released_in_order() -> None:
    core, _ = one_at_a_time()
    assert core.handle(ask("x"), 0.0) == (Forward("x", 3, 20),)
    assert [core.handle(ask(name), 0.5) for name in "vwyz"] == [(Hold(name, Reason.POOL_FULL),) for name in "vwyz"]
    with pytest.raises(ValueError, match="in flight or held"):
        core.handle(ask("w"), 0.5)
    core.handle(Cancelled("v"), 0.6)
    assert core.withdrawn == 1
    assert core.handle(Finished("x", 1), 1.0) == (Forward("w", 3, 20),)
    core.handle(CapacityChanged(PoolCapacity(0, 0), ()), 1.5)
    assert core.handle(Failed("w"), 2.0) == ()  # nowhere to go, and no reason to turn away who waited
    assert core.handle(CapacityChanged(PoolCapacity(1, 4), (5,)), 3.0) == (Forward("y", 5, 20),)
    assert core.handle(Cancelled("y"), 4.0) == (Forward("z", 5, 20),)


def test_a_held_request_can_be_refused_when_it_is_judged_again() -> None:
    core, _ = one_at_a_time()
    core.handle(ask("x"), 0.0)
    unlucky = Arrived(RequestView("y", "a", "t", 1, 1, priority=1))
    assert core.handle(unlucky, 1.0) == (Hold("y", Reason.POOL_FULL),)
    assert core.handle(Finished("x", 1), 2.0) == (Refuse("y", Reason.POOL_FULL, 429, None, 1, 0),)
    assert core.handle(Tick(), 2.5) == (CallMeAt(5.0),)
    assert core.handle(ask("y"), 3.0) == (Forward("y", 3, 20),)


def test_who_is_held_when_its_entitlement_ends_is_turned_away() -> None:
    core, _ = one_at_a_time(A, EntitlementSpec(name="b", tenant="t", service_class=ServiceClass.SPOT, until_s=3.0))
    core.handle(ask("x"), 0.0)
    core.handle(ask("y", "b"), 1.0)
    assert core.handle(Tick(), 3.0) == (Refuse("y", Reason.NOT_BOUND, 403, None, 1, 0), CallMeAt(5.0))
    assert core.pool.entitlements["b"].refused == 1


def test_eviction_closes_the_books_before_the_newcomer_is_forwarded() -> None:
    core, policy = one_at_a_time()
    core.handle(ask("x"), 0.0)
    core.handle(Progress("x", 6), 1.0)
    urgent = Arrived(RequestView("u", "a", "t", 1, 1, priority=-1))
    assert core.handle(urgent, 2.0) == (Evict("x", Reason.PREEMPTED), Forward("u", 3, 1))
    assert policy.calls == [("ended x after 6", 2.0)]
    assert core.pool.entitlements["a"].worked_tokens == 16
    assert core.pool.entitlements["a"].reserved_tokens == 2
    assert core.handle(Finished("x", 9), 2.1) == ()
    assert core.late_events == 1


def test_reports_gauges_and_replicas_that_appear() -> None:
    core, _ = one_at_a_time()
    report = ReplicaReport(5, 0.5, 3, 1, 0.4)
    assert core.handle(report, 1.0) == ()
    assert [replica.report for replica in core.pool.replicas] == [None, report]
    core.handle(CapacityChanged(PoolCapacity(2, 9), (4, 5)), 2.0)
    assert [(each.replica_id, each.ready) for each in core.pool.replicas] == [(3, False), (4, True), (5, True)]
    core.handle(ask("x"), 2.0)
    shown = {(each.scope, each.name, each.metric): each.value for each in core.gauges(2.0)}
    assert shown["pool", "pool", "capacity_slots"] == 9
    assert shown["entitlement", "a", "in_flight"] == shown["replica", "4", "in_flight"] == 1


@pytest.mark.parametrize(
    ("changed", "problem"),
    [({"entitlements": [A, A]}, "share a name"), ({"replica_ids": [1, 1]}, "share an id"),
     ({"service_smoothing": 1.0}, "service_smoothing is 1.0")],
)  # fmt: skip
def test_impossible_gateways_are_refused(changed: dict[str, object], problem: str) -> None:
    given = {
        "entitlements": [A], "capacity": PoolCapacity(1, 1), "replica_ids": [0], "policy": NoControlPolicy(),
        "router": LeastOutstandingTokensRouter(),
    }
    with pytest.raises(ValueError, match=problem):
        GatewayCore(**(given | changed))  # type: ignore[arg-type]


def test_what_has_reached_its_client_in_part_goes_nowhere_else() -> None:
    core = GatewayCore(
        entitlements=[A], capacity=PoolCapacity(2, 8), replica_ids=[0, 1], policy=NoControlPolicy(),
        router=LeastOutstandingTokensRouter(), retry_failed=True,
    )
    core.start(0.0)
    assert core.handle(ask("x"), 0.0) == (Forward("x", 0, 20),)
    assert core.handle(Failed("x"), 1.0) == (Forward("x", 1, 20),)
    assert core.handle(Failed("x", 3, final=True), 2.0) == ()
    assert not core.pool.in_flight
