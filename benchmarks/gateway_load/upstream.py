"""A model server that costs next to nothing: fixed answers, streams on a timer, each event stamped when it is written.

    python -m benchmarks.gateway_load.upstream PORT

A request's ``max_tokens`` says how many events its stream has and ``user`` how long apart they are, in milliseconds.
Stamps are of the monotonic clock, which all processes of a machine share: whoever reads one knows how long it took.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import Any

import httptools
import uvloop

_WHOLE = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"Fixed words that some model might have said."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}}'
)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[{"index":0,'
    b'"delta":{"content":" t%d"},"finish_reason":%s}]}\n\n'
)
_USAGE = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":%d,"total_tokens":%d}}\n\n'
)
_MODELS = b'{"object":"list","data":[{"id":"tiny","object":"model","owned_by":"nobody","max_model_len":4096}]}'
_TOKENS, _GAP = re.compile(rb'"max_tokens":\s*(\d+)'), re.compile(rb'"user":\s*"(\d+)"')


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._url = self._body = b""
        self._sent = self._count = 0
        self._gap_s = 0.0

    def connection_made(self, transport: Any) -> None:
        """Remember where to write."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Stop writing."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """Forget the request before."""
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        """Take the path."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Take the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer."""
        if b"completions" not in self._url:
            body = _MODELS if self._url == b"/v1/models" else b""
            self._transport.write(_HEAD % len(body) + body)
        elif re.search(rb'"stream":\s*true', self._body) is None:
            self._transport.write(_HEAD % len(_WHOLE) + _WHOLE)
        else:
            tokens, gap = _TOKENS.search(self._body), _GAP.search(self._body)
            self._count = int(tokens[1]) if tokens else 16
            self._gap_s = int(gap[1]) / 1000 if gap else 0.0
            self._sent = 0
            self._wants_usage = b"include_usage" in self._body
            self._transport.write(_STREAM)
            self._next_s = self._loop.time()
            self._step()

    def _step(self) -> None:
        self._sent += 1
        last = self._sent == self._count
        event = _EVENT % (time.monotonic_ns(), b'"stop"' if last else b"null")
        if last:
            if self._wants_usage:
                event += _USAGE % (self._count, self._count + 9)
            event += b"data: [DONE]\n\n"
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event) + (b"0\r\n\r\n" if last else b""))
        if not last:
            self._next_s += self._gap_s
            self._timer = self._loop.call_at(self._next_s, self._step)


async def main(port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
