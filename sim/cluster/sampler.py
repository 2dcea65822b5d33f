"""The timeline: what is sampled while a run goes on, and what is counted from its attempts afterwards.

Gauges that no record holds (queue at a replica, KV in use, debt) are sampled at a fixed interval. Rates and
in-flight counts follow exactly from the attempts, so they are computed once at the end instead of at every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np
import simpy
from numpy.typing import NDArray

from policies.api import Gauge
from sim.cluster.faults import Pool
from sim.cluster.node import Node
from sim.records import Outcome, RequestColumns, TimelineBlock

Floats = NDArray[np.float64]


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
        self._t_s: list[float] = []
        self._capacity: list[tuple[float, float]] = []
        self._replicas: list[list[tuple[float, float, float]]] = [[] for _ in nodes]
        self._gauges: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}

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
        self._capacity.append((capacity.slots, capacity.ready_replicas))
        for node, rows in zip(self._nodes, self._replicas, strict=True):
            replica = node.replica
            used = replica.kv_used_blocks_at(now_s) / max(1, replica.kv.total_blocks)
            rows.append((replica.running_count, replica.waiting_count, used))
        for scope, name, metric, value in self._read_gauges(now_s):
            times, values = self._gauges.setdefault((scope, name, metric), ([], []))
            times.append(now_s)
            values.append(value)
        if self._on_sample is not None:
            self._on_sample(now_s)

    def blocks(self, columns: RequestColumns, end_s: float) -> list[TimelineBlock]:
        """Return the whole timeline of the run."""
        t_s = np.asarray(self._t_s)
        capacity = np.asarray(self._capacity, dtype=np.float64)
        replicas = np.asarray(self._replicas, dtype=np.float64)  # (replica, sample, metric)
        counts = _Counts(columns, t_s, self._interval_s, end_s)
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


class _Counts:
    """Series that follow from the attempts: in flight at each sample, rates over the interval before it.

    Arrays have the shape (entitlement, sample). Within one request the gap between tokens changes only with the
    batch, so output is counted as one token at the first and the rest evenly until the end.
    """

    def __init__(self, columns: RequestColumns, t_s: Floats, interval_s: float, end_s: float) -> None:
        self._t_s = t_s
        self._shape = (len(columns.entitlements), len(t_s))
        self._key = np.asarray(columns.entitlement) * (len(t_s) + 1)
        outcome = np.asarray(columns.outcome)
        first_s = np.asarray(columns.first_token_s, dtype=np.float64)
        finish_s = np.asarray(columns.finish_s, dtype=np.float64)
        open_ = np.isnan(finish_s)
        stop_s = np.where(open_, end_s, finish_s)
        tokens = np.asarray(columns.output_tokens, dtype=np.float64)
        span_s = stop_s - first_s
        steady = (span_s > 0) & (tokens > 1)  # False where there was no first token
        rate = np.where(steady, (tokens - 1) / np.where(steady, span_s, 1.0), 0.0)
        sent = self._sample(np.asarray(columns.forwarded_s, dtype=np.float64))
        first, stop = self._sample(first_s), self._sample(stop_s)
        ended = self._sample(np.where(np.isnan(columns.forwarded_s), np.nan, finish_s))
        refused = self._sample(np.where(outcome == Outcome.REFUSED, finish_s, np.nan))
        admitted = self._until(sent)
        output = (
            self._until(first, np.where(steady, 1.0, tokens))
            + t_s * (self._until(first, rate) - self._until(stop, rate))
            - self._until(first, np.where(steady, rate * first_s, 0.0))
            + self._until(stop, rate * stop_s)
        )
        prompt = self._until(first, np.asarray(columns.prompt_tokens, dtype=np.float64))

        def per_s(total: Floats) -> Floats:
            return np.maximum(np.diff(total, axis=1, prepend=0.0), 0.0) / interval_s

        self._series = {
            "in_flight": admitted - self._until(ended),
            "admitted_per_s": per_s(admitted),
            "refused_per_s": per_s(self._until(refused)),
            "output_tokens_per_s": per_s(output),
            "tokens_per_s": per_s(output + prompt),
        }

    def of(self, entitlement: int | None) -> dict[str, Floats]:
        """Return the series of one entitlement, or of the pool."""
        if entitlement is None:
            return {metric: series.sum(axis=0) for metric, series in self._series.items()}
        return {metric: series[entitlement] for metric, series in self._series.items()}

    def _sample(self, at_s: Floats) -> NDArray[np.int64]:
        """Return the first sample at or after each time, as an index into (entitlement, sample + 1) flattened.

        The extra sample takes what comes after the last, and what never came (NaN).
        """
        return self._key + np.searchsorted(self._t_s, at_s, side="left")

    def _until(self, samples: NDArray[np.int64], weight: Floats | None = None) -> Floats:
        """Return how much happened up to and including each sample."""
        rows, width = self._shape
        counts = np.bincount(samples, weight, minlength=rows * (width + 1)).reshape(rows, width + 1)
        return np.asarray(counts[:, :width].cumsum(axis=1), dtype=np.float64)
