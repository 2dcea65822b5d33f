"""The study behind docs/which-policy.md, and the tables of a tournament about one policy."""

from __future__ import annotations

import math

import pytest

from sim.analysis.standings import Cell
from sim.scenario.load import load_scenario, parse_scenario, resolved
from sim.studies.predictive_pool import PARTS, PLACES, Place, Served, ablation, experiments_figure, experiments_table
from sim.studies.tournament_bounds import Bounds
from sim.studies.tournament_tables import losses, room


@pytest.mark.parametrize("name", [*PLACES])
def test_every_place_is_a_scenario_that_takes_its_overrides_and_every_part(name: str) -> None:
    place = PLACES[name]
    tree = resolved(load_scenario(place.scenario, overrides=place.overrides))
    tree |= {"policies": [{"kind": "predictive-pool", "name": part, **fields} for part, fields in PARTS.items()],
             "vary": {}}  # fmt: skip
    scenario = parse_scenario(tree, name)
    assert len(scenario.policies) == len(PARTS)
    tenants = {one.tenant for one in scenario.pool.entitlements}
    assert set(place.scored or load_scenario(place.scenario).scored) <= tenants


def test_a_small_ablation_has_a_row_for_each_part() -> None:
    short = {"short": Place("paper-exp2", ("horizon_s=25", "events=[]", "phases=[]"), ("copilot",))}
    rows = [line for line in ablation(short).splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(PARTS)
    assert "whole" in rows[0]


def test_the_experiments_are_drawn_with_what_the_table_says() -> None:
    served = [
        Served(number, "a", policy, 100, 90, 0.05, 0.875, 1.0)
        for number in (1, 2) for policy in ("`token-pool`, paper", "`token-pool`", "`predictive-pool`")
    ]  # fmt: skip
    assert "87.5" in experiments_table(served)
    texts = {text.get_text() for axis in experiments_figure(served).axes for text in axis.texts}
    assert "88" in texts


def test_losses_and_room_by_hand() -> None:
    cells = [
        Cell(scenario, 1.0, policy, 0, attainment, goodput, 0.0, "")
        for scenario, policy, attainment, goodput in (
            ("s", "mine", 0.5, 10.0), ("s", "other", 0.9, 15.0), ("s", "third", 0.6, 9.0),
            ("level", "mine", 0.9, 10.0), ("level", "other", 0.9, 10.0), ("level", "third", 0.2, 1.0),
        )
    ]  # fmt: skip
    (row,) = [line for line in losses(cells, "mine").splitlines() if "| s " in line]
    assert [part.strip() for part in row.strip("|").split("|")] == ["s", "50", "other", "90", "40", "2"]
    assert "level" not in losses(cells, "mine")
    bounds = [
        Bounds("s", 1.0, "other", 0, 10.0, 1.0, 0.9, 15.0, 16.0),
        Bounds("s", 1.0, "other", 1, 30.0, 0.96, 0.5, 15.0, 18.0),
        Bounds("s", 1.0, "other", 2, 0.0, math.nan, math.nan, 15.0, 17.0),
    ]
    (row,) = [line for line in room(bounds, cells, "mine").splitlines() if "| s " in line]
    shown = [part.strip() for part in row.strip("|").split("|")]
    assert shown == ["s", "97.0", "60.0", "1.50 of 1.70", "1.50 of 1.70"]
