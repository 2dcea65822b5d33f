"""Capacity planning: the cheapest setting with which a workload meets its objectives, policy by policy.

Every setting that is tried is a cell of one sweep, so that a plan resumes after a kill and has a report like any other
result. What the search found is checked again on seeds it has not seen: a search picks lucky settings.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from sim.analysis.statistics import mean_interval
from sim.analysis.student_t import quantile as student_t
from sim.analysis.study import Case, Study
from sim.errors import InputError, ScenarioError
from sim.experiments.executors import Executor
from sim.experiments.plan_model import Cost, Goal, Knob, PlanResult, Setting, Trial, default_cost, parse_knob
from sim.experiments.sweep import sweep
from sim.extras import require
from sim.records.result_folder import replace_file
from sim.scenario.load import Scenario, parse_scenario, resolved
from sim.scenario.validation_errors import suggestion
from sim.scenario.vary import varied_paths

__all__ = ["Cost", "Goal", "Knob", "PlanResult", "Setting", "Trial", "default_cost", "parse_knob", "plan"]

_LOOKS = 8
"""Values between the ends to try where the dearest fails."""

_CHECKS = 5
"""Settings that are checked on fresh seeds, cheapest first, until one holds."""

FRESH = 7_919
"""Added to the seed for the check: what the search saw says nothing about its own luck."""


def plan(
    scenario: Scenario,
    folder: Path,
    knobs: Sequence[Knob],
    goal: Goal,
    *,
    cost: Cost | None = None,
    budget: int = 40,
    executor: Executor | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> list[PlanResult]:
    """Search the knobs for each policy, check the answers on fresh seeds, and write ``plan.json`` and ``plan.csv``.

    One knob of whole numbers is bisected, which takes attainment to rise with cost; then the neighbours are tried. More
    knobs, or numbers with fractions, go to Optuna's tree-structured Parzen estimator, for cost and attainment at once.
    ``folder`` is afterwards a result like a sweep's, of every setting tried.

    Parameters
    ----------
    cost : None: replicas where a knob sets them, else as little as possible of what the first knob sets.
    budget : settings to try for each policy.

    Raises
    ------
    InputError : the scenario varies what no knob sets, no knob sets ``cost``, no workload has an objective, or Optuna
        is needed and not installed.
    ScenarioError : a knob's path leads nowhere, or no value of it is valid.
    """
    require("scipy", "a plan")
    tenants = _tenants(scenario, goal)
    paths = {knob.path for knob in knobs}
    for path in varied_paths(resolved(scenario)["vary"]):
        if path not in paths:
            problem = f"the scenario varies {path}, and a plan needs one value"
            raise InputError("plan", problem, f"give --set {path}=VALUE")
    cost = cost or default_cost(knobs)
    if cost.path not in paths:
        option = "--most" if cost.most else "--least"
        fix = suggestion(cost.path, [knob.path for knob in knobs])
        raise InputError(f"{option} {cost.path}", "no --over sets it", fix)
    single = len(knobs) == 1 and knobs[0].whole
    if not single:
        require("optuna", "a plan with more than one whole-number knob")
    tried: dict[tuple[str, str], Trial] = {}

    def attempt(policy: str, setting: Setting) -> Trial | None:
        key = policy, json.dumps(setting, sort_keys=True)
        if key not in tried:
            asked = _with(scenario, policy, [setting])
            if asked is None:
                return None
            tried[key] = _measured(asked, folder, policy, setting, tenants, goal, cost, executor)
            if on_trial is not None:
                on_trial(tried[key])
        return tried[key]

    answers = []
    for policy in (one.name for one in scenario.policies):
        search = _bisected if single else _optimised
        for _ in search(policy, knobs, goal, cost, budget, scenario.seed, attempt):
            pass
        trials = tuple(trial for trial in tried.values() if trial.policy == policy)
        if not trials:
            raise InputError("--over", f"no setting is valid for {policy}", "see `tokenpools validate` with --set")

        def check(one: Trial) -> Trial:
            return _checked(scenario, folder, one, tenants, goal, cost, executor)

        answers.append(_answered(policy, trials, goal, check))
    _written(scenario, folder, goal, cost, answers, executor)
    return answers


_Attempt = Callable[[str, Setting], Trial | None]


def _answered(policy: str, trials: Sequence[Trial], goal: Goal, check: Callable[[Trial], Trial]) -> PlanResult:
    """Return the cheapest trial that meets the goal in the search and, when checked, again."""
    good = sorted((trial for trial in trials if trial.meets(goal)), key=lambda one: (one.cost, -one.at_least))
    fell: list[Trial] = []
    for trial in good[:_CHECKS]:
        checked = check(trial)
        if checked.meets(goal):
            return PlanResult(policy, trial, checked, True, tuple(trials), tuple(fell))
        fell.append(checked)
    return PlanResult(policy, good[0] if good else None, fell[0] if fell else None, False, tuple(trials), tuple(fell))


def _bisected(
    policy: str, knobs: Sequence[Knob], goal: Goal, cost: Cost, budget: int, _: int, attempt: _Attempt
) -> Iterator[None]:
    (knob,) = knobs
    low, high = sorted((int(cost.of(knob.low)), int(cost.of(knob.high))))
    spent = 0

    def good(price: int) -> bool:
        nonlocal spent
        spent += 1
        trial = attempt(policy, {knob.path: int(cost.of(price))})
        return trial is not None and trial.meets(goal)

    below, above = low - 1, high
    top = good(high)
    yield
    if not top:  # where more is not better all the way, the middle may still do
        for middle in _between(low, high, min(budget // 2, _LOOKS)):
            if good(middle):
                top, above = True, middle
                yield
                break
            below = middle
            yield
    while top and above - below > 1 and spent < budget:
        middle = (below + above) // 2
        below, above = (below, middle) if good(middle) else (middle, above)
        yield
    # The neighbours show how steep the frontier is, and whether attainment falls anywhere on the way up.
    centre = above if top else high
    for value in (centre - 1, centre + 1, centre - 2, centre + 2, low, (low + centre) // 2):
        if low <= value <= high and spent < budget:
            good(value)
            yield


def _between(low: int, high: int, most: int) -> list[int]:
    """Return whole numbers between two others, evenly spread, the least first."""
    return sorted({low + round(i * (high - low) / (most + 1)) for i in range(most + 1)} - {high})


def _optimised(
    policy: str, knobs: Sequence[Knob], goal: Goal, _: Cost, budget: int, seed: int, attempt: _Attempt
) -> Iterator[None]:
    optuna: Any = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=["minimize", "maximize"],
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(5, budget // 4)),
    )
    for _trial in range(budget):
        asked = study.ask()
        setting: Setting = {}
        for knob in knobs:
            if knob.whole:
                setting[knob.path] = asked.suggest_int(knob.path, int(knob.low), int(knob.high))
            else:
                setting[knob.path] = float(f"{asked.suggest_float(knob.path, knob.low, knob.high):.4g}")
        trial = attempt(policy, setting)
        if trial is None:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            # What exceeds the goal is worth no more: the search should spend itself on cost.
            study.tell(asked, [trial.cost, min(trial.at_least, goal.attainment)])
        yield


def _with(scenario: Scenario, policy: str, settings: Sequence[Setting], seed: int | None = None) -> Scenario | None:
    """Return the scenario of one policy with these settings as its variants; None where they are not valid."""
    tree = resolved(scenario)
    tree["policies"] = [one for one in tree["policies"] if one["name"] == policy]
    tree["vary"] = {"kind": "list", "cells": list(settings)}
    if seed is not None:
        tree["seed"] = seed
    try:
        return parse_scenario(tree, "plan")
    except ScenarioError as error:
        if "no such place" in str(error) or "unknown field" in str(error):
            raise
        return None  # baselines over capacity, for example: the search must look elsewhere


def _measured(
    asked: Scenario, folder: Path, policy: str, setting: Setting, tenants: Sequence[str], goal: Goal, cost: Cost,
    executor: Executor | None,
) -> Trial:  # fmt: skip
    result = sweep(asked, folder, executor=executor)
    if result.errors:
        raise InputError("plan", result.errors[0], "")
    study = Study(folder)
    case: Case = study.cases[0]
    worst = ("", math.nan, math.inf)
    for tenant in tenants:
        values = study.values(case, tenant, "slo_attainment").to_numpy()
        if not len(values) or np.isnan(values).any():
            problem = "has replications in which none of its requests counts, so its objective is not measured"
            raise InputError(f"--tenant {tenant}", problem, "give it requests after the warm-up, or leave it out")
        found = mean_interval(values)
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.inf
        bound = (
            found.estimate - student_t(goal.confidence, max(1, len(values) - 1)) * error
            if error
            else found.estimate
        )
        if bound < worst[2] or not worst[0]:
            worst = tenant, found.estimate, bound
    return Trial(policy, setting, cost.of(float(setting[cost.path])), float(worst[1]), float(worst[2]), worst[0])


def _checked(
    scenario: Scenario, folder: Path, best: Trial, tenants: Sequence[str], goal: Goal, cost: Cost,
    executor: Executor | None,
) -> Trial:  # fmt: skip
    asked = _with(scenario, best.policy, [best.setting], scenario.seed + FRESH)
    assert asked is not None  # it was valid with another seed
    twice = asked.model_copy(update={"replications": 2 * scenario.replications})
    return _measured(twice, folder / "check", best.policy, best.setting, tenants, goal, cost, executor)


def _tenants(scenario: Scenario, goal: Goal) -> list[str]:
    known = {one.spec().tenant: one.ttft_slo_s for one in scenario.pool.entitlements}
    for name in goal.tenants:
        if name not in known:
            raise InputError(f"--tenant {name}", "unknown tenant", suggestion(name, known))
        if known[name] is None:
            raise InputError(f"--tenant {name}", "has no objective", "give its entitlement ttft_slo_s")
    found = list(goal.tenants) or [name for name, slo_s in known.items() if slo_s is not None]
    if not found:
        raise InputError("plan", "no entitlement has an objective", "give at least one ttft_slo_s")
    if scenario.replications < 2:
        raise InputError("plan", "one replication gives no confidence", "give --replications 5 or more")
    return found


def _written(
    scenario: Scenario, folder: Path, goal: Goal, cost: Cost, answers: Sequence[PlanResult], executor: Executor | None
) -> None:
    # One sweep over all that was tried leaves the folder a result; every cell of it is there already.
    settings: list[Setting] = []
    for answer in answers:
        settings += [trial.setting for trial in answer.trials if trial.setting not in settings]
    tree = resolved(scenario) | {"vary": {"kind": "list", "cells": settings}}
    sweep(parse_scenario(tree, "plan"), folder, executor=executor)
    found = {"goal": asdict(goal), "cost": asdict(cost), "answers": [asdict(answer) for answer in answers]}
    replace_file(folder / "plan.json", json.dumps(_finite(found), indent=2, allow_nan=False) + "\n")
    paths = list(settings[0])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["policy", *paths, "cost", "attainment", "at_least", "tenant", "meets", "best"])
    for answer in answers:
        for trial in sorted(answer.trials, key=lambda one: (one.cost, one.attainment)):
            values = [trial.setting[path] for path in paths]
            numbers = [trial.cost, f"{trial.attainment:.6g}", f"{trial.at_least:.6g}", trial.tenant]
            writer.writerow([trial.policy, *values, *numbers, trial.meets(goal), trial is answer.best])
    replace_file(folder / "plan.csv", text.getvalue())


def _finite(value: Any) -> Any:
    """Return plain values for JSON, which has no NaN and no infinity: null where nothing was measured."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
