"""How much more the replicas can take."""

from __future__ import annotations

import math

from policies.api import Deny, PoolCapacity, PoolLedger, Reason, RequestView
from policies.native import mypyc_attr

_RETRY_S = 1.0
"""Retry-After of what only a pool with more replicas could take. [choice]"""


@mypyc_attr(allow_interpreted_subclasses=True)
class Room:
    """How much more the replicas can take: slots by count, KV cache by prompt + max_output_tokens.

    Parameters
    ----------
    occupancy : the share of the pool to fill; above 1, the engines queue the rest.
    per_replica : let so many requests into each ready replica, whatever fits there; None: fill the pool.
    """

    __slots__ = ("_largest_slots", "_largest_tokens", "_per_replica", "_per_token", "occupancy", "reserved_tokens")

    def __init__(self, kv_bytes_per_token: float | None, occupancy: float, per_replica: int | None = None) -> None:
        self._per_token = kv_bytes_per_token
        self._per_replica = per_replica
        self._largest_slots = self._largest_tokens = 0.0
        self.occupancy = occupancy
        self.reserved_tokens = 0

    def slots_free(self, pool: PoolLedger) -> float:
        """Return how many more sequences fit."""
        return self.most_slots(pool.capacity) - pool.all_in_flight

    def most_slots(self, capacity: PoolCapacity) -> float:
        """Return how many sequences fit where nothing is in flight."""
        if self._per_replica is not None:
            return self._per_replica * capacity.ready_replicas
        return max(1.0, self.occupancy * capacity.slots)

    def tokens_free(self, pool: PoolLedger) -> float:
        """Return how many more tokens fit into the KV cache; infinite where that is not known."""
        kv_bytes = pool.capacity.kv_bytes
        if kv_bytes is None or not self._per_token or self._per_replica is not None:
            return math.inf
        return self.occupancy * kv_bytes / self._per_token - self.reserved_tokens - pool.others_reserved_tokens

    def fits(self, need_tokens: int, pool: PoolLedger, sequences: int = 1) -> bool:
        """Whether one more request fits now; one that needs more than all KV cache fits when nothing is there."""
        if not pool.capacity.ready_replicas or self.slots_free(pool) < sequences:
            return False
        return need_tokens <= self.tokens_free(pool) or not pool.in_flight

    def largest_tokens(self, pool: PoolLedger) -> float:
        """Return the largest request that a replica could ever take; infinite where that is not known.

        A pool that lost replicas or KV cache may get them back, so the largest seen counts.
        """
        return self._largest_tokens or self._measured(pool)

    def too_large(self, request: RequestView, max_output_tokens: int, pool: PoolLedger) -> Deny | None:
        """Return the refusal of a request that no replica could ever take, or not those there are; None for any other.

        The first is for good. What has more sequences than the pool has slots now may come back.
        """
        sequences, capacity = request.sequences, pool.capacity
        if sequences > 1 and sequences > self.most_slots(capacity):
            largest = max(self._largest_slots, self.most_slots(capacity))
            if sequences > largest:
                return Deny(Reason.TOO_LARGE, sequences, largest, None)
            return Deny(Reason.POOL_FULL, sequences, self.most_slots(capacity), _RETRY_S)
        need_tokens, largest = request.prompt_tokens + max_output_tokens, self.largest_tokens(pool)
        return Deny(Reason.TOO_LARGE, need_tokens, largest, None) if need_tokens > largest else None

    def learn(self, pool: PoolLedger) -> None:
        """Take note of the pool's capacity."""
        self._largest_slots = max(self._largest_slots, self.most_slots(pool.capacity))
        self._largest_tokens = max(self._largest_tokens, self._measured(pool))

    def _measured(self, pool: PoolLedger) -> float:
        largest = max((book.context_tokens or 0 for book in pool.replicas if book.ready), default=0)
        if largest:  # replicas of several kinds: what fits into the largest
            return largest
        ready, kv_bytes = pool.capacity.ready_replicas, pool.capacity.kv_bytes
        if kv_bytes is None or not self._per_token:
            return math.inf
        return kv_bytes / self._per_token / ready if ready else 0.0
