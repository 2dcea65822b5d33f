"""uvicorn's HTTP protocol with what it leaves to a proxy in front: limits on headers, their time and connections.

It goes on where uvicorn's gives up: an offer to upgrade (Java's client makes one of HTTP/2 with its first request) is
not taken, and the body is read all the same; clients of HTTP/1.0 get answers without chunks; and a request that is
sent ahead of its turn does not keep the gateway from seeing that the client has left.

Each request's scope carries a `Client` (``scope["extensions"]["tokenpools"]``), through which the application hears at
once that its client has left, without a task of its own, and can close a connection that nobody reads.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter as Tally
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, ClassVar

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sim.live.gateway.settings import Limits, Timeouts

_FRAMING = 16
"""Most bytes of chunk framing for each byte of a body; a client that sends more sends nothing of use. [choice]"""
_MOST_AHEAD = 16
_MOST_AHEAD_BYTES = 64 * 2**10
"""Requests, and bytes of a body, that a client may send ahead of their turn (pipelining). [choice]"""


_HTTP_2 = b"PRI * HTTP/2.0\r\n"
_HTTP_1_REQUIRED = bytes.fromhex("000000040000000000" "00000807000000000000000000" "0000000d")
"""What begins HTTP/2 without asking, and what such a client is told: SETTINGS, then GOAWAY with HTTP_1_1_REQUIRED (RFC
9113, sections 3.4 and 7)."""


class Client:
    """The client of one request. ``left`` is called once when it goes away."""

    __slots__ = ("_cycle", "_flow", "_in_chunks", "_transport", "left")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._cycle: Any = None
        self._flow: Any = None
        self._in_chunks = False
        self.left: Callable[[], None] | None = None

    def begin(self, cycle: Any) -> None:
        """Take note of what answers it (uvicorn's)."""
        self._cycle = cycle
        self._flow = cycle.flow

    def takes_chunks(self) -> bool:
        """Return whether `write_chunk` may be called now: an answer in chunks has begun, and what was sent is taken.

        Until its end, that is, and as long as nobody has heard that the client ``left``.
        """
        if not self._in_chunks:  # once it does, an answer goes on in chunks
            cycle = self._cycle
            self._in_chunks = bool(cycle is not None and cycle.chunked_encoding and cycle.response_started)
            if not self._in_chunks:
                return False
        return not self._flow.write_paused

    def write_chunk(self, data: bytes) -> None:
        """Send a piece of the answer at once, without a task of its own (as ``http.response.body`` would)."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def abort(self) -> None:
        """Close the connection without regard to what is not written yet."""
        self._transport.abort()


class _HeadWithBody:
    """A transport for one answer that sends its head together with what follows: one write costs as much as two.

    Then it is done, and the answer has the connection's own.
    """

    __slots__ = ("_cycle", "_head", "_transport", "_wrote")

    def __init__(self, cycle: Any) -> None:
        self._cycle = cycle
        self._transport: asyncio.Transport = cycle.transport
        self._head = b""
        self._wrote = False

    def write(self, data: bytes) -> None:
        """Keep the first write of an answer, which is its head, and send everything else."""
        if not self._wrote and self._cycle.response_started:
            self._wrote = True
            self._head = data
        elif self._head:
            head, self._head = self._head, b""
            self._cycle.transport = self._transport
            self._transport.write(head + data)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send a head that nothing follows."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Close, once everything is sent."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return whether nothing can be sent any more."""
        return self._transport.is_closing()


class _HeadTooLargeError(Exception):
    pass


class _PlainAnswer:
    """An answer for a client of HTTP/1.0, which knows no chunks: its end is that of the connection."""

    def __init__(self, cycle: Any) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._framed = True

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Send a part of it (ASGI)."""
        cycle = self._cycle
        if message["type"] == "http.response.start":
            self._framed = any(name == b"content-length" for name, _ in message["headers"])
            if not self._framed:
                cycle.chunked_encoding = False  # said, so that uvicorn does not choose
        if self._framed or not cycle.response_started or cycle.scope["method"] == "HEAD":
            await self._send(message)
            return
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        cycle.transport.write(message.get("body", b""))
        if not message.get("more_body"):
            cycle.response_complete = True
            cycle.message_event.set()
            cycle.transport.close()
            cycle.on_response()


class GatewayProtocol(HttpToolsProtocol):
    """One connection; `protocol` makes a class with its limits.

    Attributes
    ----------
    by_address : connections that are open, of all objects of a class.
    """

    limits = Limits()
    timeouts = Timeouts()
    by_address: ClassVar[Tally[str]] = Tally()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        self._clients: list[Client] = []
        self._raw_bytes = self._head_bytes = self._body_bytes = 0
        self._too_large = False
        # A connection that was opened ahead of its first request is as good as one between two requests.
        self._unused = True
        self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(
            self.timeouts.keep_alive_s, self.timeout_keep_alive_handler
        )
        self._replaying = self._in_body = False
        self._beginning: bytes | None = b""  # as long as it may be that of HTTP/2
        self._address = _address_of(self.client)
        self.by_address[self._address] += 1
        most = self.limits.connections
        self._over = (
            len(self.connections) > most or self.by_address[self._address] > self.limits.connections_per_address
        )
        if len(self.connections) > most + most // 10 + 1:
            transport.abort()
        elif self._over:  # it is told so when it asks
            self._disarm()
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the requests of this connection."""
        self._disarm()
        self.by_address[self._address] -= 1
        if not self.by_address[self._address]:
            del self.by_address[self._address]
        super().connection_lost(exc)
        for client in self._clients:
            if client.left is not None:
                client.left()

    def data_received(self, data: bytes) -> None:
        """Read on, as long as it is in proportion."""
        if self._over:
            self._refuse(b"503 Service Unavailable\r\nretry-after: 1")
            return
        if self._unused:
            self._unused = False
            self._disarm()
        if self._beginning is not None:
            data = self._beginning + data
            if data.startswith(_HTTP_2):
                self.transport.write(_HTTP_1_REQUIRED)
                self.transport.close()
                return
            if len(data) < len(_HTTP_2) and _HTTP_2.startswith(data):
                self._beginning = data
                if self._head_timer is None:
                    self._arm()
                return
            self._beginning = None
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._arm()
        self._raw_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._raw_bytes > self.limits.header_bytes + _FRAMING * self._body_bytes and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("Request header fields too large.")

    def _feed(self, data: bytes) -> None:
        """Read on. An offer to go on in another protocol is not taken: what follows is the body, as without it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self.parser is None or self.transport.is_closing():
                return
            framing = [
                b"%b: %b\r\n" % one for one in self.headers if one[0] in (b"content-length", b"transfer-encoding")
            ]
            self.parser = httptools.HttpRequestParser(self)
            self._replaying = True
            try:
                self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
            finally:
                self._replaying = False
            if rest := data[offer.args[0] :]:
                self._feed(rest)

    def on_message_begin(self) -> None:
        """Begin to count, and give the request its client."""
        if self._replaying:
            return
        super().on_message_begin()
        self._raw_bytes = self._head_bytes = self._body_bytes = 0
        self._in_body = False
        client = Client(self.transport)
        self._clients = [one for one in self._clients if one.left is not None]
        self._clients.append(client)
        self.scope["extensions"] = {"tokenpools": client}  # type: ignore[dict-item]

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        if self._replaying:
            return
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header. What stands behind the body (trailers) is no header: it would change who asks, and whom."""
        if self._replaying:
            return
        self._count(len(name) + len(value) + 4)
        if self._in_body:
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the clock for the headers."""
        if self._replaying:
            return
        self._disarm()
        self._in_body = True
        super().on_headers_complete()
        self._clients[-1].begin(self.cycle)
        answer = _HeadWithBody(self.cycle)
        self.cycle.transport = answer  # type: ignore[assignment]
        self.cycle.on_response = partial(self._answered, answer)
        if self.scope["http_version"] == "1.0":
            self.cycle.send = _PlainAnswer(self.cycle).send  # type: ignore[assignment]
        if self.pipeline:  # uvicorn reads no more, and would not see that the client has left
            self.flow.resume_reading()
            if len(self.pipeline) > _MOST_AHEAD:
                self.transport.abort()

    def _answered(self, answer: _HeadWithBody) -> None:
        """Send what is left of an answer, and go on."""
        answer.flush()
        self.on_response_complete()

    def on_body(self, body: bytes) -> None:
        """Count the body."""
        self._body_bytes += len(body)
        super().on_body(body)
        if self.pipeline:
            self.flow.resume_reading()
            if len(self.cycle.body) > _MOST_AHEAD_BYTES:
                self.transport.abort()

    def on_message_complete(self) -> None:
        """Wait for the next request where this one was answered before it was all there."""
        if self.parser is not None and self.parser.should_upgrade():
            return  # its body is still to come, see `_feed`
        super().on_message_complete()
        self.flow.resume_reading()  # a body that came at once may have stopped it, and nobody asks for more
        if self._head_timer is not None and self.cycle is not None and self.cycle.response_complete:
            self._disarm()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or has too large a head, and close."""
        if not self._too_large:
            super().send_400_response(msg)
            return
        self._refuse(b"431 Request Header Fields Too Large")

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.limits.header_bytes:
            self._too_large = True
            raise _HeadTooLargeError

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(self.timeouts.header_s, self._slow)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _slow(self) -> None:
        self._head_timer = None
        self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
            self.transport.close()


def protocol(limits: Limits, timeouts: Timeouts) -> type[GatewayProtocol]:
    """Return the protocol with limits of its own."""
    own = {"limits": limits, "timeouts": timeouts, "by_address": Tally()}
    return type("LimitedProtocol", (GatewayProtocol,), own)


def _address_of(client: tuple[str, int] | None) -> str:
    """Return where a connection comes from, as far as one party holds it: of IPv6, the network."""
    if client is None:
        return ""
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return client[0]
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return client[0]


class HttpServer(uvicorn.Server):
    """uvicorn's server, told to stop in two steps: first it says so, then it takes no more connections.

    Parameters
    ----------
    on_stop : called at the first signal.
    notice_s : between the two steps; a second signal ends it.
    """

    def __init__(self, config: uvicorn.Config, *, on_stop: Callable[[], None], notice_s: float) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._notice_s = notice_s
        self._stopping = False

    def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ARG002
        """Stop gracefully at the first signal, without notice at the second, at once at the third."""
        loop = self._loop
        if not self._stopping:
            self._stopping = True
            loop.call_soon_threadsafe(self._on_stop)
            loop.call_soon_threadsafe(loop.call_later, self._notice_s, self._exit)
        elif not self.should_exit:
            self.should_exit = True
        else:
            self.force_exit = True

    def stop(self) -> None:
        """Do what a signal does."""
        self.handle_exit(0, None)

    async def serve(self, sockets: Any = None) -> None:
        """Serve until told to stop."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def _exit(self) -> None:
        self.should_exit = True
