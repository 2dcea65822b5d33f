"""A replica in SimPy's time: the wakes that `sim.cluster.replica.Replica` asks for become alarms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from simpy.events import Event

from sim.cluster.attempt import Attempt
from sim.cluster.clock import LAST, Alarm, Clock
from sim.cluster.engine_request import EngineRequest
from sim.cluster.replica import Listener, Replica
from sim.cluster.scheduler import NEVER_S
from sim.cluster.step_time import StepTime
from sim.profiles import Profile

R = TypeVar("R", bound=EngineRequest)


def replica_of(
    profile: Profile, step_time: StepTime, listener: Listener[R], arm: Callable[[float], None]
) -> Replica[R]:
    """Return an engine with the settings of a profile; ``step_time`` may be another than the profile's."""
    return Replica(
        step_time=step_time,
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        kv_blocks=profile.kv_blocks,
        block_tokens=profile.block_tokens,
        scheduling=profile.scheduling,
        async_scheduling=profile.async_scheduling,
        prefix_caching=profile.prefix_caching,
        listener=listener,
        arm=arm,
    )


class Node:
    """One replica and its clock.

    ``up`` says whether it takes requests; ``reachable`` whether those sent to it arrive, which they still do while it
    drains.
    """

    def __init__(self, clock: Clock, replica_id: int, profile: Profile, listener: Listener[Attempt]) -> None:
        self._clock = clock
        self._alarm: Alarm | None = None
        self._spare = Alarm(clock, self._wake)
        self.replica_id = replica_id
        self.up = self.reachable = True
        self.replica: Replica[Attempt] = replica_of(profile, profile.step_time, listener, self._arm)
        self._boundary = self.replica.boundary
        self._overhead_s = profile.request_overhead_s
        self.submit = self._submit_later if self._overhead_s else self.replica.submit

    def _submit_later(self, attempt: Attempt, now_s: float) -> None:
        """Hand over a request that reaches the engine only after what the server does to it first."""
        self.replica.submit(attempt, now_s + self._overhead_s)

    def _arm(self, at_s: float) -> None:
        if at_s == NEVER_S:
            self._alarm = None
            return
        alarm = self._spare
        if alarm.callbacks is not None:  # it is set, and being replaced
            alarm = self._spare = Alarm(self._clock, self._wake)
        self._alarm = alarm
        self._clock.set(alarm, at_s, LAST)

    def _wake(self, alarm: Event) -> None:
        # An alarm that was replaced still rings, and is ignored.
        if alarm is self._alarm:
            self._boundary(self._clock._now)
