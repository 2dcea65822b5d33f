"""An OpenAI-compatible upstream that answers fast and misbehaves on request.

What it does is said by a request's own field ``stand_in`` (a gateway must pass unknown fields on) over the server's
``behaviour``. It runs on the loop of its caller (`StandIn.start`) or in a thread of its own (`running`).

Answers are the words ``w0 w1 ...``, one token each; a prompt has as many tokens as words, or as a token list is long.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import httptools

STREAM_HEADERS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How to answer.

    Attributes
    ----------
    ttft_s, gap_s : before the first token, and between two.
    output_tokens : how many; all that were asked for where it is None.
    chunk_tokens : tokens in one event.
    status, retry_after : answer with this error at once.
    die : "before" the status line, "headers" right after them, or after that many events ("3").
    half_line : after so many events, send half of the next and close.
    silent_after : after so many events say nothing more and keep the connection; 0 is before the first byte.
    error_after : after so many events send an SSE error event and end the stream properly.
    padding_bytes : additional text in every event.
    no_usage, no_done : leave out the usage, or ``data: [DONE]``.
    crlf : end lines with CR LF.
    split_bytes : write the stream in pieces of so many bytes.
    garbage : answer with something that is no HTTP, "http", or no JSON, "json".
    raw : answer any path with these characters (Latin-1) as they are, and close.
    role_first : begin a chat with an event that says the role alone, ``role_s`` before the first token.
    """

    ttft_s: float = 0.0
    gap_s: float = 0.0
    output_tokens: int | None = None
    chunk_tokens: int = 1
    status: int = 200
    retry_after: str | None = None
    die: str = ""
    half_line: int | None = None
    silent_after: int | None = None
    error_after: int | None = None
    padding_bytes: int = 0
    no_usage: bool = False
    no_done: bool = False
    crlf: bool = False
    split_bytes: int = 0
    garbage: str = ""
    raw: str = ""
    role_first: bool = False
    role_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True, eq=False)
class StandIn:
    """One upstream.

    Attributes
    ----------
    seen : the requests to /v1/*, in order.
    aborted_s : the monotonic times at which a client left before its answer was complete.
    running, waiting : what /metrics says.
    healthy : what /health says.
    owned_by : what the card of its model says; a "vllm" tells the usage with each event where that is asked for.
    """

    behaviour: Behaviour = field(default_factory=Behaviour)
    model: str = "tiny"
    max_model_len: int = 4096
    healthy: bool = True
    api_key: str | None = None
    owned_by: str = "stand-in"
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    aborted_s: list[float] = field(default_factory=list)
    running: int = 0
    waiting: int = 0
    most_running: int = 0
    tokenize_calls: int = 0
    connections: set[Connection] = field(default_factory=set)
    _server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; on the same port again after a `stop`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
            for connection in tuple(self.connections):
                connection.transport.abort()
            await self._server.wait_closed()
            self._server = None


