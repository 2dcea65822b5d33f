"""What token pools remember of each entitlement, and how a tick updates it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from policies.api import EntitlementLedger, EntitlementSpec, EntitlementState, ServiceClass
from policies.meters import ContinuousBucket
from policies.token_pool import priority
from policies.token_pool.params import Rules

_PROTECTED = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED)
_NO_LIMIT = float("inf")


@dataclass(slots=True, eq=False)
class Account:
    """The state of one entitlement.

    Attributes
    ----------
    index : its place in the order of names, which breaks ties.
    rank : of its service class; 0 for all where only weights count.
    protected : dedicated or guaranteed.
    limit_slots, limit_kv_bytes : what checks 3 and the KV check compare with; infinite where there is no limit.
    exempt_slots : below this many in flight, check 5 does not apply.
    bucket : what check 4 asks; None where there is no token limit.
    weight, debt, burst : w_e, d_e and b_e of the paper's equations 1 to 3.
    tokens_per_s : work done per second in the last tick, prompt and output (hat-lambda_e).
    idle_slots : reserved for a dedicated entitlement and not used.
    bound : whether it was Bound when last looked at.
    metered_at_s, metered_work_tokens, metered_demand_tokens : where the last measurement ended.
    completed_tokens : work of requests that have ended.
    """

    spec: EntitlementSpec
    index: int
    rank: int
    protected: bool
    limit_slots: float
    limit_kv_bytes: float
    exempt_slots: float
    bucket: ContinuousBucket | None
    weight: float = 0.0
    debt: float = 0.0
    burst: float = 0.0
    tokens_per_s: float = 0.0
    idle_slots: float = 0.0
    bound: bool = False
    metered_at_s: float = 0.0
    metered_work_tokens: int = 0
    metered_demand_tokens: int = 0
    completed_tokens: int = 0


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
    bucket = None
    if rate is not None and rate > 0:
        depth = max(rate * rules.bucket_s, rules.max_request_tokens)
        bucket = ContinuousBucket(rate_per_s=rate, depth=depth)
    return Account(
        spec=spec,
        index=index,
        rank=priority.CLASS_RANK[spec.service_class] if rules.order == "class" else 0,
        protected=protected,
        limit_slots=_NO_LIMIT if slots is None else slots,
        limit_kv_bytes=_NO_LIMIT if kv_bytes is None else kv_bytes,
        # Where no slots are promised, check 4 already keeps it inside its baseline.
        exempt_slots=(_NO_LIMIT if baseline.slots is None else baseline.slots)
        if rules.exempt_guaranteed and protected
        else 0.0,
        bucket=bucket,
    )


def bind(account: Account, ledger: EntitlementLedger, rules: Rules, now_s: float) -> None:
    """Follow the entitlement's state: debt and burst start from nothing when it becomes Bound, and end with it."""
    bound = ledger.state is EntitlementState.BOUND
    if bound != account.bound:
        account.bound = bound
        account.debt = account.burst = 0.0
        _measured(account, ledger, rules, now_s)


def meter(
    account: Account, ledger: EntitlementLedger, rules: Rules, kv_bytes_per_token: float | None, now_s: float
) -> None:
    """Measure the rate since the last tick, and take one step of debt and burst (equations 2 and 3)."""
    elapsed_s = now_s - account.metered_at_s
    if elapsed_s <= 0:
        return
    account.tokens_per_s = (_work_tokens(account, ledger, rules) - account.metered_work_tokens) / elapsed_s
    demand_per_s = (ledger.demanded_tokens - account.metered_demand_tokens) / elapsed_s
    _measured(account, ledger, rules, now_s)
    if not account.bound:
        return
    promised = account.spec.baseline.tokens_per_s
    runs_debt = account.spec.service_class is ServiceClass.ELASTIC or rules.debt_for == "every-baseline"
    if promised and runs_debt:
        wanted = demand_per_s if rules.debt_gap == "demanded" else None
        gap = priority.debt_gap(promised, account.tokens_per_s, wanted)
        account.debt = priority.smoothed(account.debt, gap, rules.gamma_debt)
    excess = priority.burst_excess(_used_and_promised(account, ledger, rules, kv_bytes_per_token))
    account.burst = priority.smoothed(account.burst, excess, rules.gamma_burst)


def weigh(account: Account, rules: Rules, mean_slo_s: float) -> None:
    """Bring the weight up to date (equation 1).

    An entitlement without a service objective weighs as one that has the mean of the pool [choice].
    """
    slo_s = account.spec.ttft_slo_s
    account.weight = priority.weight(
        class_weight=priority.CLASS_WEIGHT[account.spec.service_class],
        slo_s=mean_slo_s if slo_s is None else slo_s,
        mean_slo_s=mean_slo_s,
        burst=account.burst,
        debt=account.debt,
        alpha_slo=rules.alpha_slo,
        alpha_burst=rules.alpha_burst,
        alpha_debt=rules.alpha_debt,
        debt_factor_floor=rules.debt_factor_floor,
    )


def _work_tokens(account: Account, ledger: EntitlementLedger, rules: Rules) -> int:
    return account.completed_tokens if rules.metering == "completions" else ledger.worked_tokens


def _measured(account: Account, ledger: EntitlementLedger, rules: Rules, now_s: float) -> None:
    account.metered_at_s = now_s
    account.metered_work_tokens = _work_tokens(account, ledger, rules)
    account.metered_demand_tokens = ledger.demanded_tokens


def _used_and_promised(
    account: Account, ledger: EntitlementLedger, rules: Rules, kv_bytes_per_token: float | None
) -> Iterator[tuple[float, float]]:
    """Yield what is used and promised of tokens, KV cache and slots; the last two as they are at the tick [choice]."""
    baseline, limit = account.spec.baseline, account.spec.limit
    kv_bytes = None if kv_bytes_per_token is None else ledger.reserved_tokens * kv_bytes_per_token
    for used, promised, most in (
        (account.tokens_per_s, baseline.tokens_per_s, limit.tokens_per_s),
        (kv_bytes, baseline.kv_bytes, limit.kv_bytes),
        (ledger.in_flight, baseline.slots, limit.slots),
    ):
        reference = promised
        if not reference and rules.burst_without_baseline == "limit":
            reference = most
        if used is not None and reference:
            yield used, reference
