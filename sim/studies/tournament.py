"""``tokenpools run tournament``: every policy over every scenario made to tell them apart, on common random numbers.

Each scenario is a sweep of its own in the result folder, so a killed tournament goes on with the same command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from sim.analysis import style
from sim.analysis.markdown_tables import as_csv, markdown
from sim.analysis.plots_ranking import heat_map
from sim.analysis.ranking import Score, judge, standing
from sim.analysis.summary import Row
from sim.errors import RunError
from sim.experiments.executors import Executor
from sim.experiments.sweep import Count, sweep
from sim.extras import require
from sim.records.result_folder import replace_file
from sim.scenario.load import Scenario, load_scenario, shipped_scenarios
from sim.studies.tournament_loads import LOADS, at_load
from sim.studies.tournament_policies import policy_settings

NAME = "tournament"
PREFIX = f"{NAME}-"
REPLICATIONS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Tournament:
    """What a tournament gave."""

    scores: list[Score]
    replications: int
    folder: Path

    def table(self) -> str:
        """Return policy by scenario: score, interval, rank, counts and flag, as Markdown."""
        return markdown(_HEADS, [_cells(one) for one in self.scores])

    def standing(self) -> str:
        """Return the policies by mean rank, as Markdown."""
        count = len({one.scenario for one in self.scores})
        rows = [
            (policy, f"{rank:.1f}", f"{100 * score:.1f}", f"{level} of {count}", str(flags))
            for policy, rank, score, level, flags in standing(self.scores)
        ]
        return markdown(("policy", "mean rank", "mean score %", "level with the best", "load shedding"), rows)

    def grid(self) -> str:
        """Return scenarios by policies with the score in each cell, bold where level with the best, as Markdown."""
        policies = [row[0] for row in standing(self.scores)]
        cells = {(one.scenario, one.policy): one for one in self.scores}
        rows = []
        for scenario in dict.fromkeys(one.scenario for one in self.scores):
            row = [scenario]
            for policy in policies:
                one = cells.get((scenario, policy))
                text = "-" if one is None else f"{100 * one.score:.0f}{'*' if one.shedding else ''}"
                row.append(f"**{text}**" if one is not None and one.level else text)
            rows.append(row)
        return markdown(("scenario", *policies), rows)


def scenarios_of(names: Sequence[str] = ()) -> dict[str, Scenario]:
    """Return the scenarios of a tournament by short name: those that are shipped for it, or these names and files."""
    if not names:
        names = [name for name in shipped_scenarios() if name.startswith(PREFIX)]
    shipped = set(shipped_scenarios())
    found = {}
    for name in names:
        ref = f"{PREFIX}{name}" if f"{PREFIX}{name}" in shipped else name
        found[Path(ref).stem.removeprefix(PREFIX)] = load_scenario(ref)
    return found


def tournament(
    folder: Path,
    *,
    scenarios: Sequence[str] = (),
    policies: Sequence[str] = (),
    loads: Sequence[float] = LOADS,
    replications: int = REPLICATIONS,
    executor: Executor | None = None,
    on_scenario: Callable[[str, Count], None] | None = None,
) -> Tournament:
    """Run what the folder does not hold yet, and write ``tournament.csv``, ``tournament.md`` and the heat map.

    Raises
    ------
    InputError : the folder cannot be written, or there is no such scenario.
    RunError : a cell broke.
    """
    require("scipy", "a tournament")
    scores: list[Score] = []
    for name, scenario in scenarios_of(scenarios).items():
        for load in loads:
            measures = _measured(folder, name, scenario, load, policies, replications, executor, on_scenario)
            scores += judge(name, measures, scenario.scored)
    found = Tournament(scores, replications, folder)
    names = [one.name for one in fields(Score)]
    rows = [[_plain(getattr(one, name)) for name in names] for one in scores]
    replace_file(folder / f"{NAME}.csv", as_csv(names, rows))
    parts = (found.standing(), found.grid(), found.table())
    replace_file(folder / f"{NAME}.md", "\n\n".join(parts) + "\n")
    style.save(heat_map(scores, replications=replications), folder, "heat-map")
    return found


def _measured(
    folder: Path, name: str, scenario: Scenario, load: float, policies: Sequence[str], replications: int,
    executor: Executor | None, on_scenario: Callable[[str, Count], None] | None,
) -> list[Row]:
    """Run one scenario at one load, as far as the folder does not hold it, and return a row a replication and tenant."""
    asked = at_load(scenario, load)
    asked = asked.model_copy(
        update={"policies": policy_settings(asked, tuple(policies)), "replications": replications}
    )
    label = f"{name}@{load:g}"
    hear = None if on_scenario is None else lambda count: on_scenario(label, count)
    result = sweep(asked, folder / label, executor=executor, on_cell=hear)
    if result.errors:
        raise RunError(f"{label}: {result.errors[0]}")
    return result.measures


_HEADS = ("scenario", "policy", "score %", "95 %", "rank", "worst off", "offered", "admitted", "refused", "in time %",
          "TTFT P99 s", "load shedding")  # fmt: skip


def _cells(one: Score) -> list[str]:
    score = f"{100 * one.score:.1f}"
    return [
        one.scenario, one.policy, f"**{score}**" if one.level else score, f"{100 * one.low:.1f}-{100 * one.high:.1f}",
        f"{one.rank:g}", one.worst, f"{one.offered:,.0f}", f"{one.admitted:,.0f}", f"{one.refused:,.0f}",
        f"{100 * one.attainment:.1f}", f"{one.ttft_p99_s:.2f}", "yes" if one.shedding else "",
    ]  # fmt: skip


def _plain(value: str | float | bool) -> str | float | int:
    return int(value) if isinstance(value, bool) else round(value, 6) if isinstance(value, float) else value
