"""What a pool's objects should say, from what they ask for and how many replicas are ready; nothing asks a cluster.

Leases are settled by the policy's own book (`policies.token_pool.leases`): first fit by class and then by age, and who
is Bound stays Bound when the pool shrinks. What a cluster keeps of it is read back from the statuses, so that another
operator goes on where one has ended.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from policies.api import EntitlementSpec, EntitlementState, PoolCapacity
from policies.token_pool.allocation import capacity_vector
from policies.token_pool.leases import LeaseBook, lease_of
from sim.adapters.admission.config import GateConfig, config_of
from sim.errors import TokenpoolsError
from sim.scenario.manifests import EntitlementManifest, PoolManifest, parsed, pool_of

Object = Mapping[str, Any]
_GIB = 2**30
_NOBODY = {"name": "nobody", "tenant": "nobody", "service_class": "spot"}
_NEVER = datetime.max
PENDING, BOUND, DEGRADED, EXPIRED = (str(state) for state in (
    EntitlementState.PENDING, EntitlementState.BOUND, EntitlementState.DEGRADED, EntitlementState.EXPIRED,
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an entitlement.

    Attributes
    ----------
    phase : Pending, Bound, Degraded or Expired.
    reason, message : why, in one word and in one sentence.
    lease : what is reserved for it, by name; empty where nothing is.
    """

    phase: str
    reason: str
    message: str
    lease: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pool's objects should say.

    Attributes
    ----------
    entitlements : by name.
    phase, reason, message : of the pool: Ready or Degraded.
    capacity, allocatable, reserved : of the virtual node: at maxReplicas, of the ready replicas, by bound leases.
    objects : for the gateways, as text: the pool with its entitlements that are in force; None where it makes no sense.
    least_replicas : what the leases need, between the pool's bounds.
    most_replicas : the pool's upper bound.
    next_change : when an entitlement begins or ends next; None for never.
    """

    entitlements: Mapping[str, Verdict]
    phase: str
    reason: str
    message: str
    capacity: Mapping[str, float] = field(default_factory=dict)
    allocatable: Mapping[str, float] = field(default_factory=dict)
    reserved: Mapping[str, float] = field(default_factory=dict)
    objects: str | None = None
    least_replicas: int = 0
    most_replicas: int = 0
    next_change: datetime | None = None


def reconcile(pool: Object, entitlements: Sequence[Object], ready: int, now: datetime) -> Outcome:
    """Return what a pool and its entitlements should say.

    Parameters
    ----------
    pool, entitlements : the objects, as the cluster has them.
    ready : how many replicas are ready.
    now : with its zone.
    """
    name = pool["metadata"]["name"]
    try:
        manifest = parsed(_bare(pool), f"TokenPool {name}")
        assert isinstance(manifest, PoolManifest)
        _config(name, manifest, {})
    except TokenpoolsError as error:
        waits = Verdict(PENDING, "PoolInvalid", f"pool {name} is not valid")
        return Outcome({_name(one): waits for one in entitlements}, "Degraded", "Invalid", str(error))
    verdicts: dict[str, Verdict] = {}
    valid: dict[str, EntitlementManifest] = {}
    in_force: list[Object] = []
    changes: list[datetime] = []
    for one in sorted(entitlements, key=_age):
        found = _validity(name, manifest, one, now, changes)
        if isinstance(found, Verdict):
            verdicts[_name(one)] = found
        else:
            valid[_name(one)] = found
            in_force.append(one)
    config = _config(name, manifest, valid)
    specs = [entitlement.spec() for entitlement in config.pool.entitlements] if valid else []
    scaling = manifest.spec.scaling
    allocatable = config.pool.capacity(ready)
    book = LeaseBook(specs, bound=[_name(one) for one in in_force if _was_bound(one)])
    for each, state in book.settle([spec.name for spec in specs], allocatable).items():
        spec = next(spec for spec in specs if spec.name == each)
        verdicts[each] = _verdict(spec, state, ready)
    least = _needed(specs, config, scaling.least, scaling.most)
    short = [each for each, one in verdicts.items() if one.phase == DEGRADED]
    phase, reason, message = "Ready", "AllBound", f"{ready} replicas are ready"
    if ready == 0:
        phase, reason, message = "Degraded", "NoReadyReplica", "no replica is ready"
    elif short:
        phase, reason = "Degraded", "LeasesDoNotFit"
        message = f"{len(short)} leases do not fit {ready} replicas: {', '.join(sorted(short)[:5])}"
    return Outcome(
        verdicts, phase, reason, message, capacity=_amounts(_vector(config.pool.capacity(scaling.most))),
        allocatable=_amounts(_vector(allocatable)), reserved=_amounts(book.promised()),
        objects=_objects_text(pool, in_force), least_replicas=least, most_replicas=scaling.most,
        next_change=min(changes, default=None),
    )  # fmt: skip


def without_pool(entitlements: Iterable[Object], name: str, *, leaving: bool) -> dict[str, Verdict]:
    """Return what becomes of entitlements whose pool is not there, or is on its way out."""
    reason = "PoolTerminating" if leaving else "PoolMissing"
    message = f"pool {name} is being deleted" if leaving else f"there is no pool {name}"
    return {_name(one): Verdict(PENDING, reason, message) for one in entitlements}


def entitlement_status(verdict: Verdict, before: Object, generation: int, now: datetime, pool: str) -> dict[str, Any]:
    """Return the status of an entitlement; a condition keeps its time as long as it says the same."""
    status = "True" if verdict.phase == BOUND else "False"
    conditions = [_condition("Bound", status, verdict.reason, verdict.message, before, generation, now)]
    return {
        "phase": verdict.phase, "pool": pool, "observedGeneration": generation, "conditions": conditions,
        "lease": dict(verdict.lease) or None,
    }  # fmt: skip


def pool_status(outcome: Outcome, before: Object, generation: int, ready: int, now: datetime) -> dict[str, Any]:
    """Return the status of a pool."""
    status = "True" if outcome.phase == "Ready" else "False"
    conditions = [_condition("Ready", status, outcome.reason, outcome.message, before, generation, now)]
    phases = [one.phase for one in outcome.entitlements.values()]
    return {
        "phase": outcome.phase, "observedGeneration": generation, "readyReplicas": ready, "conditions": conditions,
        "capacity": dict(outcome.capacity) or None, "allocatable": dict(outcome.allocatable) or None,
        "reserved": dict(outcome.reserved) or None,
        "entitlements": {"bound": phases.count(BOUND), "total": len(phases)},
    }  # fmt: skip


def _condition(
    kind: str, status: str, reason: str, message: str, before: Object, generation: int, now: datetime
) -> dict[str, Any]:
    since = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    for one in before.get("conditions") or ():
        if one.get("type") == kind and one.get("status") == status and one.get("lastTransitionTime"):
            since = one["lastTransitionTime"]
    return {
        "type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": generation,
        "lastTransitionTime": since,
    }  # fmt: skip


def _validity(
    pool_name: str, pool: PoolManifest, one: Object, now: datetime, changes: list[datetime]
) -> Verdict | EntitlementManifest:
    """Return an entitlement that is in force, or why it is not; what changes later is noted."""
    name = _name(one)
    try:
        found = parsed(_bare(one), f"TokenEntitlement {name}")
        assert isinstance(found, EntitlementManifest)
        _config(pool_name, pool, {name: found})
    except TokenpoolsError as error:
        return Verdict(PENDING, "Invalid", str(error))
    begins, ends = _time(found.spec.validity.begins), _time(found.spec.validity.ends)
    changes += [at for at in (begins, ends) if at is not None and at > now]
    if ends is not None and now >= ends:
        return Verdict(EXPIRED, "Expired", f"it ended at {found.spec.validity.ends}")
    if begins is not None and now < begins:
        return Verdict(PENDING, "NotYetValid", f"it begins at {found.spec.validity.begins}")
    return found


def _verdict(spec: EntitlementSpec, state: EntitlementState, ready: int) -> Verdict:
    lease = _amounts(lease_of(spec))
    if state is EntitlementState.BOUND:
        said = "its lease is bound" if lease else f"a {spec.service_class} entitlement reserves nothing"
        return Verdict(BOUND, "LeaseBound", said, lease)
    return Verdict(DEGRADED, "DoesNotFit", f"its lease does not fit what {ready} ready replicas have left")


def _needed(specs: Sequence[EntitlementSpec], config: GateConfig, least: int, most: int) -> int:
    """Return how many replicas hold all leases, within bounds."""
    one = _vector(config.pool.capacity(1))
    leases = [lease_of(spec) for spec in specs]
    needed = [math.fsum(lease[d] for lease in leases) / one[d] for d in range(3) if one[d] > 0]
    return max(least, min(most, math.ceil(max(needed, default=0) - 1e-9)))


def _config(
    name: str, pool: PoolManifest, entitlements: Mapping[str, EntitlementManifest]
) -> GateConfig:
    found = pool_of(name, pool, {each: (f"TokenEntitlement {each}", one) for each, one in entitlements.items()})
    found.setdefault("profile", "")
    made = found["entitlements"] or [_NOBODY]
    given = {"version": 1, "policy": "token-pool", "pool": {**found, "entitlements": made, "oversubscribed": True}}
    return config_of(given, GateConfig)


def _objects_text(pool: Object, entitlements: Sequence[Object]) -> str:
    """Return a List of the pool and what is in force of it, as scenarios and gateways read it."""
    items = []
    for one in (pool, *sorted(entitlements, key=_name)):
        spec = {name: value for name, value in one["spec"].items() if name != "validity"}
        items.append(_bare(one) | {"spec": spec})
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1, sort_keys=True) + "\n"


def _vector(capacity: PoolCapacity) -> tuple[float, float, float]:
    return capacity_vector(capacity)


def _amounts(vector: Sequence[float]) -> dict[str, float]:
    """Return amounts under the names of the manifests; what is nothing, or has no bound, is left out."""
    names = {"tokensPerSecond": vector[0], "kvCacheGiB": vector[1] / _GIB, "concurrency": vector[2]}
    return {name: round(value, 6) for name, value in names.items() if value > 0 and math.isfinite(value)}


def _bare(one: Object) -> dict[str, Any]:
    """Return an object without what only the cluster says of it."""
    return {name: one[name] for name in ("apiVersion", "kind", "spec") if name in one} | {
        "metadata": {"name": one["metadata"]["name"]}
    }


def _name(one: Object) -> str:
    return str(one["metadata"]["name"])


def _age(one: Object) -> tuple[str, str]:
    return (str(one["metadata"].get("creationTimestamp", "")), _name(one))


def _was_bound(one: Object) -> bool:
    return bool((one.get("status") or {}).get("phase") == BOUND)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
