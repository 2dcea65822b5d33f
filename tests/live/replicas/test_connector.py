"""A connection has its time; a loop that stood still has not used it up."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from live.stand_in import StandIn
from parity.virtual_loop import VirtualLoop

from sim.live.replicas import connector
from sim.live.replicas.connector import Connector, patiently


def tried(late_s: list[float], limit_s: float = 1.0) -> Any:
    """Try at a server that does not answer, on a loop that wakes each time so much too late."""
    loop, calls = VirtualLoop(), []

    async def connect() -> str:
        calls.append(loop.time())
        if len(calls) > len(late_s):
            return "made"
        loop.pass_to(loop.time() + limit_s + late_s[len(calls) - 1])
        raise TimeoutError

    task = loop.create_task(patiently(connect, limit_s, loop))
    loop.run()
    return len(calls), task.exception() or task.result()


def test_time_that_the_loop_lost_is_given_again_and_no_other() -> None:
    assert tried([]) == (1, "made")
    assert tried([5.0]) == (2, "made")
    assert tried([5.0, 5.0]) == (3, "made")
    calls, error = tried([5.0, 5.0, 5.0])
    assert (calls, type(error)) == (3, TimeoutError)
    calls, error = tried([0.01])
    assert (calls, type(error)) == (1, TimeoutError)


def test_so_many_are_made_at_a_time_and_all_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "_AT_ONCE", 3)
    now, most = 0, 0
    plain = aiohttp.TCPConnector._create_connection

    async def counted(self: Any, *given: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            return await plain(self, *given)
        finally:
            now -= 1

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", counted)

    async def ask() -> list[int]:
        stand_in = StandIn()
        await stand_in.start()
        async with aiohttp.ClientSession(connector=Connector(limit=0)) as session:

            async def one() -> int:
                async with session.get(f"{stand_in.base_url}/health") as answer:
                    return answer.status

            found = await asyncio.gather(*(one() for _ in range(20)))
        await stand_in.stop()
        return found

    assert asyncio.run(ask()) == [200] * 20
    assert most == 3
