"""The example policy of notebook 4: never more than a number of one entitlement's requests in flight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from policies.api import ADMIT, Deny, PoolLedger, Reason, RequestView, Verdict
from policies.no_control import NoControlPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """Bounds what an entitlement has in flight."""

    kind: Literal["cap"] = "cap"
    max_in_flight: int = field(metadata={"gt": 0, "description": "give requests in flight, e.g. 8"})


class CapPolicy(NoControlPolicy):
    """See `policies.api.AdmissionPolicy`."""

    def __init__(self, params: Cap) -> None:
        self._most = params.max_in_flight

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Let it in while there is room."""
        in_flight = pool.entitlements[request.entitlement].in_flight
        if in_flight < self._most:
            return ADMIT
        return Deny(Reason.CONCURRENCY, in_flight + 1, self._most, retry_after_s=1.0)
