"""How long answers will be: quantiles of what an entitlement's last answers were, also of what is still to come.

What has already run for n tokens is compared with the answers that were longer than n (its hazard), so that a
reservation follows what a request will likely need: it falls below the first guess while most of it is behind, and
rises above it where the answer has outlived the guess. Nothing is ever taken to be longer than it may be at most.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

ENOUGH = 5
"""Answers until an entitlement is judged by its own: by everybody's till then, by max_tokens before. [choice]"""
_OUTLIVED = 1.25
"""What has run longer than all answers seen is taken to become this many times as long. [choice]"""


class _Seen:
    """The last answers, in the order they came and by length."""

    __slots__ = ("_came", "_most", "lengths")

    def __init__(self, most: int) -> None:
        self._came: deque[int] = deque()
        self._most = most
        self.lengths: list[int] = []

    def add(self, tokens: int) -> None:
        self._came.append(tokens)
        insort(self.lengths, tokens)
        if len(self._came) > self._most:
            del self.lengths[bisect_left(self.lengths, self._came.popleft())]


class Lengths:
    """Predicts output tokens by entitlement.

    Parameters
    ----------
    q : the quantile to predict, in (0, 1).
    last : how many answers count.
    """

    def __init__(self, q: float, last: int) -> None:
        self._q = q
        self._last = last
        self._by_name: dict[str, _Seen] = {}
        self._all = _Seen(last)
        self._guess: dict[str, float] = {}
        self._guess_of_all: float | None = None

    def expected(self, name: str, most: int) -> float:
        """Return the output tokens of an answer that has not begun, at most ``most``."""
        guess = self._guess.get(name, self._guess_of_all)
        return most if guess is None or guess > most else guess

    def expected_after(self, name: str, so_far: int, most: int) -> float:
        """Return the output tokens that an answer will have in the end of which ``so_far`` are there."""
        seen = self._by_name.get(name)
        if seen is None or len(seen.lengths) < ENOUGH:
            seen = self._all
        if len(seen.lengths) < ENOUGH:
            return most
        lengths = seen.lengths
        longer = bisect_right(lengths, so_far)
        if longer == len(lengths):
            return min(float(most), max(so_far + 1.0, _OUTLIVED * so_far))
        return min(float(most), float(lengths[longer + int(self._q * (len(lengths) - longer))]))

    def learn(self, name: str, tokens: int) -> None:
        """Take note of an answer."""
        seen = self._by_name.get(name)
        if seen is None:
            seen = self._by_name[name] = _Seen(self._last)
        seen.add(tokens)
        self._all.add(tokens)
        self._guess_of_all = self._at_quantile(self._all)
        own = self._at_quantile(seen)
        if own is not None:
            self._guess[name] = own

    def _at_quantile(self, seen: _Seen) -> float | None:
        count = len(seen.lengths)
        return float(seen.lengths[int(self._q * count)]) if count >= ENOUGH else None
