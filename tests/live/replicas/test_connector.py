"""A connection has its time; a loop that stood still has not used it up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
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


class Kept(asyncio.Protocol):
    """A connection that can be closed."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport


def test_so_many_are_made_at_a_time_and_all_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "AT_ONCE", 3)
    now = most = 0

    async def connect() -> int:
        server = await asyncio.get_running_loop().create_server(Kept, "127.0.0.1", 0)
        one = Connector("127.0.0.1", server.sockets[0].getsockname()[1], None, 30.0)
        plain = one._loop.create_connection

        async def counted(*given: Any, **more: Any) -> Any:
            nonlocal now, most
            now += 1
            most = max(most, now)
            try:
                return await plain(*given, **more)
            finally:
                now -= 1

        monkeypatch.setattr(one._loop, "create_connection", counted)
        found = await asyncio.gather(*(one.connect(Kept) for _ in range(20)))
        for each in found:
            each.transport.abort()
        server.close()
        await server.wait_closed()
        return len({id(each) for each in found})

    assert asyncio.run(connect()) == 20
    assert most == 3


def test_a_connection_that_nobody_takes_is_given_up() -> None:
    async def connect() -> None:
        one = Connector("127.0.0.1", 1, None, 0.01)
        never = asyncio.get_running_loop().create_future()

        async def silent(*_: Any, **__: Any) -> Any:
            await never

        one._loop.create_connection = silent  # type: ignore[method-assign]
        await one.connect(asyncio.Protocol)

    with pytest.raises(TimeoutError):
        asyncio.run(connect())
