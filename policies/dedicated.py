"""Dedicated endpoints: every entitlement has replicas of its own, and nobody uses another's.

The straw man of arXiv 2603.00356 beside no control at all: perfect isolation, and idle replicas next to full ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import Admit, Chance, Deny, EntitlementSpec, Gauge, PoolLedger, Reason, RequestView, Verdict
from policies.no_control import NoControlPolicy
from policies.parts.room import Room

_RETRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dedicated:
    """Replicas of its own for each entitlement, and no sharing (the paper's dedicated endpoints).

    Left out, replicas are dealt evenly; what does not go evenly goes, one each, to those who come first. Where there
    are fewer of them than entitlements, neighbours share one. Who is not named in ``replicas`` shares what the named
    leave.
    """

    kind: Literal["dedicated"] = "dedicated"
    replicas: Mapping[str, int] = field(
        default_factory=dict, metadata={"description": "give replicas by entitlement, e.g. {chat: 2, batch: 1}"}
    )
    max_in_flight_per_replica: int | None = field(
        default=None, metadata={"gt": 0, "description": "give requests in flight per replica, e.g. 100; left out, any"}
    )


class DedicatedPolicy(NoControlPolicy):
    """See `policies.api.AdmissionPolicy`. Replicas keep their owner while they are down."""

    def __init__(
        self, params: Dedicated, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        self._names = sorted(spec.name for spec in entitlements)
        for name, count in params.replicas.items():
            if name not in self._names or count < 1:
                raise ValueError(f"replicas gives {name!r} {count}; give at least 1 to some of {self._names}")
        self._params = params
        self._room = Room(kv_bytes_per_token, 1.0)
        self._known: list[int] = []
        self._own: dict[str, tuple[int, ...]] = {}
        self._came: list[str] = []

    def _deal(self, replica_ids: list[int]) -> None:
        self._known = replica_ids
        named = self._params.replicas
        if not named:
            parts, count = len(self._names), len(replica_ids)
            each = count // parts
            for index, name in enumerate(self._names):
                first = index * each if each else index * count // parts
                self._own[name] = tuple(replica_ids[first : first + max(1, each)])
            over = replica_ids[parts * each :] if each else []
            for name, replica_id in zip(self._came, over, strict=False):
                self._own[name] += (replica_id,)
            return
        at = 0
        for name in self._names:
            if name in named:
                self._own[name] = tuple(replica_ids[at : at + named[name]])
                at += named[name]
        for name in self._names:
            if name not in named:
                self._own[name] = tuple(replica_ids[at:])

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Send it to a replica of its own."""
        too_large = self._room.too_large(request, max_output_tokens, pool)
        if too_large is not None:
            return too_large
        if request.entitlement not in self._came:
            self._came.append(request.entitlement)
            self._deal(self._known)
        own = self._own[request.entitlement]
        books = [book for book in pool.replicas if book.replica_id in own and book.ready]
        if not books:
            return Deny(Reason.NO_CAPACITY, 1, 0, _RETRY_S, 503)
        if self._params.max_in_flight_per_replica is not None:
            most, in_flight = len(books) * self._params.max_in_flight_per_replica, sum(book.in_flight for book in books)
            needed = in_flight + request.sequences
            if needed > most:
                return Deny(Reason.CONCURRENCY, needed, most, None if request.sequences > most else _RETRY_S)
        return Admit(replicas=own)

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Deal out the replicas that there are."""
        self._room.learn(pool)
        replica_ids = [book.replica_id for book in pool.replicas]
        if replica_ids != self._known:
            self._deal(replica_ids)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:  # noqa: ARG002
        """Return how many replicas each has."""
        for name, own in self._own.items():
            yield Gauge("entitlement", name, "own_replicas", len(own))
