"""Who waits, tier by tier: whose turn it is, and what has trickled down to those below."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policies.api import PoolLedger
from policies.native import mypyc_attr
from policies.parts.heaps import KeyedHeap
from policies.parts.lines import Waiting
from policies.predictive_pool.books import Books
from policies.predictive_pool.leaves import BURST, PREEMPTIBLE, Leaf, Turn

_TIERS = PREEMPTIBLE + 1


@mypyc_attr(allow_interpreted_subclasses=True)
class Lineup:
    """The leaves that wait, in their tiers.

    Places are looked at anew at the top only, since they get worse with what is served; what makes them better (time,
    and the end of one's own requests) is told by `look_at` and `look_at_all`.

    Parameters
    ----------
    roots : the root of fair sharing of each tier of bursts.
    trickle : share of the work that goes to the tiers below whoever is served.
    cost_s : what a request costs, in seconds of the whole pool.
    """

    def __init__(
        self, leaves: Mapping[str, Leaf], roots: Mapping[int, Turn], books: Books, trickle: float,
        cost_s: Callable[[Waiting, PoolLedger], float],
    ) -> None:
        self._leaves = leaves
        self._roots = roots
        self._books = books
        self._share = trickle
        self._cost_s = cost_s
        self._tiers = [KeyedHeap() for _ in range(_TIERS)]
        self.tier_of: dict[str, int] = {}
        self._credit = [0.0] * _TIERS

    def joined(self, leaf: Leaf, item: Waiting) -> None:
        """Hear that a leaf begins to wait; its place is a guess that can only be too good."""
        self._place(leaf.spec.name, leaf.outside if leaf.inside is None else leaf.inside, (0.0, 0.0, item.urgency))

    def left(self, name: str) -> None:
        """Hear that a leaf waits no longer."""
        self._unplace(name)

    def last_tier(self) -> int:
        """Return the last tier in which somebody waits; past all where nobody does."""
        return max((tier for tier in range(_TIERS) if self._tiers[tier].keys), default=_TIERS)

    def _place(self, name: str, tier: int, key: tuple[float, ...]) -> None:
        before = self.tier_of.get(name)
        if before is not None and before != tier:
            self._tiers[before].remove(name)
        self.tier_of[name] = tier
        self._tiers[tier].set(name, key)

    def _unplace(self, name: str) -> None:
        tier = self.tier_of.pop(name, None)
        if tier is not None:
            self._tiers[tier].remove(name)

    def _standing(self, name: str, pool: PoolLedger, now_s: float) -> tuple[int, tuple[float, ...]] | None:
        """Return the tier and the place of a leaf's first request; None while its own limits hold it back."""
        leaf = self._leaves[name]
        item = leaf.line.head()
        ledger, sequences = pool.entitlements[name], item.request.sequences
        if leaf.limited:
            need_tokens = self._books.need_tokens(item.request, item.max_output_tokens)
            if not leaf.may_have(ledger, sequences, need_tokens, now_s):
                return None
        tier = leaf.outside if leaf.inside is None else leaf.tier(ledger, sequences, now_s)
        if tier < BURST:
            return tier, (0.0, 0.0, item.urgency)
        parent = leaf.parent
        return tier, (parent.start(self._roots[tier]), leaf.turn.start(parent), item.urgency)

    def first(self, tier: int, pool: PoolLedger, now_s: float) -> Leaf | None:
        """Return who is first in a tier: places only get worse between two looks at all, so the top is looked at."""
        heap = self._tiers[tier]
        while heap.keys:
            key, name = heap.least()
            standing = self._standing(name, pool, now_s)
            if standing is None:
                self._unplace(name)  # until something of its own ends, or the next tick
            elif standing[0] != tier:
                self._place(name, *standing)
            elif standing[1] == key:
                return self._leaves[name]
            else:
                heap.change_least(standing[1])
        return None

    def look_at_all(self, pool: PoolLedger, now_s: float) -> None:
        """Look at every leaf that waits: time may have made its place a better one."""
        for name, leaf in self._leaves.items():
            if leaf.line.length:
                self.look_at(name, pool, now_s)

    def look_at(self, name: str, pool: PoolLedger, now_s: float) -> None:
        """Look at one leaf, where something of its own has ended."""
        standing = self._standing(name, pool, now_s)
        if standing is None:
            self._unplace(name)
        else:
            self._place(name, *standing)

    def best(self, pool: PoolLedger, now_s: float) -> tuple[int, Leaf] | None:
        """Return who is first of all, and in which tier."""
        for tier, heap in enumerate(self._tiers):
            if heap.keys:
                leaf = self.first(tier, pool, now_s)
                if leaf is not None:
                    return tier, leaf
        return None

    def trickled(
        self, above: int, pool: PoolLedger, now_s: float, may_start: Callable[[Leaf, PoolLedger, float], bool]
    ) -> Leaf | None:
        """Return who below a tier can be paid for by what has trickled down, the lowest first; None: nobody."""
        for tier in range(_TIERS - 1, max(above, BURST - 1), -1):
            credit, heap = self._credit[tier], self._tiers[tier]
            if credit <= 0 or not heap.keys:
                continue
            if credit >= self._cost_s(self._leaves[heap.least()[1]].line.head(), pool):
                leaf = self.first(tier, pool, now_s)
                if leaf is None or credit < self._cost_s(leaf.line.head(), pool):
                    continue
                if may_start(leaf, pool, now_s):  # else it would stand in the way
                    return leaf
        return None

    def started(self, tier: int, cost: float, now_s: float) -> bool:
        """Hear that one is let in from a tier; say whether what had trickled down to the tier paid for it."""
        paid = self._credit[tier] >= cost
        if paid:
            self._credit[tier] -= cost
        if self._share:
            self._trickle(tier, cost, now_s)
        return paid

    def _trickle(self, tier: int, cost: float, now_s: float) -> None:
        """Give lower tiers that wait their share of what was let in, more of it the longer they have waited."""
        for lower in range(max(tier + 1, BURST), _TIERS):
            heap = self._tiers[lower]
            if heap.keys:
                leaf = self._leaves[heap.least()[1]]
                aged = (now_s - leaf.line.head().since_s) / leaf.deadline_s
                self._credit[lower] += self._share * (1.0 + (aged if aged < 1.0 else 1.0)) * cost
            else:
                self._credit[lower] = 0.0
