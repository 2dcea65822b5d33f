"""Rates that a scenario gives for all entitlements, and for some of them in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from policies.api import EntitlementSpec, InFlight

REQUESTS = {"gt": 0, "description": "give requests per minute, e.g. 60, or leave it out for no limit"}
TOKENS = {"gt": 0, "description": "give weighted tokens per minute, e.g. 6000, or leave it out for no limit"}
PER_ENTITLEMENT = {"description": "give rates by entitlement, e.g. {chat: {tokens_per_min: 60000}}"}
INPUT_WEIGHT = {"ge": 0, "description": "give what a prompt token costs, e.g. 1"}
CACHED_WEIGHT = {"ge": 0, "description": "give what a cached prompt token costs, e.g. 0; left out, as any other"}
OUTPUT_WEIGHT = {"ge": 0, "description": "give what an output token costs, e.g. 1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The rates of one entitlement; what is left out is not limited."""

    requests_per_min: float | None = field(default=None, metadata=REQUESTS)
    tokens_per_min: float | None = field(default=None, metadata=TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What every policy that meters rates can be told."""

    kind: str = ""
    requests_per_min: float | None = field(default=None, metadata=REQUESTS)
    tokens_per_min: float | None = field(default=None, metadata=TOKENS)
    per_entitlement: Mapping[str, Rates] = field(default_factory=dict, metadata=PER_ENTITLEMENT)
    input_weight: float = field(default=1.0, metadata=INPUT_WEIGHT)
    cached_weight: float | None = field(default=None, metadata=CACHED_WEIGHT)
    output_weight: float = field(default=1.0, metadata=OUTPUT_WEIGHT)

    def __post_init__(self) -> None:
        if self.requests_per_min is None and self.tokens_per_min is None and not self.per_entitlement:
            raise ValueError("limits nothing; give requests_per_min, e.g. 60, or tokens_per_min, e.g. 6000")

    def rates_of(self, entitlements: Sequence[EntitlementSpec]) -> dict[str, Rates]:
        """Return the rates of each entitlement, by name.

        Raises
        ------
        ValueError : rates are given for an entitlement that there is not.
        """
        names = sorted(spec.name for spec in entitlements)
        for name in self.per_entitlement:
            if name not in names:
                raise ValueError(f"per_entitlement names {name!r}, which is no entitlement; give one of {names}")
        general = Rates(requests_per_min=self.requests_per_min, tokens_per_min=self.tokens_per_min)
        return {name: self.per_entitlement.get(name, general) for name in names}

    def used(self, flight: InFlight) -> float:
        """Return what a request that ended has cost: a prompt that no token came after costs nothing."""
        cost = self.output_weight * flight.output_tokens
        if flight.prompt_credited:
            cost += self.input_weight * flight.request.prompt_tokens
            if flight.cached_tokens and self.cached_weight is not None:
                cost -= (self.input_weight - self.cached_weight) * flight.cached_tokens
        return cost


def whole_s(wait_s: float) -> float:
    """Return a Retry-After: whole seconds, at least 1."""
    return max(1.0, float(math.ceil(wait_s)))
