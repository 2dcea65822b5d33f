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
from collections.abc import Sequence
from typing import Final, NamedTuple

from policies.api import PoolCapacity, Resources, ServiceClass

Vector = tuple[float, float, float]
"""Tokens/s, bytes of KV cache, slots."""

UNITS = ("tokens_per_s", "kv_bytes", "slots")
ZERO: Vector = (0.0, 0.0, 0.0)
UNLIMITED: Vector = (math.inf, math.inf, math.inf)
_DIMENSIONS: Final = range(3)
_ROUNDING: Final = 1e-9
_NO_LIMIT: Final = float("inf")
# As in `policies.token_pool.policy`.
_DEDICATED: Final = ServiceClass.DEDICATED
_GUARANTEED: Final = ServiceClass.GUARANTEED
_ELASTIC: Final = ServiceClass.ELASTIC
_SPOT: Final = ServiceClass.SPOT
_PROTECTED: Final = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED)
_BURSTING: Final = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED, ServiceClass.ELASTIC)
# As in `policies.core`.
_new: Final = tuple.__new__


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
    parts = [_Part(claim) for claim in claims]
    dedicated, guaranteed, elastic, spot, preemptible = _by_class(parts)
    free = capacity
    for part in (*dedicated, *guaranteed, *elastic):
        part.goal = _fraction(part.demand, part.baseline)
    _, free = _step(dedicated, free, capacity)
    for part in dedicated:
        free = _hold_idle(part, free)
    _, free = _step(guaranteed, free, capacity)
    # Elastic: its baseline, then bursts beside the protected classes; and then class after class.
    level, free = _step(elastic, free, capacity)
    for part in elastic:
        part.bound = part.reach(level, free, capacity)
    bursting = [part for part in parts if part.service_class in _BURSTING]
    for members in (bursting, spot, preemptible):
        for part in members:
            part.goal = _fraction(part.demand, part.limit)
        level, free = _step(members, free, capacity)
        for part in members:
            bound = part.reach(level, free, capacity)
            part.bound = _greater(_lesser(part.baseline, part.bound), bound) if members is bursting else bound
    grants = []
    for part in parts:
        bound = _lesser(part.bound, part.limit)
        if part.service_class in _PROTECTED:
            bound = _greater(bound, _lesser(part.baseline, part.limit))
        grants.append(_new(Grant, (part.share, _times(part.demand, part.share), bound)))
    return grants


class _Part:
    """A claim while it is filled, step after step.

    Every claim is gone through several times at every tick of a pool: hence numbers written out where a loop over the
    three resources would be shorter, which costs ten times as much.

    Attributes
    ----------
    goal : the share of its demand that a step fills it to; ``share`` is what it has, ``before`` what it had before.
    need : what the step may give it: of each resource, and ``dominant``, the largest share of one.
    filled : how much of the need was met, from 0 to 1.
    satisfied_at : the level, dominant share per weight, at which all of it is.
    bound : how far it may go, see `Grant`; its own limit until a step says.
    """

    __slots__ = (
        "_along", "_along_dominant", "baseline", "before", "bound", "demand", "dominant", "filled", "goal", "limit",
        "need", "satisfied_at", "service_class", "share", "weight",
    )  # fmt: skip

    def __init__(self, claim: Claim) -> None:
        self.service_class, self.weight, self.baseline, self.limit, self.demand = claim
        self.bound = self.limit
        self.share = self.before = self.goal = 0.0
        self.need = self._along = ZERO
        self._along_dominant = -1.0
        self.dominant = self.satisfied_at = 0.0
        self.filled = 1.0

    def reach(self, level: float, free: Vector, capacity: Vector) -> Vector:
        """Return how far it may go after a step that ended at a level with something left: see `Grant`."""
        demand = self.demand
        if self._along_dominant < 0:
            self._along = demand if _any(demand) else _direction(self.baseline, capacity)
            self._along_dominant = _dominant(self._along, capacity)
        dominant = self._along_dominant
        fair = level * self.weight / dominant if 0 < dominant < _NO_LIMIT else 0.0
        reachable = _plus(_times(demand, self.share), free)
        return _greater(reachable, _plus(_times(demand, self.before), _times(self._along, fair)))


