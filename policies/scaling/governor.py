"""What all autoscalers share: bounds, how often they look, and how readily they go up and down."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from policies.api import Gauge, PoolLedger


def says(description: str, **bounds: float) -> Mapping[str, object]:
    """Return the metadata of a field: its description and pydantic's bounds."""
    return {**bounds, "description": description}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The fields that every autoscaler has."""

    kind: str = ""
    min_replicas: int = field(default=1, metadata=says("give the fewest replicas, e.g. 1", ge=1))
    max_replicas: int = field(default=8, metadata=says("give the most replicas, e.g. 8", ge=1, le=10_000))
    every_s: float = field(default=15.0, metadata=says("give seconds between two looks, e.g. 15", gt=0))
    tolerance: float = field(
        default=0.1, metadata=says("give the share by which the wish may differ before it counts, e.g. 0.1", ge=0, lt=1)
    )
    down_after_s: float = field(
        default=300.0, metadata=says("give the seconds for which fewer must suffice before one goes, e.g. 300", ge=0)
    )

    def __post_init__(self) -> None:
        """Refuse bounds that cross."""
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, below min_replicas ({self.min_replicas}); "
                f"give at least {self.min_replicas}"
            )


class Rule(Protocol):
    """What one autoscaler would like."""

    def wish(self, pool: PoolLedger, current: int, now_s: float) -> float:
        """Return a number of replicas, not rounded; ``current`` is how many were last asked for."""
        ...


@runtime_checkable
class Shown(Protocol):
    """A rule with something for the timeline."""

    def gauges(self) -> Iterable[Gauge]:
        """Return what it last saw."""
        ...


class Governor:
    """Turns a rule's wishes into numbers of replicas; see `policies.api.Scaler`.

    Up at once; down to the largest number that was wished for in the last ``down_after_s``, as the Kubernetes
    HorizontalPodAutoscaler stabilises. A wish within the tolerance of what there is changes nothing.
    """

    def __init__(
        self, params: Bounds, rule: Rule, *, wants_reports: bool = False, wants_progress: bool = False
    ) -> None:
        self.every_s = params.every_s
        self.wants_reports = wants_reports
        self.wants_progress = wants_progress
        self._params = params
        self._rule = rule
        self._wished: deque[tuple[float, int]] = deque()

    def gauges(self) -> Iterable[Gauge]:
        """See `policies.api.Scaler`."""
        return self._rule.gauges() if isinstance(self._rule, Shown) else ()

    def replicas(self, pool: PoolLedger, current: int, now_s: float) -> int:
        """See `policies.api.Scaler`."""
        params = self._params
        wish = self._rule.wish(pool, current, now_s)
        near = current > 0 and abs(wish / current - 1) <= params.tolerance
        wanted = current if near else math.ceil(min(wish, float(params.max_replicas)))
        wanted = max(params.min_replicas, min(params.max_replicas, wanted))
        wished = self._wished
        while wished and wished[0][0] <= now_s - params.down_after_s:
            wished.popleft()
        while wished and wished[-1][1] <= wanted:  # the larger and later one outlasts it
            wished.pop()
        wished.append((now_s, wanted))
        return wanted if wanted > current else min(current, wished[0][1])
