"""Intervals, paired differences and warm-up: what turns replications into evidence. scipy does the mathematics.

scipy is an extra and slow to import: it waits until something other than a plain interval is asked for.

Coverage of each interval, measured where the truth is known, is in docs/statistics.md.

References
----------
A. M. Law, "Simulation Modeling and Analysis", 5th ed., 2015, chapters 9 (output analysis) and 10 (comparison).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.analysis.student_t import quantile as student_t

Floats = NDArray[np.float64]

LEVEL = 0.95
MIN_BATCH = 100
"""A batch of fewer dependent observations is hardly independent of the next one."""


_ROUNDING = 1e-9  # relative; sums of the same terms in another order differ by less


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval; NaN ends where ``n`` values do not give one."""

    estimate: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more one set of replications measured than another.

    Attributes
    ----------
    absolute : the other's mean less the baseline's.
    relative : the same as a share of the baseline's mean.
    effect : Cohen's d; where ``paired``, of the differences (d_z), else with the pooled deviation (Hedges' g).
    p_value : of no difference, two-sided t-test.
    paired : whether both met the same arrivals, replication by replication.
    variance_ratio : variance of the difference against what independent runs would have; below 1, pairing helps.
    """

    absolute: Interval
    relative: Interval
    effect: float
    p_value: float
    paired: bool
    variance_ratio: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes no difference."""
        return self.absolute.low > 0 or self.absolute.high < 0


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the Student-t interval of the mean of independent values; NaN values are left out."""
    found = _known(values)
    if not len(found):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(found.mean())
    if len(found) < 2:
        return Interval(mean, math.nan, math.nan, len(found))
    return _around(mean, float(found.std(ddof=1)) / math.sqrt(len(found)), len(found) - 1, len(found), level)


def batch_means(series: ArrayLike, *, batches: int = 20, level: float = LEVEL) -> Interval:
    """Return the interval of a steady-state mean from one long run, by non-overlapping batches.

    Raises
    ------
    ValueError : the run is too short for batches of `MIN_BATCH`.
    """
    return mean_interval(_batches(series, batches).mean(axis=1), level)


def batch_quantile(series: ArrayLike, q: float, *, batches: int = 20, level: float = LEVEL) -> Interval:
    """Return the interval of a steady-state quantile from one long run, by non-overlapping batches.

    It is centred on the quantile of the whole run, which is less biased than the mean of the batches'; its width is
    that of the batches' quantiles.

    Raises
    ------
    ValueError : the run is too short for batches of `MIN_BATCH`, or for ten values beyond the quantile in each.
    """
    parts = _batches(series, batches)
    needed = math.ceil(10 / (1 - q) * (1 - _ROUNDING))  # 1 - 0.9 is a little less than 0.1
    if parts.shape[1] < needed:
        raise ValueError(
            f"{parts.size} values in {batches} batches leave {parts.shape[1]} each; "
            f"the quantile {q:g} needs {needed}: give a longer run or fewer batches"
        )
    each = np.quantile(parts, q, axis=1)
    centre = float(np.quantile(_known(series), q))
    return _around(centre, float(each.std(ddof=1)) / math.sqrt(batches), batches - 1, batches, level)


def section_quantile(replications: Sequence[ArrayLike], q: float, *, level: float = LEVEL) -> Interval:
    """Return the interval of a quantile of all requests, by sectioning.

    It is centred on the quantile of all requests together; its width is that of the replications' own quantiles. The
    mean of those would be centred too low: the extreme quantile of few requests is biased.

    References
    ----------
    S. Asmussen, P. W. Glynn, "Stochastic Simulation", Springer, 2007, section III.5a.
    """
    groups = [found for one in replications if len(found := _known(one))]
    if not groups:
        return Interval(math.nan, math.nan, math.nan, 0)
    n, centre = len(groups), float(np.quantile(np.concatenate(groups), q))
    each = np.asarray([np.quantile(one, q) for one in groups])
    error = float(np.sqrt(((each - centre) ** 2).sum() / (n - 1) / n)) if n > 1 else math.nan
    return _around(centre, error, n - 1, n, level)


def bootstrap_quantile(
    replications: Sequence[ArrayLike],
    q: float,
    *,
    level: float = LEVEL,
    resamples: int = 999,
    seed: int = 0,
) -> Interval:
    """Return the interval of a quantile of all requests, by resampling whole replications.

    Requests of one run depend on each other, so that resampling them would give intervals far too narrow; replications
    do not. Few replications give intervals that are too narrow still (docs/statistics.md).

    References
    ----------
    A. C. Davison, D. V. Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8 (clusters).
    """
    groups = [_known(one) for one in replications]
    groups = [one for one in groups if len(one)]
    n = len(groups)
    pooled = np.concatenate([np.empty(0), *groups])
    if n < 2:
        return Interval(float(np.quantile(pooled, q)) if len(pooled) else math.nan, math.nan, math.nan, n)
    order = np.argsort(pooled, kind="stable")
    values, owner = pooled[order], np.repeat(np.arange(n), [len(one) for one in groups])[order]

    def quantile(chosen: NDArray[np.int64]) -> float:
        weight = np.cumsum(np.bincount(chosen, minlength=n)[owner])
        return float(values[np.searchsorted(weight, q * weight[-1])])

    from scipy import stats

    found = stats.bootstrap(
        (np.arange(n),), quantile, vectorized=False, n_resamples=resamples, confidence_level=level,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(float(np.quantile(pooled, q)), float(found.low), float(found.high), n)


def paired_difference(baseline: ArrayLike, other: ArrayLike, level: float = LEVEL) -> Difference:
    """Return how two sets of replications differ that met the same arrivals, one by one.

    The relative difference is a ratio of means; its interval is that of the ratio estimator (Law, section 9.4.3; W. G.
    Cochran, "Sampling Techniques", 3rd ed., 1977, section 6.3).
    """
    a, b = np.asarray(baseline, dtype=np.float64), np.asarray(other, dtype=np.float64)
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both], b[both]
    b = np.where(np.abs(b - a) <= _ROUNDING * np.abs(a), a, b)
    n = len(a)
    absolute = mean_interval(b - a, level)
    if n < 2:
        return Difference(absolute, _relative(a, b, math.nan, 0, level), math.nan, math.nan, True, math.nan)
    spread = float((b - a).std(ddof=1))
    independent = float(a.var(ddof=1) + b.var(ddof=1))
    ratio = b.mean() / a.mean() if a.mean() else math.nan
    error = float((b - ratio * a).std(ddof=1)) / math.sqrt(n) / abs(a.mean()) if a.mean() else math.nan
    if spread:
        p_value = _two_sided(abs(absolute.estimate) / spread * math.sqrt(n), n - 1)
    else:
        p_value = float(absolute.estimate == 0)
    return Difference(
        absolute,
        _relative(a, b, error, n - 1, level),
        _effect(absolute.estimate, spread),
        p_value,
        True,
        spread**2 / independent if independent else math.nan,
    )


def unpaired_difference(baseline: ArrayLike, other: ArrayLike, level: float = LEVEL) -> Difference:
    """Return how two independent sets of replications differ, by Welch's t."""
    a, b = _known(baseline), _known(other)
    n = min(len(a), len(b))
    difference = float(b.mean() - a.mean()) if n else math.nan
    if n < 2:
        absolute = Interval(difference, math.nan, math.nan, n)
        return Difference(absolute, _relative(a, b, math.nan, 0, level), math.nan, math.nan, False, math.nan)
    va, vb = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    error = math.sqrt(va + vb)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)) if error else math.inf
    pooled = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2))
    small = 1 - 3 / (4 * (len(a) + len(b)) - 9)  # Hedges' correction
    mean = float(a.mean())
    ratio_error = math.sqrt(vb + (b.mean() / mean) ** 2 * va) / abs(mean) if mean else math.nan
    p_value = _two_sided(abs(difference) / error, freedom) if error else float(difference == 0)
    return Difference(
        _around(difference, error, freedom, n, level),
        _relative(a, b, ratio_error, freedom, level),
        small * _effect(difference, pooled),
        p_value,
        False,
        1.0,
    )


