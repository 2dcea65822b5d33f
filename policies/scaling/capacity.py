"""The autoscaler that reads the books of admission: one capacity model for both (arXiv 2603.00356's principle).

What is wanted is what was promised and is asked for, refused or not, on the vector that admission shares out:

    need_x = baselines of dedicated and guaranteed
             + for each elastic: min(demand, baseline) + baseline * max(0, debt)
             + leases that are Degraded, or Pending and due before a replica could start
             + bursts of dedicated and elastic that went unmet for ``patience_s``
    replicas = max over x of need_x / (headroom * what one replica has of x)

Spot and preemptible never cause a scale-up. The paper gives no rule; this one is ours [choice].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from policies.api import (
    AdmissionPolicy,
    EntitlementSpec,
    EntitlementState,
    Gauge,
    PoolCapacity,
    PoolLedger,
    ServiceClass,
)
from policies.scaling.governor import Bounds, says
from policies.token_pool.allocation import UNITS, ZERO, Vector, capacity_vector, vector
from policies.token_pool.leases import lease_of

_BURSTING = (ServiceClass.DEDICATED, ServiceClass.ELASTIC)
_PROTECTED = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity(Bounds):
    """Scales on the promises and demands of token pools; goes with that policy only."""

    kind: Literal["capacity"] = "capacity"
    headroom: float = field(
        default=0.85, metadata=says("give the share of a replica to plan with, e.g. 0.85", gt=0, le=1)
    )
    patience_s: float = field(
        default=30.0, metadata=says("give the seconds for which a burst must go unmet to count, e.g. 30", ge=0)
    )
    lead_s: float = field(
        default=120.0, metadata=says("give the seconds before from_s at which an entitlement counts, e.g. 120", ge=0)
    )


@runtime_checkable
class Accounting(Protocol):
    """An admission policy that meters demand."""

    def demand_of(self, name: str) -> Vector:
        """Return the smoothed demand of an entitlement: tokens/s, KV bytes, slots."""
        ...

    def granted_of(self, name: str) -> Vector:
        """Return what of it was allocated."""
        ...

    def debt_of(self, name: str) -> float:
        """Return its debt, without unit."""
        ...


class CapacityRule:
    """See the top of this file."""

    def __init__(
        self, params: Capacity, policy: AdmissionPolicy, entitlements: Sequence[EntitlementSpec],
        per_replica: PoolCapacity,
    ) -> None:
        if not isinstance(policy, Accounting):
            raise ValueError("the capacity autoscaler reads the books of token pools; use it with policy token-pool")
        self._params = params
        self._policy = policy
        self._specs = sorted(entitlements, key=lambda spec: spec.name)
        self._per_replica = capacity_vector(per_replica)
        self._unmet_since: dict[str, float] = {}
        self._needed = ZERO

    def wish(self, pool: PoolLedger, current: int, now_s: float) -> float:  # noqa: ARG002
        """See `policies.scaling.governor.Rule`."""
        need = self._needed = self.need(pool, now_s)
        return max(
            amount / (self._params.headroom * each) if each > 0 else 0.0
            for amount, each in zip(need, self._per_replica, strict=True)
        )

    def gauges(self) -> Iterable[Gauge]:
        """Return what was last found to be needed, of what is known of a replica."""
        for unit, amount, each in zip(UNITS, self._needed, self._per_replica, strict=True):
            if math.isfinite(each):
                yield Gauge("pool", "pool", f"needed_{unit}", amount)

    def need(self, pool: PoolLedger, now_s: float) -> Vector:
        """Return the tokens/s, KV bytes and slots that the pool ought to have."""
        needs = [self._need_of(spec, pool, now_s) for spec in self._specs]
        total = [math.fsum(each[d] for each in needs) for d in range(3)]
        return (total[0], total[1], total[2])

    def _need_of(self, spec: EntitlementSpec, pool: PoolLedger, now_s: float) -> Vector:
        state = pool.entitlements[spec.name].state
        lease = lease_of(spec)
        if state is EntitlementState.EXPIRED:
            return ZERO
        if state is EntitlementState.PENDING:
            return lease if spec.from_s - now_s <= self._params.lead_s else ZERO
        if state is EntitlementState.DEGRADED:
            return lease
        demand = self._policy.demand_of(spec.name)
        held = lease
        if spec.service_class is ServiceClass.ELASTIC:
            owed = max(0.0, self._policy.debt_of(spec.name))
            parts = [min(want, has) + has * owed for want, has in zip(demand, lease, strict=True)]
            held = (parts[0], parts[1], parts[2])
        elif spec.service_class not in _PROTECTED:
            return ZERO
        burst = self._burst(spec, demand, now_s)
        return (held[0] + burst[0], held[1] + burst[1], held[2] + burst[2])

    def _burst(self, spec: EntitlementSpec, demand: Vector, now_s: float) -> Vector:
        """Return the burst above the baseline, once it was not met in full for long enough.

        What is met of it counts as well: else the replica that was added for it would be taken away again.
        """
        if spec.service_class not in _BURSTING:
            return ZERO
        most = vector(spec.limit, math.inf)
        base = vector(spec.baseline, 0.0)
        over = [max(0.0, min(want, limit) - has) for want, limit, has in zip(demand, most, base, strict=True)]
        granted = self._policy.granted_of(spec.name)
        unmet = any(
            got < min(want, limit) * (1 - self._params.tolerance)
            for want, limit, got in zip(demand, most, granted, strict=True)
        )
        if not any(over):
            self._unmet_since.pop(spec.name, None)
            return ZERO
        if unmet:
            self._unmet_since.setdefault(spec.name, now_s)
        since_s = self._unmet_since.get(spec.name)
        if since_s is None or now_s - since_s < self._params.patience_s:
            if not unmet:
                self._unmet_since.pop(spec.name, None)
            return ZERO
        return (over[0], over[1], over[2])
