"""To the replica that has most of the prompt, unless it owes too much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import ReplicaLedger, RequestView
from policies.routers.caches import (
    BLOCK_TOKENS,
    BLOCKS_PER_REPLICA,
    INDEX,
    MEMORY_S,
    Knows,
    SeesCaches,
    caches_of,
)
from policies.routers.prefix_index import LEAST_BLOCK_TOKENS, LRU_BLOCKS, members


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAware:
    """The replica that has most of the prompt, of those that owe at most ``slack_tokens`` more than the least loaded.

    What a replica owes are prompt + max_output_tokens of what is in flight there, by the gateway's own books, which are
    never old; of a replica that is twice as fast they count half. Of those that have as much, the one that owes least;
    then the lowest number. A slack of 0 is least loaded with cached prefixes to break ties; a very large one is
    affinity alone, which overloads whoever was first.
    """

    kind: Literal["prefix-aware"] = "prefix-aware"
    slack_tokens: int = field(
        default=8192, metadata={"ge": 0, "description": "give tokens that one may owe beyond the least, e.g. 8192"}
    )
    index: Knows = field(default="approximate", metadata=INDEX)
    block_tokens: int = field(default=LEAST_BLOCK_TOKENS, metadata=BLOCK_TOKENS)
    blocks_per_replica: int = field(default=LRU_BLOCKS, metadata=BLOCKS_PER_REPLICA)
    memory_s: float | None = field(default=None, metadata=MEMORY_S)


class PrefixAwareRouter(SeesCaches):
    """See `policies.api.Router`."""

    def __init__(self, params: PrefixAware) -> None:
        self._slack_tokens = params.slack_tokens
        self.caches = caches_of(params.index, params.block_tokens, params.blocks_per_replica, params.memory_s)
        self.wants_prefixes = params.index == "approximate"

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:
        """See `policies.api.Router`."""
        owed = {book.replica_id: book.outstanding_tokens / book.speed for book in replicas if book.ready}
        if not owed:
            return None
        most = min(owed.values()) + self._slack_tokens
        chosen = None
        for _, having in self.caches.shares(request, replicas):
            near = [(owed[one], one) for one in members(having) if one in owed and owed[one] <= most]
            if near:
                chosen = min(near)[1]
                break
        if chosen is None:
            chosen = min((tokens, one) for one, tokens in owed.items())[1]
        self.caches.sent(chosen, self.now_s)
        return chosen

    def follow(self, replicas: Sequence[ReplicaLedger]) -> None:
        """See `policies.api.LoadFollowing`."""
        self.caches.keep_only(replicas)

    def lighter(self, replica: ReplicaLedger) -> None:
        """See `policies.api.LoadFollowing`: each look is at all replicas."""
