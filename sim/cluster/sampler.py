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
    """Series that follow from the attempts: in flight at each sample, rates over the interval before it."""

    def __init__(self, columns: RequestColumns, t_s: Floats, interval_s: float, end_s: float) -> None:
        self._t_s = t_s
        self._interval_s = interval_s
        self._entitlement = np.asarray(columns.entitlement)
        self._outcome = np.asarray(columns.outcome)
        self._arrival_s = np.asarray(columns.arrival_s, dtype=np.float64)
        self._forwarded_s = np.asarray(columns.forwarded_s, dtype=np.float64)
        self._first_s = np.asarray(columns.first_token_s, dtype=np.float64)
        finish_s = np.asarray(columns.finish_s, dtype=np.float64)
        self._end_s = np.where(np.isnan(finish_s), end_s, finish_s)
        self._open = np.isnan(finish_s)
        self._prompt = np.asarray(columns.prompt_tokens, dtype=np.float64)
        self._output = np.asarray(columns.output_tokens, dtype=np.float64)

    def of(self, entitlement: int | None) -> dict[str, Floats]:
        """Return the series of one entitlement, or of the pool."""
        mine = np.ones(len(self._entitlement), bool) if entitlement is None else self._entitlement == entitlement
        sent = mine & ~np.isnan(self._forwarded_s)
        refused = mine & (self._outcome == Outcome.REFUSED)
        begun = sent & ~np.isnan(self._first_s)
        ended = np.where(self._open, np.inf, self._end_s)
        in_flight = self._before(self._forwarded_s[sent]) - self._before(ended[sent])
        output = self._emitted(begun)
        prompt = self._before(self._first_s[begun], self._prompt[begun])
        return {
            "in_flight": in_flight,
            "admitted_per_s": self._rate(self._before(self._forwarded_s[sent])),
            "refused_per_s": self._rate(self._before(self._end_s[refused])),
            "output_tokens_per_s": self._rate(output),
            "tokens_per_s": self._rate(output + prompt),
        }

    def _before(self, at_s: Floats, weight: Floats | None = None) -> Floats:
        """Return how much happened up to and including each sample."""
        order = np.argsort(at_s, kind="stable")
        total = np.concatenate([[0.0], np.cumsum(np.ones(len(at_s)) if weight is None else weight[order])])
        return total[np.searchsorted(at_s[order], self._t_s, side="right")]

    def _emitted(self, begun: NDArray[np.bool_]) -> Floats:
        """Return output tokens up to each sample: one at the first token, the rest evenly until the end.

        Within one request the gap between tokens changes only with the batch, so evenly is near the truth.
        """
        start, stop, tokens = self._first_s[begun], self._end_s[begun], self._output[begun]
        steady = (stop > start) & (tokens > 1)
        rate = np.zeros(len(start))
        rate[steady] = (tokens[steady] - 1) / (stop[steady] - start[steady])
        first = self._before(start, np.where(steady, 1.0, tokens))
        at = self._t_s
        # The sum of rate*(t - start) over what has begun, less the same over what has ended.
        running = at * self._before(start, rate) - self._before(start, rate * start)
        ended = at * self._before(stop, rate) - self._before(stop, rate * stop)
        return first + running - ended

    def _rate(self, total: Floats) -> Floats:
        steps = np.diff(total, prepend=0.0)
        return np.maximum(steps, 0.0) / self._interval_s
