"""Arrivals that come in bursts: gaps of another spread than Poisson's, or a rate that switches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from workloads.points import LEAST_RATE_PER_S, cut, points, stretched
from workloads.requests import Floats

_RATE = {"ge": LEAST_RATE_PER_S, "description": "give requests per second, e.g. 4.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gamma:
    """Independent gamma gaps of mean 1/rate and coefficient of variation ``cv``: above 1 they come in bursts.

    The first gap is the time left of one already under way (the stationary residual: a uniform share of a
    length-biased gap), which keeps the rate exact in short windows too.

    References
    ----------
    D. R. Cox, "Renewal Theory", Methuen, 1962, ch. 5 (equilibrium renewal process).
    """

    kind: Literal["gamma"] = "gamma"
    rate_per_s: float = field(metadata=_RATE)
    cv: float = field(
        metadata={
            "gt": 0,
            "le": 100,
            "description": "give the coefficient of variation of the gaps, e.g. 1 as Poisson, 4 for bursts",
        }
    )

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """See `workloads.arrivals.Arrivals`."""
        shape = self.cv**-2
        scale_s = 1.0 / (shape * self.rate_per_s)
        first_s = from_s + rng.random() * rng.gamma(shape + 1.0, scale_s)
        found = points(first_s, lambda n: rng.gamma(shape, scale_s, n), 1.0 / self.rate_per_s, until_s, limit)
        return cut(found, until_s, limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weibull:
    """Independent Weibull gaps of mean 1/rate and coefficient of variation ``cv``.

    At the same mean and ``cv`` above 1 its shortest gaps are less extreme than those of a gamma law. The first gap is
    the time left of one already under way, as in `Gamma`.
    """

    kind: Literal["weibull"] = "weibull"
    rate_per_s: float = field(metadata=_RATE)
    cv: float = field(
        metadata={
            "ge": 0.01,
            "le": 100,
            "description": "give the coefficient of variation of the gaps, e.g. 1 as Poisson, 4 for bursts",
        }
    )

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """See `workloads.arrivals.Arrivals`."""
        shape = weibull_shape(self.cv)
        scale_s = 1.0 / (self.rate_per_s * math.gamma(1 + 1 / shape))
        # A length-biased gap has x f(x) for density: with x = scale * e^(1/shape), e is gamma of 1 + 1/shape.
        first_s = from_s + rng.random() * scale_s * rng.gamma(1 + 1 / shape) ** (1 / shape)
        found = points(first_s, lambda n: scale_s * rng.weibull(shape, n), 1.0 / self.rate_per_s, until_s, limit)
        return cut(found, until_s, limit)


def weibull_shape(cv: float) -> float:
    """Return the shape of the Weibull law with this coefficient of variation, which falls as the shape grows."""
    low, high = 0.05, 200.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        ratio = math.exp(math.lgamma(1 + 2 / middle) - 2 * math.lgamma(1 + 1 / middle))
        low, high = (middle, high) if math.sqrt(max(0.0, ratio - 1)) > cv else (low, middle)
    return middle


@dataclass(frozen=True, slots=True, kw_only=True)
class OnOff:
    """Poisson arrivals whose rate switches between two values after exponential times.

    The mean rate is (rate_on * mean_on + rate_off * mean_off) / (mean_on + mean_off). The window opens in an on period
    with the long-run probability mean_on / (mean_on + mean_off).
    """

    kind: Literal["on-off"] = "on-off"
    rate_on_per_s: float = field(metadata=_RATE)
    rate_off_per_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give requests per second between the bursts, e.g. 0"}
    )
    mean_on_s: float = field(metadata={"gt": 0, "description": "give the mean length of a burst in seconds, e.g. 10"})
    mean_off_s: float = field(
        metadata={"gt": 0, "description": "give the mean time between bursts in seconds, e.g. 30"}
    )

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """See `workloads.arrivals.Arrivals`.

        A unit-rate Poisson process is stretched so that its k-th point falls where the expected number of arrivals
        reaches it (time change). Periods and points have a stream each, so neither moves the other's draws.
        """
        of_periods, of_points = rng.spawn(2)
        if from_s >= until_s:
            return np.empty(0)
        mean_s = (self.mean_on_s, self.mean_off_s)
        rate_per_s = (self.rate_on_per_s, self.rate_off_per_s)
        start = 0 if of_periods.random() * sum(mean_s) < mean_s[0] else 1
        means_s = np.array([mean_s[1 - start], mean_s[start]])  # in order, after the first period
        ends_s = points(
            from_s + of_periods.exponential(mean_s[start]),
            # The caller asks for even numbers only, so a draw always ends with the kind of period that began it.
            lambda n: (of_periods.standard_exponential((n // 2, 2)) * means_s).ravel(),
            sum(mean_s) / 2,
            until_s,
            None,
        )
        opens_s = np.concatenate(([from_s], ends_s[:-1]))
        rates_per_s = np.where((np.arange(len(ends_s)) + start) % 2 == 0, *rate_per_s)
        return stretched(of_points, opens_s, ends_s, rates_per_s, until_s, limit)
