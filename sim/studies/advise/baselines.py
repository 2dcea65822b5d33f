"""How little may be promised: the least share of what was computed that still holds, with a noisy rest.

A baseline that is computed from a tenant's own demand holds by itself. A smaller one may do, because the pool is shared
and rarely full; what it must withstand is others who ask for more than they did, so that is what it is tried against.
Policies that read no baselines may have rates, weights or shares that are made of what entitlements are promised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from sim.errors import ScenarioError
from sim.scenario import plugins
from sim.studies.advise.model import PolicyAdvice, Setting, Terms
from sim.studies.advise.search import Say, answered_enough, checked_answer, goodput, mean, meets
from sim.studies.advise.trial import Bench

SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2)
"""Of what was computed, from large to small. [choice]"""
NOISY = 2.0
"""The factor on the demand of who has no objective, beside `STRESS` on all. [choice]"""
_ALIKE = 0.02
_CHECKS = 3


class Promise(StrEnum):
    """What of a policy promises an entitlement something."""

    BASELINES = "baselines"
    PARAMETERS = "parameters"


def promise_of(bench: Bench, policy: str, setting: Setting) -> Promise | None:
    """Return by what a policy promises something to entitlements with an objective; None where it promises nothing.

    By baselines, where it claims to read them (`policies.registry.Traits`); by its parameters, where these are made of
    what is promised.
    """
    if plugins.POLICY_KINDS[policy].traits.reads_baselines:
        return Promise.BASELINES
    try:
        made, less = (
            bench.scenario(policy, replace(setting, baseline_share=share)).policies for share in (1.0, SHARES[-1])
        )
    except ScenarioError:
        return None
    return Promise.PARAMETERS if made != less else None


def squeezed(bench: Bench, best: PolicyAdvice, terms: Terms, say: Say = lambda _: None) -> PolicyAdvice:
    """Return the advice with the least promises that hold in the search and on fresh draws; as it is if none do."""
    setting = best.setting
    if setting is None or not best.holds or not bench.baselines or promise_of(bench, best.policy, setting) is None:
        return best
    usual = mean(best.output_tokens_per_s)

    def good(share: float) -> bool:
        tried = replace(setting, baseline_share=share)
        return _withstands(bench, best.policy, tried, terms) and goodput(bench, best.policy, tried, terms) >= (
            1 - _ALIKE
        ) * usual

    least = _least(good)
    say(f"{best.policy}: {SHARES[least]:.0%} of what was computed holds in the search")
    for number, share in enumerate(SHARES[least:0:-1]):
        if number == _CHECKS:
            break
        answer = checked_answer(bench, best.policy, replace(setting, baseline_share=share), terms, _CHECKS + number)
        if answer.holds:
            return replace(answer, stepped_back=best.stepped_back)
    return best


def _least(good: Callable[[float], bool]) -> int:
    """Return the index of the smallest share that is good, by bisection; 0 is taken to be."""
    few, enough = len(SHARES), 0
    while few - enough > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if good(SHARES[middle]) else (middle, enough)
    return enough


def _withstands(bench: Bench, policy: str, setting: Setting, terms: Terms) -> bool:
    quiet_and_noisy = all(meets(bench, policy, setting, terms, noisy=noisy) for noisy in (1.0, NOISY))
    return quiet_and_noisy and answered_enough(bench, policy, setting, terms)
