"""The entitlements as leaves of a tree: what each was promised and has used of it, and whose turn a burst is.

A leaf goes before all others while it is inside its promise: tokens/s where those are promised, else slots, else KV
cache. Outside it, parents share what is left, and leaves their parent's part, by start-time fair queueing [1]_: who
comes back from idling starts where the others are, with neither credit nor debt.

References
----------
.. [1] P. Goyal, H. M. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from policies.api import EntitlementLedger, EntitlementSpec, Resources, ServiceClass
from policies.meters import ContinuousBucket
from policies.native import mypyc_attr
from policies.parts.lines import Line
from policies.predictive_pool.pace import Drain

PROMISED, ELASTIC, BURST, SPOT, PREEMPTIBLE = range(5)
"""Tiers, the first served first: promises of dedicated and guaranteed, those of elastic, what goes beyond either."""
_OUTSIDE = {ServiceClass.SPOT: SPOT, ServiceClass.PREEMPTIBLE: PREEMPTIBLE}
_INSIDE = {
    ServiceClass.DEDICATED: PROMISED, ServiceClass.GUARANTEED: PROMISED, ServiceClass.ELASTIC: ELASTIC,
}  # fmt: skip


@mypyc_attr(allow_interpreted_subclasses=True)
class Turn:
    """One node's place in start-time fair queueing, and the virtual time of the nodes below it."""

    __slots__ = ("finish", "virtual", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.finish = 0.0
        self.virtual = 0.0

    def start(self, parent: Turn) -> float:
        """Return the tag by which it is chosen among its parent's nodes, the least first."""
        return parent.virtual if parent.virtual > self.finish else self.finish

    def charge(self, parent: Turn, cost: float) -> None:
        """Count what it was given; below 0 where it was charged too much before."""
        if cost > 0:
            parent.virtual = start = self.start(parent)
            self.finish = start + cost / self.weight
        else:
            self.finish = max(0.0, self.finish + cost / self.weight)


@mypyc_attr(allow_interpreted_subclasses=True)
class Leaf:
    """One entitlement.

    Attributes
    ----------
    spec : what was promised.
    inside, outside : its tiers.
    deadline_s : seconds from arrival by which a first token is due; the timeout where there is no objective.
    bucket : its promise in tokens, filled at its rate; None where no rate is promised.
    most : limit of tokens as a bucket; None where there is none.
    limited : whether it has limits of its own.
    waits_for_own : whether its place may get better when one of its own ends, and not only with time.
    turn, parent : its places in fair sharing.
    cached_share, uncached_share : of its prompts' tokens, lately: what was found in a cache, and what was computed.
    kv_tokens, per_token : what is reserved for it, and the bytes of each.
    fresh : how many of those that wait were never refused before.
    paid_tokens : what its finished requests took of its promise, lately, in the mean.
    """

    __slots__ = (
        "bucket", "cached_share", "deadline_s", "drain", "fresh", "has_objective", "inside", "kv_bytes", "kv_tokens",
        "limited", "line", "most", "most_kv_bytes", "most_slots", "outside", "paid_tokens", "parent", "per_token",
        "slots", "spec", "turn", "uncached_share", "waits_for_own",
    )  # fmt: skip

    def __init__(
        self, spec: EntitlementSpec, bucket_s: float, timeout_s: float | None, turn: Turn, parent: Turn
    ) -> None:
        baseline, limit = spec.baseline, spec.limit
        self.spec = spec
        self.inside = _INSIDE.get(spec.service_class)
        self.outside = _OUTSIDE.get(spec.service_class, BURST)
        self.has_objective = spec.ttft_slo_s is not None
        self.deadline_s = spec.ttft_slo_s or (math.inf if timeout_s is None else timeout_s)
        self.bucket = _bucket(baseline.tokens_per_s, bucket_s)
        self.most = _bucket(limit.tokens_per_s, bucket_s)
        self.slots = baseline.slots or 0.0
        self.kv_bytes = baseline.kv_bytes or 0.0
        self.most_slots = math.inf if limit.slots is None else limit.slots
        self.most_kv_bytes = math.inf if limit.kv_bytes is None else limit.kv_bytes
        self.limited = limit != Resources()
        self.waits_for_own = self.limited or (self.inside is not None and self.bucket is None)
        self.turn, self.parent = turn, parent
        self.line = Line()
        self.drain = Drain()
        self.cached_share, self.uncached_share = 0.0, 1.0
        self.kv_tokens = self.per_token = 0.0
        self.fresh = 0
        self.paid_tokens: float | None = None

    @property
    def has_promise(self) -> bool:
        """Whether anything was promised."""
        return self.bucket is not None or self.slots > 0 or self.kv_bytes > 0

    def promised_per_s(self, service_s: float) -> float:
        """Return the requests a second that its promise holds, each of so many seconds; infinite till that is known."""
        if self.bucket is not None:
            return self.bucket.rate_per_s / self.paid_tokens if self.paid_tokens else math.inf
        return self.slots / service_s if self.slots and service_s > 0 else math.inf

    def tier(self, ledger: EntitlementLedger, more: int, now_s: float) -> int:
        """Return the tier of its next request, which would take ``more`` sequences."""
        inside = self.inside
        if inside is None:
            return self.outside
        bucket = self.bucket
        if bucket is not None:
            kept = bucket.available(now_s) > 0
        elif self.slots:
            kept = ledger.in_flight + more <= self.slots
        else:
            kept = self.kv_tokens * self.per_token < self.kv_bytes
        return inside if kept else self.outside

    def may_have(self, ledger: EntitlementLedger, more: int, need_tokens: float, now_s: float) -> bool:
        """Whether its limits leave room; what is larger than a limit of tokens/s passes when that is whole."""
        if ledger.in_flight + more > self.most_slots:
            return False
        if (self.kv_tokens + need_tokens) * self.per_token > self.most_kv_bytes:
            return False
        return self.most is None or self.most.available(now_s) > 0

    def charge(self, tokens: float, now_s: float) -> None:
        """Take tokens from its promise and its limit; below 0 to give back."""
        bucket = self.bucket
        if bucket is not None:
            bucket.settle(0.0, tokens, now_s)
        if self.most is not None:
            self.most.settle(0.0, tokens, now_s)


def _bucket(rate_per_s: float | None, bucket_s: float) -> ContinuousBucket | None:
    return ContinuousBucket(rate_per_s=rate_per_s, depth=rate_per_s * bucket_s) if rate_per_s else None


def grow(
    entitlements: Sequence[EntitlementSpec], parents: Mapping[str, str], *, by_tree: bool, bucket_s: float,
    timeout_s: float | None,
) -> tuple[dict[str, Leaf], dict[int, Turn]]:
    """Return the leaves by name, and the root of each tier of bursts.

    A leaf weighs its largest share of what was promised of any resource; who was promised nothing weighs as much as the
    least who was. A parent weighs what its leaves do together; where none was promised anything, as much as one leaf.
    """
    specs = sorted(entitlements, key=lambda spec: spec.name)
    roots = {tier: Turn(1.0) for tier in (BURST, SPOT, PREEMPTIBLE)}
    promised = _promised(specs)
    least = min((weight for weight in promised.values() if weight), default=1.0)
    above: dict[tuple[int, str], Turn] = {}
    leaves: dict[str, Leaf] = {}
    for spec in specs:
        tier = _OUTSIDE.get(spec.service_class, BURST)
        name = parents.get(spec.name, spec.tenant) if by_tree else spec.name
        parent = above.get((tier, name))
        if parent is None:
            parent = above[tier, name] = Turn(0.0)
        parent.weight += promised[spec.name]
        turn = Turn(promised[spec.name] or least)
        leaves[spec.name] = Leaf(spec, bucket_s, timeout_s, turn, parent)
    for parent in above.values():
        parent.weight = parent.weight or least
    return leaves, roots


def _promised(specs: Sequence[EntitlementSpec]) -> dict[str, float]:
    vectors = [(spec.baseline.tokens_per_s or 0.0, spec.baseline.kv_bytes or 0.0, spec.baseline.slots or 0.0)
               for spec in specs]
    sums = [math.fsum(column) for column in zip(*vectors, strict=True)]
    return {
        spec.name: max((amount / total for amount, total in zip(one, sums, strict=True) if total), default=0.0)
        for spec, one in zip(specs, vectors, strict=True)
    }
