"""How often the intervals that ``--until`` stops at cover the truth: on M/G/1 queues, by the rule of the command."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sim.analysis.markdown_tables import markdown
from sim.analysis.statistics import mean_interval
from sim.experiments.until import FIRST, Target, look, next_count
from sim.studies.interval_coverage import LAWS, LOAD, Floats, Law, path

MOST = 1_000
_BLOCK = 50  # replications drawn at a time


@dataclass(frozen=True, slots=True)
class Question:
    """What is estimated, how narrowly, and how many replications there are at the first look."""

    estimand: str
    law: Law
    truth: float
    measure: Callable[[Floats], float]
    sojourn: bool
    half_width: float
    first: int = FIRST


@dataclass(frozen=True, slots=True)
class Row:
    """One rule's record.

    Attributes
    ----------
    replications : at the end, mean over experiments, and the 5th and 95th percentile.
    covered : the share of experiments whose 95 % interval held the truth.
    fixed : the same with that mean number of replications in every experiment, so without looking.
    bias : the mean error of the estimate as a share of the truth.
    """

    asked: Question
    replications: tuple[float, float, float]
    covered: float
    fixed: float
    bias: float


def _p99(run: Floats) -> float:
    return float(np.quantile(run, 0.99))


def _mean(run: Floats) -> float:
    return float(run.mean())


def _wait_s(law: Law) -> float:
    return LOAD * law.second_moment / (2 * (1 - LOAD))


def questions() -> list[Question]:
    """Return what is measured: three laws, two widths, several first looks, and a tail."""
    md1, mm1, mg1 = LAWS
    asked = [
        Question(f"mean wait, {law.name}", law, _wait_s(law), _mean, False, width)
        for law, width in ((md1, 0.05), (mm1, 0.05), (mg1, 0.1))
    ]
    asked += [
        Question(f"mean wait, {mm1.name}", mm1, _wait_s(mm1), _mean, False, 0.1, first) for first in (2, 3, 5, FIRST)
    ]
    asked.append(Question(f"P99 sojourn, {mm1.name}", mm1, math.log(100) / (1 - LOAD), _p99, True, 0.1))
    return asked


def coverage_until(experiments: int = 1000, seed: int = 0, asked: Sequence[Question] | None = None) -> list[Row]:
    """Return the coverage of each question's interval at the end of its sequence."""
    return [_row(one, experiments, seed) for one in (questions() if asked is None else asked)]


def as_markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table."""
    heads = ("estimand", "asked", "first look at", "replications (5-95 %)", "covered", "same number, fixed", "bias")
    body = [
        (row.asked.estimand, f"{row.asked.half_width:.0%}", str(row.asked.first),
         f"{row.replications[0]:.0f} ({row.replications[1]:.0f}-{row.replications[2]:.0f})",
         f"{row.covered:.1%}", f"{row.fixed:.1%}", f"{row.bias:+.1%}")
        for row in rows
    ]  # fmt: skip
    return markdown(heads, body)


def _row(asked: Question, experiments: int, seed: int) -> Row:
    target = Target("all", "wait", asked.half_width, relative=True)
    runs = [_Replications(asked, np.random.default_rng([seed, experiment])) for experiment in range(experiments)]
    ends = np.asarray([_end(one, asked.first, target) for one in runs])
    typical = max(2, round(float(ends.mean())))
    found = [mean_interval(one.first(int(n))) for one, n in zip(runs, ends, strict=True)]
    fixed = [mean_interval(one.first(typical)) for one in runs]
    return Row(
        asked,
        (float(ends.mean()), float(np.quantile(ends, 0.05)), float(np.quantile(ends, 0.95))),
        float(np.mean([one.low <= asked.truth <= one.high for one in found])),
        float(np.mean([one.low <= asked.truth <= one.high for one in fixed])),
        float(np.mean([one.estimate for one in found])) / asked.truth - 1,
    )


def _end(one: _Replications, first: int, target: Target) -> int:
    """Return how many replications the rule of `sweep_until` ends with."""
    n = first
    while True:
        needed, width = look(one.first(n), target)
        if width <= 1 or n >= MOST:
            return n
        n = next_count(n, needed, MOST)


class _Replications:
    """An experiment's replications, drawn when they are asked for."""

    def __init__(self, asked: Question, rng: np.random.Generator) -> None:
        self._asked, self._rng = asked, rng
        self._values = np.empty(0)

    def first(self, n: int) -> Floats:
        asked = self._asked
        while len(self._values) < n:
            more = [asked.measure(path(asked.law, self._rng, sojourn=asked.sojourn)) for _ in range(_BLOCK)]
            self._values = np.concatenate([self._values, more])
        return self._values[:n]
