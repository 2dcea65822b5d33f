"""Several gateways in front of one pool, as one: each request goes to one of them, what concerns the pool to all."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from policies.api import Adopted, Arrived, CallMeAt, CapacityChanged, Event, Instruction, ReplicaReport, Tick
from policies.core import GatewayCore
from policies.invariants import CheckedCore
from policies.sharing import Peers, exchange

_NEVER_S = float("inf")


class Gateways:
    """Drives cores side by side; see `policies.core.GatewayCore` for the methods.

    A request and its retries stay with the gateway that its id names, so that each gets an even part of all traffic.

    Parameters
    ----------
    share_s : between two exchanges of what they have in flight and have used; None: they never hear of each other.
    """

    def __init__(self, cores: Sequence[GatewayCore], policies: Sequence[object], share_s: float | None) -> None:
        self._cores = cores
        self._share_s = share_s
        self._peers = [Peers(core.pool, policy) for core, policy in zip(cores, policies, strict=True)]
        for core, peer in zip(cores, self._peers, strict=True):
            if isinstance(core, CheckedCore):
                core.checker.peers = peer
        self._calls_s = [_NEVER_S] * len(cores)
        self._exchange_s = _NEVER_S
        self._called_s = _NEVER_S
        self.wants_progress = any(core.wants_progress for core in cores)
        self.wants_reports = any(core.wants_reports for core in cores)

    def start(self, now_s: float) -> Sequence[Instruction]:
        """Start them all."""
        if self._share_s is not None:
            self._exchange_s = now_s + self._share_s
        said: list[Instruction] = []
        for index, core in enumerate(self._cores):
            said += self._heard(index, core.start(now_s))
        return (*said, *self._next_call())

    def handle(self, event: Event, now_s: float) -> Sequence[Instruction]:
        """Hand an event to whom it concerns."""
        if isinstance(event, Tick):
            return self._tick(now_s)
        if isinstance(event, ReplicaReport | CapacityChanged):
            said: list[Instruction] = []
            for index, core in enumerate(self._cores):
                said += self._heard(index, core.handle(event, now_s))
            return said
        request_id = event.request.request_id if isinstance(event, Arrived | Adopted) else event.request_id
        return self._cores[zlib.crc32(request_id.encode()) % len(self._cores)].handle(event, now_s)

    def _tick(self, now_s: float) -> Sequence[Instruction]:
        said: list[Instruction] = []
        self._called_s = _NEVER_S
        if self._share_s is not None and now_s >= self._exchange_s:
            exchange(self._peers, now_s)
            self._exchange_s = now_s + self._share_s
        for index, core in enumerate(self._cores):
            if now_s >= self._calls_s[index]:
                self._calls_s[index] = _NEVER_S
                said += self._heard(index, core.handle(Tick(), now_s))
        return (*said, *self._next_call())

    def _heard(self, index: int, instructions: Sequence[Instruction]) -> list[Instruction]:
        """Keep one core's wish to be called, and return what else it says."""
        said: list[Instruction] = []
        for step in instructions:
            if isinstance(step, CallMeAt):
                self._calls_s[index] = step.at_s
            else:
                said.append(step)
        return said

    def _next_call(self) -> tuple[CallMeAt, ...]:
        at_s = min(*self._calls_s, self._exchange_s)
        return (CallMeAt(at_s),) if at_s < _NEVER_S else ()
