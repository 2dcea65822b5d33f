"""Effective limits: what the allocation gives each entitlement, brought to where the checks read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from policies.api import PoolCapacity, ServiceClass
from policies.meters import ContinuousBucket
from policies.token_pool.allocation import Claim, Grant, Vector, allocate, baseline_vector, capacity_vector
from policies.token_pool.metering import Account
from policies.token_pool.params import Rules
from policies.token_pool.priority import CLASS_RANK

_BASELINED: Final = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED, ServiceClass.ELASTIC)
_PROTECTED: Final = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED)
_LEAST_WEIGHT: Final = 1e-9
_ROUNDING: Final = 1e-9


def share_out(accounts: Iterable[Account], capacity: PoolCapacity, rules: Rules, now_s: float) -> None:
    """Share out what the pool has among who is Bound."""
    bound = sorted((account for account in accounts if account.bound), key=lambda account: account.index)
    claims = [
        Claim(
            account.spec.service_class, max(account.weight, _LEAST_WEIGHT), baseline_vector(account.spec.baseline),
            account.limits, claimed(account, rules.demand_margin),
        )
        for account in bound
    ]
    has = capacity_vector(capacity)
    grants = allocate(claims, has)
    slots = whole_slots(claims, grants, has[2])
    for account, grant, most in zip(bound, grants, slots, strict=True):
        refit(account, grant, most, rules, now_s)


def claimed(account: Account, margin: float) -> Vector:
    """Return the demand to claim: the mean, and inside the baseline ``margin`` standard deviations above it [choice].

    Whoever is to be let in when it comes finds no place where others fill the pool up to its mean. As many slots as a
    Poisson load takes on average vary by their square root.
    """
    slots = account.demand[2]
    if not margin or not slots or account.spec.service_class not in _BASELINED:
        return account.demand
    more = 1 + margin / math.sqrt(max(slots, 1.0))
    held = [
        max(want, min(want * more, most))
        for want, most in zip(account.demand, baseline_vector(account.spec.baseline), strict=True)
    ]
    return (held[0], held[1], held[2])


def whole_slots(claims: Sequence[Claim], grants: Sequence[Grant], capacity: float) -> list[float]:
    """Return each limit of slots as a whole number [choice].

    Half a slot lets nobody in, and all halves rounded up are more than there is: whoever comes first would then have
    the last slots. So those who are short of slots share what the others leave of them in whole numbers: what rounding
    down leaves over goes, one each, to those with a part of one, by class, inside the baseline before bursts, and by
    weight. Nobody who may have a part of a slot has none, and all other limits are rounded up: the pool as a whole is
    guarded by check 5.
    """
    held = [
        max(grant.granted[2], claim.baseline[2])
        if claim.service_class is ServiceClass.DEDICATED and math.isfinite(claim.baseline[2])
        else grant.granted[2]
        for claim, grant in zip(claims, grants, strict=True)
    ]
    short = [
        i
        for i, (claim, grant) in enumerate(zip(claims, grants, strict=True))
        if grant.limit[2] <= grant.granted[2] * (1 + _ROUNDING) and claim.service_class not in _PROTECTED
    ]
    slots = [math.ceil(g.limit[2] - _ROUNDING) if math.isfinite(g.limit[2]) else g.limit[2] for g in grants]
    if not short or not math.isfinite(capacity):
        return slots
    left = math.floor(capacity - math.fsum(held) + math.fsum(held[i] for i in short) + _ROUNDING)
    for i in short:
        whole = math.floor(held[i] + _ROUNDING)
        slots[i] = max(whole, min(1, slots[i]))
        left -= whole
    parts = [i for i in short if held[i] - slots[i] > _ROUNDING]
    ranks = [CLASS_RANK[claim.service_class] for claim in claims]
    parts.sort(key=lambda i: (-ranks[i], held[i] > claims[i].baseline[2], -claims[i].weight, i))
    for i in parts[: max(0, left)]:
        slots[i] += 1
    return slots


def refit(account: Account, grant: Grant, slots: float, rules: Rules, now_s: float) -> None:
    """Let the checks use what was allocated; ``slots`` is the limit of slots as a whole number."""
    account.granted = grant.granted
    rate, kv_bytes, _ = grant.limit
    account.limit_slots = slots
    account.limit_kv_bytes = kv_bytes
    account.allocated_rate = rate
    if not math.isfinite(rate):
        account.bucket = None
        return
    rate *= account.part
    depth = max(rate * rules.bucket_s, rules.max_request_tokens)
    if account.bucket is None:
        account.bucket = ContinuousBucket(rate_per_s=max(rate, _ROUNDING), depth=depth)
    account.bucket.refit(rate_per_s=rate, depth=depth, now_s=now_s)
