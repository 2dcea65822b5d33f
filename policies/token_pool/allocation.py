"""Who gets how much of the pool: weighted progressive filling by dominant share, class after class.

A request takes tokens/s, KV cache and slots together, so an entitlement's use grows along the direction of its demand.
Filling raises the dominant shares (the largest share of any one resource) of all claims at rates that are their
weights, until a claim is satisfied or a resource it needs is used up: dominant resource fairness, weighted and with
bounded demands [1]_. It runs in steps [choice]:

1. dedicated up to their baselines, which are then held whether they are used or not, and count as used when their owner
   bursts; after them guaranteed up to theirs;
2. elastic up to its baseline;
3. bursts of dedicated, guaranteed and elastic up to their limits;
4. spot up to its limit; 5. preemptible up to its limit.

More replicas take nothing from anybody: where all resources grow by one factor and whoever asks needs something of
each, every grant is at least what it was. For a step ends either with everybody in it satisfied, or with a resource
used up, of which nothing was left for later steps before either; within a step all stop at one level. With a single
resource the same holds however it grows. Where one of several grows alone somebody may lose: whom it had held back
takes more of the others too, and no such rule is free of that [1]_ (section 6).

Claiming more than one uses gains nothing, also where dedicated baselines exceed the pool: what is asked for within
baselines is filled before anything is held idle, and idle reserves are cut, not use.

References
----------
.. [1] A. Ghodsi et al., "Dominant Resource Fairness: Fair Allocation of Multiple Resource Types", NSDI 2011.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from policies.api import PoolCapacity, Resources, ServiceClass

Vector = tuple[float, float, float]
"""Tokens/s, bytes of KV cache, slots."""

UNITS = ("tokens_per_s", "kv_bytes", "slots")
ZERO: Vector = (0.0, 0.0, 0.0)
UNLIMITED: Vector = (math.inf, math.inf, math.inf)
_DIMENSIONS: Final = range(3)
_ROUNDING: Final = 1e-9
_BURSTING: Final = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED, ServiceClass.ELASTIC)


def vector(resources: Resources, missing: float) -> Vector:
    """Return resources as numbers, ``missing`` for what is not given."""
    return (
        missing if resources.tokens_per_s is None else resources.tokens_per_s,
        missing if resources.kv_bytes is None else resources.kv_bytes,
        missing if resources.slots is None else resources.slots,
    )


def baseline_vector(resources: Resources) -> Vector:
    """Return a baseline as numbers: nothing where nothing is promised, and no bound on what it leaves unsaid."""
    return ZERO if resources == Resources() else vector(resources, math.inf)


def capacity_vector(capacity: PoolCapacity) -> Vector:
    """Return what a pool has; a dimension that is not known holds nobody back."""
    return vector(Resources(capacity.tokens_per_s, capacity.kv_bytes, capacity.slots), math.inf)


class Claim(NamedTuple):
    """What one entitlement asks of the pool.

    Attributes
    ----------
    weight : above 0; counts against others in the same step.
    baseline : see `baseline_vector`.
    limit : the most it may have, at least the baseline; infinite where there is no limit.
    demand : what it would use if nobody else were there.
    """

    service_class: ServiceClass
    weight: float
    baseline: Vector
    limit: Vector
    demand: Vector


class Grant(NamedTuple):
    """What one entitlement gets.

    Attributes
    ----------
    share : of its demand that is met, from 0 to 1.
    granted : ``share`` times the demand; what of it is an idle dedicated reserve is not in here.
    limit : how far it may go if it asks for more than it did: what it has, what nobody of its step or above claims, and
        its part by weight of what is short. Never above its own limit, never below a protected baseline.
    """

    share: float
    granted: Vector
    limit: Vector


def allocate(claims: Sequence[Claim], capacity: Vector) -> list[Grant]:
    """Return a grant for each claim, in the same order.

    Grants never sum to more than the capacity; no part of a demand within its limits stays unmet while there is enough
    left of everything it needs. Takes time n log n.
    """
    shares = [0.0] * len(claims)
    free = list(capacity)
    limits = [claim.limit for claim in claims]
    base = [_fraction(claim.demand, claim.baseline) for claim in claims]
    most = [_fraction(claim.demand, claim.limit) for claim in claims]
    for service_class in _BURSTING[:2]:
        members = [i for i, c in enumerate(claims) if c.service_class is service_class]
        _step(claims, members, base, shares, free, capacity)
        if service_class is ServiceClass.DEDICATED:
            for i in members:
                _hold_idle(claims[i], shares[i], free)
    # Elastic: its baseline, then bursts beside the protected classes; and then class after class.
    elastic = [i for i, c in enumerate(claims) if c.service_class is ServiceClass.ELASTIC]
    held = _step(claims, elastic, base, shares, free, capacity)
    for i in elastic:
        limits[i] = held.limit(i, claims[i], shares[i], capacity)
    bursting = [i for i, c in enumerate(claims) if c.service_class in _BURSTING]
    held = _step(claims, bursting, most, shares, free, capacity)
    for i in bursting:
        limits[i] = _greater(_lesser(claims[i].baseline, limits[i]), held.limit(i, claims[i], shares[i], capacity))
    for service_class in (ServiceClass.SPOT, ServiceClass.PREEMPTIBLE):
        members = [i for i, c in enumerate(claims) if c.service_class is service_class]
        held = _step(claims, members, most, shares, free, capacity)
        for i in members:
            limits[i] = held.limit(i, claims[i], shares[i], capacity)
    grants = []
    for claim, share, limit in zip(claims, shares, limits, strict=True):
        bound = _lesser(limit, claim.limit)
        if claim.service_class in _BURSTING[:2]:
            bound = _greater(bound, _lesser(claim.baseline, claim.limit))
        grants.append(Grant(share, _times(claim.demand, share), bound))
    return grants


class _Part:
    """One claim's part in one step of filling: how much, and what share of it was met."""

    __slots__ = ("dominant", "filled", "index", "need", "weight")

    def __init__(self, index: int, weight: float, need: Vector) -> None:
        self.index = index
        self.weight = weight
        self.need = need
        self.dominant = 0.0
        self.filled = 1.0


