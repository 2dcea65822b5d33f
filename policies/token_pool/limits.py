"""Effective limits: what the allocation gives each entitlement, brought to where the checks read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from policies.api import PoolCapacity, ServiceClass
from policies.meters import ContinuousBucket
from policies.token_pool.allocation import Claim, Grant, Vector, allocate, capacity_vector
from policies.token_pool.metering import Account
from policies.token_pool.params import Rules
from policies.token_pool.priority import CLASS_RANK

# As in `policies.token_pool.policy`.
_DEDICATED: Final = ServiceClass.DEDICATED
_BASELINED: Final = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED, ServiceClass.ELASTIC)
_PROTECTED: Final = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED)
_LEAST_WEIGHT: Final = 1e-9
_ROUNDING: Final = 1e-9
_NO_LIMIT: Final = float("inf")
# As in `policies.core`.
_new: Final = tuple.__new__


def share_out(accounts: Sequence[Account], capacity: PoolCapacity, rules: Rules, now_s: float) -> None:
    """Share out what the pool has among who is Bound; the accounts come in the order of their index."""
    bound = [account for account in accounts if account.bound]
    margin = rules.demand_margin
    claims = [
        _new(Claim, (
            account.service_class, max(account.weight, _LEAST_WEIGHT), account.baseline, account.limits,
            claimed(account, margin),
        ))
        for account in bound
    ]  # fmt: skip
    has = capacity_vector(capacity)
    grants = allocate(claims, has)
    slots = whole_slots(claims, grants, has[2])
    bucket_s, max_request_tokens = rules.bucket_s, rules.max_request_tokens
    for account, grant, most in zip(bound, grants, slots, strict=True):
        refit(account, grant, most, bucket_s, max_request_tokens, now_s)


def claimed(account: Account, margin: float) -> Vector:
    """Return the demand to claim: the mean, and inside the baseline ``margin`` standard deviations above it [choice].

    Whoever is to be let in when it comes finds no place where others fill the pool up to its mean. As many slots as a
    Poisson load takes on average vary by their square root.
    """
    demand = account.demand
    slots = demand[2]
    if not margin or not slots or account.service_class not in _BASELINED:
        return demand
    most, more = account.baseline, 1 + margin / math.sqrt(max(slots, 1.0))
    return (
        max(demand[0], min(demand[0] * more, most[0])),
        max(demand[1], min(demand[1] * more, most[1])),
        max(demand[2], min(demand[2] * more, most[2])),
    )


def whole_slots(claims: Sequence[Claim], grants: Sequence[Grant], capacity: float) -> list[float]:
    """Return each limit of slots as a whole number [choice].

    Half a slot lets nobody in, and all halves rounded up are more than there is: whoever comes first would then have
    the last slots. So those who are short of slots share what the others leave of them in whole numbers: what rounding
    down leaves over goes, one each, to those with a part of one, by class, inside the baseline before bursts, and by
    weight. Nobody who may have a part of a slot has none, and all other limits are rounded up: the pool as a whole is
    guarded by check 5.
    """
    held: list[float] = []
    slots: list[float] = []
    short: list[int] = []
    for i, (claim, grant) in enumerate(zip(claims, grants, strict=True)):
        service_class, baseline, has, limit = claim.service_class, claim.baseline[2], grant.granted[2], grant.limit[2]
        if service_class is _DEDICATED and baseline < _NO_LIMIT:
            held.append(max(has, baseline))
        else:
            held.append(has)
        slots.append(math.ceil(limit - _ROUNDING) if limit < _NO_LIMIT else limit)
        if limit <= has * (1 + _ROUNDING) and service_class not in _PROTECTED:
            short.append(i)
    if not short or not math.isfinite(capacity):
        return slots
    left = math.floor(capacity - math.fsum(held) + math.fsum([held[i] for i in short]) + _ROUNDING)
    for i in short:
        whole = math.floor(held[i] + _ROUNDING)
        slots[i] = max(whole, min(1, slots[i]))
        left -= whole
    parts = [i for i in short if held[i] - slots[i] > _ROUNDING]
    rank = {i: CLASS_RANK[claims[i].service_class] for i in parts}
    parts.sort(key=lambda i: (-rank[i], held[i] > claims[i].baseline[2], -claims[i].weight, i))
    for i in parts[: max(0, left)]:
        slots[i] += 1
    return slots


def refit(
    account: Account, grant: Grant, slots: float, bucket_s: float, max_request_tokens: float, now_s: float
) -> None:
    """Let the checks use what was allocated; ``slots`` is the limit of slots as a whole number."""
    _, account.granted, (rate, kv_bytes, _) = grant
    account.limit_slots = slots
    account.limit_kv_bytes = kv_bytes
    account.allocated_rate = rate
    if rate == _NO_LIMIT:
        account.bucket = None
        return
    rate *= account.part
    depth = max(rate * bucket_s, max_request_tokens)
    bucket = account.bucket
    if bucket is None:
        account.bucket = bucket = ContinuousBucket(rate_per_s=max(rate, _ROUNDING), depth=depth)
    bucket.refit(rate_per_s=rate, depth=depth, now_s=now_s)
