"""The nodes of the tree above entitlements, what is in use below each, and which of them has room.

`policies.hierarchy` walks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from policies.budgets import Budget, BudgetAccount, Calendar, Price
from policies.messages import Deny, EntitlementSpec, Reason, Resources, ServiceClass
from policies.meters import ContinuousBucket

RETRY_S = 1.0
"""Retry-After where something has to end first: nobody knows when. [choice]"""

_RANK = {service_class: rank for rank, service_class in enumerate(ServiceClass)}
_NEVER_S = float("-inf")
_NOTHING = Resources()
_CALENDAR = Calendar()


def group_id(name: str) -> str:
    """Return the id of a group's node."""
    return f"group/{name}"


def entitlement_id(name: str) -> str:
    """Return the id of an entitlement's node."""
    return f"entitlement/{name}"


def key_id(name: str) -> str:
    """Return the id of a key's node."""
    return f"key/{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A place in the tree.

    Attributes
    ----------
    node_id, parent : as `group_id`, `entitlement_id` and `key_id` make them; a root has no parent.
    limit : what all below it may have together; of an entitlement it is the policy's matter, and not looked at here.
    baseline : what its siblings leave to it.
    service_class : None for the most protected class below it.
    """

    node_id: str
    parent: str | None = None
    limit: Resources = _NOTHING
    baseline: Resources = _NOTHING
    service_class: ServiceClass | None = None
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HierarchySpec:
    """The tree, what tokens cost, and the calendar.

    Attributes
    ----------
    prices : by model; "" is any other model's.
    idle_s : after so long without a request, what a member leaves is open to less protected ones.
    burst_s : seconds of a rate that may be used at once.
    """

    nodes: tuple[Node, ...] = ()
    prices: Mapping[str, Price] = field(default_factory=dict)
    calendar: Calendar = _CALENDAR
    idle_s: float = 10.0
    burst_s: float = 10.0


class Place:
    """A node with what is in use below it."""

    __slots__ = (
        "accounts", "asked_s", "base_rate", "baseline", "enforced", "in_flight", "kv_bytes", "limit", "members",
        "node_id", "parent", "rank", "rate",
    )  # fmt: skip

    def __init__(self, node: Node, rank: int, burst_s: float) -> None:
        self.node_id = node.node_id
        self.rank = rank
        self.enforced = not node.node_id.startswith("entitlement/")
        self.limit, self.baseline = node.limit, node.baseline
        self.parent: Place | None = None
        self.members: list[Place] = []
        self.in_flight = 0
        self.kv_bytes = 0.0
        self.asked_s = _NEVER_S
        self.rate = _bucket(node.limit.tokens_per_s if self.enforced else None, burst_s)
        self.base_rate = _bucket(node.baseline.tokens_per_s, burst_s)
        self.accounts = [BudgetAccount(budget) for budget in node.budgets]


def _bucket(rate_per_s: float | None, burst_s: float) -> ContinuousBucket | None:
    return ContinuousBucket(rate_per_s=rate_per_s, depth=rate_per_s * burst_s) if rate_per_s else None


def over_limit(
    place: Place, below: Place | None, sequences: int, reserved: int, kv_bytes: float, now_s: float, idle_s: float
) -> Deny | None:
    """Return the refusal by a node's limit; ``below`` is the member that asks."""
    limit = place.limit
    if limit.slots is not None:
        own = below is not None and below.in_flight + sequences <= (below.baseline.slots or 0)
        held = 0.0 if own or below is None else _held_slots(place, below, now_s, idle_s)
        if place.in_flight + sequences + held > limit.slots:
            wait_s = None if sequences > limit.slots else RETRY_S
            left = max(0.0, limit.slots - held - place.in_flight)
            return Deny(Reason.PARENT_LIMIT, sequences, left, wait_s)
    if limit.kv_bytes is not None and kv_bytes:
        own = below is not None and below.kv_bytes + kv_bytes <= (below.baseline.kv_bytes or 0)
        held = 0.0 if own or below is None else _held_kv_bytes(place, below, now_s, idle_s)
        if place.kv_bytes + kv_bytes + held > limit.kv_bytes:
            wait_s = None if kv_bytes > limit.kv_bytes else RETRY_S
            left = max(0.0, limit.kv_bytes - held - place.kv_bytes)
            return Deny(Reason.PARENT_LIMIT, kv_bytes, left, wait_s)
    if place.rate is None:
        return None
    # What is larger than the bucket may go when it is full, and is paid off afterwards.
    need = min(float(reserved), place.rate.depth)
    base = None if below is None else below.base_rate
    own = base is not None and base.available(now_s) >= min(float(reserved), base.depth)
    held = 0.0 if own or below is None else _held_tokens(place, below, now_s, idle_s)
    held = min(held, max(0.0, place.rate.depth - need))
    missing = need + held - place.rate.available(now_s)
    if missing <= 1e-9 * need:
        return None
    return Deny(
        Reason.PARENT_LIMIT, need, max(0.0, need - missing), max(RETRY_S, missing / place.rate.rate_per_s)
    )