@contextmanager
def running(**given: Any) -> Iterator[StandIn]:
    """Run a stand-in on a thread of its own."""
    stand_in, loop, started = StandIn(**given), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        await stand_in.start()
        started.set()

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.create_task(serve())
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(10), "the stand-in did not start"
    try:
        yield stand_in
    finally:
        asyncio.run_coroutine_threadsafe(stand_in.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def raw_answer(seen: Seen) -> bytes:
    """Return what a request wants answered as it stands; nothing where it does not say so."""
    if b'"raw"' not in seen.body:
        return b""
    asked = seen.json
    behaviour = asked.get("stand_in") if isinstance(asked, dict) else None
    raw = behaviour.get("raw") if isinstance(behaviour, dict) else None
    return raw.encode("latin-1") if isinstance(raw, str) else b""


class Connection(asyncio.Protocol):
    """One connection; one request at a time, kept alive."""

    def __init__(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in
        self.parser = httptools.HttpRequestParser(self)
        self.task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        self.stand_in.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stand_in.connections.discard(self)
        self.writable.set()
        if self.task is not None and not self.task.done():
            self.stand_in.aborted_s.append(time.monotonic())
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers: dict[str, str] = {}
        self.body = bytearray()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        seen = Seen(self.parser.get_method().decode(), self.url.decode(), self.headers, bytes(self.body))
        self.task = asyncio.get_running_loop().create_task(self.answer(seen))

    async def answer(self, seen: Seen) -> None:
        stand_in, path = self.stand_in, seen.path.partition("?")[0]
        if path.startswith("/v1/"):
            stand_in.seen.append(seen)
            if stand_in.api_key is not None and seen.headers.get("authorization") != f"Bearer {stand_in.api_key}":
                return self.send_json({"error": {"message": "no key", "code": 401}}, 401)
        if path == "/health":
            return self.send(b"", 200 if stand_in.healthy else 503, "text/plain")
        if path == "/metrics":
            return self.send(_metrics(stand_in).encode(), 200, "text/plain; version=0.0.4")
        if path == "/v1/models":
            card = {"id": stand_in.model, "object": "model", "owned_by": stand_in.owned_by, "max_model_len": 4096}
            return self.send_json({"object": "list", "data": [card]})
        if path == "/tokenize":
            stand_in.tokenize_calls += 1
            count = prompt_tokens(seen.json)
            return self.send_json({"count": count, "max_model_len": 4096, "tokens": list(range(count))})
        if seen.method == "POST" and (raw := raw_answer(seen)):
            self.transport.write(raw)
            return self.transport.close()
        if path in ("/v1/completions", "/v1/chat/completions"):
            try:
                return await self.generate(seen.json, chat="chat" in path)
            except (TypeError, ValueError, AttributeError, KeyError) as error:  # the request makes no sense
                return self.send_json({"error": {"message": str(error), "code": 400}}, 400)
        return self.send_json({"method": seen.method, "path": seen.path, "body": seen.body.decode("latin-1")})

    async def generate(self, asked: dict[str, Any], *, chat: bool) -> None:
        stand_in = self.stand_in
        said = asked.get("stand_in", {})
        behaviour = replace(stand_in.behaviour, **{f.name: said[f.name] for f in fields(Behaviour) if f.name in said})
        if behaviour.die == "before":
            return self.transport.abort()
        if behaviour.garbage == "http":
            self.transport.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            return self.transport.close()
        if behaviour.status != 200:
            extra = {} if behaviour.retry_after is None else {"retry-after": behaviour.retry_after}
            body = {"error": {"message": "so it was asked", "type": "error", "code": behaviour.status}}
            return self.send_json(body, behaviour.status, extra)
        stand_in.running += 1
        stand_in.most_running = max(stand_in.most_running, stand_in.running)
        try:
            limit = int(asked.get("max_completion_tokens") or asked.get("max_tokens") or 16)
            count = limit if behaviour.output_tokens is None else min(limit, behaviour.output_tokens)
            if asked.get("stream"):
                await self.stream(asked, behaviour, count, chat=chat)
            else:
                await self.whole(asked, behaviour, count, chat=chat)
        finally:
            stand_in.running -= 1
        return None

    async def whole(self, asked: dict[str, Any], behaviour: Behaviour, count: int, *, chat: bool) -> None:
        await asyncio.sleep(behaviour.ttft_s + behaviour.gap_s * max(0, count - 1))
        if behaviour.silent_after is not None:
            await asyncio.sleep(3600)
        if behaviour.die == "headers":
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n")
            return self.transport.close()
        text = " ".join(f"w{index}" for index in range(count))
        choices = [_choice(text, index, chat=chat, final=True) for index in range(int(asked.get("n") or 1))]
        answer = _frame(asked, chat=chat) | {"choices": choices}
        if not behaviour.no_usage:
            answer["usage"] = _usage(asked, count)
        body = json.dumps(answer).encode()
        if behaviour.die:
            self.transport.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body[:20])
            return self.transport.close()
        if behaviour.garbage == "json":
            body = b"<html>not what you asked for</html>"
        return self.send(body, 200, "application/json")

    async def stream(self, asked: dict[str, Any], behaviour: Behaviour, count: int, *, chat: bool) -> None:
        if behaviour.silent_after != 0:
            self.transport.write(STREAM_HEADERS)
        if behaviour.die == "headers":
            return self.transport.close()
        end = "\r\n\r\n" if behaviour.crlf else "\n\n"
        padding = {"padding": "x" * behaviour.padding_bytes} if behaviour.padding_bytes else {}
        frame = _frame(asked, chat=chat, stream=True) | padding
        events = 0
        options = asked.get("stream_options") or {}
        continuous = self.stand_in.owned_by == "vllm" and options.get("continuous_usage_stats")
        if behaviour.role_first:
            role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            await self.event(json.dumps(frame | {"choices": [role]}), end, behaviour.split_bytes)
            await asyncio.sleep(behaviour.role_s)
        for first in range(0, count, behaviour.chunk_tokens):
            await asyncio.sleep(behaviour.gap_s if first else behaviour.ttft_s)
            await self.misbehave(behaviour, events, end)
            words = range(first, min(count, first + behaviour.chunk_tokens))
            text = "".join(f" w{word}" for word in words)
            final = first + behaviour.chunk_tokens >= count
            for index in range(int(asked.get("n") or 1)):
                choice = _choice(text, index, chat=chat, final=final, stream=True)
                usage = {"usage": _usage(asked, words[-1] + 1, each=True)} if continuous else {}
                await self.event(json.dumps(frame | {"choices": [choice]} | usage), end, behaviour.split_bytes)
            events += 1
        await self.misbehave(behaviour, events, end)
        if (asked.get("stream_options") or {}).get("include_usage") and not behaviour.no_usage:
            last = _frame(asked, chat=chat, stream=True) | {"choices": [], "usage": _usage(asked, count)}
            await self.event(json.dumps(last), end, behaviour.split_bytes)
        if not behaviour.no_done:
            await self.event("[DONE]", end, behaviour.split_bytes)
        self.transport.write(b"0\r\n\r\n")
        return None

    async def misbehave(self, behaviour: Behaviour, events: int, end: str) -> None:
        """Do what is due after so many events."""
        if behaviour.silent_after == events:
            await asyncio.sleep(3600)
        if behaviour.die == str(events):
            self.transport.close()
            await asyncio.sleep(3600)
        if behaviour.half_line == events:
            await self.write(b'data: {"id": "half a li')
            self.transport.close()
            await asyncio.sleep(3600)
        if behaviour.error_after == events:
            error = {"message": "the engine is full", "type": "ServiceUnavailable", "code": 503}
            await self.event(json.dumps({"error": error}), end, behaviour.split_bytes)
            await self.event("[DONE]", end, behaviour.split_bytes)
            self.transport.write(b"0\r\n\r\n")
            self.transport.close()
            await asyncio.sleep(3600)

    async def event(self, text: str, end: str, split_bytes: int) -> None:
        data = f"data: {text}{end}".encode()
        for start in range(0, len(data), split_bytes or len(data)):
            await self.write(data[start : start + (split_bytes or len(data))])
            if split_bytes:
                await asyncio.sleep(0)

    async def write(self, data: bytes) -> None:
        """Write one chunk, waiting while the client does not read."""
        await self.writable.wait()
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_json(self, value: object, status: int = 200, extra: Mapping[str, str] | None = None) -> None:
        self.send(json.dumps(value).encode(), status, "application/json", extra)

    def send(self, body: bytes, status: int, kind: str, extra: Mapping[str, str] | None = None) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in (extra or {}).items())
        head = f"HTTP/1.1 {status} -\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
        self.transport.write(head.encode() + body)


