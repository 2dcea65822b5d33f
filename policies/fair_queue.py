"""Fair queues at the gateway: a queue for each entitlement or tenant, served in an order that looks at what each used.

``vtc``, ``drr`` and ``las`` are the field's, each with its own way to charge; ``fair-queue`` puts any order together
with any way to charge. None refuses but for its queue's bounds, and none promises a rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import Chance, Deny, EntitlementSpec, Gauge, InFlight, PoolLedger, RequestView
from policies.parts.estimates import ESTIMATE, Estimate, Foresight, MaxTokens, estimator
from policies.parts.idle import refuse_idle
from policies.parts.lines import Line, Waiting, Within, place
from policies.parts.orders import (
    HALF_LIFE,
    DeficitRoundRobin,
    LeastAttainedService,
    OrderParams,
    RoundRobin,
    VirtualTokenCounter,
    order_of,
)
from policies.parts.queueing import QueueingPolicy, weights_of
from policies.parts.waits import Waits

Charge = Literal["prompt", "end", "settled", "stream", "predicted"]
_INPUT = {"ge": 0, "description": "give what a prompt token costs, e.g. 1"}
_CACHED = {"ge": 0, "description": "give what a cached prompt token costs, e.g. 0; left out, as much as any other"}
_OUTPUT = {"ge": 0, "description": "give what an output token costs, e.g. 2"}
_CHARGE = {
    "description": "prompt: the prompt at the start, never the output; end: all at the end; settled: the prompt at the "
    "start, the output at the end; stream: the output as it comes, looked at every tick_s; predicted: both at the "
    "start, the output as estimated, corrected at the end"
}
_WITHIN = {"description": "fcfs: the first come; edf: the nearest TTFT objective; shortest: the smallest request"}
_FLOW = {"description": "entitlement: a queue for each; tenant: one for all entitlements of a tenant"}
_WHEN_FULL = {
    "description": "refuse: 429 to who comes to a full queue; displace: to the last of the flow that has most waiting"
}
_WEIGHTS = {"description": "give shares by entitlement (or tenant, where flow says so), e.g. {chat: 2}; others have 1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fair(Waits):
    """What all fair queues can be told."""

    flow: Literal["entitlement", "tenant"] = field(default="entitlement", metadata=_FLOW)
    within: Within = field(default="fcfs", metadata=_WITHIN)
    weights: Mapping[str, float] = field(default_factory=dict, metadata=_WEIGHTS)
    charge: Charge = field(default="settled", metadata=_CHARGE)
    when_full: Literal["refuse", "displace"] = field(default="refuse", metadata=_WHEN_FULL)
    estimate: Estimate = field(default=MaxTokens(), metadata=ESTIMATE)
    input_weight: float = field(default=1.0, metadata=_INPUT)
    cached_weight: float | None = field(default=None, metadata=_CACHED)
    output_weight: float = field(default=2.0, metadata=_OUTPUT)

    def __post_init__(self) -> None:
        if self.charge != "predicted":
            refuse_idle(self, "estimate", f"charge is {self.charge}", "give charge: predicted")

    def order_params(self) -> OrderParams:
        """Return the order."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class FairQueue(Fair):
    """Queues at the gateway in an order of your choice: any order, way to charge and estimate together."""

    kind: Literal["fair-queue"] = "fair-queue"
    order: OrderParams = field(
        default=RoundRobin(),
        metadata={"discriminator": "kind", "description": "give the order, e.g. round-robin or {kind: drr}"},
    )

    def order_params(self) -> OrderParams:
        """Return the order."""
        return self.order


