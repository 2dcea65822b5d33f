"""The duration of decode iterations of one fixed batch, as a piecewise linear function of the KV entries they read.

Every iteration reads one more entry for each sequence, so a run of iterations walks along the curve in equal steps,
and within a segment the total is an arithmetic series: a run costs as much as it has segments, not iterations.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence


class DecodeCurve:
    """A curve through (context, seconds) points; beyond the last ones the outer segments go on.

    Parameters
    ----------
    sequences : the batch, which is how far one iteration moves along the curve.
    contexts : KV entries read, ascending, at least two.
    seconds : duration at each.
    """

    __slots__ = ("_first_s", "_sequences", "_slopes", "_starts")

    def __init__(self, sequences: int, contexts: Sequence[float], seconds: Sequence[float]) -> None:
        self._sequences = sequences
        self._starts = list(contexts[:-1])
        self._first_s = list(seconds[:-1])
        self._slopes = [
            (seconds[i + 1] - seconds[i]) / (contexts[i + 1] - contexts[i]) for i in range(len(contexts) - 1)
        ]

    def at_s(self, context_tokens: float) -> float:
        """Return the duration of one iteration that reads ``context_tokens``."""
        i = max(0, bisect_right(self._starts, context_tokens) - 1)
        return self._first_s[i] + self._slopes[i] * (context_tokens - self._starts[i])

    def run_s(self, context_tokens: float, iterations: int, gain: float = 1.0) -> float:
        """Return the total of ``iterations``; the first reads ``context_tokens``.

        ``gain`` is by how many tokens each context grows in an iteration.
        """
        starts, step = self._starts, self._sequences * gain
        last = len(starts) - 1
        i = max(0, bisect_right(starts, context_tokens) - 1)
        total_s = 0.0
        while True:
            slope = self._slopes[i]
            first_s = self._first_s[i] + slope * (context_tokens - starts[i])
            inside = iterations
            if i < last:
                inside = min(iterations, math.ceil((starts[i + 1] - context_tokens) / step))
            total_s += inside * (first_s + slope * step * (inside - 1) / 2)
            iterations -= inside
            if not iterations:
                return total_s
            context_tokens += inside * step
            while i < last and starts[i + 1] <= context_tokens:
                i += 1

    def until(self, context_tokens: float, elapsed_s: float) -> int:
        """Return the least k >= 1 for which `run_s` of k iterations exceeds ``elapsed_s``."""
        starts, step = self._starts, self._sequences
        last = len(starts) - 1
        i = max(0, bisect_right(starts, context_tokens) - 1)
        done, total_s = 0, 0.0
        while True:
            growth_s = self._slopes[i] * step
            first_s = self._first_s[i] + self._slopes[i] * (context_tokens - starts[i])
            k = iterations_for(first_s, growth_s, elapsed_s - total_s)
            # The sums are those of `run_s`, so that rounding tells the two nothing different.
            while k > 1 and total_s + (k - 1) * (first_s + growth_s * (k - 2) / 2) > elapsed_s:
                k -= 1
            while total_s + k * (first_s + growth_s * (k - 1) / 2) <= elapsed_s:
                k += 1
            if i == last:
                return done + k
            inside = math.ceil((starts[i + 1] - context_tokens) / step)
            if k <= inside:
                return done + k
            total_s += inside * (first_s + growth_s * (inside - 1) / 2)
            done += inside
            context_tokens += inside * step
            while i < last and starts[i + 1] <= context_tokens:
                i += 1


def iterations_for(first_s: float, growth_s: float, elapsed_s: float) -> int:
    """Return about how many iterations take ``elapsed_s``, where each takes ``growth_s`` more than the last.

    The root of a quadratic, in the form that does not cancel where growth is tiny; off by rounding only. Falling
    durations whose sum never gets there give the iteration at which they would reach nothing.
    """
    linear_s = first_s - growth_s / 2
    square = linear_s * linear_s + 2 * growth_s * elapsed_s
    if square <= 0:
        return max(1, int(-first_s / growth_s) + 1)
    return max(1, int(2 * elapsed_s / (linear_s + math.sqrt(square))) + 1)