class _Step(NamedTuple):
    """How a step ended.

    ``level`` is the dominant share per weight at which the first resource ran out, or the highest reached where none
    did; ``free`` is what was left, and ``before`` which share of its demand each member had from earlier steps.
    """

    level: float
    free: Vector
    before: Mapping[int, float]

    def limit(self, index: int, claim: Claim, share: float, capacity: Vector) -> Vector:
        """Return how far a claim may go: see `Grant`."""
        reachable = _plus(_times(claim.demand, share), self.free)
        along = claim.demand if any(claim.demand) else _direction(claim, capacity)
        dominant = _dominant(along, capacity)
        fair = self.level * claim.weight / dominant if 0 < dominant < math.inf else 0.0
        return _greater(reachable, _plus(_times(claim.demand, self.before[index]), _times(along, fair)))


def _step(
    claims: Sequence[Claim], members: Sequence[int], high: Sequence[float],
    shares: list[float], free: list[float], capacity: Vector,
) -> _Step:
    """Fill each member from the share of its demand that it has to ``high``; ``shares`` and ``free`` follow."""
    before = {i: shares[i] for i in members}
    parts = [_Part(i, claims[i].weight, _times(claims[i].demand, max(0.0, high[i] - before[i]))) for i in members]
    level = _fill(parts, free, capacity)
    for part in parts:
        i = part.index
        shares[i] += max(0.0, high[i] - before[i]) * part.filled
    return _Step(level, (free[0], free[1], free[2]), before)


