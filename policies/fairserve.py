"""Throttling only in an overloaded pool and only of who begins something new; fair queueing by application.

An application is an entitlement, a user the key (without keys, the tenant), an interaction a session. In an overloaded
pool a request that opens an interaction is refused where its user or its application has begun as many requests in the
last minute as it may; calls of an interaction under way always pass. Who waits is served by counters of service, in
which an application's tokens count by what is usual for it.

Source: FairServe, arXiv 2411.15997 (abstract), and two re-implementations for the details: the throttle's thresholds
(KV of 5,000 tokens or 32 running, for one engine) and the weighted service counter (w_in 1, w_s 1, w_out 2 over P99s).
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import Chance, Deny, EntitlementSpec, Gauge, InFlight, PoolLedger, Reason, RequestView, Verdict
from policies.parts.lines import Line, Waiting
from policies.parts.names import check_names
from policies.parts.orders_by_use import Vtc
from policies.parts.queueing import QueueingPolicy, weights_of
from policies.parts.rates import whole_s
from policies.parts.waits import Waits

_WINDOW_S = 60.0
_SESSION_S = 600.0
"""How long an interaction may be silent and still be one. [choice]"""
_PER_MIN = {"gt": 0, "description": "give requests a minute, e.g. 60"}
_BY_APP = "give {} by entitlement, e.g. {{chat: {}}}; others have the default"


@dataclass(frozen=True, slots=True, kw_only=True)
class FairServe(Waits):
    """Overload- and interaction-driven throttling, and a weighted service counter (FairServe, arXiv 2411.15997).

    A token of an answer counts ``output_weight`` over the application's usual answer, one of a prompt ``input_weight``
    over its usual prompt, one of its system prompt ``system_weight`` over that; all over the application's weight.
    """

    kind: Literal["fairserve"] = "fairserve"
    user_per_min: float = field(default=60.0, metadata=_PER_MIN)
    app_per_min: float = field(default=600.0, metadata=_PER_MIN)
    user_per_min_by: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": _BY_APP.format("requests a minute of a user", "20")}
    )
    app_per_min_by: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": _BY_APP.format("requests a minute", "300")}
    )
    overloaded_running: int = field(
        default=32, metadata={"gt": 0, "description": "give requests in flight a replica that are overload, e.g. 32"}
    )
    overloaded_kv_tokens: int = field(
        default=5000, metadata={"gt": 0, "description": "give KV tokens a replica that are not yet overload, 5000"}
    )
    weights: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": _BY_APP.format("shares", "2")}
    )
    system_tokens: Mapping[str, int] = field(
        default_factory=dict, metadata={"description": _BY_APP.format("the system prompt's tokens", "400")}
    )
    usual_prompt_tokens: float = field(
        default=1024.0, metadata={"gt": 0, "description": "give the P99 of prompts, without system prompts, e.g. 1024"}
    )
    usual_output_tokens: float = field(
        default=256.0, metadata={"gt": 0, "description": "give the P99 of answers, e.g. 256"}
    )
    usual_prompt_tokens_by: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": _BY_APP.format("P99s of prompts", "4000")}
    )
    usual_output_tokens_by: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": _BY_APP.format("P99s of answers", "500")}
    )
    input_weight: float = field(default=1.0, metadata={"ge": 0, "description": "give w_in, e.g. 1"})
    system_weight: float = field(default=1.0, metadata={"ge": 0, "description": "give w_s, e.g. 1"})
    output_weight: float = field(default=2.0, metadata={"ge": 0, "description": "give w_out, e.g. 2"})
    tick_s: float = field(default=0.25, metadata={"gt": 0, "description": "give seconds between looks, e.g. 0.25"})


class FairServePolicy(QueueingPolicy):
    """See `policies.parts.queueing.QueueingPolicy`. Whoever is next waits for room, and nobody overtakes it."""

    wants_progress = True
    wants_sessions = True

    def __init__(
        self, params: FairServe, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params, kv_bytes_per_token)
        names = sorted(spec.name for spec in entitlements)
        for what in ("user_per_min_by", "app_per_min_by", "system_tokens", "usual_prompt_tokens_by",
                     "usual_output_tokens_by"):  # fmt: skip
            check_names(what, getattr(params, what), names)
        self._params = params
        self._weights = weights_of(params.weights, names)
        self._order = Vtc(None)
        self._lines = {name: Line() for name in names}
        self._counters = dict.fromkeys(names, 0.0)
        self._begun: dict[tuple[str, str], deque[float]] = {}  # by ("app", name) or ("user", name): times
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self._kv_tokens = 0
        self._counted: dict[str, int] = {}  # tokens of each in flight that were counted into KV cache

    # --------------------------------------------------------------------------------------------------------- throttle

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Refuse what begins an interaction over a limit in an overloaded pool; else let it in, or wait."""
        if self._opens(request, now_s) and self._overloaded(pool):
            for key, limit in self._limits(request):
                begun = self._recent(key, now_s)
                if len(begun) >= limit:
                    oldest_s = begun[len(begun) - math.ceil(limit)] if limit >= 1 else begun[-1]
                    wait_s = oldest_s + _WINDOW_S - now_s
                    return Deny(Reason.REQUESTS, len(begun) + 1, limit, whole_s(wait_s))
        return super().decide(request, max_output_tokens, pool, now_s)

    def _opens(self, request: RequestView, now_s: float) -> bool:
        heard_s = self._sessions.get(request.session, -math.inf) if request.session else -math.inf
        return heard_s < now_s - _SESSION_S

    def _overloaded(self, pool: PoolLedger) -> bool:
        ready = max(1, pool.capacity.ready_replicas)
        params = self._params
        return (
            pool.all_in_flight >= params.overloaded_running * ready
            or self._kv_tokens > params.overloaded_kv_tokens * ready
        )

    def _limits(self, request: RequestView) -> Iterable[tuple[tuple[str, str], float]]:
        params, app = self._params, request.entitlement
        yield ("user", request.key or request.tenant), params.user_per_min_by.get(app, params.user_per_min)
        yield ("app", app), params.app_per_min_by.get(app, params.app_per_min)

    def _recent(self, key: tuple[str, str], now_s: float) -> deque[float]:
        """Return when requests of the last minute began, and forget older ones, which nobody could see."""
        begun = self._begun.setdefault(key, deque())
        while begun and begun[0] <= now_s - _WINDOW_S:
            begun.popleft()
        return begun

    def _begin(self, request: RequestView, now_s: float) -> None:
        """Count a request that was let in or may wait."""
        for key, _ in self._limits(request):
            self._recent(key, now_s).append(now_s)
        if request.session:
            self._sessions[request.session] = now_s
            self._sessions.move_to_end(request.session)
        while self._sessions and next(iter(self._sessions.values())) < now_s - _SESSION_S:
            self._sessions.popitem(last=False)

    # ------------------------------------------------------------------------------------------------------ who is next

    def cost_of(self, request: RequestView, max_output_tokens: int) -> float:  # noqa: ARG002
        """Return what a prompt adds to its application's counter."""
        params, app = self._params, request.entitlement
        usual_system_tokens = params.system_tokens.get(app, 0)
        system_tokens = min(usual_system_tokens, request.prompt_tokens)
        usual = params.usual_prompt_tokens_by.get(app, params.usual_prompt_tokens)
        cost = params.input_weight * (request.prompt_tokens - system_tokens) / usual
        if system_tokens:
            cost += params.system_weight * system_tokens / usual_system_tokens
        return cost / self._weights[app]

    def joined(self, item: Waiting, now_s: float) -> None:
        """See `QueueingPolicy`."""
        self._begin(item.request, now_s)
        self._order.enter(self._lines[item.flow], item, now_s)

    def left(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        self._order.leave(self._lines[item.flow], item)

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:
        """Return the first of the application with the least counter, if it fits."""
        item = self._lines[self._order.pick(self._lines, now_s)].head()
        return item if self.room.fits(item.need_tokens, pool, item.request.sequences) else None

    # ------------------------------------------------------------------------------------------------------------ books

    def _charge(self, app: str, cost: float, now_s: float) -> None:
        self._counters[app] += cost
        self._order.charge(app, cost, now_s)

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Charge its prompt."""
        super().on_admitted(flight, pool, now_s)
        request = flight.request
        app = request.entitlement
        if self.taken(flight) is None:
            self._begin(request, now_s)
            if not self._lines[app].length:  # it comes and goes at once
                item = Waiting(request, flight.max_output_tokens, app, now_s, 0.0, 0.0)
                self._order.joined(app, item, now_s)
                self._order.left(app)
        self._charge(app, self.cost_of(request, flight.max_output_tokens), now_s)
        self._kv_tokens += request.prompt_tokens
        self._counted[request.request_id] = request.prompt_tokens

    def _follow(self, flight: InFlight, now_s: float) -> None:
        """Charge the output that came since the last look."""
        request, params = flight.request, self._params
        tokens = flight.reserved_tokens - flight.max_output_tokens + flight.output_tokens
        new_tokens = tokens - self._counted[request.request_id]
        if new_tokens > 0:
            app = request.entitlement
            self._counted[request.request_id] = tokens
            self._kv_tokens += new_tokens
            usual = params.usual_output_tokens_by.get(app, params.usual_output_tokens)
            self._charge(app, params.output_weight * new_tokens / usual / self._weights[app], now_s)

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        """Follow the answers."""
        for flight in pool.in_flight.values():
            self._follow(flight, now_s)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Charge the rest of the answer."""
        super().on_ended(flight, pool, now_s)
        self._follow(flight, now_s)
        self._kv_tokens -= self._counted.pop(flight.request.request_id)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:
        """Return how much waits, and the counters."""
        yield from super().gauges(pool, now_s)
        for app, counter in self._counters.items():
            yield Gauge("entitlement", app, "charged", counter)
            yield Gauge("entitlement", app, "queue_requests", self._lines[app].length)
