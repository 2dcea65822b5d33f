"""From the bytes of a request's body to what it asks for and how many tokens its prompt has.

What is kept of bodies is bounded before anybody is let in, for each key and in all; what is long is parsed in a thread,
what is very long in another process, so that nobody else waits for it; and what costs an upstream or much CPU comes
after every check that needs no count.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

from sim.live.gateway.body_process import BodyProcess
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.in_flight import AbortReason, Exchange
from sim.live.gateway.media import sound_tokens
from sim.live.gateway.prompt_tokens import PromptCount, PromptCounter, never_too_long
from sim.live.gateway.request_body import Endpoint, ParsedBody, read_body
from sim.live.gateway.settings import Estimate, Limits, Settings

LOG = logging.getLogger("tokenpools.app")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_LINGER_BYTES = 256 * 2**20
_LINGER_S = 5.0
_OFF_LOOP_BYTES = 64 * 2**10
"""A body of this size is parsed in half a millisecond or two; a longer one in a thread. [choice]"""
_APART_BYTES = 512 * 2**10
"""And of this size in another process: a thread would hold the interpreter for 10 to 60 ms. [choice]"""
_PARSERS = 2
_BYTES_PER_TOKEN = 4
_BUSY_RETRY_S = 1.0


class ByteBudget:
    """Bounds what is kept of bodies, for each key and in all."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.waiting_bytes
        self._most_per_key = limits.waiting_bytes_per_key
        self._by_key: Tally[str] = Tally()
        self.kept_bytes = 0

    def take(self, exchange: Exchange, size_bytes: int) -> None:
        """Count bytes of a request's body.

        Raises
        ------
        ApiError : 429 where its key keeps too much, 503 where all together do.
        """
        name = exchange.key_name
        if self._by_key[name] + size_bytes > self._most_per_key:
            raise ApiError(
                429, "too_many_bytes", f"Bodies of this key that wait hold {self._most_per_key} bytes at most.",
                kind="requests", retry_after_s=_BUSY_RETRY_S,
            )  # fmt: skip
        if self.kept_bytes + size_bytes > self._most:
            raise ApiError(
                503, "overloaded", "The gateway holds as many bytes of bodies as it may.", kind="server_error",
                retry_after_s=_BUSY_RETRY_S,
            )  # fmt: skip
        self._by_key[name] += size_bytes
        self.kept_bytes += size_bytes
        exchange.kept_bytes += size_bytes

    def give_back(self, exchange: Exchange) -> None:
        """Take note that a request's body is kept no longer."""
        if exchange.kept_bytes:
            self.kept_bytes -= exchange.kept_bytes
            self._by_key[exchange.key_name] -= exchange.kept_bytes
            if not self._by_key[exchange.key_name]:
                del self._by_key[exchange.key_name]
            exchange.kept_bytes = 0


class Intake:
    """Reads requests.

    Parameters
    ----------
    refuses_any : whether the core would refuse a request of an entitlement, with so many sequences, whatever its size.
    """

    def __init__(
        self, settings: Settings, counter: PromptCounter, refuses_any: Callable[[str, int], bool]
    ) -> None:
        self._limits = settings.limits
        self._body_s = settings.timeouts.body_s
        self._estimates = isinstance(settings.prompt_tokens, Estimate)
        self._rule = settings.prompt_tokens if isinstance(settings.prompt_tokens, Estimate) else Estimate()
        self._counter = counter
        self._refuses_any = refuses_any
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(_PARSERS, "parse")
        self._apart = ThreadPoolExecutor(1, "read")  # waits for the process; short bodies do not wait behind long ones
        self._process = BodyProcess(
            settings.limits, self._rule if self._estimates else None
        )
        self.budget = ByteBudget(settings.limits)

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._apart.shutdown(wait=False, cancel_futures=True)
        self._process.close()

    async def body(self, exchange: Exchange, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Return the body, if it is not too large and comes in time.

        Raises
        ------
        ApiError : it is too large, or too much is kept already.
        CancelledError : the client has left.
        """
        limit = self._limits.body_bytes
        exchange.wait(self._loop.time() + self._body_s, AbortReason.BODY_SLOW)
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > limit:
            await self._too_large(exchange, headers, receive, limit)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                _left(exchange)
            part: bytes = message.get("body", b"")
            if part:
                self.budget.take(exchange, len(part))
                parts.append(part)
                size += len(part)
                if size > limit:
                    parts.clear()
                    self.budget.give_back(exchange)
                    await self._too_large(exchange, headers, receive, limit)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read(self, endpoint: Endpoint, body: bytes, salt: str | None = None) -> ParsedBody:
        """Return what a body asks for; ``salt`` as in `sim.live.gateway.request_body.read_body`.

        Raises
        ------
        ApiError : 400, it makes no sense.
        """
        limits = self._limits
        if len(body) < _OFF_LOOP_BYTES:
            return read_body(endpoint, body, limits.choices, limits.prompts, salt=salt, rule=self._rule)
        if len(body) >= _APART_BYTES:
            try:
                return await self._loop.run_in_executor(self._apart, self._process.read, endpoint, body, salt)
            except OSError as error:
                LOG.warning("a long body is read here: %s", error)
        read = partial(read_body, endpoint, body, limits.choices, limits.prompts, salt=salt, rule=self._rule)
        return await self._loop.run_in_executor(self._threads, read)

    async def count(self, endpoint: Endpoint, parsed: ParsedBody, entitlement: str, size_bytes: int) -> PromptCount:
        """Return how many tokens the prompts have. Who is refused in any case is not worth an exact count.

        Raises
        ------
        ApiError : 400, it is nested too deeply.
        """
        if parsed.counted is not None:
            return PromptCount(*parsed.counted)
        try:
            if self._refuses_any(entitlement, parsed.sequences):
                if size_bytes >= _OFF_LOOP_BYTES:
                    return PromptCount(size_bytes // _BYTES_PER_TOKEN)
                return self._counter.estimate(endpoint.shape, parsed.fields)
            if self._estimates and size_bytes >= _OFF_LOOP_BYTES:  # thousands of pictures may stand in it
                found = await self._loop.run_in_executor(
                    self._threads, self._counter.estimate, endpoint.shape, parsed.fields
                )
            else:
                found = await self._counter.count(endpoint.shape, parsed.fields)
        except RecursionError:
            raise ApiError(400, "invalid_json", "The body is nested too deeply.") from None
        return found._replace(least_tokens=1) if never_too_long(parsed.fields) else found

    def price(self, endpoint: Endpoint, size_bytes: int) -> int:
        """Return how many tokens a body that is not read is taken to have."""
        if endpoint.shape == "audio":
            return sound_tokens(size_bytes, self._rule)
        return max(1, size_bytes // _BYTES_PER_TOKEN)

    async def _too_large(
        self, exchange: Exchange, headers: Mapping[bytes, bytes], receive: Receive, limit: int
    ) -> NoReturn:
        """Answer 413. What still comes is read and thrown away for a while: most clients read no answer before."""
        if b"expect" not in headers:
            exchange.wait(self._loop.time() + _LINGER_S + 1, AbortReason.BODY_SLOW)
            read = 0
            try:
                async with asyncio.timeout(_LINGER_S):
                    while read < _LINGER_BYTES:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            _left(exchange)
                        read += len(message.get("body", b""))
                        if not message.get("more_body"):
                            break
            except TimeoutError:
                pass
        raise ApiError(413, "request_too_large", f"The body is larger than {limit} bytes.", close=True)


def _left(exchange: Exchange) -> NoReturn:
    exchange.cut_by = AbortReason.CLIENT_LEFT
    raise asyncio.CancelledError