def _keepers(place: Place, asks: Place, now_s: float, idle_s: float) -> Iterable[Place]:
    """Return the members of a group whose unused baseline is not open to one of them."""
    for member in place.members:
        if member is asks:
            continue
        dedicated = member.rank == _RANK[ServiceClass.DEDICATED]
        if dedicated or (member.rank <= asks.rank and now_s - member.asked_s < idle_s):
            yield member


def _held_slots(place: Place, asks: Place, now_s: float, idle_s: float) -> float:
    return sum(max(0.0, (one.baseline.slots or 0.0) - one.in_flight) for one in _keepers(place, asks, now_s, idle_s))


def _held_kv_bytes(place: Place, asks: Place, now_s: float, idle_s: float) -> float:
    return sum(max(0.0, (one.baseline.kv_bytes or 0.0) - one.kv_bytes) for one in _keepers(place, asks, now_s, idle_s))


def _held_tokens(place: Place, asks: Place, now_s: float, idle_s: float) -> float:
    return sum(
        max(0.0, one.base_rate.available(now_s))
        for one in _keepers(place, asks, now_s, idle_s) if one.base_rate is not None
    )  # fmt: skip


def grown(spec: HierarchySpec, entitlements: Sequence[EntitlementSpec]) -> dict[str, Place]:
    """Return the places by id, joined; an entitlement that the tree does not name stands alone."""
    nodes = {node.node_id: node for node in sorted(spec.nodes, key=lambda node: node.node_id)}
    classes = {entitlement_id(one.name): one.service_class for one in entitlements}
    for one in sorted(entitlements, key=lambda each: each.name):
        node_id = entitlement_id(one.name)
        given = nodes.get(node_id, Node(node_id=node_id))
        nodes[node_id] = Node(
            node_id=node_id, parent=given.parent, limit=one.limit, baseline=one.baseline,
            service_class=one.service_class, budgets=given.budgets,
        )  # fmt: skip
    ranks = {node_id: _RANK[service_class] for node_id, service_class in classes.items()}
    for node_id in classes:
        parent, rank = nodes[node_id].parent, ranks[node_id]
        seen = {node_id}
        while parent is not None:
            if parent not in nodes or parent in seen:
                raise ValueError(f"{node_id} is below {parent!r}, which is no group above it; give a group's name")
            seen.add(parent)
            ranks[parent] = min(rank, ranks.get(parent, rank))
            parent = nodes[parent].parent
    lowest = len(_RANK) - 1
    places: dict[str, Place] = {}
    for node_id, node in nodes.items():
        own = None if node.service_class is None else _RANK[node.service_class]
        places[node_id] = Place(node, ranks.get(node_id, lowest) if own is None else own, spec.burst_s)
    for node_id, node in nodes.items():
        if node.parent is not None:
            places[node_id].parent = places[node.parent]
            places[node.parent].members.append(places[node_id])
    return places
