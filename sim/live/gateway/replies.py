"""What replicas answer, passed on: errors, answers in one piece, streams."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from policies.api import FirstToken, Forward
from sim.live.gateway.core_driver import AsyncGateway
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.headers import Headers, to_client
from sim.live.gateway.in_flight import AbortReason, ChunkClient, Exchange
from sim.live.gateway.request_body import Endpoint
from sim.live.gateway.settings import Settings
from sim.live.gateway.settling import Send, Settling, error_events
from sim.live.gateway.sse import BrokenStreamError, Splitter, usage_of
from sim.live.gateway.stored import Stored, StoredResponses
from sim.live.gateway.stream_reader import StreamReader
from sim.live.observability.observer import Ended
from sim.live.replicas.http_client import Response
from sim.live.replicas.upstreams import json_object

_LONGEST_ERROR = 64 * 2**10
_BYTES_PER_TOKEN = 4
_LONGEST_RETRY_S = 3600
_OUTPUT = (
    "choices", "message", "text", "content", "output", "reasoning", "reasoning_content", "tool_calls", "refusal",
    "function", "arguments", "name",
)  # fmt: skip
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class UpstreamFailedError(Exception):
    """A replica lost the request, or refused it as no client's fault.

    ``elsewhere`` says whether another may try: not where this one may still be working on it.
    """

    def __init__(self, answer: ApiError | RawResponse, *, elsewhere: bool = True) -> None:
        super().__init__(answer)
        self.answer = answer
        self.elsewhere = elsewhere


@dataclass(frozen=True, slots=True)
class RawResponse:
    """An upstream's error, as it came."""

    status: int
    headers: Headers
    body: bytes


@dataclass(slots=True, kw_only=True, eq=False)
class Outgoing:
    """What to ask the replica for.

    Attributes
    ----------
    body_for : the body, given the core's limit on the output of one answer, its engine priority, and whether each event
        shall tell the usage so far.
    answers : that share the core's limit.
    show_usage, show_continuous : whether the client asked for the usage at the end of a stream, and in each event.
    replica_id : the only one that can answer; None for the core's choice.
    let_go : called once the body will not be sent again.
    """

    method: str
    raw_path: str
    headers: Headers
    body_for: Callable[[int, int, bool], bytes]
    endpoint: Endpoint
    answers: int
    show_usage: bool
    show_continuous: bool
    tenant: str
    let_go: Callable[[], None]
    replica_id: int | None = None

    def drop_body(self) -> None:
        """Forget the body: there is an answer, so that it is not sent again."""
        self.body_for = _gone
        self.let_go()


def _gone(*_: object) -> bytes:
    raise AssertionError("the body of a request is asked for after its answer began")


class _Passage:
    """The short way of a stream's events to a client that keeps up: no task is woken for them.

    From the first token on, everything that needs no waiting goes this way; the task that serves the request sees to
    the rest: the beginning, the end, errors, whose a response is, and a client that does not read. What is done here is
    done for every event, and is most of what a stream costs.

    Attributes
    ----------
    out : what is for the client of a piece that `through` has read and left to the task; None where there is none.
    read_bytes : how long that piece was: what came behind it was not read.
    """

    __slots__ = ("_client", "_exchange", "_idle_s", "_loop", "_reader", "_splitter", "out", "read_bytes")

    def __init__(
        self, exchange: Exchange, client: ChunkClient, splitter: Splitter, reader: StreamReader,
        loop: asyncio.AbstractEventLoop, idle_s: float,
    ) -> None:
        self._exchange = exchange
        self._client = client
        self._splitter = splitter
        self._reader = reader
        self._loop = loop
        self._idle_s = idle_s
        self.out: bytes | None = None
        self.read_bytes = 0

    def through(self, data: bytes) -> bool:
        """Pass a piece on, if that can be done at once; see `sim.live.replicas.http_client.Body.readany`."""
        exchange, client, reader = self._exchange, self._client, self._reader
        if exchange.cut_by is not None or not client.takes_chunks():
            return False
        taken = True
        if not self._splitter.rest and reader.fits(data):  # nearly every event
            client.write_chunk(data)
        else:
            whole = self._splitter.feed(data)
            if not whole:
                return True
            response_id = reader.response_id
            out = reader.read(whole)
            if reader.error is not None or reader.response_id != response_id or (response_id and reader.complete):
                self.out, self.read_bytes, taken = out, len(data), False
            elif out:
                client.write_chunk(out)
        tokens = reader.tokens
        if tokens > exchange.output_tokens:
            exchange.output_tokens = tokens
        now_s = exchange.last_token_s = self._loop.time()
        exchange.deadline_s = now_s + self._idle_s  # for what the task waits: the upstream
        return taken