def _by_class(parts: Sequence[_Part]) -> tuple[list[_Part], list[_Part], list[_Part], list[_Part], list[_Part]]:
    """Return the parts of each service class, in the order of `ServiceClass`."""
    dedicated: list[_Part] = []
    guaranteed: list[_Part] = []
    elastic: list[_Part] = []
    spot: list[_Part] = []
    preemptible: list[_Part] = []
    for part in parts:
        kind = part.service_class
        if kind is _ELASTIC:
            elastic.append(part)
        elif kind is _SPOT:
            spot.append(part)
        elif kind is _GUARANTEED:
            guaranteed.append(part)
        elif kind is _DEDICATED:
            dedicated.append(part)
        else:
            preemptible.append(part)
    return dedicated, guaranteed, elastic, spot, preemptible


def _step(members: Sequence[_Part], free: Vector, capacity: Vector) -> tuple[float, Vector]:
    """Fill each member from the share of its demand that it has to its goal; returns a level and what is left.

    The level is the dominant share per weight at which the first resource ran out, or the highest reached.
    """
    active = []
    for part in members:
        part.before = part.share
        more = part.goal - part.share
        part.need = need = _times(part.demand, more) if more > 0 else ZERO
        part.dominant = dominant = _dominant(need, capacity)
        part.filled = 1.0
        if dominant == _NO_LIMIT:  # it needs what the pool does not have at all
            part.filled = 0.0
        elif dominant > 0:
            part.satisfied_at = dominant / part.weight
            active.append(part)
    active.sort(key=lambda part: part.satisfied_at)  # of equals the first stays the first
    level, free = _fill(active, free, capacity)
    for part in members:
        more = part.goal - part.before
        if more > 0:
            part.share += more * part.filled
    return level, free


def _fill(active: list[_Part], free: Vector, capacity: Vector) -> tuple[float, Vector]:
    """Fill parts, who come in the order in which they will be satisfied, out of ``free``; returns what `_step` does."""
    # Where nothing is left of something, whoever comes now is short from the start.
    short_at = _NO_LIMIT
    for d in _DIMENSIONS:
        if free[d] <= _ROUNDING * capacity[d] < _NO_LIMIT:
            short_at = 0.0
    level = 0.0
    while active:
        short, level, free, done = _raise(active, free, level)
        if short < 0:
            break
        short_at = min(short_at, level)
        rest = []
        for part in active[done:]:
            if _of(part.need, short) > 0:
                part.filled = min(1.0, level * part.weight / part.dominant)
            else:
                rest.append(part)
        active = rest
    return min(short_at, level), free


def _raise(active: list[_Part], free: Vector, level: float) -> tuple[int, float, Vector, int]:
    """Raise the level until a resource that is still needed runs out.

    Returns which, or -1 where everybody is satisfied; at what level; what is left; and how many were satisfied by then.
    """
    free0, free1, free2 = free
    rate0 = math.fsum([part.need[0] * part.weight / part.dominant for part in active])
    rate1 = math.fsum([part.need[1] * part.weight / part.dominant for part in active])
    rate2 = math.fsum([part.need[2] * part.weight / part.dominant for part in active])
    done = 0
    for part in active:
        satisfied_at = part.satisfied_at
        while True:
            room, short = _room(free0, rate0), 0
            other = _room(free1, rate1)
            if other < room:
                room, short = other, 1
            other = _room(free2, rate2)
            if other < room:
                room, short = other, 2
            if level + room >= satisfied_at * (1 - _ROUNDING):
                break
            if any(_of(left.need, short) > 0 for left in active[done:]):
                free0, free1, free2 = _less(free0, rate0, room), _less(free1, rate1, room), _less(free2, rate2, room)
                left_over = (
                    0.0 if short == 0 else free0, 0.0 if short == 1 else free1, 0.0 if short == 2 else free2
                )  # fmt: skip
                return short, level + room, left_over, done
            # What is left of a rate after subtracting all of its parts.
            if short == 0:
                rate0 = 0.0
            elif short == 1:
                rate1 = 0.0
            else:
                rate2 = 0.0
        step = satisfied_at - level
        if step > 0:
            level = satisfied_at
        else:
            step = 0.0
        free0, free1, free2 = _less(free0, rate0, step), _less(free1, rate1, step), _less(free2, rate2, step)
        per_level = part.weight / part.dominant
        need0, need1, need2 = part.need
        rate0 = _above_zero(rate0 - need0 * per_level)
        rate1 = _above_zero(rate1 - need1 * per_level)
        rate2 = _above_zero(rate2 - need2 * per_level)
        done += 1
    return -1, level, (free0, free1, free2), done


