"""From a forwarded request to its answer: asks the replica that the core chose, passes on what comes, settles.

Nothing is sent to the client before the replica's first byte, so until then a request that fails can go elsewhere, and
a refused stream (200, then an error event) still becomes an error with a status. After it, a stream that breaks off is
ended with a ``finish_reason`` and an error event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from policies.api import Cancelled, Failed, Finished, FirstToken, Forward, Reason, Refuse
from policies.core import NO_CAPACITY_RETRY_S
from sim.live.gateway.core_driver import AsyncGateway
from sim.live.gateway.error_responses import ApiError, allowance_headers, ended, refusal
from sim.live.gateway.headers import Headers, to_client, to_upstream
from sim.live.gateway.in_flight import Cut, Exchange
from sim.live.gateway.settings import Settings
from sim.live.gateway.sse import BrokenStreamError, Splitter, StreamReader, Usage, cut_event, event, usage_of
from sim.live.observability.observer import Ended
from sim.live.replicas.upstreams import Replica, Upstreams, json_object

LOG = logging.getLogger("tokenpools.relay")

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LONGEST_ERROR = 64 * 2**10
_BYTES_PER_TOKEN = 4
_DONE = b"data: [DONE]\n\n"


_TOO_LONG = {
    Cut.BODY_SLOW: ApiError(408, "request_timeout", "The body took too long to come.", may_retry=True, close=True),
    Cut.HELD_LONG: ApiError(
        429, "queue_timeout", "No place came free in time.", kind="server_error", retry_after_s=1.0
    ),
    Cut.UPSTREAM_SILENT: ApiError(504, "upstream_timeout", "The model server did not answer in time.",
                                  kind="server_error", retry_after_s=1.0),
    Cut.DRAINED: ApiError(
        503, "shutting_down", "The gateway stops.", kind="server_error", retry_after_s=1.0, close=True
    ),
    Cut.TOTAL: ApiError(504, "timeout", "The answer took too long.", kind="server_error"),
}  # fmt: skip


class UpstreamFailedError(Exception):
    """A replica lost the request, or refused it as no client's fault."""

    def __init__(self, answer: ApiError | RawResponse) -> None:
        super().__init__(answer)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class RawResponse:
    """An upstream's error, as it came."""

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """What to ask the replica for.

    Attributes
    ----------
    body_for : the body, given the core's limit on the output of one answer, and its engine priority.
    choices : answers that share the core's limit.
    hide_usage : whether the usage in a stream is for the gateway alone.
    """

    method: str
    raw_path: str
    headers: Headers
    body_for: Callable[[int, int], bytes]
    choices: int
    hide_usage: bool


