"""A client of one OpenAI-compatible server: streams a completion and writes down when its tokens came."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np

from sim.errors import InputError
from sim.live.gateway.headers import bearer
from sim.live.loadgen.attempt import LiveAttempt
from sim.live.loadgen.event_stream import BadAnswerError, EventDecoder, StreamEvent, json_of, read_event
from sim.live.observability.observer import NEVER_S
from sim.records.schema import REASONS, Outcome
from sim.scenario.yaml_file import one_line

_REASON_OF_CODE = {"request_too_large": "too_large", "overloaded": "no_capacity"}
_MOST_ERROR_BYTES = 65_536
_TURNED_AWAY = (503, 529)  # of the 5xx, those that say "not now" instead of "I broke"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptKind:
    """What prompts are made of: token ids drawn from [``first_id``, ``last_id``].

    They are fresh for every request, but for what it has in common with others: a line of text that several run through
    has the same tokens in all of them. ``first_id`` also ends an output where ``max_tokens`` must not.
    """

    model: str
    first_id: int = 100
    last_id: int = 999
    seed: int = 0

    def tokens(self, attempt: LiveAttempt) -> list[int]:
        """Return the prompt of an attempt."""
        found: list[int] = []
        for line, end in attempt.prefix or ():
            until = min(end, attempt.prompt_tokens)
            found += self._draw(line, until)[len(found) :]
        own = zlib.crc32(attempt.request_id.encode())
        return found + self._draw(own, attempt.prompt_tokens)[len(found) :]

    def _draw(self, name: int, count: int) -> list[int]:
        rng = np.random.default_rng([self.seed, abs(name), name < 0])
        drawn: list[int] = rng.integers(self.first_id + 1, self.last_id + 1, count).tolist()
        return drawn

    def body(self, attempt: LiveAttempt) -> bytes:
        """Return the request of an attempt. A retry asks the same thing again.

        Where the client asks for more than it gets, or names no limit, the output is ended by a token that the server
        is kept from choosing (``min_tokens``) until it is due, and made to choose then (``logit_bias``).
        """
        asked: dict[str, Any] = {
            "model": self.model,
            "prompt": self.tokens(attempt),
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        # Left out, a completion ends after 16 tokens, OpenAI's default and vLLM's; null is no limit.
        asked["max_tokens"] = attempt.asked_tokens or None
        if attempt.asked_tokens == attempt.output_tokens:
            asked["min_tokens"] = attempt.output_tokens
        else:
            asked |= {
                "min_tokens": attempt.output_tokens - 1,
                "stop_token_ids": [self.first_id],
                "logit_bias": {str(self.first_id): 100},
            }
        if attempt.priority:
            asked["priority"] = attempt.priority
        return json.dumps(asked, separators=(",", ":")).encode()


def id_range(text: str) -> tuple[int, int]:
    """Return the first and the last of a range of token ids, ``A:B``.

    Raises
    ------
    InputError : it is none.
    """
    first, _, last = text.partition(":")
    try:
        low, high = int(first), int(last)
    except ValueError:
        low, high = 0, 0
    if not 0 <= low < high:
        raise InputError(f"--token-ids {text}", "is no range of token ids", "give the first and the last, e.g. 100:999")
    return low, high


class Completions:
    """Sends attempts to ``base_url`` and fills in what becomes of them. Used within its ``async with``.

    Parameters
    ----------
    origin_s : the loop's time that is 0 in the records.
    timeout_s : longest silence of the server, between two of its bytes, after which an attempt has failed.
    now_unix_s : the clock that a date in Retry-After is read by.
    """

    def __init__(
        self, base_url: str, *, origin_s: float, timeout_s: float = 600.0, now_unix_s: Callable[[], float] = time.time
    ) -> None:
        self._url = f"{base_url.rstrip('/')}/v1/completions"
        self._origin_s = origin_s
        self._now_unix_s = now_unix_s
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=timeout_s)
        self._known_keys: set[str | None] = set()

    async def __aenter__(self) -> Completions:
        """Open the connections."""
        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0), timeout=self._timeout,
            trace_configs=[self._trace()],
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close them."""
        await self._session.close()

    def now_s(self) -> float:
        """Return the time of the run."""
        return self._loop.time() - self._origin_s

    def _trace(self) -> aiohttp.TraceConfig:
        """Return what measures when a request was written, whatever the loop was busy with before."""
        trace = aiohttp.TraceConfig()

        async def connecting(_: object, context: SimpleNamespace, __: object) -> None:
            context.connecting_s = self.now_s()

        async def connected(_: object, context: SimpleNamespace, __: object) -> None:
            context.trace_request_ctx.connect_s = self.now_s() - context.connecting_s

        async def written(_: object, context: SimpleNamespace, __: object) -> None:
            attempt: LiveAttempt = context.trace_request_ctx
            attempt.lag_s = self.now_s() - attempt.arrival_s - attempt.connect_s

        trace.on_connection_create_start.append(connecting)
        trace.on_connection_create_end.append(connected)
        trace.on_request_headers_sent.append(written)
        return trace

    async def ask(self, attempt: LiveAttempt, body: bytes, key: str | None) -> None:
        """Send an attempt and follow it to its end: afterwards its ``outcome`` is known.

        Raises
        ------
        asyncio.CancelledError : the caller cancelled, which closes the connection; the outcome is the caller's to set.
        InputError : the server has never known the key; no other request would fare better.
        """
        headers = {
            "content-type": "application/json",
            "x-request-id": f"{attempt.request_id}#{attempt.number}",
            "x-stainless-retry-count": str(attempt.number - 1),  # as OpenAI's library counts
            **bearer(key),
        }
        try:
            async with self._session.post(self._url, data=body, headers=headers, trace_request_ctx=attempt) as answer:
                attempt.http_status = answer.status
                if answer.status != 200:
                    said = _error_in(await _body(answer))
                    if answer.status == 401 and key not in self._known_keys:
                        raise InputError(
                            f"the key of request {attempt.request_id}",
                            f"the server does not know it ({_message(said)})",
                            "give keys with --keys FILE or TOKENPOOLS_KEY_<ENTITLEMENT>",
                        )
                    self._turned_away(attempt, answer.status, said, answer.headers)
                else:
                    self._known_keys.add(key)
                    attempt.forwarded_s = attempt.arrival_s
                    await self._follow(attempt, answer)
        # The last three: what aiohttp and json raise for what no server should send.
        except (
            aiohttp.ClientError, TimeoutError, OSError, BadAnswerError, ValueError, LookupError, RecursionError
        ) as error:
            self._broke(attempt, f"{type(error).__name__}: {error}", attempt.http_status or 0)

    async def _follow(self, attempt: LiveAttempt, answer: aiohttp.ClientResponse) -> None:
        """Read the events of a stream.

        Raises
        ------
        BadAnswerError : they are none.
        """
        decoder = EventDecoder()
        while chunk := await answer.content.readany():
            if self._take(attempt, decoder.feed(chunk), answer.headers):
                return
        if not self._take(attempt, decoder.rest(), answer.headers):
            self._broke(attempt, "the stream ended before [DONE]", 502)

    def _take(self, attempt: LiveAttempt, events: Sequence[bytes], headers: Mapping[str, str]) -> bool:
        """Take note of events that came at once; returns whether the attempt has ended with one of them."""
        now_s = self.now_s()
        for data in events:
            if data.strip() == b"[DONE]":
                if math.isnan(attempt.finish_s):
                    attempt.finish_s = now_s
                attempt.outcome = Outcome.FINISHED
                return True
            event = read_event(data)
            if event.error is not None:
                self._error_event(attempt, event.error, headers)
                return True
            if event.output:
                _output(attempt, event, now_s)
            if event.tokens is not None:
                attempt.usage_tokens = attempt.delivered_tokens = event.tokens
        return False

    def _error_event(self, attempt: LiveAttempt, error: Any, headers: Mapping[str, str]) -> None:
        """Take an error in a stream that began with status 200."""
        said = error if isinstance(error, dict) else {"message": error}
        code = said.get("code")
        status = code if type(code) is int and 100 <= code <= 599 else 502
        if code == "preempted":
            attempt.outcome, attempt.reason, attempt.http_status = Outcome.EVICTED, "preempted", 503
            attempt.finish_s, attempt.error = self.now_s(), _message(said)
        elif not attempt.delivered_tokens and (status == 429 or status in _TURNED_AWAY):
            attempt.forwarded_s = NEVER_S
            self._turned_away(attempt, status, said, headers)
        else:
            self._broke(attempt, _message(said), status)

    def _turned_away(
        self, attempt: LiveAttempt, status: int, error: Mapping[str, Any], headers: Mapping[str, str]
    ) -> None:
        """Take an answer other than 200."""
        attempt.finish_s, attempt.http_status = self.now_s(), status
        attempt.error = _message(error)
        if status >= 500 and status not in _TURNED_AWAY:
            attempt.outcome, attempt.reason = Outcome.FAILED, "replica_failed"
            return
        attempt.outcome, attempt.reason = Outcome.REFUSED, reason_of(error, headers)
        wait_s = retry_after_s(headers, self._now_unix_s())
        if wait_s is not None:
            attempt.retry_after_s = wait_s

    def _broke(self, attempt: LiveAttempt, error: str, status: int) -> None:
        attempt.outcome, attempt.reason, attempt.http_status = Outcome.FAILED, "replica_failed", status
        attempt.finish_s, attempt.error = self.now_s(), one_line(error)[:300]


