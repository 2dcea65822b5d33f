"""Nobody gets more than a share of the pool's slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tokenpools.policies import (
    ADMIT,
    Chance,
    Deny,
    EntitlementSpec,
    PolicyBase,
    PoolLedger,
    Reason,
    RequestView,
    Traits,
    Verdict,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FairHalves:
    """Bounds what each entitlement has in flight by a share of the pool's slots."""

    traits: ClassVar[Traits] = Traits(refuses_oversize=False)  # it counts requests, not their size

    kind: Literal["fair-halves"] = "fair-halves"
    share: float = field(
        default=0.5, metadata={"gt": 0, "le": 1, "description": "give a share of the pool's slots, e.g. 0.5"}
    )

    def build(
        self, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None, chance: Chance
    ) -> FairHalvesPolicy:
        """Return the working policy of one pool."""
        return FairHalvesPolicy(self)


class FairHalvesPolicy(PolicyBase):
    """The working policy; the core already counts what is in flight."""

    def __init__(self, params: FairHalves) -> None:
        self._share = params.share

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Let it in while its entitlement has room; one request may always run."""
        most = max(1, int(self._share * pool.capacity.slots))
        wanted = pool.entitlements[request.entitlement].in_flight + 1
        return ADMIT if wanted <= most else Deny(Reason.CONCURRENCY, wanted, most, retry_after_s=1.0)
