"""Fixed rate limits, as public APIs have them: requests and tokens per minute for each entitlement, whatever is free.

Tokens are reserved at admission (prompt + max_output_tokens) and corrected to the work that was done when the request
ends; a request counts once it is let in, however it ends. A refusal costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import (
    ADMIT,
    AdmissionPolicy,
    Allowance,
    Deny,
    EntitlementSpec,
    Gauge,
    InFlight,
    Margin,
    PoolLedger,
    Reason,
    RequestView,
    Verdict,
)
from policies.meters import Charge, ContinuousBucket, SlidingWindow, most_of
from policies.parts.names import check_names
from policies.parts.rates import whole_s

_WINDOW_S = 60.0
_REQUESTS = {"gt": 0, "description": "give requests per minute, e.g. 60, or leave it out for no limit"}
_TOKENS = {"gt": 0, "description": "give prompt and output tokens per minute, e.g. 6000, or leave it out for no limit"}
_BURST = {"gt": 0, "description": "give the bucket's depth in seconds of its rate, e.g. 60"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one entitlement, in place of the general ones; what is left out is not limited."""

    requests_per_min: float | None = field(default=None, metadata=_REQUESTS)
    tokens_per_min: float | None = field(default=None, metadata=_TOKENS)
    burst_s: float = field(default=60.0, metadata=_BURST)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """Limits for every entitlement, each with meters of its own."""

    kind: Literal["rate-limit"] = "rate-limit"
    requests_per_min: float | None = field(default=None, metadata=_REQUESTS)
    tokens_per_min: float | None = field(default=None, metadata=_TOKENS)
    window: Literal["continuous", "sliding"] = field(
        default="continuous",
        metadata={"description": "continuous: a token bucket; sliding: what was accepted in the last 60 s"},
    )
    burst_s: float = field(default=60.0, metadata=_BURST)
    per_entitlement: Mapping[str, Limits] = field(
        default_factory=dict,
        metadata={"description": "give limits by entitlement, e.g. {chat: {requests_per_min: 120}}"},
    )

    def __post_init__(self) -> None:
        if self.requests_per_min is None and self.tokens_per_min is None and not self.per_entitlement:
            raise ValueError("limits nothing; give requests_per_min, e.g. 60, or tokens_per_min, e.g. 6000")

    def limits_of(self, entitlement: str) -> Limits:
        """Return what holds for one entitlement."""
        general = Limits(
            requests_per_min=self.requests_per_min, tokens_per_min=self.tokens_per_min, burst_s=self.burst_s
        )
        return self.per_entitlement.get(entitlement, general)


Meter = ContinuousBucket | SlidingWindow


def _meter(per_min: float | None, least_depth: float, limits: Limits, window: str) -> Meter | None:
    if per_min is None:
        return None
    if window == "sliding":
        return SlidingWindow(limit=per_min * _WINDOW_S / 60, window_s=_WINDOW_S)
    rate_per_s = per_min / 60
    return ContinuousBucket(rate_per_s=rate_per_s, depth=max(least_depth, rate_per_s * limits.burst_s))