class Replies:
    """Passes answers on."""

    def __init__(
        self, gateway: AsyncGateway, settings: Settings, settling: Settling, stored: StoredResponses
    ) -> None:
        self._gateway = gateway
        self._settings = settings
        self._settling = settling
        self._stored = stored
        self._loop = asyncio.get_running_loop()

    async def error(self, exchange: Exchange, response: Response, send: Send) -> None:
        """Pass on what is the client's fault; what is not may be tried elsewhere."""
        body = await self._read(exchange, response, _LONGEST_ERROR)
        found = to_client(response.raw_headers, exchange.request_id, [], length=False)
        found.append((b"content-length", b"%d" % len(body)))
        raw = RawResponse(response.status, _with_retry(response, found), body)
        if response.status >= 500 or response.status in (408, 425, 429):
            raise UpstreamFailedError(raw)
        self._settling.refuse(exchange)
        await self._settling.start(exchange, raw.status, raw.headers, send)
        await self._settling.last(exchange, raw.body, send)

    # ----------------------------------------------------------------------------------------------------------------
    # In one piece

    async def whole(
        self, exchange: Exchange, forward: Forward, response: Response, outgoing: Outgoing, send: Send
    ) -> str | None:
        """Pass on an answer in one piece; one that is longer than is kept goes through as it comes.

        Returns
        -------
        the id of a response that is still made in the background; None where the request has ended.
        """
        body = await self._read(exchange, response, self._settings.limits.answer_bytes)
        if not response.content.at_eof():
            await self._long(exchange, forward, response, body, send)
            return None
        if outgoing.endpoint.read and _ends_too_soon(response, body):
            raise BrokenStreamError("the connection ended within an answer")
        answer = json_object(body)
        usage = usage_of(answer)
        status = answer.get("status") if answer is not None and outgoing.endpoint.shape == "responses" else None
        response_id = await self._store(exchange, forward, outgoing, answer)
        background = exchange.background and status in ("queued", "in_progress") and response_id is not None
        failed = status == "failed" and exchange.endpoint == "/v1/responses"
        if failed:
            self._settling.fail(exchange, final=True)
            exchange.error = "upstream_error"
        elif not background:
            # Where nobody says how much it was: as many tokens as its text has, at most what was asked for.
            guess = min(forward.max_output_tokens, len(body) // _BYTES_PER_TOKEN)
            if usage is not None and usage.output_tokens == 0 and not _says_something(answer):
                guess = 0
            self._learn(exchange, forward, None if usage is None else usage.output_tokens)
            self._settling.finish(exchange, usage, guess)
        await self._settling.pass_head(exchange, response, send, length=True)
        await self._settling.last(exchange, body, send)
        return response_id if background else None

    def _learn(self, exchange: Exchange, forward: Forward, tokens: int | None) -> None:
        if tokens:
            elapsed_s = self._loop.time() - exchange.sent_s
            self._settling.pace.learn(
                forward.replica_id, tokens=tokens, events=0, elapsed_s=elapsed_s, answers=exchange.answers
            )

    async def _store(
        self, exchange: Exchange, forward: Forward, outgoing: Outgoing, answer: dict[str, object] | None
    ) -> str | None:
        """Note whose a stored response is, or that it was deleted."""
        if outgoing.endpoint.shape == "responses" and answer is not None and isinstance(answer.get("id"), str):
            response_id, usage = str(answer["id"]), usage_of(answer)
            tokens = 0 if usage is None else (usage.prompt_tokens or 0) + (usage.output_tokens or 0)
            await self._stored.add(response_id, Stored(exchange.tenant, _replica_of(forward, outgoing), tokens))
            return response_id
        if outgoing.endpoint.owned and outgoing.method == "DELETE":
            await self._stored.forget(exchange.endpoint.rpartition("/")[2])
        return None

    async def _long(
        self, exchange: Exchange, forward: Forward, response: Response, body: bytes, send: Send
    ) -> None:
        """Pass on an answer that is too long to be kept."""
        timeouts = self._settings.timeouts
        await self._settling.pass_head(exchange, response, send, length=True)
        while body:
            exchange.wait(self._loop.time() + timeouts.client_stall_s, AbortReason.CLIENT_STALLED)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            exchange.wait(self._loop.time() + timeouts.idle_s, AbortReason.UPSTREAM_SILENT)
            body = await response.content.readany()
        self._settling.finish(exchange, None, forward.max_output_tokens)
        await self._settling.last(exchange, b"", send)

    async def _read(self, exchange: Exchange, response: Response, most_bytes: int) -> bytes:
        """Return the body, or its beginning where it is longer than ``most_bytes``."""
        content, parts, size = response.content, [], 0
        while size <= most_bytes:
            data = await content.readany()
            if not data:
                break
            parts.append(data)
            size += len(data)
            exchange.wait(self._loop.time() + self._settings.timeouts.idle_s, AbortReason.UPSTREAM_SILENT)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # ----------------------------------------------------------------------------------------------------------------
    # Streams

    async def events(
        self, exchange: Exchange, forward: Forward, response: Response, outgoing: Outgoing, send: Send
    ) -> None:
        """Pass on a stream of events, each as it becomes whole."""
        exchange.stream = True  # whatever was asked for: that is how it ends where it is cut
        timeouts, loop = self._settings.timeouts, self._loop
        splitter = Splitter(self._settings.limits.event_bytes)
        reader = StreamReader(
            outgoing.endpoint.shape, outgoing.show_usage, outgoing.show_continuous, outgoing.answers,
            self._settling.pace.tokens_per_event(forward.replica_id),
        )
        content, owned = response.content, ("", reader.complete)
        passage = None
        if exchange.client is not None:
            passage = _Passage(exchange, exchange.client, splitter, reader, loop, timeouts.idle_s)
        first_by_s = exchange.deadline_s  # what is sent before the first token does not put this off
        unread = b""
        while True:
            data, unread = unread, b""
            if not data:
                data = await content.readany(passage.through if passage is not None and exchange.first_seen_s else None)
            if passage is not None and passage.out is not None:
                out, passage.out, unread = passage.out, None, data[passage.read_bytes :]
            else:
                whole = splitter.feed(data) if data else splitter.end()
                if not whole:
                    if not data:
                        break
                    continue
                out = reader.read(whole)
                exchange.template = exchange.template or reader.first
                self._count(exchange, reader)
            if reader.error is not None:
                await self._refused_stream(exchange, reader, out, send)
            if exchange.cut_by is not None:  # by what the core said just now
                raise asyncio.CancelledError
            if (reader.response_id, reader.complete) != owned:  # before the client hears of it
                owned = reader.response_id, reader.complete
                await self._own_stream(exchange, forward, outgoing, reader)
            if out:
                if not exchange.started:
                    await self._settling.pass_head(exchange, response, send, length=False)
                exchange.wait(loop.time() + timeouts.client_stall_s, AbortReason.CLIENT_STALLED)
                await send({"type": "http.response.body", "body": out, "more_body": True})
            exchange.wait(loop.time() + timeouts.idle_s if reader.events else first_by_s, AbortReason.UPSTREAM_SILENT)
        if splitter.rest or not reader.first or not reader.complete:
            raise BrokenStreamError("the connection ended within an answer")
        self._end_stream(exchange, forward, reader)
        if not exchange.started:
            await self._settling.pass_head(exchange, response, send, length=False)
        await self._settling.last(exchange, b"", send)

    async def _own_stream(
        self, exchange: Exchange, forward: Forward, outgoing: Outgoing, reader: StreamReader
    ) -> None:
        """Note whose the response of a stream is, if it has a name, and at its end how long its context is."""
        if not reader.response_id:
            return
        tokens = 0 if reader.usage is None else (reader.usage.prompt_tokens or 0) + reader.tokens
        await self._stored.add(reader.response_id, Stored(exchange.tenant, _replica_of(forward, outgoing), tokens))

    def _count(self, exchange: Exchange, reader: StreamReader) -> None:
        """Note how many tokens there are by now, and tell the core of the first."""
        if not reader.events:
            return
        exchange.output_tokens = max(exchange.output_tokens, reader.tokens)
        exchange.last_token_s = self._loop.time()
        if not exchange.first_seen_s:
            exchange.first_seen_s = exchange.last_token_s
            exchange.first_token_s = self._gateway.now_s()
            self._gateway.send(FirstToken(exchange.request_id))

    def _end_stream(self, exchange: Exchange, forward: Forward, reader: StreamReader) -> None:
        if reader.failed:
            self._settling.fail(exchange, final=True)
            exchange.error = "upstream_error"
            return
        tokens = reader.tokens
        if reader.usage is not None and reader.usage.output_tokens:
            tokens = reader.usage.output_tokens
            self._settling.pace.learn(
                forward.replica_id, tokens=tokens, events=reader.events, answers=exchange.answers,
                elapsed_s=exchange.last_token_s - (exchange.first_seen_s or exchange.last_token_s),
            )  # fmt: skip
        self._settling.finish(exchange, reader.usage, tokens)

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
            await self._settling.last(exchange, error_events(exchange, error, ""), send)
        raise UpstreamFailedError(answer)


def _says_something(answer: Any) -> bool:
    """Return whether an answer in one piece holds any output."""
    if isinstance(answer, str):
        return bool(answer)
    if isinstance(answer, list):
        return any(_says_something(one) for one in answer)
    if isinstance(answer, dict):
        return any(_says_something(answer.get(name)) for name in _OUTPUT)
    return False


def _replica_of(forward: Forward, outgoing: Outgoing) -> int:
    return forward.replica_id if outgoing.replica_id is None else outgoing.replica_id


def _ends_too_soon(response: Response, body: bytes) -> bool:
    """Return whether an answer whose end is only that of its connection is half an answer."""
    headers = response.headers
    if "content-length" in headers or headers.get("transfer-encoding", "").lower() == "chunked":
        return False
    if not response.content_type.endswith("json"):
        return not body
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return True
    return False


def _with_retry(response: Response, headers: Headers) -> Headers:
    """Return the headers of an error with a Retry-After that clients can obey: in the future, and not for ever."""
    if response.status not in (429, 503):
        return headers
    good = _can_be_obeyed(response.headers.get("retry-after", ""))
    exact = response.headers.get("retry-after-ms", "").strip()
    if _SECONDS.fullmatch(exact) and 0 < float(exact) <= 1000 * _LONGEST_RETRY_S:  # what OpenAI's clients look at first
        whole_s = max(1, math.ceil(float(exact) / 1000))
        return headers if good else [*_without(headers, b"retry-after"), (b"retry-after", b"%d" % whole_s)]
    if good:
        return _without(headers, b"retry-after-ms")
    return [*_without(headers, b"retry-after", b"retry-after-ms"), (b"retry-after", b"1"), (b"retry-after-ms", b"1000")]


def _without(headers: Headers, *names: bytes) -> Headers:
    return [one for one in headers if one[0] not in names]


def _can_be_obeyed(said: str) -> bool:
    if _SECONDS.fullmatch(said.strip()):
        return 0 < float(said) <= _LONGEST_RETRY_S
    try:
        at = parsedate_to_datetime(said)
    except (TypeError, ValueError, IndexError, OverflowError):
        return False
    from datetime import UTC, datetime

    wait_s = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return 0 < wait_s <= _LONGEST_RETRY_S


__all__ = ["Ended", "Outgoing", "RawResponse", "Replies", "UpstreamFailedError"]
