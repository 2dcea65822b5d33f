"""Which replica takes a request."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from policies.api import ReplicaLedger, RequestView
from policies.native import mypyc_attr
from policies.routing_params import LeastOutstandingTokens, RoundRobin

__all__ = ["LeastOutstandingTokens", "LeastOutstandingTokensRouter", "RoundRobin", "RoundRobinRouter"]


@mypyc_attr(allow_interpreted_subclasses=True)
class RoundRobinRouter:
    """Goes round the replicas in the order of the books, and skips those that are not ready."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:  # noqa: ARG002
        """See `policies.api.Router`."""
        position = self._next
        for _ in replicas:
            if position >= len(replicas):
                position = 0
            replica = replicas[position]
            position += 1
            if replica.ready:
                self._next = position
                return replica.replica_id
        return None


_SCANNED: Final = 32
"""Up to how many replicas a look at each costs less than keeping them in order."""


@mypyc_attr(allow_interpreted_subclasses=True)
class LeastOutstandingTokensRouter:
    """Takes the least loaded replica; ties go to the lowest id.

    Larger pools than `_SCANNED` whose changes it is told of (`policies.api.LoadFollowing`) stand in a heap. An entry
    there is never more than its replica owes: one that owes more by now is put right when it comes to the top.
    """

    def __init__(self) -> None:
        self._followed: Sequence[ReplicaLedger] | None = None
        self._heap: list[tuple[int, int, ReplicaLedger]] = []
        self._listed: dict[int, int] = {}  # the tokens of each replica's lowest entry

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:  # noqa: ARG002
        """See `policies.api.Router`."""
        if replicas is self._followed:
            return self._first_of_heap()
        best: ReplicaLedger | None = None
        least_tokens = 0
        for replica in replicas:  # a plain loop: half the cost of min() with a key
            if not replica.ready:
                continue
            tokens = replica.outstanding_tokens
            if best is None or tokens < least_tokens or (
                tokens == least_tokens and replica.replica_id < best.replica_id
            ):
                best, least_tokens = replica, tokens
        return None if best is None else best.replica_id

    def follow(self, replicas: Sequence[ReplicaLedger]) -> None:
        """See `policies.api.LoadFollowing`."""
        if len(replicas) <= _SCANNED:
            self._followed, self._heap, self._listed = None, [], {}
            return
        self._followed = replicas
        ready = [replica for replica in replicas if replica.ready]
        self._heap = [(replica.outstanding_tokens, replica.replica_id, replica) for replica in ready]
        self._listed = {replica.replica_id: replica.outstanding_tokens for replica in ready}
        heapify(self._heap)

    def lighter(self, replica: ReplicaLedger) -> None:
        """See `policies.api.LoadFollowing`."""
        if self._followed is None:
            return
        tokens = replica.outstanding_tokens
        if tokens >= self._listed.get(replica.replica_id, tokens):
            return
        if len(self._heap) >= 4 * len(self._followed):  # too many that are superseded
            self.follow(self._followed)
            return
        self._listed[replica.replica_id] = tokens
        heappush(self._heap, (tokens, replica.replica_id, replica))

    def _first_of_heap(self) -> int | None:
        heap, listed = self._heap, self._listed
        while heap:
            tokens, replica_id, replica = heap[0]
            owed = replica.outstanding_tokens
            if tokens == owed:
                return replica_id
            if tokens == listed[replica_id]:
                listed[replica_id] = owed
                heapreplace(heap, (owed, replica_id, replica))
            else:  # superseded by a lower entry, which came to the top and was put right since
                heappop(heap)
        return None
