"""Only what can still meet its objective: deadlines decide the order, and what would miss its own is turned away.

The time to a first token is predicted from the prompts ahead and the prefill rate seen so far
(`policies.parts.prefill`). Who would miss its TTFT objective is refused (SCORPIO, arXiv 2505.23022; Mooncake's early
rejection, 2407.00079) or goes behind all others, at a lower priority in the engine too (Niyama's relegation,
2503.22562). With ``tpot_slo_s`` nobody is let in where one more would slow decoding below it, judged from the times per
token seen so far.

A long prompt misses its objective by itself, and a prediction that lags lets waves in: both are this policy's faults.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import (
    ADMIT,
    Admit,
    Chance,
    Deny,
    EntitlementSpec,
    Gauge,
    InFlight,
    PoolLedger,
    Reason,
    RequestView,
    Verdict,
)
from policies.parts.idle import refuse_idle
from policies.parts.lines import Line, Waiting
from policies.parts.prefill import FIRST_TOKENS_PER_S, PrefillClock
from policies.parts.queueing import QueueingPolicy
from policies.parts.rates import whole_s
from policies.parts.waits import Waits

_NO_OBJECTIVE_S = 1e9
"""What stands for the objective of who has none: behind all that have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SloFeasible(Waits):
    """Earliest deadline first, and refuses or relegates what would miss its TTFT objective anyway.

    The place in the queue is arrival + objective + ``alpha_s_per_token`` * prompt (Niyama). Who has no objective comes
    after those who have, and is never refused for one.
    """

    kind: Literal["slo-feasible"] = "slo-feasible"
    infeasible: Literal["refuse", "relegate"] = field(
        default="refuse", metadata={"description": "refuse: 429; relegate: behind all others, demoted in the engine"}
    )
    alpha_s_per_token: float = field(
        default=0.008, metadata={"ge": 0, "description": "give seconds that a prompt token sets back, e.g. 0.008"}
    )
    margin: float = field(default=1.2, metadata={"gt": 0, "description": "give a factor on predictions, e.g. 1.2"})
    smoothing: float = field(
        default=0.995, metadata={"ge": 0, "lt": 1, "description": "give what a sample leaves of the old rate, 0.995"}
    )
    first_tokens_per_s: float = field(
        default=FIRST_TOKENS_PER_S, metadata={"gt": 0, "description": "give a replica's prefill rate at first, 8500"}
    )
    tpot_slo_s: float | None = field(
        default=None, metadata={"gt": 0, "description": "give seconds per output token, e.g. 0.05; left out, any"}
    )
    demoted_priority: int = field(
        default=10, metadata={"description": "give the engine's priority of what is relegated, e.g. 10"}
    )

    def __post_init__(self) -> None:
        if self.infeasible != "relegate":
            refuse_idle(self, "demoted_priority", f"infeasible is {self.infeasible}", "give infeasible: relegate")


