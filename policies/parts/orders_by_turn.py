"""Orders that look at whose turn it is, or at what flows hold now."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

from policies.api import PoolLedger
from policies.parts.lines import Line, Waiting
from policies.parts.order import ByKey, Order


class ByClass(ByKey):
    """The lowest rank first; equal ranks by the place of their heads."""

    def __init__(self, ranks: Mapping[str, int]) -> None:
        super().__init__()
        self._ranks = ranks

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `Order`."""
        self.advanced(flow, head)

    def advanced(self, flow: str, head: Waiting) -> None:
        """See `Order`."""
        self._heap.set(flow, (self._ranks[flow], head.urgency, head.since_s))


class InTurn(Order):
    """One of each in turn."""

    def __init__(self) -> None:
        self._ring: OrderedDict[str, None] = OrderedDict()

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `Order`."""
        self._ring[flow] = None

    def left(self, flow: str) -> None:
        """See `Order`."""
        del self._ring[flow]

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:  # noqa: ARG002
        """See `Order`."""
        return next(iter(self._ring))

    def served(self, flow: str) -> None:
        """See `Order`."""
        if flow in self._ring:
            self._ring.move_to_end(flow)


class Drr(Order):
    """Dynamo's form: a flow that no turn can pay for is given its missing turns at once, with everyone else.

    A deficit belongs to a flow that waits. Whoever begins to wait begins with nothing, neither credit nor debt (M.
    Shreedhar, G. Varghese, "Efficient Fair Queueing Using Deficit Round Robin", SIGCOMM 1995); what is charged while
    nobody of a flow waits is not remembered.
    """

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._deficit: dict[str, float] = {}
        self._ring: OrderedDict[str, None] = OrderedDict()
        self._paid = False

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `Order`."""
        self._ring[flow] = None
        self._deficit[flow] = 0.0

    def left(self, flow: str) -> None:
        """See `Order`."""
        if next(iter(self._ring)) == flow:
            self._paid = False
        del self._ring[flow]
        del self._deficit[flow]

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:  # noqa: ARG002
        """See `Order`."""
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
        """See `Order`."""
        if flow in self._deficit:
            self._deficit[flow] -= cost


class Drf(ByKey):
    """The smallest dominant share first."""

    def __init__(self, kv_bytes_per_token: float | None, weights: Mapping[str, float]) -> None:
        super().__init__()
        self._per_token = kv_bytes_per_token
        self._weights = weights
        self._held: dict[str, tuple[int, int]] = {}
        self._slots, self._kv_bytes = 1.0, math.inf

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `Order`."""
        self._heap.set(flow, (self._share(flow),))

    def hold(self, flow: str, slots: int, tokens: int, pool: PoolLedger) -> None:  # noqa: ARG002
        """See `Order`."""
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
        """See `Order`."""
        slots, tokens = self._held.get(flow, (0, 0))
        return max(slots / self._slots, tokens * (self._per_token or 0.0) / self._kv_bytes) / self._weights[flow]
