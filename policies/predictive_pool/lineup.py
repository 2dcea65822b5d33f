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

    Attributes
    ----------
    tier_of : the tier of each leaf that waits.
    is_floor : whether whose turn it is has it by what trickled down: nothing is kept free from it.
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
        self.is_floor = False
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

    def _standing(self, leaf: Leaf, pool: PoolLedger, now_s: float) -> tuple[int, tuple[float, ...]] | None:
        """Return the tier and the place of a leaf's first request; None while its own limits hold it back."""
        item = leaf.line.head()
        if leaf.limited:
            need_tokens = self._books.need_tokens(item.request, item.max_output_tokens)
            if not leaf.may_have(pool.entitlements[item.flow], item.request.sequences, need_tokens, now_s):
                return None
        tier = leaf.outside
        if leaf.inside is not None:
            tier = leaf.tier(pool.entitlements[item.flow], item.request.sequences, now_s)
        if tier < BURST:
            return tier, (0.0, 0.0, item.urgency)
        parent = leaf.parent
        return tier, (parent.start(self._roots[tier]), leaf.turn.start(parent), item.urgency)

    def first(self, tier: int, pool: PoolLedger, now_s: float) -> Leaf | None:
        """Return who is first in a tier: places only get worse between two looks at all, so the top is looked at."""
        heap = self._tiers[tier]
        while heap.keys:
            key, name = heap.least()
            leaf = self._leaves[name]
            standing = self._standing(leaf, pool, now_s)
            if standing is None:
                self._unplace(name)  # until something of its own ends, or the next tick
            elif standing[0] != tier:
                self._place(name, *standing)
            elif standing[1] == key:
                return leaf
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
        standing = self._standing(self._leaves[name], pool, now_s)
        if standing is None:
            self._unplace(name)
        else:
            self._place(name, *standing)

    def next_leaf(
        self, pool: PoolLedger, now_s: float, may_start: Callable[[Leaf, PoolLedger, float], bool]
    ) -> Leaf | None:
        """Return whose turn it is: the first of all, unless what has trickled down pays for one below it."""
        for tier, heap in enumerate(self._tiers):
            if heap.keys:
                leaf = self.first(tier, pool, now_s)
                if leaf is not None:
                    lower = self.trickled(tier, pool, now_s, may_start) if self._share else None
                    self.is_floor = lower is not None
                    return leaf if lower is None else lower
        return None

    def trickled(
        self, above: int, pool: PoolLedger, now_s: float, may_start: Callable[[Leaf, PoolLedger, float], bool]
    ) -> Leaf | None:
        """Return who below a tier can be paid for by what has trickled down, the lowest first; None: nobody."""
        owed, tiers = self._credit, self._tiers
        for tier in range(_TIERS - 1, above if above >= BURST else BURST - 1, -1):
            credit, heap = owed[tier], tiers[tier]
            if credit <= 0 or not heap.keys:
                continue
            item = self._leaves[heap.least()[1]].line.head()
            if credit >= (item.cost or self._cost_s(item, pool)):
                leaf = self.first(tier, pool, now_s)
                if leaf is None:
                    continue
                item = leaf.line.head()
                if credit < (item.cost or self._cost_s(item, pool)):
                    continue
                if may_start(leaf, pool, now_s):  # else it would stand in the way
                    return leaf
        return None

    def started(self, tier: int, cost: float, now_s: float) -> bool:
        """Hear that one is let in from a tier; say whether what had trickled down to the tier paid for it."""
        owed = self._credit
        paid = owed[tier] >= cost
        if paid:
            owed[tier] -= cost
        if not self._share:
            return paid
        # Lower tiers that wait get their share of what was let in, more of it the longer they have waited.
        for lower in range(BURST if tier < BURST else tier + 1, _TIERS):
            heap = self._tiers[lower]
            if heap.keys:
                leaf = self._leaves[heap.least()[1]]
                aged = (now_s - leaf.line.head().since_s) / leaf.deadline_s
                owed[lower] += self._share * (1.0 + (aged if aged < 1.0 else 1.0)) * cost
            else:
                owed[lower] = 0.0
        return paid