def reason_of(error: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """Return why a request was turned away, as the records name it; empty where the answer does not say."""
    for said in (headers.get("x-tokenpools-reason"), error.get("reason"), error.get("code"), error.get("type")):
        name = _REASON_OF_CODE.get(str(said), str(said))
        if name in REASONS:
            return name
    return ""


def retry_after_s(headers: Mapping[str, str], now_unix_s: float) -> float | None:
    """Return how long an answer tells its client to wait; None where it names neither seconds nor a date to come.

    Read as OpenAI's library reads it: milliseconds, then seconds, then a date. A wait that is negative or not finite
    tells nothing.
    """
    wait_s: float | None = None
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            wait_s = float(headers[name]) * unit_s
            break
    else:
        date = email.utils.parsedate_tz(headers.get("retry-after", ""))
        if date is not None:
            with contextlib.suppress(ValueError, OverflowError):
                wait_s = email.utils.mktime_tz(date) - now_unix_s
    return wait_s if wait_s is not None and 0 <= wait_s < math.inf else None


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    """Return the beginning of an answer's body: an error is short, and what is not is no error's text."""
    found = b""
    while len(found) < _MOST_ERROR_BYTES and (chunk := await answer.content.readany()):
        found += chunk
    return found[:_MOST_ERROR_BYTES]


def _error_in(body: bytes) -> dict[str, Any]:
    """Return the error of an answer's body, whatever shape it has."""
    try:
        said = json_of(body)
    except BadAnswerError:
        return {"message": body[:300].decode("utf-8", "replace")}
    error = said.get("error", said) if isinstance(said, dict) else said
    return error if isinstance(error, dict) else {"message": str(error)[:300]}


def _message(error: Mapping[str, Any]) -> str:
    """Return what an error says, on one line and short."""
    said = error.get("message")
    return one_line(str(said if isinstance(said, str | int) else error))[:300]


def _output(attempt: LiveAttempt, event: StreamEvent, now_s: float) -> None:
    """Take note of an event with output."""
    if event.empty_end and attempt.events and attempt.events == attempt.output_tokens:
        attempt.finish_s = now_s  # tells the end and nothing else
        return
    if not attempt.events:
        attempt.first_token_s = now_s
    if attempt.token_s is not None:
        attempt.token_s.append(now_s)
    attempt.events += 1
    attempt.delivered_tokens = max(attempt.delivered_tokens, attempt.events)
    if event.finished:
        attempt.finish_s = now_s
