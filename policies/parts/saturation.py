"""How full the pool is, as one number: 1 is full. Signals differ in what they see and in how old it is.

Reports of replicas are as old as the last scrape. Books are always of now, but only of what this gateway did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from policies.api import InFlight, PoolCapacity, PoolLedger
from policies.parts.prefill import PrefillClock


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueAndKv:
    """Replicas' reports: the mean of max(waiting / queue, KV used / kv), as llm-d's utilisation detector has it.

    A report older than ``stale_s`` counts as 1, unless nothing is in flight there, or a pool whose metrics fail would
    never serve again. llm-d takes 0.2 s, which presumes a scrape every 50 ms. [choice: both]
    """

    kind: Literal["queue-and-kv"] = "queue-and-kv"
    queue: float = field(default=5.0, metadata={"gt": 0, "description": "give waiting requests that are full, e.g. 5"})
    kv: float = field(default=0.8, metadata={"gt": 0, "le": 1, "description": "give the share of KV that is full, 0.8"})
    stale_s: float = field(default=5.0, metadata={"gt": 0, "description": "give the age that is too old, in s, e.g. 5"})


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlightShare:
    """Requests in flight over those that are allowed, and tokens likewise (llm-d's concurrency detector)."""

    kind: Literal["in-flight"] = "in-flight"
    requests_per_replica: int | None = field(
        default=100, metadata={"gt": 0, "description": "give requests per replica, e.g. 100, or null for its slots"}
    )
    tokens_per_replica: int | None = field(
        default=None, metadata={"gt": 0, "description": "give reserved tokens per replica, e.g. 1000000; left out, any"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedTtft:
    """The TTFT that a request would have now, over a budget: prompts ahead at the prefill rate seen so far."""

    kind: Literal["predicted-ttft"] = "predicted-ttft"
    budget_s: float = field(default=1.0, metadata={"gt": 0, "description": "give a TTFT that is full, in s, e.g. 1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The gateway's own books of entitlements: slots in use and KV cache reserved, whichever is the larger share."""

    kind: Literal["ledger"] = "ledger"


SaturationParams = QueueAndKv | InFlightShare | PredictedTtft | Ledger
SATURATIONS: Mapping[str, type] = {
    "queue-and-kv": QueueAndKv, "in-flight": InFlightShare, "predicted-ttft": PredictedTtft, "ledger": Ledger,
}  # fmt: skip
SATURATION = {
    "discriminator": "kind",
    "description": "give how fullness is measured, e.g. ledger or {kind: queue-and-kv, stale_s: 2}",
}


class Signal:
    """How full the pool is.

    Attributes
    ----------
    wants_reports, wants_progress : what it needs from the driver.
    """

    wants_reports = False
    wants_progress = False

    def value(self, pool: PoolLedger, now_s: float) -> float:
        """Return 0 for an idle pool, 1 for a full one, more beyond."""
        raise NotImplementedError

    def of_sequences(self, sequences: int, capacity: PoolCapacity) -> float:  # noqa: ARG002
        """Return by how much so many sequences alone fill the pool; 0 where they are not what is looked at."""
        return 0.0

    def age_s(self, pool: PoolLedger, now_s: float) -> float:  # noqa: ARG002
        """Return how old the oldest of what it looks at is."""
        return 0.0

    def admitted(self, flight: InFlight) -> None:
        """Hear of a request that was let in."""

    def first_token(self, flight: InFlight, now_s: float) -> None:
        """Hear of a first token."""

    def ended(self, flight: InFlight) -> None:
        """Hear of a request that ended."""


class _QueueAndKv(Signal):
    wants_reports = True

    def __init__(self, params: QueueAndKv) -> None:
        self._params = params

    def value(self, pool: PoolLedger, now_s: float) -> float:
        queue, kv, oldest_s = self._params.queue, self._params.kv, now_s - self._params.stale_s
        total, ready = 0.0, 0
        for replica in pool.replicas:
            if not replica.ready:
                continue
            ready += 1
            report = replica.report
            if report is not None and report.seen_at_s >= oldest_s:
                total += max(report.waiting / queue, report.kv_used_fraction / kv)
            elif replica.in_flight:
                total += 1.0
        return total / ready if ready else 1.0

    def age_s(self, pool: PoolLedger, now_s: float) -> float:
        seen = [replica.report.seen_at_s for replica in pool.replicas if replica.ready and replica.report is not None]
        return now_s - min(seen) if seen else math.inf


class _Reserving(Signal):
    """Knows the tokens that are reserved."""

    def __init__(self) -> None:
        self._reserved_tokens = 0

    def admitted(self, flight: InFlight) -> None:
        self._reserved_tokens += flight.reserved_tokens

    def ended(self, flight: InFlight) -> None:
        self._reserved_tokens -= flight.reserved_tokens


class _InFlightShare(_Reserving):
    def __init__(self, params: InFlightShare) -> None:
        super().__init__()
        self._params = params

    def value(self, pool: PoolLedger, now_s: float) -> float:  # noqa: ARG002
        params, ready = self._params, pool.capacity.ready_replicas
        if not ready:
            return 1.0
        share = self.of_sequences(pool.all_in_flight, pool.capacity)
        if params.tokens_per_replica is not None:
            tokens = self._reserved_tokens + pool.others_reserved_tokens
            share = max(share, tokens / (params.tokens_per_replica * ready))
        return share

    def of_sequences(self, sequences: int, capacity: PoolCapacity) -> float:
        each = self._params.requests_per_replica
        most = capacity.slots if each is None else each * capacity.ready_replicas
        return sequences / max(1, most)


class _PredictedTtft(Signal):
    wants_progress = True

    def __init__(self, params: PredictedTtft) -> None:
        self._budget_s = params.budget_s
        self._clock = PrefillClock()

    def value(self, pool: PoolLedger, now_s: float) -> float:  # noqa: ARG002
        ready = pool.capacity.ready_replicas
        return self._clock.wait_s(0, 0, ready) / self._budget_s if ready else 1.0

    def admitted(self, flight: InFlight) -> None:
        self._clock.admitted(flight)

    def first_token(self, flight: InFlight, now_s: float) -> None:
        self._clock.first_token(flight, now_s)

    def ended(self, flight: InFlight) -> None:
        self._clock.ended(flight)


class _Ledger(_Reserving):
    def __init__(self, kv_bytes_per_token: float | None) -> None:
        super().__init__()
        self._per_token = kv_bytes_per_token

    def value(self, pool: PoolLedger, now_s: float) -> float:  # noqa: ARG002
        capacity = pool.capacity
        if not capacity.slots:
            return 1.0
        share = self.of_sequences(pool.all_in_flight, capacity)
        if capacity.kv_bytes and self._per_token:
            tokens = self._reserved_tokens + pool.others_reserved_tokens
            share = max(share, tokens * self._per_token / capacity.kv_bytes)
        return share

    def of_sequences(self, sequences: int, capacity: PoolCapacity) -> float:
        return sequences / max(1, capacity.slots)


def signal_of(params: SaturationParams, kv_bytes_per_token: float | None) -> Signal:
    """Return the signal that ``params`` describe; it has memory and serves one pool."""
    if isinstance(params, QueueAndKv):
        return _QueueAndKv(params)
    if isinstance(params, InFlightShare):
        return _InFlightShare(params)
    if isinstance(params, PredictedTtft):
        return _PredictedTtft(params)
    return _Ledger(kv_bytes_per_token)
