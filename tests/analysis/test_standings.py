"""Ranks, intervals and moves of a tournament's standings, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from policies.api import EntitlementSpec
from policies.api import ServiceClass as Class
from sim.analysis.standings import Cell, Table, cells_of, ranks


def cell(scenario: str, load: float, policy: str, replication: int, value: float, violation: float = 0.0) -> Cell:
    return Cell(scenario, load, policy, replication, value, 10 * value, violation, "")


def test_ranks_with_ties() -> None:
    assert ranks(np.array([0.9, 0.5, 0.9, 0.1])).tolist() == [1.5, 3.0, 1.5, 4.0]


def test_mean_ranks_and_their_intervals() -> None:
    cells = []
    for replication in range(4):
        for load, a, b in ((1.0, 0.9, 0.5), (1.3, 0.6, 0.6 + 0.1 * (-1) ** replication)):
            cells += [cell("s", load, "a", replication, a), cell("s", load, "b", replication, b)]
    table = Table(cells)
    at_1 = {one.policy: one for one in table.standings("attainment", 1.0)}
    assert (at_1["a"].rank, at_1["a"].low, at_1["a"].high) == (1.0, 1.0, 1.0)
    assert at_1["b"].rank == 2.0
    at_13 = {one.policy: one for one in table.standings("attainment", 1.3)}
    assert at_13["a"].rank == at_13["b"].rank == 1.5
    assert (at_13["a"].low, at_13["a"].high) == (1.0, 2.0)  # which seeds are drawn decides it
    everywhere = {one.policy: one.rank for one in table.standings("attainment")}
    assert everywhere == {"a": 1.25, "b": 1.75}
    assert table.level_with_best("attainment", table.places.index(("s", 1.0))) == (0, [0])
    assert table.level_with_best("attainment", table.places.index(("s", 1.3)))[1] == [0, 1]


def test_less_violation_is_better_and_orders_that_differ_are_counted() -> None:
    cells = [cell("s", 1.0, name, 0, value, violation) for name, value, violation in
             (("a", 0.9, 0.3), ("b", 0.8, 0.1), ("c", 0.1, 0.5))]
    table = Table(cells)
    orders = [table.standings(metric) for metric in ("attainment", "violation")]
    assert [[one.policy for one in order] for order in orders] == [["a", "b", "c"], ["b", "a", "c"]]
    assert table.moved(orders) == pytest.approx(2 / 3)


def test_a_scenario_without_promised_tokens_has_no_violation() -> None:
    table = Table([cell("s", 1.0, "a", 0, 0.9, math.nan), cell("t", 1.0, "a", 0, 0.9, 0.1)])
    assert [one.rank for one in table.standings("violation")] == [1.0]
    assert Table([cell("s", 1.0, "a", 0, 0.9, math.nan)]).standings("violation") == []


def test_cells_are_read_from_measures() -> None:
    specs = [
        EntitlementSpec(name="a", tenant="a", service_class=Class.GUARANTEED),
        EntitlementSpec(name="b1", tenant="b", service_class=Class.SPOT),
        EntitlementSpec(name="b2", tenant="b", service_class=Class.ELASTIC),
    ]
    rows = [
        {"policy": "p", "replication": 0, "tenant": name, "slo_attainment": met, "goodput_per_s": good, "violation": v}
        for name, met, good, v in (("a", 0.9, 2.0, 0.1), ("b", 0.5, 1.0, 0.0), ("all", 0.7, 3.0, 0.04))
    ]
    (one,) = cells_of("s", 1.3, rows, ["a"], specs)
    assert (one.attainment, one.goodput, one.violation) == (0.9, 3 * 2.0 + 2 * 1.0, 0.04)
    (worst,) = cells_of("s", 1.3, rows, [], specs)
    assert worst.attainment == 0.5
    rows[0]["goodput_per_s"] = math.nextafter(2.0, 3.0)
    (other,) = cells_of("s", 1.3, rows, ["a"], specs)
    assert other.digest != one.digest
