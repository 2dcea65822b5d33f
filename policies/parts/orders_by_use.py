"""Orders that look at what flows have used."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice

from policies.api import PoolLedger
from policies.parts.lines import Line, Waiting
from policies.parts.order import ByKey, Order

_MOST_HALVINGS = 500.0


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


class Vtc(ByKey):
    """The smallest counter first; whoever begins to wait is lifted to the least of those who wait."""

    def __init__(self, half_life_s: float | None) -> None:
        super().__init__()
        self._fading = _Fading(half_life_s)
        self._used: dict[str, float] = {}
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
        """See `Order`."""
        super().left(flow)
        self._last = flow

    def charge(self, flow: str, cost: float, now_s: float) -> None:
        """See `Order`."""
        used = self._used
        if self._fading.rebase(now_s, used):
            for name in self._heap.names():
                self._heap.set(name, (used[name],))
        used[flow] = used.get(flow, 0.0) + self._fading.worth(cost, now_s)
        if flow in self._heap:
            self._heap.set(flow, (used[flow],))


class Las(Order):
    """Looks at all who wait at each turn: the scores of all move with time and with the largest of each."""

    def __init__(self, half_life_s: float, wait_share: float) -> None:
        self._fading = _Fading(half_life_s)
        self._share = wait_share
        self._used: dict[str, float] = {}
        # Of those who wait, in the same order: what they used, and when their first came.
        self._waiting_used: dict[str, float] = {}
        self._waiting_since_s: dict[str, float] = {}

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `Order`."""
        self._waiting_since_s[flow] = head.since_s
        self._waiting_used[flow] = self._used.setdefault(flow, 0.0)

    def advanced(self, flow: str, head: Waiting) -> None:
        """See `Order`."""
        self._waiting_since_s[flow] = head.since_s

    def left(self, flow: str) -> None:
        """See `Order`."""
        del self._waiting_since_s[flow], self._waiting_used[flow]

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:  # noqa: ARG002
        """See `Order`."""
        used, since_s = self._waiting_used.values(), self._waiting_since_s.values()
        # Both run from 0 for the least to 1 for the most of those who wait; where all are alike they decide nothing.
        used_range, since_range_s = max(used) - min(used), max(since_s) - min(since_s)
        if used_range <= 0 or self._share >= 1:
            scores = list(since_s)
        elif since_range_s <= 0:
            scores = list(used)
        else:
            # 0.8 (1 - a/A) + 0.2 w/W, with the ranges A and W, is largest where a + since * (0.2 A) / (0.8 W) is least.
            per_s = self._share * used_range / ((1 - self._share) * since_range_s)
            scores = [one_used + per_s * one_s for one_used, one_s in zip(used, since_s, strict=True)]
        place = scores.index(min(scores))  # ties go to who began to wait first
        return next(islice(self._waiting_used, place, None))

    def charge(self, flow: str, cost: float, now_s: float) -> None:
        """See `Order`."""
        if self._fading.rebase(now_s, self._used):
            for name in self._waiting_used:
                self._waiting_used[name] = self._used[name]
        amount = self._used.get(flow, 0.0) + self._fading.worth(cost, now_s)
        self._used[flow] = amount
        if flow in self._waiting_used:
            self._waiting_used[flow] = amount


class RecentUse(ByKey):
    """The least used in a sliding window first."""

    def __init__(self, window_s: float) -> None:
        super().__init__()
        self._window_s = window_s
        self._used: dict[str, float] = {}
        self._charges: deque[tuple[float, str, float]] = deque()

    def _add(self, flow: str, cost: float) -> None:
        """See `Order`."""
        self._used[flow] = used = self._used.get(flow, 0.0) + cost
        if flow in self._heap:
            self._heap.set(flow, (used,))

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `Order`."""
        self._heap.set(flow, (self._used.get(flow, 0.0),))

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:
        """See `Order`."""
        charges = self._charges
        while charges and charges[0][0] <= now_s:
            _, flow, cost = charges.popleft()
            self._add(flow, -cost)
        return super().pick(lines, now_s)

    def charge(self, flow: str, cost: float, now_s: float) -> None:
        """See `Order`."""
        self._charges.append((now_s + self._window_s, flow, cost))
        self._add(flow, cost)


class ByDebt(ByKey):
    """The largest debt first."""

    def __init__(self, smoothing: float, promised: Mapping[str, float]) -> None:
        super().__init__()
        self._smoothing = smoothing
        self._promised = promised
        self._debt = dict.fromkeys(promised, 0.0)
        self._used = dict.fromkeys(promised, 0.0)
        self._at_s: float | None = None

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `Order`."""
        self._heap.set(flow, (-self._debt[flow],))

    def charge(self, flow: str, cost: float, now_s: float) -> None:  # noqa: ARG002
        """See `Order`."""
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
