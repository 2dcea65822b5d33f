"""Predictive pools as an admission policy: who is next, what still fits, and who is told at once that it cannot.

Order: promises of dedicated and guaranteed, promises of elastic, each by deadline; then bursts, spot, preemptible, each
in fair parts (`policies.predictive_pool.leaves`). A share of the work (``trickle``) goes to the tiers below whoever is
served, so that none starves; it grows with how long they have waited.

Room: slots by count, less what dedicated entitlements keep idle; KV cache by what answers will likely need
(`policies.predictive_pool.books`); prompts up to what the replicas take in within ``prefill_ahead_s``, so that the
order is decided here and not in the engines' queues (`policies.predictive_pool.pace`).

Time: who would miss its objective by the pace of its own line is refused when it comes; who has waited so long that it
must miss it, when that is known.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from policies.api import (
    ADMIT,
    Admit,
    Chance,
    Deny,
    EntitlementSpec,
    Gauge,
    InFlight,
    PoolLedger,
    Queue,
    Reason,
    RequestView,
    ServiceClass,
    Verdict,
)
from policies.meters import ContinuousBucket
from policies.native import mypyc_attr
from policies.parts.lines import Waiting
from policies.parts.names import check_names
from policies.parts.queueing import QueueingPolicy
from policies.parts.rates import whole_s
from policies.predictive_pool.books import Books
from policies.predictive_pool.headroom import Headroom
from policies.predictive_pool.leaves import BURST, PREEMPTIBLE, SPOT, Leaf, grow
from policies.predictive_pool.lineup import Lineup
from policies.predictive_pool.pace import Prefill
from policies.predictive_pool.params import PredictivePool

# A NamedTuple's own constructor is a Python function that calls this, as `policies.core` has it.
_new: Final = tuple.__new__
_DECLARED_S = 1.0
_LONGEST_RETRY_S = 60.0
_SERVICE_S = 1.0
"""Taken for the mean service time until a request has finished. [choice]"""


@mypyc_attr(allow_interpreted_subclasses=True)
class PredictivePoolPolicy(QueueingPolicy):
    """See `policies.api.AdmissionPolicy` and `policies.api.Queueing`."""

    wants_progress = True

    def __init__(
        self, params: PredictivePool, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params, kv_bytes_per_token)
        check_names("parents", params.parents, [spec.name for spec in entitlements])
        self._params = params
        self._leaves, self._roots = grow(
            entitlements, params.parents, by_tree=params.share_by == "tree", bucket_s=params.bucket_s,
            timeout_s=params.timeout_s,
        )
        self._books = Books(params, self._leaves, kv_bytes_per_token)
        self._headroom = Headroom(self._leaves, params.headroom, params.late)
        self._prefill = Prefill()
        self._learns = params.capacity == "learnt"
        self._declared: ContinuousBucket | None = None
        self._lineup = Lineup(self._leaves, self._roots, self._books, params.trickle, self._cost_s)
        self._starting: tuple[Waiting, int, float] | None = None  # who is let in right now after waiting: tier, cost
        self._floor_paid: str | None = None  # who is let in right now by what trickled down

    # ----------------------------------------------------------------------------------------------------------- room

    def _fits(
        self, leaf: Leaf, need_tokens: float, sequences: int, pool: PoolLedger, *, inside: bool, busy: bool
    ) -> bool:
        """Whether one more request fits now; an empty pool takes whatever comes."""
        capacity, in_flight, books = pool.capacity, pool.sequences_in_flight + pool.others_in_flight, self._books
        if not capacity.ready_replicas:
            return False
        if not in_flight and not (books.idle_slots and leaf.inside is None):
            return True
        if busy:
            return False
        kept = 0.0
        if books.idle_slots and not self._lent(leaf):
            kept = books.idle_of_others(leaf, pool)
        if self._headroom.slots and not inside:
            kept += self._headroom.kept_for_others(leaf.spec.name)
        if in_flight + sequences > self._params.occupancy * (capacity.slots - kept):
            return False
        free = books.kv_free(pool)
        if leaf.outside >= SPOT and free < math.inf:  # what can be shed
            free += self._params.overbook * (free + books.kv_tokens)
        return need_tokens <= free

    def _starts_below(self, leaf: Leaf, pool: PoolLedger, now_s: float) -> bool:
        """Whether the first of a leaf that is paid for by what trickled down may start."""
        item = leaf.line.head()
        need_tokens = self._books.need_tokens(item.request, item.max_output_tokens)
        busy = self._is_busy(pool, now_s)
        return self._fits(leaf, need_tokens, item.request.sequences, pool, inside=True, busy=busy)

    def _lent(self, leaf: Leaf) -> bool:
        """Whether it may use what dedicated entitlements have idle: only what is taken back the moment they come."""
        return leaf.outside == PREEMPTIBLE and self._params.take_back and self._params.overbook > 0

    def _is_busy(self, pool: PoolLedger, now_s: float) -> bool:
        """Whether the replicas have as many prompts as they should: what is learnt, or what the profile declares."""
        if self._learns:
            return self._prefill.is_full(self._params.prefill_ahead_s, pool.capacity.ready_replicas)
        return self._declared is not None and self._declared.available(now_s) <= 0

    @staticmethod
    def _where_free(sequences: int, pool: PoolLedger) -> Admit:
        """Let it in where a replica has a slot for it: one that is full would make it wait beside free ones."""
        ready = pool.capacity.ready_replicas
        most = pool.capacity.slots / ready - sequences
        free = [replica.replica_id for replica in pool.replicas if replica.in_flight <= most and replica.ready]
        return _new(Admit, ((), None, tuple(free), True)) if 0 < len(free) < ready else ADMIT

    # --------------------------------------------------------------------------------------------------- verdicts

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Let it in where nobody waits and it fits; refuse what would miss its objective; else let it wait."""
        too_large = self.room.too_large(request, max_output_tokens, pool)
        if too_large is not None:
            return too_large
        leaf = self._leaves[request.entitlement]
        sequences, need_tokens = request.sequences, self._books.need_tokens(request, max_output_tokens)
        if sequences > leaf.most_slots:
            return Deny(Reason.TOO_LARGE, sequences, leaf.most_slots, None)
        own_bytes = (leaf.kv_tokens + need_tokens) * leaf.per_token - leaf.kv_tokens * leaf.per_token
        if own_bytes > leaf.most_kv_bytes:
            return Deny(Reason.TOO_LARGE, own_bytes, leaf.most_kv_bytes, None)
        ledger = pool.entitlements[request.entitlement]
        may_have = leaf.may_have(ledger, sequences, need_tokens, now_s)
        inside = leaf.tier(ledger, sequences, now_s) < BURST
        if may_have and self._fits(
            leaf, need_tokens, sequences, pool, inside=inside, busy=self._is_busy(pool, now_s)
        ):
            # Whoever waits although there is room for this one may not use that room, or goes before it.
            return Queue(Reason.POOL_FULL) if self._waiting else self._where_free(sequences, pool)
        if not self._params.hold:
            return self._no_room(leaf, sequences, pool)
        refusal = self._refusal(request, pool, now_s, inside=inside)
        return Queue(Reason.POOL_FULL if may_have else Reason.CONCURRENCY) if refusal is None else refusal

    def _no_room(self, leaf: Leaf, sequences: int, pool: PoolLedger) -> Deny:
        retry_s = whole_s(self._next_slot_s(pool))
        in_flight = pool.entitlements[leaf.spec.name].in_flight + sequences
        if in_flight > leaf.most_slots:
            return Deny(Reason.CONCURRENCY, in_flight, leaf.most_slots, retry_s)
        return Deny(Reason.POOL_FULL, sequences, 0, retry_s)

    def _refusal(self, request: RequestView, pool: PoolLedger, now_s: float, *, inside: bool) -> Deny | None:
        """Return why it may not wait: the queue is full of what goes first, or it would miss its objective."""
        leaf = self._leaves[request.entitlement]
        if len(self._waiting) >= self._most_requests and leaf.outside >= self._lineup.last_tier():
            return Deny(Reason.QUEUE_FULL, len(self._waiting) + 1, self._most_requests, self.retry_s())
        if self._most_tokens is not None and self._waiting_tokens >= self._most_tokens:
            needed = self._waiting_tokens + request.prompt_tokens
            return Deny(Reason.QUEUE_FULL, needed, self._most_tokens, self.retry_s())
        if not pool.in_flight and not self._waiting:
            return None
        ahead = leaf.fresh if request.attempt == 1 else leaf.line.length
        line_s = leaf.drain.wait_s(ahead, now_s, self._next_slot_s(pool))
        if not ahead and inside:
            line_s = 0.0  # it is next: a slot may come back sooner than they do in the mean
        first_s = self._prefill.ttft_s(request.prompt_tokens * leaf.uncached_share, pool.capacity.ready_replicas)
        ttft_s = line_s + self._params.margin * first_s
        if ttft_s > leaf.deadline_s:
            return Deny(Reason.SLO, ttft_s, leaf.deadline_s, min(whole_s(line_s), _LONGEST_RETRY_S))
        return None

    def _next_slot_s(self, pool: PoolLedger) -> float:
        service_s = _SERVICE_S if pool.mean_service_s is None else pool.mean_service_s
        return service_s / max(1, pool.all_in_flight)

    # --------------------------------------------------------------------------------------------------------- queues

    def timeout_of(self, item: Waiting) -> float | None:
        """Return how long it may wait at most: until its objective."""
        deadline_s = self._leaves[item.flow].deadline_s
        return deadline_s if deadline_s < math.inf else None

    def urgency_of(self, request: RequestView, max_output_tokens: int, now_s: float) -> float:  # noqa: ARG002
        """Return its deadline; one that was refused before has missed its own, and goes behind those that have not."""
        return now_s + self._leaves[request.entitlement].deadline_s * request.attempt

    def joined(self, item: Waiting, now_s: float) -> None:
        """See `QueueingPolicy`; its tier is found when somebody is to be let in."""
        leaf = self._leaves[item.flow]
        if not leaf.line.length:
            leaf.drain.began(now_s)
        leaf.line.push(item)
        leaf.fresh += item.request.attempt == 1
        if leaf.line.length == 1:
            self._lineup.joined(leaf, item)

    def left(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        leaf = self._leaves[item.flow]
        leaf.line.drop(item)
        leaf.fresh -= item.request.attempt == 1
        if not leaf.line.length:
            self._lineup.left(item.flow)

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:
        """Return who is next by tier, or by what has trickled down; None where nobody is."""
        leaf = self._lineup.next_leaf(pool, now_s, self._starts_below)
        return None if leaf is None else leaf.line.head()

    def _cost_s(self, item: Waiting, pool: PoolLedger) -> float:
        """Predict what one will cost that was not looked at before; it is kept."""
        item.cost = self._books.cost_s(item.request, item.max_output_tokens, self._prefill.per_token_s, pool)
        return item.cost

    def dispatch(self, pool: PoolLedger, now_s: float) -> Iterator[tuple[str, Verdict]]:
        """See `policies.api.Queueing`."""
        if self._expiring and self._is_due(now_s):
            yield from self._refuse_late(pool, now_s)
        while len(self._waiting) > self._most_requests and (victim := self.displaced()) is not None:
            waiting = len(self._waiting)
            self._remove(victim, now_s)
            yield victim.request.request_id, Deny(Reason.QUEUE_FULL, waiting, self._most_requests, self.retry_s())
        while self._waiting and pool.capacity.ready_replicas:
            in_flight = pool.sequences_in_flight + pool.others_in_flight
            shut = in_flight > 0 and not self._books.preemptible  # to all, where there is no room and none to be made
            if shut and in_flight + 1 > self._params.occupancy * pool.capacity.slots:
                return
            busy = self._is_busy(pool, now_s)
            if shut and busy:
                return
            leaf = self._lineup.next_leaf(pool, now_s, self._starts_below)
            if leaf is None:
                return
            item = leaf.line.head()
            request = item.request
            if leaf.has_objective and pool.in_flight:
                late_s = self._late_s(item, leaf, pool, now_s)
                if late_s > 0:
                    self._missed(item)
                    self._remove(item, now_s)
                    yield request.request_id, self._too_late(leaf, leaf.deadline_s + late_s, now_s)
                    continue
            tier = self._lineup.tier_of[item.flow]
            need_tokens = self._books.need_tokens(request, item.max_output_tokens)
            inside = tier < BURST or self._lineup.is_floor
            if self._fits(leaf, need_tokens, request.sequences, pool, inside=inside, busy=busy):
                verdict = self._where_free(request.sequences, pool)
            else:
                victims = self._victims(leaf, item, pool, now_s)
                if not victims:
                    return
                verdict = Admit(tuple(victims))
            self._start(item, leaf, tier, pool, now_s)
            yield request.request_id, verdict

    def _missed(self, item: Waiting) -> None:
        """Take note of one that was promised a slot and did not get it in time."""
        if item.request.attempt == 1 and self._lineup.tier_of.get(item.flow, BURST) < BURST:
            self._headroom.served(item.flow, late=True)

    def _late_s(self, item: Waiting, leaf: Leaf, pool: PoolLedger, now_s: float) -> float:
        """Return by how much it would miss its objective if it were let in now; below 0 where it would not."""
        ttft_s = self._prefill.ttft_s(item.request.prompt_tokens * leaf.uncached_share, pool.capacity.ready_replicas)
        return now_s + self._params.margin * ttft_s - item.since_s - leaf.deadline_s

    def _start(self, item: Waiting, leaf: Leaf, tier: int, pool: PoolLedger, now_s: float) -> None:
        cost = item.cost or self._cost_s(item, pool)
        self._floor_paid = item.request.request_id if self._lineup.started(tier, cost, now_s) else None
        leaf.drain.moved(now_s)
        waited_s = now_s - item.since_s
        mean_s = self._mean_wait_s
        self._mean_wait_s = waited_s if mean_s is None else mean_s + 0.1 * (waited_s - mean_s)
        self._remove(item, now_s)
        self._starting = item, tier, cost

    def _is_due(self, now_s: float) -> bool:
        """Whether the first that waited as long as it may would be late if it were let in now, or waits no longer."""
        until_s, _, item = self._expiring[0]
        return item.gone or until_s <= now_s + self._prefill.base_s

    def _refuse_late(self, pool: PoolLedger, now_s: float) -> Iterator[tuple[str, Verdict]]:
        expiring = self._expiring
        while expiring and self._is_due(now_s):
            item = heapq.heappop(expiring)[2]
            if item.gone:
                continue
            leaf = self._leaves[item.flow]
            waited_s = now_s - item.since_s
            self._missed(item)
            self._remove(item, now_s)
            if leaf.has_objective:
                uncached_tokens = item.request.prompt_tokens * leaf.uncached_share
                ttft_s = waited_s + self._prefill.ttft_s(uncached_tokens, pool.capacity.ready_replicas)
                yield item.request.request_id, self._too_late(leaf, ttft_s, now_s)
            else:
                needed_s = max(waited_s, math.nextafter(leaf.deadline_s, math.inf))
                yield item.request.request_id, Deny(
                    Reason.QUEUE_TIMEOUT, needed_s, leaf.deadline_s, self.retry_s(), self._timeout_status
                )

    def _too_late(self, leaf: Leaf, ttft_s: float, now_s: float) -> Deny:
        needed_s = max(ttft_s, math.nextafter(leaf.deadline_s, math.inf))  # rounding may hide by how little
        retry_s = whole_s(leaf.drain.wait_s(leaf.line.length, now_s, leaf.deadline_s))
        return Deny(Reason.SLO, needed_s, leaf.deadline_s, min(retry_s, _LONGEST_RETRY_S))

    def _victims(self, leaf: Leaf, item: Waiting, pool: PoolLedger, now_s: float) -> list[str]:
        """Return the preemptible requests to end, the youngest first, for a promise that would be late without."""
        ledger = pool.entitlements[item.flow]
        if not self._params.take_back or leaf.tier(ledger, item.request.sequences, now_s) >= BURST:
            return []
        slack_s = -self._late_s(item, leaf, pool, now_s)
        own_slot = leaf.spec.service_class is ServiceClass.DEDICATED and ledger.in_flight < leaf.slots
        if not own_slot and slack_s > 2 * max(self._next_slot_s(pool), self._params.tick_s):
            return []
        kept = self._books.idle_of_others(leaf, pool)
        slots_over = pool.all_in_flight + item.request.sequences - (pool.capacity.slots - kept)
        tokens_over = self._books.need_tokens(item.request, item.max_output_tokens) - self._books.kv_free(pool)
        victims: list[str] = []
        for request_id, flight in reversed(self._books.preemptible.items()):
            if slots_over <= 0 and tokens_over <= 0:
                break
            victims.append(request_id)
            slots_over -= flight.request.sequences
            tokens_over -= self._books.kv_tokens_of(request_id)
        return victims if slots_over <= 0 and tokens_over <= 0 else []

    def displaced(self) -> Waiting | None:
        """Return the last of the longest line of the last tier that waits."""
        names = [name for name, tier in self._lineup.tier_of.items() if tier == self._lineup.last_tier()]
        longest = max((self._leaves[name] for name in sorted(names)), key=lambda leaf: leaf.line.length, default=None)
        return None if longest is None else longest.line.last()

    # ---------------------------------------------------------------------------------------------------------- books

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Reserve for it, and charge its promise, or its part of what is left."""
        self.room.reserved_tokens += flight.reserved_tokens
        request = flight.request
        name = request.entitlement
        leaf = self._leaves[name]
        starting, self._starting = self._starting, None
        if starting is not None and starting[0].request.request_id == request.request_id:
            _, tier, cost = starting
        else:  # it did not wait
            tier, cost = leaf.tier(flight.ledger, 0, now_s), 0.0
        if tier < BURST:
            self._headroom.served(name, late=False)
        else:
            cost = cost or self._books.cost_s(request, flight.max_output_tokens, self._prefill.per_token_s, pool)
            leaf.parent.charge(self._roots[tier], cost)
            leaf.turn.charge(leaf.parent, cost)
        self._books.admitted(flight, leaf, pool, now_s, kept=self._floor_paid == request.request_id)
        self._prefill.admitted(flight, request.prompt_tokens * leaf.uncached_share)
        self._headroom.moved(name, flight.ledger.in_flight)
        if self._declared is not None:
            self._declared.reserve(request.prompt_tokens, now_s)

    def on_first_token(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Learn how fast prompts are taken in."""
        self._prefill.first_token(flight, now_s)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Settle it, and learn how long answers are and how much of prompts is cached."""
        self.room.reserved_tokens -= flight.reserved_tokens
        self._prefill.ended(flight)
        leaf = self._books.ended(flight, pool, now_s)
        name = flight.request.entitlement
        self._headroom.moved(name, flight.ledger.in_flight)
        if self._declared is not None:
            self._declared.reserve(flight.output_tokens, now_s)
        if leaf.line.length and leaf.waits_for_own:
            self._lineup.look_at(name, pool, now_s)

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        """Look again at what runs and at who waits."""
        self._books.progressed(pool)
        self._prefill.ticked(now_s)
        self._headroom.ticked(pool, self._params.margin * self._prefill.base_s, now_s)
        if self._waiting:
            self._lineup.look_at_all(pool, now_s)

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:
        """Take note of how large a request may be, and of the rate that is declared."""
        super().on_capacity(pool, now_s)
        rate = pool.capacity.tokens_per_s
        if self._params.capacity == "declared" and rate:
            if self._declared is None:
                self._declared = ContinuousBucket(rate_per_s=rate, depth=_DECLARED_S * rate)
            self._declared.refit(rate_per_s=rate, depth=_DECLARED_S * rate, now_s=now_s)

    def faults(self, pool: PoolLedger, held: Mapping[str, RequestView]) -> Iterable[str]:
        """See `policies.api.Auditing`."""
        yield from super().faults(pool, held)
        yield from self._books.faults(pool)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:
        """Return how much waits, what is reserved and kept free, the pace of prompts, and what is promised."""
        yield from super().gauges(pool, now_s)
        yield Gauge("pool", "pool", "reserved_kv_tokens", self._books.kv_tokens)
        yield Gauge("pool", "pool", "prefill_s_per_1000_tokens", 1000 * self._prefill.per_token_s)
        yield Gauge("pool", "pool", "first_token_s", self._prefill.base_s)
        yield Gauge("pool", "pool", "kept_free_slots", self._headroom.slots)
        for name, leaf in self._leaves.items():
            yield Gauge("entitlement", name, "waiting", leaf.line.length)
            if leaf.bucket is not None:
                yield Gauge("entitlement", name, "promise_left_tokens", leaf.bucket.available(now_s))
