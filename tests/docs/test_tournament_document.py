"""docs/tournament.md says what its published cells say."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sim.analysis.standings import Cell, Table
from sim.scenario.load import shipped_scenarios
from sim.studies import tournament_tuning as tuning
from sim.studies.tournament import PREFIX, Tournament
from sim.studies.tournament_loads import LOADS
from sim.studies.tournament_policies import names
from sim.studies.tournament_tables import losses
from sim.studies.tournament_verify import published

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "tournament.md").read_text(encoding="utf-8")


@cache
def cells() -> tuple[Cell, ...]:
    return tuple(published(DOCS / "tournament-cells.csv"))


def block(name: str) -> str:
    return TEXT.split(f"<!-- begin {name} -->")[1].split(f"<!-- end {name} -->")[0].strip()


def unstarred(table: str) -> list[str]:
    """Return a table without stars, which cells cannot say, nor the width that they take."""
    return [re.sub(r"-{2,}|[ *]", "", line) for line in table.splitlines()]


def said(pattern: str) -> list[float]:
    """Return the numbers of a sentence."""
    found = re.search(pattern, " ".join(TEXT.split()))
    assert found is not None, f"the page no longer says {pattern!r}"
    return [float(one.replace(",", "")) for one in found.groups()]


def test_every_policy_took_part_everywhere() -> None:
    replications = {one.replication for one in cells()}
    scenarios = {name.removeprefix(PREFIX) for name in shipped_scenarios() if name.startswith(PREFIX)}
    every = {(s, load, policy, r) for s in scenarios for load in LOADS for policy in names() for r in replications}
    assert {(one.scenario, one.load, one.policy, one.replication) for one in cells()} == every
    assert len(cells()) == len(every)
    assert said(r"are ([\d,]+) runs") == [len(every)]


def test_tables_are_of_these_cells() -> None:
    found = Tournament([], list(cells()), len({one.replication for one in cells()}), DOCS)
    assert block("standing") == found.standing()
    assert block("moves") == found.moves()
    assert block("best") == found.best()
    assert block("losses") == losses(found.cells, "token-pool")
    for load in LOADS:
        assert unstarred(block(f"grid-{load:g}")) == unstarred(found.grid(load))
    tuned = tuning.read(DOCS / tuning.RESULT)
    assert {one.policy for one in tuned} == set(names())
    assert {one.trials for one in tuned} == {1, max(one.trials for one in tuned)}
    assert block("tuning") == tuning.table(tuned, published(DOCS / tuning.CELLS))


def test_bars_of_predictive_pools_are_said_as_they_are() -> None:
    table = Table(cells())
    new, old = table.policies.index("predictive-pool"), table.policies.index("token-pool")
    (rank,) = [one.rank for one in table.standings("attainment") if one.policy == "predictive-pool"]
    assert said(r"mean rank by attainment over all loads is ([\d.]+)") == [pytest.approx(rank, abs=0.05)]
    mean = {metric: values.mean(axis=2) for metric, values in table.values.items()}
    more = 100 * (mean["violation"][:, old] - mean["violation"][:, new])
    (most,) = said(r"points above \(most: ([\d.]+),")
    assert most == pytest.approx(float(np.nanmax(more)), abs=0.005)
    goodput = mean["goodput"][:, [new, old]]
    gain = goodput[:, 0] / goodput[:, 1]
    by_scenario: dict[str, list[np.ndarray]] = {}
    for (scenario, _), one in zip(table.places, goodput, strict=True):
        by_scenario.setdefault(scenario, []).append(one)
    least = said(r"more goodput it has in (\d+) of (\d+) places")
    assert least == [float((gain >= 1.15).sum()), float(len(gain))]
    assert said(r"over the loads, in (\d+) of (\d+) scenarios") == [
        sum(bool(mine >= 1.15 * other) for mine, other in (np.sum(ones, axis=0) for ones in by_scenario.values())),
        len(by_scenario),
    ]  # fmt: skip
