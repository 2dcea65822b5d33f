"""Provisioned throughput as Azure OpenAI documents it: a leaky utilisation that turns away above 100 %.

A request adds its estimated cost to a level that drains at the rate that was bought, and corrects it when it has ended.
Whoever finds utilisation above 1 is told to come again when it is 1. Output costs more than input (gpt-4o: 2500 input
or 833 output tokens per minute and unit, so about 3). How deep the bucket is was never published: ``horizon_s`` is a
choice.

Source: MicrosoftDocs/azure-ai-docs, ``concepts/provisioned-throughput.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import Chance, Deny, EntitlementSpec, Gauge, InFlight, PoolLedger, Reason, RequestView
from policies.meters import LeakyUtilisation
from policies.parts.estimates import ESTIMATE, Estimate, Foresight, MaxTokens, estimator
from policies.parts.rates import OUTPUT_WEIGHT, Metered, MeteredPolicy, whole_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Ptu(Metered):
    """Leaky utilisation (Azure provisioned throughput): refuses while more than ``horizon_s`` of the rate is used."""

    kind: Literal["ptu"] = "ptu"
    output_weight: float = field(default=3.0, metadata=OUTPUT_WEIGHT)
    horizon_s: float = field(
        default=60.0, metadata={"gt": 0, "description": "give seconds of the rate that make utilisation 1, e.g. 60"}
    )
    estimate: Estimate = field(default=MaxTokens(), metadata=ESTIMATE)


class PtuPolicy(Foresight, MeteredPolicy):
    """See `policies.api.AdmissionPolicy`. A request per minute costs as the rate says; tokens are the usual meter."""

    has_rates = True  # see `policies.limit_leases.why_unfit`

    def __init__(
        self, params: Ptu, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,  # noqa: ARG002
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params)
        self.estimate = estimator(params.estimate)
        self._params = params
        self._tokens: dict[str, LeakyUtilisation | None] = {}
        self._requests: dict[str, LeakyUtilisation | None] = {}
        for name, rates in params.rates_of(entitlements).items():
            self._tokens[name] = self._meter(rates.tokens_per_min)
            self._requests[name] = self._meter(rates.requests_per_min)
        self._charged: dict[str, float] = {}

    def _meter(self, per_min: float | None) -> LeakyUtilisation | None:
        if per_min is None:
            return None
        return LeakyUtilisation(rate_per_s=per_min / 60, horizon_s=self._params.horizon_s)

    def denial(self, request: RequestView, max_output_tokens: int, now_s: float) -> Deny | None:  # noqa: ARG002
        """Return which utilisation is above 1; None where none is, however much the request adds."""
        name = request.entitlement
        for meter, reason in ((self._requests[name], Reason.REQUESTS), (self._tokens[name], Reason.TOKENS)):
            if meter is not None:
                wait_s = meter.wait_s(now_s)
                if wait_s > 0:
                    return Deny(reason, meter.utilisation(now_s), 1.0, whole_s(wait_s))
        return None

    def charge(self, flight: InFlight, now_s: float) -> None:
        """Add what it is taken to cost."""
        request = flight.request
        tokens, requests = self._tokens[request.entitlement], self._requests[request.entitlement]
        if requests is not None:
            requests.add(1, now_s)
        if tokens is not None:
            output_tokens = self.estimate.output_tokens(request, flight.max_output_tokens)
            cost = self._params.input_weight * request.prompt_tokens + self._params.output_weight * output_tokens
            self._charged[request.request_id] = cost
            tokens.add(cost, now_s)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Learn from its answer, charged or not."""
        self.estimate.learn(flight)
        super().on_ended(flight, pool, now_s)

    def settle(self, flight: InFlight, now_s: float) -> None:
        """Correct it to what it did cost."""
        tokens = self._tokens[flight.request.entitlement]
        if tokens is not None:
            tokens.add(self._params.used(flight) - self._charged.pop(flight.request.request_id), now_s)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:  # noqa: ARG002
        """Return utilisation."""
        for name, tokens in self._tokens.items():
            if tokens is not None:
                yield Gauge("entitlement", name, "utilisation", tokens.utilisation(now_s))
