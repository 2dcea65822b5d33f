"""How a request ends: what the core is told of it, and what its client.

Every way out of a request leads through one of these: finished, failed, refused by the replica, cancelled or evicted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from policies.api import Cancelled, Failed, Finished, Reason
from sim.live.gateway.core_driver import AsyncGateway
from sim.live.gateway.error_responses import ApiError, allowance_headers, ended
from sim.live.gateway.headers import Headers, to_client
from sim.live.gateway.in_flight import AbortReason, Exchange
from sim.live.gateway.settings import Settings
from sim.live.gateway.sse import Usage, cut_event, event
from sim.live.gateway.token_pace import TokenPace
from sim.live.observability.observer import Ended
from sim.live.replicas.http_client import Response

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_DONE = b"data: [DONE]\n\n"

TOO_LONG = {
    AbortReason.BODY_SLOW: ApiError(
        408, "request_timeout", "The body took too long to come.", may_retry=True, close=True
    ),
    AbortReason.HELD_LONG: ApiError(
        429, "queue_timeout", "No place came free in time.", kind="server_error", retry_after_s=1.0
    ),
    AbortReason.UPSTREAM_SILENT: ApiError(504, "upstream_timeout", "The model server did not answer in time.",
                                  kind="server_error", retry_after_s=1.0),
    AbortReason.DRAINED: ApiError(
        503, "shutting_down", "The gateway stops.", kind="server_error", retry_after_s=1.0, close=True
    ),
    AbortReason.TOTAL: ApiError(504, "timeout", "The answer took too long.", kind="server_error"),
}  # fmt: skip


class Settling:
    """Ends requests.

    Attributes
    ----------
    pace : what replicas were seen to do, which prices what nobody saw.
    """

    def __init__(self, gateway: AsyncGateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self.pace = TokenPace(settings.decode_s)

    # ----------------------------------------------------------------------------------------------------------------
    # For the core

    def finish(self, exchange: Exchange, usage: Usage | None, seen_tokens: int) -> None:
        """Tell the core that the request is done and what it used: never more than could be asked for."""
        prompt_tokens = cached_tokens = None
        if usage is not None:
            prompt_tokens, cached_tokens = usage.prompt_tokens, usage.cached_tokens
            if usage.output_tokens:  # some tell of none whatever they made
                seen_tokens = usage.output_tokens
        most = exchange.most_output_tokens
        output_tokens = seen_tokens if most is None else min(seen_tokens, most)
        context = self._gateway.core.max_context_tokens
        longest = exchange.most_prompt_tokens
        if longest is None and context is not None:
            longest = max(context * exchange.answers, exchange.prompt_tokens)
        if prompt_tokens is not None and longest is not None:
            prompt_tokens = min(prompt_tokens, longest)
        exchange.output_tokens = output_tokens
        exchange.cached_tokens = min(cached_tokens or 0, prompt_tokens or exchange.prompt_tokens)
        exchange.counted_prompt_tokens = prompt_tokens
        exchange.outcome = Ended.FINISHED
        exchange.arrived = False
        self._gateway.send(Finished(exchange.request_id, output_tokens, exchange.cached_tokens, prompt_tokens))

    def fail(self, exchange: Exchange, *, final: bool) -> None:
        """Tell the core that a replica lost the request, or did not do it."""
        exchange.outcome, exchange.reason = Ended.FAILED, Reason.REPLICA_FAILED
        if final:
            exchange.arrived = False
        self._gateway.send(Failed(exchange.request_id, exchange.output_tokens, final))

    def refuse(self, exchange: Exchange) -> None:
        """Tell the core that the replica refused the request as its client's fault: it never was any demand."""
        if exchange.arrived:
            exchange.arrived = False
            exchange.outcome, exchange.error = Ended.FAILED, "upstream_refused"
            self._gateway.send(Cancelled(exchange.request_id, 0, refused=True))

    def cancel(self, exchange: Exchange) -> None:
        """Tell the core that nobody waits for the request any more; what was made of it meanwhile is paid for."""
        if exchange.arrived:
            exchange.arrived = False
            exchange.outcome = Ended.CANCELLED
            exchange.output_tokens = self.made_tokens(exchange)
            self._gateway.send(Cancelled(exchange.request_id, exchange.output_tokens, prompt_begun=exchange.sent))

    def made_tokens(self, exchange: Exchange) -> int:
        """Return how many tokens a replica has made of a request by now, seen or not; never more than it may."""
        seen = exchange.output_tokens
        most = exchange.most_output_tokens
        if most is None:
            most = max(seen, self._settings.default_max_output_tokens * exchange.answers)
        if not exchange.sent or exchange.replica_id is None:
            return seen
        per_s = self.pace.tokens_per_s(exchange.replica_id)
        now_s = self._loop.time()
        if per_s is None and exchange.last_token_s > exchange.first_seen_s:
            per_s = seen / exchange.answers / (exchange.last_token_s - exchange.first_seen_s)
        if per_s is None:
            return max(seen, most)
        since_s = now_s - (exchange.last_token_s if seen else exchange.sent_s)
        return max(seen, min(most, seen + math.floor(since_s * per_s * exchange.answers)))

    # ----------------------------------------------------------------------------------------------------------------
    # For the client

    async def start(self, exchange: Exchange, status: int, headers: Headers, send: Send) -> None:
        """Begin an answer."""
        exchange.started = True
        exchange.http_status = status
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def pass_head(
        self, exchange: Exchange, response: Response, send: Send, *, length: bool
    ) -> None:
        """Begin an answer as the replica did, with what the entitlement may still ask for."""
        allowance = self._gateway.core.allowance(exchange.entitlement, self._gateway.now_s())
        headers = to_client(response.raw_headers, exchange.request_id, allowance_headers(allowance), length=length)
        await self.start(exchange, response.status, headers, send)

    async def last(self, exchange: Exchange, body: bytes, send: Send) -> None:
        """Send the last of an answer."""
        exchange.wait(self._loop.time() + self._settings.timeouts.client_stall_s, AbortReason.CLIENT_STALLED)
        await send({"type": "http.response.body", "body": body})
        exchange.answered = True

    async def end_stream(self, exchange: Exchange, answer: ApiError, finish_reason: str, send: Send) -> None:
        """End a stream that has begun, as its API does: what was cut says so, then the error."""
        exchange.error = answer.code
        await self.last(exchange, error_events(exchange, answer.error(), finish_reason), send)

    async def settle_cut(self, exchange: Exchange, send: Send) -> bool:
        """Bring a request that was cut to its end; returns whether its client got a proper one.

        Raises
        ------
        ApiError : what to answer, where nothing was sent yet.
        """
        why = exchange.cut_by
        exchange.uncut()
        if why is AbortReason.EVICTED:  # the core has taken it out of its books
            exchange.arrived = False
            exchange.outcome = Ended.EVICTED
            answer = ended(exchange.reason or Reason.PREEMPTED)
        else:
            self.cancel(exchange)
            exchange.error = str(why)
            if why in (AbortReason.CLIENT_LEFT, AbortReason.CLIENT_STALLED, None):
                exchange.http_status = exchange.http_status or 499
                return False
            answer = TOO_LONG[why]
        if exchange.in_background:  # its client was answered long ago
            return True
        if not exchange.started:
            raise answer
        if not exchange.stream:
            return False
        await self.end_stream(exchange, answer, "preempted" if why is AbortReason.EVICTED else "error", send)
        return True


def error_events(exchange: Exchange, error: dict[str, Any], finish_reason: str) -> bytes:
    """Return the events that end a stream with an error, as its API has them."""
    if exchange.endpoint.startswith("/v1/messages"):
        return event({"type": "error", "error": error}, "error")
    if exchange.endpoint.startswith("/v1/responses"):
        said = {"type": "error", "code": error.get("code"), "message": error.get("message"), "param": None}
        return event({**said, "error": error}, "error")
    last = cut_event(exchange.template, finish_reason) if finish_reason else b""
    return last + event({"error": error}) + _DONE
