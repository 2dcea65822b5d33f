"""The search: for each policy the loosest setting that holds, checked on fresh draws and stepped back until it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from policies.api import ServiceClass
from sim.errors import ScenarioError
from sim.experiments.plan import FRESH
from sim.studies.advise.model import STRESS, Check, Measured, PolicyAdvice, Setting, Terms, counted
from sim.studies.advise.trial import Bench

_LIMITS = (None, 0.6, 0.4, 0.25, 0.15, 0.08, 0.04, 0.02)
"""What each entitlement without an objective may have of the slots, from loose to strict. [choice]"""
_RATES = (1.0, 0.85, 0.7, 0.55, 0.4)
"""Shares of the capacity that rates are made of, likewise. [choice]"""
_CHECKS = 4
"""Settings that are checked on fresh draws before a policy is given up. [choice]"""

Say = Callable[[str], None]


def ladder(bench: Bench, policy: str, replicas: int) -> list[Setting]:
    """Return a policy's candidates, from loose to strict: who is bound least comes first."""
    first = Setting(replicas=replicas)
    if policy == "token-pool":
        rest = any(one["name"] not in bench.baselines for one in bench.tree["pool"]["entitlements"])
        free = any(one.service_class is None for one in bench.objectives.values())
        classes = (ServiceClass.ELASTIC, ServiceClass.GUARANTEED) if free else (ServiceClass.ELASTIC,)
        limits = _LIMITS if rest else (None,)
        return [replace(first, service_class=one, limit_share=limit) for one in classes for limit in limits]
    found: list[Setting] = []
    seen = []
    for share in _RATES:
        setting = replace(first, rate_share=share)
        try:
            made = bench.scenario(policy, setting).policies
        except ScenarioError:
            continue
        if made not in seen:
            seen.append(made)
            found.append(setting)
    return found


def lower_bound(held: int, draws: int, confidence: float) -> float:
    """Return the one-sided lower bound of a share of which ``held`` of ``draws`` were seen.

    References
    ----------
    C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26, 1934.
    """
    if held == 0:
        return 0.0
    stats: Any = import_module("scipy.stats")
    return float(stats.beta.ppf(1 - confidence, held, draws - held + 1))


def advise_policy(bench: Bench, policy: str, terms: Terms, say: Say = lambda _: None) -> PolicyAdvice:
    """Return the advice for one policy: the fewest replicas, and with them the loosest setting, that hold."""
    stepped: list[str] = []
    best: PolicyAdvice | None = None
    for setting in _candidates(bench, policy, terms, say):
        checks = _checked(bench, policy, setting, terms, len(stepped))
        answer = _answer(bench, policy, setting, terms, checks, stepped)
        say(f"{policy}: {setting}: {'holds' if answer.holds else 'does not hold on fresh draws'}")
        if answer.holds:
            return answer
        if best is None or (answer.holds_now and not best.holds_now):
            best = answer
        stepped.append(str(setting))
        if len(stepped) >= _CHECKS:
            break
    if best is not None:
        return replace(best, stepped_back=tuple(one for one in stepped if one != str(best.setting)))
    return PolicyAdvice(policy, None, why_not=_why_not(bench, policy, terms))


def _candidates(bench: Bench, policy: str, terms: Terms, say: Say) -> Iterator[Setting]:
    """Yield settings that hold in the search, the loosest first, then what is stricter, then with more replicas."""
    low, high = terms.low_replicas, terms.high_replicas
    found: dict[int, Setting | None] = {}

    def loosest(replicas: int) -> Setting | None:
        if replicas not in found:
            found[replicas] = _loosest(bench, policy, terms, replicas)
            words = "nothing holds" if found[replicas] is None else str(found[replicas])
            say(f"{policy}: {counted(replicas, 'replica')}: {words}")
        return found[replicas]

    if loosest(high) is None:
        return
    few, enough = low - 1, high
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (middle, enough) if loosest(middle) is None else (few, middle)
    for replicas in range(enough, high + 1):
        first = loosest(replicas)
        if first is None:
            continue
        steps = ladder(bench, policy, replicas)
        for setting in steps[steps.index(first) :]:
            if setting == first or holds(bench, policy, setting, terms):
                yield setting


def _loosest(bench: Bench, policy: str, terms: Terms, replicas: int) -> Setting | None:
    """Return the loosest setting that holds.

    Strictness helps the objectives and costs the rest, so each run of steps is bisected for the loosest that meets the
    objectives; where too little of the rest is answered then, it is with everything stricter.
    """
    steps = ladder(bench, policy, replicas)
    for run in _runs(steps):
        found = _least_strict(run, lambda setting: meets(bench, policy, setting, terms))
        if found is not None and holds(bench, policy, found, terms):
            return found
    return None


