"""`tokenpools advise`: the search for every policy, the best of them, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.experiments.demands import demands
from sim.experiments.executors import Executor
from sim.extras import require
from sim.scenario import plugins
from sim.scenario.load import parse_scenario
from sim.studies.advise.baselines import promise_of, squeezed
from sim.studies.advise.capacity import never_served
from sim.studies.advise.demand import Tree
from sim.studies.advise.model import Advice, Objective, PolicyAdvice, Terms
from sim.studies.advise.reasons import promise_words, reasons_of, survey_words
from sim.studies.advise.search import Say, advise_policy
from sim.studies.advise.survey import Candidate, survey
from sim.studies.advise.trial import Bench, enough_slots, parse_slots

POLICIES = ("token-pool", "rate-limit", "none")
"""What is searched where nobody says: the paper's, plain limits, and nothing at all."""
_SEARCHED = 3
"""Policies of the survey that are searched too, at most. [choice]"""
_CLEARLY_MORE = 1.01
_FIRST = "predictive-pool"


def advise(
    tree: Tree, objectives: Sequence[Objective], terms: Terms, folder: Path, *, policies: Sequence[str] = POLICIES,
    given: Mapping[str, Any] | None = None, survey_runs: int = 0, executor: Executor | None = None,
    say: Say = lambda _: None,
) -> Advice:
    """Return settings that hold for a demand, for each policy and the best of them.

    Parameters
    ----------
    tree : the demand, from `sim.studies.advise.demand`.
    folder : for the runs; what an interrupted search did is not done again.
    given : parameters of policies by name that are taken as they are.
    survey_runs : how many runs may be spent on trying all other policies; who holds there is searched too.

    Raises
    ------
    InputError : nothing that was tried holds, no number of replicas serves the demand, or it is empty.
    """
    require("scipy", "advice")
    asked = {
        one["name"]: Objective(one["name"], one["ttft_slo_s"])
        for one in tree["pool"]["entitlements"] if one.get("ttft_slo_s")
    } | {one.entitlement: one for one in objectives}  # fmt: skip
    _check_served(tree, terms)
    bench = Bench(tree, asked, folder, executor, given=dict(given or {}))
    bench.baselines = _fitting(enough_slots(tree, list(asked)), tree, terms)
    answers = tuple(advise_policy(bench, policy, terms, say) for policy in policies)
    if terms.rest > 0 and all(one.setting is None for one in answers):
        say(f"with nothing {terms.rest:.0%} of the rest is answered; looking again without that")
        terms = replace(terms, rest=0.0)
        answers = tuple(advise_policy(bench, policy, terms, say) for policy in policies)
    found = [one for one in answers if one.setting is not None]
    if not found:
        words = "; ".join(f"{one.policy}: {one.why_not}" for one in answers)
        fix = "give more --replicas, a longer objective or a lower --target"
        raise InputError("advise", f"nothing that was tried meets the objectives ({words})", fix)
    best = max(found, key=_rank)
    seen = None
    if survey_runs:
        # The runs may not be enough for all, so what most often does best comes first.
        others = sorted((one for one in plugins.POLICY_KINDS if one not in policies), key=_FIRST.__ne__)
        seen = survey(bench, others, best, terms, survey_runs, say)
        closer = replace(terms, high_replicas=best.setting.replicas) if best.setting else terms
        better = [one.policy for one in seen.candidates if _promises_more(one, best)][:_SEARCHED]
        answers += tuple(advise_policy(bench, policy, closer, say) for policy in better)
        best = max((one for one in answers if one.setting is not None), key=_rank)
    computed = best
    best = squeezed(bench, best, terms, say)
    answers = tuple(best if one is computed else one for one in answers)
    say(f"best: {best.policy}; looking for its reasons")
    reasons = reasons_of(bench, best, answers, terms)
    assert best.setting is not None
    chosen = bench.scenario(best.policy, best.setting)
    if seen is not None:
        reasons += survey_words(seen, best, answers)
    reasons.append(promise_words(bench, best, promise_of(bench, best.policy, best.setting)))
    if not terms.rest:
        reasons.insert(0, "of the requests without an objective fewer are answered than was asked: too few replicas")
    promised = {one.name: one.spec().baseline.slots or 0.0 for one in chosen.pool.entitlements if one.ttft_slo_s}
    return Advice(best, answers, promised, tuple(reasons), chosen.model_dump(mode="json"))


def _promises_more(one: Candidate, best: PolicyAdvice) -> bool:
    """Whether a policy of the survey might be better than the best: fewer replicas, or clearly more goodput."""
    assert best.setting is not None
    if one.setting.replicas < best.setting.replicas or not best.holds:
        return True
    return one.output_tokens_per_s > _CLEARLY_MORE * sum(best.output_tokens_per_s) / len(best.output_tokens_per_s)


def _rank(one: PolicyAdvice) -> tuple[bool, bool, int, float]:
    assert one.setting is not None
    goodput = sum(one.output_tokens_per_s) / max(1, len(one.output_tokens_per_s))
    return one.holds, one.holds_now, -one.setting.replicas, goodput


def _check_served(tree: Tree, terms: Terms) -> None:
    """Refuse a demand that no number of replicas serves in time."""
    scenario = parse_scenario(tree | {"policies": ["none"]}, "advise")
    drawn = demands(scenario, 0)
    if not sum(map(len, drawn)):
        raise InputError("advise", "the demand is empty", "give a log or a window that has requests")
    for name, (share, enough_s) in never_served(scenario, drawn).items():
        if share > 1 - terms.target:
            problem = (
                f"no number of replicas serves it: {share:.0%} of its requests do not fit a replica of "
                f"{scenario.pool.profile.name}, or take longer alone on an idle one than the objective"
            )
            fix = f"give an objective of {enough_s:.2g} s or more, a lower --target, or another --profile"
            raise InputError(f"--objective {name}", problem, fix)


def _fitting(slots: Mapping[str, float], tree: Tree, terms: Terms) -> dict[str, float]:
    """Return baselines that fit the most replicas there may be: where they do not, all are cut alike."""
    room = terms.low_replicas * parse_slots(tree["pool"]["profile"])
    total = sum(slots.values())
    factor = min(1.0, room / total)
    return {name: max(1.0, float(int(amount * factor))) for name, amount in slots.items()}
