"""The gateway in real time: carries events into the core and its instructions out, on an asyncio loop.

All decisions and books are in `policies.core`; the clock is the loop's, so a loop with a clock of its own makes a run
repeatable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from policies.api import (
    Arrived,
    CallMeAt,
    Cancelled,
    Demote,
    Event,
    Evict,
    Forward,
    Instruction,
    Progress,
    Refuse,
    RequestView,
    Tick,
)
from policies.core import GatewayCore


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


class AsyncGateway:
    """One pool's gateway on one loop. All methods are called from that loop.

    Parameters
    ----------
    answer : told of every request that is refused or evicted, with the instruction to pass on to its client.
    record : told of every event with its time and instructions: what a replay needs.
    origin_s : the loop's time that is 0 for the core; the loop's time at `start` where it is None.
    """

    def __init__(
        self, core: GatewayCore, upstream: Upstream, *, loop: asyncio.AbstractEventLoop,
        answer: Callable[[Refuse | Evict], None] | None = None,
        record: Callable[[float, Event, Sequence[Instruction]], None] | None = None,
        origin_s: float | None = None,
    ) -> None:
        self._core = core
        self._upstream = upstream
        self._loop = loop
        self._answer = answer
        self._record = record
        self._origin_s = origin_s
        self._timer: asyncio.TimerHandle | None = None
        self._requests: dict[str, RequestView] = {}

    def start(self) -> None:
        """Begin: entitlements get their states and the core its first tick."""
        if self._origin_s is None:
            self._origin_s = self._loop.time()
        self._carry_out(self._core.start(self.now_s()))

    def stop(self) -> None:
        """Ask for no more ticks. What is in flight goes on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def now_s(self) -> float:
        """Return the core's time, in seconds since the origin."""
        return self._loop.time() - (self._origin_s or 0.0)

    def send(self, event: Event) -> None:
        """Hand an event to the core at this moment, and do what it says."""
        now_s = self.now_s()
        if isinstance(event, Arrived):
            self._requests[event.request.request_id] = event.request
        instructions = self._core.handle(event, now_s)
        if self._record is not None:
            self._record(now_s, event, instructions)
        if isinstance(event, Cancelled):
            self._upstream.abort(event.request_id)
            self._requests.pop(event.request_id, None)
        self._carry_out(instructions)

    def _carry_out(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Forward):
                request = self._requests.pop(instruction.request_id)
                self._upstream.start(request, instruction, self.send)
            elif isinstance(instruction, Refuse | Evict):
                if isinstance(instruction, Evict):
                    self._upstream.abort(instruction.request_id)
                self._requests.pop(instruction.request_id, None)
                if self._answer is not None:
                    self._answer(instruction)
            elif isinstance(instruction, Demote):
                request = self._requests[instruction.request_id]
                self._requests[instruction.request_id] = request._replace(priority=instruction.priority)
            elif isinstance(instruction, CallMeAt):
                self._timer = self._loop.call_at(instruction.at_s + (self._origin_s or 0.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._core.wants_progress:
            for seen in self._upstream.progress():
                self.send(seen)
        self.send(Tick())
