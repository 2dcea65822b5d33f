"""Linear interpolation in tables of plain Python numbers, quick for one point at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


def place(knots: Sequence[float], x: float) -> tuple[int, float]:
    """Return the segment that holds ``x`` and how far along it lies; outside 0 and 1 beyond the ends.

    ``knots`` ascend, at least two.
    """
    i = bisect_right(knots, x, 1, len(knots) - 1) - 1
    low = knots[i]
    return i, (x - low) / (knots[i + 1] - low)


def clamped(knots: Sequence[float], x: float) -> tuple[int, float]:
    """Return `place`, with ``x`` moved to the nearest end where it lies outside."""
    if x <= knots[0]:
        return 0, 0.0
    if x >= knots[-1]:
        return len(knots) - 2, 1.0
    return place(knots, x)


def on_line(values: Sequence[float], at: tuple[int, float]) -> float:
    """Return the value at a `place`; the last segments go on beyond the ends."""
    i, along = at
    if not along:
        return values[i]
    return values[i] + along * (values[i + 1] - values[i])


def on_square(values: Sequence[Sequence[float]], i: int, along_i: float, j: int, along_j: float) -> float:
    """Return the value at a point of a table of two axes, the `place` on each given as two numbers."""
    low, high = values[i], values[i + 1]
    at_low = low[j] + along_j * (low[j + 1] - low[j])
    return at_low + along_i * (high[j] + along_j * (high[j + 1] - high[j]) - at_low)
