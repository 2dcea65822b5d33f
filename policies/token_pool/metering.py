"""What token pools remember of each entitlement, and how a tick updates it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from policies.api import EntitlementLedger, EntitlementSpec, EntitlementState, Resources, ServiceClass
from policies.meters import ContinuousBucket
from policies.native import mypyc_attr
from policies.token_pool import priority
from policies.token_pool.allocation import ZERO, Vector, baseline_vector
from policies.token_pool.params import Rules

# As in `policies.token_pool.policy`.
_ELASTIC: Final = ServiceClass.ELASTIC
_BOUND: Final = EntitlementState.BOUND
_PROTECTED: Final = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED)
_NO_LIMIT: Final = float("inf")
_LIFT_KEPT: Final = 0.98
_MOST_LIFT: Final = math.log(20.0)


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(slots=True, eq=False)
class Account:
    """The state of one entitlement.

    Attributes
    ----------
    index : its place in the list of entitlements, which breaks ties: a name must not.
    service_class : that of ``spec``, which is asked for at every request.
    rank : of its service class; 0 for all where only weights count. ``class_weight`` is w_class of equation 1.
    protected : dedicated or guaranteed.
    baseline : what it was promised, see `policies.token_pool.allocation.baseline_vector`.
    reference : what its burst is measured from, 0 where nothing is.
    limits : what the entitlement says it may have at most; infinite where nothing is said.
    limit_slots, limit_kv_bytes : what check 3 and the KV check compare with: ``limits``, or what was allocated.
    most_tokens : a request of more than these can never be let in by check 4; infinite where there is no limit.
    exempt_slots : below this many sequences in flight, check 5 does not apply.
    bucket : what check 4 asks; None where there is no token limit.
    weight, debt, burst : w_e, d_e and b_e of the paper's equations 1 to 3.
    gap : g_e of equation 2, at the last tick.
    lift : logarithm of the factor by which `equalise` raises the weight.
    tokens_per_s : work done per second in the last tick, prompt and output (hat-lambda_e).
    demand : smoothed: work per second that is asked for, and the KV bytes and slots that it takes while it is served.
    granted : what was allocated of the demand.
    idle_slots, idle_tokens : reserved for a dedicated entitlement and not used; tokens of KV cache.
    part : how much of its rate is metered here, see `policies.limit_leases`.
    allocated_rate : what was allocated of the pool's rate, of which ``part`` is metered here; infinite before that.
    bound : whether it was Bound when last looked at.
    metered_at_s, metered_work_tokens, metered_demand_tokens, metered_requests : where the last measurement ended.
    completed_tokens, released_tokens : work of requests that have ended, and what had been reserved for them.
    """

    spec: EntitlementSpec
    index: int
    service_class: ServiceClass
    rank: int
    class_weight: float
    protected: bool
    baseline: Vector
    reference: Vector
    limits: Vector
    limit_slots: float
    limit_kv_bytes: float
    most_tokens: float
    exempt_slots: float
    bucket: ContinuousBucket | None
    weight: float = 0.0
    debt: float = 0.0
    burst: float = 0.0
    gap: float = 0.0
    lift: float = 0.0
    tokens_per_s: float = 0.0
    demand: Vector = ZERO
    granted: Vector = ZERO
    idle_slots: float = 0.0
    idle_tokens: float = 0.0
    part: float = 1.0
    allocated_rate: float = math.inf
    bound: bool = False
    metered_at_s: float = 0.0
    metered_work_tokens: int = 0
    metered_demand_tokens: int = 0
    metered_requests: int = 0
    completed_tokens: int = 0
    released_tokens: int = 0


def open_account(spec: EntitlementSpec, index: int, rules: Rules) -> Account:
    """Return the account of an entitlement at the start.

    Limits are what the entitlement says, and else the baseline for dedicated and guaranteed: they may not burst unless
    a limit above the baseline lets them. Elastic, spot and preemptible are unlimited where nothing is said [choice].
    """
    baseline, limit = spec.baseline, spec.limit
    protected = spec.service_class in _PROTECTED
    slots = limit.slots if limit.slots is not None else baseline.slots if protected else None
    if rules.concurrency_check == "baseline" and baseline.slots is not None:
        slots = baseline.slots
    kv_bytes = limit.kv_bytes if limit.kv_bytes is not None else baseline.kv_bytes if protected else None
    rate = limit.tokens_per_s if limit.tokens_per_s is not None else baseline.tokens_per_s if protected else None
    bucket, depth = None, _NO_LIMIT
    if rate is not None and rate > 0:
        depth = max(rate * rules.bucket_s, rules.max_request_tokens)
        bucket = ContinuousBucket(rate_per_s=rate, depth=depth)
    return Account(
        spec=spec,
        index=index,
        service_class=spec.service_class,
        rank=priority.CLASS_RANK[spec.service_class] if rules.order == "class" else 0,
        class_weight=priority.CLASS_WEIGHT[spec.service_class],
        protected=protected,
        baseline=baseline_vector(baseline),
        reference=_reference(spec, rules),
        limits=(
            _NO_LIMIT if rate is None else rate,
            _NO_LIMIT if kv_bytes is None else kv_bytes,
            _NO_LIMIT if slots is None else slots,
        ),
        limit_slots=_NO_LIMIT if slots is None else slots,
        limit_kv_bytes=_NO_LIMIT if kv_bytes is None else kv_bytes,
        most_tokens=depth,
        # Where no slots are promised, check 4 already keeps it inside its baseline.
        exempt_slots=(_NO_LIMIT if baseline.slots is None else baseline.slots)
        if rules.exempt_guaranteed and protected
        else 0.0,
        bucket=bucket,
    )


def bind(account: Account, ledger: EntitlementLedger, rules: Rules, now_s: float) -> None:
    """Follow the entitlement's state: debt and burst start from nothing when it becomes Bound, and end with it."""
    bound = ledger.state is _BOUND
    if bound != account.bound:
        account.bound = bound
        account.debt = account.burst = account.gap = account.lift = 0.0
        account.demand = ZERO
        _measured(account, ledger, rules, now_s)


