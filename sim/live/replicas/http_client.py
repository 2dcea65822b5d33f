"""A client for upstreams: kept connections, and answers whose bytes are handed on as they come.

HTTP is httptools' (llhttp, the parser of Node, which uvicorn serves with too); what stands here is what a proxy needs
of a client and no more: no redirects, cookies, compression or sessions. An answer's body is read piece by piece, and
while nobody keeps up, the connection is not read. A piece may also be taken on its way, without the reader's task being
woken (`Body.readany`): that is what streams of tokens mostly consist of.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

from sim.live.replicas.connector import Connector

Headers = Sequence[tuple[bytes, bytes]]
Through = Callable[[bytes], bool]

_MOST_HEAD_BYTES = 64 * 2**10
_HIGH_BYTES = 128 * 2**10
"""What is kept of a body that nobody reads; then its connection is not read either. [choice]"""
_PIECE_BYTES = 256 * 2**10
_IDEMPOTENT = frozenset(("GET", "HEAD", "DELETE"))
_PORTS = {"http": 80, "https": 443}
_NO_TARGET = re.compile(r"[\x00-\x20\x7f]")
_DROPPED = "the connection ended before an answer came"


class UpstreamError(Exception):
    """An upstream cannot be asked, or its answer broke off."""


class ConnectError(UpstreamError, OSError):
    """No connection could be made; nothing was sent."""


class ConnectTimeoutError(ConnectError, TimeoutError):
    """No connection was made in time."""


class NoHttpError(UpstreamError):
    """What came is no HTTP from its first byte on, or is nothing at all."""


class BadHeadError(UpstreamError):
    """An answer's head begins as HTTP does and is none that may be passed on."""


class BrokenBodyError(UpstreamError):
    """An answer broke off, or its framing did."""


class Origin(NamedTuple):
    """Where a connection leads."""

    scheme: str
    host: str
    port: int


class Url(NamedTuple):
    """What is asked, and where: ``authority`` is for the host header, ``target`` for the request line."""

    origin: Origin
    authority: bytes
    target: bytes


@lru_cache(512)
def parsed_url(text: str) -> Url:
    """Return the parts of an address that is encoded already.

    Raises
    ------
    ValueError : it is none that can be asked.
    """
    parts = urlsplit(text)
    if parts.scheme not in _PORTS or not parts.hostname or _NO_TARGET.search(text):
        raise ValueError(f"{text[:200]!r} is no address of an upstream")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    named = f"[{host}]" if ":" in host else host
    authority = named if port == _PORTS[parts.scheme] else f"{named}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(Origin(parts.scheme, host, port), authority.encode("latin-1"), target.encode("latin-1"))


