"""Points on a line of time: summed gaps, and a unit-rate process stretched to a rate that changes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from workloads.requests import Floats

LEAST_RATE_PER_S = 1e-9
"""One request in thirty years; far below, a mean gap is more than a number can hold."""

MAX_ARRIVALS = 50_000_000
"""Most arrivals (or on and off periods) one workload may make; columns of that many rows fill a large machine."""

_CHUNK = 1 << 20


def points(first: float, draw: Callable[[int], Floats], mean_gap: float, until: float, limit: int | None) -> Floats:
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
        refuse_too_many(count + missing)
        # Four standard deviations of a Poisson count above its mean: one pass is nearly always enough.
        size = min(_CHUNK, int(missing + 4 * math.sqrt(missing)) + 16) & ~1
        parts.append(np.cumsum(np.concatenate(([last], draw(size))))[1:])
        count, last = count + size, float(parts[-1][-1])
    return np.concatenate(parts)


def refuse_too_many(expected: float) -> None:
    """Raise ValueError for more than `MAX_ARRIVALS`."""
    if expected > MAX_ARRIVALS:
        raise ValueError(
            f"about {expected:.3g} arrivals or on and off periods, more than {MAX_ARRIVALS:,}; "
            "lower the rate, shorten the run or set a number of requests"
        )


def stretched(
    rng: np.random.Generator, opens_s: Floats, ends_s: Floats, rates_per_s: Floats, until_s: float, limit: int | None
) -> Floats:
    """Return a Poisson process whose rate is constant in each of the periods, which follow each other without a gap.

    A unit-rate process is stretched so that its k-th point falls where the expected number of arrivals reaches it.
    """
    expected = np.cumsum((ends_s - opens_s) * rates_per_s)
    before = np.concatenate(([0.0], expected[:-1]))
    total = float(expected[-1])
    units = unit_points(rng, total, limit)
    # side="right" passes over periods in which nothing is expected: they share the value of the next one.
    period = np.searchsorted(before, units, side="right") - 1
    times_s = opens_s[period] + (units - before[period]) / rates_per_s[period]
    # Rounding may carry a point past the end of its period, and so past the next point.
    return cut(np.minimum(times_s, ends_s[period]), until_s, limit)


def unit_points(rng: np.random.Generator, total: float, limit: int | None) -> Floats:
    """Return a Poisson process of rate 1 on [0, total), at most ``limit`` points of it."""
    return cut(points(rng.exponential(), rng.standard_exponential, 1.0, total, limit), total, limit)


def cut(times_s: Floats, until_s: float, limit: int | None) -> Floats:
    """Return the sorted times before ``until_s``, at most ``limit`` of them."""
    return times_s[: np.searchsorted(times_s, until_s)][:limit]
