"""gRPC over HTTP/2: calls by path, messages with their lengths, and a status at the end."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping
from typing import Protocol
from urllib.parse import quote

from sim.adapters.envoy.http2 import Handler, Stream, encoded

LOG = logging.getLogger("tokenpools.ext_proc")

OK, INVALID, NOT_FOUND, TOO_LARGE, FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 0, 3, 5, 8, 9, 12, 13, 14
MESSAGE_BYTES = 64 * 2**20
"""The longest message that is taken."""

_HEADERS = encoded([(":status", "200"), ("content-type", "application/grpc")])
_FINE = encoded([("grpc-status", "0")])


class Method(Protocol):
    """One call of a method, from its first message to its end."""

    def message(self, data: bytes) -> None:
        """Take a message; what is raised ends the call with the status INTERNAL."""
        ...

    def ended(self) -> None:
        """Take note that the caller says no more; it may still be answered."""
        ...

    def gone(self) -> None:
        """Take note that the caller has broken off. Called after the end of a call too."""
        ...


class Call:
    """What a method has in hand: `send`, `end`, and `flush` where it speaks unasked."""

    __slots__ = ("_begun", "_stream", "_unread", "method")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._begun = False
        self._unread = b""
        self.method: Method | None = None

    def send(self, messages: list[bytes]) -> None:
        """Send messages, all at once."""
        if not messages or not self._stream.is_open:
            return
        if not self._begun:
            self._begun = True
            self._stream.send_headers(_HEADERS)
        self._stream.send(b"".join([struct.pack(">BI", 0, len(one)) + one for one in messages]))

    def flush(self) -> None:
        """Send what was said: for what is no answer to a message that has just come."""
        self._stream.flush()

    def end(self, status: int = OK, why: str = "") -> None:
        """End the call."""
        if not self._stream.is_open:
            return
        if status == OK and not why:
            block = _FINE
        else:
            block = encoded([("grpc-status", str(status)), ("grpc-message", quote(why))])
        if not self._begun:
            self._begun = True
            self._stream.send_headers(_HEADERS)
        self._stream.end(block)

    def data(self, data: bytes) -> None:
        """See `sim.adapters.envoy.http2.Handler`."""
        unread = self._unread + data if self._unread else data
        at = 0
        assert self.method is not None
        while len(unread) - at >= 5:
            compressed, length = struct.unpack_from(">BI", unread, at)
            if compressed:
                self._broken(UNIMPLEMENTED, "Messages are not taken compressed here.")
                return
            if length > MESSAGE_BYTES:
                self._broken(TOO_LARGE, f"A message of {length} bytes; {MESSAGE_BYTES} are taken.")
                return
            if len(unread) - at - 5 < length:
                break
            message = unread[at + 5 : at + 5 + length]
            at += 5 + length
            try:
                self.method.message(message)
            except Exception as error:
                LOG.exception("a call failed")
                self._broken(INTERNAL, type(error).__name__)
                return
        self._unread = unread[at:]

    def ended(self) -> None:
        """See `sim.adapters.envoy.http2.Handler`."""
        assert self.method is not None
        if self._unread:
            self._broken(INVALID, "The call ends in the middle of a message.")
            return
        self.method.ended()

    def gone(self) -> None:
        """See `sim.adapters.envoy.http2.Handler`."""
        assert self.method is not None
        self.method.gone()

    def _broken(self, status: int, why: str) -> None:
        self._unread = b""
        assert self.method is not None
        self.end(status, why)
        self.method.gone()


class Unknown:
    """A method that there is not: the call is over as it begins."""

    def message(self, data: bytes) -> None:
        """See `Method`."""

    def ended(self) -> None:
        """See `Method`."""

    def gone(self) -> None:
        """See `Method`."""


def calls(methods: Mapping[str, Callable[[Call], Method]]) -> Callable[[Stream], Handler]:
    """Return what accepts streams as calls of these methods, by path."""
    by_path = {path.encode(): method for path, method in methods.items()}

    def accept(stream: Stream) -> Handler:
        call, headers = Call(stream), stream.headers
        make = by_path.get(headers.get(b":path", b""))
        if make is None or not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            call.method = Unknown()
            call.end(UNIMPLEMENTED, "There is no such method.")
        else:
            call.method = make(call)
        return call

    return accept
