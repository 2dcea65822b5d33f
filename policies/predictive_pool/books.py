"""What running requests are charged for: KV cache for the answer that is likely, and what they took of a promise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from policies.api import InFlight, PoolLedger, RequestView, ServiceClass
from policies.native import mypyc_attr
from policies.predictive_pool.leaves import PREEMPTIBLE, Leaf
from policies.predictive_pool.lengths import Lengths
from policies.predictive_pool.params import PredictivePool

_FRESH = 0.05
_FIRST_SERVICE_S = 1.0


@mypyc_attr(allow_interpreted_subclasses=True)
class Books:
    """Reservations of all that runs.

    Attributes
    ----------
    kv_tokens : reserved for all requests in flight.
    idle_slots : what dedicated entitlements were promised and do not use.
    preemptible : requests that may be taken back, the youngest last.
    """

    def __init__(self, params: PredictivePool, leaves: Mapping[str, Leaf], kv_bytes_per_token: float | None) -> None:
        self._params = params
        self._leaves = leaves
        self._per_token = kv_bytes_per_token or 0.0
        self._predicts = params.reserve == "predicted"
        self._spared = 1.0 - params.cached_weight
        self._lengths = Lengths(params.quantile, params.answers)
        self._charges: dict[str, tuple[Leaf, float, float]] = {}  # KV cache reserved, and taken from the promise
        for leaf in leaves.values():
            leaf.per_token = self._per_token
        self._dedicated = [
            leaf for leaf in leaves.values() if leaf.spec.service_class is ServiceClass.DEDICATED and leaf.slots
        ]
        self.kv_tokens = 0.0
        self.idle_slots = math.fsum(leaf.slots for leaf in self._dedicated)
        self.preemptible: dict[str, InFlight] = {}

    # ---------------------------------------------------------------------------------------------------- predictions

    def need_tokens(self, request: RequestView, max_output_tokens: int) -> float:
        """Return the KV cache to reserve for a request, in tokens."""
        if not self._predicts:
            return request.prompt_tokens + max_output_tokens
        return request.prompt_tokens + self._lengths.expected(request.entitlement, max_output_tokens)

    def paid_tokens(self, request: RequestView, output_tokens: float, cached_share: float) -> float:
        """Return the tokens that count against a promise: what is cached counts for less."""
        return request.prompt_tokens * (1.0 - self._spared * cached_share) + output_tokens

    def kv_tokens_of(self, request_id: str) -> float:
        """Return what is reserved for a request in flight."""
        return self._charges[request_id][1]

    def kv_free(self, pool: PoolLedger) -> float:
        """Return the tokens of KV cache that are not reserved; infinite where the cache is not known."""
        kv_bytes = pool.capacity.kv_bytes
        if kv_bytes is None or not self._per_token:
            return math.inf
        return kv_bytes / self._per_token - self.kv_tokens - pool.others_reserved_tokens

    def idle_of_others(self, leaf: Leaf, pool: PoolLedger) -> float:
        """Return the idle slots that are kept for dedicated entitlements other than this one."""
        if not self.idle_slots:
            return 0.0
        own = leaf.slots - pool.entitlements[leaf.spec.name].in_flight if leaf in self._dedicated else 0.0
        return self.idle_slots - max(0.0, own)

    def cost_s(self, request: RequestView, max_output_tokens: int, per_token_s: float, pool: PoolLedger) -> float:
        """Return what a request costs, in seconds of the whole pool: its largest part of any resource, for as long.

        A slot and KV cache are taken for the mean service time, a replica for as long as it takes in the prompt.
        """
        ready_replicas, slots, _, kv_bytes = pool.capacity
        name = request.entitlement
        service_s = pool.entitlements[name].mean_service_s or pool.mean_service_s or _FIRST_SERVICE_S
        part = request.sequences / (slots or 1)
        if kv_bytes and self._per_token:
            of_kv = self.need_tokens(request, max_output_tokens) * self._per_token / kv_bytes
            if of_kv > part:
                part = of_kv
        held_s = part * service_s
        prefill_s = request.prompt_tokens * self._leaves[name].uncached_share * per_token_s / (ready_replicas or 1)
        return held_s if held_s > prefill_s else prefill_s

    # ---------------------------------------------------------------------------------------------------------- books

    def admitted(self, flight: InFlight, leaf: Leaf, pool: PoolLedger, now_s: float, *, kept: bool) -> None:
        """Reserve for one that is let in; ``kept`` where it is not to be taken back."""
        request = flight.request
        output = self._lengths.expected(request.entitlement, flight.max_output_tokens)
        paid = self.paid_tokens(request, output, leaf.cached_share)
        kv_tokens = request.prompt_tokens + (output if self._predicts else flight.max_output_tokens)
        self._charges[request.request_id] = leaf, kv_tokens, paid
        self.kv_tokens += kv_tokens
        leaf.kv_tokens += kv_tokens
        leaf.charge(paid, now_s)
        if self._dedicated:
            self._count_idle(pool)
        if leaf.outside == PREEMPTIBLE and not kept:
            self.preemptible[request.request_id] = flight

    def ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> Leaf:
        """Settle one that ended, and return its leaf: its promise pays for what was done, and what it was is learnt."""
        request = flight.request
        leaf, kv_tokens, paid = self._charges.pop(request.request_id)
        self.kv_tokens -= kv_tokens
        leaf.kv_tokens -= kv_tokens
        if not self._charges:
            self.kv_tokens = 0.0  # sums of parts would leave a rest
            for each in self._leaves.values():
                each.kv_tokens = 0.0
        if self.preemptible:
            self.preemptible.pop(request.request_id, None)
        if self._dedicated:
            self._count_idle(pool)
        done = 0.0
        if flight.prompt_credited:
            cached = flight.cached_tokens
            share = min(1.0, cached / max(1, request.prompt_tokens)) if cached else 0.0
            leaf.cached_share += _FRESH * (share - leaf.cached_share)
            leaf.uncached_share = 1.0 - leaf.cached_share
            self._lengths.learn(request.entitlement, flight.output_tokens)
            done = self.paid_tokens(request, flight.output_tokens, share)
            before = leaf.paid_tokens
            leaf.paid_tokens = done if before is None else before + _FRESH * (done - before)
        leaf.charge(done - paid, now_s)
        return leaf

    def progressed(self, pool: PoolLedger) -> None:
        """Reserve for what runs what it will likely need, by how far it has come."""
        if not self._predicts or not self._per_token or pool.capacity.kv_bytes is None:
            return
        for request_id, (leaf, kv_tokens, paid) in self._charges.items():
            flight = pool.in_flight[request_id]
            if flight.output_tokens:
                request = flight.request
                output = self._lengths.expected_after(
                    request.entitlement, flight.output_tokens, flight.max_output_tokens
                )
                more = request.prompt_tokens + output - kv_tokens
                self._charges[request_id] = leaf, kv_tokens + more, paid
                leaf.kv_tokens += more
                self.kv_tokens += more

    def _count_idle(self, pool: PoolLedger) -> None:
        books = pool.entitlements
        self.idle_slots = math.fsum(max(0.0, leaf.slots - books[leaf.spec.name].in_flight) for leaf in self._dedicated)

    def faults(self, pool: PoolLedger) -> Iterable[str]:
        """Return what does not agree with the core's books."""
        if self._charges.keys() != pool.in_flight.keys():
            yield f"{sorted(self._charges.keys() ^ pool.in_flight.keys())[:5]} are charged for or in flight, not both"
        reserved = math.fsum(kv_tokens for _, kv_tokens, _ in self._charges.values())
        if not math.isclose(reserved, self.kv_tokens, rel_tol=1e-6, abs_tol=1e-3):
            yield f"{self.kv_tokens} tokens are reserved, by request {reserved}"
