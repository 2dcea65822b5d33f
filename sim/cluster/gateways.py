"""Several gateways in front of one pool, as one: each request goes to one of them, what concerns the pool to all."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from policies.api import (
    Adopted,
    Arrived,
    CapacityChanged,
    Event,
    FirstToken,
    Instruction,
    Progress,
    ReplicaReport,
    Tick,
)
from policies.calls import Calls
from policies.core import GatewayCore
from policies.invariants import CheckedCore
from policies.limit_leases import Book, Holder, exchange_parts
from policies.sharing import Peers, exchange

_FIRST_ROUNDS = 3
"""Rounds at the start: who comes first takes all, and gives back what the others then want."""
_TTL_ROUNDS = 10


class Gateways:
    """Drives cores side by side; see `policies.core.GatewayCore` for the methods.

    A request and its retries stay with the gateway that its id names, so that each gets an even part of all traffic.

    Parameters
    ----------
    share_s : between two exchanges of what they have in flight and have used; None: they never hear of each other.
    leases : whether each holds a part of every limit, renewed every ``share_s``, in place of hearing totals.
    """

    def __init__(
        self, cores: Sequence[GatewayCore], policies: Sequence[object], share_s: float | None, *, leases: bool = False
    ) -> None:
        self._cores = cores
        self._share_s = share_s
        self._holders = {str(index): Holder(core) for index, core in enumerate(cores)} if leases else {}
        self._book = Book(0)
        self._entitlement_of: dict[str, str] = {}
        self._peers = (
            [holder.peers for holder in self._holders.values()] if leases
            else [Peers(core.pool, policy) for core, policy in zip(cores, policies, strict=True)]
        )
        for core, peer in zip(cores, self._peers, strict=True):
            if isinstance(core, CheckedCore):
                core.checker.peers = peer
        self._calls = Calls(len(cores) + 1)
        self._exchange = len(cores)  # who asks to be called after all cores
        self.wants_progress = any(core.wants_progress for core in cores)
        self.wants_reports = any(core.wants_reports for core in cores)

    def start(self, now_s: float) -> Sequence[Instruction]:
        """Start them all."""
        if self._share_s is not None:
            self._calls.due_s[self._exchange] = now_s + self._share_s
        said: list[Instruction] = []
        for index, core in enumerate(self._cores):
            said += self._calls.heard(index, core.start(now_s))
        for _ in range(_FIRST_ROUNDS):
            self._renew(now_s)
        return (*said, *self._calls.next())

    def handle(self, event: Event, now_s: float) -> Sequence[Instruction]:
        """Hand an event to whom it concerns."""
        if isinstance(event, Tick):
            return self._tick(now_s)
        if isinstance(event, ReplicaReport | CapacityChanged):
            said: list[Instruction] = []
            for index, core in enumerate(self._cores):
                if self._holders:
                    self._holders[str(index)].before(event)
                said += self._calls.heard(index, core.handle(event, now_s))
            return (*said, *self._calls.earlier())
        request_id = event.request.request_id if isinstance(event, Arrived | Adopted) else event.request_id
        index = zlib.crc32(request_id.encode()) % len(self._cores)
        if not self._holders:
            return (*self._calls.heard(index, self._cores[index].handle(event, now_s)), *self._calls.earlier())
        if isinstance(event, Arrived):
            self._entitlement_of[request_id] = event.request.entitlement
        instructions = self._cores[index].handle(event, now_s)
        self._holders[str(index)].heard(self._entitlement_of, instructions)
        if not isinstance(event, FirstToken | Progress) and request_id not in self._cores[index].held:
            self._entitlement_of.pop(request_id, None)
        return (*self._calls.heard(index, instructions), *self._calls.earlier())

    def _renew(self, now_s: float) -> None:
        """Let each renew its parts."""
        if self._holders and self._share_s is not None:
            ttl_us = int(1e6 * _TTL_ROUNDS * self._share_s)
            self._book = exchange_parts(self._holders, self._book, int(now_s * 1e6), ttl_us)

    def _tick(self, now_s: float) -> Sequence[Instruction]:
        said: list[Instruction] = []
        if self._share_s is not None and self._calls.take(self._exchange, now_s):
            if self._holders:
                self._renew(now_s)
            else:
                exchange(self._peers, now_s)
            self._calls.due_s[self._exchange] = now_s + self._share_s
        for index, core in enumerate(self._cores):
            if self._calls.take(index, now_s):
                said += self._calls.heard(index, core.handle(Tick(), now_s))
        return (*said, *self._calls.next())
