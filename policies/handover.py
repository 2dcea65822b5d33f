"""From one configuration to the next: a new core takes over what runs under an old one.

Nothing that runs is dropped and nobody is served twice. Requests in flight are adopted, held ones are judged anew, the
replicas stay as they are. Service times go over; what a policy remembers goes over as far as it is `Inheriting`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from policies.api import (
    Adopted,
    Arrived,
    CapacityChanged,
    EntitlementSpec,
    Inheriting,
    Instruction,
    PoolCapacity,
    Reason,
    Refuse,
)
from policies.core import GatewayCore


def part_of(whole: PoolCapacity, ready: int, slots: int | None = None) -> PoolCapacity:
    """Return what so many of a pool's replicas provide, no more than ``slots``, with tokens per second to match."""
    share = ready / whole.ready_replicas if whole.ready_replicas else 0.0
    has = PoolCapacity(
        ready, round(whole.slots * share), None if whole.tokens_per_s is None else whole.tokens_per_s * share,
        None if whole.kv_bytes is None else whole.kv_bytes * share,
    )  # fmt: skip
    if slots is None or slots >= has.slots:
        return has
    rate = has.tokens_per_s
    return has._replace(slots=slots, tokens_per_s=None if rate is None else rate * slots / has.slots)


def leaving(core: GatewayCore, names: Sequence[str], now_s: float) -> list[EntitlementSpec]:
    """Return the entitlements that are not among ``names`` and have requests in flight: they expire, these finish."""
    return [
        replace(book.spec, until_s=min(book.spec.until_s, now_s))
        for name, book in core.pool.entitlements.items() if book.in_flight and name not in names
    ]  # fmt: skip


def hand_over(old: GatewayCore, new: GatewayCore, capacity: PoolCapacity, now_s: float) -> Sequence[Instruction]:
    """Start ``new`` where ``old`` stands, and return what it says to do.

    Parameters
    ----------
    new : never started; it has every entitlement of which something is in flight, see `leaving`.
    capacity : what the replicas that are ready provide under the new configuration.
    """
    instructions = list(new.start(now_s))
    ready = tuple(book.replica_id for book in old.pool.replicas if book.ready)
    instructions += new.handle(CapacityChanged(capacity, ready), now_s)
    for flight in old.pool.in_flight.values():
        request_id = flight.request.request_id
        instructions += new.handle(Adopted(
            flight.request, flight.replica_id, flight.max_output_tokens, flight.forwarded_s, flight.prompt_credited,
            flight.output_tokens,
        ), now_s)  # fmt: skip
        adopted = new.pool.in_flight[request_id]
        adopted.failed_at, adopted.only_at = flight.failed_at, flight.only_at
        adopted.cached_tokens = flight.cached_tokens
    new.pool.mean_service_s = old.pool.mean_service_s
    for name, book in new.pool.entitlements.items():
        before = old.pool.entitlements.get(name)
        if before is not None:
            book.mean_service_s = before.mean_service_s
    if new.hierarchy is not None and old.hierarchy is not None:
        new.hierarchy.inherit(old.hierarchy, now_s)
    if isinstance(new.policy, Inheriting):
        new.policy.inherit(old.policy, new.pool, now_s)
    for report in [book.report for book in old.pool.replicas if book.report is not None]:
        instructions += new.handle(report, now_s)
    for request in tuple(old.held.values()):
        if request.entitlement in new.pool.entitlements:
            instructions += new.handle(Arrived(request), now_s)
        else:
            instructions.append(Refuse(request.request_id, Reason.NOT_BOUND, 403, None, 1, 0))
    return instructions
