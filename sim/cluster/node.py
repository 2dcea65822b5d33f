"""A replica in SimPy's time: the wakes that `sim.cluster.replica.Replica` asks for become events."""

from __future__ import annotations

import simpy
from simpy.events import Event

from sim.cluster.attempt import Attempt
from sim.cluster.clock import LAST, Alarm, call_at
from sim.cluster.replica import NEVER_S, Listener, Replica
from sim.profiles import Profile


class Node:
    """One replica and its clock. ``up`` is False from a failure until the return."""

    def __init__(self, env: simpy.Environment, replica_id: int, profile: Profile, listener: Listener[Attempt]) -> None:
        self._env = env
        self._alarm: Alarm | None = None
        self.replica_id = replica_id
        self.up = True
        self.replica: Replica[Attempt] = Replica(
            step_time=profile.step_time,
            max_num_seqs=profile.max_num_seqs,
            max_num_batched_tokens=profile.max_num_batched_tokens,
            kv_blocks=profile.kv_blocks,
            block_tokens=profile.block_tokens,
            scheduling=profile.scheduling,
            listener=listener,
            arm=self._arm,
        )

    def _arm(self, at_s: float) -> None:
        self._alarm = None if at_s == NEVER_S else call_at(self._env, at_s, self._wake, LAST)

    def _wake(self, alarm: Event) -> None:
        # An alarm that was replaced still rings, and is ignored.
        if alarm is self._alarm:
            self.replica.boundary(self._env.now)
