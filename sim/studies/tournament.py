"""``tokenpools tournament``: every policy over every scenario made to tell them apart, on common random numbers.

Each scenario at each load is a sweep of its own in the result folder, so a killed tournament goes on with the same
command. Beside them lie the numbers of every run; from these `sim.studies.tournament_verify` runs any of them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from sim.analysis import style
from sim.analysis.markdown_tables import as_csv, markdown
from sim.analysis.plots_ranking import heat_map, mean_ranks
from sim.analysis.ranking import Score, judge
from sim.analysis.standings import METRICS, Cell, Standing, Table, cells_of
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
CELLS = f"{NAME}-cells.csv"
_UNIT = {"attainment": "%", "goodput": "weighted requests/s", "violation": "%"}


@dataclass(frozen=True, slots=True, eq=False)
class Tournament:
    """What a tournament gave."""

    scores: list[Score]
    cells: list[Cell]
    replications: int
    folder: Path

    @property
    def loads(self) -> list[float]:
        """The loads, the least first."""
        return sorted({one.load for one in self.cells})

    def table(self) -> str:
        """Return policy by scenario and load: score, interval, rank, counts and flag, as Markdown."""
        return markdown(_HEADS, [_cells(one) for one in self.scores])

    def standing(self) -> str:
        """Return mean ranks with intervals: by attainment at each load, and by each metric over all loads."""
        table = Table(self.cells)
        columns = [(f"attainment @{load:g}", table.standings("attainment", load)) for load in self.loads]
        columns += [(metric, table.standings(metric)) for metric in METRICS]
        columns = [(head, order) for head, order in columns if order]
        shown = [{one.policy: one for one in order} for _, order in columns]
        order = [one.policy for one in table.standings("attainment")]
        rows = [(name, *(_rank(found[name]) for found in shown)) for name in order]
        return markdown(("policy", *(head for head, _ in columns)), rows)

    def moves(self) -> str:
        """Return the share of policies whose place differs between metrics, and between loads, as Markdown."""
        table = Table(self.cells)
        rows = [
            (f"between the three metrics, at load {load:g}", table.moved([table.standings(m, load) for m in METRICS]))
            for load in self.loads
        ]
        rows += [
            (f"between loads {', '.join(f'{load:g}' for load in self.loads)}, by {metric}",
             table.moved([table.standings(metric, load) for load in self.loads]))
            for metric in METRICS
        ]  # fmt: skip
        heads = ("places that are not the same", "share of policies")
        return markdown(heads, [(what, f"{100 * share:.0f} %") for what, share in rows])

    def best(self) -> str:
        """Return who is best where: for each scenario, load and metric the best and how many are level with it."""
        table = Table(self.cells)
        rows = []
        for place, (scenario, load) in enumerate(table.places):
            row = [scenario, f"{load:g}"]
            for metric in METRICS:
                values = table.values[metric][place]
                if (values != values).any():
                    row.append("-")
                    continue
                first, level = table.level_with_best(metric, place)
                value = abs(float(values[first].mean()))
                number = f"{value:.1f}" if metric == "goodput" else f"{100 * value:.1f}"
                more = len(level) - 1
                row.append(f"{table.policies[first]} {number}" + (f" (+{more})" if more else ""))
            rows.append(row)
        return markdown(("scenario", "load", *(f"{metric}, {_UNIT[metric]}" for metric in METRICS)), rows)

    def grid(self, load: float = 1.0) -> str:
        """Return scenarios by policies with the attainment in each cell, bold where level with the best, as Markdown.

        Level: the paired bootstrap interval of the difference to the best of the row holds zero. A star marks load
        shedding in disguise.
        """
        table = Table(self.cells)
        order = [table.policies.index(one.policy) for one in table.standings("attainment")]
        starred = {(one.scenario, one.load, one.policy) for one in self.scores if one.shedding}
        rows = []
        for place, (scenario, at) in enumerate(table.places):
            if at != load:
                continue
            _, level = table.level_with_best("attainment", place)
            row = [scenario]
            for number in order:
                value = float(table.values["attainment"][place][number].mean())
                star = "*" if (scenario, load, table.policies[number]) in starred else ""
                text = f"{100 * value:.0f}{star}"
                row.append(f"**{text}**" if number in level else text)
            rows.append(row)
        return markdown(("scenario", *(table.policies[number] for number in order)), rows)


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
    """Run what the folder does not hold yet, and write its tables, the numbers of all runs and two figures.

    Raises
    ------
    InputError : the folder cannot be written, or there is no such scenario.
    RunError : a cell broke.
    """
    require("scipy", "a tournament")
    scores: list[Score] = []
    cells: list[Cell] = []
    for name, scenario in scenarios_of(scenarios).items():
        entitlements = [one.spec() for one in scenario.pool.entitlements]
        for load in loads:
            measures = measured(folder, name, scenario, load, policies, replications, executor, on_scenario)
            scores += judge(name, measures, scenario.scored, load)
            cells += cells_of(name, load, measures, scenario.scored, entitlements)
    found = Tournament(scores, cells, replications, folder)
    _write(found)
    return found


def measured(
    folder: Path, name: str, scenario: Scenario, load: float, policies: Sequence[str], replications: int,
    executor: Executor | None = None, on_scenario: Callable[[str, Count], None] | None = None,
) -> list[Row]:
    """Run one scenario at one load, as far as it is not there yet; return a row for each replication and tenant.

    Raises
    ------
    RunError : a cell broke.
    """
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


def _write(found: Tournament) -> None:
    folder = found.folder
    names = [one.name for one in fields(Score)]
    rows = [[_plain(getattr(one, name)) for name in names] for one in found.scores]
    replace_file(folder / f"{NAME}.csv", as_csv(names, rows))
    names = [one.name for one in fields(Cell)]
    replace_file(folder / CELLS, as_csv(names, [[_exact(getattr(one, name)) for name in names] for one in found.cells]))
    parts = (found.standing(), found.moves(), found.best(), found.table())
    replace_file(folder / f"{NAME}.md", "\n\n".join(parts) + "\n")
    load = 1.0 if 1.0 in found.loads else found.loads[0]
    at_one = [one for one in found.scores if one.load == load]
    style.save(heat_map(at_one, replications=found.replications, load=load), folder, "heat-map")
    style.save(mean_ranks(Table(found.cells), replications=found.replications), folder, "mean-ranks")


_HEADS = ("scenario", "load", "policy", "score %", "95 %", "rank", "worst off", "offered", "admitted", "refused",
          "in time %", "TTFT P99 s", "load shedding")  # fmt: skip


def _rank(one: Standing) -> str:
    return f"{one.rank:.1f} ({one.low:.1f}-{one.high:.1f})"


def _cells(one: Score) -> list[str]:
    score = f"{100 * one.score:.1f}"
    return [
        one.scenario, f"{one.load:g}", one.policy, f"**{score}**" if one.level else score,
        f"{100 * one.low:.1f}-{100 * one.high:.1f}", f"{one.rank:g}", one.worst, f"{one.offered:,.0f}",
        f"{one.admitted:,.0f}", f"{one.refused:,.0f}", f"{100 * one.attainment:.1f}", f"{one.ttft_p99_s:.2f}",
        "yes" if one.shedding else "",
    ]  # fmt: skip


def _plain(value: str | float | bool) -> str | float | int:
    return int(value) if isinstance(value, bool) else round(value, 6) if isinstance(value, float) else value


def _exact(value: str | float) -> str | float:
    return repr(value) if isinstance(value, float) else value
