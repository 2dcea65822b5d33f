"""A simulated replica whose clock is the loop's: `sim.cluster.node.Node`, woken by timers instead of by SimPy's run.

What is due is done at the time at which it was due, however late the loop is, so that a busy machine delays what
clients see and never what the replica computes: no drift, and the same iterations as a simulation's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sim.cluster.attempt import Attempt
from sim.cluster.clock import Clock
from sim.cluster.engine_request import NEVER_S
from sim.cluster.node import Node
from sim.cluster.replica import TIE_S
from sim.scenario.profile import Profile


class Generation(Attempt):
    """One sequence that the replica makes.

    Attributes
    ----------
    hear : called with how many output tokens there are now, each time there are more; None: only the end matters.
    ended : called at its end.
    heard_tokens : what ``hear`` was told last.
    """

    __slots__ = ("ended", "hear", "heard_tokens")

    def __init__(
        self, name: str, prompt_tokens: int, output_tokens: int, asked_tokens: int, *, now_s: float,
        ended: Callable[[], None], hear: Callable[[int], None] | None = None, priority: int = 0,
    ) -> None:
        super().__init__(name, 1, 0, priority, now_s, now_s, prompt_tokens, output_tokens, asked_tokens)
        self.ended = ended
        self.hear = hear
        self.heard_tokens = 0


class RealTimeReplica:
    """One replica of a profile on the running loop's clock.

    Parameters
    ----------
    speed : simulated seconds in a second.
    """

    def __init__(self, profile: Profile, replica_id: int = 0, *, speed: float = 1.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._speed = speed
        self._origin_s = self._loop.time()
        self._clock = Clock()
        self._node = Node(self._clock, replica_id, profile, self)
        self.replica = self._node.replica
        self._timer: asyncio.TimerHandle | None = None
        self._streams: dict[Generation, None] = {}

    def now_s(self) -> float:
        """Return the replica's time, in simulated seconds."""
        return (self._loop.time() - self._origin_s) * self._speed

    # --------------------------------------------------------------------------------------------------------- tell

    def submit(self, generation: Generation) -> None:
        """Hand over a sequence."""
        now_s = self.now_s()
        self._catch_up(now_s)
        if generation.hear is not None:
            self._streams[generation] = None
        self._node.submit(generation, now_s)
        self._set_timer(now_s)

    def abort(self, generation: Generation) -> None:
        """Drop a sequence whose client has left; one that has ended is left alone."""
        now_s = self.now_s()
        self._catch_up(now_s)
        self._streams.pop(generation, None)
        generation.hear = None
        self.replica.abort(generation, now_s)
        self._set_timer(now_s)

    def set_slots(self, slots: int) -> None:
        """Let so many sequences run at once from now on; those that run go on."""
        now_s = self.now_s()
        self._catch_up(now_s)
        self.replica.set_slots(slots, now_s)
        self._set_timer(now_s)

    # ------------------------------------------------------------------------------------------ what the replica tells

    def on_first_token(self, request: Attempt, now_s: float) -> None:
        """See `sim.cluster.replica.Listener`."""
        request.first_token_s = now_s

    def on_finish(self, request: Attempt, now_s: float) -> None:
        """See `sim.cluster.replica.Listener`."""
        request.finish_s = now_s
        assert isinstance(request, Generation)
        self._streams.pop(request, None)
        if request.hear is not None:
            request.hear(request.output_tokens)
        request.ended()

    # --------------------------------------------------------------------------------------------------------- time

    def _catch_up(self, now_s: float) -> None:
        """Do all that was due until now, each thing at its own time."""
        while self._clock.peek() <= now_s:
            self._clock.step()

    def _ring(self) -> None:
        self._timer = None
        now_s = self.now_s()
        self._catch_up(now_s)
        self._tell_streams(now_s)
        self._set_timer(now_s)

    def _tell_streams(self, now_s: float) -> None:
        """Tell every stream of the tokens that it has got since it was told last."""
        for generation in list(self._streams):
            tokens = self.replica.outputs_at(generation, now_s + TIE_S)
            if tokens > generation.heard_tokens and generation.hear is not None:
                generation.heard_tokens = tokens
                generation.hear(tokens)

    def _set_timer(self, now_s: float) -> None:
        """Wake for what the replica does next, or at the end of the iteration under way if somebody watches."""
        due_s = self._clock.peek()
        if self._streams:
            due_s = min(due_s, self.replica.iteration_end_s(now_s + TIE_S))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_s < NEVER_S:
            self._timer = self._loop.call_at(self._origin_s + due_s / self._speed, self._ring)
