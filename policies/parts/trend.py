"""A line through what was seen lately."""

from __future__ import annotations

from policies.native import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class Trend:
    """One number as a line over another, by least squares that forget; it never falls.

    Parameters
    ----------
    kept : what a new point leaves of the weight of the older ones, in [0, 1).
    """

    __slots__ = ("_kept", "_sums")

    def __init__(self, kept: float) -> None:
        self._kept = kept
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    def learn(self, x: float, y: float) -> None:
        """Take one more point."""
        kept = self._kept
        n, sum_x, sum_y, sum_xx, sum_xy = self._sums
        self._sums = (
            kept * n + 1.0, kept * sum_x + x, kept * sum_y + y, kept * sum_xx + x * x, kept * sum_xy + x * y,
        )  # fmt: skip

    def line(self) -> tuple[float, float] | None:
        """Return where the line is at 0 and how steep it is, neither below 0; None before the first point."""
        n, x, y, xx, xy = self._sums
        if n == 0:
            return None
        spread = n * xx - x * x
        if spread <= 1e-9 * n * xx:  # all points at one place say nothing of a slope
            return y / n, 0.0
        slope = max(0.0, (n * xy - x * y) / spread)
        at_0 = (y - slope * x) / n
        if at_0 < 0:
            return 0.0, y / x if x > 0 else 0.0
        return at_0, slope
