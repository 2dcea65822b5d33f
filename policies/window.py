"""Fixed windows that are checked first and charged afterwards, as most API gateways have them.

A request is let in while its window is not used up, and its tokens are counted when it has ended, in the window of that
moment. What is in flight is not counted, so that use passes the limit by as much as concurrent requests make of it.

Envoy AI Gateway 1.1 (request-time cost 0), Kuadrant's CheckReport, Kong ``ai-rate-limiting-advanced`` and APISIX
``ai-rate-limiting`` are this, with one window or several. (envoyproxy/ai-gateway issue 680 is about the overshoot.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import Chance, Deny, EntitlementSpec, Gauge, InFlight, PoolLedger, Reason, RequestView
from policies.meters import FixedWindow
from policies.parts.rates import Metered, MeteredPolicy, whole_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Longer:
    """A further limit on tokens, over another window."""

    tokens: float = field(metadata={"gt": 0, "description": "give weighted tokens per window, e.g. 1000000"})
    window_s: float = field(metadata={"gt": 0, "description": "give the window in seconds, e.g. 86400 for a day"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Metered):
    """Requests and tokens per fixed window, checked at arrival and charged when a request has ended."""

    kind: Literal["window"] = "window"
    window_s: float = field(default=60.0, metadata={"gt": 0, "description": "give the window in seconds, e.g. 60"})
    starts: Literal["by-clock", "first-request"] = field(
        default="by-clock",
        metadata={"description": "by-clock: windows are multiples of window_s; first-request: each begins with one"},
    )
    refuse_at: Literal["limit", "above"] = field(
        default="limit", metadata={"description": "limit: refuse once it is used up; above: once it is passed"}
    )
    also: tuple[Longer, ...] = field(
        default=(), metadata={"description": "give further limits, e.g. [{tokens: 1000000, window_s: 86400}]"}
    )


class WindowPolicy(MeteredPolicy):
    """See `policies.api.AdmissionPolicy`. Requests count when they are let in, tokens when they are known."""

    def __init__(
        self, params: Window, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,  # noqa: ARG002
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params)
        self._params = params
        self._at_limit = params.refuse_at == "limit"
        share, by_clock = params.window_s / 60, params.starts == "by-clock"
        self._requests: dict[str, FixedWindow | None] = {}
        self._tokens: dict[str, list[FixedWindow]] = {}
        for name, rates in params.rates_of(entitlements).items():
            wanted = [(one.tokens, one.window_s) for one in params.also]
            if rates.tokens_per_min is not None:
                wanted.insert(0, (rates.tokens_per_min * share, params.window_s))
            self._tokens[name] = [
                FixedWindow(limit=limit, window_s=window_s, by_clock=by_clock) for limit, window_s in wanted
            ]
            self._requests[name] = None
            if rates.requests_per_min is not None:
                limit = rates.requests_per_min * share
                self._requests[name] = FixedWindow(limit=limit, window_s=params.window_s, by_clock=by_clock)

    def denial(self, request: RequestView, max_output_tokens: int, now_s: float) -> Deny | None:  # noqa: ARG002
        """Return which window is used up, of several the one that takes longest; None where none is."""
        requests = self._requests[request.entitlement]
        if requests is not None and requests.available(now_s) < 1:
            return Deny(Reason.REQUESTS, 1, requests.available(now_s), whole_s(requests.left_s(now_s)))
        denied: Deny | None = None
        for window in self._tokens[request.entitlement]:
            left = window.available(now_s)
            if left < 0 or (left == 0 and self._at_limit):
                retry_s = whole_s(window.left_s(now_s))
                if denied is None or retry_s > (denied.retry_after_s or 0):
                    denied = Deny(Reason.TOKENS, 1, left, retry_s)
        return denied

    def charge(self, flight: InFlight, now_s: float) -> None:
        """Count the request."""
        requests = self._requests[flight.request.entitlement]
        if requests is not None:
            requests.reserve(1, now_s)

    def settle(self, flight: InFlight, now_s: float) -> None:
        """Count its tokens."""
        cost = self._params.used(flight)
        for window in self._tokens[flight.request.entitlement]:
            window.reserve(cost, now_s)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:  # noqa: ARG002
        """Return the use of each entitlement's first window of tokens, as a share of its limit."""
        for name, windows in self._tokens.items():
            if windows:
                yield Gauge("entitlement", name, "window_used", windows[0].used(now_s) / windows[0].limit)
