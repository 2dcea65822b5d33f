"""From one core to another, of a new pool and policy, with what is in flight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from policies.api import EntitlementSpec, Instruction
from policies.core import GatewayCore
from policies.handover import hand_over, leaving, part_of

CoreOf = Callable[[Mapping[str, Any], Sequence[EntitlementSpec]], GatewayCore]
"""Returns a core of a pool and policy as plain values, with entitlements that leave besides."""


def changeover(
    core_of: CoreOf, head: Mapping[str, Any], old: GatewayCore, now_s: float
) -> tuple[GatewayCore, Sequence[Instruction]]:
    """Return the core of ``head`` that has taken over from ``old``, and what it says to do."""
    names = [one["name"] for one in head["pool"]["entitlements"]]
    new = core_of(head, leaving(old, names, now_s))
    ready = sum(book.ready for book in old.pool.replicas)
    return new, hand_over(old, new, part_of(new.pool.capacity, ready), now_s)
