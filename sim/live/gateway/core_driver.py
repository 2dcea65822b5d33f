"""The gateway in real time: carries events into the core and its instructions out, on an asyncio loop.

All decisions and books are in `policies.core`. An `EventLog` gives events their times and their order: the one here is
the loop's clock and this process alone; `sim.live.shared_state.replicated_core` has one that several processes share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from policies.api import (
    Arrived,
    CallMeAt,
    Cancelled,
    Demote,
    Event,
    Evict,
    Failed,
    Finished,
    Forward,
    Instruction,
    Progress,
    Refuse,
    RequestView,
    Scale,
    Tick,
)
from policies.core import GatewayCore

_LATE_S = 1e-6


class Upstream(Protocol):
    """The replicas, as the gateway sees them. Nothing here waits: answers come later, through ``emit``."""

    def start(self, request: RequestView, forward: Forward, emit: Callable[[Event], None]) -> None:
        """Send the request to ``forward.replica_id``, and emit what becomes of it: FirstToken, Finished, Failed."""
        ...

    def abort(self, request_id: str) -> None:
        """Stop working on a request. What it still emits is ignored."""
        ...

    def progress(self) -> Iterable[Progress]:
        """Return how many tokens have come back of each running request."""
        ...


class Timer(Protocol):
    """Something that will be called, unless it is cancelled."""

    def cancel(self) -> object:
        """Call it no more."""
        ...


class Timers(Protocol):
    """A clock that calls back: an asyncio loop, or whatever stands in for one."""

    def time(self) -> float:
        """Return the time in seconds; it never goes back."""
        ...

    def call_at(self, when: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        """Call at a time of this clock."""
        ...


class EventLog(Protocol):
    """Gives the events of one pool their times and their order, and delivers them to `AsyncGateway.deliver`.

    ``lead_s`` is how long before a tick it wants to hear of progress, so that the progress of all comes before it.
    """

    lead_s: float

    def open(self, gateway: AsyncGateway) -> None:
        """Begin to deliver: first `AsyncGateway.begin`, then events."""
        ...

    def append(self, event: Event) -> None:
        """Take an event of this process. It is delivered at once or later, never twice, and never waited for."""
        ...

    def tick(self, due_s: float) -> None:
        """Take note that a Tick is due: of all the processes that say so, one is heard."""
        ...

    def now_s(self) -> float:
        """Return the core's time."""
        ...

    def loop_time(self, at_s: float) -> float:
        """Return the loop's time at the core's ``at_s``."""
        ...


class LocalLog:
    """The log of a process that has the pool for itself: every event happens when it is appended.

    Parameters
    ----------
    origin_s : the loop's time that is 0 for the core; the loop's time at `open` where it is None.
    """

    lead_s = 0.0

    def __init__(self, loop: Timers, origin_s: float | None = None) -> None:
        self._clock = loop
        self._origin_s = origin_s
        self._deliver: Callable[[Event, float], object] | None = None

    def open(self, gateway: AsyncGateway) -> None:
        """See `EventLog`."""
        if self._origin_s is None:
            self._origin_s = self._clock.time()
        self._deliver = gateway.deliver
        gateway.begin(self.now_s())

    def append(self, event: Event) -> None:
        """See `EventLog`."""
        if self._deliver is None:
            raise RuntimeError("an event came before the gateway was started; call AsyncGateway.start first")
        self._deliver(event, self.now_s())

    def tick(self, due_s: float) -> None:  # noqa: ARG002
        """See `EventLog`."""
        self.append(Tick())

    def now_s(self) -> float:
        """See `EventLog`."""
        return self._clock.time() - (self._origin_s or 0.0)

    def loop_time(self, at_s: float) -> float:
        """See `EventLog`. A microsecond late: rounding must not make a tick early, to be asked for at once again."""
        return at_s + self._origin_s + _LATE_S if self._origin_s else at_s