@dataclass(frozen=True, slots=True, kw_only=True)
class Vtc(Fair):
    """Serves whoever was served least: virtual token counters (arXiv 2401.00588), at the gateway.

    A counter rises by the prompt at the start and by the output as it is seen, every ``tick_s``. Who begins to wait is
    lifted to the least counter of those who wait. With ``charge: predicted`` and ``estimate: tenant-mean`` it is the
    paper's variant with prediction.
    """

    kind: Literal["vtc"] = "vtc"
    charge: Charge = field(default="stream", metadata=_CHARGE)
    tick_s: float = field(default=0.25, metadata={"gt": 0, "description": "give seconds between looks, e.g. 0.25"})
    half_life_s: float | None = field(default=None, metadata=HALF_LIFE)

    def order_params(self) -> OrderParams:
        """Return the order."""
        return VirtualTokenCounter(half_life_s=self.half_life_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drr(Fair):
    """Deficit round robin: each in turn, as many requests as its quanta of tokens pay for (Dynamo's policy queue).

    ``charge: prompt`` is Dynamo's own, which no output is charged in; the default also takes the output, at the end.
    """

    kind: Literal["drr"] = "drr"
    quantum: float = field(default=1024.0, metadata={"gt": 0, "description": "give weighted tokens a turn, e.g. 1024"})

    def order_params(self) -> OrderParams:
        """Return the order."""
        return DeficitRoundRobin(quantum=self.quantum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Las(Fair):
    """Serves whoever was served least of late, with a little weight on waiting (llm-d's program-aware plugin)."""

    kind: Literal["las"] = "las"
    charge: Charge = field(default="end", metadata=_CHARGE)
    half_life_s: float = field(default=60.0, metadata=HALF_LIFE)
    wait_share: float = field(
        default=0.2, metadata={"ge": 0, "le": 1, "description": "give what waiting counts against service, e.g. 0.2"}
    )

    def order_params(self) -> OrderParams:
        """Return the order."""
        return LeastAttainedService(half_life_s=self.half_life_s, wait_share=self.wait_share)


class FairQueuePolicy(Foresight, QueueingPolicy):
    """See `policies.parts.queueing.QueueingPolicy`. Whoever is next waits for room, and nobody overtakes it."""

    def __init__(
        self, params: Fair, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params, kv_bytes_per_token)
        specs = sorted(entitlements, key=lambda spec: spec.name)
        self._params = params
        self._flows = {spec.name: spec.tenant if params.flow == "tenant" else spec.name for spec in specs}
        self._objectives = {spec.name: spec.ttft_slo_s for spec in specs}
        names = sorted(set(self._flows.values()))
        self._weights = weights_of(params.weights, names)
        members: dict[str, list[EntitlementSpec]] = {name: [] for name in names}
        for spec in specs:
            members[self._flows[spec.name]].append(spec)
        self._order = order_of(params.order_params(), members, self._weights, kv_bytes_per_token)
        self.estimate = estimator(params.estimate)
        self.wants_progress = params.charge == "stream"
        self._prompt_at_start = params.charge != "end"
        self._predicts = params.charge == "predicted"
        self._charges_output = params.charge != "prompt"
        self._lines = {name: Line() for name in names}
        self._charged: dict[str, float] = {}
        self._used = dict.fromkeys(names, 0.0)

    def flow_of(self, request: RequestView) -> str:
        """Return its entitlement or tenant."""
        return self._flows[request.entitlement]

    def urgency_of(self, request: RequestView, max_output_tokens: int, now_s: float) -> float:
        """Return its place among those of its flow."""
        within = self._params.within
        return place(within, request, max_output_tokens, self._objectives[request.entitlement], now_s)

    def cost_of(self, request: RequestView, max_output_tokens: int) -> float:
        """Return the weighted tokens to charge at the start."""
        params = self._params
        cost = params.input_weight * request.prompt_tokens if self._prompt_at_start else 0.0
        if self._predicts:
            cost += params.output_weight * self.estimate.output_tokens(request, max_output_tokens)
        return cost / self._weights[self._flows[request.entitlement]]

    def refusal(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Deny | None:
        """Return why it may not wait; where others can be displaced, only what is too much in tokens."""
        refusal = super().refusal(request, max_output_tokens, pool, now_s)
        over_tokens = self._most_tokens is not None and self._waiting_tokens >= self._most_tokens
        return None if self._params.when_full == "displace" and not over_tokens else refusal

    def displaced(self) -> Waiting | None:
        """Return the last of the longest line; of lines as long, the one that grew last."""
        longest = max(line.length for line in self._lines.values())
        newest = next(item for item in reversed(self._waiting.values()) if self._lines[item.flow].length == longest)
        return self._lines[newest.flow].last()

    def joined(self, item: Waiting, now_s: float) -> None:
        """See `QueueingPolicy`."""
        self._order.enter(self._lines[item.flow], item, now_s)

    def left(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        self._order.leave(self._lines[item.flow], item)

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:
        """Return the head of the flow whose turn it is, if it fits."""
        item = self._lines[self._order.pick(self._lines, now_s)].head()
        return item if self.room.fits(item.need_tokens, pool, item.request.sequences) else None

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Charge what is charged at the start."""
        super().on_admitted(flight, pool, now_s)
        request = flight.request
        flow = self._flows[request.entitlement]
        order = self._order
        item = self.taken(flight)
        if item is None:
            cost = self.cost_of(request, flight.max_output_tokens)
            item = Waiting(request, flight.max_output_tokens, flow, now_s, 0.0, cost)
            if not self._lines[flow].length:  # it comes and goes at once
                order.joined(flow, item, now_s)
                order.left(flow)
        else:
            order.served(flow)
        if item.cost:
            self._charge(flow, item.cost, now_s)
        order.hold(flow, request.sequences, flight.reserved_tokens, pool)
        output_tokens = 0.0
        if self._predicts:
            prompt_cost = self._params.input_weight * request.prompt_tokens
            output_tokens = (item.cost * self._weights[flow] - prompt_cost) / (self._params.output_weight or 1.0)
        self._charged[request.request_id] = output_tokens

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Charge what is left to charge, and correct what was charged too high."""
        super().on_ended(flight, pool, now_s)
        params, request = self._params, flight.request
        flow = self._flows[request.entitlement]
        self._order.hold(flow, -request.sequences, -flight.reserved_tokens, pool)
        charged_tokens = self._charged.pop(request.request_id)
        cost = 0.0
        if self._charges_output:
            cost = params.output_weight * (flight.output_tokens - charged_tokens)
        if self._prompt_at_start:  # the upstream may have counted another number than was estimated
            cost += params.input_weight * (request.prompt_tokens - flight.reserved_tokens + flight.max_output_tokens)
        elif flight.prompt_credited:
            cost += params.input_weight * request.prompt_tokens
        if flight.cached_tokens and params.cached_weight is not None:
            cost -= (params.input_weight - params.cached_weight) * flight.cached_tokens
        if cost:
            self._charge(flow, cost / self._weights[flow], now_s)
        self.estimate.learn(flight)

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        """Charge the output that came since the last look."""
        if self.wants_progress:
            charged = self._charged
            for request_id, flight in pool.in_flight.items():
                new_tokens = flight.output_tokens - charged[request_id]
                if new_tokens > 0:
                    charged[request_id] = flight.output_tokens
                    flow = self._flows[flight.request.entitlement]
                    self._charge(flow, self._params.output_weight * new_tokens / self._weights[flow], now_s)
        self._order.tick(pool, now_s)

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:
        """Follow the pool's capacity."""
        super().on_capacity(pool, now_s)
        self._order.tick(pool, now_s)

    def _charge(self, flow: str, cost: float, now_s: float) -> None:
        self._used[flow] += cost
        self._order.charge(flow, cost, now_s)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:
        """Return how much waits, and what was charged to each, divided by its weight."""
        yield from super().gauges(pool, now_s)
        for flow, line in self._lines.items():
            scope = "tenant" if self._params.flow == "tenant" else "entitlement"
            yield Gauge(scope, flow, "queue_requests", line.length)
            yield Gauge(scope, flow, "charged", self._used[flow])
