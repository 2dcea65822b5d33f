"""What a router knows of the replicas' prefix caches: an approximate index of its own, or the caches themselves."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Literal

from policies.api import ReplicaLedger, RequestView
from policies.routers.prefix_index import LEAST_BLOCK_TOKENS, PrefixIndex

Knows = Literal["approximate", "exact"]
INDEX = {
    "description": "approximate: what this gateway sent where; exact: the replicas' caches, which only a simulator sees"
}
BLOCK_TOKENS = {
    "ge": LEAST_BLOCK_TOKENS, "le": 65_536, "description": "give tokens of a block of the approximate index, e.g. 64"
}
BLOCKS_PER_REPLICA = {
    "gt": 0, "le": 10_000_000,
    "description": "give how many blocks the approximate index keeps for each replica, e.g. 31250",
}
MEMORY_S = {
    "gt": 0, "description": "give the seconds after which a block not sent again is forgotten, 120; left out, never"
}


class Caches:
    """Says which replicas have how much of a prompt.

    Parameters
    ----------
    index : the approximate index; None: the caches themselves, once they were told.
    """

    def __init__(self, index: PrefixIndex | None) -> None:
        self._index = index
        self.cached_tokens: Callable[[str, int], int] | None = None
        self._blocks: list[Hashable] = []

    @property
    def needs_caches(self) -> bool:
        """Whether the caches must be told, and were not yet."""
        return self._index is None and self.cached_tokens is None

    def shares(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> list[tuple[float, int]]:
        """Return (share of the prompt, the replicas that have so much as bits) for those with any, the most first."""
        if self._index is not None:
            self._blocks = blocks = self._index.blocks_of(request)
            return [(count / len(blocks), among) for count, among in self._index.matches(blocks)]
        if self.cached_tokens is None:
            raise ValueError("the router was set to see the replicas' caches, and nobody told it; give approximate")
        found: dict[int, int] = {}
        for replica in replicas:
            if replica.ready and (tokens := self.cached_tokens(request.request_id, replica.replica_id)):
                found[tokens] = found.get(tokens, 0) | 1 << replica.replica_id
        return [(tokens / request.prompt_tokens, found[tokens]) for tokens in sorted(found, reverse=True)]

    def sent(self, replica_id: int, now_s: float) -> None:
        """Take note of where the request goes that `shares` was last asked about."""
        if self._index is not None:
            self._index.sent(self._blocks, replica_id, now_s)

    def may_know(self, request: RequestView) -> bool:
        """Whether anything of a prompt could be found: not where its text is not known."""
        return self._index is None or bool(request.prefix)

    def share_at(self, request: RequestView, replica_id: int) -> float:
        """Return which share of a prompt one replica has."""
        if self._index is not None:
            blocks = self._index.blocks_of(request)
            found = (count / len(blocks) for count, among in self._index.matches(blocks) if among >> replica_id & 1)
            return next(found, 0.0)
        if self.cached_tokens is None:
            raise ValueError("the policy was set to see the replicas' caches, and nobody told it; give approximate")
        return self.cached_tokens(request.request_id, replica_id) / request.prompt_tokens

    def took(self, request: RequestView, replica_id: int, now_s: float) -> None:
        """Take note that a request went to a replica."""
        if self._index is not None:
            self._index.sent(self._index.blocks_of(request), replica_id, now_s)

    def at_time(self, now_s: float) -> None:
        """Forget what is too old."""
        if self._index is not None:
            self._index.forget_old(now_s)

    def keep_only(self, replicas: Sequence[ReplicaLedger]) -> None:
        """Forget replicas that are not ready: whether one that returns has kept its cache, nobody knows."""
        if self._index is not None:
            ready = {replica.replica_id for replica in replicas if replica.ready}
            for replica_id in self._index.known():
                if replica_id not in ready:
                    self._index.forget(replica_id)


def caches_of(index: Knows, block_tokens: int, blocks_per_replica: int, memory_s: float | None) -> Caches:
    """Return what a router's parameters describe."""
    if index == "exact":
        return Caches(None)
    return Caches(
        PrefixIndex(block_tokens=block_tokens, blocks_per_replica=blocks_per_replica, memory_s=memory_s)
    )


class SeesCaches:
    """Mixed into a router that has `Caches`: makes it `policies.api.CacheSeeing` and `policies.api.Timekeeping`."""

    caches: Caches
    now_s = 0.0

    @property
    def needs_caches(self) -> bool:
        """See `policies.api.CacheSeeing`."""
        return self.caches.needs_caches

    def tell_caches(self, cached_tokens: Callable[[str, int], int]) -> None:
        """See `policies.api.CacheSeeing`."""
        self.caches.cached_tokens = cached_tokens

    def at_time(self, now_s: float) -> None:
        """See `policies.api.Timekeeping`."""
        self.now_s = now_s
        self.caches.at_time(now_s)
