"""Reserve what a request may use when it comes, settle when it has ended: token limits that hold.

A bucket is charged with prompt + estimated output at admission and corrected to what was used. Too low an estimate
takes it below zero: the debt is filled up first. A request that asks for more than the bucket holds can never come in.

LiteLLM's reservations, SMG's tenant limits, Limitador's reservation mode (RFC 0021), Bedrock and Anthropic are this,
with different estimates, buckets or windows, and weights; see `policies.presets`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import Chance, Deny, EntitlementSpec, Gauge, InFlight, PoolLedger, Reason, RequestView
from policies.meters import Charge, ContinuousBucket, FixedWindow, SlidingWindow, most_of
from policies.parts.estimates import ESTIMATE, DefaultCap, Estimate, Foresight, estimator
from policies.parts.rates import Metered, MeteredPolicy, whole_s

Meter = ContinuousBucket | FixedWindow | SlidingWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve(Metered):
    """Tokens reserved at arrival by an estimate and settled at the end; requests per minute beside them.

    ``debt: false`` forgives what was used beyond the estimate. A reservation older than ``ttl_s`` is given back, and
    counted as leaked.
    """

    kind: Literal["reserve"] = "reserve"
    meter: Literal["bucket", "fixed", "sliding"] = field(
        default="bucket",
        metadata={"description": "bucket: fills continuously; fixed: windows by the clock; sliding: depth_s back"},
    )
    depth_s: float = field(
        default=60.0, metadata={"gt": 0, "description": "give the bucket's depth or the window, in seconds"}
    )
    estimate: Estimate = field(default=DefaultCap(), metadata=ESTIMATE)
    settle_output_weight: float | None = field(
        default=None,
        metadata={"ge": 0, "description": "give what an output token costs at the end, e.g. 5; left out, the same"},
    )
    debt: bool = field(default=True, metadata={"description": "give false to forgive what the estimate missed"})
    ttl_s: float | None = field(
        default=None, metadata={"gt": 0, "description": "give how long a reservation may last, in seconds, e.g. 600"}
    )


class ReservePolicy(Foresight, MeteredPolicy):
    """See `policies.api.AdmissionPolicy`. Retry-After is the longest wait of the two meters.

    Attributes
    ----------
    leaked : how many reservations were given back because they were older than ``ttl_s``.
    """

    def __init__(
        self, params: Reserve, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,  # noqa: ARG002
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params)
        self.tick_s: float | None = None if params.ttl_s is None else min(1.0, params.ttl_s)
        self.estimate = estimator(params.estimate)
        self.leaked = 0
        self._params = params
        self._settle_weight = params.output_weight
        if params.settle_output_weight is not None:
            self._settle_weight = params.settle_output_weight
        self._requests: dict[str, Meter | None] = {}
        self._tokens: dict[str, Meter | None] = {}
        for name, rates in params.rates_of(entitlements).items():
            self._requests[name] = self._meter(rates.requests_per_min, 1.0)
            self._tokens[name] = self._meter(rates.tokens_per_min, 0.0)
        self._reserved: dict[str, tuple[InFlight, float, Charge | None]] = {}
        self._expiring: deque[tuple[float, InFlight]] = deque()

    def _meter(self, per_min: float | None, least_depth: float) -> Meter | None:
        if per_min is None:
            return None
        depth = max(least_depth, per_min / 60 * self._params.depth_s)
        if self._params.meter == "bucket":
            return ContinuousBucket(rate_per_s=per_min / 60, depth=depth)
        if self._params.meter == "sliding":
            return SlidingWindow(limit=depth, window_s=self._params.depth_s)
        return FixedWindow(limit=depth, window_s=self._params.depth_s)

    def _cost(self, request: RequestView, max_output_tokens: int) -> float:
        params = self._params
        output_tokens = self.estimate.output_tokens(request, max_output_tokens)
        return params.input_weight * request.prompt_tokens + params.output_weight * output_tokens

    def denial(self, request: RequestView, max_output_tokens: int, now_s: float) -> Deny | None:
        """Return which meter has no room, of the two the one that is short for longest; None where both have."""
        requests, tokens = self._requests[request.entitlement], self._tokens[request.entitlement]
        denied: Deny | None = None
        if requests is not None:
            wait_s = requests.wait_s(1, now_s)  # never None: it holds at least one
            if wait_s:
                denied = Deny(Reason.REQUESTS, 1, requests.available(now_s), whole_s(wait_s))
        if tokens is not None:
            need = self._cost(request, max_output_tokens)
            wait_s = tokens.wait_s(need, now_s)
            if wait_s is None:
                return Deny(Reason.TOO_LARGE, need, most_of(tokens), None)
            if wait_s and (denied is None or wait_s > (denied.retry_after_s or 0)):
                denied = Deny(Reason.TOKENS, need, tokens.available(now_s), whole_s(wait_s))
        return denied

    def charge(self, flight: InFlight, now_s: float) -> None:
        """Charge one request, and reserve its tokens."""
        request = flight.request
        requests, tokens = self._requests[request.entitlement], self._tokens[request.entitlement]
        if requests is not None:
            requests.reserve(1, now_s)
        if tokens is not None:
            need = self._cost(request, flight.max_output_tokens)
            self._reserved[request.request_id] = flight, need, tokens.reserve(need, now_s)
            if self._params.ttl_s is not None:
                self._expiring.append((now_s + self._params.ttl_s, flight))

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Learn from its answer, charged or not."""
        self.estimate.learn(flight)
        super().on_ended(flight, pool, now_s)

    def settle(self, flight: InFlight, now_s: float) -> None:
        """Settle: charge what was used in place of what was reserved."""
        tokens = self._tokens[flight.request.entitlement]
        if tokens is None:
            return
        params = self._params
        used = params.used(flight) + (self._settle_weight - params.output_weight) * flight.output_tokens
        _, reserved, charge = self._reserved.pop(flight.request.request_id, (flight, 0.0, None))
        if not params.debt:
            used = min(used, reserved)
        _settle(tokens, reserved, charge, used, now_s)

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Give back reservations that are too old; what their requests used is charged when they end."""
        expiring = self._expiring
        while expiring and expiring[0][0] <= now_s:
            flight = expiring.popleft()[1]
            request_id, tokens = flight.request.request_id, self._tokens[flight.request.entitlement]
            held = self._reserved.get(request_id)
            if held is not None and held[0] is flight and tokens is not None:
                del self._reserved[request_id]
                self.leaked += 1
                _settle(tokens, held[1], held[2], 0.0, now_s)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:  # noqa: ARG002
        """Return what is left in each bucket, and the leaks."""
        yield Gauge("pool", "pool", "leaked_reservations", self.leaked)
        for name, tokens in self._tokens.items():
            if tokens is not None:
                yield Gauge("entitlement", name, "available_tokens", tokens.available(now_s))


def _settle(meter: Meter, reserved: float, charge: Charge | None, used: float, now_s: float) -> None:
    if isinstance(meter, ContinuousBucket):
        meter.settle(reserved, used, now_s)
    elif charge is None:  # given back already
        if used:
            meter.reserve(used, now_s)
    elif isinstance(meter, SlidingWindow):
        meter.settle_or_charge(charge, used, now_s)
    else:
        meter.settle(charge, used, now_s)
