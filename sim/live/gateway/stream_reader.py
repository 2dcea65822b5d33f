"""Reads the events of one answer: how many tokens there are by now, what it used, and whether it is complete.

Tokens are not events. An event may carry several (multi-token prediction, ``stream_interval``), or none: the role of a
chat, the frame of a response. They are counted by the usage that each event tells where the upstream does that, else
as events times the tokens that this replica's events were found to carry.

A stream is complete when it says so: by ``[DONE]``, by the ``finish_reason`` of every choice, or by the last event of
the Responses and Messages APIs. The end of the connection says nothing.

Nearly every event of a stream is the one before with another text in it. So an event that was found to say nothing but
a piece of text is kept as a mould: what fits into it says no more, and is not searched.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from sim.live.gateway.sse import Usage, data_of, later, parsed, split, usage_of

_LINE_DATA = re.compile(rb"(?:^|[\r\n])data:")
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_TEXT = re.compile(rb'"(?:content|text|reasoning_content|reasoning)"\s*:\s*"')
_PLAIN = re.compile(rb'[^"\\\r\n]*')
_USAGE_LAST = re.compile(
    rb',\s*"usage"\s*:\s*(?:null|\{[^{}"]*(?:"[^"\\]*"[^{}"]*|\{[^{}]*\}[^{}"]*)*\})\s*\}(?=[\r\n]*\Z)'
)
_SAYS = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call", "audio")
_COMPLETE = ("response.completed", "response.incomplete", "response.failed", "message_stop", "transcript.text.done")
_OPEN_ENDED = ("none", "pooling", "pairs", "text")
"""Shapes of whose streams nobody knows how they would say that they end."""


@dataclass(slots=True, eq=False)
class StreamReader:
    """Reads the events of one answer.

    Attributes
    ----------
    shape : of the endpoint.
    show_usage, show_continuous : whether the client asked for the usage at the end, and for that in each event.
    answers : how many choices there are to finish.
    tokens_per_event : of this replica's streams, as far as it is known.
    events : with output, so far.
    usage : the last that was seen.
    error : the ``error`` of an event, None where there was none.
    failed : whether the answer says that it failed.
    done : whether the stream said that it is complete.
    first : the first event, to make another like it.
    response_id : what a stored response is called.
    """

    shape: str
    show_usage: bool
    show_continuous: bool
    answers: int = 1
    tokens_per_event: float = 1.0
    events: int = 0
    usage: Usage | None = None
    error: dict[str, Any] | None = None
    failed: bool = False
    done: bool = False
    first: bytes = b""
    response_id: str = ""
    _finished: set[Any] = field(default_factory=set)
    _by_choice: dict[int, int] = field(default_factory=dict)
    _before: bytes = b""  # the mould: what stands before and behind the text; nothing as long as there is none
    _behind: bytes = b""

    @property
    def tokens(self) -> int:
        """How many tokens of output there are by now."""
        if self._by_choice:
            return sum(self._by_choice.values())
        each = self.tokens_per_event
        return self.events if each == 1.0 else round(self.events * each)

    @property
    def complete(self) -> bool:
        """Whether the answer has said that it ends here; of other APIs nobody knows how they would."""
        return self.done or self.shape in _OPEN_ENDED or len(self._finished) >= self.answers

    def read(self, data: bytes) -> bytes:
        """Take note of whole events and return what of them is for the client."""
        if not self.first:
            self.first = data
        plain = self.events and self.shape in ("completion", "chat") and not _says_more(data)
        if plain or self.shape in _OPEN_ENDED:
            self.events += 1 if data.count(b"data:") == 1 else len(_LINE_DATA.findall(data))
            if plain:
                self._keep_mould(data)
            return data
        return b"".join([self._one(event) for event in split(data)])

    def fits(self, data: bytes) -> bool:
        """Return whether bytes are one whole event that is like one before but for its text, and count it if so.

        `read` would find the same. Text with a quote, a backslash or the end of a line in it is left to that: without
        them it is all inside one JSON string, and can say nothing.
        """
        before, behind = self._before, self._behind
        if (
            before and data.startswith(before) and data.endswith(behind)
            and _PLAIN.fullmatch(data, len(before), len(data) - len(behind)) is not None
        ):  # fmt: skip
            self.events += 1
            return True
        return False

    def _keep_mould(self, data: bytes) -> None:
        """Remember one event that says nothing but a piece of text as what others will be like."""
        found = _TEXT.search(data)
        if found is None or data.find(b"\n\n") != len(data) - 2 or data.count(b"\n") != 2 or b"\r" in data:
            return
        end = data.find(b'"', found.end())
        if end >= 0 and data.find(b"\\", found.end(), end) < 0:
            self._before, self._behind = data[: found.end()], data[end:]

    def _one(self, event: bytes) -> bytes:
        text = data_of(event)
        if not text:
            return event
        if text.strip() == b"[DONE]":
            self.done = True
            return event
        value = parsed(text)
        if not isinstance(value, dict):
            self.events += 1
            self.done = self.done or self.shape == "audio"  # plain text: nobody knows how that would say its end
            return event
        if value.get("error") and isinstance(value["error"], dict | str):
            error = value["error"]
            self.error = error if isinstance(error, dict) else {"message": error}
            return b""
        if self.shape in ("responses", "messages") or (self.shape == "audio" and "choices" not in value):
            self._framed(value)
            return event
        return self._choices(event, value)

    def _framed(self, value: dict[str, Any]) -> None:
        """Read an event that says by its type what it is."""
        kind, response = value.get("type"), value.get("response")
        for place in (value, response, value.get("message")):
            usage = usage_of(place)
            if usage is not None:
                self.usage = later(self.usage, usage)
        if isinstance(response, dict) and isinstance(response.get("id"), str):
            self.response_id = response["id"]
        if kind == "error":  # Responses put what went wrong beside the type
            self.error = {name: value[name] for name in ("message", "code", "type") if name in value}
        elif kind in _COMPLETE:
            self.done = True
            self.failed = kind == "response.failed"
        elif isinstance(kind, str) and kind.endswith("delta") and kind != "message_delta":
            self.events += 1

    def _choices(self, event: bytes, value: dict[str, Any]) -> bytes:
        """Read an event of choices, and hide the usage that the client did not ask for."""
        choices, usage = value.get("choices"), usage_of(value)
        listed = choices if isinstance(choices, list) else [{"text": "?"}]
        said = [one for one in listed if isinstance(one, dict)]
        # Some say it twice of one choice; who numbers none is told apart by nothing.
        says = False
        for one in said:
            if one.get("finish_reason"):
                self._finished.add(_index(one))
            says = says or _says_something(one)
        self.events += says
        if usage is not None and said:  # so far, and of this choice alone
            self.usage = later(self.usage, Usage(usage.prompt_tokens, None, usage.cached_tokens))
            index = said[0].get("index", 0)
            if type(index) is int and usage.output_tokens is not None and len(self._by_choice) <= self.answers:
                self._by_choice[index] = max(self._by_choice.get(index, 0), usage.output_tokens)
        elif usage is not None:
            self.usage = later(self.usage, usage)
            if not self.show_usage:
                return b""
        if said and "usage" in value and not self.show_continuous:
            return _without_usage(event, value)
        return event


def _says_more(data: bytes) -> bool:
    """Return whether there may be more in events than a piece of text; four searches cost less than one pattern."""
    return (
        b'"usage"' in data or b'"error"' in data or b"[DONE]" in data
        or (b'"finish_reason"' in data and _FINISHED.search(data) is not None)
    )  # fmt: skip


def _says_something(choice: dict[str, Any]) -> bool:
    """Return whether a choice carries output: neither a role alone nor an end alone does."""
    delta = choice.get("delta")
    if isinstance(delta, dict):
        if any(delta.get(name) for name in _SAYS):
            return True
        return bool(delta) and "role" not in delta and not choice.get("finish_reason")
    return bool(choice.get("text")) or not choice.get("finish_reason")


def _index(choice: dict[str, Any]) -> object:
    """Return which of several answers a choice is of."""
    index = choice.get("index", 0)
    return index if type(index) is int else 0


def _without_usage(event: bytes, value: dict[str, Any]) -> bytes:
    """Return an event as it would be had nobody asked for its usage."""
    found, count = _USAGE_LAST.subn(b"}", event)
    if count == 1:
        return found
    return b"data: " + json.dumps({name: one for name, one in value.items() if name != "usage"}).encode() + b"\n\n"
