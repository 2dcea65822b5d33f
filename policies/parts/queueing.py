"""Queues at the gateway: what waits, how long at most, and how much is let into the replicas.

A policy that queues lets into the replicas only what fits there, slots by count and KV cache by reservation, so that
its own order decides and not the engine's. Whoever is next and does not fit waits for room; nobody overtakes it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping

from policies.api import ADMIT, Deny, Gauge, InFlight, PoolLedger, Queue, Reason, RequestView, Verdict
from policies.base import PolicyBase
from policies.native import mypyc_attr
from policies.parts.lines import Waiting
from policies.parts.rates import whole_s
from policies.parts.room import Room
from policies.parts.waits import Waits

_FRESH_SHARE = 0.1
_FIRST_WAIT_S = 1.0
"""Retry-After of a full queue until a request has waited. [choice]"""


@mypyc_attr(allow_interpreted_subclasses=True)
class QueueingPolicy(PolicyBase):
    """See `policies.api.AdmissionPolicy` and `policies.api.Queueing`; a subclass says who is next.

    A request is let in at once where nobody waits and it may start; else it waits. Too many waiting: 429. Too long:
    ``timeout_status``, noticed at the next tick. Retry-After is the moving mean of how long requests waited.
    """

    tick_s: float | None

    def __init__(self, params: Waits, kv_bytes_per_token: float | None, per_replica: int | None = None) -> None:
        self.tick_s = params.tick_s
        self.room = Room(kv_bytes_per_token, params.occupancy, per_replica)
        self._most_requests = params.queue_requests
        self._most_tokens = params.queue_tokens
        self._timeout_s = params.timeout_s
        self._timeout_status = params.timeout_status
        self._waiting: dict[str, Waiting] = {}
        self._waiting_tokens = 0
        self._expiring: list[tuple[float, int, Waiting]] = []
        self._came = 0
        self._mean_wait_s: float | None = None
        self._taken: Waiting | None = None
        self._is_resized = False

    # ------------------------------------------------------------------------------------------ what a subclass says

    def flow_of(self, request: RequestView) -> str:
        """Return the name of the queue that a request waits in."""
        return request.entitlement

    def urgency_of(self, request: RequestView, max_output_tokens: int, now_s: float) -> float:  # noqa: ARG002
        """Return the place in its queue: lower goes first."""
        return 0.0

    def cost_of(self, request: RequestView, max_output_tokens: int) -> float:  # noqa: ARG002
        """Return what an order charges for a request when it starts."""
        return 0.0

    def timeout_of(self, item: Waiting) -> float | None:  # noqa: ARG002
        """Return how long it may wait."""
        return self._timeout_s

    def may_start(self, request: RequestView, need_tokens: int, pool: PoolLedger, now_s: float) -> bool:  # noqa: ARG002
        """Whether a request may start now where nobody waits. No side effect."""
        return self.room.fits(need_tokens, pool, request.sequences)

    def too_large(self, request: RequestView, max_output_tokens: int, pool: PoolLedger) -> Deny | None:
        """Return the refusal of what could not be let in though nothing was in flight; None for any other."""
        return self.room.too_large(request, max_output_tokens, pool)

    def refusal(
        self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float  # noqa: ARG002
    ) -> Deny | None:
        """Return why a request may not wait, None where it may. No side effect."""
        if len(self._waiting) >= self._most_requests:
            return Deny(Reason.QUEUE_FULL, len(self._waiting) + 1, self._most_requests, self.retry_s())
        if self._most_tokens is not None and self._waiting_tokens >= self._most_tokens:
            needed = self._waiting_tokens + request.prompt_tokens
            return Deny(Reason.QUEUE_FULL, needed, self._most_tokens, self.retry_s())
        return None

    def displaced(self) -> Waiting | None:
        """Return who has to leave the queue for one that was let into it although it is full; None: nobody."""
        return None

    def joined(self, item: Waiting, now_s: float) -> None:
        """Put one who begins to wait into its queue."""
        raise NotImplementedError

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:
        """Return who starts now, None where nobody does. Asked again, it returns the same."""
        raise NotImplementedError

    def left(self, item: Waiting, now_s: float) -> None:
        """Take one who starts, gave up or waited too long out of its queue."""
        raise NotImplementedError

    def outcome(self, item: Waiting, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Return what becomes of one that `next` returned: let in, as a rule."""
        return ADMIT

    # ------------------------------------------------------------------------------------------------ for the core

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Let it in if nobody waits and it fits; else let it wait if it may."""
        too_large = self.too_large(request, max_output_tokens, pool)
        if too_large is not None:
            return too_large
        need_tokens = request.prompt_tokens + max_output_tokens
        if not self._waiting and self.may_start(request, need_tokens, pool, now_s):
            return ADMIT
        refusal = self.refusal(request, max_output_tokens, pool, now_s)
        return Queue(Reason.POOL_FULL) if refusal is None else refusal

    def on_held(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """See `policies.api.Queueing`."""
        item = Waiting(
            request, max_output_tokens, self.flow_of(request), now_s,
            self.urgency_of(request, max_output_tokens, now_s), self.cost_of(request, max_output_tokens),
        )
        self._waiting[request.request_id] = item
        self._waiting_tokens += request.prompt_tokens
        timeout_s = self.timeout_of(item)
        if timeout_s is not None:
            self._came += 1
            heapq.heappush(self._expiring, (now_s + timeout_s, self._came, item))
        self.joined(item, now_s)

    def on_withdrawn(self, request_id: str, now_s: float) -> None:
        """See `policies.api.Queueing`."""
        self._remove(self._waiting[request_id], now_s)

    def dispatch(self, pool: PoolLedger, now_s: float) -> Iterator[tuple[str, Verdict]]:
        """See `policies.api.Queueing`."""
        expiring = self._expiring
        while expiring and (expiring[0][2].gone or expiring[0][0] < now_s):
            item = heapq.heappop(expiring)[2]
            if not item.gone:
                self._remove(item, now_s)
                waited_s = now_s - item.since_s
                limit_s = self.timeout_of(item) or 0.0
                needed_s = max(waited_s, math.nextafter(limit_s, math.inf))  # rounding may hide by how little
                verdict = Deny(Reason.QUEUE_TIMEOUT, needed_s, limit_s, self.retry_s(), self._timeout_status)
                yield item.request.request_id, verdict
        while len(self._waiting) > self._most_requests and (victim := self.displaced()) is not None:
            waiting = len(self._waiting)
            self._remove(victim, now_s)
            yield victim.request.request_id, Deny(Reason.QUEUE_FULL, waiting, self._most_requests, self.retry_s())
        if self._is_resized:
            self._is_resized = False
            for item in [one for one in self._waiting.values() if one.request.sequences > 1]:
                needs_more = self.too_large(item.request, item.max_output_tokens, pool)
                if needs_more is not None:  # nobody could go before it left
                    self._remove(item, now_s)
                    yield item.request.request_id, needs_more
        while self._waiting and self.room.slots_free(pool) >= 1 and pool.capacity.ready_replicas:
            chosen = self.next(pool, now_s)
            if chosen is None:
                return
            waited_s = now_s - chosen.since_s
            mean_s = self._mean_wait_s
            self._mean_wait_s = waited_s if mean_s is None else mean_s + _FRESH_SHARE * (waited_s - mean_s)
            self._remove(chosen, now_s)
            self._taken = chosen
            yield chosen.request.request_id, self.outcome(chosen, pool, now_s)

    def _remove(self, item: Waiting, now_s: float) -> None:
        item_id = item.request.request_id
        del self._waiting[item_id]
        self._waiting_tokens -= item.request.prompt_tokens
        self.left(item, now_s)

    def taken(self, flight: InFlight) -> Waiting | None:
        """Return what was waited with, for a request that is let in right now after waiting; None for any other."""
        item = self._taken
        self._taken = None
        return item if item is not None and item.request.request_id == flight.request.request_id else None

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Reserve its KV cache."""
        self.room.reserved_tokens += flight.reserved_tokens

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Give its KV cache back."""
        self.room.reserved_tokens -= flight.reserved_tokens

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Take note of how large a request may be."""
        self.room.learn(pool)
        self._is_resized = pool.capacity.ready_replicas > 0

    def faults(self, pool: PoolLedger, held: Mapping[str, RequestView]) -> Iterable[str]:
        """See `policies.api.Auditing`."""
        if held.keys() != self._waiting.keys():
            yield f"{sorted(held.keys() ^ self._waiting.keys())[:5]} are held or wait in a queue, not both"
        tokens = sum(item.request.prompt_tokens for item in self._waiting.values())
        if tokens != self._waiting_tokens:
            yield f"{self._waiting_tokens} prompt tokens wait, by request {tokens}"
        reserved = sum(flight.reserved_tokens for flight in pool.in_flight.values())
        if reserved != self.room.reserved_tokens:
            yield f"{self.room.reserved_tokens} tokens are reserved, requests in flight reserve {reserved}"

    def retry_s(self) -> float:
        """Return the moving mean of waits, in whole seconds."""
        mean_s = _FIRST_WAIT_S if self._mean_wait_s is None else self._mean_wait_s
        return whole_s(mean_s)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:  # noqa: ARG002
        """Return how much waits."""
        yield Gauge("pool", "pool", "queue_requests", len(self._waiting))
        yield Gauge("pool", "pool", "queue_prompt_tokens", self._waiting_tokens)


def weights_of(weights: Mapping[str, float], names: list[str], what: str = "weights") -> dict[str, float]:
    """Return a weight for each name, 1 where none is given.

    Raises
    ------
    ValueError : a weight names nobody, or is not above 0.
    """
    for name, weight in weights.items():
        if name not in names:
            raise ValueError(f"{what} names {name!r}, which is none of {names}; give one of them")
        if not weight > 0:
            raise ValueError(f"{what} gives {name} {weight:g}; give a number above 0, e.g. 1")
    return {name: float(weights.get(name, 1.0)) for name in names}
