"""Tiers of replicas by how tight objectives are: the fullest of a tier that has room, then those of tighter tiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import ReplicaLedger, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Replicas for entitlements of one objective. ``most_in_flight`` is how many a replica runs and keeps it."""

    entitlements: tuple[str, ...] = field(metadata={"description": "give entitlements, e.g. [chat]"})
    replicas: int = field(metadata={"gt": 0, "description": "give how many replicas it has, e.g. 2"})
    most_in_flight: int = field(
        metadata={"gt": 0, "description": "give requests that a replica runs within the objective, e.g. 12"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTier:
    """Tiers of replicas, the tightest objective first: the fullest with room, of the own tier, then of tighter ones.

    The first ``replicas`` of the pool are the first tier's, and so on; what is left over is the last tier's. Where no
    replica has room, the least loaded of the own tier takes it. Entitlements in no tier belong to the last. A full
    replica is filled first so that others stay fast for who needs it (PolyServe's placing, arXiv 2507.17769, without
    its admission: that is the policy ``polyserve``).
    """

    kind: Literal["slo-tier"] = "slo-tier"
    tiers: tuple[Tier, ...] = field(
        default=(Tier(entitlements=(), replicas=1, most_in_flight=16),),
        metadata={
            "min_length": 1, "description": "give tiers, e.g. [{entitlements: [a], replicas: 2, most_in_flight: 8}]",
        },
    )


class SloTierRouter:
    """See `policies.api.Router`."""

    def __init__(self, params: SloTier) -> None:
        self._tiers = params.tiers
        self._tier_of = {name: rank for rank, tier in enumerate(params.tiers) for name in tier.entitlements}
        self._first: list[int] = []  # number of the first replica of each tier
        first = 0
        for tier in params.tiers:
            self._first.append(first)
            first += tier.replicas

    def _rank(self, replica_id: int) -> int:
        """Return the tier of a replica."""
        return max(rank for rank, first in enumerate(self._first) if first <= replica_id)

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:
        """See `policies.api.Router`."""
        own = self._tier_of.get(request.entitlement, len(self._tiers) - 1)
        by_tier: dict[int, list[ReplicaLedger]] = {}
        for book in replicas:
            if book.ready:
                by_tier.setdefault(self._rank(book.replica_id), []).append(book)
        for rank in range(own, -1, -1):
            most = self._tiers[rank].most_in_flight
            roomy = [book for book in by_tier.get(rank, ()) if book.in_flight + request.sequences <= most]
            if roomy:
                return max(roomy, key=lambda book: (book.in_flight, -book.replica_id)).replica_id
        left = by_tier.get(own) or [book for books in by_tier.values() for book in books]
        return min(left, key=lambda book: (book.in_flight, book.replica_id)).replica_id if left else None
