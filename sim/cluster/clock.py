"""SimPy's environment with callbacks at absolute times.

A process costs a generator and a resume for each wait; at a few events per request that is most of a run's time, so
the hot paths (arrivals, iteration boundaries) use alarms: events that have already succeeded and carry one callback.
They also ring at exactly the time asked for, where a relative delay can miss it by an ulp.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import simpy
from simpy.events import NORMAL, Event

# A boundary comes after everything else at its instant, so that arrivals at one instant meet one engine state.
LAST: Any = 2


class Alarm(Event):
    """Calls its callback once, when it is processed; then it can be set again.

    As on any SimPy event, ``callbacks`` is None once it was processed: that tells whether it is set.
    """

    _ok = True
    _value: Any = None

    def __init__(self, clock: Clock, callback: Callable[[Event], None]) -> None:
        self.env = clock
        self.callbacks = None  # type: ignore[assignment]  # as SimPy leaves it on a processed event
        self._calls = [callback]


class Clock(simpy.Environment):
    """A SimPy environment on which alarms can be set."""

    def step(self) -> None:
        """Process the next event, as SimPy does, with what alarms never need (defused failures) looked at last."""
        if not self._queue:
            raise simpy.core.EmptySchedule
        self._now, _, _, event = heappop(self._queue)
        callbacks = event.callbacks
        event.callbacks = None  # type: ignore[assignment]
        for callback in callbacks:
            callback(event)
        if not event._ok and not hasattr(event, "_defused"):
            raise event._value

    def set(self, alarm: Alarm, at_s: float, priority: Any = NORMAL) -> None:
        """Ring ``alarm``, which is not set, at ``at_s`` (not before now)."""
        # What Environment.schedule does, less the sum of now and a delay.
        alarm.callbacks = alarm._calls
        heappush(self._queue, (at_s, priority, next(self._eid), alarm))

    def call_at(self, at_s: float, callback: Callable[[Event], None]) -> None:
        """Call ``callback`` at ``at_s``, or now where that has passed."""
        now_s = self._now
        self.set(Alarm(self, callback), at_s if at_s > now_s else now_s)
