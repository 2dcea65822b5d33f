"""Gauges over time, wherever a sample's values are kept."""

from __future__ import annotations

import math
import random

import numpy as np

from policies.api import Gauge, GaugeTable
from sim.cluster.sampler import _TABLES, GaugeLog


def seen(log: GaugeLog) -> dict[tuple[str, str, str], list[tuple[float, float]]]:
    found = {}
    for block in log.blocks():
        ((metric, values),) = block.metrics.items()
        times = np.asarray(block.t_s).tolist()
        found[block.scope, block.name, metric] = list(zip(times, np.asarray(values).tolist(), strict=True))
    return found


def test_samples_alike_stand_in_one_table() -> None:
    log = GaugeLog()
    for at_s in range(1000):
        log.add(float(at_s), [Gauge("entitlement", f"e{i}", "debt", at_s + i / 8) for i in range(50)])
    ((labels, times, values),) = log._tables
    assert (len(labels), len(times), len(values)) == (50, 1000, 50_000)
    assert values.itemsize == 8  # numbers, not objects
    assert not log._apart_values
    assert seen(log)["entitlement", "e7", "debt"] == [(float(t), t + 7 / 8) for t in range(1000)]


def test_gauges_that_come_and_go_are_as_they_were_added_whatever_the_table() -> None:
    chance = random.Random(5)
    log, expected = GaugeLog(), {}
    for at_s in range(400):
        there = [i for i in range(6) if chance.random() < 0.7]
        gauges = [Gauge("entitlement", f"e{i}", metric, chance.random()) for i in there for metric in ("debt", "burst")]
        for scope, name, metric, value in gauges:
            expected.setdefault((scope, name, metric), []).append((float(at_s), value))
        log.add(float(at_s), gauges)
    assert len(log._tables) == _TABLES
    assert log._apart_values  # some samples fitted none
    assert list(seen(log)) == list(expected)  # in the order in which they were first seen
    assert seen(log) == expected


def test_no_gauge_is_no_block() -> None:
    log = GaugeLog()
    log.add(0.0, [])
    assert log.blocks() == []
    log.add(1.0, [Gauge("pool", "pool", "threshold", math.inf)])
    assert seen(log) == {("pool", "pool", "threshold"): [(1.0, math.inf)]}


def test_a_table_of_gauges_is_taken_as_the_gauges_that_it_yields() -> None:
    chance = random.Random(6)
    by_table, one_by_one = GaugeLog(), GaugeLog()
    for at_s in range(100):
        there = [i for i in range(5) if chance.random() < 0.7]
        table = GaugeTable([("entitlement", f"e{i}", "debt") for i in there], [chance.random() for _ in there])
        by_table.add(float(at_s), table)
        one_by_one.add(float(at_s), list(table))
    assert seen(by_table) == seen(one_by_one)
    assert list(seen(by_table)) == list(seen(one_by_one))
