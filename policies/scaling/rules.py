"""The autoscalers people use, for comparison. They see admitted load only: what was refused, no replica ever felt.

Each is reduced to the rule that decides; prediction, placement and metric pipelines are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import PoolCapacity, PoolLedger, ReplicaReport
from policies.scaling.governor import Bounds, says

_FLOOR = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilisation(Bounds):
    """Target utilisation of the slots, like the Kubernetes HorizontalPodAutoscaler on a custom metric.

    replicas = current * utilisation / target
    """

    kind: Literal["utilisation"] = "utilisation"
    target: float = field(default=0.7, metadata=says("give the share of slots to keep in use, e.g. 0.7", gt=0, le=1))


class UtilisationRule:
    """See `Utilisation`."""

    def __init__(self, params: Utilisation) -> None:
        self._target = params.target

    def wish(self, pool: PoolLedger, current: int, now_s: float) -> float:  # noqa: ARG002
        """See `policies.scaling.governor.Rule`; before anything is ready there is nothing to go by."""
        slots, ready = pool.capacity.slots, pool.capacity.ready_replicas
        if not slots:
            return current
        return ready * pool.all_in_flight / slots / self._target


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation(Bounds):
    """Spare KV cache and queue of the replicas, like the saturation rule of llm-d's Workload Variant Autoscaler.

    A replica is saturated above ``kv_most`` or ``queue_most``. One more is wanted when those that are not have on
    average less than ``kv_spare`` or ``queue_spare`` left, or when all are; one fewer when its load would fit the rest.
    """

    kind: Literal["saturation"] = "saturation"
    kv_most: float = field(
        default=0.8, metadata=says("give the KV use above which a replica is saturated, e.g. 0.8", gt=0, le=1)
    )
    kv_spare: float = field(
        default=0.1, metadata=says("give the spare KV use below which one more is wanted, e.g. 0.1", ge=0, lt=1)
    )
    queue_most: float = field(
        default=5.0, metadata=says("give the queue above which a replica is saturated, e.g. 5", gt=0)
    )
    queue_spare: float = field(
        default=3.0, metadata=says("give the spare queue below which one more is wanted, e.g. 3", ge=0)
    )

    def __post_init__(self) -> None:
        Bounds.__post_init__(self)
        for most, spare in (("kv_most", "kv_spare"), ("queue_most", "queue_spare")):
            if getattr(self, spare) > getattr(self, most):
                raise ValueError(
                    f"{spare} is {getattr(self, spare):g}, more than {most} ({getattr(self, most):g}), so that there "
                    f"never is enough to spare; give at most {getattr(self, most):g}"
                )


class SaturationRule:
    """See `Saturation`."""

    def __init__(self, params: Saturation) -> None:
        self._params = params

    def wish(self, pool: PoolLedger, current: int, now_s: float) -> float:  # noqa: ARG002
        """See `policies.scaling.governor.Rule`."""
        reports = [book.report for book in pool.replicas if book.ready and book.report is not None]
        if not reports or len(reports) < current:  # while one is starting, its effect is not seen yet
            return current
        if not self._has_spare(reports, 1.0):
            return current + 1
        shrunk = len(reports) / (len(reports) - 1) if len(reports) > 1 else 0.0
        return current - 1 if shrunk and self._has_spare(reports, shrunk) else current

    def _has_spare(self, reports: Sequence[ReplicaReport], factor: float) -> bool:
        """Whether there is spare room if every replica had ``factor`` times its load."""
        params = self._params
        used = [(report.kv_used_fraction * factor, report.waiting * factor) for report in reports]
        free = [(kv, queue) for kv, queue in used if kv < params.kv_most and queue < params.queue_most]
        if not free:
            return False
        kv_spare = params.kv_most - sum(kv for kv, _ in free) / len(free)
        queue_spare = params.queue_most - sum(queue for _, queue in free) / len(free)
        return kv_spare >= params.kv_spare and queue_spare >= params.queue_spare


@dataclass(frozen=True, slots=True, kw_only=True)
class Sla(Bounds):
    """Load over what a replica serves within the objective, like the SLA planner of NVIDIA Dynamo.

    The next interval's load is taken to be the last one's; a replica's declared throughput is corrected by how far time
    to first token was off.
    """

    kind: Literal["sla"] = "sla"
    ttft_s: float = field(default=0.5, metadata=says("give the objective for time to first token, e.g. 0.5", gt=0))


class SlaRule:
    """See `Sla`."""

    def __init__(self, params: Sla, per_replica: PoolCapacity) -> None:
        if per_replica.tokens_per_s is None:
            raise ValueError("the profile declares no tokens_per_s; give it one, or another autoscaler")
        self._ttft_s = params.ttft_s
        self._tokens_per_s = per_replica.tokens_per_s
        self._last = (0.0, 0, 0, 0.0)  # time, work, first tokens, seconds waited for them

    def wish(self, pool: PoolLedger, current: int, now_s: float) -> float:
        """See `policies.scaling.governor.Rule`."""
        at_s, work_before, first_before, waited_before_s = self._last
        work = sum(book.worked_tokens for book in pool.entitlements.values())
        self._last = (now_s, work, pool.first_tokens, pool.waited_s)
        if now_s <= at_s:
            return current
        first = pool.first_tokens - first_before
        ttft_s = (pool.waited_s - waited_before_s) / first if first else 0.0
        correction = max(_FLOOR, min(1.0, self._ttft_s / ttft_s)) if ttft_s > 0 else 1.0
        return (work - work_before) / (now_s - at_s) / (self._tokens_per_s * correction)
