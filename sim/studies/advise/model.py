"""What advice is asked and what it answers: objectives, terms, settings, and what fresh draws said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.api import ServiceClass

STRESS = 1.2
"""The factor on the demand at which settings must hold beside 1. [choice]"""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 replica", "2 replicas", "3 policies"."""
    several = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else several}"


@dataclass(frozen=True, slots=True)
class Objective:
    """What an entitlement is promised: its share `Terms.target` of first tokens within ``ttft_s``.

    ``service_class`` is None where advice may choose it.
    """

    entitlement: str
    ttft_s: float
    service_class: ServiceClass | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """When settings are good enough, and how hard to look.

    Attributes
    ----------
    target : the share of an entitlement's offered requests that must meet its objective, in a draw that holds.
    share : the share of draws that must hold; ``confidence`` is that of its one-sided lower bound.
    search_draws, check_draws : of the search, all of which must hold, and fresh ones at each factor.
    low_replicas, high_replicas : how many there may be.
    rest : the share of the requests without an objective that must be answered at the demand as it is, on average over
        the draws of the search; where nothing that was tried does, advice goes without it and says so.
    """

    target: float = 0.95
    share: float = 0.9
    confidence: float = 0.9
    search_draws: int = 4
    check_draws: int = 30
    low_replicas: int = 1
    high_replicas: int = 1
    rest: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One candidate.

    Attributes
    ----------
    service_class : of entitlements with an objective whose class is open.
    limit_share : slots that each entitlement without an objective may have, as a share of the pool's; None: no limit.
    rate_share : of the pool's tokens/s from which rates of policies that have such are made.
    baseline_share : of the slots, or rates, that were computed, what entitlements with an objective are promised.
    """

    replicas: int
    service_class: ServiceClass = ServiceClass.ELASTIC
    limit_share: float | None = None
    rate_share: float = 1.0
    baseline_share: float = 1.0

    def __str__(self) -> str:
        """Return it in words."""
        limit = "no limit" if self.limit_share is None else f"a limit of {self.limit_share:.0%} of the slots"
        rate = "" if self.rate_share == 1 else f", rates of {self.rate_share:.0%} of the capacity"
        promised = "" if self.baseline_share == 1 else f", {self.baseline_share:.0%} of what was computed is promised"
        return f"{counted(self.replicas, 'replica')}, {self.service_class}, {limit} for the rest{rate}{promised}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What draws of the demand gave under a setting; a list has one element a draw.

    ``rest`` is the share of the requests without an objective that was answered; 1 where there are none.
    """

    attained: Mapping[str, list[float]]
    refused: Mapping[str, list[float]]
    output_tokens_per_s: list[float]
    rest: list[float]

    def held(self, target: float) -> int:
        """Return how many draws held: every objective was met by the target's share of requests."""
        return sum(all(value >= target for value in draw) for draw in zip(*self.attained.values(), strict=True))

    @property
    def draws(self) -> int:
        """How many draws there were."""
        return len(self.output_tokens_per_s)

    def worst(self) -> tuple[str, float]:
        """Return the tenant that attained least, and how much on average."""
        means = {tenant: sum(values) / len(values) for tenant, values in self.attained.items()}
        tenant = min(means, key=lambda name: means[name])
        return tenant, means[tenant]


@dataclass(frozen=True, slots=True)
class Check:
    """What fresh draws say at one factor of the demand; ``at_least`` is the lower bound of the share that holds."""

    factor: float
    draws: int
    held: int
    at_least: float
    good: bool
    worst_tenant: str
    worst_attained: float


@dataclass(frozen=True, slots=True)
class PolicyAdvice:
    """The answer for one policy.

    Attributes
    ----------
    setting : None where none of those that were tried held in the search.
    checks : at 1.0 and at `STRESS`, of the setting.
    stepped_back : settings that held in the search and not on fresh draws, in words.
    output_tokens_per_s : by draw of the search, at factor 1, for comparison between policies.
    parameters : of the policy, as a scenario names them.
    """

    policy: str
    setting: Setting | None
    checks: tuple[Check, ...] = ()
    stepped_back: tuple[str, ...] = ()
    why_not: str = ""
    output_tokens_per_s: tuple[float, ...] = ()
    refused: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether fresh draws hold at every factor."""
        return bool(self.checks) and all(check.good for check in self.checks)

    @property
    def holds_now(self) -> bool:
        """Whether fresh draws hold at the demand as it is."""
        return bool(self.checks) and self.checks[0].good


@dataclass(frozen=True, slots=True)
class Advice:
    """All of it: an answer for each policy, which is best, and why."""

    best: PolicyAdvice
    answers: tuple[PolicyAdvice, ...]
    baselines: Mapping[str, float]
    reasons: tuple[str, ...]
    tree: Mapping[str, Any]
