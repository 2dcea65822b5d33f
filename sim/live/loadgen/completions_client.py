"""A client of one OpenAI-compatible server: streams a completion and writes down when its tokens came."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np

from sim.errors import InputError
from sim.live.gateway.headers import bearer
from sim.live.loadgen.attempt import LiveAttempt
from sim.live.observability.observer import NEVER_S
from sim.records.schema import REASONS, Outcome

_REASON_OF_CODE = {"request_too_large": "too_large", "overloaded": "no_capacity"}
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
        if attempt.asked_tokens:
            asked["max_tokens"] = attempt.asked_tokens
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
    """

    def __init__(self, base_url: str, *, origin_s: float, timeout_s: float = 600.0) -> None:
        self._url = f"{base_url.rstrip('/')}/v1/completions"
        self._origin_s = origin_s
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=timeout_s)
        self.events_of_several_tokens = 0

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
        InputError : the server does not know the key; no other request would fare better.
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
                if answer.status == 401:
                    raise InputError(
                        f"the key of request {attempt.request_id}",
                        f"the server does not know it ({_error_in(await answer.read()).get('message', '')})",
                        "give keys with --keys FILE or TOKENPOOLS_KEY_<ENTITLEMENT>",
                    )
                if answer.status != 200:
                    self._turned_away(attempt, answer.status, _error_in(await answer.read()), answer.headers)
                else:
                    attempt.forwarded_s = attempt.arrival_s
                    await self._follow(attempt, answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._broke(attempt, f"{type(error).__name__}: {error}", attempt.http_status or 0)

    async def _follow(self, attempt: LiveAttempt, answer: aiohttp.ClientResponse) -> None:
        """Read the events of a stream."""
        events = 0
        counted: int | None = None
        complete = False
        async for line in answer.content:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                complete = True
                break
            try:
                event = json.loads(data)
            except ValueError:
                break  # half a line
            if event.get("error"):
                self._error_event(attempt, event["error"], answer.headers)
                return
            if event.get("choices"):
                now_s = self.now_s()
                if not events:
                    attempt.first_token_s = now_s
                if attempt.token_s is not None:
                    attempt.token_s.append(now_s)
                events += 1
                attempt.delivered_tokens = events
                if event["choices"][0].get("finish_reason"):
                    attempt.finish_s = now_s
            if event.get("usage"):
                counted = event["usage"].get("completion_tokens")
        if not complete:
            self._broke(attempt, "the stream ended before [DONE]", 502)
            return
        if counted is not None:
            attempt.delivered_tokens = counted
            self.events_of_several_tokens += counted > events
        if attempt.finish_s != attempt.finish_s:
            attempt.finish_s = self.now_s()
        attempt.outcome = Outcome.FINISHED

    def _error_event(self, attempt: LiveAttempt, error: Any, headers: Mapping[str, str]) -> None:
        """Take an error in a stream that began with status 200."""
        said = error if isinstance(error, dict) else {"message": str(error)}
        code = said.get("code")
        if code == "preempted":
            attempt.outcome, attempt.reason, attempt.http_status = Outcome.EVICTED, "preempted", 503
            attempt.finish_s, attempt.error = self.now_s(), str(said.get("message", ""))
        elif not attempt.delivered_tokens and isinstance(code, int) and (code == 429 or code in _TURNED_AWAY):
            attempt.forwarded_s = NEVER_S
            self._turned_away(attempt, code, said, headers)
        else:
            self._broke(attempt, str(said.get("message", said)), code if isinstance(code, int) else 502)

    def _turned_away(
        self, attempt: LiveAttempt, status: int, error: Mapping[str, Any], headers: Mapping[str, str]
    ) -> None:
        """Take an answer other than 200."""
        attempt.finish_s, attempt.http_status = self.now_s(), status
        attempt.error = str(error.get("message", ""))
        if status >= 500 and status not in _TURNED_AWAY:
            attempt.outcome, attempt.reason = Outcome.FAILED, "replica_failed"
            return
        attempt.outcome, attempt.reason = Outcome.REFUSED, reason_of(error, headers)
        wait_s = retry_after_s(headers)
        if wait_s is not None:
            attempt.retry_after_s = wait_s

    def _broke(self, attempt: LiveAttempt, error: str, status: int) -> None:
        attempt.outcome, attempt.reason, attempt.http_status = Outcome.FAILED, "replica_failed", status
        attempt.finish_s, attempt.error = self.now_s(), error


def reason_of(error: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """Return why a request was turned away, as the records name it; empty where the answer does not say."""
    for said in (headers.get("x-tokenpools-reason"), error.get("reason"), error.get("code"), error.get("type")):
        name = _REASON_OF_CODE.get(str(said), str(said))
        if name in REASONS:
            return name
    return ""


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how long an answer tells its client to wait; None where it names no number of seconds."""
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue  # not there, or a date, which nobody sends to a machine that counts in seconds
    return None


def _error_in(body: bytes) -> dict[str, Any]:
    """Return the error of an answer's body, whatever shape it has."""
    try:
        said = json.loads(body)
    except ValueError:
        return {"message": body[:300].decode("utf-8", "replace")}
    error = said.get("error", said) if isinstance(said, dict) else said
    return error if isinstance(error, dict) else {"message": str(error)[:300]}
