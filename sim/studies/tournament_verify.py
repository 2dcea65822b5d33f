"""``tokenpools tournament --verify FILE``: run cells of a published tournament again, and compare to the last bit."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from sim.analysis.standings import Cell, cells_of
from sim.errors import InputError, RunError
from sim.experiments.cells import Done, Task, run_task, task
from sim.experiments.executors import Executor
from sim.scenario import load as loading
from sim.studies.tournament import CELLS, scenarios_of
from sim.studies.tournament_loads import at_load
from sim.studies.tournament_policies import policy_settings

_NUMBERS = ("load", "attainment", "goodput", "violation")


@dataclass(frozen=True, slots=True)
class Difference:
    """A cell that did not come out as published."""

    published: Cell
    again: Cell


def published(path: Path) -> list[Cell]:
    """Read the cells that a tournament has written (``tournament-cells.csv``).

    Raises
    ------
    InputError : the file is missing, or is none.
    """
    names = [one.name for one in fields(Cell)]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows or list(rows[0]) != names:
            raise ValueError(f"its columns are {list(rows[0]) if rows else []}, not {names}")
        return [
            Cell(**{
                name: float(row[name]) if name in _NUMBERS else int(row[name]) if name == "replication" else row[name]
                for name in names
            })  # type: ignore[arg-type]
            for row in rows
        ]
    except (OSError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"no cells of a tournament: {error}", f"give the {CELLS} of one") from None


def chosen(cells: Sequence[Cell], count: int | None, seed: int = 0) -> list[Cell]:
    """Return so many cells, drawn by a seed, in their order; all where no number is given."""
    if count is None or count >= len(cells):
        return list(cells)
    return [cells[i] for i in sorted(random.Random(seed).sample(range(len(cells)), count))]


def verify(
    cells: Sequence[Cell], *, executor: Executor | None = None, on_cell: Callable[[int, int], None] | None = None
) -> list[Difference]:
    """Run cells again; return those of which anything that was measured differs, be it by the last bit.

    Raises
    ------
    InputError : a cell names a scenario or a policy that there is not.
    RunError : a cell broke.
    """
    tasks = [_task(cell) for cell in cells]
    differences: list[Difference] = []
    for done, (position, answer) in enumerate((executor or Executor()).map(run_task, [one for one, _ in tasks]), 1):
        cell, scenario = cells[position], tasks[position][1]
        if not isinstance(answer, Done):
            raise RunError(f"{cell.scenario} at {cell.load:g}, {cell.policy}: {getattr(answer, 'error', answer)}")
        rows = [{**row, "replication": cell.replication} for row in answer.measures]
        specs = [one.spec() for one in scenario.pool.entitlements]
        (again,) = cells_of(cell.scenario, cell.load, rows, scenario.scored, specs)
        if not _same(cell, again):
            differences.append(Difference(cell, again))
        if on_cell is not None:
            on_cell(done, len(cells))
    return differences


def _task(cell: Cell) -> tuple[Task, loading.Scenario]:
    scenario = at_load(next(iter(scenarios_of([cell.scenario]).values())), cell.load)
    scenario = scenario.model_copy(
        update={"policies": policy_settings(scenario, (cell.policy,)), "replications": cell.replication + 1}
    )
    found = [one for one in loading.expand(scenario) if one.replication == cell.replication]
    return task(found[0], f"{cell.scenario}@{cell.load:g}/{cell.policy}/{cell.replication}"), scenario


def _same(one: Cell, other: Cell) -> bool:
    if one.digest != other.digest:
        return False
    return all(
        a == b or (math.isnan(a) and math.isnan(b))
        for a, b in ((getattr(one, name), getattr(other, name)) for name in _NUMBERS)
    )
