"""Connections to upstreams: few are made at a time, and none is given up for a delay that was the gateway's own.

A timer that is due and a connection that was made are seen in the same turn of the loop. Where thousands of requests
come at once a turn takes seconds, so every connection that was begun in it would be given up, though the upstream had
answered: `benchmarks/streams_at_once.py` lost most of its streams so.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import aiohttp

_AT_ONCE = 128
"""Connections to one address that are being made at a time; the rest wait, and their time has not begun. [choice]"""
_LATE_S = 0.2
_TRIES = 3


class Connector(aiohttp.TCPConnector):
    """aiohttp's, with its time to connect counted while the loop turns."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._turns: dict[tuple[str, int | None], asyncio.Semaphore] = {}

    async def _create_connection(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:
        key = req.connection_key
        turn = self._turns.setdefault((key.host, key.port), asyncio.Semaphore(_AT_ONCE))
        async with turn:
            connect = partial(super()._create_connection, req, traces, timeout)
            return await patiently(connect, timeout.sock_connect, self._loop)


async def patiently(connect: Any, limit_s: float | None, loop: asyncio.AbstractEventLoop) -> Any:
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
