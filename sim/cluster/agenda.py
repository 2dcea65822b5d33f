"""What is due when: SimPy's own heap of events, on which alarms may lie as well.

A process costs a generator and a resume for each wait; at a few events per request that is most of a run's time, so
the hot paths (arrivals, iteration boundaries) set alarms: a callback and a mark, in SimPy's order but without its
events. They also ring at exactly the time asked for, where a relative delay can miss it by an ulp.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

from simpy.core import EmptySchedule

NEVER_S: Final = float("inf")
URGENT: Final = 0
NORMAL: Final = 1
"""As `simpy.events.URGENT` and `simpy.events.NORMAL`."""
SCRAPE: Final = 2
"""A scrape comes after what else a gateway hears at its instant, whoever asked for which first."""
LAST: Final = 3
"""A boundary comes after everything else at its instant, so that arrivals at one instant meet one engine state."""

# Compiled, a name of another module is looked up whenever it is used, but for what is Final here.
_heappop: Final = heappop
_heappush: Final = heappush
_Entry = tuple[float, int, int, Any]
"""What lies on SimPy's heap: time, priority, number and event."""


class Alarm:
    """Calls its callback once, with itself, when it is due; then it can be set again."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[Alarm], None]) -> None:
        self.callback = callback


class Agenda:
    """The heap of a SimPy environment, and its time, which begins at 0.

    Who rings mostly sets an alarm, often one that is due before all others (an iteration ends before anybody comes):
    that one stands beside the heap, and never costs a way through it.

    Parameters
    ----------
    heap : the environment's, of (time, priority, number, event).

    Attributes
    ----------
    set_so_far : how many entries there were: the number of the next.
    """

    __slots__ = ("_first", "_first_number", "_first_priority", "_first_s", "_heap", "now_s", "set_so_far")

    def __init__(self, heap: list[Any]) -> None:
        self._heap: list[_Entry] = heap
        self._first: Alarm | None = None  # due before all that is on the heap
        self._first_s = 0.0
        self._first_priority = self._first_number = 0
        self.now_s = 0.0
        self.set_so_far = 0

    def set(self, alarm: Alarm, at_s: float, priority: int = NORMAL) -> None:
        """Ring ``alarm``, which is not set, at ``at_s`` (not before now)."""
        number = self.set_so_far
        self.set_so_far = number + 1
        if self._first is not None:
            if at_s > self._first_s or (at_s == self._first_s and priority >= self._first_priority):
                _heappush(self._heap, (at_s, priority, number, alarm))
                return
            self._put_back()
        elif self._heap and self._heap[0][0] <= at_s:
            _heappush(self._heap, (at_s, priority, number, alarm))
            return
        self._first = alarm
        self._first_s = at_s
        self._first_priority = priority
        self._first_number = number

    def _put_back(self) -> None:
        """Put the first alarm on the heap: something is due before it."""
        _heappush(self._heap, (self._first_s, self._first_priority, self._first_number, self._first))
        self._first = None

    def add(self, event: Any, at_s: float, priority: int) -> None:
        """Put one of SimPy's own events on the heap."""
        number = self.set_so_far
        self.set_so_far = number + 1
        if self._first is not None and (at_s, priority) < (self._first_s, self._first_priority):
            self._put_back()
        _heappush(self._heap, (at_s, priority, number, event))

    @property
    def next_s(self) -> float:
        """When the next is due; infinity where none is."""
        if self._first is not None:
            return self._first_s
        return self._heap[0][0] if self._heap else NEVER_S

    def call_at(self, at_s: float, callback: Callable[[Alarm], None]) -> None:
        """Call ``callback`` at ``at_s``, or now where that has passed."""
        self.set(Alarm(callback), at_s if at_s > self.now_s else self.now_s)

    def steps(self, most: int = -1) -> None:
        """Process event after event as SimPy does, until one raises or none is left; or ``most`` of them.

        What alarms never need (defused failures) is looked at last.
        """
        heap = self._heap
        while most != 0:
            most -= 1
            first = self._first
            if first is not None:
                self._first = None
                self.now_s = self._first_s
                first.callback(first)
                continue
            if not heap:
                raise EmptySchedule
            entry: _Entry = _heappop(heap)
            event = entry[3]
            self.now_s = entry[0]
            if isinstance(event, Alarm):
                event.callback(event)
                continue
            callbacks = event.callbacks
            event.callbacks = None
            for callback in callbacks:
                callback(event)
            if not event._ok and not hasattr(event, "_defused"):
                raise event._value


class Wake:
    """What an engine is woken by: the last time that it asked for holds.

    Attributes
    ----------
    call : is called with the time.
    """

    __slots__ = ("_agenda", "_alarm", "_spare", "call")

    call: Callable[[float], None]

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._alarm: Alarm | None = None
        self._spare = Alarm(self._ring)

    def arm(self, at_s: float) -> None:
        """Wake at ``at_s`` in place of the time asked for before; infinity for not at all."""
        if self._alarm is not None:  # what is replaced still rings, and is ignored
            self._spare = Alarm(self._ring)
            self._alarm = None
        if at_s == NEVER_S:
            return
        self._alarm = alarm = self._spare
        self._agenda.set(alarm, at_s, LAST)

    def _ring(self, alarm: Alarm) -> None:
        if alarm is self._alarm:
            self._alarm = None
            self.call(self._agenda.now_s)
