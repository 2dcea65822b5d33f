"""Callbacks at absolute simulated times: a SimPy event that has already succeeded and carries one callback.

A process costs a generator and a resume for each wait; at a few events per request that is most of a run's time, so
the hot paths (arrivals, iteration boundaries) use these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import simpy
from simpy.events import NORMAL, Event

# A boundary comes after everything else at its instant, so that arrivals at one instant meet one engine state.
LAST = 2


class Alarm(Event):
    """Calls ``callback(alarm)`` once, when it is processed."""

    _ok = True
    _value: Any = None

    def __init__(self, env: simpy.Environment, callback: Callable[[Event], None]) -> None:
        self.env = env
        self.callbacks = [callback]


def call_at(env: simpy.Environment, at_s: float, callback: Callable[[Event], None], priority: Any = NORMAL) -> Alarm:
    """Call ``callback`` at ``at_s``, or now where that has passed."""
    alarm = Alarm(env, callback)
    # Delays are relative, so the sum can fall an ulp short of now.
    delay_s = at_s - env.now
    env.schedule(alarm, priority, delay_s if delay_s > 0.0 else 0.0)
    return alarm
