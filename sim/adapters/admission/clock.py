"""Clocks that may be set, for a core whose time never goes back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from sim.live.gateway.core_driver import Timer

LEAST_S = 0.001
"""The shortest sleep: a clock that stands still must not keep the loop busy. [choice]"""


class SteadyClock:
    """A clock that goes on from where it was when the one below is set back, or says what is no time.

    Set forward, time has passed: budgets refill as far as they may, and ticks that were slept through are left out.
    """

    __slots__ = ("_ahead_s", "_clock", "_read_s")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._read_s = -math.inf
        self._ahead_s = 0.0

    def time(self) -> float:
        """Return the time in seconds; it never goes back."""
        read_s = self._clock()
        if read_s >= self._read_s and read_s < math.inf:
            self._read_s = read_s
        elif math.isfinite(read_s):
            self._ahead_s += self._read_s - read_s
            self._read_s = read_s
        elif self._read_s == -math.inf:
            raise ValueError(f"the clock says {read_s}; give one that counts seconds, e.g. time.monotonic")
        return self._read_s + self._ahead_s


class LoopTimers(SteadyClock):
    """An asyncio loop's timers by a clock of one's own."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._loop = loop

    def call_at(self, when: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        """Call at a time of this clock."""
        return self._loop.call_later(max(LEAST_S, when - self.time()), callback, *args)
