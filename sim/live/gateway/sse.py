"""Server-sent events, as far as a gateway must read them: where one ends, and what it says of usage.

Events are passed on byte for byte. JSON is parsed only where the bytes say that there is something to find: inside a
JSON string the quotes of ``"usage"`` would be escaped, so what is searched for is never text that a model wrote.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from sim.live.gateway.media import SOUND_TOKENS_PER_S

_END = re.compile(rb"\r\n(?:\r\n|\n|\r)|\n(?:\r\n|\n|\r)|\r(?:\r\n|\r)")
"""A blank line: two ends of lines, each of which may be any of the three that the format has."""
_DATA = re.compile(rb"(?:\A|[\r\n])data:[ ]?([^\r\n]*)")

_SCAN = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_MOST_SECONDS = 1e7
_LAST = (b"", b"data: [DONE]", b"data:[DONE]")
"""What may stand behind the last blank line of a stream that is whole."""


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
        known = len(self.rest)
        data = self.rest + data
        end = 0
        for found in _END.finditer(data, max(0, known - 3)):
            if found.end() == len(data) and data.endswith(b"\r"):
                break  # the other half of this end of a line may be on its way
            end = found.end()
        self.rest = data[end:]
        if len(self.rest) > self.most_bytes:
            raise BrokenStreamError(f"an event is larger than {self.most_bytes} bytes")
        return data[:end]

    def end(self) -> bytes:
        """Return, once the stream has ended, what its end makes whole: a last blank line, or ``[DONE]`` without one."""
        end = 0
        for found in _END.finditer(self.rest):
            end = found.end()
        whole, self.rest = self.rest[:end], self.rest[end:]
        if self.rest.strip() in _LAST:
            whole += self.rest.strip() + b"\n\n" if self.rest.strip() else self.rest
            self.rest = b""
        return whole


def split(data: bytes) -> list[bytes]:
    """Return whole events one by one, each with its end."""
    if b"\r" not in data and data.endswith(b"\n\n"):  # as nearly all write them
        if data.find(b"\n\n") == len(data) - 2:
            return [data]
        if b"\n\n\n" not in data:
            return [event + b"\n\n" for event in data[:-2].split(b"\n\n")]
    events, start = [], 0
    for found in _END.finditer(data):
        events.append(data[start : found.end()])
        start = found.end()
    return events if start == len(data) else [*events, data[start:]]


def data_of(event: bytes) -> bytes:
    """Return the data of one event, its lines joined."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:  # of one line
        return event[6:-2]
    return b"\n".join(_DATA.findall(event))


def parsed(text: bytes) -> Any:
    """Return the JSON of an event's data; None where it is none, or nested too deeply to be read."""
    try:  # what is nothing but JSON in UTF-8 needs less than `json.loads` does for the rest
        words = text.decode()
        value, end = _SCAN(words, 0)
        if end == len(words):
            return value
    except (ValueError, RecursionError, StopIteration):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def usage_of(answer: Any) -> Usage | None:
    """Return the ``usage`` of an answer in JSON, None where it has none."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    seconds = usage.get("seconds")
    if usage.get("type") == "duration" and isinstance(seconds, int | float) and 0 <= seconds < _MOST_SECONDS:
        return Usage(math.ceil(seconds * SOUND_TOKENS_PER_S) or None, None, 0)
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    prompt_tokens = _tokens(usage.get("prompt_tokens", usage.get("input_tokens")))
    if isinstance(details, dict):
        cached_tokens = _tokens(details.get("cached_tokens")) or 0
    else:  # Anthropic's input_tokens are those beside the cache
        cached_tokens = _tokens(usage.get("cache_read_input_tokens")) or 0
        if prompt_tokens is not None and "input_tokens" in usage:
            prompt_tokens += cached_tokens + (_tokens(usage.get("cache_creation_input_tokens")) or 0)
    return Usage(
        prompt_tokens or None,  # there is no prompt of none
        _tokens(usage.get("completion_tokens", usage.get("output_tokens"))),
        cached_tokens,
    )


def later(known: Usage | None, new: Usage) -> Usage:
    """Return what is known after a second usage, which need not tell everything: Anthropic's has the output alone."""
    if known is None:
        return new
    return Usage(
        known.prompt_tokens if new.prompt_tokens is None else new.prompt_tokens,
        known.output_tokens if new.output_tokens is None else new.output_tokens,
        max(known.cached_tokens, new.cached_tokens),
    )


def cut_event(first: bytes, reason: str) -> bytes:
    """Return an event that ends every choice of a stream with ``finish_reason``, made like its first."""
    value = parsed(data_of(split(first)[0])) if first else None
    if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
        return b""
    choices = [
        {"index": choice.get("index", 0), **({"delta": {}} if "delta" in choice else {"text": ""}),
         "finish_reason": reason}
        for choice in value["choices"] if isinstance(choice, dict)
    ]  # fmt: skip
    frame = {name: value[name] for name in ("id", "object", "created", "model") if name in value}
    return event(frame | {"choices": choices})


def event(value: dict[str, Any], name: str = "") -> bytes:
    """Return a value as one event."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(value).encode() + b"\n\n"


def _tokens(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None
