"""How long answers will be: quantiles of what an entitlement's last answers were, also of what is still to come.

What has already run for n tokens is compared with the answers that were longer than n (its hazard), so that a
reservation follows what a request will likely need: it falls below the first guess while most of it is behind, and
rises above it where the answer has outlived the guess. Nothing is ever taken to be longer than it may be at most.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

from policies.native import mypyc_attr

ENOUGH = 5
"""Answers until an entitlement is judged by its own: by everybody's till then, by max_tokens before. [choice]"""
_OUTLIVED = 1.25
"""What has run longer than all answers seen is taken to become this many times as long. [choice]"""


@mypyc_attr(allow_interpreted_subclasses=True)
class _Seen:
    """The last answers, in the order they came and by length."""

    __slots__ = ("came", "lengths")

    def __init__(self) -> None:
        self.came: deque[int] = deque()
        self.lengths: list[int] = []


@mypyc_attr(allow_interpreted_subclasses=True)
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
        self._guess: dict[str, float] = {}
        # Everybody's are seldom asked for once each has its own, so they are sorted only then.
        self._all: deque[int] = deque(maxlen=last)
        self._all_sorted: list[int] | None = []

    def expected(self, name: str, most: int) -> float:
        """Return the output tokens of an answer that has not begun, at most ``most``."""
        guess = self._guess.get(name)
        if guess is None:
            lengths = self._of_all()
            if len(lengths) < ENOUGH:
                return most
            guess = float(lengths[int(self._q * len(lengths))])
        return most if guess > most else guess

    def expected_after(self, name: str, so_far: int, most: int) -> float:
        """Return the output tokens that an answer will have in the end of which ``so_far`` are there."""
        seen = self._by_name.get(name)
        lengths = self._of_all() if seen is None or len(seen.lengths) < ENOUGH else seen.lengths
        if len(lengths) < ENOUGH:
            return most
        longer = bisect_right(lengths, so_far)
        if longer == len(lengths):
            return min(float(most), max(so_far + 1.0, _OUTLIVED * so_far))
        return min(float(most), float(lengths[longer + int(self._q * (len(lengths) - longer))]))

    def learn(self, name: str, tokens: int) -> None:
        """Take note of an answer."""
        seen = self._by_name.get(name)
        if seen is None:
            seen = self._by_name[name] = _Seen()
        came, lengths = seen.came, seen.lengths
        came.append(tokens)
        insort(lengths, tokens)
        if len(came) > self._last:
            del lengths[bisect_left(lengths, came.popleft())]
        count = len(lengths)
        if count >= ENOUGH:
            self._guess[name] = float(lengths[int(self._q * count)])
        self._all.append(tokens)
        self._all_sorted = None

    def _of_all(self) -> list[int]:
        """Return everybody's last answers by length."""
        lengths = self._all_sorted
        if lengths is None:
            lengths = self._all_sorted = sorted(self._all)
        return lengths