class Body:
    """The body of an answer, in pieces as they come."""

    __slots__ = ("_connection", "_done", "_error", "_parts", "_size", "_through", "_waiter")

    def __init__(self, connection: _Connection) -> None:
        self._connection: _Connection | None = connection
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._done = False
        self._error: BaseException | None = None
        self._through: Through | None = None
        self._waiter: asyncio.Future[None] | None = None

    def at_eof(self) -> bool:
        """Return whether all of it was read."""
        return self._done and not self._parts

    async def readany(self, through: Through | None = None) -> bytes:
        """Return what has come since the last time; nothing at the end.

        Parameters
        ----------
        through : called with each piece that comes while this waits. Where it says True it has taken the piece, and the
            wait goes on; else the piece is returned. What it raises is raised here.

        Raises
        ------
        BrokenBodyError : the rest will not come.
        """
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._done:
                return b""
            self._through = through
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._through = self._waiter = None
        data = self._parts.popleft() if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        if self._size > _HIGH_BYTES and self._connection is not None:
            self._connection.resume()
        self._size = 0
        return data

    async def read(self, most_bytes: int) -> bytes:
        """Return all of it, or its beginning where it is longer than ``most_bytes``."""
        parts: list[bytes] = []
        size = 0
        while size < most_bytes and (data := await self.readany()):
            parts.append(data)
            size += len(data)
        return b"".join(parts)[:most_bytes]

    def feed(self, data: bytes) -> None:
        """Take a piece from the connection."""
        through = self._through
        if through is not None:
            try:
                if through(data):
                    return
            except Exception as error:
                self.end(error)
                return
            self._through = None  # what comes before the task has woken waits behind this
        self._parts.append(data)
        self._size += len(data)
        if self._size > _HIGH_BYTES and self._connection is not None:
            self._connection.pause()
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """Take note that nothing more will come."""
        self._done = error is None
        self._error = self._error or error
        self._connection = self._through = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Response:
    """An answer, from its head on.

    Attributes
    ----------
    raw_headers : as they came.
    content : the body.
    """

    def __init__(self, status: int, raw_headers: list[tuple[bytes, bytes]], connection: _Connection) -> None:
        self.status = status
        self.raw_headers = raw_headers
        self.content = Body(connection)
        self._connection: _Connection | None = connection

    @cached_property
    def headers(self) -> dict[str, str]:
        """The headers by their names in lower case; of one that stands there twice, the last."""
        return {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in self.raw_headers}

    @cached_property
    def content_type(self) -> str:
        """The media type in lower case, without its parameters; empty where none is said."""
        for name, value in self.raw_headers:
            if name.lower() == b"content-type":
                return value.partition(b";")[0].strip().lower().decode("latin-1")
        return ""

    def ended(self) -> None:
        """Take note that the connection has done with it."""
        self._connection = None

    def close(self) -> None:
        """Let go of it; a connection on which more would come is closed."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    async def __aenter__(self) -> Response:
        """Use it in a block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of it."""
        self.close()


class _Connection(asyncio.Protocol):
    """One connection, and the answer that comes on it."""

    __slots__ = (
        "_begun", "_body", "_bodyless", "_gone", "_head", "_head_bytes", "_loop", "_parser", "_pieces", "_raw_headers",
        "_release", "_response", "_sending", "_transport", "_until_end", "_writable", "idle_since_s", "on_body",
    )  # fmt: skip

    def __init__(self, release: Callable[[_Connection], None], gone: Callable[[_Connection], None]) -> None:
        self._release = release
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._pieces: list[bytes] = []  # of the answer's body, from what is being parsed
        # Of the parser's calls the one for each event. Pieces that come together go on together: see `_hand_over`.
        self.on_body = self._pieces.append
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._head: asyncio.Future[Response] | None = None
        self._response: Response | None = None
        self._body: Body | None = None  # the response's
        self._raw_headers: list[tuple[bytes, bytes]] = []
        self._bodyless = self._sending = self._begun = self._until_end = False
        self._head_bytes = 0
        self._writable: asyncio.Future[None] | None = None
        self.idle_since_s = 0.0

    # ----------------------------------------------------------------------------------------------------------------
    # For the client

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked on it."""
        return self._transport.is_closing()

    async def ask(self, head: bytes, body: bytes, *, bodyless: bool) -> Response:
        """Send a request and return its answer once the head is there.

        Parameters
        ----------
        bodyless : whether the answer has no body whatever its head says (HEAD).
        """
        answered: asyncio.Future[Response] = self._loop.create_future()
        self._head = answered
        self._bodyless, self._begun, self._head_bytes = bodyless, False, 0
        try:
            if len(body) <= _PIECE_BYTES:
                self._transport.write(head + body)
            else:
                await self._send(head, memoryview(body), answered)
            return await answered
        except BaseException:
            self.abort()
            raise

    async def _send(self, head: bytes, body: memoryview, answered: asyncio.Future[Response]) -> None:
        """Write a long body in pieces, as fast as they are taken, until there is an answer."""
        self._sending = True
        self._transport.write(head)
        for begin in range(0, len(body), _PIECE_BYTES):
            self._transport.write(body[begin : begin + _PIECE_BYTES])
            await asyncio.sleep(0)
            while self._writable is not None and not answered.done():
                await asyncio.wait((self._writable, answered), return_when=asyncio.FIRST_COMPLETED)
            if answered.done():  # whatever it says, the rest is not asked for: the connection is not used again
                return
        self._sending = False

    def pause(self) -> None:
        """Read no more for now."""
        if not self.closed:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self.closed:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close it at once."""
        self._transport.abort()

    # ----------------------------------------------------------------------------------------------------------------
    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._head is None:  # nobody asked
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(_cause(error))
            return
        except httptools.HttpParserUpgrade:
            self._fail(BadHeadError("it goes on in another protocol"))
            return
        if self._pieces:
            self._hand_over()
        if self._response is None and self._head is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES:
                self._fail(BadHeadError(f"its head is larger than {_MOST_HEAD_BYTES} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._gone(self)
        if self._response is not None and self._until_end and exc is None:
            self._complete(reusable=False)
        elif self._head is not None:
            self._fail(exc)
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # ----------------------------------------------------------------------------------------------------------------
    # The parser

    def on_message_begin(self) -> None:
        """Begin an answer; a second one to the same request is none."""
        if self._head is None:
            self.abort()
        self._raw_headers = []

    def on_status(self, status: bytes) -> None:  # noqa: ARG002
        """Take note that it is HTTP."""
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; those after a body are dropped."""
        if self._response is None:
            self._begun = True
            self._raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Hand over the answer."""
        parser, head = self._parser, self._head
        status = parser.get_status_code()
        if head is None or head.done() or 100 <= status < 200:  # 100 Continue, 103 Early Hints: the answer follows
            return
        self._begun = True
        self._response = response = Response(status, self._raw_headers, self)
        self._body = response.content
        self._until_end = not self._bodyless and status not in (204, 304) and not _framed(self._raw_headers)
        head.set_result(response)
        if self._bodyless:
            self._complete(reusable=False)

    def on_message_complete(self) -> None:
        """End the answer."""
        if self._response is not None:
            self._complete(reusable=self._parser.should_keep_alive() and not self._sending)

    # ----------------------------------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Hand on what has come of the body, in one piece: a gateway that is late has less to do for each event."""
        pieces, body = self._pieces, self._body
        if len(pieces) == 1:
            data = pieces.pop()
        else:
            data = b"".join(pieces)
            pieces.clear()
        if body is not None:
            body.feed(data)

    def _complete(self, *, reusable: bool) -> None:
        if self._pieces:
            self._hand_over()
        response, self._response, self._head, self._body = self._response, None, None, None
        self._until_end = False
        if response is None:
            return
        response.ended()
        response.content.end()
        if reusable and not self.closed:
            self.resume()
            self._release(self)
        else:  # at once: what is still to be written may never be taken
            self._transport.abort()

    def _fail(self, cause: BaseException | None) -> None:
        """Tell whoever waits that no more comes, and close."""
        if self._pieces:
            self._hand_over()
        head, response = self._head, self._response
        self._head = self._response = self._body = None
        why = "" if cause is None else f": {cause}"
        if response is not None:
            response.ended()
            response.content.end(BrokenBodyError(f"the answer broke off{why}"))
        elif head is not None and not head.done():
            if isinstance(cause, UpstreamError):
                head.set_exception(cause)
            elif self._begun and isinstance(cause, httptools.HttpParserError):
                head.set_exception(BadHeadError(str(cause)))
            else:
                head.set_exception(NoHttpError(f"{_DROPPED}{why}"))
        if not self.closed:
            self._transport.abort()


