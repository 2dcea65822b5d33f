"""SimPy's environment with callbacks at absolute times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import simpy

from sim.cluster.agenda import Agenda, Alarm


class Clock(simpy.Environment):
    """A SimPy environment on whose agenda alarms can be set."""

    def __init__(self) -> None:
        super().__init__()
        self.agenda = Agenda(self, self._queue, self._eid)

    def step(self) -> None:
        """Process the next event."""
        self.agenda.step()

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
