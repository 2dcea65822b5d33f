"""When requests arrive: laws that turn a random stream into sorted arrival times.

Every law starts in its long-run state, so the expected number of arrivals in any window is its rate times the window's
length. Draws are taken one after another: a longer window or a higher limit adds arrivals at the end and moves none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from workloads.requests import Floats

MAX_ARRIVALS = 50_000_000
"""Most arrivals (or on and off periods) one workload may make; columns of that many rows fill a large machine."""

_CHUNK = 1 << 20

_RATE = {"gt": 0, "description": "give requests per second, e.g. 4.0"}


class Arrivals(Protocol):
    """A law of arrival times."""

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """Return sorted arrival times in [from_s, until_s), at most ``limit`` of them, in seconds.

        Raises
        ------
        ValueError
            If the window holds more than `MAX_ARRIVALS`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Even:
    """Evenly spaced arrivals: the first ``phase_s`` after the window opens, then one every 1/rate seconds.

    Without a phase it is drawn, uniform in one spacing. Against a server that is just as regular, a fixed phase decides
    who always comes first, so a result of fixed phases holds for that alignment only.
    """

    kind: Literal["even"] = "even"
    rate_per_s: float = field(metadata=_RATE)
    phase_s: float | None = field(
        default=None,
        metadata={"ge": 0, "description": "give seconds from the start to the first arrival, e.g. 0.5, or null: drawn"},
    )

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """See `Arrivals`."""
        phase_s = rng.random() / self.rate_per_s if self.phase_s is None else self.phase_s
        first_s = from_s + phase_s
        expected = (until_s - first_s) * self.rate_per_s
        _refuse_too_many(expected if limit is None else min(expected, limit))
        count = max(0, math.ceil(expected) + 1) if limit is None or expected < limit else limit
        return _cut(first_s + np.arange(count) / self.rate_per_s, until_s, limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson:
    """Independent arrivals: exponential gaps of mean 1/rate, whose coefficient of variation is 1."""

    kind: Literal["poisson"] = "poisson"
    rate_per_s: float = field(metadata=_RATE)

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """See `Arrivals`."""
        mean_s = 1.0 / self.rate_per_s
        first_s = from_s + rng.exponential(mean_s)
        return _cut(_points(first_s, lambda n: rng.exponential(mean_s, n), mean_s, until_s, limit), until_s, limit)


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
        """See `Arrivals`."""
        shape = self.cv**-2
        scale_s = 1.0 / (shape * self.rate_per_s)
        first_s = from_s + rng.random() * rng.gamma(shape + 1.0, scale_s)
        points = _points(first_s, lambda n: rng.gamma(shape, scale_s, n), 1.0 / self.rate_per_s, until_s, limit)
        return _cut(points, until_s, limit)


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
        """See `Arrivals`.

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
        ends_s = _points(
            from_s + of_periods.exponential(mean_s[start]),
            # The caller asks for even numbers only, so a draw always ends with the kind of period that began it.
            lambda n: (of_periods.standard_exponential((n // 2, 2)) * means_s).ravel(),
            sum(mean_s) / 2,
            until_s,
            None,
        )
        opens_s = np.concatenate(([from_s], ends_s[:-1]))
        rates_per_s = np.where((np.arange(len(ends_s)) + start) % 2 == 0, *rate_per_s)
        expected = np.cumsum((ends_s - opens_s) * rates_per_s)
        before = np.concatenate(([0.0], expected[:-1]))
        total = float(expected[-1])
        units = _cut(_points(of_points.exponential(), of_points.standard_exponential, 1.0, total, limit), total, limit)
        # side="right" passes over periods in which nothing is expected: they share the value of the next one.
        period = np.searchsorted(before, units, side="right") - 1
        times_s = opens_s[period] + (units - before[period]) / rates_per_s[period]
        # Rounding may carry a point past the end of its period, and so past the next point.
        return _cut(np.minimum(times_s, ends_s[period]), until_s, limit)


def _points(first: float, draw: Callable[[int], Floats], mean_gap: float, until: float, limit: int | None) -> Floats:
    """Return ``first`` and what follows it by the drawn gaps, past ``until`` or to at least ``limit`` points.

    ``draw`` is asked for even numbers of gaps. The sum runs left to right whatever the chunks are, so the same draws
    give the same floats.
    """
    parts = [np.array([first])]
    count, last = 1, first
    while last < until and (limit is None or count < limit):
        missing = (until - last) / mean_gap
        if limit is not None:
            missing = min(missing, limit - count)
        _refuse_too_many(count + missing)
        # Four standard deviations of a Poisson count above its mean: one pass is nearly always enough.
        size = min(_CHUNK, int(missing + 4 * math.sqrt(missing)) + 16) & ~1
        parts.append(np.cumsum(np.concatenate(([last], draw(size))))[1:])
        count, last = count + size, float(parts[-1][-1])
    return np.concatenate(parts)


def _refuse_too_many(expected: float) -> None:
    if expected > MAX_ARRIVALS:
        raise ValueError(
            f"about {expected:.3g} arrivals or on and off periods, more than {MAX_ARRIVALS:,}; "
            "lower the rate, shorten the run or set a number of requests"
        )


def _cut(times_s: Floats, until_s: float, limit: int | None) -> Floats:
    return times_s[: np.searchsorted(times_s, until_s)][:limit]
