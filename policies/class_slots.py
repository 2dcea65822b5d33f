"""Slots reserved for classes, with strict order, promotion of who starves, and preemption before the first token: SMG.

A slot is a request, however large. A class may use what the unused reserves of higher classes leave. Who waited longer
than its class bears starts from any free slot, the lowest class first. A class that may preempt and finds every slot
taken cancels the newest request of the lowest class from which no token came yet.

Source: sglang model gateway, ``model_gateway/src/.../slots.rs`` and its priority scheduler (2026-08-07).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import (
    Admit,
    Chance,
    Deny,
    EntitlementSpec,
    Gauge,
    InFlight,
    PoolLedger,
    Reason,
    RequestView,
    ServiceClass,
    Verdict,
)
from policies.parts.idle import refuse_idle
from policies.parts.lines import Line, Waiting
from policies.parts.names import check_names
from policies.parts.queueing import QueueingPolicy
from policies.parts.waits import Waits

ClassName = Literal["system", "interactive", "default", "bulk"]
NAMES: tuple[ClassName, ...] = ("system", "interactive", "default", "bulk")
_CLASS_OF: Mapping[ServiceClass, ClassName] = {
    ServiceClass.DEDICATED: "system", ServiceClass.GUARANTEED: "interactive", ServiceClass.ELASTIC: "default",
    ServiceClass.SPOT: "bulk", ServiceClass.PREEMPTIBLE: "bulk",
}  # fmt: skip
"""What service classes stand for where a scenario names none. [choice]"""
_FOUR = "give four, for system, interactive, default and bulk, e.g. "
Four = tuple[float, float, float, float]
Counts = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSlots(Waits):
    """Slots reserved for classes, strict order, promotion of who starves, preemption before the first token (SMG).

    A class's reserve is the larger of its floor and its share of the slots; where they sum to more than the pool, all
    shrink alike. SMG's floors are 32, 128, 0, 0, made for more slots than most pools here have.
    """

    kind: Literal["class-slots"] = "class-slots"
    classes: Mapping[str, ClassName] = field(
        default_factory=dict,
        metadata={"description": "give classes by entitlement, e.g. {chat: interactive}; else by service class"},
    )
    floors: Counts = field(default=(0, 0, 0, 0), metadata={"description": f"{_FOUR}[32, 128, 0, 0] slots"})
    shares: Four = field(default=(0.0, 0.25, 0.1, 0.0), metadata={"description": f"{_FOUR}[0, 0.25, 0.1, 0] of slots"})
    queues: Counts = field(
        default=(64, 256, 512, 1024), metadata={"description": f"{_FOUR}[64, 256, 512, 1024] requests that may wait"}
    )
    timeouts_s: Four = field(
        default=(30.0, 30.0, 60.0, 300.0), metadata={"description": f"{_FOUR}[30, 30, 60, 300] seconds to wait at most"}
    )
    starved_s: Four = field(
        default=(5.0, 5.0, 30.0, 120.0), metadata={"description": f"{_FOUR}[5, 5, 30, 120] seconds until promotion"}
    )
    can_preempt: tuple[bool, bool, bool, bool] = field(
        default=(True, True, False, False), metadata={"description": f"{_FOUR}[true, true, false, false]"}
    )

    def __post_init__(self) -> None:
        for name, own in (("queue_requests", "queues"), ("queue_tokens", "queues"), ("timeout_s", "timeouts_s")):
            refuse_idle(self, name, "each class has its own", f"give {own}")


class ClassSlotsPolicy(QueueingPolicy):
    """See `policies.parts.queueing.QueueingPolicy`. KV cache does not count, only slots do."""

    wants_progress = True

    def __init__(
        self, params: ClassSlots, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params, kv_bytes_per_token)
        specs = sorted(entitlements, key=lambda spec: spec.name)
        names = [spec.name for spec in specs]
        check_names("classes", params.classes, names)
        self._params = params
        self._class = {
            spec.name: NAMES.index(params.classes.get(spec.name, _CLASS_OF[spec.service_class])) for spec in specs
        }
        self._lines = [Line() for _ in NAMES]
        self._used = [0, 0, 0, 0]
        self._slots = 0.0
        self._reserves = [0.0, 0.0, 0.0, 0.0]
        self._unstarted: list[dict[str, InFlight]] = [{}, {}, {}, {}]

    def _headroom(self, which: int) -> float:
        """Return the slots left for a class: all that are free but for the unused reserves of higher classes."""
        kept = sum(max(0.0, self._reserves[one] - self._used[one]) for one in range(which))
        return self._slots - sum(self._used) - kept

    def _takes(self, which: int, sequences: int) -> bool:
        """Whether a class has room for so many; for more than it could ever have, when nothing runs."""
        return self._headroom(which) >= sequences or (sequences > 1 and not any(self._used))

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Let it in if nobody waits and its class has room, or at another's cost if its class may preempt."""
        verdict = super().decide(request, max_output_tokens, pool, now_s)
        which = self._class[request.entitlement]
        if (
            (isinstance(verdict, Deny) and verdict.reason is Reason.TOO_LARGE)
            or not self._params.can_preempt[which] or sum(self._used) < self._slots or request.sequences > 1
            or not pool.capacity.ready_replicas or self._lines[which].length
        ):
            return verdict
        for lower in range(len(NAMES) - 1, which, -1):
            if self._unstarted[lower]:
                return Admit((next(reversed(self._unstarted[lower])),))
        return verdict

    def may_start(self, request: RequestView, need_tokens: int, pool: PoolLedger, now_s: float) -> bool:  # noqa: ARG002
        """Whether its class has a slot left."""
        return pool.capacity.ready_replicas > 0 and self._takes(self._class[request.entitlement], request.sequences)

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:  # noqa: ARG002
        """Return whoever starves, the lowest class first; else the first of the highest class that has room."""
        if sum(self._used) + 1 > self._slots:
            return None
        for which in range(len(NAMES) - 1, -1, -1):
            line = self._lines[which]
            if line.length and now_s - line.head().since_s > self._params.starved_s[which]:
                head = line.head()
                return head if sum(self._used) + head.request.sequences <= self._slots or not any(self._used) else None
        for which, line in enumerate(self._lines):
            if line.length and self._takes(which, line.head().request.sequences):
                return line.head()
        return None

    def refusal(
        self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float  # noqa: ARG002
    ) -> Deny | None:
        """Each class has a queue of its own."""
        which = self._class[request.entitlement]
        waiting, most = self._lines[which].length, self._params.queues[which]
        if waiting >= most:
            return Deny(Reason.QUEUE_FULL, waiting + 1, most, self.retry_s())
        return None

    def timeout_of(self, item: Waiting) -> float | None:
        """Return its class's."""
        return self._params.timeouts_s[self._class[item.request.entitlement]]

    def joined(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        self._lines[self._class[item.flow]].push(item)

    def left(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        self._lines[self._class[item.flow]].drop(item)

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Count its slot."""
        super().on_admitted(flight, pool, now_s)
        which = self._class[flight.request.entitlement]
        self._used[which] += flight.request.sequences
        if not flight.prompt_credited:
            self._unstarted[which][flight.request.request_id] = flight

    def on_first_token(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """From now on nobody may cancel it."""
        self._unstarted[self._class[flight.request.entitlement]].pop(flight.request.request_id, None)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Give its slot back."""
        super().on_ended(flight, pool, now_s)
        which = self._class[flight.request.entitlement]
        self._used[which] -= flight.request.sequences
        self._unstarted[which].pop(flight.request.request_id, None)

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:
        """Work out the reserves from the slots that there are now."""
        super().on_capacity(pool, now_s)
        self._slots = self._params.occupancy * pool.capacity.slots
        wanted = [
            max(float(floor), math.ceil(share * self._slots))
            for floor, share in zip(self._params.floors, self._params.shares, strict=True)
        ]
        scale = min(1.0, self._slots / sum(wanted)) if sum(wanted) else 1.0
        self._reserves = [each * scale for each in wanted]

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:
        """Return how much waits and what is left for each class."""
        yield from super().gauges(pool, now_s)
        for which, name in enumerate(NAMES):
            yield Gauge("class", name, "queue_requests", self._lines[which].length)
            yield Gauge("class", name, "headroom_slots", self._headroom(which))
