"""The gateway's books in numbers that were worked out on paper."""

from __future__ import annotations

from typing import Any

import pytest
from parity.tiny_world import make_core

from policies.api import (
    Adopted,
    Arrived,
    CallMeAt,
    Cancelled,
    CapacityChanged,
    EntitlementSpec,
    EntitlementState,
    Event,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Hold,
    PoolCapacity,
    PoolLedger,
    Progress,
    Reason,
    Refuse,
    RequestView,
    Resources,
    Scale,
    ServiceClass,
    Tick,
)
from policies.cap import Cap
from policies.core import NO_CAPACITY_RETRY_S, GatewayCore
from policies.invariants import Checker
from policies.no_control import NoControl, NoControlPolicy
from policies.routing import LeastOutstandingTokensRouter
from policies.token_pool.params import TokenPool

E = EntitlementSpec(name="e", tenant="t", service_class=ServiceClass.ELASTIC)


def ask(name: str, prompt: int = 10, most: int | None = 20, attempt: int = 1, entitlement: str = "e") -> Arrived:
    return Arrived(RequestView(name, entitlement, "t", prompt, most, attempt))


def core(**changes: Any) -> GatewayCore:
    given: dict[str, Any] = {
        "entitlements": [E], "capacity": PoolCapacity(2, 8), "replica_ids": [0, 1], "policy": NoControlPolicy(),
        "router": LeastOutstandingTokensRouter(),
    }  # fmt: skip
    made = GatewayCore(**given | changes)
    made.start(0.0)
    return made


def test_every_refusal_of_the_core_in_full() -> None:
    late = EntitlementSpec(name="l", tenant="t", service_class=ServiceClass.SPOT, from_s=10.0, until_s=20.0)
    made = core(entitlements=[E, late], max_context_tokens=30)
    assert made.handle(ask("a", 11, 20), 1.0) == (Refuse("a", Reason.CONTEXT_LENGTH, 400, None, 31, 30),)
    assert made.handle(ask("b", entitlement="l"), 4.0) == (Refuse("b", Reason.NOT_BOUND, 403, 6.0, 1, 0),)
    assert isinstance(made.handle(ask("c", entitlement="l"), 10.0)[-1], Forward)
    assert made.handle(ask("d", entitlement="l"), 20.0)[-1] == Refuse("d", Reason.NOT_BOUND, 403, None, 1, 0)
    made.handle(CapacityChanged(PoolCapacity(0, 0), ()), 21.0)
    assert made.handle(ask("f"), 21.0) == (Refuse("f", Reason.NO_CAPACITY, 503, NO_CAPACITY_RETRY_S, 1, 0),)
    assert (made.pool.entitlements["e"].refused, made.pool.entitlements["l"].refused) == (2, 2)


def test_a_degraded_entitlement_is_told_429_and_when_to_ask_again() -> None:
    three = Resources(None, None, 3)
    elastic = ServiceClass.ELASTIC
    specs = [EntitlementSpec(name=name, tenant="t", service_class=elastic, baseline=three) for name in "ab"]
    made = make_core(TokenPool(), specs, slots=4)
    made.start(0.0)
    assert made.pool.entitlements["b"].state is EntitlementState.DEGRADED
    said = made.handle(ask("x", entitlement="b"), 1.0)
    assert said == (Refuse("x", Reason.NOT_BOUND, 429, 5.0, 1, 0),)


def test_moving_means_of_service_times() -> None:
    made = core(service_smoothing=0.75)
    ledger = made.pool.entitlements["e"]
    for number, (began_s, ended_s) in enumerate(((0.0, 4.0), (5.0, 13.0))):
        made.handle(ask(f"r{number}"), began_s)
        made.handle(Finished(f"r{number}", 5), ended_s)
    assert ledger.mean_service_s == made.pool.mean_service_s == 4 + 0.25 * (8 - 4)


