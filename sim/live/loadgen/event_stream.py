"""Server-sent events out of the bytes of an answer, and what an event of OpenAI's API says.

Whatever a server sends is either understood or refused with `BadAnswerError`, which costs the attempt that it answers
and no other. Tests hold the decoder against the one of OpenAI's own library.

References
----------
HTML Living Standard, section 9.2.6, "Interpreting an event stream".
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

MOST_EVENT_BYTES = 512 * 2**10
"""An event carries a token or a few, their log-probabilities at most."""
_MOST_TOKENS = 2**31 - 1
_BOM = b"\xef\xbb\xbf"


class BadAnswerError(Exception):
    """An answer that is no stream of events, or an event that means nothing."""


class EventDecoder:
    """Cuts bytes into events, however they are split over reads; costs time in proportion to them.

    Parameters
    ----------
    most_bytes : of one event.
    """

    def __init__(self, most_bytes: int = MOST_EVENT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._line: list[bytes] = []  # what has come of a line without its end
        self._data: list[bytes] = []  # the data lines of the event so far
        self._waiting = 0
        self._size = 0  # of the event so far, but for the line that waits
        self._after_cr = False
        self._begun = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of every event that is whole by now.

        Raises
        ------
        BadAnswerError : an event is too large.
        """
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\n" in data or b"\r" in data:
            return self._lines(b"".join([*self._line, data]).splitlines(keepends=True))
        if data:
            self._line.append(data)
            self._waiting += len(data)
            self._check(self._waiting)
        return []

    def _check(self, line_bytes: int) -> None:
        if self._size + line_bytes > self._most_bytes:
            raise BadAnswerError(f"an event of more than {self._most_bytes} bytes")

    def rest(self) -> list[bytes]:
        """Return the data of an event whose end did not come, for servers that leave out the last empty line."""
        return self._lines([b"".join(self._line) + b"\n", b"\n"])

    def _lines(self, lines: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        self._line, self._waiting = [], 0
        for line in lines:
            self._check(len(line))
            text = line.rstrip(b"\r\n")
            if text == line:  # without its end, the last one
                self._line, self._waiting = [line], len(line)
                return events
            if not self._begun:
                self._begun, text = True, text.removeprefix(_BOM)
            if not text:
                if self._data:
                    events.append(b"\n".join(self._data))
                self._data, self._size = [], 0
                continue
            self._size += len(line)
            name, _, value = text.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
        self._after_cr = bool(lines) and lines[-1].endswith(b"\r")
        return events


class StreamEvent(NamedTuple):
    """What an event says.

    Attributes
    ----------
    output : whether it has a choice, and so at least a token, but for `empty_end`.
    finished : whether its choice names a reason to end.
    empty_end : whether it ends its choice and has no text, as servers send it that tell the end by itself.
    tokens : output tokens by the usage that it carries, None where it carries none.
    error : what it says in ``error``, None where there is no such thing.
    """

    output: bool = False
    finished: bool = False
    empty_end: bool = False
    tokens: int | None = None
    error: Any = None


def read_event(data: bytes) -> StreamEvent:
    """Return what an event of a streamed completion says.

    Raises
    ------
    BadAnswerError : it is no JSON object, or a part that counts has another form than the API gives it.
    """
    value = json_of(data)
    if not isinstance(value, dict):
        raise BadAnswerError(f"an event is {_kind(value)}, not an object")
    if value.get("error"):
        return StreamEvent(error=value["error"])
    choices, usage = value.get("choices"), value.get("usage")
    if not isinstance(choices, list | None):
        raise BadAnswerError(f"choices is {_kind(choices)}, not a list")
    if not isinstance(usage, dict | None):
        raise BadAnswerError(f"usage is {_kind(usage)}, not an object")
    tokens = None if usage is None else usage.get("completion_tokens")
    if tokens is not None and (type(tokens) is not int or not 0 <= tokens <= _MOST_TOKENS):
        raise BadAnswerError(f"completion_tokens is {str(tokens)[:40]!r}, not a number of tokens")
    if not choices:
        return StreamEvent(tokens=tokens)
    choice = choices[0]
    if not isinstance(choice, dict):
        raise BadAnswerError(f"a choice is {_kind(choice)}, not an object")
    finished = bool(choice.get("finish_reason"))
    return StreamEvent(True, finished, finished and not choice.get("text"), tokens)


def json_of(data: bytes) -> Any:
    """Return the value of JSON text.

    Raises
    ------
    BadAnswerError : it is none, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadAnswerError("an answer that is no UTF-8") from None
    except (ValueError, RecursionError):
        raise BadAnswerError(f"{data[:40]!r} is no JSON") from None


def _kind(value: object) -> str:
    return {list: "a list", dict: "an object", str: "text", bool: "a truth value"}.get(type(value), "a number")
