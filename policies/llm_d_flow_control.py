"""llm-d's flow control as it runs: one request a cycle, a gate for each stage, metrics of 50 ms.

`policies.bands` is the idea; this is the clockwork. A cycle comes with each arrival and each millisecond and lets one
request go at most. The gate is the fuller of the stages: replicas that prefill, those that decode. A report older than
200 ms is a full replica. Cycles in which nothing can change are left out (`policies.api.Dozing`): the same happens.

Source: llm-d-router at commit ebab687 (2026-08-22), ``pkg/epp/flowcontrol`` and its plugins, the newest that could be
read; of later merges, what to do with stale reports (PR 2492). See docs/policies.md for what is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import (
    Chance,
    EntitlementSpec,
    InFlight,
    PoolCapacity,
    PoolLedger,
    ReplicaLedger,
    RequestView,
    Verdict,
)
from policies.bands import Bands, BandsPolicy
from policies.parts.lines import Waiting
from policies.parts.orders import FirstCome, LeastAttainedService, OrderParams, RoundRobin
from policies.parts.saturation import Signal

_QUEUE, _KV = 5.0, 0.8
_MOST_REQUESTS, _MOST_TOKENS = 100, 1_000_000
_GRACE_S = {"utilisation": 2.3, "concurrency": 0.01, "hybrid": 0.01}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmDFlowControl:
    """llm-d's flow control with its clock: one request a cycle of 1 ms or an arrival, a gate by stage, 50 ms metrics.

    Give the pool ``scrape_interval_s: 0.05``, or every report is stale and every replica full. Detectors: utilisation,
    the mean of max(waiting / 5, KV / 0.8); concurrency, requests in flight over 100 a replica; hybrid, the mean of the
    larger of that and of uncached prompt tokens over 1,000,000. Program-aware is least attained service, charged at the
    end. ``evict`` ends running requests of bands below 0 for whoever waits above them.
    """

    kind: Literal["llm-d-flow-control"] = "llm-d-flow-control"
    version: Literal["2026-08-22"] = field(
        default="2026-08-22", metadata={"description": "the version that was read"}
    )
    detector: Literal["utilisation", "concurrency", "hybrid"] = field(
        default="utilisation", metadata={"description": "utilisation, concurrency or hybrid"}
    )
    stale_s: float = field(default=0.2, metadata={"gt": 0, "description": "give the age that is too old, in s, 0.2"})
    staleness: Literal["saturated", "ignore"] = field(
        default="saturated", metadata={"description": "saturated: a stale replica is full; ignore: it is not counted"}
    )
    fairness: Literal["global-strict", "round-robin", "program-aware"] = field(
        default="global-strict", metadata={"description": "global-strict, round-robin or program-aware"}
    )
    ordering: Literal["fcfs", "slo-deadline"] = field(
        default="fcfs", metadata={"description": "fcfs, or slo-deadline: by arrival and TTFT objective"}
    )
    ceilings: Literal["static", "holdback", "soft-reflective"] = field(
        default="static", metadata={"description": "static, holdback or soft-reflective"}
    )
    min_ceiling: float = field(default=0.7, metadata={"gt": 0, "description": "give the lowest band's ceiling, 0.7"})
    priorities: Mapping[str, int] = field(
        default_factory=dict, metadata={"description": "give priorities by entitlement, e.g. {chat: 10}; else by class"}
    )
    prefill_replicas: tuple[int, ...] = field(
        default=(), metadata={"description": "give the replicas of the prefill stage; left out, one stage is all"}
    )
    evict: bool = field(default=False, metadata={"description": "give true to evict running requests of bands below 0"})
    tick_s: float = field(default=0.001, metadata={"gt": 0, "description": "give seconds between cycles, e.g. 0.001"})

    def bands(self) -> Bands:
        """Return what `policies.bands` is told."""
        orders: Mapping[str, OrderParams] = {
            "global-strict": FirstCome(), "round-robin": RoundRobin(), "program-aware": LeastAttainedService(),
        }  # fmt: skip
        return Bands(
            ceilings=self.ceilings, min_ceiling=self.min_ceiling, priorities=self.priorities,
            order=orders[self.fairness], within="edf" if self.ordering == "slo-deadline" else "fcfs", evict=self.evict,
            queue_requests=5000, timeout_s=60.0, timeout_status=429, tick_s=self.tick_s,
        )


class _Stages(Signal):
    """The fuller of two stages; without stages, the pool."""

    def __init__(self, params: LlmDFlowControl) -> None:
        self._params = params
        self._prefill = frozenset(params.prefill_replicas)
        self._prompt_tokens: dict[int, int] = {}  # by replica: of requests without a first token
        self._waits: dict[str, tuple[int, int]] = {}
        self.wants_reports = params.detector == "utilisation"
        self.wants_progress = params.detector == "hybrid"

    def value(self, pool: PoolLedger, now_s: float) -> float:
        ready = [book for book in pool.replicas if book.ready]
        if not self._prefill:
            return self._of(ready, now_s) if ready else 1.0
        stages = [[book for book in ready if (book.replica_id in self._prefill) is which] for which in (True, False)]
        return max((self._of(stage, now_s) for stage in stages if stage), default=1.0)

    def _of(self, stage: Sequence[ReplicaLedger], now_s: float) -> float:
        if self._params.detector == "concurrency":
            return sum(book.in_flight for book in stage) / (_MOST_REQUESTS * len(stage))
        if self._params.detector == "hybrid":
            tokens = self._prompt_tokens
            each = (
                max(book.in_flight / _MOST_REQUESTS, tokens.get(book.replica_id, 0) / _MOST_TOKENS) for book in stage
            )
            return sum(each) / len(stage)
        oldest_s, scores = now_s - self._params.stale_s, []
        for book in stage:
            report = book.report
            if report is not None and report.seen_at_s >= oldest_s:
                scores.append(max(report.waiting / _QUEUE, report.kv_used_fraction / _KV))
            elif self._params.staleness == "saturated":
                scores.append(1.0)
        return sum(scores) / len(scores) if scores else 0.0

    def steady_until_s(self, pool: PoolLedger, now_s: float) -> float:
        """Return until when it stays as it is if nothing is heard: till the next report is too old."""
        if self._params.detector != "utilisation":
            return math.inf
        seen = [book.report.seen_at_s for book in pool.replicas if book.ready and book.report is not None]
        oldest_s = now_s - self._params.stale_s
        return min((at_s for at_s in seen if at_s >= oldest_s), default=math.inf) + self._params.stale_s

    def of_sequences(self, sequences: int, capacity: PoolCapacity) -> float:
        if self._params.detector == "utilisation":
            return 0.0
        return sequences / (_MOST_REQUESTS * max(1, capacity.ready_replicas))

    def admitted(self, flight: InFlight) -> None:
        tokens = 0 if flight.prompt_credited else flight.request.prompt_tokens
        self._waits[flight.request.request_id] = flight.replica_id, tokens
        self._prompt_tokens[flight.replica_id] = self._prompt_tokens.get(flight.replica_id, 0) + tokens

    def first_token(self, flight: InFlight, now_s: float) -> None:  # noqa: ARG002
        self.ended(flight)

    def ended(self, flight: InFlight) -> None:
        found = self._waits.pop(flight.request.request_id, None)
        if found is not None:
            self._prompt_tokens[found[0]] -= found[1]


class LlmDFlowControlPolicy(BandsPolicy):
    """See `policies.bands.BandsPolicy`; a cycle lets one request go, and comes with an arrival or a tick."""

    _prompt_at_start = False

    def __init__(
        self, params: LlmDFlowControl, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,
    ) -> None:
        super().__init__(
            params.bands(), entitlements=entitlements, kv_bytes_per_token=kv_bytes_per_token, chance=chance
        )
        self._signal = self._stages = _Stages(params)
        self.wants_reports = self._signal.wants_reports
        self.wants_progress = self._signal.wants_progress
        self._grace_s = _GRACE_S[params.detector]
        self._cycle = False
        self._tick_s = params.tick_s
        # Where a cycle does more than look at the gate, every one counts.
        self._sees_all_change = (
            not params.evict and not self.wants_progress and params.ceilings != "soft-reflective"
            and params.fairness != "program-aware"
        )

    def may_start(self, request: RequestView, need_tokens: int, pool: PoolLedger, now_s: float) -> bool:  # noqa: ARG002
        """Whether its band's gate is open: an arrival brings a cycle along."""
        rank = self._rank[request.entitlement]
        saturation = self._signal.value(pool, now_s)
        # A gate that is shut stops the cycle, also that of a higher band in which nobody waits.
        ceilings = self._ceilings(saturation)[: rank + 1]
        return saturation < min(ceilings) and self._with_others(request, saturation, pool) < ceilings[rank]

    def joined(self, item: Waiting, now_s: float) -> None:
        """Take note that an arrival brings a cycle along."""
        super().joined(item, now_s)
        self._cycle = True

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        """Count a cycle."""
        super().on_tick(pool, now_s)
        self._cycle = True

    def _has_cycle(self, now_s: float) -> bool:  # noqa: ARG002
        """Whether there is a cycle left."""
        return self._cycle

    def dispatch(self, pool: PoolLedger, now_s: float) -> Iterator[tuple[str, Verdict]]:
        """See `policies.api.Queueing`: what is not used of a cycle is lost."""
        yield from super().dispatch(pool, now_s)
        self._cycle = False

    def quiet_until_s(self, pool: PoolLedger, now_s: float) -> float:
        """See `policies.api.Dozing`: while the gate is shut, till somebody has waited too long or a report is old."""
        if not self._sees_all_change:
            return now_s
        if not self._waiting:
            return math.inf
        self._cycle = True
        goes = self.next(pool, now_s) is not None
        self._cycle = False
        if goes:
            return now_s
        late_s = self._expiring[0][0] if self._expiring else math.inf
        return min(late_s, self._stages.steady_until_s(pool, now_s) - self._tick_s)  # a cycle for what is rounded

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Count it, and the cycle as used."""
        super().on_admitted(flight, pool, now_s)
        self._cycle = False
