"""The timeline: what is sampled while a run goes on, and what is counted from its attempts afterwards.

Gauges that no record holds (queue at a replica, KV in use, debt) are sampled at a fixed interval. Rates and
in-flight counts follow exactly from the attempts, so they are computed once at the end instead of at every sample.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from policies.api import Gauge, GaugeTable
from sim.cluster.agenda import URGENT, Agenda, Alarm
from sim.cluster.faults import Pool
from sim.cluster.node import Node
from sim.records.attempt_series import AttemptSeries
from sim.records.schema import RequestColumns, TimelineBlock

_Label = tuple[str, str, str]
"""Scope, name and metric of a gauge."""
_Floats = NDArray[np.float64]
_Table = tuple[list[_Label], "array[float]", "array[float]"]
"""The gauges of samples alike: labels; the times of the rows; the values, row after row."""
_TABLES: Final = 8
_label_of: Final = itemgetter(0, 1, 2)
_value_of: Final = itemgetter(3)


class Sampler:
    """Samples gauges every ``interval_s`` of simulated time, at 0 first."""

    def __init__(
        self,
        agenda: Agenda,
        gauges: Callable[[float], Iterable[Gauge]],
        pool: Pool,
        nodes: Sequence[Node],
        interval_s: float,
        on_sample: Callable[[float], None] | None = None,
    ) -> None:
        self._agenda = agenda
        self._samples = 0
        self._read_gauges = gauges
        self._pool = pool
        self._nodes = nodes
        self._interval_s = interval_s
        self._on_sample = on_sample
        # Arrays of numbers, not lists of objects: long runs of many entitlements take millions of samples.
        self._t_s = _column()
        self._capacity = _column()
        self._replicas = [_column() for _ in nodes]
        self._gauges = GaugeLog()

    def begin(self) -> None:
        """Sample now, before all else that is due, and until the run ends."""
        self._agenda.set(Alarm(self._ring), self._agenda.now_s, URGENT)

    def _ring(self, alarm: Alarm) -> None:
        now_s = self._agenda.now_s
        self._sample(now_s)
        self._samples += 1
        self._agenda.set(alarm, now_s + max(0.0, self._samples * self._interval_s - now_s))

    def _sample(self, now_s: float) -> None:
        self._t_s.append(now_s)
        capacity = self._pool.capacity()
        self._capacity.extend((capacity.slots, capacity.ready_replicas))
        for node, rows in zip(self._nodes, self._replicas, strict=True):
            replica = node.replica
            used = replica.kv_used_blocks_at(now_s) / max(1, replica.kv_total_blocks)
            rows.extend((replica.running_count, replica.waiting_count, used))
        self._gauges.add(now_s, self._read_gauges(now_s))
        if self._on_sample is not None:
            self._on_sample(now_s)

    def blocks(self, columns: RequestColumns, end_s: float) -> list[TimelineBlock]:
        """Return the whole timeline of the run."""
        t_s = np.asarray(self._t_s)
        capacity = np.asarray(self._capacity).reshape(-1, 2)
        replicas = np.asarray([np.asarray(rows).reshape(-1, 3) for rows in self._replicas])  # (replica, sample, metric)
        counts = AttemptSeries(columns, t_s, self._interval_s, end_s)
        pool = {
            "capacity_slots": capacity[:, 0],
            "ready_replicas": capacity[:, 1],
            "running": replicas[:, :, 0].sum(axis=0),
            "waiting": replicas[:, :, 1].sum(axis=0),
            "kv_used_fraction": replicas[:, :, 2].mean(axis=0),
            **counts.of(None),
        }
        blocks = [TimelineBlock("pool", "pool", t_s, pool)]
        if len(self._nodes) > 1:
            for node, rows in zip(self._nodes, replicas, strict=True):
                metrics = dict(zip(("running", "waiting", "kv_used_fraction"), rows.T, strict=True))
                blocks.append(TimelineBlock("replica", str(node.replica_id), t_s, metrics))
        for index, entitlement in enumerate(columns.entitlements):
            blocks.append(TimelineBlock("entitlement", entitlement.name, t_s, counts.of(index)))
        return blocks + self._gauges.blocks()


class GaugeLog:
    """Gauges over time. Samples of a thousand entitlements have thousands of them, and nearly all have the same ones.

    Those of samples alike stand in rows of one table. Of samples that belong to no table, because there are `_TABLES`
    already, each value stands beside the number of its label.
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}  # of all labels, in the order in which they were first seen
        self._tables: list[_Table] = []
        self._apart_numbers = array("i")
        self._apart_values = _column()
        self._apart_samples: list[tuple[float, int]] = []  # their times, and how many values each has

    def add(self, now_s: float, gauges: Iterable[Gauge]) -> None:
        """Take in what one sample found."""
        labels: list[Any]  # compiled, what is said to be a tuple of three is taken apart and made anew
        values: list[float]
        if isinstance(gauges, GaugeTable):
            labels, values = gauges.labels, gauges.values
        else:
            found = list(gauges)
            labels, values = list(map(_label_of, found)), list(map(_value_of, found))
        for place, (known, t_s, column) in enumerate(self._tables):
            if known == labels:
                t_s.append(now_s)
                column.extend(values)
                if place:  # the next sample is likely to be like this one
                    self._tables.insert(0, self._tables.pop(place))
                return
        numbers = self._numbers
        numbered = [numbers.setdefault(label, len(numbers)) for label in labels]
        if len(self._tables) < _TABLES:
            self._tables.insert(0, (labels, array("d", [now_s]), array("d", values)))
            return
        self._apart_numbers.extend(numbered)
        self._apart_values.extend(values)
        self._apart_samples.append((now_s, len(labels)))

    def blocks(self) -> list[TimelineBlock]:
        """Return each gauge over time, in the order in which they were first seen."""
        parts: dict[_Label, list[tuple[_Floats, _Floats]]] = {label: [] for label in self._numbers}
        for labels, t_s, values in self._tables:
            times = np.asarray(t_s)
            rows = np.ascontiguousarray(np.asarray(values).reshape(len(times), len(labels)).T)
            for label, row in zip(labels, rows, strict=True):
                parts[label].append((times, row))
        if self._apart_samples:
            sampled_s, counts = zip(*self._apart_samples, strict=True)
            numbers = np.asarray(self._apart_numbers)
            order = np.argsort(numbers, kind="stable")  # by label, and in time within each
            times, sorted_values = np.repeat(sampled_s, counts)[order], np.asarray(self._apart_values)[order]
            bounds = np.searchsorted(numbers[order], np.arange(len(parts) + 1))
            for found, start, end in zip(parts.values(), bounds[:-1], bounds[1:], strict=True):
                if end > start:
                    found.append((times[start:end], sorted_values[start:end]))
        return [TimelineBlock(label[0], label[1], *_in_order(label[2], found)) for label, found in parts.items()]


def _in_order(metric: str, parts: list[tuple[_Floats, _Floats]]) -> tuple[_Floats, dict[str, _Floats]]:
    """Return the times and the values of a gauge whose samples are in several places."""
    if len(parts) == 1:
        t_s, values = parts[0]
    else:
        t_s, values = np.concatenate([t_s for t_s, _ in parts]), np.concatenate([values for _, values in parts])
        order = np.argsort(t_s, kind="stable")
        t_s, values = t_s[order], values[order]
    return t_s, {metric: values}


def _column() -> array[float]:
    return array("d")
