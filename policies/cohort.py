"""Nominal shares that are lent and borrowed, worked out anew every period: Kubernetes API Priority and Fairness.

Everyone has a nominal number of slots, may lend a part of what it does not use and borrow what others lend. Every
``period_s`` the limits follow demand: the largest f for which the limits min(max, max(mincur, f * target)) sum to the
pool. Between two periods they stay, which is long for requests of seconds. Kueue's cohorts are the same idea.

Source: kubernetes/enhancements KEP-1040 (borrowing) and ``apiserver/pkg/util/flowcontrol``; Kueue's documentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import Chance, Deny, EntitlementSpec, Gauge, InFlight, PoolLedger, Reason, RequestView, Verdict
from policies.parts.heaps import KeyedHeap
from policies.parts.lines import Line, Waiting, Within, place
from policies.parts.queueing import QueueingPolicy
from policies.parts.waits import Waits

_BISECTIONS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort(Waits):
    """Nominal slots, lent and borrowed by demand every period (Kubernetes APF, Kueue cohorts).

    Nominal slots are in proportion to ``shares``; left out, to the slots of baselines, and 1 where there are none.
    ``measure: dominant`` counts a request as the slots that its share of KV cache is worth, where that is more (DRF).
    """

    kind: Literal["cohort"] = "cohort"
    shares: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": "give nominal shares by entitlement, e.g. {chat: 3}; else 1"}
    )
    period_s: float = field(default=10.0, metadata={"gt": 0, "description": "give seconds between adjustments, 10"})
    lend: float = field(
        default=0.5, metadata={"ge": 0, "le": 1, "description": "give the part of nominal slots that is lent, 0.5"}
    )
    borrow: float | None = field(
        default=None, metadata={"ge": 0, "description": "give what may be borrowed, in nominal slots; left out, any"}
    )
    decay: float = field(
        default=0.977, metadata={"ge": 0, "lt": 1, "description": "give what a period leaves of past demand, 0.977"}
    )
    measure: Literal["slots", "dominant"] = field(
        default="slots", metadata={"description": "slots: requests; dominant: slots or KV cache, whichever is more"}
    )
    within: Within = field(default="fcfs", metadata={"description": "fcfs, edf or shortest: the order in a queue"})
    queue_each: int | None = field(
        default=None,
        metadata={"gt": 0, "description": "give how many of one entitlement may wait, e.g. 300; left out, any"},
    )


class _Member:
    """One entitlement: its demand over the period, its limit, and its place in the order in which they first came."""

    __slots__ = (
        "area",
        "area_of_squares",
        "at_s",
        "came",
        "demand",
        "held_tokens",
        "high",
        "limit",
        "line",
        "nominal",
        "share",
        "slo_s",
        "slots",
        "smooth",
    )  # fmt: skip

    def __init__(self, share: float, slo_s: float | None) -> None:
        self.share = share
        self.slo_s = slo_s
        self.line = Line()
        self.came = math.inf
        self.slots = 0
        self.held_tokens = 0
        self.demand = self.high = self.area = self.area_of_squares = self.at_s = 0.0
        self.nominal = self.limit = self.smooth = 0.0

    def wants(self, demand: float, now_s: float) -> None:
        """Follow demand: what is in flight and what waits."""
        span_s = now_s - self.at_s
        self.area += self.demand * span_s
        self.area_of_squares += self.demand * self.demand * span_s
        self.at_s = now_s
        self.demand = demand
        self.high = max(self.high, demand)

    def period(self, span_s: float, decay: float) -> None:
        """Close a period: envelope and smoothed demand."""
        mean = self.area / span_s
        envelope = mean + math.sqrt(max(0.0, self.area_of_squares / span_s - mean * mean))
        self.smooth = max(envelope, decay * self.smooth + (1 - decay) * envelope)
        self.area = self.area_of_squares = 0.0


class CohortPolicy(QueueingPolicy):
    """See `policies.parts.queueing.QueueingPolicy`. Who uses least of its limit is next among those below it."""

    def __init__(
        self, params: Cohort, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params, kv_bytes_per_token)
        specs = sorted(entitlements, key=lambda spec: spec.name)
        names = [spec.name for spec in specs]
        for name, share in params.shares.items():
            if name not in names or not share > 0:
                raise ValueError(f"shares gives {name!r} {share:g}; give numbers above 0 to some of {names}")
        self._params = params
        self._per_token = kv_bytes_per_token
        self._members = {
            spec.name: _Member(params.shares.get(spec.name, spec.baseline.slots or 1.0), spec.ttft_slo_s)
            for spec in specs
        }
        self._heap = KeyedHeap()
        self._came = 0
        self._parts = [0.0] * len(self._members)
        self._capacity = (0.0, math.inf)
        self._period_began_s = 0.0

    # ---------------------------------------------------------------------------------------------------------- limits

    def _use(self, member: _Member) -> float:
        if self._params.measure == "slots" or not self._per_token or not math.isfinite(self._capacity[1]):
            return member.slots
        slots, kv_bytes = self._capacity
        return max(member.slots, slots * member.held_tokens * self._per_token / kv_bytes)

    def _below(self, member: _Member, sequences: int) -> bool:
        """Whether so many more are within its limit; more than that when nothing of it runs."""
        return self._use(member) + sequences - 1 < member.limit or (sequences > 1 and not member.slots)

    def _changed(self, name: str, now_s: float) -> None:
        """Follow a change of what one has in flight or waiting: its demand, and its place among those who wait."""
        member = self._members[name]
        use = self._use(member)
        member.wants(use + member.line.length, now_s)
        if member.line.length and self._below(member, member.line.head().request.sequences):
            self._heap.set(name, (use / member.limit, member.line.head().since_s))
        elif name in self._heap:
            self._heap.remove(name)

    def _share_out(self) -> None:
        """Set limits: sum to the pool, between the least and the most of each, in proportion to its target."""
        params, slots = self._params, self._capacity[0]
        members = list(self._members.values())
        total = sum(member.share for member in members)
        bounds: list[tuple[float, float, float]] = []
        for member in members:
            member.nominal = slots * member.share / total
            least = member.nominal * (1 - params.lend)
            most = math.inf if params.borrow is None else member.nominal * (1 + params.borrow)
            least_now = max(least, min(member.nominal, member.high))
            bounds.append((least_now, min(most, slots), max(least_now, member.smooth)))

        def limit(factor: float, bound: tuple[float, float, float]) -> float:
            least_now, most, target = bound
            return min(most, max(least_now, factor * target))

        low, high = 0.0, 1.0
        while high < 1e9 and sum(limit(high, bound) for bound in bounds) < slots:
            high *= 2
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(limit(middle, bound) for bound in bounds) < slots else (low, middle)
        self._parts = [limit(high, bound) for bound in bounds]
        self._round()

    def _round(self) -> None:
        """Make the limits whole."""
        members = list(self._members.values())
        whole = _rounded(self._parts, math.floor(self._capacity[0]), [member.came for member in members])
        for member, rounded in zip(members, whole, strict=True):
            member.limit = rounded

    # ---------------------------------------------------------------------------------------------------------- queues

    def urgency_of(self, request: RequestView, max_output_tokens: int, now_s: float) -> float:
        """Return its place among those of its entitlement."""
        slo_s = self._members[request.entitlement].slo_s
        return place(self._params.within, request, max_output_tokens, slo_s, now_s)

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Take note of who comes for the first time: the parts of slots are dealt anew."""
        member = self._members[request.entitlement]
        if member.came == math.inf:
            member.came = self._came
            self._came += 1
            self._round()
            for name in self._members:
                self._changed(name, now_s)
        return super().decide(request, max_output_tokens, pool, now_s)

    def refusal(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Deny | None:
        """Each entitlement's queue has a bound too."""
        most, waiting = self._params.queue_each, self._members[request.entitlement].line.length
        if most is not None and waiting >= most:
            return Deny(Reason.QUEUE_FULL, waiting + 1, most, self.retry_s())
        return super().refusal(request, max_output_tokens, pool, now_s)

    def may_start(self, request: RequestView, need_tokens: int, pool: PoolLedger, now_s: float) -> bool:  # noqa: ARG002
        """Whether it is below its limit, and there is room."""
        member = self._members[request.entitlement]
        return self._below(member, request.sequences) and self.room.fits(need_tokens, pool, request.sequences)

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:  # noqa: ARG002
        """Return the first of whoever uses least of its limit, if it fits."""
        if not len(self._heap):
            return None
        item = self._members[self._heap.least()[1]].line.head()
        return item if self.room.fits(item.need_tokens, pool, item.request.sequences) else None

    def joined(self, item: Waiting, now_s: float) -> None:
        """See `QueueingPolicy`."""
        self._members[item.flow].line.push(item)
        self._changed(item.flow, now_s)

    def left(self, item: Waiting, now_s: float) -> None:
        """See `QueueingPolicy`."""
        self._members[item.flow].line.drop(item)
        self._changed(item.flow, now_s)

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Count its slot."""
        super().on_admitted(flight, pool, now_s)
        self._hold(flight, 1, now_s)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Give its slot back."""
        super().on_ended(flight, pool, now_s)
        self._hold(flight, -1, now_s)

    def _hold(self, flight: InFlight, sign: int, now_s: float) -> None:
        name = flight.request.entitlement
        member = self._members[name]
        member.slots += sign * flight.request.sequences
        member.held_tokens += sign * flight.reserved_tokens
        self._changed(name, now_s)

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Adjust limits where a period is over."""
        span_s = now_s - self._period_began_s
        if span_s < self._params.period_s * (1 - 1e-9):
            return
        self._period_began_s = now_s
        for member in self._members.values():
            member.wants(member.demand, now_s)
            member.period(span_s, self._params.decay)
        self._share_out()
        for name, member in self._members.items():
            member.high = member.demand
            self._changed(name, now_s)

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:
        """Follow the pool's slots."""
        super().on_capacity(pool, now_s)
        kv_bytes = pool.capacity.kv_bytes or math.inf
        capacity = float(self._params.occupancy * pool.capacity.slots), kv_bytes
        if capacity != self._capacity:
            self._capacity = capacity
            self._share_out()
            for name in self._members:
                self._changed(name, now_s)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:
        """Return how much waits, and everyone's limit."""
        yield from super().gauges(pool, now_s)
        for name, member in self._members.items():
            yield Gauge("entitlement", name, "queue_requests", member.line.length)
            yield Gauge("entitlement", name, "limit_slots", member.limit)


def _rounded(limits: list[float], most: int, came: list[float]) -> list[float]:
    """Return whole numbers that sum to at most ``most``; the largest parts of a slot are rounded up first.

    Of equal parts, that of whoever ``came`` first. Everyone has at least 1, or it could never start; where the pool has
    less than one slot each, limits pass it.
    """
    whole = [float(max(1, math.floor(limit))) for limit in limits]
    by_rest = sorted(range(len(limits)), key=lambda i: (round(math.floor(limits[i]) - limits[i], 9), came[i]))
    for index in by_rest:
        if sum(whole) + 1 > most:
            break
        if limits[index] > whole[index]:
            whole[index] += 1
    return whole
