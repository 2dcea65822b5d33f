"""Slots that are not lent: where what is lent comes back too slowly for those who were promised it.

A promise whose owner asks for less than it was promised is lent. Loans come back as requests end, so many a second as
are in flight over their mean time. What of an owner's likely demand could not start within its objective that way is
kept free [choice]. With answers of seconds and many slots that is nothing; with answers of minutes it is all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from policies.api import PoolLedger
from policies.predictive_pool.leaves import Leaf

_FRESH = 0.1


class Headroom:
    """Measures what owners ask for, and says how many slots to keep for each.

    Parameters
    ----------
    margin : standard deviations of a Poisson load to keep above the mean demand; below 0, nothing is kept.

    Attributes
    ----------
    slots : kept in all.
    """

    def __init__(self, leaves: Mapping[str, Leaf], margin: float | None) -> None:
        self._margin = margin
        self._owners = [leaf for leaf in leaves.values() if leaf.inside is not None and leaf.has_promise]
        self._came = {leaf.spec.name: 0 for leaf in self._owners}
        self._per_s = {leaf.spec.name: 0.0 for leaf in self._owners}
        self._kept: dict[str, float] = {}
        self._at_s = 0.0
        self.slots = 0.0

    def kept_for_others(self, name: str) -> float:
        """Return the slots that one entitlement has to leave free."""
        return self.slots - self._kept.get(name, 0.0)

    def ticked(self, pool: PoolLedger, first_token_s: float, now_s: float) -> None:
        """Measure, and keep anew; ``first_token_s`` is what an objective leaves no time to wait in."""
        elapsed_s = now_s - self._at_s
        if self._margin is None or elapsed_s <= 0:
            return
        self._at_s = now_s
        fresh = 1.0 - (1.0 - _FRESH) ** elapsed_s
        service_s = pool.mean_service_s
        kept: dict[str, float] = {}
        for leaf in self._owners:
            name = leaf.spec.name
            ledger = pool.entitlements[name]
            came = max(0, ledger.demanded_requests - self._came[name])
            self._came[name] = ledger.demanded_requests
            self._per_s[name] += fresh * (came / elapsed_s - self._per_s[name])
            if service_s is None:
                continue
            mean = self._per_s[name] * (ledger.mean_service_s or service_s)
            likely = min(mean + self._margin * math.sqrt(mean), leaf.slots or math.inf)
            slack_s = max(0.0, leaf.deadline_s - first_token_s)
            back = pool.all_in_flight * slack_s / service_s if service_s > 0 else math.inf
            if likely - ledger.in_flight > back:
                kept[name] = likely - ledger.in_flight - back
        self._kept = kept
        self.slots = math.fsum(kept.values())