def _room(free: float, rate: float) -> float:
    if rate > 0:
        return free / rate if free > 0 else 0.0
    return _NO_LIMIT


def _less(free: float, rate: float, step: float) -> float:
    """Return what is left of a resource after it was taken at a rate for a step of the level."""
    if rate > 0 and free != _NO_LIMIT:
        return _above_zero(free - rate * step)
    return free


def _above_zero(value: float) -> float:
    return value if value > 0 else 0.0


def _hold_idle(part: _Part, free: Vector) -> Vector:
    """Take what a dedicated claim was promised and does not use, as far as there is that much."""
    used = _times(part.demand, part.share)
    left = [
        max(0.0, there - (promised - own)) if own < promised < _NO_LIMIT else there
        for there, promised, own in zip(free, part.baseline, used, strict=True)
    ]
    return (left[0], left[1], left[2])


def _fraction(demand: Vector, bound: Vector) -> float:
    """Return how much of a demand is within a bound on each resource, from 0 to 1."""
    fraction = 1.0
    if demand[0] > bound[0]:
        fraction = min(fraction, bound[0] / demand[0])
    if demand[1] > bound[1]:
        fraction = min(fraction, bound[1] / demand[1])
    if demand[2] > bound[2]:
        fraction = min(fraction, bound[2] / demand[2])
    return fraction if _any(demand) or _any(bound) else 0.0


def _direction(baseline: Vector, capacity: Vector) -> Vector:
    """Return in which proportions an idle claim would use resources: those of its baseline, else of the pool."""
    promised = [b if math.isfinite(b) else 0.0 for b in baseline]
    along = promised if any(promised) else [c if math.isfinite(c) else 0.0 for c in capacity]
    return (along[0], along[1], along[2])


def _dominant(need: Vector, capacity: Vector) -> float:
    """Return the largest share of any one resource."""
    largest = 0.0
    if need[0] > 0:
        largest = max(largest, need[0] / capacity[0] if capacity[0] > 0 else _NO_LIMIT)
    if need[1] > 0:
        largest = max(largest, need[1] / capacity[1] if capacity[1] > 0 else _NO_LIMIT)
    if need[2] > 0:
        largest = max(largest, need[2] / capacity[2] if capacity[2] > 0 else _NO_LIMIT)
    return largest


def _of(a: Vector, dimension: int) -> float:
    return a[0] if dimension == 0 else a[1] if dimension == 1 else a[2]


def _any(a: Vector) -> bool:
    return a[0] != 0 or a[1] != 0 or a[2] != 0


def _times(a: Vector, factor: float) -> Vector:
    return (a[0] * factor, a[1] * factor, a[2] * factor)


def _plus(a: Vector, b: Vector) -> Vector:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _lesser(a: Vector, b: Vector) -> Vector:
    return (
        b[0] if b[0] < a[0] else a[0], b[1] if b[1] < a[1] else a[1], b[2] if b[2] < a[2] else a[2]
    )  # fmt: skip


def _greater(a: Vector, b: Vector) -> Vector:
    return (
        b[0] if b[0] > a[0] else a[0], b[1] if b[1] > a[1] else a[1], b[2] if b[2] > a[2] else a[2]
    )  # fmt: skip
