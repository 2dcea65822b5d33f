"""Rates that a scenario gives for all entitlements, and for some of them in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import ADMIT, Admit, Deny, EntitlementSpec, InFlight, PoolLedger, RequestView, Verdict
from policies.no_control import NoControlPolicy
from policies.parts.idle import refuse_idle
from policies.parts.names import check_names

REQUESTS = {"gt": 0, "description": "give requests per minute, e.g. 60, or leave it out for no limit"}
TOKENS = {"gt": 0, "description": "give weighted tokens per minute, e.g. 6000, or leave it out for no limit"}
PER_ENTITLEMENT = {"description": "give rates by entitlement, e.g. {chat: {tokens_per_min: 60000}}"}
INPUT_WEIGHT = {"ge": 0, "description": "give what a prompt token costs, e.g. 1"}
CACHED_WEIGHT = {"ge": 0, "description": "give what a cached prompt token costs, e.g. 0; left out, as any other"}
OUTPUT_WEIGHT = {"ge": 0, "description": "give what an output token costs, e.g. 1"}
OVER = {
    "description": "what becomes of a request over its limit. refuse: 429; demote: let in behind others in the engine; "
    "spill: let in at replicas kept for this. Neither is charged"
}


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
    over: Literal["refuse", "demote", "spill"] = field(default="refuse", metadata=OVER)
    demoted_priority: int = field(
        default=10, metadata={"description": "give the engine's priority of what is demoted, e.g. 10"}
    )
    spill_replicas: int = field(
        default=1, metadata={"gt": 0, "description": "give how many replicas take only what is spilled, e.g. 1"}
    )

    def __post_init__(self) -> None:
        if self.requests_per_min is None and self.tokens_per_min is None and not self.per_entitlement:
            raise ValueError("limits nothing; give requests_per_min, e.g. 60, or tokens_per_min, e.g. 6000")
        for name, over in (("demoted_priority", "demote"), ("spill_replicas", "spill")):
            if self.over != over:
                refuse_idle(self, name, f"over is {self.over}", f"give over: {over}")

    def rates_of(self, entitlements: Sequence[EntitlementSpec]) -> dict[str, Rates]:
        """Return the rates of each entitlement, by name.

        Raises
        ------
        ValueError : rates are given for an entitlement that there is not.
        """
        names = sorted(spec.name for spec in entitlements)
        check_names("per_entitlement", self.per_entitlement, names)
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


class Overflow:
    """What becomes of requests over their limit: refused, demoted, or sent to replicas kept for them.

    What is demoted or spilled is not charged: it runs on what others leave, or on other replicas.

    Attributes
    ----------
    acts : whether it does anything but refuse.
    """

    def __init__(self, params: Metered) -> None:
        self._params = params
        self.acts = params.over != "refuse"
        self._known: list[int] = []
        self._main = self._spill = ADMIT
        self._free: set[str] = set()

    def within(self) -> Admit:
        """Return how a request inside its limits is let in."""
        return self._main

    def beyond(self, denied: Deny) -> Verdict:
        """Return what becomes of one that its limits deny; what could never come in is refused in any case."""
        if not self.acts or denied.retry_after_s is None:
            return denied
        return Admit(priority=self._params.demoted_priority) if self._params.over == "demote" else self._spill

    def is_free(self, flight: InFlight, verdict: Verdict) -> bool:
        """Whether a request that was let in is free of charge: ``verdict`` is what it was let in with."""
        free = verdict is not self._main
        if free:
            self._free.add(flight.request.request_id)
        return free

    def was_free(self, flight: InFlight) -> bool:
        """Whether a request that ended was free of charge."""
        request_id = flight.request.request_id
        if request_id in self._free:
            self._free.remove(request_id)
            return True
        return False

    def on_capacity(self, pool: PoolLedger) -> None:
        """Keep the last replicas for what is spilled; where there is one only, it is for all."""
        replica_ids = [book.replica_id for book in pool.replicas]
        if self._params.over != "spill" or replica_ids == self._known:
            return
        self._known = replica_ids
        kept = min(self._params.spill_replicas, len(replica_ids) - 1)
        main = replica_ids[: len(replica_ids) - kept]
        self._main = Admit(replicas=tuple(main))
        self._spill = Admit(replicas=tuple(replica_ids[len(main) :] or main))


class MeteredPolicy(NoControlPolicy):
    """See `policies.api.AdmissionPolicy`; a subclass says what its meters deny, and charges them."""

    def __init__(self, params: Metered) -> None:
        self._overflow = Overflow(params)

    def denial(self, request: RequestView, max_output_tokens: int, now_s: float) -> Deny | None:
        """Return why a request is over its limits, None where it is not. No side effect."""
        raise NotImplementedError

    def charge(self, flight: InFlight, now_s: float) -> None:
        """Charge what was let in inside its limits."""
        raise NotImplementedError

    def settle(self, flight: InFlight, now_s: float) -> None:
        """Settle what was charged and has ended."""
        raise NotImplementedError

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Let it in if its limits allow it; else refuse it, or what ``over`` says."""
        denied = self.denial(request, max_output_tokens, now_s)
        return self._overflow.within() if denied is None else self._overflow.beyond(denied)

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Charge it, unless it is free of charge."""
        if self._overflow.acts:
            verdict = self.decide(flight.request, flight.max_output_tokens, pool, now_s)
            if self._overflow.is_free(flight, verdict):
                return
        self.charge(flight, now_s)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Settle it, unless it was free of charge."""
        if self._overflow.acts and self._overflow.was_free(flight):
            return
        self.settle(flight, now_s)

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Take note of which replicas there are."""
        self._overflow.on_capacity(pool)


def whole_s(wait_s: float) -> float:
    """Return a Retry-After: whole seconds, at least 1; of a rate of nothing a part may come any moment."""
    return max(1.0, float(math.ceil(wait_s))) if math.isfinite(wait_s) else 1.0
