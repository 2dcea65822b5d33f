"""SimPy's environment with callbacks at absolute times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import simpy
from simpy.events import NORMAL, Event, EventPriority

from sim.cluster.agenda import Agenda, Alarm


class Clock(simpy.Environment):
    """A SimPy environment on whose agenda alarms can be set."""

    def __init__(self) -> None:
        super().__init__()
        self.agenda = Agenda(self._queue)

    @property
    def now(self) -> float:
        """The simulated time, which the agenda keeps."""
        return self.agenda.now_s

    def schedule(self, event: Event, priority: EventPriority = NORMAL, delay: float = 0) -> None:
        """Schedule an event as SimPy does."""
        self.agenda.add(event, self.agenda.now_s + delay, priority)

    def peek(self) -> float:
        """Return when the next event is due; infinity where there is none."""
        return self.agenda.next_s

    def step(self) -> None:
        """Process the next event."""
        self.agenda.steps(1)

    def run(self, until: Any = None) -> Any:
        """Run as SimPy does, but for its loop: one step here goes on from event to event until one ends the run."""
        self.step = self.agenda.steps  # type: ignore[method-assign]
        try:
            return super().run(until)
        finally:
            del self.step

    def call_at(self, at_s: float, callback: Callable[[Alarm], None]) -> None:
        """Call ``callback`` at ``at_s``, or now where that has passed."""
        self.agenda.call_at(at_s, callback)
