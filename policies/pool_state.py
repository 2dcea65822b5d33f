"""What a gateway knows of its pool: the tables of what is in flight and held, the replicas, the entitlements' states.

The event handling is in `policies.core`, which builds on this class. They are one object, because every event reads
these tables several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from policies.api import (
    AdmissionPolicy,
    CompletionFollowing,
    EntitlementLedger,
    EntitlementSpec,
    EntitlementState,
    Evict,
    Gauge,
    InFlight,
    Instruction,
    Leasing,
    LoadFollowing,
    PoolCapacity,
    PoolLedger,
    Queueing,
    Reason,
    Refuse,
    ReplicaKind,
    ReplicaLedger,
    ReportFollowing,
    RequestView,
    Router,
    Timekeeping,
)
from policies.native import mypyc_attr

if TYPE_CHECKING:
    from policies.hierarchy import Hierarchy

NEVER_S: Final = float("inf")
BOUND: Final = EntitlementState.BOUND


@mypyc_attr(allow_interpreted_subclasses=True)
class PoolState:
    """The books of one pool's gateway, and how they change; see `policies.core.GatewayCore` for the parameters."""

    def __init__(
        self, entitlements: Sequence[EntitlementSpec], capacity: PoolCapacity, replica_ids: Sequence[int],
        policy: AdmissionPolicy, router: Router, default_max_output_tokens: int, hierarchy: Hierarchy | None = None,
        kinds: Mapping[int, ReplicaKind] | None = None,
    ) -> None:
        specs = sorted(entitlements, key=lambda spec: spec.name)
        ledgers = {spec.name: EntitlementLedger(spec, EntitlementState.PENDING) for spec in specs}
        if len(ledgers) < len(specs):
            raise ValueError(f"two entitlements share a name in {[spec.name for spec in specs]}; give each its own")
        if len(set(replica_ids)) < len(replica_ids):
            raise ValueError(f"two replicas share an id in {list(replica_ids)}; give each its own")
        self._replicas = [ReplicaLedger(replica_id) for replica_id in sorted(replica_ids)]
        self._replica = {replica.replica_id: replica for replica in self._replicas}
        self._mixed = kinds is not None
        for replica_id, kind in (kinds or {}).items():
            book = self._replica[replica_id]
            book.slots, book.context_tokens, book.speed = kind
        self._ready = len(self._replicas)
        self._ledgers = ledgers
        self._flights: dict[str, InFlight] = {}
        self._held: dict[str, RequestView] = {}
        self.pool = PoolLedger(capacity, MappingProxyType(ledgers), self._replicas, self._flights)
        self._route = router.route
        self._lighter: Callable[[ReplicaLedger], None] | None = None
        if isinstance(router, LoadFollowing):
            self._lighter, self.pool.recount = router.lighter, router.follow
            router.follow(self._replicas)
        self._reported = router.reported if isinstance(router, ReportFollowing) else None
        self._at_time = router.at_time if isinstance(router, Timekeeping) else None
        self._completed = router.completed if isinstance(router, CompletionFollowing) else None
        self._router = router
        self._policy = policy
        self._hierarchy = hierarchy
        self._on_admitted, self._on_ended = policy.on_admitted, policy.on_ended
        self._leases = policy.leases if isinstance(policy, Leasing) else None
        self._queueing = policy if isinstance(policy, Queueing) else None
        self._in_force: list[str] = []
        self.default_max_output_tokens = default_max_output_tokens
        self._next_change_s = -NEVER_S  # states are not known before the first call

    @property
    def policy(self) -> AdmissionPolicy:
        """The policy."""
        return self._policy

    @property
    def router(self) -> Router:
        """Which replica takes a request."""
        return self._router

    @property
    def hierarchy(self) -> Hierarchy | None:
        """The limits and budgets above the entitlements; None where there are none."""
        return self._hierarchy

    @property
    def held(self) -> Mapping[str, RequestView]:
        """The requests that are held."""
        return MappingProxyType(self._held)

    def gauges(self, now_s: float) -> list[Gauge]:
        """Return the state of the pool for the timeline, the policy's gauges last."""
        pool = self.pool
        held_tokens = sum(request.prompt_tokens + self._most_output_of(request) for request in self._held.values())
        values = [
            Gauge("pool", "pool", "capacity_slots", pool.capacity.slots),
            Gauge("pool", "pool", "ready_replicas", self._ready),
            Gauge("pool", "pool", "in_flight", pool.sequences_in_flight),
            Gauge("pool", "pool", "held", len(self._held)),
            Gauge("pool", "pool", "held_tokens", held_tokens),
        ]
        values += [Gauge("entitlement", name, "in_flight", book.in_flight) for name, book in self._ledgers.items()]
        values += [Gauge("replica", str(book.replica_id), "in_flight", book.in_flight) for book in self._replicas]
        if self._hierarchy is not None:
            values += self._hierarchy.gauges(now_s)
        values += self._policy.gauges(pool, now_s)
        return values

    def _most_output_of(self, request: RequestView) -> int:
        asked = request.max_output_tokens
        return self.default_max_output_tokens if asked is None else asked

    def _book(self, flight: InFlight, now_s: float) -> None:
        ledger, reserved_tokens, sequences = flight.ledger, flight.reserved_tokens, flight.request.sequences
        self._flights[flight.request.request_id] = flight
        self.pool.sequences_in_flight += sequences
        ledger.in_flight += sequences
        ledger.admitted += 1
        ledger.reserved_tokens += reserved_tokens
        replica = self._replica[flight.replica_id]
        replica.in_flight += sequences
        replica.outstanding_tokens += reserved_tokens
        if self._hierarchy is not None:
            self._hierarchy.admitted(flight, now_s)
        self._on_admitted(flight, self.pool, now_s)

    def _close(self, flight: InFlight, output_tokens: int, now_s: float) -> None:
        """Take a request that is no longer in flight out of the other books."""
        if output_tokens > flight.output_tokens:
            self._credit(flight, output_tokens)
        reserved_tokens, sequences = flight.reserved_tokens, flight.request.sequences
        ledger = flight.ledger
        self.pool.sequences_in_flight -= sequences
        ledger.in_flight -= sequences
        ledger.reserved_tokens -= reserved_tokens
        replica = self._replica[flight.replica_id]
        replica.in_flight -= sequences
        replica.outstanding_tokens -= reserved_tokens
        if self._lighter is not None:
            self._lighter(replica)
        if self._hierarchy is not None:
            self._hierarchy.ended(flight, now_s)
        self._on_ended(flight, self.pool, now_s)

    @staticmethod
    def _credit(flight: InFlight, output_tokens: int) -> None:
        """Count work up to ``output_tokens``, which shows that the prompt is done too."""
        worked_tokens = output_tokens - flight.output_tokens
        flight.output_tokens = output_tokens
        if not flight.prompt_credited:
            flight.prompt_credited = True
            worked_tokens += flight.request.prompt_tokens
        flight.ledger.worked_tokens += worked_tokens

    def _evict(self, request_id: str, now_s: float) -> Evict:
        flight = self._flights.pop(request_id, None)
        if flight is None:
            raise KeyError(f"the policy evicts request {request_id}, which is not in flight")
        self._close(flight, flight.output_tokens, now_s)
        return Evict(request_id, Reason.PREEMPTED)

    def _withdraw(self, request_id: str, now_s: float) -> bool:
        """Hold a request no longer, and let the policy know; say whether it was held."""
        if self._held.pop(request_id, None) is None:
            return False
        if self._queueing is not None:
            self._queueing.on_withdrawn(request_id, now_s)
        return True

    def _know(self, replica_id: int, *, ready: bool) -> None:
        """Open a book for a replica that is new."""
        self._replica[replica_id] = ReplicaLedger(replica_id, ready)
        self._replicas.append(self._replica[replica_id])
        self._replicas.sort(key=lambda replica: replica.replica_id)
        self._recount()

    def _recount(self) -> None:
        """Let a router that follows the replicas' loads know that there are others, or that what they owe changed."""
        if self.pool.recount is not None:
            self.pool.recount(self._replicas)

    def _change_states(self, now_s: float) -> Iterable[Instruction]:
        """Bring the states of the entitlements up to date."""
        self._next_change_s = NEVER_S
        in_force: list[str] = []
        for name, ledger in self._ledgers.items():
            from_s, until_s = ledger.spec.from_s, ledger.spec.until_s
            if now_s < from_s:
                ledger.state = EntitlementState.PENDING
                self._next_change_s = min(self._next_change_s, from_s)
            elif now_s < until_s:
                in_force.append(name)
                self._next_change_s = min(self._next_change_s, until_s)
            else:
                ledger.state = EntitlementState.EXPIRED
        self._in_force = in_force
        return self._settle(now_s)

    def _settle(self, now_s: float) -> list[Instruction]:
        """Say who of those in force is Bound, and turn away who is held by one that is not."""
        if self._leases is None:
            for name in self._in_force:
                self._ledgers[name].state = BOUND
        else:
            for name, state in self._leases.settle(self._in_force, self.pool.capacity).items():
                self._ledgers[name].state = state
        self._policy.on_capacity(self.pool, now_s)
        refusals: list[Instruction] = []
        for request in [held for held in self._held.values() if self._ledgers[held.entitlement].state is not BOUND]:
            self._withdraw(request.request_id, now_s)
            self._ledgers[request.entitlement].refused += 1
            refusals.append(Refuse(request.request_id, Reason.NOT_BOUND, 403, None, 1, 0))
        return refusals
