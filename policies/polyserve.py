"""A tier for each time per token: requests go to the fullest replica of their tier that still keeps everybody in time.

A replica belongs to the tier of what runs there, and to nobody once it is empty. A request is placed on a replica where
its first token comes in time, the pause that its prompt makes is one that its second token survives, and iterations
stay within the tier's time per token when it and all others have grown to their expected lengths. Of its own tier's
replicas the fullest that can take it; else one of a tighter tier, by that tier's measure; else an empty one; else it
waits, which eats into its time.

Source: PolyServe, arXiv 2507.17769 (abstract), and the admission test of a port of it to Llumnix. An iteration's time
comes from a table there and is linear here. Not found: the tiers' values. [choice]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import (
    Admit,
    Chance,
    Deny,
    EntitlementSpec,
    Gauge,
    InFlight,
    PoolLedger,
    Queue,
    Reason,
    ReplicaLedger,
    RequestView,
    Verdict,
)
from policies.parts.idle import refuse_idle
from policies.parts.lines import Line, Waiting
from policies.parts.names import check_names
from policies.parts.queueing import QueueingPolicy
from policies.parts.rates import whole_s
from policies.parts.waits import Waits

_EVERYTHING = 10**9
_FRESH_SHARE = 0.1
_S = "give seconds {}, e.g. {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolyServe(Waits):
    """Tiers by time per token: the fullest replica that still meets the objective (PolyServe, arXiv 2507.17769).

    An iteration is taken to last ``base_s`` + ``per_sequence_s`` * sequences + ``per_context_token_s`` * KV tokens, a
    prompt ``per_prompt_token_s`` a token; `tokenpools calibrate` measures them. ``refuse_late`` turns away at once what
    would miss its first token on every replica, which the paper does not.
    """

    kind: Literal["polyserve"] = "polyserve"
    tpot_slo_s: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": "give time per token by entitlement, e.g. {chat: 0.04}"}
    )
    default_tpot_slo_s: float = field(default=0.1, metadata={"gt": 0, "description": _S.format("of all others", "0.1")})
    base_s: float = field(default=0.02, metadata={"gt": 0, "description": _S.format("of any iteration", "0.02")})
    per_sequence_s: float = field(default=4e-4, metadata={"ge": 0, "description": _S.format("a sequence", "4e-4")})
    per_context_token_s: float = field(default=1e-7, metadata={"ge": 0, "description": _S.format("a KV token", "1e-7")})
    per_prompt_token_s: float = field(
        default=6e-5, metadata={"ge": 0, "description": _S.format("a prompt token", "6e-5")}
    )
    expected_output_tokens: float = field(
        default=128.0, metadata={"gt": 0, "description": "give the answer to expect before one has ended, e.g. 128"}
    )
    refuse_late: bool = field(default=False, metadata={"description": "give true to refuse what would be late anyway"})
    tick_s: float = field(default=0.1, metadata={"gt": 0, "description": "give seconds between looks, e.g. 0.1"})

    def __post_init__(self) -> None:
        refuse_idle(self, "occupancy", "objectives alone decide how full a replica gets", "give tpot_slo_s")


class _Host:
    """What the gateway knows of a replica beside the core's books."""

    def __init__(self) -> None:
        self.tier: float | None = None
        self.requests = 0
        self.kv_tokens = 0
        self.prompt_tokens = 0  # whose first token has not come


