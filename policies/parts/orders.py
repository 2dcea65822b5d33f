"""In which order flows are served that wait at the gateway; a flow is an entitlement or a tenant.

An order hears who begins and ceases to wait, what is started and what is used, and says whose turn it is. Costs are in
weighted tokens and already divided by the flow's weight.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from policies.api import EntitlementSpec, PoolLedger, ServiceClass
from policies.parts.heaps import KeyedHeap
from policies.parts.queueing import Line, Waiting

CLASS_RANK: Mapping[ServiceClass, int] = {each: rank for rank, each in enumerate(ServiceClass)}
"""0 for the most protected."""

HALF_LIFE = {"gt": 0, "description": "give seconds after which what was used counts half, e.g. 60, or null for never"}
_MOST_HALVINGS = 500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StrictClass:
    """The most protected class first; inside a class, the first come."""

    kind: Literal["strict-class"] = "strict-class"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """One request of each in turn."""

    kind: Literal["round-robin"] = "round-robin"


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualTokenCounter:
    """Who was served least, counting from when it last began to wait (arXiv 2401.00588)."""

    kind: Literal["vtc"] = "vtc"
    half_life_s: float | None = field(default=None, metadata=HALF_LIFE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeficitRoundRobin:
    """Each in turn, as many as its quanta pay for."""

    kind: Literal["drr"] = "drr"
    quantum: float = field(default=1024.0, metadata={"gt": 0, "description": "give weighted tokens a turn, e.g. 1024"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastAttainedService:
    """Who was served least of late, and a little who waits longest (llm-d's program-aware plugin)."""

    kind: Literal["las"] = "las"
    half_life_s: float = field(default=60.0, metadata=HALF_LIFE)
    wait_share: float = field(
        default=0.2, metadata={"ge": 0, "le": 1, "description": "give what waiting counts against service, e.g. 0.2"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DominantResource:
    """Who holds the smallest share of what it holds most of, slots or KV cache (DRF)."""

    kind: Literal["drf"] = "drf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Debt:
    """Who got least of its promised rate of late."""

    kind: Literal["debt"] = "debt"
    smoothing: float = field(
        default=0.9, metadata={"ge": 0, "lt": 1, "description": "give what a tick leaves of the old debt, e.g. 0.9"}
    )


OrderParams = (
    StrictClass | RoundRobin | VirtualTokenCounter | DeficitRoundRobin | LeastAttainedService | DominantResource | Debt
)
ORDERS: Mapping[str, type] = {
    "strict-class": StrictClass, "round-robin": RoundRobin, "vtc": VirtualTokenCounter, "drr": DeficitRoundRobin,
    "las": LeastAttainedService, "drf": DominantResource, "debt": Debt,
}  # fmt: skip


class Order:
    """Whose turn it is. What a kind need not know, it does not hear: the methods do nothing here."""

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:
        """Hear that a flow begins to wait."""
        raise NotImplementedError

    def advanced(self, flow: str, head: Waiting) -> None:
        """Hear that a flow that waits has another head."""

    def left(self, flow: str) -> None:
        """Hear that a flow waits no longer."""
        raise NotImplementedError

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:
        """Return whose turn it is among those who wait. Asked again, it is the same one's."""
        raise NotImplementedError

    def served(self, flow: str) -> None:
        """Hear that one of a flow's requests that waited was started."""

    def charge(self, flow: str, cost: float, now_s: float) -> None:
        """Count what a flow used; below 0 where it was charged too much before."""

    def hold(self, flow: str, slots: int, tokens: int, pool: PoolLedger) -> None:
        """Hear that a flow has so many more requests and reserved tokens in flight."""

    def tick(self, pool: PoolLedger, now_s: float) -> None:
        """Hear that time passes, or that the pool's capacity is another."""


class _ByClass(Order):
    def __init__(self, ranks: Mapping[str, int]) -> None:
        self._ranks = ranks
        self._heap = KeyedHeap()

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        self.advanced(flow, head)

    def advanced(self, flow: str, head: Waiting) -> None:
        self._heap.set(flow, (self._ranks[flow], head.urgency, head.since_s))

    def left(self, flow: str) -> None:
        self._heap.remove(flow)

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:  # noqa: ARG002
        return self._heap.least()[1]


class _InTurn(Order):
    def __init__(self) -> None:
        self._ring: OrderedDict[str, None] = OrderedDict()

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        self._ring[flow] = None

    def left(self, flow: str) -> None:
        del self._ring[flow]

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:  # noqa: ARG002
        return next(iter(self._ring))

    def served(self, flow: str) -> None:
        if flow in self._ring:
            self._ring.move_to_end(flow)


class _Fading:
    """Turns costs into what they would have been worth at a fixed instant, so that all fade alike without a touch.

    Two flows that fade at the same rate keep their order, so amounts are blown up when they are added instead of
    shrunk while they wait.
    """

    def __init__(self, half_life_s: float | None) -> None:
        self._half_life_s = half_life_s
        self._base_s = 0.0

    def rebase(self, now_s: float, used: dict[str, float]) -> bool:
        """Bring all amounts to another instant before they get too large, and say so."""
        if self._half_life_s is None:
            return False
        halvings = (now_s - self._base_s) / self._half_life_s
        if halvings < _MOST_HALVINGS:
            return False
        for flow, amount in used.items():
            used[flow] = amount * 2.0**-halvings if halvings < 1000 else 0.0
        self._base_s = now_s
        return True

    def worth(self, cost: float, now_s: float) -> float:
        """Return what to add for ``cost``."""
        if self._half_life_s is None:
            return cost
        return float(cost * 2.0 ** ((now_s - self._base_s) / self._half_life_s))


class _Vtc(Order):
    def __init__(self, half_life_s: float | None) -> None:
        self._fading = _Fading(half_life_s)
        self._used: dict[str, float] = {}
        self._heap = KeyedHeap()
        self._last: str | None = None

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        """Lift it: whoever was away has no claim on what it did not use."""
        used = self._used.get(flow, 0.0)
        if len(self._heap):
            used = max(used, self._heap.least()[0][0])
        elif self._last is not None:
            used = max(used, self._used[self._last])
        self._used[flow] = used
        self._heap.set(flow, (used,))

    def left(self, flow: str) -> None:
        self._heap.remove(flow)
        self._last = flow

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:  # noqa: ARG002
        return self._heap.least()[1]

    def charge(self, flow: str, cost: float, now_s: float) -> None:
        used = self._used
        if self._fading.rebase(now_s, used):
            for name in self._heap.names():
                self._heap.set(name, (used[name],))
        used[flow] = used.get(flow, 0.0) + self._fading.worth(cost, now_s)
        if flow in self._heap:
            self._heap.set(flow, (used[flow],))


class _Drr(Order):
    """Dynamo's form: a flow that no turn can pay for is given its missing turns at once, with everyone else."""

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._deficit: dict[str, float] = {}
        self._ring: OrderedDict[str, None] = OrderedDict()
        self._paid = False

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        self._ring[flow] = None
        self._deficit.setdefault(flow, 0.0)

    def left(self, flow: str) -> None:
        if next(iter(self._ring)) == flow:
            self._paid = False
        del self._ring[flow]
        self._deficit[flow] = min(0.0, self._deficit[flow])

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:  # noqa: ARG002
        ring, deficit, quantum = self._ring, self._deficit, self._quantum
        passed = 0
        while True:
            flow = next(iter(ring))
            cost = max(1.0, lines[flow].head().cost)
            if not self._paid and cost > deficit[flow]:
                deficit[flow] += quantum
                self._paid = True
            if cost <= deficit[flow]:
                return flow
            ring.move_to_end(flow)
            self._paid = False
            passed += 1
            if passed == len(ring):
                passed = 0
                missing = min(max(1.0, lines[one].head().cost) - deficit[one] for one in ring)
                rounds = math.ceil(missing / quantum) - 1  # the turn that comes now brings the last
                if rounds > 0:
                    for one in ring:
                        deficit[one] += rounds * quantum

    def charge(self, flow: str, cost: float, now_s: float) -> None:  # noqa: ARG002
        self._deficit[flow] = self._deficit.get(flow, 0.0) - cost
        if flow not in self._ring:
            self._deficit[flow] = min(0.0, self._deficit[flow])


class _Las(Order):
    def __init__(self, params: LeastAttainedService) -> None:
        self._fading = _Fading(params.half_life_s)
        self._share = params.wait_share
        self._used: dict[str, float] = {}
        self._heads: dict[str, float] = {}

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        self._heads[flow] = head.since_s
        self._used.setdefault(flow, 0.0)

    def advanced(self, flow: str, head: Waiting) -> None:
        self._heads[flow] = head.since_s

    def left(self, flow: str) -> None:
        del self._heads[flow]

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:  # noqa: ARG002
        heads, used = self._heads, self._used
        most = max(used[flow] for flow in heads)
        oldest_s = now_s - min(heads.values())
        by_use = (1 - self._share) / most if most > 0 else 0.0
        by_wait = self._share / oldest_s if oldest_s > 0 else 0.0
        # The least of a linear form: 0.8 (1 - a/A) + 0.2 w/W is largest where 0.8 a/A + 0.2 since/W is smallest.
        return min((by_use * used[flow] + by_wait * since_s, since_s, flow) for flow, since_s in heads.items())[2]

    def charge(self, flow: str, cost: float, now_s: float) -> None:
        self._fading.rebase(now_s, self._used)
        self._used[flow] = self._used.get(flow, 0.0) + self._fading.worth(cost, now_s)


class _Drf(Order):
    def __init__(self, kv_bytes_per_token: float | None, weights: Mapping[str, float]) -> None:
        self._per_token = kv_bytes_per_token
        self._weights = weights
        self._held: dict[str, tuple[int, int]] = {}
        self._heap = KeyedHeap()
        self._slots, self._kv_bytes = 1.0, math.inf

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        self._heap.set(flow, (self._share(flow),))

    def left(self, flow: str) -> None:
        self._heap.remove(flow)

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:  # noqa: ARG002
        return self._heap.least()[1]

    def hold(self, flow: str, slots: int, tokens: int, pool: PoolLedger) -> None:  # noqa: ARG002
        before = self._held.get(flow, (0, 0))
        self._held[flow] = before[0] + slots, before[1] + tokens
        if flow in self._heap:
            self._heap.set(flow, (self._share(flow),))

    def tick(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Follow the pool's capacity."""
        capacity = max(1.0, pool.capacity.slots), pool.capacity.kv_bytes or math.inf
        if capacity != (self._slots, self._kv_bytes):
            self._slots, self._kv_bytes = capacity
            for flow in self._heap.names():
                self._heap.set(flow, (self._share(flow),))

    def _share(self, flow: str) -> float:
        slots, tokens = self._held.get(flow, (0, 0))
        return max(slots / self._slots, tokens * (self._per_token or 0.0) / self._kv_bytes) / self._weights[flow]


class _ByDebt(Order):
    def __init__(self, smoothing: float, promised: Mapping[str, float]) -> None:
        self._smoothing = smoothing
        self._promised = promised
        self._debt = dict.fromkeys(promised, 0.0)
        self._used = dict.fromkeys(promised, 0.0)
        self._heap = KeyedHeap()
        self._at_s: float | None = None

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        self._heap.set(flow, (-self._debt[flow],))

    def left(self, flow: str) -> None:
        self._heap.remove(flow)

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:  # noqa: ARG002
        return self._heap.least()[1]

    def charge(self, flow: str, cost: float, now_s: float) -> None:  # noqa: ARG002
        self._used[flow] += cost

    def tick(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Move debts by the share of the promise that was missing; who wants less than promised is owed nothing."""
        since_s = 0.0 if self._at_s is None else self._at_s
        if now_s <= since_s:
            return
        self._at_s = now_s
        for flow, promised_per_s in self._promised.items():
            gap = 0.0
            if promised_per_s > 0:
                gap = 1 - self._used[flow] / (promised_per_s * (now_s - since_s))
                if gap > 0 and flow not in self._heap:
                    gap = 0.0
            elif self._used[flow] > 0:
                gap = -1.0
            self._debt[flow] = self._smoothing * self._debt[flow] + (1 - self._smoothing) * gap
            self._used[flow] = 0.0
            if flow in self._heap:
                self._heap.set(flow, (-self._debt[flow],))


def order_of(
    params: OrderParams, members: Mapping[str, list[EntitlementSpec]], weights: Mapping[str, float],
    kv_bytes_per_token: float | None,
) -> Order:
    """Return an order over flows; ``members`` are each flow's entitlements."""
    if isinstance(params, StrictClass):
        return _ByClass({flow: min(CLASS_RANK[one.service_class] for one in specs) for flow, specs in members.items()})
    if isinstance(params, RoundRobin):
        return _InTurn()
    if isinstance(params, VirtualTokenCounter):
        return _Vtc(params.half_life_s)
    if isinstance(params, DeficitRoundRobin):
        return _Drr(params.quantum)
    if isinstance(params, LeastAttainedService):
        return _Las(params)
    if isinstance(params, DominantResource):
        return _Drf(kv_bytes_per_token, weights)
    promised = {
        flow: sum(one.baseline.tokens_per_s or 0.0 for one in specs) for flow, specs in members.items()
    }
    return _ByDebt(params.smoothing, promised)
