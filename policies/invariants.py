"""What must hold of a core at any time, checked beside it: in simulation, in tests and in production.

The checker keeps books of its own, made from events and instructions alone, and compares the core's with them: a cheap
look at what an event touched after every event, and a look at everything every so many. It reads the core and changes
nothing, so a run with it decides what a run without it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from policies.api import (
    Adopted,
    Arrived,
    Auditing,
    CallMeAt,
    Cancelled,
    EntitlementState,
    Event,
    Evict,
    Failed,
    Finished,
    Forward,
    Granting,
    Hold,
    InFlight,
    Instruction,
    Refuse,
    RequestView,
)
from policies.core import GatewayCore
from policies.sharing import Peers, Told

INVARIANTS: Mapping[str, str] = MappingProxyType({
    "clock": "time never goes back, and a tick is asked for in the future",
    "one-answer": "every arrival is forwarded, held or refused, and what is held is answered once",
    "one-end": "every request that was let in ends exactly once, and nothing ends that was not let in",
    "requests": "what the core has in flight and holds is what it was told and said",
    "entitlement": "slots, reserved tokens and counters of an entitlement are the sums over its requests",
    "replica": "requests and outstanding tokens of a replica are the sums over what is in flight there",
    "non-negative": "no count is below nothing, and none is infinite",
    "granted": "nobody is let in beyond the slots that the policy grants the entitlement",
    "ready": "nothing is forwarded to a replica that is not ready",
    "bound": "nothing is held for an entitlement that is not Bound",
    "policy": "the policy's own books agree with the core's",
    "hierarchy": "slots and charges of the tree above the entitlements are the sums over what is in flight",
})  # fmt: skip
"""What is checked, by name."""

_ROUNDING = 1e-6


class Violation(NamedTuple):
    """One invariant that did not hold, with where, what was found and what was expected."""

    invariant: str
    at_s: float
    after: str
    where: str
    found: object
    expected: object

    def __str__(self) -> str:
        return (
            f"invariant {self.invariant} broken at {self.at_s:.6f} s after {self.after}: {self.where} is {self.found}, "
            f"expected {self.expected} ({INVARIANTS[self.invariant]})"
        )


class InvariantError(AssertionError):
    """An invariant did not hold."""


def stop(violation: Violation) -> None:
    """Raise: for runs that must end at the first one.

    Raises
    ------
    InvariantError : always.
    """
    raise InvariantError(str(violation))


@dataclass(slots=True)
class _Sums:
    sequences: int = 0
    tokens: int = 0
    admitted: int = 0
    refused: int = 0


class Checker:
    """Looks on at one core.

    Parameters
    ----------
    report : told of each violation, e.g. `stop`.
    every_events : how often everything is looked at, in events; in between only what an event touched is.

    Attributes
    ----------
    events, violations : how many there were.
    peers : what the books hold of other gateways; None where there are none.
    """

    def __init__(self, report: Callable[[Violation], None] = stop, *, every_events: int = 1000) -> None:
        if every_events < 1:
            raise ValueError(f"every_events is {every_events}; give a whole number above 0, e.g. 1000")
        self._report = report
        self._every = every_events
        self.events = self.violations = 0
        self.peers: Peers | None = None
        self._core: GatewayCore | None = None
        self._now_s = -math.inf
        self._after = "the start"

    def begin(self, core: GatewayCore, now_s: float = -math.inf) -> None:
        """Take a core as it is: at its start, or where another has taken its place."""
        self._core = core
        policy = core.policy
        self._granting = policy if isinstance(policy, Granting) else None
        self._auditing = policy if isinstance(policy, Auditing) else None
        self._now_s = now_s
        self._flights: dict[str, tuple[str, int, int, int]] = {}
        self._sequences = 0
        self._held: dict[str, RequestView] = dict(core.held)
        self._entitlements = {
            name: _Sums(admitted=book.admitted, refused=book.refused) for name, book in core.pool.entitlements.items()
        }
        self._replicas: dict[int, _Sums] = {}
        for flight in core.pool.in_flight.values():
            self._take(flight.request, flight.replica_id, flight.reserved_tokens)
        self._withdrawn = core.withdrawn
        self.check_all(core, now_s)

    def after(self, core: GatewayCore, event: Event, now_s: float, instructions: Sequence[Instruction]) -> None:
        """Look at what an event has changed; ``instructions`` is what the core said about it."""
        if core is not self._core:
            self.begin(core, now_s)
            return
        self.events += 1
        kind = type(event)
        self._after = kind.__name__
        if now_s < self._now_s:
            self._broken("clock", "the time", now_s, f"at least {self._now_s}")
        self._now_s = now_s
        touched = self._follow(core, event, kind, now_s, instructions)
        self._compare(core, touched)
        if self.events % self._every == 0:
            self.check_all(core, now_s)

    # ----------------------------------------------------------------------------------------------------------------
    # Books of its own

    def _follow(
        self, core: GatewayCore, event: Any, kind: type, now_s: float, instructions: Sequence[Instruction]
    ) -> set[str]:
        """Bring these books up to date, and return the entitlements that were touched."""
        touched: set[str] = set()
        arriving: RequestView | None = None
        moving = ""
        if kind is Arrived:
            arriving = event.request
            self._after = f"Arrived {arriving.request_id}"
        elif kind is Finished or kind is Failed or kind is Cancelled:
            request_id = event.request_id
            self._after = f"{kind.__name__} {request_id}"
            if request_id in self._flights:
                if kind is Failed and any(type(one) is Forward and one[0] == request_id for one in instructions):
                    moving = request_id
                else:
                    touched.add(self._end(request_id))
            elif self._held.pop(request_id, None) is not None:
                self._withdrawn += 1
        elif kind is Adopted and event.request.request_id not in self._flights:
            request = event.request
            self._held.pop(request.request_id, None)
            tokens = request.prompt_tokens + event.max_output_tokens
            self._take(request, event.replica_id, tokens)
            self._entitlements[request.entitlement].admitted += 1
            touched.add(request.entitlement)
        for step in instructions:
            said = type(step)
            if said is Forward:
                arriving = self._forwarded(core, step, arriving, moving, touched)  # type: ignore[arg-type]
            elif said is Hold:
                if arriving is None or arriving.request_id != step.request_id:  # type: ignore[union-attr]
                    self._broken("one-answer", step.request_id, "held", "an arrival")  # type: ignore[union-attr]
                else:
                    self._held[arriving.request_id], arriving = arriving, None
            elif said is Refuse:
                arriving = self._refused(step.request_id, arriving, touched)  # type: ignore[union-attr]
            elif said is Evict:
                request_id = step.request_id  # type: ignore[union-attr]
                if request_id in self._flights:
                    touched.add(self._end(request_id))
                else:
                    self._broken("one-end", request_id, "evicted", "a request in flight")
            elif said is CallMeAt and step.at_s <= now_s:  # type: ignore[union-attr]
                self._broken("clock", "a tick", step.at_s, f"after {now_s}")  # type: ignore[union-attr]
        if arriving is not None:
            self._broken("one-answer", arriving.request_id, "not answered", "forwarded, held or refused")
        return touched

    def _forwarded(
        self, core: GatewayCore, step: Forward, arriving: RequestView | None, moving: str, touched: set[str]
    ) -> RequestView | None:
        request_id, replica_id, max_output_tokens = step
        request: RequestView | None
        if arriving is not None and arriving.request_id == request_id:
            request, arriving = arriving, None
        else:
            request = self._held.pop(request_id, None)
        if request is None:
            if request_id != moving:
                self._broken("one-answer", request_id, "forwarded", "an arrival, or a request that is held")
                return arriving
            name, left, tokens, sequences = self._flights[request_id]
            self._count(self._replicas.setdefault(left, _Sums()), -sequences, -tokens)
            self._count(self._replicas.setdefault(replica_id, _Sums()), sequences, tokens)
            self._flights[request_id] = name, replica_id, tokens, sequences
        else:
            name = request.entitlement
            self._take(request, replica_id, request.prompt_tokens + max_output_tokens)
            self._entitlements[name].admitted += 1
            if self._granting is not None:
                granted, book = self._granting.slots_granted(name), core.pool.entitlements[name]
                if book.in_flight > granted + _ROUNDING:
                    self._broken("granted", f"in_flight of {name}", book.in_flight, f"at most {granted}")
        touched.add(name)
        if not any(book.replica_id == replica_id and book.ready for book in core.pool.replicas):
            self._broken("ready", f"the replica of {request_id}", replica_id, "one that is ready")
        return arriving

    def _refused(self, request_id: str, arriving: RequestView | None, touched: set[str]) -> RequestView | None:
        if arriving is not None and arriving.request_id == request_id:
            request, arriving = arriving, None
        else:
            held = self._held.pop(request_id, None)
            if held is None:
                self._broken("one-answer", request_id, "refused", "an arrival, or a request that is held")
                return arriving
            request = held
        self._entitlements[request.entitlement].refused += 1
        touched.add(request.entitlement)
        return arriving

    def _take(self, request: RequestView, replica_id: int, tokens: int) -> None:
        name, sequences = request.entitlement, request.sequences
        self._sequences += sequences
        self._flights[request.request_id] = name, replica_id, tokens, sequences
        self._count(self._entitlements[name], sequences, tokens)
        self._count(self._replicas.setdefault(replica_id, _Sums()), sequences, tokens)

    def _end(self, request_id: str) -> str:
        name, replica_id, tokens, sequences = self._flights.pop(request_id)
        self._sequences -= sequences
        self._count(self._entitlements[name], -sequences, -tokens)
        self._count(self._replicas[replica_id], -sequences, -tokens)
        return name

    @staticmethod
    def _count(sums: _Sums, sequences: int, tokens: int) -> None:
        sums.sequences += sequences
        sums.tokens += tokens

    # ----------------------------------------------------------------------------------------------------------------
    # Comparing

    def _compare(self, core: GatewayCore, touched: set[str]) -> None:
        """Compare what an event can have changed."""
        pool = core.pool
        if len(pool.in_flight) != len(self._flights):
            self._broken("requests", "requests in flight", len(pool.in_flight), len(self._flights))
        if pool.sequences_in_flight != self._sequences:
            self._broken("requests", "sequences in flight", pool.sequences_in_flight, self._sequences)
        if len(core.held) != len(self._held):
            self._broken("requests", "requests held", len(core.held), len(self._held))
        for name in touched:
            self._compare_entitlement(core, name)
        if touched:
            self._compare_replicas(core)

    def _compare_entitlement(self, core: GatewayCore, name: str) -> None:
        book, own = core.pool.entitlements[name], self._entitlements[name]
        theirs = _NOTHING if self.peers is None else self.peers.entitlements.get(name, _NOTHING)
        for field, found, expected in (
            ("in_flight", book.in_flight, own.sequences + theirs.in_flight),
            ("reserved_tokens", book.reserved_tokens, own.tokens + theirs.reserved_tokens),
            ("admitted", book.admitted, own.admitted),
            ("refused", book.refused, own.refused),
        ):
            if found != expected:
                self._broken("entitlement", f"{field} of {name}", found, expected)
        if (
            book.in_flight < 0 or book.reserved_tokens < 0 or book.worked_tokens < 0 or book.demanded_tokens < 0
            or book.demanded_requests < 0
        ):
            self._broken("non-negative", f"the books of {name}", _numbers(book), "nothing below 0")

    def _compare_replicas(self, core: GatewayCore) -> None:
        for book in core.pool.replicas:
            own = self._replicas.get(book.replica_id, _EMPTY)
            theirs = _NOTHING if self.peers is None else self.peers.replicas.get(book.replica_id, _NOTHING)
            if book.in_flight != own.sequences + theirs.in_flight:
                where = f"in_flight of replica {book.replica_id}"
                self._broken("replica", where, book.in_flight, own.sequences + theirs.in_flight)
            if book.outstanding_tokens != own.tokens + theirs.reserved_tokens:
                where = f"outstanding_tokens of replica {book.replica_id}"
                self._broken("replica", where, book.outstanding_tokens, own.tokens + theirs.reserved_tokens)
            if book.in_flight < 0 or book.outstanding_tokens < 0:
                where = f"the books of replica {book.replica_id}"
                self._broken("non-negative", where, (book.in_flight, book.outstanding_tokens), "nothing below 0")

    def check_all(self, core: GatewayCore, now_s: float) -> None:
        """Look at everything; another core that has taken the place is taken as it is."""
        if core is not self._core:
            self.begin(core, now_s)
            return
        self._now_s = max(self._now_s, now_s)
        pool = core.pool
        for request_id, flight in pool.in_flight.items():
            self._check_flight(core, request_id, flight)
        for kind, found, expected in (
            ("in flight", pool.in_flight.keys(), self._flights.keys()), ("held", core.held.keys(), self._held.keys()),
        ):  # fmt: skip
            if found != expected:
                self._broken("requests", f"requests {kind}", _some(found - expected), _some(expected - found))
        if both := pool.in_flight.keys() & core.held.keys():
            self._broken("requests", "in flight and held", _some(both), "one of them")
        for name in pool.entitlements:
            self._compare_entitlement(core, name)
        self._compare_replicas(core)
        for request_id, request in core.held.items():
            state = pool.entitlements[request.entitlement].state
            if state is not EntitlementState.BOUND:
                self._broken("bound", f"the entitlement of {request_id}", state.value, "Bound")
        if core.withdrawn != self._withdrawn:
            self._broken("one-end", "requests withdrawn", core.withdrawn, self._withdrawn)
        for where, value in _measures(core):
            if not (math.isfinite(value) and value >= 0):
                self._broken("non-negative", where, value, "a number from 0 up")
        if self._auditing is not None:
            for fault in self._auditing.faults(pool, core.held):
                self._broken("policy", type(core.policy).__name__, fault, "agreement with the core")
        if core.hierarchy is not None:
            for fault in core.hierarchy.faults(core.pool):
                self._broken("hierarchy", "the tree", fault, "agreement with the core")

    def _check_flight(self, core: GatewayCore, request_id: str, flight: InFlight) -> None:
        name = flight.request.entitlement
        if flight.request.request_id != request_id or flight.ledger is not core.pool.entitlements.get(name):
            self._broken("requests", f"the entry of {request_id}", flight.request.request_id, "its own, in its books")
        if flight.output_tokens < 0 or flight.reserved_tokens < 0:
            where = f"tokens of {request_id}"
            self._broken("non-negative", where, (flight.output_tokens, flight.reserved_tokens), "nothing below 0")
        known = self._flights.get(request_id)
        found = (name, flight.replica_id, flight.reserved_tokens, flight.request.sequences)
        if known is not None and known != found:
            self._broken("requests", f"entitlement, replica and tokens of {request_id}", found, known)

    def _broken(self, invariant: str, where: str, found: object, expected: object) -> None:
        self.violations += 1
        self._report(Violation(invariant, self._now_s, self._after, where, found, expected))


_NOTHING = Told()
_EMPTY = _Sums()


def _numbers(book: Any) -> dict[str, float]:
    names = ("in_flight", "reserved_tokens", "worked_tokens", "demanded_tokens", "demanded_requests")
    return {name: getattr(book, name) for name in names}


def _some(names: Any) -> list[str]:
    return sorted(names)[:5]


def _measures(core: GatewayCore) -> Iterator[tuple[str, float]]:
    pool = core.pool
    yield "first tokens", pool.first_tokens
    yield "seconds to first tokens", pool.waited_s
    yield "sequences of others", pool.others_in_flight
    yield "reserved tokens of others", pool.others_reserved_tokens
    if pool.mean_service_s is not None:
        yield "the mean service time", pool.mean_service_s
    for name, book in pool.entitlements.items():
        if book.mean_service_s is not None:
            yield f"the mean service time of {name}", book.mean_service_s


class CheckedCore:
    """A core with a checker beside it, for whoever drives it; see `policies.core.GatewayCore` for the methods."""

    def __init__(self, core: GatewayCore, checker: Checker) -> None:
        self.core = core
        self.checker = checker

    def start(self, now_s: float) -> Sequence[Instruction]:
        """Begin."""
        said = self.core.start(now_s)
        self.checker.begin(self.core, now_s)
        return said

    def handle(self, event: Event, now_s: float) -> Sequence[Instruction]:
        """Hand an event to the core, and look at what it did."""
        said = self.core.handle(event, now_s)
        self.checker.after(self.core, event, now_s, said)
        return said

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)