class Relay:
    """Serves admitted requests."""

    def __init__(self, gateway: AsyncGateway, upstreams: Upstreams, settings: Settings) -> None:
        self._gateway = gateway
        self._upstreams = upstreams
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._own_header = settings.class_header.lower().encode()

    async def serve(self, exchange: Exchange, outgoing: Outgoing, send: Send) -> None:
        """Wait for the core's verdict and do what it says, to the end of the answer.

        Raises
        ------
        ApiError : the answer is an error, and nothing was sent yet.
        CancelledError : the request was cut; `settle_cut` is next.
        """
        failure: UpstreamFailedError | None = None
        while True:
            exchange.wait(self._loop.time() + self._settings.timeouts.held_s, Cut.HELD_LONG)
            verdict = await exchange.decided()
            if isinstance(verdict, Refuse):
                exchange.outcome, exchange.reason = Ended.REFUSED, verdict.reason
                exchange.needed, exchange.available = verdict.needed, verdict.available
                exchange.arrived = False
                raise refusal(verdict)
            if isinstance(verdict, Failed):
                exchange.arrived = False
                await self._give_up(exchange, failure, send)
                return
            exchange.tries += 1
            exchange.replica_id = verdict.replica_id
            try:
                await self._ask(exchange, verdict, outgoing, send)
            except UpstreamFailedError as error:
                failure = error
                exchange.outcome, exchange.reason = Ended.FAILED, Reason.REPLICA_FAILED
                if exchange.started:
                    exchange.arrived = False
                self._gateway.send(Failed(exchange.request_id, exchange.output_tokens, exchange.started))
                if exchange.started:
                    return
            else:
                return

    async def look_up(
        self, exchange: Exchange, method: str, raw_path: str, headers: Headers, send: Send
    ) -> None:
        """Pass on a request that generates nothing and costs nothing, e.g. for the list of models."""
        ready = self._upstreams.ready()
        if not ready:
            raise ended(Reason.NO_CAPACITY, retry_after_s=NO_CAPACITY_RETRY_S)
        timeouts, replica = self._settings.timeouts, ready[0]
        exchange.wait(self._loop.time() + timeouts.first_byte_s, Cut.UPSTREAM_SILENT)
        sent = to_upstream(
            headers, api_key=replica.address.api_key, request_id=exchange.request_id, own=self._own_header, read=False
        )
        try:
            async with self._upstreams.session.request(
                method, replica.url(raw_path), headers=sent, allow_redirects=False
            ) as response:
                found = to_client(response.raw_headers, exchange.request_id, [], length=True)
                await self._start(exchange, response.status, found, send)
                async for data in response.content.iter_any():
                    exchange.wait(self._loop.time() + timeouts.client_stall_s, Cut.CLIENT_STALLED)
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    exchange.wait(self._loop.time() + timeouts.idle_s, Cut.UPSTREAM_SILENT)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if exchange.started:
                raise asyncio.CancelledError from error
            raise ended(Reason.REPLICA_FAILED) from error
        exchange.outcome = Ended.FINISHED
        await self._finish(exchange, b"", send)

    async def _give_up(self, exchange: Exchange, failure: UpstreamFailedError | None, send: Send) -> None:
        """Answer with what the last replica said."""
        answer = ended(Reason.REPLICA_FAILED) if failure is None else failure.answer
        if isinstance(answer, ApiError):
            raise answer
        exchange.error = "upstream_error"
        await self._start(exchange, answer.status, answer.headers, send)
        await send({"type": "http.response.body", "body": answer.body})

    async def _ask(self, exchange: Exchange, forward: Forward, outgoing: Outgoing, send: Send) -> None:
        """Send the request to a replica and pass its answer on."""
        replica = self._upstreams.replicas.get(forward.replica_id)
        if replica is None:
            raise UpstreamFailedError(ended(Reason.REPLICA_FAILED))
        timeouts = self._settings.timeouts
        exchange.wait(self._loop.time() + timeouts.first_byte_s, Cut.UPSTREAM_SILENT)
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._request(exchange, forward, outgoing, replica)
            if not 200 <= response.status < 600:
                raise ValueError(f"status {response.status} is none")
            if response.status >= 400:
                await self._pass_error(exchange, response, send)
            elif response.content_type == "text/event-stream":
                await self._pass_events(exchange, response, outgoing, send)
            else:
                await self._pass_whole(exchange, forward, response, send)
        except (aiohttp.ClientError, OSError, ValueError, BrokenStreamError) as error:
            why = type(error).__name__
            LOG.warning("%s: upstream %s broke off: %s", exchange.request_id, replica.address.name, why)
            if isinstance(error, aiohttp.ClientConnectorError):
                self._upstreams.unreachable(replica.replica_id)
            await self._broken_off(exchange, ended(Reason.REPLICA_FAILED), send, error)
        except asyncio.CancelledError:
            if exchange.cut_by is not Cut.UPSTREAM_SILENT:
                raise
            exchange.uncut()
            LOG.warning("%s: upstream %s says nothing", exchange.request_id, replica.address.name)
            await self._broken_off(exchange, _TOO_LONG[Cut.UPSTREAM_SILENT], send, None)
        finally:
            if response is not None:
                response.close()

    async def _request(
        self, exchange: Exchange, forward: Forward, outgoing: Outgoing, replica: Replica
    ) -> aiohttp.ClientResponse:
        headers = to_upstream(
            outgoing.headers, api_key=replica.address.api_key, request_id=exchange.request_id, own=self._own_header,
            read=True,
        )
        return await self._upstreams.session.request(
            outgoing.method, replica.url(outgoing.raw_path), headers=headers, allow_redirects=False,
            data=outgoing.body_for(max(1, forward.max_output_tokens // outgoing.choices), exchange.priority),
        )

    async def _broken_off(self, exchange: Exchange, answer: ApiError, send: Send, error: Exception | None) -> None:
        """End what has begun with an error event, then say that the replica failed."""
        exchange.error = answer.code
        if exchange.started and exchange.stream:
            await self.end_stream(exchange, answer, "error", send)
        raise UpstreamFailedError(answer) from error

    # ----------------------------------------------------------------------------------------------------------------
    # Answers of a replica

    async def _pass_error(self, exchange: Exchange, response: aiohttp.ClientResponse, send: Send) -> None:
        """Pass on what is the client's fault; what is not may be tried elsewhere."""
        body = await self._read(exchange, response, _LONGEST_ERROR)
        more = [(b"content-length", b"%d" % len(body))]
        if response.status in (429, 503) and "retry-after" not in response.headers:
            more += [(b"retry-after", b"1"), (b"retry-after-ms", b"1000")]
        raw = RawResponse(
            response.status, to_client(response.raw_headers, exchange.request_id, more, length=False), body
        )
        if response.status >= 500 or response.status in (408, 425, 429):
            raise UpstreamFailedError(raw)
        self.cancel(exchange)
        exchange.outcome = Ended.FAILED
        exchange.error = "upstream_refused"
        await self._start(exchange, raw.status, raw.headers, send)
        await self._finish(exchange, raw.body, send)

    async def _pass_whole(
        self, exchange: Exchange, forward: Forward, response: aiohttp.ClientResponse, send: Send
    ) -> None:
        """Pass on an answer in one piece; one that is longer than is kept goes through as it comes."""
        limit = self._settings.limits.answer_bytes
        body = await self._read(exchange, response, limit)
        if response.content.at_eof():
            usage = usage_of(json_object(body))
            # Nobody says how much it was: as many tokens as its text has, at most what was asked for.
            guess = min(forward.max_output_tokens, len(body) // _BYTES_PER_TOKEN)
            self._settle(exchange, usage, guess)
            await self._pass_head(exchange, response, send, length=True)
            await self._finish(exchange, body, send)
            return
        await self._pass_head(exchange, response, send, length=True)
        while body:
            exchange.wait(self._loop.time() + self._settings.timeouts.client_stall_s, Cut.CLIENT_STALLED)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            exchange.wait(self._loop.time() + self._settings.timeouts.idle_s, Cut.UPSTREAM_SILENT)
            body = await response.content.readany()
        self._settle(exchange, None, forward.max_output_tokens)
        await self._finish(exchange, b"", send)

    async def _read(self, exchange: Exchange, response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
        """Return the body, or its beginning where it is longer than ``most_bytes``."""
        content, parts, size = response.content, [], 0
        while size <= most_bytes:
            data = await content.readany()
            if not data:
                break
            parts.append(data)
            size += len(data)
            if self._settings.timeouts.idle_s < self._settings.timeouts.first_byte_s:
                exchange.wait(self._loop.time() + self._settings.timeouts.idle_s, Cut.UPSTREAM_SILENT)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _pass_events(
        self, exchange: Exchange, response: aiohttp.ClientResponse, outgoing: Outgoing, send: Send
    ) -> None:
        """Pass on a stream of events, each as it becomes whole."""
        timeouts, loop = self._settings.timeouts, self._loop
        splitter = Splitter(self._settings.limits.event_bytes)
        reader = StreamReader(outgoing.hide_usage)
        content = response.content
        while True:
            data = await content.readany()
            if not data:
                break
            whole = splitter.feed(data)
            if not whole:
                continue
            out = reader.read(whole)
            exchange.output_tokens = reader.events
            if reader.events and not exchange.template:
                exchange.template = reader.first
                exchange.first_token_s = self._gateway.now_s()
                self._gateway.send(FirstToken(exchange.request_id))
            if reader.error is not None:
                await self._refused_stream(exchange, reader, out, send)
            if exchange.cut_by is not None:  # by what the core said just now
                raise asyncio.CancelledError
            if out:
                if not exchange.started:
                    await self._pass_head(exchange, response, send, length=False)
                exchange.wait(loop.time() + timeouts.client_stall_s, Cut.CLIENT_STALLED)
                await send({"type": "http.response.body", "body": out, "more_body": True})
            exchange.wait(loop.time() + timeouts.idle_s, Cut.UPSTREAM_SILENT)
        if splitter.rest or not reader.first:
            raise BrokenStreamError("the stream ends within an event")
        self._settle(exchange, reader.usage, reader.events)
        if not exchange.started:
            await self._pass_head(exchange, response, send, length=False)
        await self._finish(exchange, b"", send)

    async def _refused_stream(self, exchange: Exchange, reader: StreamReader, out: bytes, send: Send) -> None:
        """Make an error event a failure: one with a status if nothing was sent yet."""
        error = reader.error or {}
        code = error.get("code")
        status = code if type(code) is int and 400 <= code < 600 else 503
        message = str(error.get("message", "The model server broke off."))[:2000]
        exchange.error = "upstream_error"
        answer = ApiError(
            status, str(code or "upstream_error"), message, kind=str(error.get("type", "server_error")),
            retry_after_s=1.0 if status in (429, 503) else None, may_retry=status >= 500,
        )  # fmt: skip
        if exchange.started:
            if out:
                await send({"type": "http.response.body", "body": out, "more_body": True})
            await self._finish(exchange, event({"error": error}) + _DONE, send)
        raise UpstreamFailedError(answer)

    # ----------------------------------------------------------------------------------------------------------------
    # Ends

    def _settle(self, exchange: Exchange, usage: Usage | None, seen_tokens: int) -> None:
        """Tell the core that the request is done and what it used."""
        prompt_tokens = cached_tokens = None
        if usage is not None:
            prompt_tokens, cached_tokens = usage.prompt_tokens, usage.cached_tokens
            if usage.output_tokens is not None:
                seen_tokens = usage.output_tokens
        exchange.output_tokens = seen_tokens
        exchange.cached_tokens = cached_tokens or 0
        exchange.counted_prompt_tokens = prompt_tokens
        exchange.outcome = Ended.FINISHED
        exchange.arrived = False
        self._gateway.send(Finished(exchange.request_id, seen_tokens, cached_tokens or 0, prompt_tokens))

    def cancel(self, exchange: Exchange) -> None:
        """Tell the core that nobody waits for the request any more."""
        if exchange.arrived:
            exchange.arrived = False
            exchange.outcome = Ended.CANCELLED
            self._gateway.send(Cancelled(exchange.request_id, exchange.output_tokens))

    async def end_stream(self, exchange: Exchange, answer: ApiError, finish_reason: str, send: Send) -> None:
        """End a stream that has begun: a last event with a ``finish_reason``, then the error."""
        exchange.error = answer.code
        last = cut_event(exchange.template, finish_reason) + event({"error": answer.error()}) + _DONE
        await self._finish(exchange, last, send)

    async def settle_cut(self, exchange: Exchange, send: Send) -> bool:
        """Bring a request that was cut to its end; returns whether its client got a proper one.

        Raises
        ------
        ApiError : what to answer, where nothing was sent yet.
        """
        why = exchange.cut_by
        exchange.uncut()
        if why is Cut.EVICTED:  # the core has taken it out of its books
            exchange.arrived = False
            exchange.outcome = Ended.EVICTED
            answer = ended(exchange.reason or Reason.PREEMPTED)
        else:
            self.cancel(exchange)
            exchange.error = str(why)
            if why in (Cut.CLIENT_LEFT, Cut.CLIENT_STALLED, None):
                exchange.http_status = exchange.http_status or 499
                return False
            answer = _TOO_LONG[why]
        if not exchange.started:
            raise answer
        if not exchange.stream:
            return False
        await self.end_stream(exchange, answer, "preempted" if why is Cut.EVICTED else "error", send)
        return True

    async def _start(self, exchange: Exchange, status: int, headers: Headers, send: Send) -> None:
        exchange.started = True
        exchange.http_status = status
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def _pass_head(
        self, exchange: Exchange, response: aiohttp.ClientResponse, send: Send, *, length: bool
    ) -> None:
        """Begin an answer as the replica did, with what the entitlement may still ask for."""
        allowance = self._gateway.core.allowance(exchange.entitlement, self._gateway.now_s())
        headers = to_client(response.raw_headers, exchange.request_id, allowance_headers(allowance), length=length)
        await self._start(exchange, response.status, headers, send)

    async def _finish(self, exchange: Exchange, body: bytes, send: Send) -> None:
        exchange.wait(self._loop.time() + self._settings.timeouts.client_stall_s, Cut.CLIENT_STALLED)
        await send({"type": "http.response.body", "body": body})
        exchange.answered = True