class RateLimitPolicy:
    """See `policies.api.AdmissionPolicy`. Checks requests, then tokens; Retry-After is in whole seconds.

    A bucket for requests holds at least one, or a rate below one per ``burst_s`` would let nobody in.
    """

    tick_s: float | None = None
    wants_progress = False
    wants_reports = False

    def __init__(self, params: RateLimit, entitlements: Sequence[EntitlementSpec]) -> None:
        names = sorted(spec.name for spec in entitlements)
        check_names("per_entitlement", params.per_entitlement, names)
        self._requests: dict[str, Meter | None] = {}
        self._tokens: dict[str, Meter | None] = {}
        self._charges: dict[str, Charge] = {}
        for name in names:
            limits = params.limits_of(name)
            self._requests[name] = _meter(limits.requests_per_min, 1.0, limits, params.window)
            self._tokens[name] = _meter(limits.tokens_per_min, 0.0, limits, params.window)
        self._parts: dict[str, float] = {}
        self._whole_rates = [
            {name: meter.rate_per_s for name, meter in meters.items() if isinstance(meter, ContinuousBucket)}
            for meters in (self._requests, self._tokens)
        ]

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Let it in if both meters have room."""
        requests = self._requests[request.entitlement]
        if requests is not None:
            wait_s = requests.wait_s(1, now_s)
            if wait_s != 0:
                return Deny(Reason.REQUESTS, 1, requests.available(now_s), None if wait_s is None else whole_s(wait_s))
        tokens = self._tokens[request.entitlement]
        if tokens is not None:
            need = request.prompt_tokens + max_output_tokens
            wait_s = tokens.wait_s(need, now_s)
            if wait_s is None:
                return Deny(Reason.TOO_LARGE, need, most_of(tokens), None)
            if wait_s > 0:
                return Deny(Reason.TOKENS, need, tokens.available(now_s), whole_s(wait_s))
        return ADMIT

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Charge one request, and all tokens that it may use."""
        name = flight.request.entitlement
        requests, tokens = self._requests[name], self._tokens[name]
        if requests is not None:
            requests.reserve(1, now_s)
        if isinstance(tokens, ContinuousBucket):
            tokens.reserve(flight.reserved_tokens, now_s)
        elif tokens is not None:
            self._charges[flight.request.request_id] = tokens.reserve(flight.reserved_tokens, now_s)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Give back the tokens that were not used."""
        tokens = self._tokens[flight.request.entitlement]
        if tokens is None:
            return
        used_tokens = flight.output_tokens + (flight.request.prompt_tokens if flight.prompt_credited else 0)
        if isinstance(tokens, ContinuousBucket):
            tokens.settle(flight.reserved_tokens, used_tokens, now_s)
        else:
            tokens.settle_or_charge(self._charges.pop(flight.request.request_id), used_tokens, now_s)

    def inherit(self, earlier: AdmissionPolicy, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Go on with the buckets of entitlements of the same name; sliding windows begin anew."""
        if isinstance(earlier, RateLimitPolicy):
            for mine, theirs in ((self._requests, earlier._requests), (self._tokens, earlier._tokens)):
                for name, meter in mine.items():
                    before = theirs.get(name)
                    if isinstance(meter, ContinuousBucket) and isinstance(before, ContinuousBucket):
                        meter.inherit(before, now_s)

    def rated(self, pool: PoolLedger) -> Mapping[str, float]:  # noqa: ARG002
        """See `policies.limit_leases.Parted`; of two buckets that of tokens tells how much of the rate is asked for."""
        requests, tokens = self._whole_rates
        return {name: whole for name in self._requests if (whole := tokens.get(name) or requests.get(name))}

    @staticmethod
    def _bucket(meter: Meter | None) -> ContinuousBucket | None:
        return meter if isinstance(meter, ContinuousBucket) else None

    def on_parts(self, parts: Mapping[str, float], pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """See `policies.limit_leases.Parted`. Depths stay, or no gateway could let in a request as large as one."""
        for name, part in parts.items():
            before = self._parts.get(name, 1.0)
            for meters, wholes in ((self._requests, self._whole_rates[0]), (self._tokens, self._whole_rates[1])):
                bucket = meters[name]
                if isinstance(bucket, ContinuousBucket) and part != before:
                    kept = min(1.0, part / before) if before else 1.0
                    bucket.scale(rate_per_s=wholes[name] * part, depth=bucket.depth, kept=kept, now_s=now_s)
            self._parts[name] = part

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        """Nothing is metered by the clock."""

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:
        """Capacity does not matter: that is what fixed limits are compared for."""

    def allowance(self, entitlement: str, pool: PoolLedger, now_s: float) -> Allowance:  # noqa: ARG002
        """See `policies.api.Allowing`."""
        return Allowance(_margin(self._requests[entitlement], now_s), _margin(self._tokens[entitlement], now_s))

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:  # noqa: ARG002
        """Return the token rate that each entitlement is limited to."""
        for name, tokens in self._tokens.items():
            if isinstance(tokens, ContinuousBucket):
                yield Gauge("entitlement", name, "limit_tokens_per_s", tokens.rate_per_s)
            elif tokens is not None:
                yield Gauge("entitlement", name, "limit_tokens_per_s", tokens.limit / tokens.window_s)


def _margin(meter: Meter | None, now_s: float) -> Margin | None:
    if meter is None:
        return None
    return Margin(most_of(meter), meter.available(now_s), meter.full_in_s(now_s))
