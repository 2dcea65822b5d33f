"""The admission threshold: the least priority among the requests that are in flight, found without looking at all.

Priorities are pairs of class rank and weight, compared in that order. Heaps with lazy deletion keep the cost of a
decision from growing with the number of entitlements or of requests in flight.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Protocol

from policies.api import EntitlementLedger, InFlight, PoolLedger
from policies.token_pool.metering import Account


class Floor(Protocol):
    """The least priority in flight."""

    def admitted(self, account: Account, flight: InFlight) -> None:
        """Take note of a request that was let in."""
        ...

    def reweighed(self, accounts: Iterable[Account], pool: PoolLedger) -> None:
        """Take note that weights changed."""
        ...

    def least(self, pool: PoolLedger) -> tuple[int, float] | None:
        """Return rank and weight of the least priority in flight, None where nothing is."""
        ...


_Standing = tuple[int, float, int, EntitlementLedger]
"""Rank, weight, place and ledger of an entitlement."""


class LiveFloor:
    """Requests weigh what their entitlement weighs now."""

    def __init__(self) -> None:
        self._heap: list[_Standing] = []
        self._listed: set[int] = set()

    def admitted(self, account: Account, flight: InFlight) -> None:
        """See `Floor`."""
        if account.index not in self._listed:
            self._listed.add(account.index)
            heapq.heappush(self._heap, (account.rank, account.weight, account.index, flight.ledger))

    def reweighed(self, accounts: Iterable[Account], pool: PoolLedger) -> None:
        """See `Floor`: one look at every entitlement, which only ticks and changes of capacity cost."""
        books = pool.entitlements
        self._heap = [
            (account.rank, account.weight, account.index, ledger)
            for account in accounts
            if (ledger := books[account.spec.name]).in_flight
        ]
        self._listed = {index for _, _, index, _ in self._heap}
        heapq.heapify(self._heap)

    def least(self, pool: PoolLedger) -> tuple[int, float] | None:  # noqa: ARG002
        """See `Floor`."""
        heap = self._heap
        while heap:
            rank, weight, index, ledger = heap[0]
            if ledger.in_flight:
                return rank, weight
            heapq.heappop(heap)
            self._listed.discard(index)
        return None


class FrozenFloor:
    """Requests weigh what their entitlement weighed when they were let in."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, InFlight]] = []
        self._admitted = 0

    def admitted(self, account: Account, flight: InFlight) -> None:
        """See `Floor`."""
        self._admitted += 1
        heapq.heappush(self._heap, (account.rank, account.weight, self._admitted, flight))

    def reweighed(self, accounts: Iterable[Account], pool: PoolLedger) -> None:
        """See `Floor`: what was let in keeps its weight."""

    def least(self, pool: PoolLedger) -> tuple[int, float] | None:
        """See `Floor`."""
        heap, in_flight = self._heap, pool.in_flight
        if len(heap) > 64 + 2 * len(in_flight):  # one long request at the top would let the ended ones pile up
            heap[:] = [entry for entry in heap if in_flight.get(entry[3].request.request_id) is entry[3]]
            heapq.heapify(heap)
        while heap:
            rank, weight, _, flight = heap[0]
            if in_flight.get(flight.request.request_id) is flight:
                return rank, weight
            heapq.heappop(heap)
        return None
