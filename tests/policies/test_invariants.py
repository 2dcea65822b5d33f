"""The checker beside the core: it is silent where all is well, and says each fault that is planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from parity.tiny_world import make_core

from policies.api import (
    Arrived,
    EntitlementSpec,
    EntitlementState,
    Evict,
    Failed,
    Finished,
    Forward,
    Hold,
    Reason,
    Refuse,
    RequestView,
    Resources,
    ServiceClass,
    Tick,
)
from policies.cap import Cap
from policies.core import GatewayCore
from policies.invariants import INVARIANTS, CheckedCore, Checker, InvariantError, Violation
from policies.sharing import Peers, exchange
from policies.token_pool.params import TokenPool

SPECS = [
    EntitlementSpec(name="e", tenant="t", service_class=ServiceClass.ELASTIC, limit=Resources(None, None, 3)),
    EntitlementSpec(name="p", tenant="t", service_class=ServiceClass.PREEMPTIBLE),
]


def request(name: str, entitlement: str = "e") -> RequestView:
    return RequestView(name, entitlement, "t", 10, 20)


class Bench:
    """A core with two requests in flight and one held or not, and whatever the checker says of it."""

    def __init__(self, params: Any = None, slots: int = 2) -> None:
        self.found: list[Violation] = []
        params = Cap(max_in_flight_per_replica=None) if params is None else params
        self.core: GatewayCore = make_core(params, SPECS, slots=slots, replicas=2)
        self.checker = Checker(self.found.append, every_events=1)
        self.core.start(0.0)
        self.checker.begin(self.core, 0.0)
        for name in ("a", "b", "c"):
            self.tell(Arrived(request(name)), 1.0)
        assert not self.found

    def tell(self, event: Any, now_s: float = 2.0, lie: Callable[[Any], Any] = lambda said: said) -> None:
        said = self.core.handle(event, now_s)
        self.checker.after(self.core, event, now_s, lie(said))

    def broken(self) -> set[str]:
        return {each.invariant for each in self.found}


def plant(fault: str, bench: Bench) -> None:
    core, pool = bench.core, bench.core.pool
    book, flight = pool.entitlements["e"], pool.in_flight["a"]
    if fault == "slots of an entitlement":
        book.in_flight += 1
    elif fault == "reserved tokens of an entitlement":
        book.reserved_tokens -= 5
    elif fault == "admitted":
        book.admitted += 1
    elif fault == "below nothing":
        book.worked_tokens = -1
    elif fault == "demand below nothing":
        book.demanded_tokens = -1
    elif fault == "no number":
        pool.mean_service_s = float("nan")
    elif fault == "replica":
        pool.replicas[0].in_flight += 1
    elif fault == "outstanding":
        pool.replicas[0].outstanding_tokens += 1
    elif fault == "lost flight":
        pool.in_flight.pop("a")
    elif fault == "foreign ledger":
        flight.ledger = pool.entitlements["p"]
    elif fault == "reservation":
        flight.reserved_tokens += 1
    elif fault == "lost held":
        core._held.clear()
    elif fault == "unbound":
        book.state = EntitlementState.DEGRADED
    elif fault == "withdrawn":
        core.withdrawn += 1
    elif fault == "policy":
        core.policy.room.reserved_tokens += 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fault", "invariant"),
    [
        ("slots of an entitlement", "entitlement"), ("reserved tokens of an entitlement", "entitlement"),
        ("admitted", "entitlement"), ("below nothing", "non-negative"), ("demand below nothing", "non-negative"),
        ("no number", "non-negative"), ("replica", "replica"), ("outstanding", "replica"), ("lost flight", "requests"),
        ("foreign ledger", "requests"), ("reservation", "requests"), ("lost held", "requests"), ("unbound", "bound"),
        ("withdrawn", "one-end"), ("policy", "policy"),
    ],
)
def test_a_fault_in_the_books_is_found(fault: str, invariant: str) -> None:
    bench = Bench()
    assert len(bench.core.held) == 1
    plant(fault, bench)
    bench.checker.check_all(bench.core, 2.0)
    assert invariant in bench.broken()
    assert all(each.invariant in INVARIANTS and str(each) for each in bench.found)


FORWARD = Forward("x", 0, 20)
LIES: dict[str, tuple[Any, Callable[[Any], Any], str]] = {
    "nothing is said": (Arrived(request("x", "p")), lambda _: (), "one-answer"),
    "two answers": (Arrived(request("x", "p")), lambda _: (FORWARD, FORWARD), "one-answer"),
    "let in and refused": (
        Arrived(request("x", "p")), lambda _: (FORWARD, Refuse("x", Reason.TOKENS, 429, 1, 2, 1)), "one-answer"
    ),
    "held twice": (Arrived(request("x", "p")), lambda said: (*said, Hold("x", Reason.POOL_FULL)), "one-answer"),
    "somebody else is forwarded": (Tick(), lambda _: (Forward("nobody", 0, 1),), "one-answer"),
    "evicted and not in flight": (Tick(), lambda _: (Evict("nobody", Reason.PREEMPTED),), "one-end"),
    "ended twice": (Finished("a", 5), lambda said: (*said, Evict("a", Reason.PREEMPTED)), "one-end"),
    "a replica that is not there": (Failed("a", 5), lambda _: (Forward("c", 9, 20),), "ready"),
}


@pytest.mark.parametrize("name", LIES)
def test_an_instruction_that_should_not_be_is_found(name: str) -> None:
    event, lie, invariant = LIES[name]
    bench = Bench()
    bench.tell(event, 2.0, lie)
    assert invariant in bench.broken()


def test_time_that_goes_back_is_found() -> None:
    bench = Bench()
    bench.tell(Tick(), 0.5)
    assert "clock" in bench.broken()


def test_more_than_was_granted_is_found() -> None:
    bench = Bench(TokenPool(max_request_tokens=100), slots=9)
    bench.core.policy._accounts["e"].limit_slots = 2  # type: ignore[attr-defined]
    bench.core._decide = lambda *_: __import__("policies.api").api.ADMIT
    bench.tell(Arrived(request("x")))
    assert bench.broken() == {"granted"}


def test_an_event_is_looked_at_even_between_two_looks_at_everything() -> None:
    bench = Bench()
    bench.checker._every = 10**9
    bench.core.pool.entitlements["e"].in_flight += 1
    bench.tell(Tick())
    assert not bench.found  # nothing touched it
    bench.tell(Finished("a", 3))
    assert "entitlement" in bench.broken()


def test_a_run_stops_at_the_first_violation_and_says_where() -> None:
    core = CheckedCore(make_core(Cap(), SPECS), Checker(every_events=1))
    core.start(0.0)
    core.handle(Arrived(request("a")), 0.0)
    core.pool.entitlements["e"].reserved_tokens += 7
    with pytest.raises(InvariantError, match=r"after Finished a: reserved_tokens of e is 7, expected 0"):
        core.handle(Finished("a", 1), 1.0)


def test_what_others_have_in_flight_is_part_of_the_books() -> None:
    cores = [make_core(TokenPool(), SPECS, slots=12, replicas=2) for _ in range(2)]
    found: list[Violation] = []
    peers, checkers = [], []
    for core in cores:
        core.start(0.0)
        peers.append(Peers(core.pool, core.policy))
        checkers.append(Checker(found.append, every_events=1))
        checkers[-1].peers = peers[-1]
        checkers[-1].begin(core, 0.0)
    for number in range(4):
        event = Arrived(request(f"r{number}", "p"))
        checkers[0].after(cores[0], event, 1.0, cores[0].handle(event, 1.0))
    exchange(peers, 1.0)
    event = Arrived(request("x", "p"))
    checkers[1].after(cores[1], event, 2.0, cores[1].handle(event, 2.0))
    assert cores[1].pool.entitlements["p"].in_flight == 5
    assert not found
