"""Reads an upstream's answer as it passes through Envoy: how many tokens there are, and what it used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sim.live.gateway.request_body import Endpoint, ParsedBody
from sim.live.gateway.sse import BrokenStreamError, Splitter, Usage, cut_event, event, parsed, usage_of
from sim.live.gateway.stream_reader import StreamReader

_MOST_BYTES = 8 * 2**20
_DONE = b"data: [DONE]\n\n"


class Answer:
    """One answer.

    Parameters
    ----------
    asked : the request as it was read; None where its body was not.

    Attributes
    ----------
    changes : whether what is passed on may differ from what came: a usage that only we asked for is left out.
    """

    def __init__(self, endpoint: Endpoint, asked: ParsedBody | None, headers: Mapping[str, bytes]) -> None:
        self._shape = endpoint.shape
        self._stream: StreamReader | None = None
        self._splitter = Splitter(_MOST_BYTES)
        self._whole: list[bytes] | None = None
        self._size_bytes = 0
        self._broken = False
        kind = headers.get("content-type", b"").partition(b";")[0].strip().lower()
        self.changes = False
        if kind == b"text/event-stream":
            shows = asked is None or not endpoint.tells_usage or asked.wants_usage
            continuous = asked is None or not endpoint.tells_usage or asked.wants_continuous
            answers = 1 if asked is None else asked.sequences
            self._stream = StreamReader(endpoint.shape, shows, continuous, answers)
            self.changes = not (shows and continuous)
        elif kind == b"application/json":
            self._whole = []

    def feed(self, data: bytes, *, end: bool) -> bytes:
        """Take note of a piece of the answer and return what of it is for the client."""
        if self._stream is None:
            if self._whole is not None:
                self._size_bytes += len(data)
                if self._size_bytes <= _MOST_BYTES:
                    self._whole.append(data)
                else:
                    self._whole = None
            return data
        if self._broken:
            return data
        try:
            events = self._splitter.feed(data)
        except BrokenStreamError:
            self._broken = True
            rest, self._splitter.rest = self._splitter.rest, b""
            return rest
        shown = self._stream.read(events) if events else b""
        if end:
            last = self._splitter.end()
            shown += (self._stream.read(last) if last else b"") + self._splitter.rest
            self._splitter.rest = b""
        return shown if self.changes else data

    @property
    def tokens(self) -> int:
        """How many tokens of a stream there are by now; 0 of what is no stream."""
        return 0 if self._stream is None else self._stream.tokens

    def usage(self) -> Usage | None:
        """Return what the answer says it used; None where it does not."""
        if self._stream is not None:
            return self._stream.usage
        return usage_of(parsed(b"".join(self._whole))) if self._whole else None

    @property
    def is_good(self) -> bool:
        """Whether the answer, now that it has ended, is one: a stream that did not say that it is complete is none."""
        stream = self._stream
        return stream is None or (stream.complete and stream.error is None and not stream.failed and not self._broken)

    def cut(self, error: Mapping[str, Any]) -> bytes:
        """Return what ends a stream in the middle: a finish reason and the error, as its API has them."""
        said = dict(error)
        if self._stream is None:
            return b""
        if self._shape == "messages":
            return event({"type": "error", "error": said}, "error")
        if self._shape == "responses":
            head = {"type": "error", "code": said.get("code"), "message": said.get("message"), "param": None}
            return event({**head, "error": said}, "error")
        return cut_event(self._stream.first, "preempted") + event({"error": said}) + _DONE


def body_of(error: Mapping[str, Any], path: str) -> bytes:
    """Return an error as the body of an answer; Anthropic's says at its top what it is."""
    return json.dumps(({"type": "error"} if path.startswith("/v1/messages") else {}) | dict(error)).encode()
