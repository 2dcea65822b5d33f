"""Deficit longest prefix match: whoever has most of its prompt in a cache, among clients that are not ahead.

A client's deficit is what it may still be served. Among clients with one above 0, the request goes first whose prompt
is cached the furthest; what must be computed of it, and each token of its answer, is taken off. Where nobody who waits
has any left, every client at or below 0 gets a quantum. A large quantum is locality, a small one fairness: clients that
wait all the time are never further apart than 2 (quantum + U), U being what was charged after the last look.

Source: arXiv 2501.14312, and ``fair_scheduler.py`` of the sglang fork tazjin/sglang, which follows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from policies.api import (
    ADMIT,
    Admit,
    Chance,
    EntitlementSpec,
    Gauge,
    InFlight,
    PoolLedger,
    ReplicaLedger,
    RequestView,
    Verdict,
)
from policies.parts.lines import Waiting
from policies.parts.queueing import QueueingPolicy
from policies.parts.waits import Waits
from policies.routers.caches import BLOCK_TOKENS, BLOCKS_PER_REPLICA, INDEX, MEMORY_S, Knows, caches_of
from policies.routers.prefix_index import LEAST_BLOCK_TOKENS, LRU_BLOCKS, members


@dataclass(frozen=True, slots=True, kw_only=True)
class Dlpm(Waits):
    """The longest cached prefix among clients with deficit left: locality-aware fair queueing (arXiv 2501.14312).

    An admitted prompt costs ``input_weight`` for each token that is not in a cache, and each token of the answer 1, as
    it is seen. It goes to the replica with a free slot that has most of it. At most the first ``looks_at`` that wait
    are compared, as sglang gives longest-prefix order up beyond 128. Quantum and weight have no published defaults.
    [choice]
    """

    kind: Literal["dlpm"] = "dlpm"
    quantum: float = field(default=4096.0, metadata={"gt": 0, "description": "give tokens of a refill, e.g. 4096"})
    input_weight: float = field(
        default=1.0, metadata={"ge": 0, "description": "give what a prompt token that must be computed costs, e.g. 1"}
    )
    flow: Literal["entitlement", "tenant"] = field(
        default="entitlement", metadata={"description": "entitlement: a deficit for each; tenant: one for all of its"}
    )
    looks_at: int = field(
        default=64, metadata={"gt": 0, "le": 10_000, "description": "give how many of those that wait to compare, 64"}
    )
    index: Knows = field(default="approximate", metadata=INDEX)
    block_tokens: int = field(default=LEAST_BLOCK_TOKENS, metadata=BLOCK_TOKENS)
    blocks_per_replica: int = field(default=LRU_BLOCKS, metadata=BLOCKS_PER_REPLICA)
    memory_s: float | None = field(default=None, metadata=MEMORY_S)
    tick_s: float = field(default=0.25, metadata={"gt": 0, "description": "give seconds between looks, e.g. 0.25"})


class DlpmPolicy(QueueingPolicy):
    """See `policies.parts.queueing.QueueingPolicy`. Whoever is next waits for room, and nobody overtakes it."""

    wants_progress = True

    def __init__(
        self, params: Dlpm, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params, kv_bytes_per_token)
        self._params = params
        self._flows = {
            spec.name: spec.tenant if params.flow == "tenant" else spec.name
            for spec in sorted(entitlements, key=lambda spec: spec.name)
        }
        self._deficit = dict.fromkeys(self._flows.values(), 0.0)
        self._waiting_of = dict.fromkeys(self._deficit, 0)
        self._charged: dict[str, tuple[int, int]] = {}  # prompt and output tokens, of what is in flight
        self.caches = caches_of(params.index, params.block_tokens, params.blocks_per_replica, params.memory_s)
        self.wants_prefixes = params.index == "approximate"

    @property
    def needs_caches(self) -> bool:
        """See `policies.api.CacheSeeing`."""
        return self.caches.needs_caches

    def tell_caches(self, cached_tokens: Callable[[str, int], int]) -> None:
        """See `policies.api.CacheSeeing`."""
        self.caches.cached_tokens = cached_tokens

    def deficit(self, flow: str) -> float:
        """Return what a client may still be served."""
        return self._deficit[flow]

    def flow_of(self, request: RequestView) -> str:
        """Return its entitlement or tenant."""
        return self._flows[request.entitlement]

    # ------------------------------------------------------------------------------------------------------ who is next

    @staticmethod
    def _free(pool: PoolLedger) -> dict[int, ReplicaLedger]:
        """Return the replicas with a free slot."""
        each = pool.capacity.slots / max(1, pool.capacity.ready_replicas)
        return {
            book.replica_id: book for book in pool.replicas if book.ready and book.in_flight < (book.slots or each)
        }  # fmt: skip

    def _best(
        self, request: RequestView, pool: PoolLedger, free: dict[int, ReplicaLedger]
    ) -> tuple[float, int | None]:
        """Return how much of a prompt is cached, as a share, at which of these replicas: the least loaded."""
        for share, having in self.caches.shares(request, pool.replicas):
            there = [free[one] for one in members(having) if one in free]
            if there:
                return share, min(there, key=lambda book: (book.outstanding_tokens, book.replica_id)).replica_id
        return 0.0, None

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Let it in where its text is, if nobody waits and it fits; else let it wait if it may."""
        verdict = super().decide(request, max_output_tokens, pool, now_s)
        return self._there(request, pool) if verdict is ADMIT else verdict

    def outcome(self, item: Waiting, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Let it in where its text is."""
        return self._there(item.request, pool)

    def _there(self, request: RequestView, pool: PoolLedger) -> Verdict:
        _, replica_id = self._best(request, pool, self._free(pool))
        return ADMIT if replica_id is None else Admit(replicas=(replica_id,), at_first=True)

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:
        """Return the longest cached prefix among clients with deficit left, the first come of equals, if it fits."""
        self.caches.at_time(now_s)
        near = list(islice(self._waiting.values(), self._params.looks_at))
        self._refill({item.flow for item in near})
        best, most, free = None, -1.0, self._free(pool)
        for item in near:
            if self._deficit[item.flow] > 0:
                request = item.request
                if best is not None and not self.caches.may_know(request):
                    continue  # nothing of it is found, and somebody before it has at least as much
                tokens = self._best(request, pool, free)[0] * request.prompt_tokens
                if tokens > most:
                    best, most = item, tokens
        if best is None or not self.room.fits(best.need_tokens, pool, best.request.sequences):
            return None
        return best

    def _refill(self, flows: Collection[str]) -> None:
        """Give quanta to all who are at or below 0, as often as it takes until one of these clients is above."""
        deficit, quantum = self._deficit, self._params.quantum
        for flow in flows:
            if deficit[flow] > 0:
                return
        rounds = min((math.floor(-deficit[flow] / quantum) + 1 for flow in flows), default=0)
        for flow, left in deficit.items():
            if left <= 0:
                deficit[flow] = left + quantum * min(rounds, math.floor(-left / quantum) + 1)

    def joined(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        self._waiting_of[item.flow] += 1

    def left(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        item.gone = True
        self._waiting_of[item.flow] -= 1

    # ------------------------------------------------------------------------------------------------------------ books

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Charge what must be computed of its prompt, and remember where its text is from now on."""
        super().on_admitted(flight, pool, now_s)
        request = flight.request
        flow = self._flows[request.entitlement]
        if self.taken(flight) is None:  # nobody waited: as if a look had found it alone
            self._refill([flow])
        cached = self.caches.share_at(request, flight.replica_id)
        uncached_tokens = request.prompt_tokens - round(cached * request.prompt_tokens)
        self._charged[request.request_id] = uncached_tokens, 0
        self._deficit[flow] -= self._params.input_weight * uncached_tokens
        self.caches.took(request, flight.replica_id, now_s)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Charge the rest of the answer, and correct the prompt where the replica says how much it found."""
        super().on_ended(flight, pool, now_s)
        flow = self._flows[flight.request.entitlement]
        uncached_tokens, seen_tokens = self._charged.pop(flight.request.request_id)
        self._deficit[flow] -= flight.output_tokens - seen_tokens
        if flight.cached_tokens:
            computed_tokens = flight.request.prompt_tokens - flight.cached_tokens
            self._deficit[flow] -= self._params.input_weight * (computed_tokens - uncached_tokens)

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Charge the output that came since the last look."""
        for request_id, flight in pool.in_flight.items():
            uncached_tokens, seen_tokens = self._charged[request_id]
            if flight.output_tokens > seen_tokens:
                self._charged[request_id] = uncached_tokens, flight.output_tokens
                self._deficit[self._flows[flight.request.entitlement]] -= flight.output_tokens - seen_tokens

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:
        """Forget the caches of replicas that are gone."""
        super().on_capacity(pool, now_s)
        self.caches.keep_only(pool.replicas)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:
        """Return how much waits, and what each may still be served."""
        yield from super().gauges(pool, now_s)
        scope = "tenant" if self._params.flow == "tenant" else "entitlement"
        for flow, left in self._deficit.items():
            yield Gauge(scope, flow, "deficit", left)
            yield Gauge(scope, flow, "queue_requests", self._waiting_of[flow])
