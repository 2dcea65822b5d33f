"""Why these settings: what binds, how much more would fit, what the next tenant costs, what a lost replica refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sim.analysis.statistics import mean_interval
from sim.experiments.demands import demands
from sim.scenario.load import parse_scenario
from sim.studies.advise.baselines import NOISY, Promise
from sim.studies.advise.capacity import Use, use_of
from sim.studies.advise.demand import with_twin
from sim.studies.advise.model import STRESS, Check, PolicyAdvice, Setting, Terms, counted
from sim.studies.advise.survey import Survey
from sim.studies.advise.trial import Bench

_PLAIN = ("none", "cap", "rate-limit")
"""What is there without tenants' entitlements: no control, a bound on all, and limits for each."""
_ALIKE = 0.02
"""Goodput that differs by less than this, relative, is as good. [choice]"""
_MOST_FACTOR = 3.0
_MOST_MORE = 4


def reasons_of(bench: Bench, best: PolicyAdvice, answers: Sequence[PolicyAdvice], terms: Terms) -> list[str]:
    """Return the reasons as sentences."""
    assert best.setting is not None
    return [
        binding_words(use_at(bench, best.setting)),
        _headroom(bench, best, terms),
        _next_tenant(bench, best, terms),
        _replica_lost(bench, best, terms),
        *_comparison(best, answers),
    ]


def use_at(bench: Bench, setting: Setting) -> Use:
    """Return what the demand takes of the pool, at factor 1."""
    scenario = parse_scenario(bench.tree | {"policies": ["none"]}, "advise")
    assert scenario.horizon_s is not None
    return use_of(scenario.pool.profile, setting.replicas, demands(scenario, 0), scenario.horizon_s)


def binding_words(use: Use) -> str:
    """Return what binds, in a sentence."""
    return (
        f"{use.binds} binds: on average the demand takes {use.prefill:.0%} of the engines' time for prefill, "
        f"{use.decode:.0%} for decode (in full batches), {use.slots:.0%} of the slots, {use.kv:.0%} of the KV cache"
    )


def _holds(bench: Bench, policy: str, setting: Setting, factor: float, terms: Terms) -> bool:
    found = bench.measure(policy, setting, factor=factor, seed=bench.seed, draws=terms.search_draws)
    return found is not None and found.held(terms.target) == found.draws


def _headroom(bench: Bench, best: PolicyAdvice, terms: Terms) -> str:
    """Return up to which factor the settings hold on the draws of the search, to a twentieth."""
    assert best.setting is not None
    low, high = (STRESS if best.holds else 1.0), _MOST_FACTOR
    if _holds(bench, best.policy, best.setting, high, terms):
        return f"headroom: the settings still hold at {high:g}x of the demand, the most that was tried"
    while high - low > 0.05:
        middle = round((low + high) / 2, 3)
        low, high = (middle, high) if _holds(bench, best.policy, best.setting, middle, terms) else (low, middle)
    return f"headroom: the settings hold up to {low:.2f}x of the demand (draws of the search)"


def _next_tenant(bench: Bench, best: PolicyAdvice, terms: Terms) -> str:
    """Return how many more replicas another tenant like the smallest with an objective takes."""
    assert best.setting is not None
    name = min(bench.baselines, key=lambda one: (bench.baselines[one], one))
    tree = with_twin(bench.tree, name)
    for more in range(_MOST_MORE + 1):
        setting = replace(best.setting, replicas=best.setting.replicas + more)
        found = bench.measure(
            best.policy, setting, factor=STRESS, seed=bench.seed, draws=terms.search_draws, tree=tree
        )
        if found is not None and found.held(terms.target) == found.draws:
            gpus = more * bench.tree["pool"]["profile"].get("gpus", 1)
            hours = counted(gpus, "GPU-hour")
            cost = "fits as it is" if not more else f"costs {counted(more, 'more replica')} ({hours} an hour)"
            return f"the next tenant, one like {name}, {cost}"
    most = counted(_MOST_MORE, "more replica")
    return f"the next tenant, one like {name}, does not fit with {most} and these settings"


def _replica_lost(bench: Bench, best: PolicyAdvice, terms: Terms) -> str:
    """Return what is refused while one replica is gone, from a third of the run on."""
    setting = best.setting
    assert setting is not None
    if setting.replicas == 1:
        return "with its only replica lost nothing is served: give a second one where that matters"
    horizon_s = float(bench.tree["horizon_s"])
    at_s = round(float(bench.tree.get("warmup_s") or 0.0) + 1e-3, 3)
    found = bench.measure(
        best.policy, setting, factor=1.0, seed=bench.seed, draws=terms.search_draws,
        events=[{"at_s": min(at_s, horizon_s / 3), "fail": setting.replicas - 1}],
    )  # fmt: skip
    assert found is not None
    refused = {tenant: sum(values) / len(values) for tenant, values in found.refused.items()}
    some = ", ".join(f"{tenant} {share:.0%}" for tenant, share in sorted(refused.items()) if share >= 0.005)
    met = ", ".join(
        f"{tenant} {sum(values) / len(values):.0%}" for tenant, values in sorted(found.attained.items())
    )
    return f"with one of {setting.replicas} replicas lost: refused {some or 'nobody'}; objectives met {met}"


