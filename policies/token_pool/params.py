"""What a scenario can set about token pools: every point on which the paper is silent or does not close is a field.

Each such field may be left out; then it takes the value of the mode. ``paper`` is the paper, literally as far as that
is possible; ``robust`` is what we would run. The rows named below are those of the table in docs/design.md ("where the
paper does not close").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

Threshold = Literal["strict", "inclusive"]
FullPool = Literal["admit", "free-or-evict"]
ConcurrencyCheck = Literal["limit", "baseline"]
DebtFor = Literal["elastic", "every-baseline"]
BurstReference = Literal["limit", "zero"]
DebtGap = Literal["promised", "demanded"]
Metering = Literal["work", "completions"]
MeanSlo = Literal["fixed", "bound"]
Order = Literal["weight", "class"]
WeightAt = Literal["live", "admission"]
Limits = Literal["static", "allocated"]
Binding = Literal["in-force", "leased"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The values that hold, none left out; `TokenPool` says what each means."""

    threshold: Threshold
    exempt_guaranteed: bool
    full_pool: FullPool
    concurrency_check: ConcurrencyCheck
    debt_factor_floor: float
    debt_for: DebtFor
    burst_without_baseline: BurstReference
    debt_gap: DebtGap
    tick_s: float
    metering: Metering
    mean_slo: MeanSlo
    order: Order
    kv_check: bool
    weight_at: WeightAt
    limits: Limits
    binding: Binding
    mean_slo_s: float
    alpha_slo: float
    alpha_burst: float
    alpha_debt: float
    gamma_debt: float
    equalise: float
    gamma_burst: float
    gamma_demand: float
    demand_margin: float
    overcommit: float
    bucket_s: float
    max_request_tokens: int
    retry_jitter: float


_PAPER: Mapping[str, object] = MappingProxyType({
    "threshold": "strict", "exempt_guaranteed": True, "full_pool": "admit", "concurrency_check": "limit",
    "debt_factor_floor": 0.1, "debt_for": "elastic", "burst_without_baseline": "limit", "debt_gap": "promised",
    "tick_s": 5.0, "metering": "work", "mean_slo": "fixed", "order": "weight", "kv_check": False, "weight_at": "live",
    "limits": "static", "binding": "in-force",
})
MODES: Mapping[str, Mapping[str, object]] = MappingProxyType({
    "paper": _PAPER,
    "robust": MappingProxyType({
        **_PAPER, "full_pool": "free-or-evict", "debt_gap": "demanded", "mean_slo": "bound", "order": "class",
        "kv_check": True, "limits": "allocated", "binding": "leased",
    }),
})
"""What each mode says where a field is left out."""


