"""How evenly a service is shared, and how soon a controller gets there. docs/metrics.md has every definition by symbol.

Plain numpy on a tenant's total or on one value per window; where the numbers come from is `sim.analysis.service`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def max_min_shares(total: float, demand: ArrayLike, weight: ArrayLike) -> Floats:
    """Return F, the weighted max-min fair division of ``total``: nobody gets more than its demand.

    Tenants take in proportion to their weights; what one does not want goes to the others, in the same proportion.
    """
    wants, weights = np.asarray(demand, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    shares = np.zeros(len(wants))
    hungry = (wants > 0) & (weights > 0)
    left = min(float(total), float(wants[hungry].sum()))
    while hungry.any() and left > 0:
        offer = left * weights / weights[hungry].sum()
        full = hungry & (wants <= offer)
        if not full.any():
            shares[hungry] = offer[hungry]
            break
        shares[full] = wants[full]
        left -= float(wants[full].sum())
        hungry &= ~full
    return shares


def jain(x: ArrayLike) -> float:
    """Return (sum x)^2 / (n sum x^2): 1 where all are equal, 1/n where one has everything; NaN of nothing.

    References
    ----------
    R. Jain, D. Chiu, W. Hawe, "A quantitative measure of fairness and discrimination", DEC-TR-301, 1984.
    """
    values = np.asarray(x, dtype=np.float64)
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares > 0 else math.nan


def gini(x: ArrayLike) -> float:
    """Return sum_ij |x_i - x_j| / (2 n^2 mean x): 0 where all are equal; NaN of nothing."""
    values = np.sort(np.asarray(x, dtype=np.float64))
    n, total = len(values), float(values.sum())
    if total <= 0:
        return math.nan
    # Sorted, each pair's difference counts its place: sum_ij |x_i - x_j| = 2 sum_i (2i - n + 1) x_i, i from 0.
    found = float(((2 * np.arange(n) - n + 1) * values).sum()) / (n * total)
    return found if found > 1e-12 else 0.0  # equal numbers may leave a rounding


def max_min_gap(x: ArrayLike) -> float:
    """Return max x - min x; NaN of nothing."""
    values = np.asarray(x, dtype=np.float64)
    return float(values.max() - values.min()) if len(values) else math.nan


def min_max_ratio(x: ArrayLike) -> float:
    """Return min x / max x; NaN of nothing, or where nobody has anything."""
    values = np.asarray(x, dtype=np.float64)
    return float(values.min() / values.max()) if len(values) and values.max() > 0 else math.nan


def service_difference(served: ArrayLike, requested: ArrayLike) -> Floats:
    """Return D of each window: sum_i min(max_j s_j - s_i, |r_i - s_i|), of rows of tenants and columns of windows.

    Only demand that was not met counts: who asked for little and got it adds nothing, however much others got.

    References
    ----------
    Y. Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, and its artifact.
    """
    s, r = np.asarray(served, dtype=np.float64), np.asarray(requested, dtype=np.float64)
    if not s.size:
        return np.zeros(s.shape[1] if s.ndim == 2 else 0)
    each: Floats = np.minimum(s.max(axis=0) - s, np.abs(r - s))
    return np.asarray(each.sum(axis=0), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Convergence:
    """How a value came to its target after a change.

    Attributes
    ----------
    reached_s : from the change until it is within the band for the whole hold time; NaN where it never is.
    settled_s : from the change until it is within the band for good; NaN where it is not at the end.
    overshoot : how far it went beyond the target, seen from where it began, as a share of the target; 0 for not at all.
    """

    reached_s: float
    settled_s: float
    overshoot: float


def convergence(
    t_s: ArrayLike, value: ArrayLike, target: ArrayLike, *, changed_s: float, band: float = 0.1, hold_s: float = 30.0
) -> Convergence:
    """Return how soon ``|value - target| / target <= band`` holds from ``changed_s`` on.

    Parameters
    ----------
    t_s : when each value begins to be true; it is true until the next. All values from ``changed_s`` on count.
    target : one number, or one for each value; where it is 0 or NaN there is nothing to converge to.
    """
    times, values = np.asarray(t_s, dtype=np.float64), np.asarray(value, dtype=np.float64)
    targets = np.broadcast_to(np.asarray(target, dtype=np.float64), values.shape)
    after = (times >= changed_s) & (targets > 0) & ~np.isnan(values)
    times, error = times[after], (values[after] - targets[after]) / targets[after]
    if not len(times):
        return Convergence(math.nan, math.nan, math.nan)
    inside = np.abs(error) <= band + 1e-12
    # Where a stretch within the band begins, and where it ends.
    begins = np.flatnonzero(inside & ~np.concatenate([[False], inside[:-1]]))
    ends = np.flatnonzero(inside & ~np.concatenate([inside[1:], [False]]))
    step_s = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    lasts_s = times[ends] + step_s - times[begins]
    held = begins[lasts_s >= hold_s - 1e-9]
    reached_s = float(times[held[0]]) - changed_s if len(held) else math.nan
    settled_s = float(times[begins[-1]]) - changed_s if inside[-1] else math.nan
    beyond = -error if error[0] > 0 else error  # beyond the target is the side away from where it began
    return Convergence(reached_s, settled_s, max(0.0, float(beyond.max())))


def isolation(shared: ArrayLike, alone: ArrayLike, q: float | None = None) -> float:
    """Return rho: the mean (or the quantile ``q``) of latency shared over that of latency alone; NaN of nothing.

    References
    ----------
    K. Mahajan et al., "Themis: Fair and Efficient GPU Cluster Scheduling", NSDI 2020 (finish-time fairness).
    """
    a, b = np.asarray(shared, dtype=np.float64), np.asarray(alone, dtype=np.float64)
    if not len(a) or not len(b):
        return math.nan
    over, under = (float(one.mean() if q is None else np.quantile(one, q)) for one in (a, b))
    return over / under if under > 0 else math.nan
