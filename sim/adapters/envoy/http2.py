"""The server's side of HTTP/2 (RFC 9113), as far as gRPC needs it: streams of bytes both ways, on asyncio.

What a frame brings is handled where it is read, and what is said to it leaves in one write: no tasks, no threads, no
copies of state machines, since an exchange in Envoy waits for each of them. Headers are decoded by the library hpack.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

from hpack import Decoder, Encoder, HPACKError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(10)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_TABLE_SIZE, _INITIAL_WINDOW, _MAX_FRAME = 1, 4, 5
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL, STREAM_CLOSED, FRAME_SIZE, REFUSED, CANCEL, COMPRESSION, CALM = (
    0, 1, 3, 5, 6, 7, 8, 9, 11,
)  # fmt: skip

_FRAME_BYTES = 16_384
"""The longest frame that is taken: what a peer may assume without asking."""
_HEADER_BYTES = 64 * 2**10
_MOST_BLOCKS = 100
_STREAM_WINDOW = 1 * 2**20
_CONNECTION_WINDOW = 64 * 2**20
_DEFAULT_WINDOW = 65_535
_MOST_WINDOW = 2**31 - 1
_UNREAD_BYTES = 64 * 2**20
"""What a peer may leave unread of what it is sent before it is cut off."""

Headers = Sequence[tuple[str, str]]


class ConnectionBroken(Exception):  # noqa: N818 - the peer's error, told to it, and no error of ours
    """A peer that does not speak HTTP/2, or not as agreed."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Handler(Protocol):
    """What hears of a stream."""

    def data(self, data: bytes) -> None:
        """Take a piece of what the peer sends."""
        ...

    def ended(self) -> None:
        """Take note that the peer has sent everything."""
        ...

    def gone(self) -> None:
        """Take note that the stream, or the connection, was broken off; nothing can be sent any more."""
        ...


def encoded(headers: Headers) -> bytes:
    """Return headers as a block that refers to no other, so that it can be sent again as it is."""
    return Encoder().encode([(name, value, True) for name, value in headers])


class Stream:
    """One stream; what is sent goes out when `Connection.flush` is called, at the latest after the frames at hand."""

    __slots__ = ("_connection", "_queue", "_trailers", "ended", "handler", "headers", "stream_id", "unacked", "window")

    def __init__(
        self, connection: Connection, stream_id: int, headers: Mapping[bytes, bytes], window: int
    ) -> None:
        self._connection = connection
        self.stream_id = stream_id
        self.headers = headers
        self.window = window
        self.unacked = 0
        self.ended = False  # by the peer
        self.handler: Handler | None = None
        self._queue = b""
        self._trailers: bytes | None = None

    @property
    def is_open(self) -> bool:
        """Whether something can still be sent."""
        return self._trailers is None and self.stream_id in self._connection.streams

    def send_headers(self, block: bytes) -> None:
        """Send the headers of the answer."""
        self._connection.frame(_HEADERS, _END_HEADERS, self.stream_id, block)

    def send(self, data: bytes) -> None:
        """Send a piece of the answer, now or when the peer has room for it."""
        self._queue = self._queue + data if self._queue else data
        self.pump()

    def end(self, trailers: bytes) -> None:
        """End the answer with trailers, once all of it is sent."""
        if self._trailers is None:
            self._trailers = trailers
            self.pump()

    def flush(self) -> None:
        """See `Connection.flush`."""
        self._connection.flush()

    def pump(self) -> None:
        """Send what the peer has room for."""
        connection = self._connection
        while self._queue:
            room = min(len(self._queue), self.window, connection.window, connection.peer_frame_bytes)
            if room <= 0:
                connection.blocked[self.stream_id] = self
                return
            piece, self._queue = (self._queue, b"") if room == len(self._queue) else (
                self._queue[:room], self._queue[room:],
            )  # fmt: skip
            self.window -= room
            connection.window -= room
            connection.frame(_DATA, 0, self.stream_id, piece)
        if self._trailers is not None and connection.streams.pop(self.stream_id, None) is not None:
            connection.frame(_HEADERS, _END_HEADERS | _END_STREAM, self.stream_id, self._trailers)
            if not self.ended:  # it need not send the rest
                connection.frame(_RST, 0, self.stream_id, struct.pack(">I", NO_ERROR))


