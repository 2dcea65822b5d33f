"""A limit on what is in flight that finds itself from latency, with partitions that hold only at the limit.

AIMD, Vegas and Gradient2 of Netflix's concurrency-limits, fed with times to first token: a whole answer's time grows
with its length and says nothing about congestion. Below the limit everyone comes in; at it, an entitlement comes in
while it has less in flight than its part of the limit. What does not come in is refused: there is no queue.

Source: Netflix/concurrency-limits (``Gradient2Limit``, ``VegasLimit``, ``AIMDLimit``, partitioned limiters); CONCUR
(arXiv 2601.22705) does AIMD on agents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import ADMIT, Chance, Deny, EntitlementSpec, Gauge, InFlight, PoolLedger, Reason, RequestView, Verdict
from policies.no_control import NoControlPolicy
from policies.parts.queueing import weights_of
from policies.parts.room import Room

_BOUNDS: Mapping[str, tuple[int, int]] = {"aimd": (20, 200), "vegas": (1, 1000), "gradient2": (20, 200)}
"""The least and the largest limit, as in the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """A limit in flight that follows times to first token (Netflix's AIMD, Vegas, Gradient2), with partitions."""

    kind: Literal["adaptive"] = "adaptive"
    limit: Literal["aimd", "vegas", "gradient2"] = field(
        default="gradient2", metadata={"description": "aimd, vegas or gradient2"}
    )
    initial: int = field(default=20, metadata={"gt": 0, "description": "give the limit at first, e.g. 20"})
    least: int | None = field(
        default=None, metadata={"gt": 0, "description": "give the least limit, e.g. 20; left out, 20, or 1 with vegas"}
    )
    most: int | None = field(
        default=None,
        metadata={"gt": 0, "description": "give the largest limit, e.g. 200; left out, 200, or 1000 with vegas"},
    )
    tolerance: float = field(
        default=1.5, metadata={"ge": 1, "description": "give how much slower than usual is still good, e.g. 1.5"}
    )
    smoothing: float = field(
        default=0.2, metadata={"gt": 0, "le": 1, "description": "give the part of a new limit that is taken, e.g. 0.2"}
    )
    queue: int = field(default=4, metadata={"ge": 0, "description": "give what gradient2 adds at each step, e.g. 4"})
    long_window: int = field(
        default=600, metadata={"gt": 1, "description": "give samples of the long average, e.g. 600"}
    )
    backoff: float = field(
        default=0.9, metadata={"gt": 0, "lt": 1, "description": "give aimd's factor on a slow answer, e.g. 0.9"}
    )
    slow_s: float = field(default=5.0, metadata={"gt": 0, "description": "give a TTFT that aimd backs off at, e.g. 5"})
    weights: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": "give parts of the limit by entitlement, e.g. {chat: 2}; else 1"}
    )

    def __post_init__(self) -> None:
        least, most = self.bounds()
        if least > most:
            raise ValueError(f"least {least} is above most {most}; give a least limit of at most {most}")

    def bounds(self) -> tuple[int, int]:
        """Return the least and the largest limit: what is given, else the source's for this kind of limit."""
        least, most = _BOUNDS[self.limit]
        return least if self.least is None else self.least, most if self.most is None else self.most


class Limit:
    """A number that follows samples of latency."""

    def __init__(self, params: Adaptive) -> None:
        self.params = params
        least, most = params.bounds()
        self.least, self.most = float(least), float(most)
        self.value = min(self.most, max(self.least, float(params.initial)))

    def sample(self, ttft_s: float, in_flight: int) -> None:
        """Take the time of one first token, and how many were in flight then."""
        wanted = self.after(ttft_s, in_flight)
        self.value = min(self.most, max(self.least, wanted))

    def after(self, ttft_s: float, in_flight: int) -> float:
        """Return the next limit, unbounded."""
        raise NotImplementedError


class _Aimd(Limit):
    def after(self, ttft_s: float, in_flight: int) -> float:
        if ttft_s > self.params.slow_s:
            return self.value * self.params.backoff
        return self.value + 1 if 2 * in_flight >= self.value else self.value


class _Vegas(Limit):
    """Estimates the queue by how much slower than the fastest it is; forgets the fastest every 30 limits of samples."""

    def __init__(self, params: Adaptive) -> None:
        super().__init__(params)
        self._fastest_s = math.inf
        self._samples = 0

    def after(self, ttft_s: float, in_flight: int) -> float:
        self._samples += 1
        if self._samples > 30 * self.value:
            self._samples, self._fastest_s = 0, ttft_s
            return self.value
        if ttft_s < self._fastest_s:
            self._fastest_s = ttft_s
            return self.value
        if 2 * in_flight < self.value or ttft_s <= 0:
            return self.value
        step = max(1, math.floor(math.log10(self.value)))
        waiting = math.ceil(self.value * (1 - self._fastest_s / ttft_s))
        if waiting <= step:
            return self.value + 6 * step
        if waiting < 3 * step:
            return self.value + step
        if waiting > 6 * step:
            return self.value - step
        return self.value


class _Gradient2(Limit):
    """Compares each sample with a long average, and shrinks where it is more than the tolerance slower."""

    def __init__(self, params: Adaptive) -> None:
        super().__init__(params)
        self._long_s: float | None = None

    def after(self, ttft_s: float, in_flight: int) -> float:
        params = self.params
        long_s = ttft_s if self._long_s is None else self._long_s
        long_s += (ttft_s - long_s) * 2 / (params.long_window + 1)
        if ttft_s > 0 and long_s / ttft_s > 2:  # it recovers from an overload faster than the average forgets
            long_s *= 0.95
        self._long_s = long_s
        if 2 * in_flight < self.value:
            return self.value
        gradient = min(1.0, max(0.5, params.tolerance * long_s / ttft_s)) if ttft_s > 0 else 1.0
        wanted = self.value * gradient + params.queue
        return self.value * (1 - params.smoothing) + wanted * params.smoothing


class AdaptivePolicy(NoControlPolicy):
    """See `policies.api.AdmissionPolicy`."""

    wants_progress = True

    def __init__(
        self, params: Adaptive, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        weights = weights_of(params.weights, sorted(spec.name for spec in entitlements))
        total = sum(weights.values())
        self._parts = {name: weight / total for name, weight in weights.items()}
        self._room = Room(kv_bytes_per_token, 1.0)
        kinds = {"aimd": _Aimd, "vegas": _Vegas, "gradient2": _Gradient2}
        self._limit: Limit = kinds[params.limit](params)

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Let it in below the limit, or while its entitlement has less than its part of it."""
        too_large = self._room.too_large(request, max_output_tokens, pool)
        if too_large is not None:
            return too_large
        in_flight, limit = pool.all_in_flight, math.floor(self._limit.value)
        sequences = request.sequences
        if in_flight + sequences <= limit or (sequences > limit and not in_flight):
            return ADMIT
        if pool.entitlements[request.entitlement].in_flight + sequences <= self._parts[request.entitlement] * limit:
            return ADMIT
        return Deny(Reason.OVERLOADED, in_flight + sequences, limit, 1.0, 503)

    def on_first_token(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Take a sample."""
        self._limit.sample(max(0.0, now_s - flight.forwarded_s), pool.all_in_flight)

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Take note of how large a request may be."""
        self._room.learn(pool)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:  # noqa: ARG002
        """Return the limit."""
        yield Gauge("pool", "pool", "limit_slots", self._limit.value)
