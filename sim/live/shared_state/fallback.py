"""What a gateway does with requests while the state that it shares with others is out of reach.

Each class of service fails open or closed. Open means: within this gateway's part of the entitlement's baseline, so
that all gateways together let in no more than was reserved for it anyway. Nothing is decided twice: what was let in is
put into the books, or out of them, when they are back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from policies.api import (
    EntitlementSpec,
    EntitlementState,
    Forward,
    PoolLedger,
    Reason,
    Refuse,
    RequestView,
)
from sim.live.gateway.settings import FallbackSettings

RETRY_S = 1.0
"""Retry-After while the state is out of reach. [choice]"""

def share_of(spec: EntitlementSpec, gateways: int) -> int:
    """Return how many requests of an entitlement one of ``gateways`` may have in flight by itself.

    An even part of the baseline's slots (of the limit's where there is no baseline), rounded down but at least one: all
    gateways together have at most the baseline, or one each where there are more gateways than slots.
    """
    slots = spec.baseline.slots if spec.baseline.slots is not None else spec.limit.slots
    if slots == 0:
        return 0
    return max(1, math.floor((slots or 1) / max(1, gateways)))


class FallbackRules:
    """Decides by itself, for one time that the state is out of reach.

    Parameters
    ----------
    pool : the books as they were when the state was last seen; they are read only.
    running : the requests of this gateway that run at its beginning.
    gateways : how many gateways lived when the state was last seen.
    """

    def __init__(
        self, when: FallbackSettings, pool: PoolLedger, running: Iterable[tuple[RequestView, Forward]], gateways: int,
        default_max_output_tokens: int,
    ) -> None:
        self._when = when
        self._pool = pool
        self._gateways = gateways
        self._default_max = default_max_output_tokens
        self._in_flight: Counter[str] = Counter()
        self._tokens: Counter[int] = Counter()
        self._known: dict[str, tuple[str, int, int]] = {}
        for request, forward in running:
            self._count(request, forward)

    def decide(self, request: RequestView) -> Forward | Refuse:
        """Judge a request that arrived, or that waits for an answer."""
        ledger = self._pool.entitlements.get(request.entitlement)
        ready = [replica.replica_id for replica in self._pool.replicas if replica.ready]
        if ledger is None or ledger.state is not EntitlementState.BOUND or not ready:
            return Refuse(request.request_id, Reason.STATE_UNAVAILABLE, 503, RETRY_S, 1, 0)
        spec, in_flight = ledger.spec, self._in_flight[request.entitlement]
        share = share_of(spec, self._gateways) if self._when.of(spec.service_class) == "open" else 0
        if in_flight >= share:
            return Refuse(request.request_id, Reason.STATE_UNAVAILABLE, 503, RETRY_S, in_flight + 1, share)
        asked = request.max_output_tokens
        replica_id = min(ready, key=lambda each: (self._tokens[each], each))
        forward = Forward(request.request_id, replica_id, self._default_max if asked is None else asked)
        self._count(request, forward)
        return forward

    def ended(self, request_id: str) -> None:
        """Take note that a request of this gateway has ended."""
        known = self._known.pop(request_id, None)
        if known is not None:
            entitlement, replica_id, tokens = known
            self._in_flight[entitlement] -= 1
            self._tokens[replica_id] -= tokens

    def _count(self, request: RequestView, forward: Forward) -> None:
        tokens = request.prompt_tokens + forward.max_output_tokens
        self._known[request.request_id] = (request.entitlement, forward.replica_id, tokens)
        self._in_flight[request.entitlement] += 1
        self._tokens[forward.replica_id] += tokens