def _cause(error: BaseException) -> BaseException:
    """Return what went wrong: the parser wraps what its callbacks raise."""
    return error.__context__ if isinstance(error.__context__, UpstreamError) else error


def _framed(headers: Headers) -> bool:
    """Return whether a head says where its body ends."""
    for name, value in headers:
        lower = name.lower()
        if lower == b"content-length" or (lower == b"transfer-encoding" and value.lower().endswith(b"chunked")):
            return True
    return False


class _Site:
    """One origin: how to get there, and connections to it that are idle, the last used last."""

    def __init__(self, origin: Origin, tls: ssl.SSLContext | None, connect_s: float | None) -> None:
        self.connector = Connector(origin.host, origin.port, tls, connect_s)
        self.idle: deque[_Connection] = deque()

    def kept(self, oldest_s: float) -> _Connection | None:
        """Return a connection that can be used again; it must be idle since ``oldest_s`` at most."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if not connection.closed and connection.idle_since_s > oldest_s:
                return connection
            connection.abort()
        return None


class HttpClient:
    """Asks upstreams, on as many connections as there are requests at a time; all on one loop.

    Parameters
    ----------
    connect_s : the longest that making a connection may take; None for no limit.
    keep_s : an idle connection is closed after it.
    """

    def __init__(self, *, connect_s: float | None = None, keep_s: float = 4.0) -> None:
        self._connect_s = connect_s
        self._keep_s = keep_s
        self._loop = asyncio.get_running_loop()
        self._sites: dict[Origin, _Site] = {}
        self._connections: set[_Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(self, method: str, url: str, *, headers: Headers = (), body: bytes = b"") -> Response:
        """Return the answer to a request once its head is there; redirects are answers.

        What may be done twice is asked again where a kept connection was closed meanwhile.

        Raises
        ------
        ConnectError : there is no connection to be had.
        NoHttpError, BadHeadError : the answer is none.
        ValueError : the request cannot be written.
        """
        asked = parsed_url(url)
        head = _head(method, asked, headers, len(body))
        site = self._sites.get(asked.origin) or self._site(asked.origin)
        while True:
            connection = site.kept(self._loop.time() - self._keep_s)
            kept = connection is not None
            if connection is None:
                connection = await self._connect(site, asked.origin)
            try:
                return await connection.ask(head, body, bodyless=method == "HEAD")
            except NoHttpError:
                if not kept or method not in _IDEMPOTENT:
                    raise

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self._connections):
            connection.abort()
        await asyncio.sleep(0)

    # ----------------------------------------------------------------------------------------------------------------

    def _site(self, origin: Origin) -> _Site:
        tls = ssl.create_default_context() if origin.scheme == "https" else None
        site = self._sites[origin] = _Site(origin, tls, self._connect_s)
        return site

    async def _connect(self, site: _Site, origin: Origin) -> _Connection:
        def release(connection: _Connection) -> None:
            if self._closed:
                connection.abort()
                return
            connection.idle_since_s = self._loop.time()
            site.idle.append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self._keep_s / 4, self._sweep)

        try:
            connection = await site.connector.connect(lambda: _Connection(release, self._connections.discard))
        except TimeoutError as error:
            raise ConnectTimeoutError(f"no connection to {origin.host}:{origin.port} in time") from error
        except OSError as error:
            raise ConnectError(error.errno, str(error)) from error
        self._connections.add(connection)
        return connection

    def _sweep(self) -> None:
        """Close what is idle for too long."""
        oldest_s = self._loop.time() - self._keep_s
        more = False
        for site in self._sites.values():
            while site.idle and site.idle[0].idle_since_s <= oldest_s:
                site.idle.popleft().abort()
            more = more or bool(site.idle)
        self._sweeper = self._loop.call_later(self._keep_s / 4, self._sweep) if more else None


def _head(method: str, url: Url, headers: Headers, size: int) -> bytes:
    """Return the head of a request.

    Raises
    ------
    ValueError : a header holds the end of a line.
    """
    lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method.encode(), url.target, url.authority)]
    lines += [b"%b: %b\r\n" % header for header in headers]
    lines.append(b"content-length: %d\r\n\r\n" % size if size or method == "POST" else b"\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(headers) + (4 if size or method == "POST" else 3) or b"\0" in head:
        raise ValueError("a header holds the end of a line")
    return head


__all__ = [
    "BadHeadError", "Body", "BrokenBodyError", "ConnectError", "ConnectTimeoutError", "HttpClient", "NoHttpError",
    "Origin", "Response", "UpstreamError", "Url", "parsed_url",
]  # fmt: skip