def mser5(series: ArrayLike) -> int | None:
    """Return how many first values of a run are warm-up, or None where the run is too short to say.

    The cut is where the standard error of what remains is least, over means of five values; a cut in the run's second
    half means that there is no steady state yet.

    References
    ----------
    K. P. White, M. J. Cobb, S. C. Spratt, "A comparison of five steady-state truncation heuristics for simulation",
    Winter Simulation Conference, 2000.
    """
    found = _known(series)
    means = found[: len(found) // 5 * 5].reshape(-1, 5).mean(axis=1)
    if len(means) < 10:
        return None
    if np.ptp(means) <= _ROUNDING * np.abs(means).max():
        return 0
    left = np.arange(len(means), 0, -1)
    total, squares = np.cumsum(means[::-1])[::-1], np.cumsum((means**2)[::-1])[::-1]
    error = (squares - total**2 / left) / left.astype(np.float64) ** 2
    cut = int(np.argmin(error[: len(means) - 5]))  # of the last few, by chance all alike, nothing can be said
    return None if cut > len(means) // 2 else 5 * cut


def replications_needed(values: ArrayLike, half_width: float, level: float = LEVEL) -> int:
    """Return about how many replications make the interval of the mean as narrow as asked.

    References
    ----------
    Law, section 9.4.1: the two-stage procedure, with the variance of the replications so far.
    """
    found = _known(values)
    deviation = float(found.std(ddof=1)) if len(found) > 1 else 0.0
    n = max(2, len(found))
    while n < 1_000_000 and student_t((1 + level) / 2, n - 1) * deviation / math.sqrt(n) > half_width:
        n = max(n + 1, int(n * 1.05))
    return n


def _two_sided(statistic: float, freedom: float) -> float:
    from scipy import stats

    return float(2 * stats.t.sf(statistic, freedom))


def _around(centre: float, error: float, freedom: float, n: int, level: float) -> Interval:
    if math.isnan(error) or freedom <= 0:
        return Interval(centre, math.nan, math.nan, n)
    half = student_t((1 + level) / 2, freedom) * error
    return Interval(centre, centre - half, centre + half, n)


def _relative(a: Floats, b: Floats, error: float, freedom: float, level: float) -> Interval:
    mean = float(a.mean()) if len(a) else math.nan
    if not len(b) or not mean:
        return Interval(math.nan, math.nan, math.nan, len(a))
    return _around(float(b.mean()) / mean - 1, error, freedom, len(a), level)


def _effect(difference: float, deviation: float) -> float:
    if deviation:
        return difference / deviation
    return math.copysign(math.inf, difference) if difference else 0.0


def _batches(series: ArrayLike, batches: int) -> Floats:
    found = _known(series)
    size = len(found) // batches
    if size < MIN_BATCH:
        raise ValueError(
            f"{len(found)} values do not fill {batches} batches of {MIN_BATCH}; give a longer run or replications"
        )
    return found[len(found) - size * batches :].reshape(batches, size)


def _known(values: ArrayLike) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    return found[~np.isnan(found)]
