"""Requests on their way: what each waits for, who cut it and what the core said about it.

The `InFlightTable` is the gateway's upstream (`sim.live.gateway.core_driver.Upstream`): it hands the core's verdicts to
the tasks that serve requests, and cuts those that the core evicts, whose client has left, or that wait for longer than
they may. Waiting is measured by the loop's clock, which is monotonic: a clock that is set does not matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from itertools import count
from typing import Any, Protocol

from policies.api import (
    Event,
    Evict,
    Failed,
    Forward,
    Progress,
    Reason,
    Refuse,
    RequestView,
    ServiceClass,
)
from sim.live.observability.observer import NEVER_S, Ended, Observer, RequestLog

LOG = logging.getLogger("tokenpools.in_flight")

_SWEEP_S = 0.1

Verdict = Forward | Refuse | Failed


class AbortReason(StrEnum):
    """Why a request was stopped from outside."""

    CLIENT_LEFT = "client_left"
    EVICTED = "evicted"
    BODY_SLOW = "body_slow"
    HELD_LONG = "held_long"
    UPSTREAM_SILENT = "upstream_silent"
    CLIENT_STALLED = "client_stalled"
    TOTAL = "total"
    DRAINED = "drained"


class ChunkClient(Protocol):
    """A client that takes pieces of an answer without being waited for."""

    def takes_chunks(self) -> bool:
        """Return whether it takes one now."""
        ...

    def write_chunk(self, data: bytes) -> None:
        """Send one."""
        ...


class Exchange:
    """One request from its first byte to its end. Written by the task that serves it and by the in_flight."""

    __slots__ = (
        "answered", "answers", "arrival_s", "arrived", "asked_priority", "attempt", "available", "background",
        "cached_tokens", "client", "client_request_id", "context_tokens", "counted_prompt_tokens", "cut_by",
        "deadline_s", "endpoint", "entitlement", "error", "first_seen_s", "first_token_s", "forwarded_s", "http_status",
        "in_background", "is_identified", "kept_bytes", "key_name", "last_s", "last_token_s", "max_output_tokens",
        "model", "most_output_tokens", "most_prompt_tokens", "needed", "on_deadline", "outcome", "output_tokens",
        "prefix", "priority", "prompt_tokens", "reason", "replica_id", "reported_tokens", "request_id", "retry_after_s",
        "sent", "sent_s", "sequences", "service_class", "session", "started", "stream", "task", "template", "tenant",
        "tries", "verdict", "waiter",
    )  # fmt: skip

    def __init__(self, request_id: str, endpoint: str, arrival_s: float, last_s: float) -> None:
        self.request_id = request_id
        self.endpoint = endpoint
        self.arrival_s = arrival_s
        self.last_s = last_s
        self.client_request_id = self.key_name = self.tenant = self.entitlement = self.model = self.error = ""
        self.service_class: ServiceClass | None = None
        self.prefix: tuple[tuple[int, int], ...] = ()  # what is known of its prompt's text, where the core asks for it
        self.session = ""
        self.stream = False
        self.attempt = self.sequences = self.answers = 1
        self.priority = self.asked_priority = 0
        self.context_tokens = 0  # that its largest sequence needs at least; what is not known is the engine's to say
        self.most_output_tokens: int | None = None  # that may be generated for it
        self.most_prompt_tokens: int | None = None  # that it may be charged; None for the context of each answer
        self.kept_bytes = 0  # of its body
        self.background = self.in_background = False  # made after its client was answered: asked for, begun
        self.sent = False  # a replica may have it
        self.sent_s = self.first_seen_s = self.last_token_s = 0.0  # on the loop's clock
        self.prompt_tokens = self.output_tokens = self.reported_tokens = self.cached_tokens = self.tries = 0
        self.counted_prompt_tokens: int | None = None
        self.max_output_tokens: int | None = None
        self.forwarded_s = self.first_token_s = NEVER_S
        self.replica_id: int | None = None
        self.outcome = Ended.FAILED
        self.reason: Reason | None = None
        self.needed = self.available = 0.0
        self.http_status = 0
        self.retry_after_s: float | None = None
        self.is_identified = False  # it counts for its key
        self.arrived = False  # the core knows of it
        self.started = False  # the client was sent a status
        self.answered = False  # and everything else
        self.client: ChunkClient | None = None  # to whom pieces of an answer can be sent at once
        self.template = b""  # an event of its stream, to end it with one like it
        self.verdict: Verdict | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[Any] | None = None
        self.cut_by: AbortReason | None = None
        self.deadline_s = last_s
        self.on_deadline = AbortReason.TOTAL

    def wait(self, until_s: float, otherwise: AbortReason) -> None:
        """Say until when, on the loop's clock, what comes next may be waited for."""
        self.deadline_s = until_s
        self.on_deadline = otherwise

    def tell(self, verdict: Verdict) -> None:
        """Hand over what the core decided."""
        self.verdict = verdict
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def decided(self) -> Verdict:
        """Return the next decision of the core."""
        while self.verdict is None:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        verdict, self.verdict = self.verdict, None
        return verdict

    def cut(self, why: AbortReason) -> None:
        """Stop the task that serves this, wherever it waits; the first cut counts.

        That may be the very task that runs: it lost its replica, and the core evicts for want of room. It hears of it
        where it waits next.
        """
        if self.in_background and why is AbortReason.CLIENT_LEFT:  # as it was meant to
            return
        if self.cut_by is None and not self.answered:
            self.cut_by = why
            if self.task is not None:
                self.task.cancel()

    def uncut(self) -> None:
        """Go on after a cut: the task that was stopped has heard of it."""
        if self.task is not None:
            self.task.uncancel()
        self.cut_by = None

    def log(self, finish_s: float) -> RequestLog:
        """Return what became of it."""
        return RequestLog(
            request_id=self.request_id, client_request_id=self.client_request_id, key_name=self.key_name,
            tenant=self.tenant, entitlement=self.entitlement, service_class=self.service_class,
            endpoint=self.endpoint, model=self.model, stream=self.stream, attempt=self.attempt,
            prompt_tokens=self.prompt_tokens, counted_prompt_tokens=self.counted_prompt_tokens,
            max_output_tokens=self.max_output_tokens, output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens, arrival_s=self.arrival_s, forwarded_s=self.forwarded_s,
            first_token_s=self.first_token_s, finish_s=finish_s, replica=self.replica_id, tries=self.tries,
            outcome=self.outcome, reason=self.reason, needed=self.needed, available=self.available,
            http_status=self.http_status, retry_after_s=self.retry_after_s, error=self.error,
        )  # fmt: skip


