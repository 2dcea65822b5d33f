"""``tokenpools tournament --tune N``: every policy tuned by the same number of trials, and judged on other scenarios.

A trial is one setting, run once over the train scenarios at load 1; what is sought is the mean attainment of their
worst-off scored tenants. The first trial of each policy is the setting it takes part with, so that tuning never ends
below it there; the others are drawn by Optuna's TPE [1]_, the same seed for all. A trial that is no valid setting is
spent. The best is run over the other scenarios, which no trial has seen, beside the setting that it began with.

References
----------
.. [1] J. Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from sim.analysis.markdown_tables import as_csv, markdown
from sim.analysis.standings import Cell, Table, cells_of
from sim.errors import RunError, ScenarioError
from sim.experiments.cells import Done, Task, run_task, task
from sim.experiments.executors import Executor
from sim.extras import require
from sim.records.result_folder import replace_file
from sim.scenario.load import Policy, Scenario, expand, parse_scenario, resolved
from sim.studies.tournament import scenarios_of
from sim.studies.tournament_loads import at_load
from sim.studies.tournament_policies import names, policy_settings
from sim.studies.tournament_spaces import RATES, SPACES

TRAIN = ("burst-after-idle", "estimator-error", "many-keys", "noisy-neighbour", "prompts-and-outputs", "retry-storm")
"""Scenarios to tune on: of those that `predictive-pool` was made on, so that others stay unseen by all. [choice]"""
TEST_LOADS = (1.0, 1.3)
TUNED = "+tuned"
SEED = 19
RESULT = "tournament-tuning.json"
CELLS = "tournament-tuned-cells.csv"

Setting = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning found for one policy.

    Attributes
    ----------
    before, after : mean attainment on the train scenarios, of the setting it takes part with and of the best.
    trials, invalid : how many were spent, and how many of them were no valid setting.
    """

    policy: str
    setting: Setting
    before: float
    after: float
    trials: int
    invalid: int


def with_setting(policy: Policy, setting: Setting, scenario: Scenario, name: str | None = None) -> Policy:
    """Return a policy of a scenario with some fields set otherwise.

    Raises
    ------
    ScenarioError : the fields are not valid together.
    """
    tree = resolved(scenario.model_copy(update={"policies": (policy,)}))
    fields_of = tree["policies"][0]
    for path, value in setting.items():
        if path == RATES:
            _scale(fields_of, float(value))
        else:
            fields_of[path] = value
            for limits in (fields_of.get("per_entitlement") or {}).values():
                if path in limits:  # a limit of its own would hide it
                    limits[path] = value
    if name is not None:
        fields_of["name"] = name
    return parse_scenario(tree | {"vary": {}}, scenario.title or "tournament").policies[0]


def _scale(fields_of: dict[str, Any], factor: float) -> None:
    for limits in (fields_of, *(fields_of.get("per_entitlement") or {}).values()):
        for name in ("tokens_per_min", "capacity"):
            if isinstance(limits.get(name), int | float):
                limits[name] *= factor


def tune(
    trials: int, *, policies: Sequence[str] = (), train: Sequence[str] = TRAIN, executor: Executor | None = None,
    on_policy: Callable[[str], None] | None = None, known: Mapping[str, Tuned] | None = None,
    on_found: Callable[[Tuned], None] | None = None,
) -> list[Tuned]:
    """Return the best setting of each policy by the same number of trials; ``known`` are not tuned again.

    Raises
    ------
    RunError : a cell broke.
    """
    require("optuna", "tuning")
    executor = executor or Executor()
    scenarios = scenarios_of(train)
    found = []
    for name in policies or names():
        if on_policy is not None:
            on_policy(name)
        one = (known or {}).get(name) or _tuned(name, scenarios, trials, executor)
        found.append(one)
        if on_found is not None:
            on_found(one)
    return found


def _tuned(name: str, scenarios: Mapping[str, Scenario], trials: int, executor: Executor) -> Tuned:
    before = _attainment(name, {}, scenarios, executor)
    space = SPACES.get(name, {})
    if not space or trials < 2:
        return Tuned(name, {}, before, before, 1, 0)
    optuna: Any = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=SEED, n_startup_trials=max(4, trials // 3), ),
    )
    best: tuple[float, Setting] = before, {}
    invalid = 0
    for _ in range(trials - 1):
        trial = study.ask()
        setting = {path: span.suggest(trial, path) for path, span in space.items()}
        try:
            score = _attainment(name, setting, scenarios, executor)
        except ScenarioError:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            invalid += 1
            continue
        study.tell(trial, score)
        if score > best[0]:
            best = score, setting
    return Tuned(name, best[1], before, best[0], trials, invalid)


def _attainment(name: str, setting: Setting, scenarios: Mapping[str, Scenario], executor: Executor) -> float:
    tasks = []
    for label, scenario in scenarios.items():
        (policy,) = policy_settings(scenario, (name,))
        tasks.append(_task(label, scenario, with_setting(policy, setting, scenario), 0))
    cells = _run(tasks, executor)
    return math.fsum(cell.attainment for cell in cells) / len(cells)


