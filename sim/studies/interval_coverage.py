"""How often the intervals cover the truth: on M/G/1 queues, where mean and quantiles are known exactly.

References
----------
L. Kleinrock, "Queueing Systems, Volume 1: Theory", Wiley, 1975, chapter 5: Pollaczek-Khinchine, and the exponential
sojourn time of M/M/1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.analysis.markdown_tables import markdown
from sim.analysis.statistics import (
    Interval,
    batch_means,
    batch_quantile,
    bootstrap_quantile,
    mean_interval,
    section_quantile,
)

Floats = NDArray[np.float64]
Method = Callable[[Sequence[Floats]], Interval]

LOAD = 0.7
WARM_UP = 500
PER_REPLICATION = 2_000
LONG_RUN = 60_000


@dataclass(frozen=True, slots=True)
class Law:
    """Service times with mean 1: a name, a sampler, and the second moment."""

    name: str
    draw: Callable[[np.random.Generator, int], Floats]
    second_moment: float


LAWS = (
    Law("M/D/1", lambda _, n: np.ones(n), 1.0),
    Law("M/M/1", lambda rng, n: rng.exponential(1.0, n), 2.0),
    Law("M/G/1, lognormal, cv 2", lambda rng, n: _lognormal(rng, n, 2.0), 5.0),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One interval's record.

    Attributes
    ----------
    covered : the share of experiments whose 95 % interval held the truth.
    width : the mean half-width as a share of the truth.
    bias : the mean error of the estimate as a share of the truth.
    """

    estimand: str
    method: str
    replications: int
    truth: float
    covered: float
    width: float
    bias: float


def coverage(experiments: int = 1000, seed: int = 0, replications: Sequence[int] = (5, 10, 30)) -> list[Row]:
    """Return the coverage of every interval: mean wait on each law, mean wait and P99 of sojourn on M/M/1."""
    rows: list[Row] = []
    for law in LAWS:
        wait_s = LOAD * law.second_moment / (2 * (1 - LOAD))
        rows += [
            _row(f"mean wait, {law.name}", "t, replications", law, n, wait_s, _mean_of_means, experiments, seed)
            for n in replications
        ]
        rows.append(_row(f"mean wait, {law.name}", "t, 20 batches", law, 1, wait_s, _batches, experiments, seed))
    mm1 = LAWS[1]
    p99_s = math.log(100) / (1 - LOAD)  # the sojourn time is exponential with rate 1 - load
    for n in replications:
        for method, find in _P99_METHODS:
            rows.append(_row("P99 sojourn, M/M/1", method, mm1, n, p99_s, find, experiments, seed, sojourn=True))
    rows.append(_row("P99 sojourn, M/M/1", "t, 20 batches", mm1, 1, p99_s, _batch_p99, experiments, seed, sojourn=True))
    return rows


def as_markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table."""
    heads = ("estimand", "interval", "replications", "truth", "covered", "half-width", "bias")
    body = [
        (row.estimand, row.method, "1 long run" if row.replications == 1 else str(row.replications),
         f"{row.truth:.3f}", f"{row.covered:.1%}", f"{row.width:.1%}", f"{row.bias:+.1%}")
        for row in rows
    ]  # fmt: skip
    return markdown(heads, body)


def _row(
    estimand: str, method: str, law: Law, n: int, truth: float, find: Method, experiments: int, seed: int,
    *, sojourn: bool = False,
) -> Row:  # fmt: skip
    found = [find(runs) for runs in _experiments(law, n, experiments, seed, sojourn=sojourn)]
    covered = float(np.mean([one.low <= truth <= one.high for one in found]))
    width = float(np.mean([one.half_width for one in found])) / truth
    bias = float(np.mean([one.estimate for one in found])) / truth - 1
    return Row(estimand, method, n, truth, covered, width, bias)


def _experiments(law: Law, n: int, experiments: int, seed: int, *, sojourn: bool) -> Iterator[list[Floats]]:
    size = LONG_RUN if n == 1 else PER_REPLICATION
    for experiment in range(experiments):
        rng = np.random.default_rng([seed, n, experiment])
        yield [path(law, rng, size, sojourn=sojourn) for _ in range(n)]


def path(law: Law, rng: np.random.Generator, size: int = PER_REPLICATION, *, sojourn: bool = False) -> Floats:
    """Return waits, or times in the system, of customers after the warm-up: Lindley's recursion, without a loop."""
    total = WARM_UP + size
    service = law.draw(rng, total)
    steps = service[:-1] - rng.exponential(1 / LOAD, total - 1)
    walk = np.concatenate([[0.0], np.cumsum(steps)])
    wait = walk - np.minimum.accumulate(walk)
    return (wait + service if sojourn else wait)[WARM_UP:]


def _mean_of_means(runs: Sequence[Floats]) -> Interval:
    return mean_interval([float(run.mean()) for run in runs])


def _mean_of_p99(runs: Sequence[Floats]) -> Interval:
    return mean_interval([float(np.quantile(run, 0.99)) for run in runs])


def _bootstrap(runs: Sequence[Floats]) -> Interval:
    return bootstrap_quantile(runs, 0.99, resamples=399)


def _sections(runs: Sequence[Floats]) -> Interval:
    return section_quantile(runs, 0.99)


_P99_METHODS: tuple[tuple[str, Method], ...] = (
    ("t, mean of the P99s", _mean_of_p99),
    ("t, sections", _sections),
    ("bootstrap", _bootstrap),
)


def _batches(runs: Sequence[Floats]) -> Interval:
    return batch_means(runs[0])


def _batch_p99(runs: Sequence[Floats]) -> Interval:
    return batch_quantile(runs[0], 0.99)


def _lognormal(rng: np.random.Generator, n: int, cv: float) -> Floats:
    variance = math.log(1 + cv**2)
    return rng.lognormal(-variance / 2, math.sqrt(variance), n)
