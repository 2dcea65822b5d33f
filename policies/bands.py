"""Strict bands under a saturation gate: llm-d's flow control.

Each band has a ceiling. From the highest band down: where saturation has reached the band's ceiling, nothing more is
let in, not even from lower bands; otherwise the next of a band's flows sends its first request. The engines queue what
is let in. The gate remembers nothing, so that with reports of replicas a burst passes before they show it.

Source: llm-d-router, flow control (2026-08-22). Its cycle lets one request go each millisecond; here as many at once as
cycles have passed, at most ``tick_s`` worth of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import (
    ADMIT,
    Chance,
    Deny,
    EntitlementSpec,
    Gauge,
    InFlight,
    PoolCapacity,
    PoolLedger,
    Reason,
    RequestView,
    ServiceClass,
    Verdict,
)
from policies.meters import ContinuousBucket
from policies.parts.idle import refuse_idle
from policies.parts.lines import Line, Waiting, Within, place
from policies.parts.names import check_names
from policies.parts.order import Order
from policies.parts.orders import OrderParams, RoundRobin, order_of
from policies.parts.queueing import QueueingPolicy
from policies.parts.saturation import SATURATION, Ledger, SaturationParams, signal_of
from policies.parts.waits import TIMEOUT_STATUS, Waits

CLASS_PRIORITY: Mapping[ServiceClass, int] = {
    ServiceClass.DEDICATED: 3, ServiceClass.GUARANTEED: 2, ServiceClass.ELASTIC: 1, ServiceClass.SPOT: 0,
    ServiceClass.PREEMPTIBLE: -1,
}  # fmt: skip
"""Priorities that classes stand for where a scenario gives none; below 0 is sheddable. [choice]"""

_DISPATCH_PER_S = 1000.0
_EVICT_AT_ONCE = 2
_EVICT_GRACE_S: Mapping[str, float] = {"queue-and-kv": 2.3, "in-flight": 0.01}
_OTHER_GRACE_S = 0.5
"""Until the next eviction: what reports need to show the last one, 10 ms with books of one's own, else the default."""
_EVERYTHING = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Bands(Waits):
    """Strict priority bands under a saturation gate, with fairness inside a band (llm-d flow control).

    Ceilings: static, all ``max_ceiling``; holdback, from ``max_ceiling`` for the highest band down to ``min_ceiling``
    for the lowest; soft-reflective, 1 - rank * saturation / (bands - 1), where gated bands open together in one of so
    many ticks as saturation calls for. ``legacy`` queues nothing and refuses priorities below 0 in a full pool.
    """

    kind: Literal["bands"] = "bands"
    saturation: SaturationParams = field(default=Ledger(), metadata=SATURATION)
    ceilings: Literal["static", "holdback", "soft-reflective"] = field(
        default="static", metadata={"description": "static, holdback or soft-reflective"}
    )
    max_ceiling: float = field(default=1.0, metadata={"gt": 0, "description": "give the highest band's ceiling, 1.0"})
    min_ceiling: float = field(default=0.7, metadata={"gt": 0, "description": "give the lowest band's ceiling, 0.7"})
    priorities: Mapping[str, int] = field(
        default_factory=dict,
        metadata={"description": "give priorities by entitlement, higher first, e.g. {chat: 10}; else by class"},
    )
    order: OrderParams = field(
        default=RoundRobin(),
        metadata={"discriminator": "kind", "description": "give the order of flows in a band, e.g. round-robin"},
    )
    within: Within = field(default="fcfs", metadata={"description": "fcfs, edf or shortest: the order in a flow"})
    evict: bool = field(default=False, metadata={"description": "give true to evict running requests of bands below 0"})
    legacy: bool = field(default=False, metadata={"description": "give true to refuse bands below 0 and queue nothing"})
    timeout_status: Literal[408, 429, 504] = field(default=429, metadata=TIMEOUT_STATUS)
    tick_s: float = field(default=0.05, metadata={"gt": 0, "description": "give seconds between looks, e.g. 0.05"})

    def __post_init__(self) -> None:
        refuse_idle(self, "queue_tokens", "each band has a queue of queue_requests", "give queue_requests")


class _Band:
    def __init__(self, priority: int, order: Order) -> None:
        self.priority = priority
        self.order = order
        self.waiting = 0


