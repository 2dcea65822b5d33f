"""Leases: which entitlements have their promise reserved in the pool, as pods on a virtual node.

The pool's capacity is what the virtual node can allocate; an entitlement's baseline, times the overcommit factor, is
what its lease pod asks for. Leases are placed first fit, by class and then by age, and what does not fit is Degraded
until there is room. A pool that shrinks takes no lease back: who is Bound stays Bound (arXiv 2603.00356, section 4, for
the mechanism; the order and the shrinking are ours).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from policies.api import EntitlementSpec, EntitlementState, PoolCapacity, ServiceClass
from policies.native import mypyc_attr
from policies.token_pool.allocation import ZERO, Vector, capacity_vector, vector

_LEASED: Final = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED, ServiceClass.ELASTIC)
_SLACK: Final = 1e-9


def lease_of(spec: EntitlementSpec, overcommit: float = 1.0) -> Vector:
    """Return what an entitlement's lease reserves: nothing for spot and preemptible."""
    if spec.service_class not in _LEASED:
        return ZERO
    tokens_per_s, kv_bytes, slots = vector(spec.baseline, 0.0)
    return (tokens_per_s * overcommit, kv_bytes * overcommit, slots * overcommit)


@mypyc_attr(allow_interpreted_subclasses=True)
class LeaseBook:
    """Remembers which leases are bound; see `policies.api.Leases`.

    Parameters
    ----------
    specs : of leases of one class and age, those listed first are placed first.
    overcommit : share of a baseline that its lease reserves; below 1 the pool promises more than it has.
    bound : whose leases are bound already.
    """

    def __init__(
        self, specs: Sequence[EntitlementSpec], overcommit: float = 1.0, bound: Collection[str] = ()
    ) -> None:
        self._leases = {spec.name: lease_of(spec, overcommit) for spec in specs}
        rank = {service_class: place for place, service_class in enumerate(ServiceClass)}
        self._order = [spec.name for spec in sorted(specs, key=lambda spec: (rank[spec.service_class], spec.from_s))]
        self._bound: set[str] = set(bound) & self._leases.keys()
        self._promised = self._sum(self._bound)

    def settle(self, in_force: Collection[str], capacity: PoolCapacity) -> Mapping[str, EntitlementState]:
        """Release the leases of who is no longer in force, and bind what fits of the others."""
        self._bound.intersection_update(in_force)
        allocatable = capacity_vector(capacity)
        self._promised = reserved = self._sum(self._bound)
        bound_before = len(self._bound)
        for name in self._order:
            if name not in in_force or name in self._bound:
                continue
            lease = self._leases[name]
            with_it = tuple(have + more for have, more in zip(reserved, lease, strict=True))
            # Who reserves nothing fits a pool that is over its capacity too.
            if all(
                not more or total <= most * (1 + _SLACK)
                for more, total, most in zip(lease, with_it, allocatable, strict=True)
            ):
                self._bound.add(name)
                reserved = (with_it[0], with_it[1], with_it[2])
        if len(self._bound) > bound_before:
            self._promised = self._sum(self._bound)
        return {
            name: EntitlementState.BOUND if name in self._bound else EntitlementState.DEGRADED for name in in_force
        }

    def promised(self) -> Vector:
        """Return what all bound leases reserve."""
        return self._promised

    def _sum(self, names: Collection[str]) -> Vector:
        leases = [self._leases[name] for name in names]
        total = [math.fsum(lease[d] for lease in leases) for d in range(3)]
        return (total[0], total[1], total[2])
