"""The example policy of notebook 4: never more than a number of one entitlement's requests in flight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tokenpools.policies import ADMIT, Deny, PolicyBase, PoolLedger, Reason, RequestView, Traits, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """Bounds what an entitlement has in flight."""

    traits: ClassVar[Traits] = Traits(refuses_oversize=False)  # it counts requests, not their size

    kind: Literal["at-most"] = "at-most"
    max_in_flight: int = field(metadata={"gt": 0, "description": "give requests in flight, e.g. 8"})

    def build(self, **_: Any) -> CapPolicy:
        """Return the working policy of one pool."""
        return CapPolicy(self)


class CapPolicy(PolicyBase):
    """See `policies.api.AdmissionPolicy`."""

    def __init__(self, params: Cap) -> None:
        self._most = params.max_in_flight

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Let it in while there is room."""
        in_flight = pool.entitlements[request.entitlement].in_flight
        if in_flight < self._most:
            return ADMIT
        return Deny(Reason.CONCURRENCY, in_flight + 1, self._most, retry_after_s=1.0)