def meter(
    account: Account, ledger: EntitlementLedger, rules: Rules, kv_bytes_per_token: float | None, now_s: float,
    pool_service_s: float | None = None,
) -> None:
    """Measure rate and demand since the last tick, and take one step of debt and burst (equations 2 and 3).

    ``pool_service_s`` stands for the entitlement's mean service time where none of its requests has finished.
    """
    elapsed_s = now_s - account.metered_at_s
    if elapsed_s <= 0:
        return
    account.tokens_per_s = (_work_tokens(account, ledger, rules) - account.metered_work_tokens) / elapsed_s
    # What turned out to be no demand may have been counted before the last tick.
    demand_per_s = max(0, ledger.demanded_tokens - account.metered_demand_tokens) / elapsed_s
    requests_per_s = max(0, ledger.demanded_requests - account.metered_requests) / elapsed_s
    service_s = pool_service_s if ledger.mean_service_s is None else ledger.mean_service_s
    account.demand = _demand(
        account, ledger, rules.gamma_demand, kv_bytes_per_token or 0.0, service_s or 0.0, demand_per_s, requests_per_s
    )
    _measured(account, ledger, rules, now_s)
    if not account.bound:
        return
    promised = account.spec.baseline.tokens_per_s
    runs_debt = account.service_class is _ELASTIC or rules.debt_for == "every-baseline"
    if promised and runs_debt:
        wanted = demand_per_s * _used_share(account) if rules.debt_gap == "demanded" else None
        account.gap = priority.debt_gap(promised, account.tokens_per_s, wanted)
        account.debt = priority.smoothed(account.debt, account.gap, rules.gamma_debt)
    excess = priority.burst_excess(_used_and_promised(account, ledger, kv_bytes_per_token))
    account.burst = priority.smoothed(account.burst, excess, rules.gamma_burst)