def _says(description: str, **bounds: float) -> Mapping[str, object]:
    return {**bounds, "description": description}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPool:
    """Admission by entitlement: concurrency, tokens, KV cache, and priority where the pool is contended."""

    kind: Literal["token-pool"] = "token-pool"
    mode: Literal["paper", "robust"] = field(
        default="robust", metadata={"description": "robust: what the paper leaves open, closed; paper: as published"}
    )
    threshold: Threshold | None = field(  # row 1
        default=None, metadata=_says("strict: the weight must exceed the threshold; inclusive: it must not be below"),
    )
    exempt_guaranteed: bool | None = field(  # row 2
        default=None,
        metadata=_says("true: dedicated and guaranteed inside their baseline slots are never refused for low priority"),
    )
    full_pool: FullPool | None = field(  # row 3
        default=None,
        metadata=_says(
            "admit: whoever is above the threshold enters a full pool; free-or-evict: only where a place can be freed"
        ),
    )
    concurrency_check: ConcurrencyCheck | None = field(  # row 4
        default=None,
        metadata=_says(
            "limit: elastic and spot may go beyond their baseline slots up to their limit; baseline: nobody may"
        ),
    )
    debt_factor_floor: float | None = field(  # row 5
        default=None, metadata=_says("give the least value of 1 + alpha_debt * debt, e.g. 0.1", gt=0, le=1),
    )
    debt_for: DebtFor | None = field(  # row 6
        default=None,
        metadata=_says(
            "elastic: only elastic entitlements run debts; every-baseline: all that have baseline tokens do"
        ),
    )
    burst_without_baseline: BurstReference | None = field(  # row 6
        default=None,
        metadata=_says("limit: burst is what is used above the limit where there is no baseline; zero: there is none"),
    )
    debt_gap: DebtGap | None = field(  # row 6
        default=None,
        metadata=_says(
            "promised: debt is measured from the baseline; demanded: from the baseline or the demand if that is less"
        ),
    )
    tick_s: float | None = field(  # row 7
        default=None, metadata=_says("give seconds between two updates of debt and burst, e.g. 5", gt=0),
    )
    metering: Metering | None = field(  # row 7
        default=None, metadata=_says("work: tokens count when they are made; completions: when their request ends"),
    )
    mean_slo: MeanSlo | None = field(  # row 8
        default=None, metadata=_says("fixed: mean_slo_s; bound: the mean over the entitlements that are Bound"),
    )
    order: Order | None = field(  # row 12
        default=None, metadata=_says("weight: weights alone; class: service class first, weight within a class"),
    )
    kv_check: bool | None = field(
        default=None, metadata=_says("true: refuse what would exceed the entitlement's KV cache limit"),
    )
    weight_at: WeightAt | None = field(
        default=None,
        metadata=_says(
            "live: the threshold follows the weights; admission: it is the least weight at which a request was let in"
        ),
    )
    limits: Limits | None = field(
        default=None,
        metadata=_says("static: as the entitlement says; allocated: what the allocator gives at every tick"),
    )
    binding: Binding | None = field(
        default=None,
        metadata=_says("in-force: entitlements are Bound from from_s to until_s; leased: if their lease fits the pool"),
    )
    mean_slo_s: float = field(
        default=15.25, metadata=_says("give the mean service objective of the pool in seconds, e.g. 15.25", gt=0),
    )
    alpha_slo: float = field(
        default=2.0, metadata=_says("give the weight of the service objective in the priority, e.g. 2", ge=0),
    )
    alpha_burst: float = field(
        default=1.0, metadata=_says("give the weight of burst in the priority, e.g. 1", ge=0),
    )
    alpha_debt: float = field(
        default=4.0, metadata=_says("give the weight of debt in the priority, e.g. 4, or 0 to leave it out", ge=0),
    )
    gamma_debt: float = field(
        default=0.7, metadata=_says("give the share of its debt that a tick keeps, e.g. 0.7", ge=0, lt=1),
    )
    equalise: float = field(
        default=0.0,
        metadata=_says("give how fast weights grow with a gap above the others', per tick, e.g. 0.3, or 0", ge=0),
    )
    gamma_burst: float = field(
        default=0.7, metadata=_says("give the share of its burst that a tick keeps, e.g. 0.7", ge=0, lt=1),
    )
    gamma_demand: float = field(
        default=0.5, metadata=_says("give the share of its demand that a tick keeps, e.g. 0.5", ge=0, lt=1),
    )
    demand_margin: float = field(
        default=1.0,
        metadata=_says(
            "give the standard deviations of a Poisson load to hold for a baseline above its mean demand, e.g. 1",
            ge=0,
        ),
    )
    overcommit: float = field(
        default=1.0, metadata=_says("give the share of a baseline that its lease reserves, e.g. 1", gt=0),
    )
    bucket_s: float = field(
        default=10.0, metadata=_says("give the depth of the token buckets in seconds of their rate, e.g. 10", gt=0),
    )
    max_request_tokens: int = field(
        default=4096,
        metadata=_says("give the prompt + output tokens that every bucket must be able to hold, e.g. 4096", ge=1),
    )
    retry_jitter: float = field(
        default=0.2, metadata=_says("give the share by which Retry-After varies, e.g. 0.2", ge=0, le=1),
    )

    def resolved(self) -> Rules:
        """Return the rules that hold: what is set here, and the mode's values for the rest."""
        values: dict[str, Any] = dict(MODES[self.mode])
        for each in fields(Rules):
            value = getattr(self, each.name)
            if value is not None:
                values[each.name] = value
        return Rules(**values)
