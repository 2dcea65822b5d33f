"""The order of the agenda: time, then priority, then who was set first; wherever an alarm stands meanwhile."""

from __future__ import annotations

import random

import pytest
import simpy

from sim.cluster.agenda import LAST, NORMAL, URGENT, Alarm
from sim.cluster.clock import Clock


@pytest.mark.parametrize("seed", range(40))
def test_alarms_and_events_come_by_time_priority_and_number(seed: int) -> None:
    """What rings sets more, at few different times, so that ties of every kind occur."""
    draw = random.Random(seed)
    clock = Clock()
    asked: list[tuple[float, int, int]] = []
    seen: list[tuple[float, int, int]] = []

    def ask() -> None:
        entry = (clock.now + draw.choice([0.0, 1.0, 1.0, 2.0, 5.0]), draw.choice([NORMAL, LAST, URGENT]), len(asked))
        asked.append(entry)
        if draw.random() < 0.7:
            clock.agenda.set(Alarm(lambda _: hear(entry)), entry[0], entry[1])
            return
        event = simpy.Event(clock)
        event._ok, event._value = True, None
        event.callbacks.append(lambda _: hear(entry))
        clock.schedule(event, entry[1], entry[0] - clock.now)

    def hear(entry: tuple[float, int, int]) -> None:
        assert clock.now == entry[0]
        waiting = set(asked) - set(seen)
        assert entry == min(waiting), f"due before it: {min(waiting)}"
        seen.append(entry)
        left = waiting - {entry}
        assert clock.peek() == (min(left)[0] if left else float("inf"))
        for _ in range(draw.choice([0, 1, 1, 2]) if len(asked) < 300 else 0):
            ask()

    for _ in range(4):
        ask()
    while clock.peek() < float("inf"):
        clock.step()
    assert sorted(seen) == sorted(asked)
    assert clock.agenda.set_so_far == len(asked)


def test_nothing_left_is_said_so() -> None:
    """SimPy's own error, which its `run` expects."""
    clock = Clock()
    clock.call_at(1.0, lambda _: None)
    clock.step()
    with pytest.raises(simpy.core.EmptySchedule):
        clock.step()