def weigh(account: Account, rules: Rules, mean_slo_s: float) -> None:
    """Bring the weight up to date (equation 1).

    An entitlement without a service objective weighs as one that has the mean of the pool [choice].
    """
    slo_s = account.spec.ttft_slo_s
    account.weight = priority.weight(
        class_weight=account.class_weight,
        slo_s=mean_slo_s if slo_s is None else slo_s,
        mean_slo_s=mean_slo_s,
        burst=account.burst,
        debt=account.debt,
        alpha_slo=rules.alpha_slo,
        alpha_burst=rules.alpha_burst,
        alpha_debt=rules.alpha_debt,
        debt_factor_floor=rules.debt_factor_floor,
    ) * math.exp(account.lift)


def equalise(accounts: Iterable[Account], rules: Rules) -> None:
    """Raise the weights of those whose gap is above the mean of all that run debts, and lower the others' [choice].

    A debt shifts weights in proportion to itself, so a difference has to remain for it to act. Adding up differences
    goes on until the gaps are equal; what was added up fades, so that it is gone some time after the shortage. Whoever
    gets more than was promised has a gap of nothing: a surplus is no reason to be put behind once there is a shortage.
    """
    indebted = [account for account in accounts if account.bound and account.spec.baseline.tokens_per_s]
    indebted = [account for account in indebted if account.service_class is _ELASTIC]
    if len(indebted) < 2:
        return
    mean = math.fsum(max(0.0, account.gap) for account in indebted) / len(indebted)
    for account in indebted:
        lift = _LIFT_KEPT * account.lift + rules.equalise * (max(0.0, account.gap) - mean)
        account.lift = max(-_MOST_LIFT, min(_MOST_LIFT, lift))


def _demand(
    account: Account, ledger: EntitlementLedger, keep: float, per_token: float, service_s: float,
    demand_per_s: float, requests_per_s: float,
) -> Vector:
    """Return the demand, smoothed; what is in flight is demanded in any case [choice].

    What arrives stays for the mean service time (Little's law). Of the tokens it reserves, it turns into work the
    share that its predecessors did.
    """
    used_share = _used_share(account)
    tokens_per_s, kv_bytes, slots = account.demand
    return (
        max(account.tokens_per_s, keep * tokens_per_s + (1 - keep) * demand_per_s * used_share),
        max(ledger.reserved_tokens * per_token, keep * kv_bytes + (1 - keep) * demand_per_s * service_s * per_token),
        max(float(ledger.in_flight), keep * slots + (1 - keep) * requests_per_s * service_s),
    )


def _used_share(account: Account) -> float:
    """Return what share of the tokens reserved for a request turned into work, 1 until one has ended."""
    return account.completed_tokens / account.released_tokens if account.released_tokens else 1.0


def _work_tokens(account: Account, ledger: EntitlementLedger, rules: Rules) -> int:
    return account.completed_tokens if rules.metering == "completions" else ledger.worked_tokens


def _measured(account: Account, ledger: EntitlementLedger, rules: Rules, now_s: float) -> None:
    account.metered_at_s = now_s
    account.metered_work_tokens = _work_tokens(account, ledger, rules)
    account.metered_demand_tokens = ledger.demanded_tokens
    account.metered_requests = ledger.demanded_requests


def _used_and_promised(
    account: Account, ledger: EntitlementLedger, kv_bytes_per_token: float | None
) -> list[tuple[float, float]]:
    """Return what is used and promised of tokens, KV cache and slots; the last two as they are at the tick [choice]."""
    found: list[tuple[float, float]] = []
    tokens_per_s, kv_bytes, slots = account.reference
    if tokens_per_s:
        found.append((account.tokens_per_s, tokens_per_s))
    if kv_bytes and kv_bytes_per_token is not None:
        found.append((ledger.reserved_tokens * kv_bytes_per_token, kv_bytes))
    if slots:
        found.append((float(ledger.in_flight), slots))
    return found


def _reference(spec: EntitlementSpec, rules: Rules) -> Vector:
    """Return what a burst is measured from: the promise, or the limit where the rules say so; 0 for nothing."""
    promised, most = spec.baseline, spec.limit if rules.burst_without_baseline == "limit" else Resources()
    return (
        promised.tokens_per_s or most.tokens_per_s or 0.0, promised.kv_bytes or most.kv_bytes or 0.0,
        promised.slots or most.slots or 0.0,
    )  # fmt: skip
