"""The external processor over gRPC: calls that break off, requests that wait, restarts, health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from typer.testing import CliRunner

from adapters.ext_proc import (
    DUPLEX,
    STREAMED,
    Seen,
    request_body,
    request_headers,
    streamed_exchange,
    take,
)
from adapters.pools import assert_empty, config, parity
from policies.api import Cancelled, Event, Failed, Finished
from sim.adapters.admission.door import Door
from sim.adapters.envoy.config import ext_proc_config
from sim.adapters.envoy.protos.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from sim.adapters.envoy.server import SERVICE, ExtProcServer
from sim.cli import app
from sim.errors import RunError, ScenarioError

LONG_S = 60.0
MODES = pytest.mark.parametrize("mode", [STREAMED, DUPLEX], ids=["streamed", "duplex"])


class Pool:
    """A processor that listens, and a channel to it."""

    def __init__(self, server: ExtProcServer, channel: grpc.aio.Channel, heard: asyncio.Queue[Event]) -> None:
        self.server = server
        self.channel = channel
        self._heard = heard

    def call(self) -> Any:
        return self.channel.stream_stream(
            f"/{SERVICE}/Process", request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )()

    async def next(self, kind: type[Event] | tuple[type[Event], ...]) -> Any:
        """Return the next event of a kind that the core hears."""
        while True:
            event = await asyncio.wait_for(self._heard.get(), LONG_S)
            if isinstance(event, kind):
                return event


@asynccontextmanager
async def listening(**given: Any) -> AsyncIterator[Pool]:
    heard: asyncio.Queue[Event] = asyncio.Queue()
    found = ext_proc_config(
        config(given.pop("policy", "token-pool"), tenant_header="x-tenant", listen="127.0.0.1:0", **given)
    )
    door = Door(found, recorders=[lambda _now_s, event, _said: heard.put_nowait(event)])
    server = ExtProcServer(found, door)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Pool(server, channel, heard)
    finally:
        await server.stop(0)
        assert_empty(door.admissions)


def with_pool(test: Callable[[Pool], Awaitable[None]], **given: Any) -> None:
    async def go() -> None:
        async with listening(**given) as pool:
            await test(pool)

    asyncio.run(go())


async def say(call: Any, messages: Sequence[ProcessingRequest], answers: Sequence[int]) -> Seen:
    """Send messages one by one and take so many answers to each."""
    seen = Seen()
    for message, count in zip(messages, answers, strict=False):
        await call.write(message)
        for _ in range(count):
            take([await asyncio.wait_for(call.read(), LONG_S)], seen, message)
    return seen


COUNTS = {STREAMED: (1, 1, 1, 1, 1, 1, 1), DUPLEX: (0, 0, 2, 1, 1, 1, 1)}
"""How many answers there are to each message of `streamed_exchange`."""


@MODES
def test_an_exchange_from_its_beginning_to_its_end(mode: Any) -> None:
    async def go(pool: Pool) -> None:
        call = pool.call()
        seen = await say(call, streamed_exchange(mode), COUNTS[mode])
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        assert seen.client.endswith(b"[DONE]\n\n")
        assert (await pool.next(Finished)).output_tokens == 3

    with_pool(go)


@MODES
@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_a_call_that_breaks_off_at_any_message_is_settled(mode: Any, how: str) -> None:
    messages, counts = streamed_exchange(mode), COUNTS[mode]

    async def go(pool: Pool) -> None:
        for count in range(1, len(messages)):
            call = pool.call()
            await say(call, messages[:count], counts)
            if how == "cancelled":
                call.cancel()
            else:
                await call.done_writing()
            if count >= 3:
                end = await pool.next((Cancelled, Finished, Failed))
                assert isinstance(end, Cancelled), count
                assert end.prompt_begun
            await asyncio.wait_for(call.code(), LONG_S)
        assert len(pool.server.admissions) == 0

    with_pool(go)


def test_a_filter_that_only_watches_is_told_why_not(caplog: pytest.LogCaptureFixture) -> None:
    async def go(pool: Pool) -> None:
        call, message = pool.call(), request_headers()
        message.observability_mode = True
        await call.write(message)
        assert await asyncio.wait_for(call.code(), LONG_S) is grpc.StatusCode.FAILED_PRECONDITION
        assert "observability_mode" in await call.details()
        assert len(pool.server.admissions) == 0

    with_pool(go)
    assert "observability_mode" in caplog.text


def test_who_is_held_waits_and_is_served_or_leaves() -> None:
    async def go(pool: Pool) -> None:
        calls = [pool.call() for _ in range(6)]
        for call in calls[:4]:
            await say(call, ASKS, (0, 2))
        for call in calls[4:]:
            waiting = await say(call, ASKS, (0, 1))
            assert waiting.asked_for_time
        assert len(pool.server.admissions.core.held) == 2
        calls[4].cancel()
        assert not (await pool.next(Cancelled)).prompt_begun
        calls[0].cancel()
        await pool.next(Cancelled)
        answers = [await asyncio.wait_for(calls[5].read(), LONG_S) for _ in range(2)]
        assert take(answers, Seen()).upstream, "it goes on once there is room"
        for call in (*calls[1:4], calls[5]):
            await call.done_writing()
            await pool.next(Cancelled)

    with_pool(go, policy=QUEUE)


def test_who_is_held_for_too_long_is_refused() -> None:
    async def go(pool: Pool) -> None:
        calls = [pool.call() for _ in range(4)]
        for call in calls:
            await say(call, ASKS, (0, 2))
        seen = await say(pool.call(), ASKS, (0, 2))
        assert (seen.status, seen.body["error"]["code"]) == (429, "queue_timeout")
        for call in calls:
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF

    with_pool(go, policy=QUEUE, held_s=0.05)


ASKS = [request_headers("acme"), request_body()]
QUEUE = "fair-queue"


@MODES
def test_an_eviction_before_the_answer_is_told_unasked(mode: Any) -> None:
    async def go(pool: Pool) -> None:
        messages = streamed_exchange(mode, "third")[:3]
        calls = [pool.call() for _ in range(4)]
        for call in calls:
            await say(call, messages, COUNTS[mode])
        first = pool.call()
        await say(first, [request_headers("acme"), request_body()], (0, 2))
        reads = [asyncio.ensure_future(call.read()) for call in calls]
        done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED, timeout=LONG_S)
        assert [take([one.result()], Seen()).status for one in done] == [503]
        for call in (first, *calls):
            call.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        for _ in range(4):
            await pool.next(Cancelled)

    with_pool(go)


@MODES
def test_a_processor_that_stops_under_load_settles_everything(mode: Any, tmp_path: Path) -> None:
    recording = tmp_path / "events.jsonl"
    messages, counts = streamed_exchange(mode, "third"), COUNTS[mode]

    async def go() -> None:
        for _ in range(2):  # and another one in its place begins with nothing
            recording.unlink(missing_ok=True)
            async with listening(recording=str(recording)) as pool:
                calls = [pool.call() for _ in messages]
                for count, call in enumerate(calls):
                    await say(call, messages[: 1 + count % 5], counts)
                assert len(pool.server.admissions) >= 2
                await pool.server.stop(0)
                assert len(pool.server.admissions) == 0
                for call in calls:
                    assert await asyncio.wait_for(call.code(), LONG_S) is not grpc.StatusCode.OK

    asyncio.run(go())
    found = parity(recording)
    assert sum(found.verdicts.values()) >= 2


def test_health_says_when_the_end_is_near_and_reflection_what_there_is() -> None:
    async def go(pool: Pool) -> None:
        health = health_pb2_grpc.HealthStub(pool.channel)
        for service in ("", SERVICE):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watched = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2_grpc.ServerReflectionStub(pool.channel).ServerReflectionInfo()
        await asked.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {one.name for one in (await asked.read()).list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= listed
        await asked.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
        assert (await asked.read()).file_descriptor_response.file_descriptor_proto
        asked.cancel()
        stopping = asyncio.ensure_future(pool.server.stop(LONG_S))
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watched.cancel()
        await stopping

    with_pool(go)


def test_an_address_that_is_taken_is_an_error() -> None:
    async def go(pool: Pool) -> None:
        taken = ext_proc_config(config(tenant_header="x-tenant", listen=f"127.0.0.1:{pool.server.port}"))
        other = ExtProcServer(taken, Door(taken))
        with pytest.raises(RunError, match="cannot listen on"):
            await other.start()
        await other.stop(0)

    with_pool(go)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tenant_header": None}, "tenant_header: is missing, and there are no keys"),
        ({"keys": [{"name": "k", "entitlement": "chat", "sha256": "0" * 64}]}, "tenant_header: stands beside keys"),
        ({"destinations": ["127.0.0.1:1"]}, "destinations: are 1, but the pool has 2 replicas"),
        ({"listen": "nowhere"}, "listen"),
        ({"tenants": {"x": "nobody"}}, "tenants.x"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    shipped = Path(__file__).parents[2] / "deploy/envoy/ext-proc.yaml"
    done = CliRunner().invoke(app, ["ext-proc", str(shipped), "--check"])
    assert done.output == f"{shipped}: good; 2 replicas, 2 destinations\n"
    file = tmp_path / "changed.yaml"
    given = {name: one for name, one in (yaml.safe_load(shipped.read_text()) | changed).items() if one is not None}
    file.write_text(yaml.safe_dump(given))
    with pytest.raises(ScenarioError) as caught:
        ext_proc_config(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
