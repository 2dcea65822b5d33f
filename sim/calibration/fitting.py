"""Least squares that say what they do not know: robust to outliers, with intervals, and refusing terms without data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize

from sim.errors import InputError

Floats = NDArray[np.float64]

_FIRST_STEPS = (0.5, -0.3, 0.1, -0.03)  # relative, of the searches one after the other
_STARTS = 10  # places for each term, within a factor of three of its usual size, of which the best is the first
_SEARCHES = 3  # that begin in different places; the best goes on
_FOLDS = 5
_T_OF_FOLDS = 2.78  # Student's t for 95 % and four degrees of freedom
_LEAST_SPREAD = 1e-3  # no latency is measured better than this, relative


@dataclass(frozen=True, slots=True)
class Term:
    """A coefficient to find.

    Attributes
    ----------
    start : a value of its usual size, where the search begins and which scales it.
    measure : the measurement that would pin it down, for the refusal.
    least, most : bounds.
    """

    name: str
    start: float
    measure: str
    least: float = 0.0
    most: float = np.inf


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients by name, their 95 % intervals, and the residuals at them."""

    values: dict[str, float]
    confidence: dict[str, tuple[float, float]]
    residuals: Floats


class UnidentifiedError(InputError):
    """Measurements that do not pin down ``terms``."""

    def __init__(self, place: str, problem: str, fix: str, terms: Sequence[str] = ()) -> None:
        super().__init__(place, problem, fix)
        self.terms = tuple(terms)


def fit(
    residuals: Callable[[dict[str, float]], Floats],
    terms: Sequence[Term],
    *,
    place: str,
    robust_at: float,
    folds: NDArray[np.int64] | None = None,
) -> Fit:
    """Return the coefficients that make ``residuals`` small.

    Parameters
    ----------
    residuals : of the coefficients; relative errors, so that fast and slow requests count alike.
    place : what to call the data in a refusal.
    robust_at : residuals beyond it count linearly instead of squared.
    folds : which of five parts a residual belongs to; left out, fifths in order. The intervals are those of a
        jackknife over the parts, because neighbours in a queue are not independent measurements.

    Raises
    ------
    UnidentifiedError : terms that the data cannot tell from the others: intervals wider than ten times their size.
    """
    scales = np.array([term.start for term in terms])
    bounds = np.array([t.least for t in terms]) / scales, np.array([t.most for t in terms]) / scales

    def scaled(x: Floats) -> Floats:
        return residuals({term.name: float(v) for term, v in zip(terms, x * scales, strict=True)})

    start = np.clip(np.ones(len(terms)), *bounds)
    count = scaled(start).size
    if count <= len(terms):
        raise InputError(place, f"{count} measurements for {len(terms)} terms", "give more measurements or fewer terms")
    everything = np.ones(count, bool)
    scatter = np.exp(np.random.default_rng(0).uniform(-np.log(3), np.log(3), (_STARTS * len(terms), len(terms))))
    spots = [start, *(np.clip(spot, *bounds) for spot in scatter)]
    search = _Search(scaled, bounds, robust_at)
    # The usual values and the best places beside them: where one search is caught by a jump, another goes around it.
    begin = [start, *sorted(spots[1:], key=lambda spot: search.cost(spot, everything))[: _SEARCHES - 1]]
    found = [search.better(spot, _FIRST_STEPS[0], everything) for spot in begin]
    x = min(found, key=lambda spot: search.cost(spot, everything))
    for size in _FIRST_STEPS[1:]:
        x = search.better(x, size, everything)
    half = _curvature(scaled, x, bounds)
    open_ = [term for i, term in enumerate(terms) if half[i] > 10 * max(abs(x[i]), 1.0)]
    if open_:
        names = " and ".join(term.name for term in open_)
        measures = ", ".join(dict.fromkeys(term.measure for term in open_))
        if len(open_) == 1:
            raise UnidentifiedError(place, f"does not identify {names}", f"leave it out, or add {measures}", [names])
        problem = f"does not identify {names}, which it cannot tell apart"
        fix = f"leave all but one out, or add {measures}"
        raise UnidentifiedError(place, problem, fix, [term.name for term in open_])
    parts = np.arange(count) * _FOLDS // count if folds is None else folds
    without = np.array([search.better(x, 0.1, parts != part) for part in np.unique(parts)])
    deviation = np.sqrt((_FOLDS - 1) / _FOLDS * np.sum((without - without.mean(axis=0)) ** 2, axis=0))
    half = np.maximum(half, _T_OF_FOLDS * deviation)
    low, high = np.maximum(x - half, bounds[0]) * scales, np.minimum(x + half, bounds[1]) * scales
    return Fit(
        {term.name: float(v) for term, v in zip(terms, x * scales, strict=True)},
        {term.name: (float(a), float(b)) for term, a, b in zip(terms, low, high, strict=True)},
        scaled(x),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """The search for coefficients.

    Simulated latencies jump where a request slips from one iteration into the next, so slopes mislead: a search
    without them finds the way around the jumps, and slopes over wide steps go down from where it ends.
    """

    residuals: Callable[[Floats], Floats]
    bounds: tuple[Floats, Floats]
    robust_at: float

    def cost(self, x: Floats, used: NDArray[np.bool_]) -> float:
        """Return the robust sum of squares, and what ``x`` is out of bounds."""
        inside = np.clip(x, *self.bounds)
        z = (self.residuals(inside)[used] / self.robust_at) ** 2
        return float(np.sum(np.sqrt(1 + z) - 1)) + float(np.sum(np.abs(x - inside)))

    def better(self, x: Floats, size: float, used: NDArray[np.bool_]) -> Floats:
        """Return coefficients of less cost, near ``x`` at first and as far as it takes."""
        steps = np.eye(len(x)) * size * np.maximum(np.abs(x), 0.3)
        found = minimize(
            self.cost,
            x,
            args=(used,),
            method="Nelder-Mead",
            options={"xatol": 1e-4, "fatol": 1e-6, "maxfev": 30 * len(x), "initial_simplex": np.vstack([x, x + steps])},
        )
        x = np.clip(found.x, *self.bounds)

        def used_residuals(at: Floats) -> Floats:
            return self.residuals(at)[used]

        slid = least_squares(
            used_residuals,
            x,
            bounds=self.bounds,
            loss="soft_l1",
            f_scale=self.robust_at,
            diff_step=np.full(len(x), max(abs(size) / 5, 0.01)),
            x_scale=np.maximum(np.abs(x), 0.1),
            max_nfev=15,
        ).x
        return np.asarray(slid, float) if self.cost(slid, used) < self.cost(x, used) else x


def _curvature(residuals: Callable[[Floats], Floats], x: Floats, bounds: tuple[Floats, Floats]) -> Floats:
    """Return half the width of 95 % intervals from slopes: enormous where data cannot tell terms apart."""
    spread = max(float(np.median(np.abs(residuals(x)))) / 0.6745, _LEAST_SPREAD)
    columns = []
    for i in range(len(x)):
        low, high = x.copy(), x.copy()
        width = 0.1 * max(abs(x[i]), 0.1)
        low[i], high[i] = max(x[i] - width, bounds[0][i]), min(x[i] + width, bounds[1][i])
        columns.append((residuals(high) - residuals(low)) / (high[i] - low[i]))
    _, singular, directions = np.linalg.svd(np.column_stack(columns), full_matrices=False)
    scatter = np.sum((directions.T / np.maximum(singular, 1e-12)) ** 2, axis=1)
    return np.asarray(1.96 * spread * np.sqrt(scatter))