class SloFeasiblePolicy(QueueingPolicy):
    """See `policies.parts.queueing.QueueingPolicy`: one queue by deadline."""

    wants_progress = True

    def __init__(
        self, params: SloFeasible, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params, kv_bytes_per_token)
        self._params = params
        self._slo_s = {spec.name: spec.ttft_slo_s for spec in entitlements}
        self._clock = PrefillClock(params.first_tokens_per_s, 1 - params.smoothing)
        self._line, self._late = Line(), Line()
        self._decoding = _Trend(params.smoothing)
        self._first_token_s: dict[str, float] = {}
        # Prompt tokens that wait, by their objective: those of a nearer or the same one are ahead of who comes now.
        self._tokens_ahead = dict.fromkeys(sorted(each for each in self._slo_s.values() if each is not None), 0)

    # ---------------------------------------------------------------------------------------------------- predictions

    def _ttft_s(self, request: RequestView, ahead_tokens: int, waited_s: float, pool: PoolLedger) -> float:
        """Return the predicted TTFT, with the margin and what it has waited."""
        wait_s = self._clock.wait_s(request.prompt_tokens, ahead_tokens, pool.capacity.ready_replicas)
        return waited_s + self._params.margin * wait_s

    def _decodes_fast_enough(self, pool: PoolLedger) -> bool:
        slo_s = self._params.tpot_slo_s
        if slo_s is None or not pool.in_flight:
            return True
        tpot_s = self._decoding.at(len(pool.in_flight) + 1)
        return tpot_s is None or tpot_s <= slo_s

    # --------------------------------------------------------------------------------------------------------- queues

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Refuse what would miss its objective; let in or let wait what would not."""
        verdict = super().decide(request, max_output_tokens, pool, now_s)
        slo_s = self._slo_s[request.entitlement]
        if slo_s is None or isinstance(verdict, Deny) or self._params.infeasible == "relegate":
            return verdict
        ahead_tokens = sum(tokens for other_s, tokens in self._tokens_ahead.items() if other_s <= slo_s)
        ttft_s = self._ttft_s(request, ahead_tokens, 0.0, pool)
        if ttft_s > slo_s and (self._waiting or pool.in_flight):  # an idle pool serves whom it can serve no faster
            return self._refusal_of(ttft_s, slo_s)
        return verdict

    def _refusal_of(self, ttft_s: float, slo_s: float) -> Deny:
        return Deny(Reason.SLO, ttft_s, slo_s, whole_s(ttft_s - slo_s))

    def may_start(self, request: RequestView, need_tokens: int, pool: PoolLedger, now_s: float) -> bool:  # noqa: ARG002
        """Whether there is room, and decoding stays fast enough."""
        return self.room.fits(need_tokens, pool, request.sequences) and self._decodes_fast_enough(pool)

    def urgency_of(self, request: RequestView, max_output_tokens: int, now_s: float) -> float:  # noqa: ARG002
        """Return its deadline, put off by its prompt."""
        slo_s = self._slo_s[request.entitlement]
        set_back_s = self._params.alpha_s_per_token * request.prompt_tokens
        return now_s + set_back_s + (_NO_OBJECTIVE_S if slo_s is None else slo_s)

    def joined(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        self._line.push(item)
        self._count(item, 1)

    def left(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        (self._late if item.late else self._line).drop(item)
        if not item.late:
            self._count(item, -1)

    def _count(self, item: Waiting, sign: int) -> None:
        slo_s = self._slo_s[item.request.entitlement]
        if slo_s is not None:
            self._tokens_ahead[slo_s] += sign * item.request.prompt_tokens

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:
        """Return the nearest deadline that can be met, then what is late; what is to be refused goes first."""
        while self._line.length:
            item = self._line.head()
            slo_s = self._slo_s[item.request.entitlement]
            if slo_s is None or self._ttft_s(item.request, 0, now_s - item.since_s, pool) <= slo_s:
                break
            self._late.push(self._line.pop())
            self._count(item, -1)
            item.late = True
            if self._params.infeasible == "refuse":
                return item
        if not self._line.length:
            item = self._late.head()
        return item if self.may_start(item.request, item.need_tokens, pool, now_s) else None

    def outcome(self, item: Waiting, pool: PoolLedger, now_s: float) -> Verdict:
        """Let in what can meet its objective; refuse or demote what cannot."""
        slo_s = self._slo_s[item.request.entitlement]
        if not item.late or slo_s is None:
            return ADMIT
        if self._params.infeasible == "relegate":
            return Admit(priority=max(item.request.priority, self._params.demoted_priority))
        return self._refusal_of(self._ttft_s(item.request, 0, now_s - item.since_s, pool), slo_s)

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Count its prompt."""
        super().on_admitted(flight, pool, now_s)
        self._clock.admitted(flight)

    def on_first_token(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Learn how fast prompts are taken in."""
        self._clock.first_token(flight, now_s)
        self._first_token_s[flight.request.request_id] = now_s

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Learn how fast outputs come."""
        super().on_ended(flight, pool, now_s)
        self._clock.ended(flight)
        began_s = self._first_token_s.pop(flight.request.request_id, None)
        if began_s is not None and flight.output_tokens > 1:
            self._decoding.learn(len(pool.in_flight) + 1, (now_s - began_s) / (flight.output_tokens - 1))

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:
        """Return how much waits, and the prefill rate seen so far."""
        yield from super().gauges(pool, now_s)
        yield Gauge("pool", "pool", "prefill_tokens_per_s", self._clock.tokens_per_s)


class _Trend:
    """Time per output token as a line over the requests in flight, by least squares that forget."""

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    def learn(self, batch: float, tpot_s: float) -> None:
        """Take one more point."""
        point = (1.0, batch, tpot_s, batch * batch, batch * tpot_s)
        self._sums = tuple(self._smoothing * old + new for old, new in zip(self._sums, point, strict=True))  # type: ignore[assignment]

    def at(self, batch: float) -> float | None:
        """Return the time per token at a batch; the mean where all points are alike, None where there is none."""
        n, x, y, xx, xy = self._sums
        if n == 0:
            return None
        spread = n * xx - x * x
        if spread <= 1e-9 * n * xx:
            return y / n
        slope = max(0.0, (n * xy - x * y) / spread)
        return y / n + slope * (batch - x / n)