def test_waits_for_first_tokens_add_up() -> None:
    made = core()
    made.handle(ask("a"), 1.0)
    made.handle(ask("b"), 2.0)
    made.handle(FirstToken("a"), 1.5)
    made.handle(FirstToken("a"), 1.75)  # said twice, counted once
    made.handle(FirstToken("b"), 4.0)
    assert (made.pool.first_tokens, made.pool.waited_s) == (2, 2.5)
    made.handle(FirstToken("c"), 5.0)
    assert made.late_events == 1


def test_work_is_credited_once_however_it_becomes_known() -> None:
    made = core()
    ledger = made.pool.entitlements["e"]
    made.handle(ask("a", 10, 20), 0.0)
    made.handle(Progress("a", 5), 1.0)  # the prompt must be done
    assert ledger.worked_tokens == 15
    made.handle(Progress("a", 5), 1.1)
    made.handle(Progress("a", 3), 1.2)  # overtaken
    assert ledger.worked_tokens == 15
    made.handle(FirstToken("a"), 1.3)
    made.handle(Finished("a", 8, 0, 12), 2.0)  # the upstream counts 12 prompt tokens, not 10
    assert ledger.worked_tokens == 20
    made.handle(ask("b", 10, 20), 3.0)
    made.handle(Finished("b", 0), 4.0)  # in one piece, with nothing in it: the prompt was worked
    assert ledger.worked_tokens == 30
    made.handle(ask("c", 10, 20), 5.0)
    made.handle(Cancelled("c", 0), 6.0)  # nothing came back: nobody knows of any work
    assert ledger.worked_tokens == 30


def test_demand_counts_first_attempts_alone() -> None:
    made = core(default_max_output_tokens=7)
    ledger = made.pool.entitlements["e"]
    made.handle(ask("a", 10, None), 0.0)
    made.handle(ask("b", 10, 20, attempt=2), 0.0)
    assert (ledger.demanded_tokens, ledger.demanded_requests, ledger.reserved_tokens) == (17, 1, 17 + 30)


def test_a_request_that_fails_moves_with_all_that_it_holds() -> None:
    made = core(retry_failed=True)
    assert made.handle(ask("a", 10, 20), 0.0) == (Forward("a", 0, 20),)
    assert made.handle(ask("b", 1, 2), 0.0) == (Forward("b", 1, 2),)
    assert made.handle(Failed("a", 4), 1.0) == (Forward("a", 1, 20),)
    assert [(book.in_flight, book.outstanding_tokens) for book in made.pool.replicas] == [(0, 0), (2, 33)]
    assert made.pool.entitlements["e"].worked_tokens == 14
    assert made.handle(Failed("a", 4), 2.0) == ()  # nowhere left
    assert [(book.in_flight, book.outstanding_tokens) for book in made.pool.replicas] == [(0, 0), (1, 3)]
    assert list(made.pool.in_flight) == ["b"]
    made.handle(CapacityChanged(PoolCapacity(1, 4), (1,)), 3.0)
    assert made.handle(Failed("b"), 4.0) == ()  # the other one is not ready


def test_what_runs_already_is_booked_and_nobody_is_asked() -> None:
    made = core()
    running = RequestView("a", "e", "t", 10, None)
    assert made.handle(Adopted(running, 5, 20, -3.0, True, 4), 1.0) == ()
    flight = made.pool.in_flight["a"]
    assert (flight.reserved_tokens, flight.forwarded_s, flight.output_tokens) == (30, -3.0, 4)
    assert [book.replica_id for book in made.pool.replicas] == [0, 1, 5]
    assert [book.ready for book in made.pool.replicas] == [True, True, False]
    assert made.handle(Adopted(running, 5, 20, -3.0, True, 4), 1.0) == ()
    assert made.late_events == 1
    made.handle(Finished("a", 9), 2.0)
    assert made.pool.entitlements["e"].worked_tokens == 5  # from the fifth on: the rest was another's to count
    with pytest.raises(KeyError, match="which this pool lacks"):
        made.handle(Adopted(RequestView("b", "nobody", "t", 1, 1), 0, 1, 0.0, False, 0), 3.0)


