"""Quota reservations: a deployment's capacity a minute, and shares of it that nobody else can take once it is busy.

Below a threshold of use whoever comes is served. From it on, an entity with a reservation has what is left of its
own, and may use beyond it, as everybody else, what no reservation is waiting for. Limits for each consumer (requests,
tokens, requests at once, length of a prompt) come before all that.

Source: datarobot.com/blog/rate-limiting-quota-reservations (11.9) and the documentation of quotas, both read in part
(2026-10). Not found there: what callers without a reservation get past the threshold, and what a refusal says. [choice:
what is not reserved or used already; 429 until the minute ends]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import ADMIT, Chance, Deny, EntitlementSpec, Gauge, InFlight, PoolLedger, Reason, RequestView, Verdict
from policies.meters import FixedWindow
from policies.no_control import NoControlPolicy
from policies.parts.names import check_names
from policies.parts.rates import whole_s

_WINDOWS_S: Mapping[str, float] = {"min": 60.0, "hour": 3600.0, "day": 86400.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRule:
    """What each consumer may have: ``limit`` of one thing, in a window where it is counted."""

    rule: Literal["requests", "token", "concurrentRequests", "inputSequenceLength"] = field(
        metadata={"description": "requests, token, concurrentRequests or inputSequenceLength"}
    )
    limit: int = field(metadata={"ge": 0, "description": "give the most, e.g. 600; 0 refuses all"})
    window: Literal["min", "hour", "day"] = field(default="min", metadata={"description": "min, hour or day"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRobot:
    """DataRobot's quota reservations: shares of a deployment's capacity that hold from a threshold of use on.

    ``reserved`` are shares by entitlement, at most 1 together. Capacity counts requests when they are let in, or tokens
    when they are known. Left out: groups (an entity is an entitlement), and the five minutes a change may take.
    """

    kind: Literal["datarobot"] = "datarobot"
    version: Literal["11.9"] = field(default="11.9", metadata={"description": "the version that was read"})
    capacity: float = field(default=60_000.0, metadata={"gt": 0, "description": "give the capacity, e.g. 60000"})
    unit: Literal["requests", "token"] = field(
        default="token", metadata={"description": "requests or token: what capacity counts"}
    )
    window: Literal["min", "hour", "day"] = field(default="min", metadata={"description": "min, hour or day"})
    threshold: float = field(
        default=0.8, metadata={"ge": 0, "le": 1, "description": "give the used share from which reservations hold, 0.8"}
    )
    reserved: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": "give reserved shares by entitlement, e.g. {chat: 0.5}"}
    )
    rules: tuple[QuotaRule, ...] = field(
        default=(), metadata={"description": "give limits for each consumer, e.g. [{rule: requests, limit: 600}]"}
    )

    def __post_init__(self) -> None:
        total = math.fsum(self.reserved.values())
        if total > 1 + 1e-9 or any(share <= 0 for share in self.reserved.values()):
            raise ValueError(f"reserved shares sum to {total:g}; give shares above 0 that sum to at most 1")


class DataRobotPolicy(NoControlPolicy):
    """See `policies.api.AdmissionPolicy`."""

    tick_s: float | None = None

    def __init__(
        self, params: DataRobot, *, entitlements: Sequence[EntitlementSpec],
        kv_bytes_per_token: float | None, chance: Chance,  # noqa: ARG002
    ) -> None:
        names = sorted(spec.name for spec in entitlements)
        check_names("reserved", params.reserved, names)
        self._params = params
        self._all = self._window(params.capacity, params.window)
        self._of = {name: self._window(params.capacity * share, params.window) for name, share in
                    sorted(params.reserved.items())}  # fmt: skip
        self._counted = {
            name: [(rule, self._window(rule.limit, rule.window)) for rule in params.rules
                   if rule.limit and rule.rule in ("requests", "token")] for name in names
        }  # fmt: skip

    @staticmethod
    def _window(limit: float, window: str) -> FixedWindow:
        return FixedWindow(limit=limit, window_s=_WINDOWS_S[window], by_clock=False)

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Check the consumer's own limits, the capacity, and from the threshold on what others have reserved."""
        denied = self._over_rule(request, pool, now_s)
        if denied is not None:
            return denied
        reason = Reason.REQUESTS if self._params.unit == "requests" else Reason.TOKENS
        left_s = self._all.left_s(now_s)
        retry_s = whole_s(left_s if left_s > 0 else _WINDOWS_S[self._params.window])
        left = self._all.available(now_s)
        if left <= 0:
            return Deny(reason, 1, left, retry_s)
        if self._all.used(now_s) < self._params.threshold * self._params.capacity:
            return ADMIT
        own = self._of.get(request.entitlement)
        if own is not None and own.available(now_s) > 0:
            return ADMIT
        kept = math.fsum(max(0.0, window.available(now_s)) for window in self._of.values() if window is not own)
        return ADMIT if left > kept else Deny(reason, 1, left - kept, retry_s)

    def _over_rule(self, request: RequestView, pool: PoolLedger, now_s: float) -> Deny | None:
        for rule in self._params.rules:
            if not rule.limit:
                return Deny(Reason.REQUESTS, 1, 0, None)
            if rule.rule == "inputSequenceLength" and request.prompt_tokens > rule.limit:
                return Deny(Reason.TOO_LARGE, request.prompt_tokens, rule.limit, None)
            if rule.rule == "concurrentRequests":
                running = pool.entitlements[request.entitlement].in_flight
                if running + request.sequences > rule.limit:
                    return Deny(Reason.CONCURRENCY, running + request.sequences, rule.limit, 1.0)
        for rule, window in self._counted[request.entitlement]:
            if window.available(now_s) <= 0:
                reason = Reason.REQUESTS if rule.rule == "requests" else Reason.TOKENS
                return Deny(reason, window.used(now_s) + 1, rule.limit, whole_s(window.left_s(now_s)))
        return None

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Count the request."""
        self._count("requests", flight.request.entitlement, 1, now_s)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Count its tokens."""
        tokens = flight.output_tokens + (flight.request.prompt_tokens if flight.prompt_credited else 0)
        self._count("token", flight.request.entitlement, tokens, now_s)

    def _count(self, unit: str, entitlement: str, amount: float, now_s: float) -> None:
        for rule, window in self._counted[entitlement]:
            if rule.rule == unit:
                window.reserve(amount, now_s)
        if self._params.unit == unit:
            self._all.reserve(amount, now_s)
            if entitlement in self._of:
                self._of[entitlement].reserve(amount, now_s)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:  # noqa: ARG002
        """Return which share of the capacity is used."""
        yield Gauge("pool", "pool", "saturation", self._all.used(now_s) / self._params.capacity)
