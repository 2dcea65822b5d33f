"""What a gateway says for the whole pool: which replicas are ready, what their metrics are, how many there should be.

All gateways look at the same replicas. Each says in Redis what it sees (`sim.live.shared_state.pool_health`); the
leader tells the core what any of them sees, and whoever speaks for a replica tells of its metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from policies.api import CapacityChanged, PoolCapacity, ReplicaReport
from sim.live.gateway.changeover import CoreOf
from sim.live.shared_state.core_copy import CoreCopy
from sim.live.shared_state.pool_health import PoolHealth, speaker
from sim.live.shared_state.signing import Signer


class Status(NamedTuple):
    """How the shared state is, for metrics and the admin page."""

    reachable: bool
    leads: bool
    gateways: int
    applied: int
    waiting: int
    times_away: int
    why: str
    skipped: Mapping[str, int] = {}
    healed: int = 0
    evicts: str = ""


class SpeakingCopy(CoreCopy):
    """A copy of the core that also tells of the replicas, where it is its turn."""

    def __init__(
        self, name: str, loop: asyncio.AbstractEventLoop, config: str, core_of: CoreOf | None, signer: Signer
    ) -> None:
        super().__init__(name, loop, config, core_of, signer)
        self._leader = ""
        self._health: PoolHealth | None = None
        self._reports: dict[int, ReplicaReport] = {}
        self._catching_up = self._lost = False

    def _saw(self, event: CapacityChanged | ReplicaReport, *, reachable: bool) -> None:
        """Take note of what this gateway sees of the replicas."""
        if isinstance(event, CapacityChanged):
            if self._health_of().saw(event, self._us):
                self._wake.set()
            return
        self._reports[event.replica_id] = event
        if reachable and self._speaks_for(event.replica_id):
            self._put(event)

    def _set_leader(self, leader: str) -> None:
        led, self._leads = self._leads, leader == self.name
        changed, self._leader = leader != self._leader, leader
        if self._leads and not led:
            self._at().scale(self._at().core.replicas_wanted)
            self._speak_of_health()
        if changed or (self._leads and not led):
            for replica_id, report in self._reports.items():
                if self._speaks_for(replica_id):
                    self._put(report)

    def _speaks_for(self, replica_id: int) -> bool:
        return speaker(replica_id, self._health_of().views, self._leader) == self.name

    def _speak_of_health(self) -> None:
        """Tell the core, as the leader, what the pool has, where it was told something else last."""
        said = self._health_of().now()
        if said is None or not self._leads:
            return
        waiting = [each.event for each in self._outbox if isinstance(each.event, CapacityChanged)]
        pool = self._at().core.pool
        known = CapacityChanged(pool.capacity, tuple(book.replica_id for book in pool.replicas if book.ready))
        if said != (waiting[-1] if waiting else known):
            self._put(said)

    def _changed_over(self, whole: PoolCapacity) -> None:
        self._health_of().whole = whole
        self._speak_of_health()

    def _lose(self, lost: str, now_s: float) -> None:
        super()._lose(lost, now_s)
        if lost == self.name and not self._catching_up:
            self._lost = True

    def _signed_view(self, text: str) -> str:
        return f"{self._signer.sign('view', self._epoch, self.name, text)} {text}" if text else ""

    def _believed(self, flat: Sequence[str]) -> dict[str, str]:
        """Return what gateways see, as far as it is signed by them."""
        found = {}
        for name, signed in zip(flat[::2], flat[1::2], strict=False):
            signature, _, text = signed.partition(" ")
            if text and self._signer.believes(signature, "view", self._epoch, name, text):
                found[name] = text
            elif text:
                self.skipped["unsigned"] += 1
        return found

    def _health_of(self) -> PoolHealth:
        assert self._health is not None, "SharedLog.open comes first"
        return self._health
