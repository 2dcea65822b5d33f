"""LLM gateways and cloud providers: products that meter tokens per tenant and know nothing of what is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from policies.parts.estimates import DefaultCap, Flat, MaxTokens, PromptOnly
from policies.parts.rates import PER_ENTITLEMENT, REQUESTS, TOKENS, Rates
from policies.prio_reserve import PrioReserve
from policies.ptu import Ptu
from policies.reserve import Reserve
from policies.window import Window

_UNITS_S = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
_VERSION = {"description": "the version that was read"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteLlm:
    """LiteLLM's ``dynamic_rate_limiter_v3``: ``prio-reserve`` with its threshold and default weight.

    The limit of the model holds always, the shares of priorities above 50 % of it; who has no priority shares one pool
    of weight 0.25. Whoever is alone stops at max(share, 50 %) of the limit, as documented. ``cache_s: 60`` is its
    ``saturation_check_cache_ttl`` applied to all that the gateway knows: see `policies.prio_reserve`. Left out: failing
    open on errors, shares as whole numbers, and budgets in dollars.

    Source: BerriAI/litellm, ``proxy/hooks/dynamic_rate_limiter_v3.py`` and the defaults in ``types/utils.py``;
    litellm-docs 735 (August 2026).
    """

    kind: Literal["litellm"] = "litellm"
    version: Literal["v3"] = field(default="v3", metadata=_VERSION)
    requests_per_min: float | None = field(default=None, metadata=REQUESTS)
    tokens_per_min: float | None = field(default=60_000.0, metadata=TOKENS)
    weights: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": "give shares of the limit by entitlement, e.g. {chat: 0.5}"}
    )

    cache_s: float | None = field(
        default=None,
        metadata={"gt": 0, "description": "give seconds between looks at saturation, e.g. 60; left out, always"},
    )

    def expand(self) -> PrioReserve:
        """Return the policy that this stands for."""
        return PrioReserve(
            requests_per_min=self.requests_per_min, tokens_per_min=self.tokens_per_min, weights=self.weights,
            default_weight=0.25, threshold=0.5, cache_s=self.cache_s, window_s=60.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyAiGateway:
    """Envoy AI Gateway's token limits: ``window``, fixed by the clock, charged after the answer.

    ``tokens`` a ``unit`` for each entitlement (its ``x-tenant-id``); the cost expression is three weights. A running
    stream is never cut: the next request gets 429. Left out: routing by quota.

    Source: Envoy AI Gateway 1.1 (2026-08-21), ``llmRequestCosts`` and rate limit service; issue 680.
    """

    kind: Literal["envoy-ai-gateway"] = "envoy-ai-gateway"
    version: Literal["1.1"] = field(default="1.1", metadata=_VERSION)
    tokens: float = field(default=60_000.0, metadata={"gt": 0, "description": "give tokens per unit, e.g. 60000"})
    unit: Literal["second", "minute", "hour", "day"] = field(
        default="minute", metadata={"description": "second, minute, hour or day"}
    )
    input_weight: float = field(default=1.0, metadata={"ge": 0, "description": "give what a prompt token costs, 1"})
    cached_weight: float = field(default=1.0, metadata={"ge": 0, "description": "give what a cached one costs, 0.1"})
    output_weight: float = field(default=1.0, metadata={"ge": 0, "description": "give what an output one costs, 1.5"})

    def expand(self) -> Window:
        """Return the policy that this stands for."""
        window_s = _UNITS_S[self.unit]
        return Window(
            tokens_per_min=self.tokens * 60 / window_s, window_s=window_s, starts="by-clock", refuse_at="limit",
            input_weight=self.input_weight, cached_weight=self.cached_weight, output_weight=self.output_weight,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kuadrant:
    """Kuadrant's token rate limit on Limitador: reservations of a flat amount in fixed windows, or CheckReport.

    Reservation: ``reserve`` with 5000 tokens for every request, given back after the route's timeout. CheckReport:
    ``window``, charged after the answer. Left out: several windows in one policy.

    Source: Kuadrant RFC 0021, limitador 506 and 515, kuadrant-operator 2148 and 2263 (September 2026).
    """

    kind: Literal["kuadrant"] = "kuadrant"
    version: Literal["rfc-0021"] = field(default="rfc-0021", metadata=_VERSION)
    mode: Literal["reservation", "check-report"] = field(
        default="reservation", metadata={"description": "reservation or check-report"}
    )
    tokens: float = field(default=60_000.0, metadata={"gt": 0, "description": "give tokens per window, e.g. 60000"})
    window_s: float = field(default=60.0, metadata={"gt": 0, "description": "give the window in seconds, e.g. 60"})
    amount: int = field(default=5000, metadata={"gt": 0, "description": "give tokens reserved per request, e.g. 5000"})
    ttl_s: float = field(default=60.0, metadata={"gt": 0, "description": "give the route's timeout in seconds, 60"})

    def expand(self) -> Reserve | Window:
        """Return the policy that this stands for."""
        tokens_per_min = self.tokens * 60 / self.window_s
        if self.mode == "check-report":
            return Window(tokens_per_min=tokens_per_min, window_s=self.window_s, starts="by-clock", refuse_at="limit")
        return Reserve(
            tokens_per_min=tokens_per_min, meter="fixed", depth_s=self.window_s, estimate=Flat(tokens=self.amount),
            ttl_s=self.ttl_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SmgTenants:
    """SMG's limit per tenant: ``reserve`` with the prompt only, a bucket of 60 s, and debt.

    Tokens and requests refill continuously and start full; the answer's output is charged when it is known, so that the
    balance may go below zero. Left out: estimating prompt tokens (they are counted), and no refund on disconnect.

    Source: sglang model gateway, ``model_gateway/src/rate_limit/bucket.rs`` (2026-08-07).
    """

    kind: Literal["smg-tenants"] = "smg-tenants"
    version: Literal["2026-08-07"] = field(default="2026-08-07", metadata=_VERSION)
    requests_per_min: float | None = field(default=None, metadata=REQUESTS)
    tokens_per_min: float | None = field(default=60_000.0, metadata=TOKENS)
    per_entitlement: Mapping[str, Rates] = field(default_factory=dict, metadata=PER_ENTITLEMENT)

    def expand(self) -> Reserve:
        """Return the policy that this stands for."""
        return Reserve(
            requests_per_min=self.requests_per_min, tokens_per_min=self.tokens_per_min,
            per_entitlement=self.per_entitlement, meter="bucket", depth_s=60.0, estimate=PromptOnly(), debt=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AzurePtu:
    """Azure OpenAI's provisioned throughput: ``ptu`` in units of a model, gpt-4o's by default.

    A unit is 2500 input tokens a minute; an output token costs as much as 3, a cached one nothing. How deep the bucket
    is was never published: 60 s here. [choice] Left out: spillover to standard, see ``over`` of ``ptu``.

    Source: MicrosoftDocs/azure-ai-docs, ``concepts/provisioned-throughput.md`` (read 2026).
    """

    kind: Literal["azure-ptu"] = "azure-ptu"
    version: Literal["gpt-4o"] = field(default="gpt-4o", metadata=_VERSION)
    units: float = field(default=15.0, metadata={"gt": 0, "description": "give PTUs of each entitlement, e.g. 15"})
    per_entitlement: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": "give PTUs by entitlement, e.g. {chat: 50}"}
    )
    input_tokens_per_min: float = field(
        default=2500.0, metadata={"gt": 0, "description": "give input tokens a minute that a unit is, e.g. 2500"}
    )
    output_weight: float = field(default=3.0, metadata={"ge": 0, "description": "give what an output token costs, 3"})
    horizon_s: float = field(default=60.0, metadata={"gt": 0, "description": "give the bucket in seconds, e.g. 60"})

    def expand(self) -> Ptu:
        """Return the policy that this stands for."""
        return Ptu(
            tokens_per_min=self.units * self.input_tokens_per_min,
            per_entitlement={
                name: Rates(tokens_per_min=units * self.input_tokens_per_min)
                for name, units in self.per_entitlement.items()
            },
            cached_weight=0.0, output_weight=self.output_weight, horizon_s=self.horizon_s, estimate=MaxTokens(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bedrock:
    """AWS Bedrock's tokens per minute: ``reserve`` with max_tokens, and a burndown of 5 on what was answered.

    Prompt + max_tokens are reserved; at the end output counts five times (the Claude 4 family; 1 for others). Who names
    no max_tokens reserves the model's, 64,000 here. The limit per day is 1440 times the minute's and so never binds
    first. What the bucket is was not published: continuous here. [choice] Left out: corrections while a request runs.

    Source: AWS Bedrock user guide, token quotas and burndown rates (read 2026).
    """

    kind: Literal["bedrock"] = "bedrock"
    version: Literal["claude-4"] = field(default="claude-4", metadata=_VERSION)
    tokens_per_min: float = field(default=200_000.0, metadata=TOKENS)
    requests_per_min: float | None = field(default=None, metadata=REQUESTS)
    per_entitlement: Mapping[str, Rates] = field(default_factory=dict, metadata=PER_ENTITLEMENT)
    burndown: float = field(default=5.0, metadata={"gt": 0, "description": "give what an output token costs, 5 or 1"})
    model_max_tokens: int = field(
        default=64_000, metadata={"gt": 0, "description": "give the reservation of who names no max_tokens, 64000"}
    )

    def expand(self) -> Reserve:
        """Return the policy that this stands for."""
        return Reserve(
            tokens_per_min=self.tokens_per_min, requests_per_min=self.requests_per_min,
            per_entitlement=self.per_entitlement, cached_weight=0.0, settle_output_weight=self.burndown,
            estimate=DefaultCap(tokens=self.model_max_tokens), debt=True,
        )