class AsyncGateway:
    """One pool's gateway on one loop. All methods are called from that loop.

    A request belongs to the gateway that it was sent to, from its Arrived to its end; what concerns requests of other
    gateways of the pool goes into the books and is not carried out here.

    Parameters
    ----------
    loop : the clock, and what calls when a tick is due.
    answer : told of every request of this gateway that is refused or evicted, or that failed and is not sent to
        another replica, with what to tell its client.
    record : told of every event with its time and instructions: what a replay needs.
    scale : told how many replicas the pool should have, each time that this changes.
    log : what gives events their times; one of this process alone where it is None, with ``origin_s`` as its origin.

    Attributes
    ----------
    core : the pool's state; a log that several processes share may put another in its place.
    requests : those of this gateway that have not ended.
    running : where those that were sent to a replica went.
    """

    def __init__(
        self, core: GatewayCore, upstream: Upstream, *, loop: Timers,
        answer: Callable[[Refuse | Evict | Failed], None] | None = None,
        record: Callable[[float, Event, Sequence[Instruction]], None] | None = None,
        scale: Callable[[int], None] | None = None,
        origin_s: float | None = None, log: EventLog | None = None,
    ) -> None:
        self.core = core
        self._upstream = upstream
        self._loop = loop
        self._answer = answer
        self._record = record
        self._scale = scale
        self._log: EventLog = LocalLog(loop, origin_s) if log is None else log
        self._timers: list[Timer] = []
        self.requests: dict[str, RequestView] = {}
        self.running: dict[str, Forward] = {}
        self._stopped = False

    def start(self) -> None:
        """Begin: entitlements get their states and the core its first tick."""
        self._log.open(self)

    def stop(self) -> None:
        """Ask for no more ticks. What is in flight goes on."""
        self._stopped = True
        self._cancel_timers()

    def now_s(self) -> float:
        """Return the core's time, in seconds since the origin."""
        return self._log.now_s()

    def send(self, event: Event) -> None:
        """Hand an event to the log. Clients that went away are not waited for: the upstream stops at once."""
        kind = type(event)
        if kind is Arrived:
            self.requests[event.request.request_id] = event.request  # type: ignore[union-attr]
        elif kind is Failed or kind is Finished or kind is Cancelled:
            if kind is Cancelled:
                self._upstream.abort(event.request_id)  # type: ignore[union-attr]
            self.running.pop(event.request_id, None)  # type: ignore[union-attr]
        self._log.append(event)
        if kind is Finished or kind is Cancelled:
            self.requests.pop(event.request_id, None)  # type: ignore[union-attr]

    # ----------------------------------------------------------------------------------------------------------------
    # For the log

    def begin(self, now_s: float) -> None:
        """Start the core."""
        self.carry_out(self.core.start(now_s))

    def deliver(self, event: Event, now_s: float, *, lead: bool = True) -> Sequence[Instruction]:
        """Hand an event, of this process or another, to the core, and do what it says about requests of this one.

        Parameters
        ----------
        lead : whether this process speaks for the pool, to say how many replicas it should have.
        """
        instructions = self.core.handle(event, now_s)
        if self._record is not None:
            self._record(now_s, event, instructions)
        if instructions:
            self.carry_out(instructions, lead=lead)
        if type(event) is Failed and not any(
            type(step) is Forward and step.request_id == event.request_id for step in instructions
        ):
            self.tell(event)
        return instructions

    def carry_out(self, instructions: Sequence[Instruction], *, lead: bool = True) -> None:
        """Do what concerns this process."""
        for instruction in instructions:
            if isinstance(instruction, Forward):
                self._forward(instruction)
            elif isinstance(instruction, Refuse):
                if instruction.request_id not in self.running:
                    self.tell(instruction)
            elif isinstance(instruction, Evict):
                if instruction.request_id in self.requests:
                    self._upstream.abort(instruction.request_id)
                self.tell(instruction)
            elif isinstance(instruction, Demote):
                demoted = self.requests.get(instruction.request_id)
                if demoted is not None:
                    self.requests[instruction.request_id] = demoted._replace(priority=instruction.priority)
            elif isinstance(instruction, CallMeAt):
                self.call_at(instruction.at_s)
            elif isinstance(instruction, Scale) and lead:
                self.scale(instruction.replicas)

    def _forward(self, forward: Forward) -> None:
        """Begin, unless the client has left meanwhile or the request runs already."""
        request = self.requests.get(forward.request_id)
        if request is not None and forward.request_id not in self.running:
            self.running[forward.request_id] = forward
            self._upstream.start(request, forward, self.send)

    def tell(self, end: Refuse | Evict | Failed) -> None:
        """Pass on how a request of this gateway ended."""
        self.running.pop(end.request_id, None)
        if self.requests.pop(end.request_id, None) is not None and self._answer is not None:
            self._answer(end)

    def scale(self, replicas: int) -> None:
        """Pass on how many replicas the pool should have."""
        if self._scale is not None:
            self._scale(replicas)

    def call_at(self, due_s: float) -> None:
        """See to a Tick at the core's ``due_s``, in place of the one seen to before."""
        self._cancel_timers()
        if self._stopped:
            return
        at_s, lead_s = self._log.loop_time(due_s), self._log.lead_s
        self._timers.append(self._loop.call_at(at_s, self._tick, due_s))
        if lead_s and self.core.wants_progress:
            self._timers.append(self._loop.call_at(at_s - lead_s, self._report))

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _tick(self, due_s: float) -> None:
        if not self._log.lead_s and self.core.wants_progress:
            self._report()
        self._log.tick(due_s)

    def _report(self) -> None:
        for seen in self._upstream.progress():
            self.send(seen)
