"""Connections to upstreams: few are made at a time, and none is given up for a delay that was the gateway's own.

A timer that is due and a connection that was made are seen in the same turn of the loop. Where thousands of requests
come at once a turn takes seconds, so every connection that was begun in it would be given up, though the upstream had
answered: `benchmarks/streams_at_once.py` lost most of its streams so.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import TypeVar

AT_ONCE = 128
"""Connections to one address that are being made at a time; the rest wait, and their time has not begun. [choice]"""
_LATE_S = 0.2
_TRIES = 3

T = TypeVar("T")
P = TypeVar("P", bound=asyncio.Protocol)


class Connector:
    """Makes connections to one address.

    Parameters
    ----------
    tls : how, where it is HTTPS.
    limit_s : the longest that one may take, counted while the loop turns; None for no limit.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, limit_s: float | None) -> None:
        self._host, self._port, self._tls, self._limit_s = host, port, tls, limit_s
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def connect(self, make: Callable[[], P]) -> P:
        """Return a protocol that is connected.

        Raises
        ------
        TimeoutError : it takes too long.
        OSError : it cannot be made.
        """

        async def once() -> P:
            async with asyncio.timeout(self._limit_s):
                _, protocol = await self._loop.create_connection(make, self._host, self._port, ssl=self._tls)
                return protocol

        async with self._turn:
            return await patiently(once, self._limit_s, self._loop)


async def patiently(
    connect: Callable[[], Awaitable[T]], limit_s: float | None, loop: asyncio.AbstractEventLoop
) -> T:
    """Return what ``connect`` does, called anew where it ran out of time while the loop stood still.

    Raises
    ------
    TimeoutError : it had its time.
    """
    for _ in range(_TRIES - 1):
        begun_s = loop.time()
        try:
            return await connect()
        except TimeoutError:
            if limit_s is None or loop.time() - begun_s < limit_s + _LATE_S:
                raise
    return await connect()