class Connection(asyncio.Protocol):
    """One connection of a peer.

    Parameters
    ----------
    accept : called with each new stream; returns what hears of it.
    connections : all that are open; this one is among them as long as it is.

    Attributes
    ----------
    streams : those that are not over, by number.
    window, peer_frame_bytes : what may be sent at all, and in one frame.
    """

    def __init__(self, accept: Callable[[Stream], Handler], connections: set[Connection]) -> None:
        self._accept = accept
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._unread = bytearray()
        self._begun = False
        self._said: list[bytes] = []
        self._decoder = Decoder(max_header_list_size=_HEADER_BYTES)
        self._blocks: dict[bytes, Mapping[bytes, bytes]] = {}
        self._block: tuple[int, int, bytearray] | None = None  # headers that are not all there: stream, flags, bytes
        self._last_id = 0
        self._unacked = 0
        self._stream_window = _DEFAULT_WINDOW
        self._closing = False
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[int, Stream] = {}
        self.window = _DEFAULT_WINDOW
        self.peer_frame_bytes = _FRAME_BYTES

    # ----------------------------------------------------------------------------------------------------------------
    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has its methods and is none
        self._connections.add(self)
        # Without a table of headers a block means the same each time: see `_decoded`.
        self.frame(_SETTINGS, 0, 0, struct.pack(">HIHI", _TABLE_SIZE, 0, _INITIAL_WINDOW, _STREAM_WINDOW))
        self.frame(_WINDOW, 0, 0, struct.pack(">I", _CONNECTION_WINDOW - _DEFAULT_WINDOW))
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See `asyncio.Protocol`."""
        self._connections.discard(self)
        self._transport = None
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            if stream.handler is not None:
                stream.handler.gone()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._unread += data
        try:
            self._read()
        except ConnectionBroken as error:
            self.goaway(error.code)
            self.flush()
            if self._transport is not None:
                self._transport.close()
        else:
            self.flush()

    # ----------------------------------------------------------------------------------------------------------------
    # What is sent

    def frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Put a frame into what is sent next."""
        self._said.append(struct.pack(">IBI", len(payload) << 8 | kind, flags, stream_id) + payload)

    def flush(self) -> None:
        """Send what was said."""
        said, self._said = self._said, []
        transport = self._transport
        if not said or transport is None or transport.is_closing():
            return
        transport.write(b"".join(said))
        if transport.get_write_buffer_size() > _UNREAD_BYTES:
            transport.abort()

    def reset(self, stream_id: int, code: int) -> None:
        """Break a stream off."""
        self.streams.pop(stream_id, None)
        self.blocked.pop(stream_id, None)
        self.frame(_RST, 0, stream_id, struct.pack(">I", code))

    def goaway(self, code: int = NO_ERROR) -> None:
        """Say that no more streams are taken here."""
        self._closing = True
        self.frame(_GOAWAY, 0, 0, struct.pack(">II", self._last_id, code))

    def close(self) -> None:
        """Close it; what runs is broken off."""
        if self._transport is not None:
            self._transport.close()

    # ----------------------------------------------------------------------------------------------------------------
    # What is read

    def _read(self) -> None:
        """Handle every frame that is there in whole."""
        unread, at = self._unread, 0
        if not self._begun:
            if unread[: len(PREFACE)] != PREFACE[: len(unread)]:
                raise ConnectionBroken(PROTOCOL_ERROR, "no preface of HTTP/2")
            if len(unread) < len(PREFACE):
                return
            self._begun, at = True, len(PREFACE)
        try:
            while len(unread) - at >= 9:
                head, flags, stream_id = struct.unpack_from(">IBI", unread, at)
                length = head >> 8
                if length > _FRAME_BYTES:
                    raise ConnectionBroken(FRAME_SIZE, f"a frame of {length} bytes")
                end = at + 9 + length
                if len(unread) < end:
                    return
                payload = bytes(unread[at + 9 : end])
                at = end
                self._handle(head & 0xFF, flags, stream_id & _MOST_WINDOW, payload)
        finally:
            del unread[:at]

    def _handle(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and kind != _CONTINUATION:
            raise ConnectionBroken(PROTOCOL_ERROR, "headers that are not continued")
        if kind == _DATA:
            self._data(flags, stream_id, payload)
        elif kind == _HEADERS:
            self._headers(flags, stream_id, payload)
        elif kind == _CONTINUATION:
            self._continued(flags, stream_id, payload)
        elif kind == _WINDOW:
            self._window_update(stream_id, payload)
        elif kind == _RST:
            self._sized(payload, 4)
            self._reset(stream_id)
        elif kind == _SETTINGS:
            self._settings(flags, stream_id, payload)
        elif kind == _PING:
            self._sized(payload, 8)
            if not flags & _ACK:
                self.frame(_PING, _ACK, 0, payload)
        elif kind == _PUSH:
            raise ConnectionBroken(PROTOCOL_ERROR, "a push from a client")
        # GOAWAY: the peer opens no more streams, and ends those that run; PRIORITY and what is unknown says nothing.

    def _headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = _without_padding(flags, payload)
        if flags & _WITH_PRIORITY:
            if len(block) < 5:
                raise ConnectionBroken(FRAME_SIZE, "no room for a priority")
            block = block[5:]
        if not stream_id % 2:
            raise ConnectionBroken(PROTOCOL_ERROR, f"headers of stream {stream_id}")
        self._block = (stream_id, flags, bytearray(block))
        if flags & _END_HEADERS:
            self._whole_headers()

    def _continued(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise ConnectionBroken(PROTOCOL_ERROR, "a continuation of nothing")
        self._block[2].extend(payload)
        if len(self._block[2]) > _HEADER_BYTES:
            raise ConnectionBroken(CALM, "headers without an end")
        if flags & _END_HEADERS:
            self._whole_headers()

    def _whole_headers(self) -> None:
        assert self._block is not None
        (stream_id, flags, block), self._block = self._block, None
        headers = self._decoded(bytes(block))
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id <= self._last_id:
                return  # trailers of a stream that is over here
            self._last_id = stream_id
            if self._closing:
                self.reset(stream_id, REFUSED)
                return
            stream = self.streams[stream_id] = Stream(self, stream_id, headers, self._stream_window)
            stream.ended = bool(flags & _END_STREAM)
            stream.handler = self._accept(stream)
        elif not flags & _END_STREAM:
            raise ConnectionBroken(PROTOCOL_ERROR, "headers within a stream")
        if flags & _END_STREAM:
            stream.ended = True
            assert stream.handler is not None
            stream.handler.ended()

    def _decoded(self, block: bytes) -> Mapping[bytes, bytes]:
        """Return the headers of a block.

        Envoy says the same of every call. A block that used no table of earlier headers, and left none, is remembered.
        """
        table = self._decoder.header_table
        plain = not table.dynamic_entries
        known = self._blocks.get(block) if plain else None
        if known is not None:
            return known
        try:
            headers = dict(self._decoder.decode(block, raw=True))
        except HPACKError as error:
            raise ConnectionBroken(COMPRESSION, str(error)) from None
        resizes = block[:1] and block[0] & 0xE0 == 0x20
        if plain and not table.dynamic_entries and not resizes and len(self._blocks) < _MOST_BLOCKS:
            self._blocks[block] = headers
        return headers

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        stream = self.streams.get(stream_id)
        self._unacked += len(payload)
        if self._unacked > _CONNECTION_WINDOW // 2:
            self.frame(_WINDOW, 0, 0, struct.pack(">I", self._unacked))
            self._unacked = 0
        if stream is None:
            if not stream_id or stream_id > self._last_id:
                raise ConnectionBroken(PROTOCOL_ERROR, f"data of stream {stream_id}")
            return  # it is over here, and its peer will hear of it
        if stream.ended:
            raise ConnectionBroken(STREAM_CLOSED, "data after the end")
        assert stream.handler is not None
        stream.unacked += len(payload)
        if stream.unacked > _STREAM_WINDOW // 2:
            self.frame(_WINDOW, 0, stream_id, struct.pack(">I", stream.unacked))
            stream.unacked = 0
        stream.ended = bool(flags & _END_STREAM)
        if data := _without_padding(flags, payload):
            stream.handler.data(data)
        if stream.ended:
            stream.handler.ended()

    def _reset(self, stream_id: int) -> None:
        stream = self.streams.pop(stream_id, None)
        self.blocked.pop(stream_id, None)
        if stream is not None and stream.handler is not None:
            stream.handler.gone()

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) % 6 or (flags & _ACK and payload):
            raise ConnectionBroken(FRAME_SIZE, "settings that are none")
        if flags & _ACK:
            return
        for key, value in struct.iter_unpack(">HI", payload):
            if key == _INITIAL_WINDOW:
                if value > _MOST_WINDOW:
                    raise ConnectionBroken(FLOW_CONTROL, f"a window of {value} bytes")
                change, self._stream_window = value - self._stream_window, value
                for stream in self.streams.values():
                    stream.window += change
            elif key == _MAX_FRAME:
                if not _FRAME_BYTES <= value < 2**24:
                    raise ConnectionBroken(PROTOCOL_ERROR, f"frames of {value} bytes")
                self.peer_frame_bytes = value
        self.frame(_SETTINGS, _ACK, 0, b"")
        self._unblock()

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        self._sized(payload, 4)
        more = struct.unpack(">I", payload)[0] & _MOST_WINDOW
        if not more:
            raise ConnectionBroken(PROTOCOL_ERROR, "a window that grows by nothing")
        if not stream_id:
            self.window += more
            if self.window > _MOST_WINDOW:
                raise ConnectionBroken(FLOW_CONTROL, "a window that is too large")
        elif (stream := self.streams.get(stream_id)) is not None:
            stream.window += more
            if stream.window > _MOST_WINDOW:
                self._reset(stream_id)
                self.frame(_RST, 0, stream_id, struct.pack(">I", FLOW_CONTROL))
        if self.blocked:
            self._unblock()

    def _unblock(self) -> None:
        blocked, self.blocked = self.blocked, {}
        for stream in blocked.values():
            stream.pump()

    def _sized(self, payload: bytes, size: int) -> None:
        if len(payload) != size:
            raise ConnectionBroken(FRAME_SIZE, f"{len(payload)} bytes for {size}")


def _without_padding(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionBroken(PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]