class BandsPolicy(QueueingPolicy):
    """See `policies.parts.queueing.QueueingPolicy`. The replicas' room does not matter, only the gate does."""

    _prompt_at_start = True

    def __init__(
        self, params: Bands, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params, kv_bytes_per_token, _EVERYTHING)
        specs = sorted(entitlements, key=lambda spec: spec.name)
        names = [spec.name for spec in specs]
        check_names("priorities", params.priorities, names)
        self._params = params
        self._objectives = {spec.name: spec.ttft_slo_s for spec in specs}
        priority_of = {
            spec.name: params.priorities.get(spec.name, CLASS_PRIORITY[spec.service_class]) for spec in specs
        }
        self._bands: list[_Band] = []
        self._rank: dict[str, int] = {}
        for priority in sorted(set(priority_of.values()), reverse=True):
            members = {spec.name: [spec] for spec in specs if priority_of[spec.name] == priority}
            self._rank |= dict.fromkeys(members, len(self._bands))
            order = order_of(params.order, members, dict.fromkeys(members, 1.0), kv_bytes_per_token)
            self._bands.append(_Band(priority, order))
        last, most = len(self._bands) - 1, params.max_ceiling
        self._fixed: list[float] | None = None
        if params.ceilings == "static" or last == 0:
            self._fixed = [most] * (last + 1)
        elif params.ceilings == "holdback":
            self._fixed = [most - rank * (most - params.min_ceiling) / last for rank in range(last + 1)]
        self._lines = {name: Line() for name in names}
        self._signal = signal_of(params.saturation, kv_bytes_per_token)
        self.wants_reports = self._signal.wants_reports
        self.wants_progress = self._signal.wants_progress
        self._cycles = ContinuousBucket(
            rate_per_s=_DISPATCH_PER_S, depth=max(1.0, _DISPATCH_PER_S * params.tick_s)
        )
        self._ticks = 0
        self._sheddable: dict[str, tuple[int, InFlight]] = {}
        self._evicted_s = -math.inf
        self._largest = PoolCapacity(0, 0)
        self._grace_s = _EVICT_GRACE_S.get(params.saturation.kind, _OTHER_GRACE_S)

    # ------------------------------------------------------------------------------------------------------- the gate

    def _ceilings(self, saturation: float) -> list[float]:
        """Return the ceiling of each band, the highest band's first."""
        if self._fixed is not None:
            return self._fixed
        last = len(self._bands) - 1
        if saturation < 1 and self._ticks % max(1, round(saturation / (1 - saturation))) == 0:
            return [1.0] * (last + 1)
        return [1 - rank * saturation / last for rank in range(last + 1)]

    def _open(self, request: RequestView, pool: PoolLedger, now_s: float) -> bool:
        saturation = self._signal.value(pool, now_s)
        ceiling = self._ceilings(saturation)[self._rank[request.entitlement]]
        return self._with_others(request, saturation, pool) < ceiling

    def _with_others(self, request: RequestView, saturation: float, pool: PoolLedger) -> float:
        """Return how full the pool is when the last of its sequences comes, which has to find the gate open, too."""
        if request.sequences == 1:
            return saturation
        return max(saturation, self._signal.of_sequences(pool.all_in_flight + request.sequences - 1, pool.capacity))

    def too_large(self, request: RequestView, max_output_tokens: int, pool: PoolLedger) -> Deny | None:
        """See `QueueingPolicy`: also what the gate of its band would be shut for in an idle pool."""
        legacy, rank = self._params.legacy, self._rank[request.entitlement]
        if request.sequences > 1 and not (legacy and self._bands[rank].priority >= 0):
            ceiling = 1.0 if legacy else self._ceilings(0.0)[rank]
            share = self._signal.of_sequences(request.sequences - 1, pool.capacity)
            if share >= ceiling:
                least = min(share, self._signal.of_sequences(request.sequences - 1, self._largest))
                retry_s = None if least >= ceiling else self.retry_s()
                reason = Reason.TOO_LARGE if retry_s is None else Reason.POOL_FULL
                return Deny(reason, math.nextafter(share, math.inf), ceiling, retry_s)
        return super().too_large(request, max_output_tokens, pool)

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Let it in if nobody waits and the gate is open; in legacy mode, refuse what is sheddable if it is not."""
        if not self._params.legacy:
            return super().decide(request, max_output_tokens, pool, now_s)
        too_large = self.too_large(request, max_output_tokens, pool)
        if too_large is not None:
            return too_large
        saturation = self._with_others(request, self._signal.value(pool, now_s), pool)
        if saturation >= 1 and self._bands[self._rank[request.entitlement]].priority < 0:
            return Deny(Reason.OVERLOADED, math.nextafter(saturation, math.inf), 1.0, self.retry_s())
        return ADMIT

    def may_start(self, request: RequestView, need_tokens: int, pool: PoolLedger, now_s: float) -> bool:  # noqa: ARG002
        """Whether its band's gate is open, and a cycle is left."""
        return self._has_cycle(now_s) and self._open(request, pool, now_s)

    def _has_cycle(self, now_s: float) -> bool:
        """Whether one more request may go now."""
        return self._cycles.wait_s(1, now_s) == 0

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:
        """Return the next of the highest band that waits, if there is a cycle and no gate on the way is shut."""
        if not self._has_cycle(now_s):
            return None
        saturation = self._signal.value(pool, now_s)
        for band, ceiling in zip(self._bands, self._ceilings(saturation), strict=True):
            if saturation >= ceiling:
                return None
            if band.waiting:
                head = self._lines[band.order.pick(self._lines, now_s)].head()
                return head if self._with_others(head.request, saturation, pool) < ceiling else None
        return None

    # --------------------------------------------------------------------------------------------------------- queues

    def urgency_of(self, request: RequestView, max_output_tokens: int, now_s: float) -> float:
        """Return its place among those of its flow."""
        slo_s = self._objectives[request.entitlement]
        return place(self._params.within, request, max_output_tokens, slo_s, now_s)

    def refusal(
        self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float  # noqa: ARG002
    ) -> Deny | None:
        """Each band has a queue of its own."""
        waiting, most = self._bands[self._rank[request.entitlement]].waiting, self._params.queue_requests
        if waiting >= most:
            return Deny(Reason.QUEUE_FULL, waiting + 1, most, self.retry_s())
        return None

    def joined(self, item: Waiting, now_s: float) -> None:
        """See `QueueingPolicy`."""
        band = self._bands[self._rank[item.flow]]
        band.waiting += 1
        band.order.enter(self._lines[item.flow], item, now_s)

    def left(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        band = self._bands[self._rank[item.flow]]
        band.waiting -= 1
        band.order.leave(self._lines[item.flow], item)

    # ---------------------------------------------------------------------------------------------------------- books

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Count it, and give the turn to the next flow of its band."""
        super().on_admitted(flight, pool, now_s)
        request = flight.request
        band = self._bands[self._rank[request.entitlement]]
        self._cycles.reserve(1, now_s)
        if self.taken(flight) is not None:
            band.order.served(request.entitlement)
        if self._prompt_at_start:
            band.order.charge(request.entitlement, request.prompt_tokens, now_s)
        band.order.hold(request.entitlement, 1, flight.reserved_tokens, pool)
        self._signal.admitted(flight)
        if band.priority < 0:
            self._sheddable[request.request_id] = band.priority, flight

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Take it out of the books."""
        super().on_ended(flight, pool, now_s)
        name = flight.request.entitlement
        order = self._bands[self._rank[name]].order
        prompt_tokens = flight.request.prompt_tokens if not self._prompt_at_start and flight.prompt_credited else 0
        order.charge(name, prompt_tokens + 2 * flight.output_tokens, now_s)
        order.hold(name, -1, -flight.reserved_tokens, pool)
        self._signal.ended(flight)
        self._sheddable.pop(flight.request.request_id, None)

    def on_first_token(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Let the signal know."""
        self._signal.first_token(flight, now_s)

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:
        """Take note of how many sequences a request may have."""
        super().on_capacity(pool, now_s)
        seen, now = self._largest, pool.capacity
        self._largest = PoolCapacity(max(seen.ready_replicas, now.ready_replicas), max(seen.slots, now.slots))

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        """Count the cycle that gated bands wait for."""
        self._ticks += 1
        for band in self._bands:
            band.order.tick(pool, now_s)

    def reclaim(self, pool: PoolLedger, now_s: float) -> Sequence[str]:
        """Evict what is sheddable for the first band that waits at a shut gate: the lowest, then the newest.

        Only what is strictly below that band; as many as the excess calls for, at most 2, and no more until the signal
        can show it.
        """
        if not self._params.evict or not self._sheddable or now_s < self._evicted_s + self._grace_s:
            return ()
        rank = next((rank for rank, band in enumerate(self._bands) if band.waiting), None)
        if rank is None:
            return ()
        saturation = self._signal.value(pool, now_s)
        excess = saturation - self._ceilings(saturation)[rank]
        if excess < 0:
            return ()
        each = saturation / max(1, len(pool.in_flight))
        wanted = min(_EVICT_AT_ONCE, max(1, math.ceil(excess / each)))
        below = [(priority, name) for name, (priority, _) in reversed(self._sheddable.items())]
        victims = sorted(
            (one for one in below if one[0] < self._bands[rank].priority), key=lambda one: one[0]
        )  # the newest first, of those as low
        if victims:
            self._evicted_s = now_s
        return [request_id for _, request_id in victims[:wanted]]

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:
        """Return saturation and its age, and how much waits in each band's flows."""
        yield from super().gauges(pool, now_s)
        yield Gauge("pool", "pool", "saturation", self._signal.value(pool, now_s))
        age_s = self._signal.age_s(pool, now_s)
        if math.isfinite(age_s):
            yield Gauge("pool", "pool", "saturation_age_s", age_s)
        for name, line in self._lines.items():
            yield Gauge("entitlement", name, "queue_requests", line.length)