def prompt_tokens(asked: Mapping[str, Any]) -> int:
    """Return how many tokens a request's prompt has here: words."""
    if "messages" in asked:
        return sum(len(str(message.get("content", "")).split()) for message in asked["messages"])
    prompt = asked.get("prompt", "")
    if isinstance(prompt, str):
        return len(prompt.split())
    if prompt and isinstance(prompt[0], int):
        return len(prompt)
    return sum(prompt_tokens({"prompt": one}) for one in prompt)


def _usage(asked: Mapping[str, Any], count: int, *, each: bool = False) -> dict[str, int]:
    prompt, output = prompt_tokens(asked), count * (1 if each else int(asked.get("n") or 1))
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _frame(asked: Mapping[str, Any], *, chat: bool, stream: bool = False) -> dict[str, Any]:
    kind = "text_completion" if not chat else "chat.completion.chunk" if stream else "chat.completion"
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": asked.get("model", "")}


def _choice(text: str, index: int, *, chat: bool, final: bool, stream: bool = False) -> dict[str, Any]:
    said = {"delta" if stream else "message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {"index": index, **said, "finish_reason": "length" if final else None}


def _metrics(stand_in: StandIn) -> str:
    labels = f'{{engine="0",model_name="{stand_in.model}"}}'
    values = {
        "num_requests_running": stand_in.running, "num_requests_waiting": stand_in.waiting, "kv_cache_usage_perc": 0.25,
    }  # fmt: skip
    lines = [f"# TYPE vllm:{name} gauge\nvllm:{name}{labels} {float(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"
