"""Doors that share their pool in Redis: limits hold across processes, and classes fail open or closed without it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from live.shared_state.redis_server import BINARY, RedisServer

from adapters.ext_proc import Seen, request_body, request_headers, take
from adapters.pools import config
from sim.adapters.admission.config import gate_config
from sim.adapters.admission.door import Door
from sim.adapters.envoy.config import ext_proc_config
from sim.adapters.envoy.protos.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from sim.adapters.envoy.server import SERVICE, ExtProcServer
from sim.adapters.litellm.hooks import Hooks
from sim.errors import ScenarioError
from tokenpools import Gate, RefusedError, SyncGate

pytestmark = [
    pytest.mark.skipif(BINARY is None, reason="redis-server is not installed"), pytest.mark.xdist_group("redis"),
]  # fmt: skip
ASK: dict[str, Any] = {"prompt_tokens": 10, "max_tokens": 20}
LONG_S = 60.0


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path).start()
    yield server
    server.kill()


def shared(redis: RedisServer, **more: Any) -> dict[str, Any]:
    given = config(state={"url": redis.url, "timeout_s": 2.0, **more})
    del given["check_invariants"]
    return given


async def until(says: Callable[[], bool]) -> None:
    """Wait for something that the other end will have heard."""
    async with asyncio.timeout(LONG_S):
        while not says():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("share", ["replicated", "leases"])
def test_a_limit_holds_for_both(redis: RedisServer, share: str) -> None:
    async def go() -> None:
        given = shared(redis, share=share, ttl_s=1.0)
        async with Gate(given) as one, Gate(given) as other:
            lease = await one.admit(tenant="other", **ASK)
            with pytest.raises(RefusedError) as caught:
                await other.admit(tenant="other", **ASK)
            assert caught.value.status == 429
            lease.finish({"prompt_tokens": 10, "completion_tokens": 5})
            if share == "replicated":
                await until(lambda: other.core.pool.entitlements["batch"].worked_tokens == 15)
                (await other.admit(tenant="other", **ASK)).cancel()

    asyncio.run(go())


def test_without_redis_each_class_fails_as_it_is_told(redis: RedisServer) -> None:
    async def go() -> None:
        given = shared(redis, timeout_s=0.2, when_away={"guaranteed": "open", "spot": "closed"})
        async with Gate(given) as gate:
            first = await gate.admit(tenant="acme", **ASK)
            redis.kill()
            async with await gate.admit(tenant="acme", **ASK) as lease:
                assert lease.is_open, "guaranteed goes on within its baseline"
                with pytest.raises(RefusedError) as caught:
                    await gate.admit(tenant="other", **ASK)
                assert (caught.value.status, caught.value.reason) == (503, "state_unavailable")
            first.finish({"prompt_tokens": 10, "completion_tokens": 1})
            redis.start()
            await until(lambda: gate.core.pool.entitlements["chat"].in_flight == 0)
            (await gate.admit(tenant="acme", **ASK)).cancel()
            assert len(gate) == 0

    asyncio.run(go())


def test_nobody_is_let_in_before_the_state_was_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.adapters.admission.shared.JOIN_S", 0.05)

    async def go() -> None:
        async with Gate(shared(RedisServer(tmp_path))) as gate:
            with pytest.raises(RefusedError) as caught:
                await gate.admit(tenant="acme", **ASK)
            assert caught.value.reason == "state_unavailable"

    asyncio.run(go())


def test_litellms_hooks_share_it_too(redis: RedisServer) -> None:
    class Auth:
        key_alias = "particular"

    async def go() -> None:
        given = shared(redis) | {"tenants": {"key:particular": "batch"}}
        hooks = Hooks(given, answer=lambda error: error)
        async with Gate(given) as gate:
            data: dict[str, Any] = {"messages": [{"role": "user", "content": "one"}], "max_tokens": 5}
            await asyncio.create_task(_keep(hooks, Auth(), data, gate))
        await hooks.door.close()

    async def _keep(hooks: Hooks, auth: Any, data: dict[str, Any], gate: Gate) -> None:
        await hooks.async_pre_call_hook(auth, None, data, "acompletion")
        with pytest.raises(RefusedError):
            await gate.admit(tenant="other", **ASK)
        await hooks.async_post_call_success_hook(data, auth, {"usage": {"prompt_tokens": 3, "completion_tokens": 2}})
        await until(lambda: gate.core.pool.entitlements["batch"].worked_tokens == 5)

    asyncio.run(go())


def test_two_processors_of_envoys_share_it_too(redis: RedisServer) -> None:
    async def ask(server: ExtProcServer, tenant: str) -> tuple[Any, Seen]:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        call = channel.stream_stream(
            f"/{SERVICE}/Process", request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )()  # fmt: skip
        seen = Seen()
        for message in (request_headers(tenant), request_body()):
            await call.write(message)
        while not (seen.status or seen.upstream):
            take([await asyncio.wait_for(call.read(), LONG_S)], seen)
        return (call, channel), seen

    async def go() -> None:
        found = ext_proc_config(shared(redis) | {"tenant_header": "x-tenant", "listen": "127.0.0.1:0"})
        servers = [ExtProcServer(found, Door(found)) for _ in range(2)]
        for one in servers:
            await one.start()
        held, seen = await ask(servers[0], "other")
        assert seen.upstream
        refused, seen = await ask(servers[1], "other")
        assert (seen.status, seen.body["error"]["reason"]) == (429, "concurrency"), "one slot, and the other has it"
        held[0].cancel()
        await until(lambda: servers[1].admissions.core.pool.entitlements["batch"].in_flight == 0)
        again, seen = await ask(servers[1], "other")
        assert seen.upstream
        redis.kill()
        away, seen = await ask(servers[0], "other")
        assert (seen.status, seen.body["error"]["reason"]) == (503, "state_unavailable")
        kept, seen = await ask(servers[0], "acme")
        assert seen.upstream, "guaranteed goes on within its baseline"
        for call, channel in (held, refused, again, away, kept):
            call.cancel()
            await channel.close()
        for one in servers:
            await one.stop(0)
            assert len(one.admissions) == 0

    asyncio.run(go())


@pytest.mark.parametrize("share", ["replicated", "leases"])
def test_threads_share_it_too(redis: RedisServer, share: str) -> None:
    given = shared(redis, share=share, ttl_s=1.0)
    with SyncGate(given) as one, SyncGate(given) as other:
        with one.admit(tenant="other", **ASK) as lease:
            with pytest.raises(RefusedError) as caught:
                other.admit(tenant="other", **ASK)
            assert caught.value.status == 429
            lease.progress(3)
            lease.finish({"prompt_tokens": 10, "completion_tokens": 5})
        assert len(one) == 0
        evictable = [other.admit(tenant="third", **ASK) for _ in range(4)] if share == "replicated" else []
        evicted = threading.Event()
        for held in evictable:
            held.on_evict(evicted.set)
        if evictable:
            with one.admit(tenant="acme", **ASK):
                assert evicted.wait(LONG_S), "the other process's request makes room"
            for held in evictable:
                held.cancel()
        left = one.admit(tenant="acme", **ASK)
    left.finish()
    with pytest.raises(RefusedError) as caught:
        one.admit(tenant="acme", **ASK)
    assert caught.value.reason == "shutting_down"
    one.close()


def test_many_threads_at_once_leave_nothing(redis: RedisServer) -> None:
    with SyncGate(shared(redis)) as gate:
        def work() -> None:
            for _ in range(10):
                try:
                    with gate.admit(tenant="third", **ASK) as lease:
                        lease.progress(1)
                except RefusedError:
                    pass

        threads = [threading.Thread(target=work) for _ in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(LONG_S)
        assert len(gate) == 0
        asyncio.run(until(lambda: gate.core.pool.entitlements["filler"].in_flight == 0))


def test_what_does_not_go_with_it_is_refused(tmp_path: Path) -> None:
    given = shared(RedisServer(tmp_path))
    with pytest.raises(ScenarioError, match="recording"):
        gate_config(given | {"recording": "events.jsonl"})
    with pytest.raises(ScenarioError, match=r"state\.share"):
        gate_config(given | {"policy": "azure-ptu", "state": {"url": given["state"]["url"], "share": "leases"}})