class Ups:
    """Wants one more replica at each look."""

    every_s = 4.0
    wants_progress = wants_reports = False

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def replicas(self, pool: PoolLedger, wanted: int, now_s: float) -> int:
        self.asked.append((wanted, now_s))
        return min(4, wanted + 1)


def test_the_autoscaler_is_asked_at_multiples_of_its_period() -> None:
    scaler = Ups()
    made = GatewayCore(
        entitlements=[E], capacity=PoolCapacity(2, 8), replica_ids=[0, 1], policy=NoControlPolicy(),
        router=LeastOutstandingTokensRouter(), scaler=scaler,
    )
    assert made.start(1.0) == (CallMeAt(5.0),)
    assert made.handle(Tick(), 5.0) == (Scale(3), CallMeAt(9.0))
    assert made.handle(Tick(), 7.0) == (CallMeAt(9.0),)  # early
    assert made.handle(Tick(), 14.0) == (Scale(4), CallMeAt(17.0))  # one look was slept through
    assert made.handle(Tick(), 17.0) == (CallMeAt(21.0),)  # as many as before: nothing is said
    assert scaler.asked == [(2, 5.0), (3, 14.0), (4, 17.0)]
    assert made.replicas_wanted == 4


def test_whoever_is_held_and_leaves_is_no_late_event() -> None:
    made = make_core(Cap(max_in_flight_per_replica=1, queue_requests=5), [E], slots=1)
    made.start(0.0)
    assert isinstance(made.handle(ask("a"), 0.0)[0], Forward)
    assert isinstance(made.handle(ask("b", 3, 4), 0.0)[0], Hold)
    shown = {each.metric: each.value for each in made.gauges(0.0) if each.scope == "pool"}
    assert (shown["held"], shown["held_tokens"], shown["in_flight"]) == (1, 7, 1)
    assert made.handle(Cancelled("b", 0), 1.0) == ()
    assert (made.withdrawn, made.late_events, len(made.held)) == (1, 0, 0)
    assert made.handle(Cancelled("b", 0), 1.0) == ()
    assert (made.withdrawn, made.late_events) == (1, 1)
    assert isinstance(made.handle(ask("c"), 2.0)[0], Hold)
    assert made.handle(Failed("a"), 3.0) == (Forward("c", 0, 20),)  # a failure makes room too


@pytest.mark.parametrize("end", [Finished("b", 9), Failed("b")])
def test_whoever_is_held_and_ends_elsewhere_is_held_no_longer(end: Event) -> None:
    """A gateway out of the shared state's reach lets in what the pool holds; its end comes once the gateway is back."""
    made = make_core(Cap(max_in_flight_per_replica=1, queue_requests=5), [E], slots=1)
    checker = Checker()
    made.start(0.0)
    checker.begin(made)
    for at_s, event in enumerate((ask("a"), ask("b"), end, Finished("a", 1))):
        said = made.handle(event, float(at_s))
        checker.after(made, event, float(at_s), said)
    assert said == ()  # nobody is let in who has gone
    assert (made.withdrawn, made.late_events, len(made.held), len(made.pool.in_flight)) == (1, 0, 0, 0)
    checker.check_all(made, 5.0)


def test_two_promises_of_one_name_and_an_impossible_average_are_refused() -> None:
    for changes, problem in (
        ({"entitlements": [E, E]}, "share a name"), ({"replica_ids": [1, 1]}, "share an id"),
        ({"service_smoothing": 1.0}, "give a share"), ({"service_smoothing": -0.1}, "give a share"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            core(**changes)
    assert core(service_smoothing=0.0).call_me_at_s == float("inf")
    assert NoControl().kind == "none"
