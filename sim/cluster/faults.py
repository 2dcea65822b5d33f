"""What happens to the pool in mid-run: capacity lost and regained, replicas that fail and return."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import simpy

from policies.api import PoolCapacity
from sim.cluster.engine_group import shares_by
from sim.cluster.fleet import Fleet
from sim.cluster.gateway import SimulatedGateway
from sim.cluster.node import Node
from sim.scenario.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEvent:
    """Something that happens to the pool at ``at_s``.

    Attributes
    ----------
    sets_capacity : whether ``slots`` and ``kv_blocks``, totals of the pool, are set; None there: as provisioned.
    fail, restore : the replica that crashes, or returns.
    slow, factor : the replica whose iterations take ``factor`` times as long from here on.
    """

    at_s: float
    sets_capacity: bool = False
    slots: int | None = None
    kv_blocks: int | None = None
    fail: int | None = None
    restore: int | None = None
    slow: int | None = None
    factor: float = 1.0


class Pool:
    """What each replica is set to provide, and the sum over those that are up."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._slots = [node.profile.slots for node in nodes]
        self._kv_blocks = [node.profile.held_blocks for node in nodes]
        self._known: tuple[list[int], PoolCapacity] | None = None  # who was up at the last look, and what they provide

    def set(self, slots: int | None, kv_blocks: int | None, now_s: float) -> None:
        """Spread new totals over the replicas; None restores what was provisioned."""
        own_slots = [node.profile.slots for node in self._nodes]
        own_blocks = [node.profile.held_blocks for node in self._nodes]
        self._slots = shares_by(sum(own_slots) if slots is None else slots, own_slots)
        self._known = None
        self._kv_blocks = shares_by(sum(own_blocks) if kv_blocks is None else kv_blocks, own_blocks)
        for node, node_slots, node_blocks in zip(self._nodes, self._slots, self._kv_blocks, strict=True):
            node.replica.set_slots(node_slots, now_s)
            node.replica.set_kv_blocks(node_blocks, now_s)

    def capacity(self) -> PoolCapacity:
        """Return the capacity of the replicas that are up."""
        up = [node.replica_id for node in self._nodes if node.up]
        if self._known is None or self._known[0] != up:
            parts = [(self._nodes[i].profile, self._slots[i], self._kv_blocks[i]) for i in up]
            self._known = up, _capacity(parts)
        return self._known[1]

    def ready(self) -> tuple[int, ...]:
        """Return which replicas take requests: those that are up, and have slots and KV blocks unless none has both.

        Where totals are spread, a replica may be left nothing; what is sent there would wait while others are idle.
        """
        up = [node.replica_id for node in self._nodes if node.up]
        return tuple([i for i in up if self._slots[i] and self._kv_blocks[i]] or up)


def provisioned(profiles: Sequence[Profile]) -> PoolCapacity:
    """Return the capacity of a pool in full health."""
    return _capacity([(profile, profile.slots, profile.held_blocks) for profile in profiles])


def _capacity(replicas: Sequence[tuple[Profile, int, int]]) -> PoolCapacity:
    """Return what replicas with their slots and blocks provide: summed by kind, then over kinds.

    Token throughput is declared for a full replica and shrinks with the slots; where one kind declares none, the pool's
    is not known.
    """
    by_kind: dict[int, tuple[Profile, int, int]] = {}
    for profile, slots, kv_blocks in replicas:
        _, slots_before, blocks_before = by_kind.get(id(profile), (profile, 0, 0))
        by_kind[id(profile)] = profile, slots_before + slots, blocks_before + kv_blocks
    tokens_per_s: list[float | None] = []
    kv_bytes: list[float | None] = []
    for profile, slots, kv_blocks in by_kind.values():
        declared, per_token = profile.tokens_per_s, profile.kv_bytes_per_token
        tokens_per_s.append(None if declared is None else declared * slots / profile.slots)
        kv_bytes.append(None if per_token is None else float(kv_blocks * profile.block_tokens * per_token))
    return PoolCapacity(
        len(replicas), sum(slots for _, slots, _ in by_kind.values()), _sum(tokens_per_s), _sum(kv_bytes)
    )


def _sum(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return None if len(known) < len(parts) else sum(known, start=0.0)


def apply_events(
    env: simpy.Environment,
    events: Sequence[PoolEvent],
    pool: Pool,
    nodes: Sequence[Node],
    gateway: SimulatedGateway,
    fleet: Fleet | None = None,
) -> Generator[simpy.Event, None, None]:
    """Make the events happen, in order of time. A ``fleet`` hears of replicas lost and returned."""
    for event in sorted(events, key=lambda e: e.at_s):
        yield env.timeout(max(0.0, event.at_s - env.now))
        if event.sets_capacity:
            pool.set(event.slots, event.kv_blocks, env.now)
        if event.fail is not None:
            nodes[event.fail].up = nodes[event.fail].reachable = False
            # Before the capacity: a policy that takes back what is too much must not count who is lost already.
            gateway.fail(nodes[event.fail])
            if fleet is not None:
                fleet.failed(event.fail)
        if event.restore is not None:
            if fleet is not None:
                fleet.restored(event.restore)
            else:
                nodes[event.restore].up = nodes[event.restore].reachable = True
        if event.slow is not None:
            nodes[event.slow].replica.set_slowdown(event.factor, env.now)
            continue
        gateway.capacity_changed(pool.capacity(), pool.ready())
