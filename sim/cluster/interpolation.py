"""Linear interpolation in tables of plain Python numbers, quick for one point at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any


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


def on_grid(values: Sequence[Any], at: Sequence[tuple[int, float]]) -> float:
    """Return the value at a point of a nested table, one `place` for each level of nesting."""
    i, along = at[0]
    if len(at) == 1:
        return on_line(values, at[0])
    rest = at[1:]
    low = on_grid(values[i], rest)
    return low if not along else low + along * (on_grid(values[i + 1], rest) - low)
