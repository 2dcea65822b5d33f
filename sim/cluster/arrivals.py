"""The arrivals of a simulated run: every workload's requests, brought to the gateway in order of time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

import numpy as np

from sim.cluster.agenda import Alarm
from sim.cluster.attempt import Attempt
from sim.cluster.clock import Clock
from sim.cluster.gateway import SimulatedGateway
from workloads.generate import WorkloadSpec
from workloads.requests import Demand, Prefixes

_CHUNK: Final = 10_000  # arrivals turned into Python numbers at a time, to bound memory
_next: Final = next  # as in `sim.cluster.agenda`
_Row = tuple[float, int, int, int, int, int]
"""Arrival, workload, number, prompt, output and asked tokens."""


class Arrivals:
    """Brings every workload's requests to the gateway, on one clock."""

    def __init__(
        self, env: Clock, workloads: Sequence[WorkloadSpec], demands: Sequence[Demand], gateway: SimulatedGateway, *,
        with_prefixes: bool, every_chunk: Callable[[], None] | None = None,
    ) -> None:
        self._agenda = env.agenda
        self._gateway = gateway
        self._names = [w.name for w in workloads]
        self._priorities = [w.priority for w in workloads]
        self._prefixes: Sequence[Prefixes | None] = [None] * len(demands)
        if with_prefixes:  # only a replica that keeps prefixes asks for them
            from workloads.prefix_chains import in_chains

            self._prefixes = in_chains([d.prefixes for d in demands])
        # A chain of zips, and no generator of rows: of all that, C makes each row.
        self._rows: Iterator[_Row] = chain.from_iterable(self._in_order(demands, every_chunk))
        self._alarm = Alarm(self._ring)
        self.left = sum(len(d) for d in demands)
        if self.left:
            self._next = next(self._rows)
            self._agenda.set(self._alarm, self._next[0])

    def _ring(self, _: Alarm) -> None:
        at_s, w, n, prompt_tokens, output_tokens, asked_tokens = self._next
        self.left -= 1
        if self.left:
            self._next = row = _next(self._rows)
            self._agenda.set(self._alarm, row[0])
        else:
            self._rows = iter(())  # lets the columns go
        priority = self._priorities[w]
        name = f"{self._names[w]}-{n}"
        attempt = Attempt(name, 1, w, priority, at_s, at_s, prompt_tokens, output_tokens, asked_tokens)
        prefixes = self._prefixes[w]
        if prefixes is not None:
            attempt.prefix = prefixes.of(n)
        self._gateway.arrive(attempt, at_s)

    @staticmethod
    def _in_order(
        demands: Sequence[Demand], every_chunk: Callable[[], None] | None
    ) -> Iterator[Iterable[_Row]]:
        """Yield, a chunk at a time, all rows by time; ties in the order of the workloads."""
        arrival_s = np.concatenate([d.arrival_s for d in demands])
        order = np.argsort(arrival_s, kind="stable")
        columns = (
            arrival_s,
            np.repeat(np.arange(len(demands)), [len(d) for d in demands]),
            np.concatenate([np.arange(len(d)) for d in demands]),
            np.concatenate([d.prompt_tokens for d in demands]),
            np.concatenate([d.output_tokens for d in demands]),
            np.concatenate([d.max_output_tokens for d in demands]),
        )
        for start in range(0, len(order), _CHUNK):
            if start and every_chunk is not None:
                every_chunk()
            part = order[start : start + _CHUNK]
            yield zip(*(column[part].tolist() for column in columns), strict=True)
