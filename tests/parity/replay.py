"""Plays a recorded run of the core through the asyncio gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from parity.virtual_loop import VirtualLoop
from policies.api import Event, Forward, Instruction, Progress, RequestView, Tick
from policies.core import GatewayCore
from sim.live.gateway.core_driver import AsyncGateway

Entry = tuple[float, Event, tuple[Instruction, ...]]


class RecordedUpstream:
    """Replicas that do what the recording says; the recording also has what was seen before each tick."""

    def __init__(self) -> None:
        self.seen: list[Progress] = []
        self.started: list[str] = []
        self.aborted: list[str] = []

    def start(self, request: RequestView, forward: Forward, emit: Callable[[Event], None]) -> None:
        assert request.request_id == forward.request_id
        self.started.append(request.request_id)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def progress(self) -> Iterable[Progress]:
        seen, self.seen = self.seen, []
        return seen


def replay(core: GatewayCore, recorded: Sequence[tuple[float, Event]]) -> list[Entry]:
    """Return what the asyncio gateway did with recorded events.

    Ticks are not fed: they come because the core asked for them, at the time it asked for. Events of one instant keep
    their recorded order, on both sides of a tick of that instant.
    """
    loop, upstream = VirtualLoop(), RecordedUpstream()
    log: list[Entry] = []
    after_tick: list[list[tuple[float, Event]]] = [[]]
    for at_s, event in recorded:
        if isinstance(event, Tick):
            after_tick.append([])
        else:
            after_tick[-1].append((at_s, event))
    ticks = 0

    def feed(batch: Sequence[tuple[float, Event]]) -> None:
        before_next_tick = ticks + 1 < len(after_tick)
        tail = len(batch)
        if before_next_tick and core.wants_progress:  # the reports right before a tick come from the tick itself
            while tail and isinstance(batch[tail - 1][1], Progress):
                tail -= 1
        upstream.seen = [event for _, event in batch[tail:] if isinstance(event, Progress)]
        for at_s, event in batch[:tail]:
            if ticks and at_s <= loop.time():
                gateway.send(event)
            else:
                loop.call_at(at_s, gateway.send, event)

    def record(now_s: float, event: Event, instructions: Sequence[Instruction]) -> None:
        nonlocal ticks
        log.append((now_s, event, tuple(instructions)))
        if isinstance(event, Tick):
            ticks += 1
            if ticks == len(after_tick) - 1:
                loop.call_soon(gateway.stop)
            # Fed before the gateway sets its next timer, so that events go first where both are due at one instant.
            feed(after_tick[ticks])

    gateway = AsyncGateway(core, upstream, loop=loop, record=record, origin_s=0.0)
    feed(after_tick[0])
    if len(recorded) and len(after_tick) == 1:
        loop.call_soon(gateway.stop)
    gateway.start()
    loop.run(recorded[-1][0] if recorded else 0.0)
    return log