class InFlightTable:
    """All requests of this process.

    Parameters
    ----------
    prefix : begins every request id, and is no other gateway's.
    total_s : the longest that a request may take.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, prefix: str, total_s: float, now_s: Callable[[], float]
    ) -> None:
        self._loop = loop
        self._prefix = prefix
        self._total_s = total_s
        self._now_s = now_s
        self._numbers = count(1)
        self._by_key: Tally[str] = Tally()
        self._exchanges: dict[str, Exchange] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self.observers: list[Observer] = []

    def is_own(self, request_id: str) -> bool:
        """Return whether a request is, or was, of this process."""
        return request_id.startswith(self._prefix)

    def __len__(self) -> int:
        return len(self._exchanges)

    def __iter__(self) -> Iterator[Exchange]:
        return iter(self._exchanges.values())

    def open(self, endpoint: str) -> Exchange:
        """Return a new request, to be served by the task that runs now."""
        loop_s = self._loop.time()
        exchange = Exchange(
            f"{self._prefix}{next(self._numbers):x}", endpoint, self._now_s(), loop_s + self._total_s
        )
        exchange.task = asyncio.current_task()
        self._exchanges[exchange.request_id] = exchange
        return exchange

    def identified(self, exchange: Exchange) -> int:
        """Take note of whose a request is, and return how many of that key are on their way."""
        exchange.is_identified = True
        self._by_key[exchange.key_name] += 1
        return self._by_key[exchange.key_name]

    def close(self, exchange: Exchange) -> None:
        """Take note that a request has ended, once, and tell the observers."""
        exchange.answered = True
        if self._exchanges.pop(exchange.request_id, None) is None:
            return
        if exchange.is_identified:
            self._by_key[exchange.key_name] -= 1
            if not self._by_key[exchange.key_name]:
                del self._by_key[exchange.key_name]
        if self.observers:
            log = exchange.log(self._now_s())
            for observer in self.observers:
                try:
                    observer.ended(log)
                except Exception:  # whoever looks on must not break what is looked at
                    LOG.exception("an observer failed")

    # ----------------------------------------------------------------------------------------------------------------
    # What the gateway calls

    def start(self, request: RequestView, forward: Forward, emit: Callable[[Event], None]) -> None:  # noqa: ARG002
        """Let a request go to its replica, with the engine priority that it has by now.

        One whose client has left has said so itself.
        """
        exchange = self._exchanges.get(request.request_id)
        if exchange is not None:
            exchange.priority = request.priority
            exchange.forwarded_s = self._now_s()
            exchange.tell(forward)

    def abort(self, request_id: str) -> None:
        """Do nothing: of an eviction `answer` hears too, and a request that was cancelled has stopped by itself."""

    def progress(self) -> Iterable[Progress]:
        """Return how many tokens have come back of the requests of which more have come than was said."""
        seen = []
        for exchange in self._exchanges.values():
            if exchange.output_tokens > exchange.reported_tokens:
                exchange.reported_tokens = exchange.output_tokens
                seen.append(Progress(exchange.request_id, exchange.output_tokens))
        return seen

    def answer(self, end: Refuse | Evict | Failed) -> None:
        """Pass on a refusal, an eviction or that a request which failed is sent nowhere else."""
        exchange = self._exchanges.get(end.request_id)
        if exchange is None:
            return
        if isinstance(end, Evict):
            exchange.reason = end.reason
            exchange.cut(AbortReason.EVICTED)
        else:
            exchange.tell(end)

    # ----------------------------------------------------------------------------------------------------------------
    # Deadlines

    def begin(self) -> None:
        """Begin to look after deadlines."""
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def end(self) -> None:
        """Stop looking after deadlines."""
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        now_s = self._loop.time()
        late = [one for one in self._exchanges.values() if one.deadline_s < now_s or one.last_s < now_s]
        for exchange in late:
            exchange.cut(exchange.on_deadline if exchange.deadline_s < now_s else AbortReason.TOTAL)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
