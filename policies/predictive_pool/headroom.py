"""Slots that are not lent: where what is lent comes back too slowly for those who were promised it.

A promise whose owner asks for less than it was promised is lent. Loans come back as requests end, so many a second as
are in flight over their mean time. What of an owner's likely demand could not start within its objective that way is
kept free [choice]. With answers of seconds and many slots that is nothing; with answers of minutes it is all of it.

Where an objective leaves less time than one slot takes to come back, a mean says little: it is seen. A stock of free
slots for each owner grows by one with each of its requests that was late for want of a slot, and shrinks with each that
was not, so that a given share is late in the long run, however regular arrivals and ends are (stochastic approximation
of a quantile [1]_). Neither is ever more than the owner is likely to need at once.

References
----------
.. [1] H. Robbins, S. Monro, "A Stochastic Approximation Method", Annals of Mathematical Statistics 22 (1951).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from policies.api import PoolLedger
from policies.native import mypyc_attr
from policies.predictive_pool.leaves import Leaf

_FRESH = 0.1


@mypyc_attr(allow_interpreted_subclasses=True)
class _Owner:
    """What one owner asks for, and what is kept for it."""

    __slots__ = ("behind", "came", "kept", "leaf", "likely", "per_s", "stock")

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        self.came = 0
        self.per_s = 0.0
        self.likely = 0.0
        self.behind = 0.0
        self.stock = 0.0
        self.kept = 0.0

    def keep(self, in_flight: int) -> float:
        """Keep anew; return by how much that is more."""
        before = self.kept
        need = self.likely - in_flight
        kept = need - self.behind
        if kept <= self.stock:
            kept = self.stock
        if kept > need:
            kept = need
        self.kept = kept = kept if kept > 0.0 else 0.0
        return kept - before


@mypyc_attr(allow_interpreted_subclasses=True)
class Headroom:
    """Measures what owners ask for, and says how many slots to keep for each.

    Parameters
    ----------
    margin : standard deviations of a Poisson load to keep above the mean demand; None: nothing is kept.
    late : share of an owner's requests that may be late for want of a slot.

    Attributes
    ----------
    slots : kept in all.
    """

    def __init__(self, leaves: Mapping[str, Leaf], margin: float | None, late: float) -> None:
        self._margin = margin
        self._late = late
        self._owners = {
            name: _Owner(leaf) for name, leaf in leaves.items()
            if margin is not None and leaf.inside is not None and leaf.has_promise
        }  # fmt: skip
        self._at_s = 0.0
        self.slots = 0.0

    def kept_for_others(self, name: str) -> int:
        """Return the slots that one entitlement has to leave free."""
        own = self._owners.get(name)
        return int(self.slots if own is None else self.slots - own.kept)

    def moved(self, name: str, in_flight: int) -> None:
        """Hear that an owner has more or less in flight, and needs so much less or more."""
        own = self._owners.get(name)
        if own is not None and own.likely:
            self.slots += own.keep(in_flight)

    def served(self, name: str, *, late: bool) -> None:
        """Hear of a request inside a promise whether it was too late for want of a slot."""
        own = self._owners.get(name)
        if own is not None:
            stock = own.stock + (1.0 if late else 0.0) - self._late
            if stock > own.likely:
                stock = own.likely
            own.stock = stock if stock > 0.0 else 0.0

    def ticked(self, pool: PoolLedger, first_token_s: float, now_s: float) -> None:
        """Measure, and keep anew; ``first_token_s`` is what an objective leaves no time to wait in."""
        elapsed_s = now_s - self._at_s
        pool_s = pool.mean_service_s
        if elapsed_s <= 0 or self._margin is None:
            return
        self._at_s = now_s
        fresh = 1.0 - (1.0 - _FRESH) ** elapsed_s
        for name, own in self._owners.items():
            ledger = pool.entitlements[name]
            came = max(0, ledger.demanded_requests - own.came)
            own.came = ledger.demanded_requests
            own.per_s += fresh * (came / elapsed_s - own.per_s)
            if not pool_s:
                continue
            service_s = ledger.mean_service_s or pool_s
            mean = min(own.per_s, own.leaf.promised_per_s(service_s)) * service_s
            own.likely = mean + self._margin * math.sqrt(mean)
            own.behind = pool.all_in_flight * max(0.0, own.leaf.deadline_s - first_token_s) / pool_s
            own.keep(ledger.in_flight)
        self.slots = math.fsum(own.kept for own in self._owners.values())