class PolyServePolicy(QueueingPolicy):
    """See `policies.parts.queueing.QueueingPolicy`. Placing is the policy's; the router chooses among equals."""

    wants_progress = True

    def __init__(
        self, params: PolyServe, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params, kv_bytes_per_token, _EVERYTHING)
        specs = sorted(entitlements, key=lambda spec: spec.name)
        check_names("tpot_slo_s", params.tpot_slo_s, [spec.name for spec in specs])
        self._params = params
        self._kv_bytes_per_token = kv_bytes_per_token
        self._ttft_s = {spec.name: math.inf if spec.ttft_slo_s is None else spec.ttft_slo_s for spec in specs}
        self._tier_of = {spec.name: params.tpot_slo_s.get(spec.name, params.default_tpot_slo_s) for spec in specs}
        self._tiers = sorted(set(self._tier_of.values()))
        self._lines = {f"{tier:g}": Line() for tier in self._tiers}
        self._mean_tokens = dict.fromkeys(self._tiers, params.expected_output_tokens)
        self._hosts: dict[int, _Host] = {}
        self._at: dict[str, tuple[int, int, int]] = {}  # replica, prompt not begun, tokens counted
        self._placed: int | None = None  # where the one goes that `next` returned last

    # ---------------------------------------------------------------------------------------------------------- placing

    def _iteration_s(self, sequences: int, kv_tokens: float) -> float:
        params = self._params
        return params.base_s + params.per_sequence_s * sequences + params.per_context_token_s * kv_tokens

    def _load(self, book: ReplicaLedger, tier: float, request: RequestView, waited_s: float, kv_most: float) -> float:
        """Return how full a replica would be with a request, by the measure of a tier; infinite where it cannot be."""
        host = self._hosts[book.replica_id]
        ttft_s = self._ttft_s[request.entitlement]
        now_s = self._iteration_s(book.in_flight, host.kv_tokens)
        prompts_s = self._params.per_prompt_token_s * (host.prompt_tokens + request.prompt_tokens)
        first_s = waited_s + prompts_s + now_s
        batch = book.in_flight + request.sequences
        grown = host.kv_tokens + request.prompt_tokens + batch * self._mean_tokens[self._tier_of[request.entitlement]]
        last_s = self._iteration_s(batch, grown)
        if first_s > ttft_s or first_s + now_s > ttft_s + tier or last_s > tier or grown > kv_most:
            return math.inf
        return max(first_s / ttft_s, last_s / tier)

    def _place(self, request: RequestView, since_s: float, pool: PoolLedger, now_s: float) -> int | None:
        """Return the replica for a request, None where it has to wait. No side effect."""
        ready = [book for book in pool.replicas if book.ready]
        own = self._tier_of[request.entitlement]
        waited_s, kv_most = now_s - since_s, self._kv_most(pool)
        for tier in (own, *(tier for tier in reversed(self._tiers) if tier < own)):
            best, most = None, -math.inf
            for book in ready:
                if book.in_flight and self._tier_at(book) == tier:
                    load = self._load(book, tier, request, waited_s, kv_most)
                    if most < load < math.inf:  # of equals the first, whose number is the lowest
                        best, most = book.replica_id, load
            if best is not None:
                return best
        return next((book.replica_id for book in ready if not book.in_flight), None)

    def _tier_at(self, book: ReplicaLedger) -> float | None:
        host = self._hosts.get(book.replica_id)
        return None if host is None else host.tier

    def _kv_most(self, pool: PoolLedger) -> float:
        kv_bytes, ready = pool.capacity.kv_bytes, pool.capacity.ready_replicas
        if kv_bytes is None or not self._kv_bytes_per_token or not ready:
            return math.inf
        return kv_bytes / self._kv_bytes_per_token / ready

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Place it, or let it wait; where late ones are refused, refuse what no replica could begin in time."""
        too_large = self.too_large(request, max_output_tokens, pool)
        if too_large is not None:
            return too_large
        if not self._lines[self.flow_of(request)].length:
            replica_id = self._place(request, now_s, pool, now_s)
            if replica_id is not None:
                return Admit(replicas=(replica_id,), at_first=True)
        if self._params.refuse_late and (late := self._late(request, pool)):
            return late
        refusal = self.refusal(request, max_output_tokens, pool, now_s)
        return Queue(Reason.POOL_FULL) if refusal is None else refusal

    def _late(self, request: RequestView, pool: PoolLedger) -> Deny | None:
        ttft_s, best_s = self._ttft_s[request.entitlement], math.inf
        for book in pool.replicas:
            if book.ready:
                host = self._hosts.get(book.replica_id) or _Host()
                prompts = host.prompt_tokens + request.prompt_tokens
                first_s = self._params.per_prompt_token_s * prompts + self._iteration_s(book.in_flight, host.kv_tokens)
                best_s = min(best_s, first_s)
        return Deny(Reason.SLO, best_s, ttft_s, whole_s(best_s - ttft_s)) if ttft_s < best_s < math.inf else None

    # ----------------------------------------------------------------------------------------------------------- queues

    def flow_of(self, request: RequestView) -> str:
        """Return its tier."""
        return f"{self._tier_of[request.entitlement]:g}"

    def joined(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        self._lines[item.flow].push(item)

    def left(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        self._lines[item.flow].drop(item)

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:
        """Return the first of the tightest tier whose first can be placed."""
        for line in self._lines.values():
            if line.length:
                head = line.head()
                self._placed = self._place(head.request, head.since_s, pool, now_s)
                if self._placed is not None:
                    return head
        return None

    def outcome(self, item: Waiting, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Let it in where it was placed."""
        return Admit(replicas=None if self._placed is None else (self._placed,), at_first=True)

    # ------------------------------------------------------------------------------------------------------------ books

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Count it at its replica; one that was empty becomes its tier's."""
        super().on_admitted(flight, pool, now_s)
        self.taken(flight)
        request = flight.request
        host = self._hosts.setdefault(flight.replica_id, _Host())
        if not host.requests:
            host.tier = self._tier_of[request.entitlement]
        prompt_tokens = 0 if flight.prompt_credited else request.prompt_tokens
        counted_tokens = request.prompt_tokens + flight.output_tokens
        host.requests += 1
        host.kv_tokens += counted_tokens
        host.prompt_tokens += prompt_tokens
        self._at[request.request_id] = flight.replica_id, prompt_tokens, counted_tokens

    def on_first_token(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """See `policies.api.Watching`: its prompt is done."""
        replica_id, prompt_tokens, counted_tokens = self._at[flight.request.request_id]
        self._hosts[replica_id].prompt_tokens -= prompt_tokens
        self._at[flight.request.request_id] = replica_id, 0, counted_tokens

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Follow how far answers have come."""
        for request_id, flight in pool.in_flight.items():
            replica_id, prompt_tokens, counted_tokens = self._at[request_id]
            tokens = flight.request.prompt_tokens + flight.output_tokens
            if tokens != counted_tokens:
                self._hosts[replica_id].kv_tokens += tokens - counted_tokens
                self._at[request_id] = replica_id, prompt_tokens, tokens

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Take it out; a replica that is empty is nobody's."""
        super().on_ended(flight, pool, now_s)
        replica_id, prompt_tokens, counted_tokens = self._at.pop(flight.request.request_id)
        host = self._hosts[replica_id]
        host.requests -= 1
        host.kv_tokens -= counted_tokens
        host.prompt_tokens -= prompt_tokens
        if not host.requests:
            host.tier = None
        if flight.output_tokens:
            tier = self._tier_of[flight.request.entitlement]
            mean = self._mean_tokens[tier]
            self._mean_tokens[tier] = mean + _FRESH_SHARE * (flight.output_tokens - mean)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:
        """Return how many replicas each tier has."""
        yield from super().gauges(pool, now_s)
        for tier in self._tiers:
            owned = sum(host.tier == tier for host in self._hosts.values())
            yield Gauge("tier", f"{tier:g}", "replicas", owned)