def _least_strict(run: Sequence[Setting], good: Callable[[Setting], bool]) -> Setting | None:
    if good(run[0]):
        return run[0]
    if not good(run[-1]):
        # Where strictness helps only so far, the middle may still do.
        middle = run[len(run) // 2]
        return middle if len(run) > 2 and good(middle) else None
    few, enough = 0, len(run) - 1
    while enough - few > 1:
        middle_at = (few + enough) // 2
        few, enough = (few, middle_at) if good(run[middle_at]) else (middle_at, enough)
    return run[enough]


def _runs(steps: Sequence[Setting]) -> list[list[Setting]]:
    runs: dict[ServiceClass, list[Setting]] = {}
    for step in steps:
        runs.setdefault(step.service_class, []).append(step)
    return list(runs.values())


def meets(
    bench: Bench, policy: str, setting: Setting, terms: Terms, *, draws: int | None = None, noisy: float = 1.0
) -> bool:
    """Return whether every draw, of the search if not said, meets every objective at `STRESS`.

    Parameters
    ----------
    noisy : see `Bench.scenario`.
    """
    draws = terms.search_draws if draws is None else draws
    found = bench.measure(policy, setting, factor=STRESS, seed=bench.seed, draws=draws, noisy=noisy)
    return found is not None and found.held(terms.target) == found.draws


def holds(bench: Bench, policy: str, setting: Setting, terms: Terms) -> bool:
    """Return whether it does, and enough of the rest is answered at the demand as it is."""
    return meets(bench, policy, setting, terms) and answered_enough(bench, policy, setting, terms)


def answered_enough(bench: Bench, policy: str, setting: Setting, terms: Terms) -> bool:
    """Return whether at the demand as it is enough of the requests without an objective is answered."""
    now = bench.measure(policy, setting, factor=1.0, seed=bench.seed, draws=terms.search_draws)
    return now is not None and mean(now.rest) >= terms.rest


def goodput(bench: Bench, policy: str, setting: Setting, terms: Terms) -> float:
    """Return the goodput in output tokens/s at the demand as it is; 0 where the setting is not valid."""
    now = bench.measure(policy, setting, factor=1.0, seed=bench.seed, draws=terms.search_draws)
    return 0.0 if now is None else mean(now.output_tokens_per_s)


def checked_answer(bench: Bench, policy: str, setting: Setting, terms: Terms, before: int) -> PolicyAdvice:
    """Return the answer that a setting is, with its checks; ``before`` settings had fresh draws before it."""
    return _answer(bench, policy, setting, terms, _checked(bench, policy, setting, terms, before), ())


def _checked(bench: Bench, policy: str, setting: Setting, terms: Terms, before: int) -> tuple[Check, ...]:
    """Return what draws say that nothing was chosen by; each setting that is checked has draws of its own."""
    checks = []
    for number, factor in enumerate((1.0, STRESS)):
        seed = bench.seed + FRESH * (1 + 2 * before + number)
        found = bench.measure(policy, setting, factor=factor, seed=seed, draws=terms.check_draws)
        assert found is not None  # it was valid in the search
        checks.append(check_of(found, factor, terms))
    return tuple(checks)


def check_of(found: Measured, factor: float, terms: Terms) -> Check:
    """Return what draws say at one factor."""
    held = found.held(terms.target)
    at_least = lower_bound(held, found.draws, terms.confidence)
    tenant, attained = found.worst()
    return Check(factor, found.draws, held, at_least, at_least >= terms.share, tenant, attained)


def _answer(
    bench: Bench, policy: str, setting: Setting, terms: Terms, checks: tuple[Check, ...], stepped: Sequence[str]
) -> PolicyAdvice:
    now = bench.measure(policy, setting, factor=1.0, seed=bench.seed, draws=terms.search_draws)
    assert now is not None
    refused = {tenant: mean(values) for tenant, values in now.refused.items()}
    parameters = dict(bench.scenario(policy, setting).policies[0].model_dump(mode="json"))
    return PolicyAdvice(
        policy, setting, checks, tuple(stepped), "", tuple(now.output_tokens_per_s), refused, parameters
    )  # fmt: skip


def _why_not(bench: Bench, policy: str, terms: Terms) -> str:
    """Return what the strictest setting with the most replicas attained, in words."""
    steps = ladder(bench, policy, terms.high_replicas)
    tried = [bench.measure(policy, s, factor=STRESS, seed=bench.seed, draws=terms.search_draws) for s in steps[-1:]]
    found = next((one for one in tried if one is not None), None)
    if found is None:
        promised = sum(bench.baselines.values())
        return f"no setting is valid: the objectives take {promised:g} slots in their busy minutes"
    tenant, attained = found.worst()
    return (
        f"{tenant} meets its objective for {attained:.1%} at {STRESS:g}x with "
        f"{counted(terms.high_replicas, 'replica')}, and "
        f"{mean(found.rest):.0%} of the rest is answered"
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are known; 0 where none is."""
    known = [one for one in values if not math.isnan(one)]
    return sum(known) / len(known) if known else 0.0