def _comparison(best: PolicyAdvice, answers: Sequence[PolicyAdvice]) -> list[str]:
    """Return which policy serves the demand best, and whether plain limits do as well."""
    words = []
    for answer in answers:
        if answer.setting is None:
            words.append(f"{answer.policy}: nothing holds ({answer.why_not})")
            continue
        goodput = sum(answer.output_tokens_per_s) / len(answer.output_tokens_per_s)
        state = "holds" if answer.holds else "holds at 1.0x only" if answer.holds_now else "does not hold"
        checks = "; ".join(map(check_words, answer.checks))
        words.append(f"{answer.policy}: {state} ({checks}); {answer.setting}; {goodput:,.0f} output tokens/s")
    plain = [one for one in answers if one.policy in _PLAIN and as_good(one, best)]
    if best.policy in _PLAIN:
        words.append(f"plain limits are enough: no policy with entitlements did better than {best.policy}")
    elif plain:
        names = " and ".join(one.policy for one in plain)
        verb = "holds" if len(plain) == 1 else "hold"
        words.append(f"plain limits do as well here: {names} {verb} with as few replicas and as much goodput")
    elif any(one.policy in _PLAIN for one in answers):
        words.append("plain limits do not do as well: see their lines above")
    return words


def survey_words(seen: Survey, best: PolicyAdvice, answers: Sequence[PolicyAdvice]) -> list[str]:
    """Return which of all other policies held in the survey, and which was searched and is better."""
    searched = {one.policy for one in answers}
    held = [one for one in seen.candidates if one.policy not in searched]
    tried = len(seen.candidates) + len(seen.failed)
    words = [
        f"of {counted(tried, 'other policy')} tried in {counted(seen.runs, 'run')} (loosely and at the middle of what "
        f"they may be set to), {len(seen.candidates)} held in the draws of the search"
    ]
    if held:
        some = ", ".join(f"{one.policy} ({one.output_tokens_per_s:,.0f} output tokens/s)" for one in held)
        words[0] += f"; none of these serves it better than {best.policy}: {some}"
    if seen.failed:
        words.append(f"did not hold there, with their default or rule-made settings: {', '.join(seen.failed)}")
    if seen.untried:
        words.append(f"not tried, for want of runs (--survey): {', '.join(seen.untried)}")
    return words


def promise_words(bench: Bench, best: PolicyAdvice, promise: Promise | None) -> str:
    """Return what is promised to entitlements with an objective, and what of it was found to be enough."""
    setting = best.setting
    assert setting is not None
    if promise is None:
        given = "its parameters were given" if best.policy in bench.given else "it has no baselines, rates or shares"
        return f"nothing to squeeze: {best.policy} promises no entitlement anything ({given})"
    tried = f"tried with the rest asking for {NOISY:g}x as much" if best.holds else "which was not tried"
    enough = (
        "nothing less held" if setting.baseline_share == 1 and best.holds
        else "less might be enough" if setting.baseline_share == 1
        else f"{setting.baseline_share:.0%} of that is enough, and is what is promised here"
    )  # fmt: skip
    if promise is Promise.PARAMETERS:
        made = "are made of the tokens/s of tenants' busiest minutes"
        return f"promises: the parameters of {best.policy} {made}; {enough}, {tried}"
    slots = ", ".join(f"{name} {amount:g}" for name, amount in bench.baselines.items())
    return f"baselines: by themselves tenants need {slots} slots in their busiest moments; {enough}, {tried}"


def as_good(one: PolicyAdvice, best: PolicyAdvice) -> bool:
    """Whether an answer is as good as the best: holds alike, no more replicas, goodput the same within 2 %.

    Where the draws leave goodput's difference open, it is taken for none.
    """
    if one.setting is None or best.setting is None or (one.holds, one.holds_now) != (best.holds, best.holds_now):
        return False
    if one.setting.replicas > best.setting.replicas:
        return False
    pairs = list(zip(one.output_tokens_per_s, best.output_tokens_per_s, strict=True))
    mean = sum(theirs for _, theirs in pairs) / len(pairs)
    difference = mean_interval([mine - theirs for mine, theirs in pairs])
    return difference.estimate >= -_ALIKE * mean or (len(pairs) > 2 and difference.high >= 0)


def check_words(check: Check) -> str:
    """Return what fresh draws said, in words."""
    return (
        f"at {check.factor:g}x of the demand {check.held} of {counted(check.draws, 'fresh draw')} held (at least "
        f"{check.at_least:.0%} of all draws); {check.worst_tenant} came off worst, with {check.worst_attained:.1%} of "
        "its requests in time on average"
    )
