"""Replicas that come and go: starting takes time, leaving waits for what is running, and all of it is paid for.

A replica is off, starting, ready, draining or down. Those that start, are ready or drain hold their GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial

from policies.api import Gauge
from sim.cluster.agenda import Alarm
from sim.cluster.clock import Clock
from sim.cluster.node import Node
from sim.engine.replica_life import Life


class State(IntEnum):
    """Where a replica is in its life."""

    OFF = 0
    STARTING = 1
    READY = 2
    DRAINING = 3
    DOWN = 4


class Fleet:
    """The replicas of a pool that can grow up to ``len(nodes)``.

    Parameters
    ----------
    ready : how many are ready at the start, the first ones.
    on_change : called when a replica became ready or stopped taking requests.
    on_cut : called with a replica whose drain took too long, after ``on_change``.
    """

    def __init__(
        self, clock: Clock, nodes: Sequence[Node], ready: int, life: Life, *,
        on_change: Callable[[], None], on_cut: Callable[[Node], None],
    ) -> None:
        self._clock = clock
        self._nodes = nodes
        self._life = life
        self._on_change = on_change
        self._on_cut = on_cut
        self._states = [State.READY if i < ready else State.OFF for i in range(len(nodes))]
        self._turns = [0] * len(nodes)  # counts changes of state: a timer that was set before one is void
        self._wanted = ready
        self._gpu_s = 0.0
        self._counted_until_s = 0.0
        for node, state in zip(nodes, self._states, strict=True):
            node.up = state is State.READY
            node.reachable = node.up

    def count(self, *states: State) -> int:
        """Return how many replicas are in one of these states."""
        return sum(state in states for state in self._states)

    def scale(self, replicas: int) -> None:
        """Have this many, as far as there are: who drains stays, then others start; or the last ones leave."""
        self._wanted = replicas
        self._settle()

    def failed(self, replica_id: int) -> None:
        """Count a replica as lost until `restored`; another takes its place if one is left."""
        self._turn(replica_id, State.DOWN)
        self._settle()

    def restored(self, replica_id: int) -> None:
        """Take a lost replica back, ready; what is then too much leaves."""
        if self._states[replica_id] is State.DOWN:
            self._become_ready(replica_id)
            self._settle()

    def gpu_s(self) -> float:
        """Return the GPU-seconds held so far."""
        now_s = self._clock.now
        held = self.count(State.STARTING, State.READY, State.DRAINING)
        self._gpu_s += held * self._life.gpus * (now_s - self._counted_until_s)
        self._counted_until_s = now_s
        return self._gpu_s

    def gauges(self) -> list[Gauge]:
        """Return what the timeline should show."""
        return [
            Gauge("pool", "pool", "wanted_replicas", self._wanted),
            Gauge("pool", "pool", "starting_replicas", self.count(State.STARTING)),
            Gauge("pool", "pool", "draining_replicas", self.count(State.DRAINING)),
            Gauge("pool", "pool", "gpu_s", self.gpu_s()),
        ]

    def _settle(self) -> None:
        have = self.count(State.STARTING, State.READY)
        changed = False
        while have < self._wanted:
            draining = [i for i, state in enumerate(self._states) if state is State.DRAINING]
            off = [i for i, state in enumerate(self._states) if state is State.OFF]
            if draining:
                self._become_ready(draining[0])
                changed = True
            elif off:
                self._start(off[0])
            else:
                break
            have += 1
        while have > self._wanted:
            starting = [i for i, state in enumerate(self._states) if state is State.STARTING]
            if starting:
                self._turn(starting[-1], State.OFF)
            else:
                self._drain(max(i for i, state in enumerate(self._states) if state is State.READY))
                changed = True
            have -= 1
        if changed:
            self._on_change()

    def _start(self, i: int) -> None:
        turn = self._turn(i, State.STARTING)
        self._clock.call_at(self._clock.now + self._life.start_up_s, partial(self._started, i, turn))

    def _started(self, i: int, turn: int, _: Alarm) -> None:
        if self._turns[i] == turn:
            self._become_ready(i)
            self._on_change()

    def _become_ready(self, i: int) -> None:
        self._turn(i, State.READY)
        self._nodes[i].up = self._nodes[i].reachable = True

    def _drain(self, i: int) -> None:
        turn = self._turn(i, State.DRAINING)
        self._nodes[i].up = False
        self._nodes[i].reachable = True
        until_s = self._clock.now + self._life.drain_s
        self._clock.call_at(min(until_s, self._clock.now + self._life.look_s), partial(self._look, i, turn, until_s))

    def _look(self, i: int, turn: int, until_s: float, _: Alarm) -> None:
        if self._turns[i] != turn:
            return
        node, now_s = self._nodes[i], self._clock.now
        if node.replica.running_count or node.replica.waiting_count:
            if now_s < until_s:
                self._clock.call_at(min(until_s, now_s + self._life.look_s), partial(self._look, i, turn, until_s))
                return
            self._turn(i, State.OFF)
            self._on_cut(node)
            return
        self._turn(i, State.OFF)

    def _turn(self, i: int, state: State) -> int:
        """Change a state, with the bill settled up to here."""
        self.gpu_s()
        self._states[i] = state
        self._turns[i] += 1
        if state in (State.OFF, State.DOWN, State.STARTING):
            self._nodes[i].up = self._nodes[i].reachable = False
        return self._turns[i]
