"""Which request ids were seen: counters cost nothing, other ids a set's entry each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_MOST_DIGITS = 20  # of an unsigned number of 64 bits


@dataclass(slots=True)
class Ids:
    """Ids seen so far. Those that count up by one are kept as ranges."""

    _others: set[object] = field(default_factory=set)
    _ranges: list[list[int]] = field(default_factory=list)

    def add(self, value: object) -> bool:
        """Take note of an id; False if it was seen before."""
        number = _whole(value)
        if number is None:
            if value in self._others:
                return False
            self._others.add(value)
            return True
        if any(first <= number <= last for first, last in self._ranges):
            return False
        if self._ranges and number == self._ranges[-1][1] + 1:
            self._ranges[-1][1] = number
        elif len(self._ranges) < 16:
            self._ranges.append([number, number])
        elif number in self._others:
            return False
        else:
            self._others.add(number)
        return True

    def add_all(self, values: Sequence[object]) -> bool:
        """Take note of many; False, with nothing noted, if two are alike or one was seen before."""
        try:
            numbers = np.array(values, dtype=np.int64)
        except (ValueError, TypeError, OverflowError):
            numbers = np.empty(0, dtype=np.int64)
        counting = len(numbers) == len(values) > 0 and bool(np.all(np.diff(numbers) == 1))
        if counting and not self._others:
            first, last = int(numbers[0]), int(numbers[-1])
            if not self._ranges or (len(self._ranges) == 1 and first == self._ranges[0][1] + 1):
                if self._ranges:
                    self._ranges[0][1] = last
                else:
                    self._ranges.append([first, last])
                return True
        trial = Ids(set(self._others), [list(one) for one in self._ranges])
        if not all(trial.add(value) for value in values):
            return False
        self._others, self._ranges = trial._others, trial._ranges
        return True


def _whole(value: object) -> int | None:
    """Return the number that an id is, if it is one: ids of 7 and "7" are the same."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= _MOST_DIGITS and value.isascii() and value.isdigit():
        return int(value)
    return None