def _fill(parts: Sequence[_Part], free: list[float], capacity: Vector) -> float:
    """Fill the parts out of ``free``; returns the level at which the first resource ran out, or the highest reached."""
    active = []
    for part in parts:
        part.dominant = _dominant(part.need, capacity)
        if part.dominant == math.inf:  # it needs what the pool does not have at all
            part.filled = 0.0
        elif part.dominant > 0:
            active.append(part)
    active.sort(key=lambda part: (part.dominant / part.weight, part.index))
    # Where nothing is left of something, whoever comes now is short from the start.
    short_at = 0.0 if any(free[d] <= _ROUNDING * capacity[d] < math.inf for d in _DIMENSIONS) else math.inf
    level = 0.0
    while active:
        short, level, active = _raise(active, free, level)
        if short is None:
            break
        short_at = min(short_at, level)
        for part in active:
            if part.need[short] > 0:
                part.filled = min(1.0, level * part.weight / part.dominant)
        active = [part for part in active if not part.need[short] > 0]
    return min(short_at, level)


def _raise(active: list[_Part], free: list[float], level: float) -> tuple[int | None, float, list[_Part]]:
    """Raise the level until a resource that is still needed runs out: which, at what level, and who is not satisfied.

    ``active`` comes in the order in which its members will be satisfied.
    """
    rates = [math.fsum(part.need[d] * part.weight / part.dominant for part in active) for d in _DIMENSIONS]
    for done, part in enumerate(active):
        satisfied_at = part.dominant / part.weight
        while True:
            room, short = min((_room(free[d], rates[d]), d) for d in _DIMENSIONS)
            if level + room >= satisfied_at * (1 - _ROUNDING):
                break
            if any(other.need[short] > 0 for other in active[done:]):
                _take(free, rates, room)
                free[short] = 0.0
                return short, level + room, active[done:]
            rates[short] = 0.0  # what is left of a rate after subtracting all of its parts
        _take(free, rates, max(0.0, satisfied_at - level))
        level = max(level, satisfied_at)
        per_level = part.weight / part.dominant
        rates = [max(0.0, rates[d] - part.need[d] * per_level) for d in _DIMENSIONS]
    return None, level, []


def _room(free: float, rate: float) -> float:
    return max(0.0, free) / rate if rate > 0 else math.inf


def _take(free: list[float], rates: Sequence[float], step: float) -> None:
    for d in _DIMENSIONS:
        if rates[d] > 0 and free[d] != math.inf:
            free[d] = max(0.0, free[d] - rates[d] * step)


def _hold_idle(claim: Claim, share: float, free: list[float]) -> None:
    """Take what a dedicated claim was promised and does not use, as far as there is that much."""
    for d, (promised, used) in enumerate(zip(claim.baseline, _times(claim.demand, share), strict=True)):
        if used < promised < math.inf:
            free[d] = max(0.0, free[d] - (promised - used))


def _fraction(demand: Vector, bound: Vector) -> float:
    """Return how much of a demand is within a bound on each resource, from 0 to 1."""
    fraction = 1.0
    for need, most in zip(demand, bound, strict=True):
        if need > most:
            fraction = min(fraction, most / need)
    return fraction if any(demand) or any(bound) else 0.0


def _direction(claim: Claim, capacity: Vector) -> Vector:
    """Return in which proportions an idle claim would use resources: those of its baseline, else of the pool."""
    promised = tuple(b if math.isfinite(b) else 0.0 for b in claim.baseline)
    along = promised if any(promised) else tuple(c if math.isfinite(c) else 0.0 for c in capacity)
    return (along[0], along[1], along[2])


def _dominant(need: Vector, capacity: Vector) -> float:
    """Return the largest share of any one resource."""
    largest = 0.0
    for amount, total in zip(need, capacity, strict=True):
        if amount > 0:
            share = amount / total if total > 0 else math.inf
            if share > largest:
                largest = share
    return largest


def _times(a: Vector, factor: float) -> Vector:
    return (a[0] * factor, a[1] * factor, a[2] * factor)


def _plus(a: Vector, b: Vector) -> Vector:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _lesser(a: Vector, b: Vector) -> Vector:
    return (min(a[0], b[0]), min(a[1], b[1]), min(a[2], b[2]))


def _greater(a: Vector, b: Vector) -> Vector:
    return (max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2]))