def _task(label: str, scenario: Scenario, policy: Policy, replication: int) -> tuple[Task, Cell, Scenario]:
    alone = scenario.model_copy(update={"policies": (policy,), "replications": replication + 1, "vary": {}})
    (cell,) = [one for one in expand(alone) if one.replication == replication]
    place = Cell(label, 1.0, policy.name, replication, 0.0, 0.0, 0.0, "")
    return task(cell, f"{label}/{policy.name}/{replication}"), place, scenario


def _run(tasks: Sequence[tuple[Task, Cell, Scenario]], executor: Executor) -> list[Cell]:
    found: dict[int, Cell] = {}
    for position, answer in executor.map(run_task, [one for one, _, _ in tasks]):
        _, place, scenario = tasks[position]
        if not isinstance(answer, Done):
            raise RunError(f"{place.scenario}, {place.policy}: {getattr(answer, 'error', answer)}")
        rows = [{**row, "replication": place.replication} for row in answer.measures]
        specs = [one.spec() for one in scenario.pool.entitlements]
        (found[position],) = cells_of(place.scenario, place.load, rows, scenario.scored, specs)
    return [found[position] for position in range(len(tasks))]


def judged(
    tuned: Sequence[Tuned], *, replications: int, loads: Sequence[float] = TEST_LOADS, test: Sequence[str] = (),
    executor: Executor | None = None, on_place: Callable[[str], None] | None = None, known: Sequence[Cell] = (),
    on_cells: Callable[[list[Cell]], None] | None = None,
) -> list[Cell]:
    """Return the cells of every policy on the test scenarios: as it takes part, and (``+tuned``) as it was tuned.

    Where tuning found nothing better the second are the first again.

    Parameters
    ----------
    known : cells that need not run again.
    on_cells : told of the cells of each place.

    Raises
    ------
    RunError : a cell broke.
    """
    chosen = test or [name for name in scenarios_of() if name not in TRAIN]
    cells: list[Cell] = []
    have = {(one.scenario, one.load, one.policy, one.replication): one for one in known}
    for label, scenario in scenarios_of(chosen).items():
        for load in loads:
            if on_place is not None:
                on_place(f"{label}@{load:g}")
            asked = at_load(scenario, load)
            tasks = []
            for one in tuned:
                (policy,) = policy_settings(asked, (one.policy,))
                for each in (policy, with_setting(policy, one.setting, asked, one.policy + TUNED)):
                    if one.setting or each is policy:
                        tasks += [
                            _task(label, asked, each, r) for r in range(replications)
                            if (label, load, each.name, r) not in have
                        ]
            ran = [replace(cell, load=load) for cell in _run(tasks, executor or Executor())]
            have |= {(label, load, one.policy, one.replication): one for one in ran}
            for one in tuned:
                own = [have[label, load, one.policy, r] for r in range(replications)]
                name = one.policy + TUNED
                cells += own
                cells += (
                    [have[label, load, name, r] for r in range(replications)] if one.setting
                    else [replace(cell, policy=name) for cell in own]
                )
            if on_cells is not None:
                on_cells(cells)
    return cells


def table(tuned: Sequence[Tuned], cells: Sequence[Cell]) -> str:
    """Return defaults beside tuned: on the train scenarios, and on the test scenarios with ranks, as Markdown."""
    found = Table(cells)
    mean = {
        name: float(found.values["attainment"][:, i].mean()) for i, name in enumerate(found.policies)
    }  # fmt: skip
    ranks = {}
    for tail in ("", TUNED):
        own = [cell for cell in cells if cell.policy.endswith(TUNED) == bool(tail)]
        ranks.update({one.policy: one for one in Table(own).standings("attainment")})
    rows = []
    for one in sorted(tuned, key=lambda each: ranks[each.policy + TUNED].rank):
        after, before = ranks[one.policy + TUNED], ranks[one.policy]
        rows.append((
            one.policy, f"{100 * one.before:.1f}", f"{100 * one.after:.1f}", f"{100 * mean[one.policy]:.1f}",
            f"{100 * mean[one.policy + TUNED]:.1f}", f"{before.rank:.1f}", f"{after.rank:.1f}",
            ", ".join(f"{path} {_short(value)}" for path, value in one.setting.items()) or "-",
        ))  # fmt: skip
    heads = ("policy", "train, default %", "tuned %", "test, default %", "tuned %", "rank, default", "tuned", "found")
    return markdown(heads, rows)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(folder: Path, tuned: Sequence[Tuned], cells: Sequence[Cell]) -> None:
    """Write what was found, the cells that judge it, and both as a table."""
    write_settings(folder, tuned)
    replace_file(folder / "tournament-tuning.md", table(tuned, cells) + "\n")
    write_cells(folder, cells)


def write_cells(folder: Path, cells: Sequence[Cell]) -> None:
    """Write what the cells of the test scenarios gave."""
    heads = [one.name for one in fields(Cell)]
    rows = [[repr(value) if isinstance(value, float) else value for value in asdict(cell).values()] for cell in cells]
    replace_file(folder / CELLS, as_csv(heads, rows))


def write_settings(folder: Path, tuned: Sequence[Tuned]) -> None:
    """Write what was found so far, so that a killed command goes on from there."""
    replace_file(folder / RESULT, json.dumps([asdict(one) for one in tuned], indent=1) + "\n")


def read(path: Path) -> list[Tuned]:
    """Return what `write` wrote; nothing where there is no such file."""
    if not path.exists():
        return []
    return [Tuned(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
