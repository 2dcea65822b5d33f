"""Samples what servers say of themselves while a run goes on: vLLM's metrics, and a gateway's admin state."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from sim.errors import RunError
from sim.live.gateway.headers import bearer
from sim.live.replicas.engine_metrics import read_gauges
from sim.records.schema import TimelineBlock

Floats = NDArray[np.float64]

_METRICS = ("running", "waiting", "kv_used_fraction")
NOT_AS_AGREED = (ValueError, LookupError, TypeError, RecursionError, OverflowError)
"""What reading JSON of another shape than agreed raises."""
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


@dataclass(slots=True, eq=False)
class Samples:
    """Gauges by scope, name and metric: times and values."""

    times_s: list[float] = field(default_factory=list)
    gauges: dict[tuple[str, str, str], tuple[list[float], list[float]]] = field(default_factory=dict)

    def add(self, at_s: float, scope: str, name: str, metric: str, value: float) -> None:
        """Take note of one value."""
        times, values = self.gauges.setdefault((scope, name, metric), ([], []))
        times.append(at_s)
        values.append(value)

    def on(self, times_s: Floats, key: tuple[str, str, str]) -> Floats | None:
        """Return a gauge at the given times, NaN where it was not sampled; None where it never was."""
        if key not in self.gauges:
            return None
        sampled = dict(zip(*self.gauges[key], strict=True))
        return np.asarray([sampled.get(at_s, math.nan) for at_s in times_s.tolist()])


class Watch:
    """Looks every ``interval_s``, and stamps what it finds with the time at which it was due.

    Parameters
    ----------
    engines : URLs of metrics pages, one a replica.
    state : URL of a gateway's state; None where there is none.
    token : for the gateway's state, where it asks for one.

    Attributes
    ----------
    missed : how many looks failed or came too late to be stamped honestly.
    """

    def __init__(
        self, engines: Sequence[str], state: str | None, *, interval_s: float, token: str | None = None
    ) -> None:
        self._engines = engines
        self._state = state
        self._interval_s = interval_s
        self._headers = bearer(token)
        self.samples = Samples()
        self.missed = 0

    async def run(self, origin_s: float, until_s: float = math.inf) -> None:
        """Look until cancelled, or until the run's time ``until_s``."""
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            for number in range(2**31):
                due_s = number * self._interval_s
                if due_s > until_s:
                    return
                await asyncio.sleep(origin_s + due_s - loop.time())
                if loop.time() - origin_s - due_s > self._interval_s / 2:
                    self.missed += 1  # the look before took this long
                    continue
                self.samples.times_s.append(due_s)
                await asyncio.gather(*self._looks(session, due_s))

    def _looks(self, session: aiohttp.ClientSession, due_s: float) -> Iterable[Any]:
        yield from (self._engine(session, url, i, due_s) for i, url in enumerate(self._engines))
        if self._state is not None:
            yield self._gateway(session, self._state, due_s)

    async def _engine(self, session: aiohttp.ClientSession, url: str, replica: int, due_s: float) -> None:
        try:
            async with session.get(url) as answer:
                answer.raise_for_status()
                found = read_gauges((await answer.read()).decode(errors="replace"))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            self.missed += 1
            return
        for metric, value in zip(_METRICS, found or (), strict=False):  # a page that is no vLLM's has none
            self.samples.add(due_s, "replica", str(replica), metric, value)

    async def _gateway(self, session: aiohttp.ClientSession, url: str, due_s: float) -> None:
        try:
            async with session.get(url, headers=self._headers) as answer:
                answer.raise_for_status()
                state = json.loads(await answer.read())
            gauges = [
                (str(scope), str(name), str(metric), math.nan if value is None else float(value))
                for scope, name, metric, value in state["gauges"]
            ]
        except (aiohttp.ClientError, TimeoutError, OSError, *NOT_AS_AGREED):
            self.missed += 1
            return
        for gauge in gauges:
            self.samples.add(due_s, *gauge)


async def clock_ahead_s(state: str, token: str | None = None) -> float:
    """Return what to add to the loop's time for the gateway's clock, as exactly as a request shows it.

    Raises
    ------
    RunError : it does not answer.
    """
    loop = asyncio.get_running_loop()
    headers = bearer(token)
    best: tuple[float, float] | None = None
    try:
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            for _ in range(5):
                asked_s = loop.time()
                async with session.get(state, headers=headers) as answer:
                    shown_s = float(json.loads(await answer.read())["now_s"])
                took_s = loop.time() - asked_s
                if best is None or took_s < best[0]:  # the quickest answer is the least old
                    best = took_s, shown_s - (asked_s + took_s / 2)
                if not math.isfinite(shown_s):
                    raise ValueError("no time")
    except (aiohttp.ClientError, TimeoutError, OSError, *NOT_AS_AGREED) as error:
        raise RunError(f"{state}: does not show the gateway's clock ({error or type(error).__name__})") from None
    assert best is not None
    return best[1]


def timeline(
    samples: Samples, *, engines: int, capacity_slots: Floats, series: Mapping[str | None, Mapping[str, Floats]]
) -> list[TimelineBlock]:
    """Return the timeline: what was sampled, and what follows from the attempts.

    Parameters
    ----------
    engines : how many replicas were looked at; where none was, the gateway's reports of them stand in.
    capacity_slots : what the scenario says the pool had at each sample, where no gateway says it.
    series : by entitlement, None for the pool, as `sim.records.attempt_series` makes them. What the gateway says of
        requests in flight goes before them.
    """
    t_s = np.asarray(samples.times_s)
    replicas = sorted({name for scope, name, _ in samples.gauges if scope == "replica"}, key=str)
    nothing = np.full(len(t_s), math.nan)
    rows = {
        metric: [samples.on(t_s, ("replica", name, metric)) for name in replicas]
        for metric in _METRICS
    }
    found = {metric: [row for row in each if row is not None] for metric, each in rows.items()}
    pool: dict[str, Floats] = {
        "running": np.sum(found["running"], axis=0) if found["running"] else nothing,
        "waiting": np.sum(found["waiting"], axis=0) if found["waiting"] else nothing,
        "kv_used_fraction": np.mean(found["kv_used_fraction"], axis=0) if found["kv_used_fraction"] else nothing,
        "capacity_slots": capacity_slots,
        "ready_replicas": np.full(len(t_s), float(max(engines, len(replicas), 1))),
        **series[None],
    }
    for (scope, _, metric) in samples.gauges:
        said = samples.on(t_s, (scope, "pool", metric)) if scope == "pool" else None
        if said is not None:
            pool[metric] = said
    blocks = [TimelineBlock("pool", "pool", t_s, pool)]
    if len(replicas) > 1:
        for name in replicas:
            own = {m: v for m in rows if (v := samples.on(t_s, ("replica", name, m))) is not None}
            blocks.append(TimelineBlock("replica", name, t_s, own))
    for entitlement, counted in series.items():
        if entitlement is None:
            continue
        metrics = dict(counted)
        for (scope, name, metric) in samples.gauges:
            said = samples.on(t_s, (scope, name, metric)) if (scope, name) == ("entitlement", entitlement) else None
            if said is not None:
                metrics[metric] = said
        blocks.append(TimelineBlock("entitlement", entitlement, t_s, metrics))
    return blocks
