"""The timeline: what is sampled while a run goes on, and what is counted from its attempts afterwards.

Gauges that no record holds (queue at a replica, KV in use, debt) are sampled at a fixed interval. Rates and
in-flight counts follow exactly from the attempts, so they are computed once at the end instead of at every sample.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np
import simpy

from policies.api import Gauge
from sim.cluster.faults import Pool
from sim.cluster.node import Node
from sim.records.attempt_series import AttemptSeries
from sim.records.schema import RequestColumns, TimelineBlock


class Sampler:
    """Samples gauges every ``interval_s`` of simulated time, at 0 first."""

    def __init__(
        self,
        env: simpy.Environment,
        gauges: Callable[[float], Iterable[Gauge]],
        pool: Pool,
        nodes: Sequence[Node],
        interval_s: float,
        on_sample: Callable[[float], None] | None = None,
    ) -> None:
        self._env = env
        self._read_gauges = gauges
        self._pool = pool
        self._nodes = nodes
        self._interval_s = interval_s
        self._on_sample = on_sample
        # Arrays of numbers, not lists of objects: long runs of many entitlements take millions of samples.
        self._t_s = _column()
        self._capacity = _column()
        self._replicas = [_column() for _ in nodes]
        self._gauges: dict[tuple[str, str, str], tuple[array[float], array[float]]] = {}

    def run(self) -> Generator[simpy.Event, None, None]:
        """Sample until the run ends."""
        samples = 0
        while True:
            self._sample()
            samples += 1
            yield self._env.timeout(max(0.0, samples * self._interval_s - self._env.now))

    def _sample(self) -> None:
        now_s = self._env.now
        self._t_s.append(now_s)
        capacity = self._pool.capacity()
        self._capacity.extend((capacity.slots, capacity.ready_replicas))
        for node, rows in zip(self._nodes, self._replicas, strict=True):
            replica = node.replica
            used = replica.kv_used_blocks_at(now_s) / max(1, replica.kv_total_blocks)
            rows.extend((replica.running_count, replica.waiting_count, used))
        gauges = self._gauges
        for scope, name, metric, value in self._read_gauges(now_s):
            series = gauges.get((scope, name, metric))
            if series is None:
                series = gauges[scope, name, metric] = (_column(), _column())
            series[0].append(now_s)
            series[1].append(value)
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
        for (scope, name, metric), (times, values) in self._gauges.items():
            blocks.append(TimelineBlock(scope, name, np.asarray(times), {metric: np.asarray(values)}))
        return blocks


def _column() -> array[float]:
    return array("d")
