"""Shares of a model's limit that hold only when it is nearly used up: LiteLLM's dynamic rate limiter.

All share one limit for the model. While less than ``threshold`` of it is used, shares do not matter; above, each may
use its own and no more, so that a floor becomes a ceiling and a tenant alone stops at max(share, threshold) of it.
LiteLLM keeps what it read of saturation for 60 s. Taken as the age of all that a gateway knows, that contradicts the
documented ceiling: a tenant alone then has whole windows before anybody looks. So a gateway knows its own counts at
once here, and ``cache_s`` makes it look as seldom as that.

Source: BerriAI/litellm, ``proxy/hooks/dynamic_rate_limiter_v3.py``; litellm-docs issue 735 on the ceilings.
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
from policies.parts.rates import INPUT_WEIGHT, OUTPUT_WEIGHT, REQUESTS, TOKENS, whole_s

_DEFAULT = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrioReserve:
    """Shares of the pool's limit per minute, enforced only while it is nearly used up (LiteLLM's dynamic limiter).

    Entitlements without a weight share one pool of ``default_weight``. Weights that sum to more than 1 are scaled down
    to 1; ``default_weight`` is outside that sum.
    """

    kind: Literal["prio-reserve"] = "prio-reserve"
    requests_per_min: float | None = field(default=None, metadata=REQUESTS)
    tokens_per_min: float | None = field(default=None, metadata=TOKENS)
    weights: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": "give shares of the limit by entitlement, e.g. {chat: 0.5}"}
    )
    default_weight: float = field(
        default=0.25, metadata={"gt": 0, "description": "give the share of all others together, e.g. 0.25"}
    )
    threshold: float = field(
        default=0.8, metadata={"ge": 0, "description": "give the used share above which shares hold, e.g. 0.8"}
    )
    cache_s: float | None = field(
        default=None,
        metadata={"gt": 0, "description": "give seconds between looks at saturation, e.g. 60; left out, always"},
    )
    window_s: float = field(default=60.0, metadata={"gt": 0, "description": "give the window in seconds, e.g. 60"})
    input_weight: float = field(default=1.0, metadata=INPUT_WEIGHT)
    output_weight: float = field(default=1.0, metadata=OUTPUT_WEIGHT)

    def __post_init__(self) -> None:
        if self.requests_per_min is None and self.tokens_per_min is None:
            raise ValueError("limits nothing; give requests_per_min, e.g. 600, or tokens_per_min, e.g. 60000")


class PrioReservePolicy(NoControlPolicy):
    """See `policies.api.AdmissionPolicy`. Requests count when they are let in, tokens when they are known."""

    def __init__(
        self, params: PrioReserve, *, entitlements: Sequence[EntitlementSpec],
        kv_bytes_per_token: float | None, chance: Chance,  # noqa: ARG002
    ) -> None:
        names = sorted(spec.name for spec in entitlements)
        check_names("weights", params.weights, names)
        self.tick_s: float | None = params.cache_s
        self._params = params
        self._share_of = {name: name if name in params.weights else _DEFAULT for name in names}
        total = max(1.0, math.fsum(params.weights.values()))
        weights = {name: weight / total for name, weight in params.weights.items()}
        weights[_DEFAULT] = params.default_weight
        limits = (params.requests_per_min, params.tokens_per_min)
        self._model = [self._window(limit, 1.0) for limit in limits]
        self._shares = {
            one: [self._window(limit, weight) for limit in limits] for one, weight in sorted(weights.items())
        }
        self._saturation = 0.0

    def _window(self, per_min: float | None, weight: float) -> FixedWindow | None:
        if per_min is None:
            return None
        window_s = self._params.window_s
        return FixedWindow(limit=per_min * weight * window_s / 60, window_s=window_s, by_clock=False)

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Check the pool's limit, then the share's where the pool is saturated."""
        held = [self._model]
        if self._params.cache_s is None:
            self._look(now_s)
        if self._saturation >= self._params.threshold:
            held.append(self._shares[self._share_of[request.entitlement]])
        for windows in held:
            for window, reason in zip(windows, (Reason.REQUESTS, Reason.TOKENS), strict=True):
                if window is not None and window.available(now_s) <= 0:
                    return Deny(reason, 1, window.available(now_s), whole_s(window.left_s(now_s)))
        return ADMIT

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Count the request."""
        self._count(0, flight.request.entitlement, 1, now_s)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Count its tokens."""
        cost = self._params.output_weight * flight.output_tokens
        if flight.prompt_credited:
            cost += self._params.input_weight * flight.request.prompt_tokens
        self._count(1, flight.request.entitlement, cost, now_s)

    def _count(self, which: int, entitlement: str, amount: float, now_s: float) -> None:
        for window in (self._model[which], self._shares[self._share_of[entitlement]][which]):
            if window is not None:
                window.reserve(amount, now_s)

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Look at saturation."""
        self._look(now_s)

    def _look(self, now_s: float) -> None:
        self._saturation = max(
            (window.used(now_s) / window.limit for window in self._model if window is not None), default=0.0
        )

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:  # noqa: ARG002
        """Return saturation as it was last looked at."""
        yield Gauge("pool", "pool", "saturation", self._saturation)
