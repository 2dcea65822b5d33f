"""Server-sent events, as far as a gateway must read them: where one ends, whether it carries usage or an error.

Events are passed on byte for byte. JSON is parsed only where the bytes say that there is something to find: inside a
JSON string the quotes of ``"usage"`` would be escaped, so what is searched for is never text that a model wrote.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_DATA = re.compile(rb"^data:[ ]?([^\r\n]*)", re.MULTILINE)
_LINE_DATA = re.compile(rb"(?:^|[\r\n])data:")


class BrokenStreamError(Exception):
    """The upstream sent what no stream of events is."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an upstream says a request used."""

    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int


@dataclass(slots=True, eq=False)
class Splitter:
    """Cuts a stream of bytes into whole events; what is not whole yet waits, up to ``most_bytes``."""

    most_bytes: int
    rest: bytes = b""

    def feed(self, data: bytes) -> bytes:
        """Return all events that are whole by now, as they came.

        Raises
        ------
        BrokenStreamError : an event is too large.
        """
        if not self.rest and data.endswith(b"\n\n"):
            return data
        data = self.rest + data
        end = 0
        for found in _END.finditer(data, max(0, len(self.rest) - 3)):
            end = found.end()
        self.rest = data[end:]
        if len(self.rest) > self.most_bytes:
            raise BrokenStreamError(f"an event is larger than {self.most_bytes} bytes")
        return data[:end]


@dataclass(slots=True, eq=False)
class StreamReader:
    """Reads the events of one answer.

    Attributes
    ----------
    hide_usage : whether the event that carries nothing but usage is kept from the client.
    events : with output, so far.
    usage : the last that was seen.
    error : the ``error`` of an event, None where there was none.
    done : whether the stream said that it is complete.
    first : the first event, to make another like it.
    """

    hide_usage: bool
    events: int = 0
    usage: Usage | None = None
    error: dict[str, Any] | None = None
    done: bool = False
    first: bytes = b""

    def read(self, data: bytes) -> bytes:
        """Take note of whole events and return what of them is for the client."""
        if not self.first:
            self.first = data
        if b'"usage"' not in data and b'"error"' not in data and b"[DONE]" not in data:
            self.events += 1 if data.count(b"data:") == 1 else len(_LINE_DATA.findall(data))
            return data
        return b"".join(self._one(event) for event in split(data))

    def _one(self, event: bytes) -> bytes:
        text = b"\n".join(_DATA.findall(event))
        if not text:
            return event
        if text.strip() == b"[DONE]":
            self.done = True
            return event
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            self.events += 1
            return event
        if isinstance(value.get("error"), dict | str) and value["error"]:
            error = value["error"]
            self.error = error if isinstance(error, dict) else {"message": error}
            return b""
        usage = usage_of(value) or usage_of(value.get("response")) or usage_of(value.get("message"))
        if usage is not None:
            self.usage = usage if self.usage is None else _later(self.usage, usage)
            if value.get("choices") == [] and self.hide_usage:
                return b""
        if value.get("choices") != []:
            self.events += 1
        return event


def _later(known: Usage, new: Usage) -> Usage:
    """Return what is known after a second usage, which need not tell everything: Anthropic's has the output alone."""
    return Usage(
        known.prompt_tokens if new.prompt_tokens is None else new.prompt_tokens,
        known.output_tokens if new.output_tokens is None else new.output_tokens,
        max(known.cached_tokens, new.cached_tokens),
    )


def split(data: bytes) -> list[bytes]:
    """Return whole events one by one, each with its end."""
    events, start = [], 0
    for found in _END.finditer(data):
        events.append(data[start : found.end()])
        start = found.end()
    return events if start == len(data) else [*events, data[start:]]


def usage_of(answer: Any) -> Usage | None:
    """Return the ``usage`` of an answer in JSON, None where it has none."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(
        _tokens(usage.get("prompt_tokens", usage.get("input_tokens"))),
        _tokens(usage.get("completion_tokens", usage.get("output_tokens"))),
        _tokens(cached) or 0,
    )


def cut_event(first: bytes, reason: str) -> bytes:
    """Return an event that ends every choice of a stream with ``finish_reason``, made like its first."""
    text = b"\n".join(_DATA.findall(split(first)[0])) if first else b""
    try:
        value = json.loads(text)
    except ValueError:
        return b""
    if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
        return b""
    choices = [
        {"index": choice.get("index", 0), **({"delta": {}} if "delta" in choice else {"text": ""}),
         "finish_reason": reason}
        for choice in value["choices"] if isinstance(choice, dict)
    ]  # fmt: skip
    frame = {name: value[name] for name in ("id", "object", "created", "model") if name in value}
    return event(frame | {"choices": choices})


def event(value: dict[str, Any]) -> bytes:
    """Return a value as one event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _tokens(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None
