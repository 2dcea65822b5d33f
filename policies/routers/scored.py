"""Weighted scores of each replica: queue, KV cache in use, and how much of the prompt it has, as llm-d's default.

Queue and KV cache come from the replicas' reports, as old as the last scrape, so what was sent since is not seen: a
burst goes where the last report was best. Scores of reports are worked out once a scrape, and replicas with equal ones
are kept together as bits of a number, so that a request costs the same for 2 and for 256 replicas.

Source: llm-d-router at commit ebab687 (2026-08-22), ``loader/defaults.go`` (weights 2, 2, 3), ``scorer/queuedepth``,
``scorer/kvcacheutilization``, ``scorer/prefix``, ``picker/maxscore`` (ties drawn evenly).
"""

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
from policies.routers.draws import Draws
from policies.routers.prefix_index import LEAST_BLOCK_TOKENS, LRU_BLOCKS, members

_WEIGHT = "give the weight of {}, e.g. {}, or 0 to leave it out"
SEED = {"ge": 0, "lt": 2**64, "description": "give a whole number that the draws among equals begin with, e.g. 1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Any ready replica, each as likely."""

    kind: Literal["random"] = "random"
    seed: int = field(default=0, metadata=SEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The largest weighted score of queue, free KV cache and cached prefix (llm-d's default profile: 2, 2, 3).

    A queue scores (most - waiting) / (most - least) over the ready replicas, 1 where all are alike; KV cache the share
    that is free; a prefix the share of the prompt's blocks that the replica was sent before. Without a report a
    replica counts as idle. Ties are drawn. ``{queue_weight: 1, kv_weight: 0, prefix_weight: 0}`` is least waiting.
    """

    kind: Literal["scored"] = "scored"
    queue_weight: float = field(
        default=2.0, metadata={"ge": 0, "description": _WEIGHT.format("waiting requests", "2")}
    )
    kv_weight: float = field(default=2.0, metadata={"ge": 0, "description": _WEIGHT.format("free KV cache", "2")})
    prefix_weight: float = field(
        default=3.0, metadata={"ge": 0, "description": _WEIGHT.format("cached prefixes", "3")}
    )
    index: Knows = field(default="approximate", metadata=INDEX)
    block_tokens: int = field(default=LEAST_BLOCK_TOKENS, metadata=BLOCK_TOKENS)
    blocks_per_replica: int = field(default=LRU_BLOCKS, metadata=BLOCKS_PER_REPLICA)
    memory_s: float | None = field(default=None, metadata=MEMORY_S)
    seed: int = field(default=0, metadata=SEED)


class RandomRouter:
    """See `policies.api.Router`."""

    def __init__(self, params: Random) -> None:
        self._draws = Draws(params.seed)

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:  # noqa: ARG002
        """See `policies.api.Router`."""
        ready = [replica.replica_id for replica in replicas if replica.ready]
        return ready[self._draws.below(len(ready))] if ready else None


class ScoredRouter(SeesCaches):
    """See `policies.api.Router`."""

    wants_reports = True

    def __init__(self, params: Scored) -> None:
        self._params = params
        self._draws = Draws(params.seed)
        self.caches = caches_of(params.index, params.block_tokens, params.blocks_per_replica, params.memory_s)
        self.wants_prefixes = params.prefix_weight > 0 and params.index == "approximate"
        self._followed: Sequence[ReplicaLedger] | None = None
        self._by_report: list[tuple[float, int]] | None = None

    @property
    def needs_caches(self) -> bool:
        """See `policies.api.CacheSeeing`."""
        return self._params.prefix_weight > 0 and self.caches.needs_caches

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:
        """See `policies.api.Router`."""
        if replicas is self._followed:
            if self._by_report is None:
                self._by_report = self._scores(replicas)
            scores = self._by_report
        else:
            scores = self._scores(replicas)
        if not scores:
            return None
        best, chosen = scores[0]
        weight = self._params.prefix_weight
        if weight:
            for share, having in self.caches.shares(request, replicas):
                # Of those that have as much, the best by report: the first of `scores` that is among them.
                for score, among in scores:
                    if both := among & having:
                        total = score + weight * share
                        if total > best:
                            best, chosen = total, both
                        elif total == best:
                            chosen |= both
                        break
        replica_id = self._one_of(chosen)
        if weight:
            self.caches.sent(replica_id, self.now_s)
        return replica_id

    def _one_of(self, among: int) -> int:
        count = among.bit_count()
        drawn = self._draws.below(count) if count > 1 else 0
        return next(replica_id for place, replica_id in enumerate(members(among)) if place == drawn)

    def _scores(self, replicas: Sequence[ReplicaLedger]) -> list[tuple[float, int]]:
        """Return (score by report, replicas that have it as bits), the best first."""
        ready = [replica for replica in replicas if replica.ready]
        waiting = [0 if replica.report is None else replica.report.waiting for replica in ready]
        least, most = min(waiting, default=0), max(waiting, default=0)
        params = self._params
        scores: dict[float, int] = {}
        for replica, queue in zip(ready, waiting, strict=True):
            by_queue = 1.0 if most == least else (most - queue) / (most - least)
            used = 0.0 if replica.report is None else replica.report.kv_used_fraction
            score = params.queue_weight * by_queue + params.kv_weight * min(1.0, max(0.0, 1 - used))
            scores[score] = scores.get(score, 0) | 1 << replica.replica_id
        return sorted(scores.items(), reverse=True)

    def reported(self, replica: ReplicaLedger) -> None:  # noqa: ARG002
        """See `policies.api.ReportFollowing`."""
        self._by_report = None

    def follow(self, replicas: Sequence[ReplicaLedger]) -> None:
        """See `policies.api.LoadFollowing`."""
        self._followed, self._by_report = replicas, None
        self.caches.keep_only(replicas)

    def lighter(self, replica: ReplicaLedger) -> None:
        """See `policies.api.LoadFollowing`: what is owed is not looked at."""
