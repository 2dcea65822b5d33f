"""Effective limits: what the allocation gives each entitlement, brought to where the checks read it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from policies.api import PoolCapacity, ServiceClass
from policies.meters import ContinuousBucket
from policies.token_pool.allocation import Claim, Grant, Vector, allocate, baseline_vector, capacity_vector
from policies.token_pool.metering import Account
from policies.token_pool.params import Rules

_BASELINED = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED, ServiceClass.ELASTIC)
_LEAST_WEIGHT = _ROUNDING = 1e-9


def share_out(accounts: Iterable[Account], capacity: PoolCapacity, rules: Rules, now_s: float) -> None:
    """Share out what the pool has among who is Bound."""
    bound = [account for account in accounts if account.bound]
    claims = [
        Claim(
            account.spec.service_class, max(account.weight, _LEAST_WEIGHT), baseline_vector(account.spec.baseline),
            account.limits, claimed(account, rules.demand_margin),
        )
        for account in bound
    ]
    for account, grant in zip(bound, allocate(claims, capacity_vector(capacity)), strict=True):
        refit(account, grant, rules, now_s)


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


def refit(account: Account, grant: Grant, rules: Rules, now_s: float) -> None:
    """Let the checks use what was allocated.

    Slots are rounded up: a share of a slot lets one request in, and the pool as a whole is guarded by check 5.
    """
    account.granted = grant.granted
    rate, kv_bytes, slots = grant.limit
    account.limit_slots = math.ceil(slots - _ROUNDING) if math.isfinite(slots) else slots
    account.limit_kv_bytes = kv_bytes
    if not math.isfinite(rate):
        account.bucket = None
        return
    depth = max(rate * rules.bucket_s, rules.max_request_tokens)
    if account.bucket is None:
        account.bucket = ContinuousBucket(rate_per_s=max(rate, _ROUNDING), depth=depth)
    account.bucket.refit(rate_per_s=rate, depth=depth, now_s=now_s)
