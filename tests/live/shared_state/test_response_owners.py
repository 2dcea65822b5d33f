"""Whose stored responses are, where several gateways share it: at a real Redis, away from it, and within its bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from live.gate import gateway
from live.shared_state.redis_server import BINARY, RedisServer
from live.stand_in import StandIn, running

from sim.live.gateway.settings import Settings, SharedState, StateSecrets
from sim.live.gateway.stored import AwayError, Stored
from sim.live.shared_state.response_owners import ResponseOwners

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs redis-server")

KEY = b"0123456789abcdef0123456789abcdef"
REPLICAS = ("http://a:1", "http://b:2")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    found = RedisServer(tmp_path).start()
    yield found
    found.kill()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with running() as one:
        yield one


def settings(server: RedisServer, **changed: Any) -> SharedState:
    return SharedState(url=server.url, pool="test", **{"timeout_s": 5.0, **changed})


def owners(server: RedisServer, key: bytes | None = KEY, **changed: Any) -> ResponseOwners:
    return ResponseOwners(settings(server, **changed), REPLICAS, StateSecrets(key=key))



def made(response_id: str, **more: Any) -> dict[str, Any]:
    body = json.dumps({"id": response_id, "object": "response", "status": "completed", **more})
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return {"model": "tiny", "input": "a", "stand_in": {"raw": head + body}}


def test_any_gateway_knows_who_made_a_response_and_where_it_is(server: RedisServer, stand_in: StandIn) -> None:
    def common(asked: Settings) -> ResponseOwners:
        return ResponseOwners(settings(server), [one.base_url for one in asked.upstreams], StateSecrets(key=KEY))

    ask = made("resp_1", usage={"input_tokens": 30, "output_tokens": 20})
    on = {"model": "tiny", "input": "abcd", "previous_response_id": "resp_1"}
    with gateway(stand_in, owners=common) as first, gateway(stand_in, owners=common) as second:
        assert first.ask(ask, path="/v1/responses").status == 200
        assert second.ask(path="/v1/responses/resp_1", method="GET").status == 200
        assert second.ask(on, path="/v1/responses").status == 200
        second.balanced()
        assert second.logs[-1].prompt_tokens == 1 + 50  # what went before is known there too
        for gate in (first, second):
            assert gate.ask(path="/v1/responses/resp_1", method="GET", key="batch").status == 404
            assert gate.ask(on, path="/v1/responses", key="batch").status == 404
            answer = gate.ask(path="/v1/responses/resp_2", method="GET")
            assert (answer.status, answer.code) == (404, "not_found")
        assert second.ask(path="/v1/responses/resp_1", method="DELETE").status == 200
    with gateway(stand_in, owners=common) as later:
        assert later.ask(path="/v1/responses/resp_1", method="GET").status == 404


def test_a_stream_s_response_is_owned_before_its_client_hears_of_it(server: RedisServer, stand_in: StandIn) -> None:
    def common(asked: Settings) -> ResponseOwners:
        return ResponseOwners(settings(server), [one.base_url for one in asked.upstreams], StateSecrets(key=KEY))

    events = [
        {"type": "response.created", "response": {"id": "resp_s"}}, {"type": "response.output_text.delta"},
        {"type": "response.completed",
         "response": {"id": "resp_s", "usage": {"input_tokens": 7, "output_tokens": 5}}},
    ]  # fmt: skip
    raw = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    raw += "".join(f"data: {json.dumps(one)}\n\n" for one in events)
    with gateway(stand_in, owners=common) as gate:
        ask = {"model": "tiny", "input": "a", "stream": True, "stand_in": {"raw": raw}}
        assert gate.ask(ask, path="/v1/responses").status == 200
    with gateway(stand_in, owners=common) as later:  # as after a restart
        on = {"model": "tiny", "input": "abcd", "previous_response_id": "resp_s"}
        assert later.ask(on, path="/v1/responses").status == 200
        later.balanced()
        assert later.logs[-1].prompt_tokens > 1 + 7


def test_redis_away_costs_other_gateways_a_503_and_is_told_later(server: RedisServer) -> None:
    async def run() -> None:
        mine, other = owners(server, timeout_s=0.1), owners(server, timeout_s=0.1)
        await mine.add("resp_0", Stored("acme", 0, 1))
        server.pause()
        await mine.add("resp_1", Stored("acme", 1, 42))  # returns, and is kept for later
        assert mine.untold == 1
        with pytest.raises(AwayError):
            await other.find("resp_1", "acme")
        assert not await mine.tell_again()
        server.resume()
        while not await mine.tell_again():
            pass
        assert mine.untold == 0
        assert await other.find("resp_1", "acme") == Stored("acme", 1, 42)
        assert await other.find("resp_0", "acme") == Stored("acme", 0, 1)
        await mine.close()
        await other.close()

    asyncio.run(run())


def test_a_gateway_that_cannot_ask_says_503_and_when_to_come_again(server: RedisServer, stand_in: StandIn) -> None:
    def common(asked: Settings) -> ResponseOwners:
        return ResponseOwners(settings(server, timeout_s=0.1), [one.base_url for one in asked.upstreams])

    with gateway(stand_in, owners=common) as gate:
        assert gate.ask(made("resp_own"), path="/v1/responses").status == 200
        server.pause()
        answer = gate.ask(path="/v1/responses/resp_other", method="GET")
        assert (answer.status, answer.code) == (503, "state_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert gate.ask(path="/v1/responses/resp_own", method="GET").status == 200  # its own it knows
        assert gate.ask(made("resp_new"), path="/v1/responses").status == 200
        server.resume()


def test_the_newest_of_each_tenant_are_kept_and_nobody_pushes_out_another_s(server: RedisServer) -> None:
    async def run() -> None:
        mine = owners(server, stored_most=3)
        await mine.add("quiet", Stored("quiet", 0, 1))
        for number in range(10):
            await mine.add(f"loud-{number}", Stored("loud", 0, number))
        left = [number for number in range(10) if await mine.find(f"loud-{number}", "loud")]
        assert left == [7, 8, 9]
        assert await mine.find("quiet", "quiet") == Stored("quiet", 0, 1)
        await mine.close()

    asyncio.run(run())
    with redis.Redis(unix_socket_path=str(server.socket)) as plain:
        assert plain.hlen("tokenpools:{test}:responses") == 4
        for key in plain.keys("tokenpools:*"):
            assert 0 < plain.pttl(key) <= 86_401_000


def test_after_its_time_a_response_is_nobody_s(server: RedisServer) -> None:
    async def run() -> None:
        mine = owners(server, stored_ttl_s=1e-6)
        await mine.add("resp_1", Stored("acme", 0, 1))
        assert await mine.find("resp_1", "acme") is None
        await mine.add("resp_2", Stored("acme", 0, 1))
        await mine.close()

    asyncio.run(run())
    with redis.Redis(unix_socket_path=str(server.socket)) as plain:
        assert plain.hkeys("tokenpools:{test}:responses") in ([b"resp_2"], [])


def test_one_of_another_tenant_keeps_its_owner(server: RedisServer) -> None:
    async def run() -> None:
        mine, other = owners(server), owners(server)
        await mine.add("resp_1", Stored("acme", 0, 5))
        await other.add("resp_1", Stored("thief", 1, 6))
        assert await mine.find("resp_1", "acme") == Stored("acme", 0, 5)
        assert await other.find("resp_1", "thief") is None
        await mine.close()
        await other.close()

    asyncio.run(run())


@pytest.mark.parametrize("kept", ["", "x", "1 2 3", "9" * 40, b"\xff\xfe"])
def test_what_somebody_else_wrote_there_is_no_response(server: RedisServer, kept: str | bytes) -> None:
    async def run() -> None:
        mine, stranger = owners(server), owners(server, key=None)
        await stranger.add("forged", Stored("acme", 0, 5))
        await stranger.close()
        assert await mine.find("forged", "acme") is None  # not signed with the pool's key
        with redis.Redis(unix_socket_path=str(server.socket)) as plain:
            plain.hset("tokenpools:{test}:responses", "resp_1", kept)
        assert await mine.find("resp_1", "acme") is None
        await mine.add("resp_1", Stored("acme", 0, 5))
        assert await mine.find("resp_1", "acme") == Stored("acme", 0, 5)
        with redis.Redis(unix_socket_path=str(server.socket)) as plain:
            plain.set("tokenpools:{test}:responses", "no hash")
        assert await mine.find("resp_1", "acme") is None
        await mine.close()

    asyncio.run(run())


def test_a_replica_that_is_no_longer_named_has_no_responses(server: RedisServer) -> None:
    async def run() -> None:
        mine = owners(server)
        await mine.add("resp_1", Stored("acme", 1, 5))
        turned = ResponseOwners(settings(server), REPLICAS[::-1], StateSecrets(key=KEY))
        assert await turned.find("resp_1", "acme") == Stored("acme", 0, 5)  # by its address, not by its number
        fewer = ResponseOwners(settings(server), REPLICAS[:1], StateSecrets(key=KEY))
        assert await fewer.find("resp_1", "acme") is None
        for one in (mine, turned, fewer):
            await one.close()

    asyncio.run(run())
