"""A mock server through its own sockets, on a clock that jumps: its times are the profile's, exactly."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from sim.cli import app
from sim.errors import InputError
from sim.live.replicas.engine_metrics import cache_config, read_gauges
from sim.mock_server.app import MockServer, ServerSettings
from sim.mock_server.jumping_loop import JumpingLoop
from sim.mock_server.run import fine_loop, start, stop
from sim.mock_server.slots_file import LOOK_EVERY_S
from sim.mock_server.tokens import chat_tokens, output_text, prefix_of, text_tokens
from sim.scenario.profile import Profile
from sim.studies.mock_calibration import calibrated
from workloads.lengths import Constant

BASE_S, TOKEN_S = 0.02, 1e-3
PROFILE = Profile.model_validate_json(json.dumps({
    "name": "tiny", "max_num_seqs": 4, "max_num_batched_tokens": 512, "kv_blocks": 200, "max_model_tokens": 512,
    "step_time": {
        "kind": "linear", "base_s": BASE_S, "per_prefill_token_s": TOKEN_S, "per_decode_sequence_s": 2e-3,
        "per_context_token_s": 1e-6,
    },
    "request_overhead_s": 0.005,
}))  # fmt: skip


class Client:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self.session = url, session

    async def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=fields) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str) -> str:
        async with self.session.get(self.url + path) as answer:
            return await answer.text()

    async def stream(self, path: str, **fields: Any) -> list[tuple[float, Any]]:
        """Return the events and the times at which they came."""
        loop, found = asyncio.get_running_loop(), list[tuple[float, Any]]()
        async with self.session.post(self.url + path, json=fields | {"stream": True}) as answer:
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    found.append((loop.time(), json.loads(line[6:])))  # each at its own time
        return found


def served(
    what: Callable[[Client], Awaitable[None]], *, profile: Profile = PROFILE, **settings: Any
) -> None:
    async def run() -> None:
        runners, urls = await start(
            ServerSettings(profile=profile, model="tiny", answers=Constant(value=7), **settings)
        )
        try:
            async with aiohttp.ClientSession() as session:
                await what(Client(urls[0], session))
        finally:
            await stop(runners)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(run())


def test_a_stream_comes_at_the_times_of_the_profile() -> None:
    async def look(client: Client) -> None:
        start_s = asyncio.get_running_loop().time()
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = await client.stream(
            "/v1/completions", prompt=list(range(100)), max_tokens=5, ignore_eos=True, stream_options=options
        )
        *tokens, (_, last) = events
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
        assert [event["usage"]["completion_tokens"] for _, event in tokens] == [1, 2, 3, 4, 5]
        assert tokens[-1][1]["choices"][0]["finish_reason"] == "length"
        came_s = [at_s - start_s for at_s, _ in tokens]
        assert came_s[0] == pytest.approx(0.005 + BASE_S + 100 * TOKEN_S, abs=1e-6)
        for i, gap_s in enumerate(b - a for a, b in itertools.pairwise(came_s)):
            assert gap_s == pytest.approx(BASE_S + 2e-3 + 1e-6 * (101 + i), abs=1e-6)

    served(look)


def test_twice_the_speed_is_half_the_time() -> None:
    async def look(client: Client) -> None:
        start_s = asyncio.get_running_loop().time()
        await client.post("/v1/completions", prompt=[1] * 100, max_tokens=1, ignore_eos=True)
        took_s = asyncio.get_running_loop().time() - start_s
        assert took_s == pytest.approx((0.005 + BASE_S + 100 * TOKEN_S) / 2, abs=1e-6)

    served(look, speed=2.0)


def test_a_chat_says_its_role_stops_by_itself_and_counts_as_tokenize_does() -> None:
    messages = [{"role": "user", "content": "how many tokens is this?"}]

    async def look(client: Client) -> None:
        _, counted = await client.post("/tokenize", messages=messages)
        status, answer = await client.post("/v1/chat/completions", model="tiny", messages=messages)
        assert status == 200
        assert answer["usage"]["prompt_tokens"] == counted["count"] == len(chat_tokens(messages))
        assert answer["usage"]["completion_tokens"] == 7
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "stop"
        assert len(text_tokens(choice["message"]["content"])) == 7  # and it has as many when it comes back
        came = await client.stream("/v1/chat/completions", messages=messages, max_tokens=3)
        events = [event for _, event in came]
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [e["choices"][0]["finish_reason"] for e in events] == [None, None, None, "length"]
        assert all("usage" not in event for event in events)

    served(look)


def test_what_a_load_generator_fixes_is_obeyed() -> None:
    async def look(client: Client) -> None:
        forced = {"min_tokens": 11, "stop_token_ids": [100], "logit_bias": {"100": 100}, "ignore_eos": True}
        _, answer = await client.post("/v1/completions", prompt="hello", max_tokens=50, **forced)
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (12, "stop")
        _, answer = await client.post("/v1/completions", prompt="hello", **forced | {"max_tokens": None})
        assert answer["usage"]["completion_tokens"] == 12  # null is no limit; left out it would be 16
        _, answer = await client.post("/v1/completions", prompt="hello", ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == 16
        _, answer = await client.post("/v1/completions", prompt=["one", "two"], n=2, max_tokens=3, ignore_eos=True)
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert answer["usage"]["completion_tokens"] == 12

    served(look)


def test_what_vllm_refuses_is_refused() -> None:
    async def look(client: Client) -> None:
        for path, fields, status in (
            ("/v1/completions", {"prompt": [1] * 600}, 400),
            ("/v1/completions", {"prompt": "a", "max_tokens": 600}, 400),
            ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400),
            ("/v1/completions", {"prompt": []}, 400),
            ("/v1/completions", {"prompt": "a", "min_tokens": 17}, 400),
            ("/v1/completions", {"prompt": "a", "stream_options": 3}, 400),
            ("/v1/chat/completions", {"messages": []}, 400),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "model": "other"}, 404),
            ("/v1/nothing", {}, 404),
        ):
            async with client.session.post(client.url + path, json=fields) as answer:
                assert answer.status == status, (path, fields)
                if path != "/v1/nothing":
                    assert (await answer.json())["error"]["code"] == status
        async with client.session.post(client.url + "/v1/completions", data=b"[" * 100_000) as answer:
            assert answer.status == 400

    served(look)


def test_a_client_that_leaves_frees_its_slot() -> None:
    async def look(client: Client) -> None:
        asked = asyncio.ensure_future(client.stream("/v1/completions", prompt=[1] * 8, max_tokens=500, ignore_eos=True))
        while read_gauges(await client.get("/metrics"))[0] < 1:  # type: ignore[index]
            await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        for _ in range(1000):
            if read_gauges(await client.get("/metrics")) == (0.0, 0.0, 0.0):
                break
            await asyncio.sleep(0.01)
        page = await client.get("/metrics")
        assert read_gauges(page) == (0.0, 0.0, 0.0)
        assert 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"} 1.0' in page

    served(look)


def test_the_metrics_page_is_one_that_the_gateway_and_calibrate_read() -> None:
    async def look(client: Client) -> None:
        await client.post("/v1/completions", prompt=[1] * 8, max_tokens=4, ignore_eos=True)
        page = await client.get("/metrics")
        assert cache_config(page)["num_gpu_blocks"] == "200"
        assert 'vllm:generation_tokens_total{engine="0",model_name="tiny"} 4.0' in page
        assert "vllm:time_to_first_token_seconds_bucket" in page
        _, found = await client.post("/v1/embeddings", input=["one", "two", "one"])
        vectors = [item["embedding"] for item in found["data"]]
        assert vectors[0] == vectors[2] != vectors[1]
        assert found["usage"]["completion_tokens"] == 0

    served(look)


def test_a_prompt_that_begins_alike_is_computed_once() -> None:
    async def look(client: Client) -> None:
        loop, times = asyncio.get_running_loop(), []
        for _ in range(2):
            begun_s = loop.time()
            await client.post("/v1/completions", prompt=list(range(320)), max_tokens=1, ignore_eos=True)
            times.append(loop.time() - begun_s)
        assert times[0] == pytest.approx(0.005 + BASE_S + 320 * TOKEN_S, abs=1e-6)
        assert times[1] == pytest.approx(0.005 + BASE_S + 16 * TOKEN_S, abs=1e-6)  # the last block is computed again

    served(look, profile=PROFILE.model_copy(update={"prefix_caching": True}))
    assert prefix_of(list(range(40)), 16) == prefix_of([*range(32), 7], 16)


@pytest.mark.parametrize(
    "changed",
    [
        {"gpus": 2, "data_parallel": 2},
        {"gpus": 2, "data_parallel": 2, "expert_parallel": True},
        {
            "kv_bytes_per_token": 1e5,
            "disaggregated": {"prefill_engines": 1, "decode_engines": 1, "kv_bytes_per_s": 1e10, "latency_s": 0.001},
        },
        {"scheduling": "flow-prefill"},
        {"async_scheduling": True},
    ],
    ids=["ranks", "ranks in step", "disaggregated", "flow", "async"],
)
def test_every_kind_of_replica_streams_each_token_in_its_time(changed: dict[str, Any]) -> None:
    profile = Profile.model_validate_json(json.dumps(PROFILE.model_dump(mode="json", exclude_none=True) | changed))

    async def look(client: Client) -> None:
        asked = {"prompt": [1] * 50, "max_tokens": 20, "ignore_eos": True}
        for events in await asyncio.gather(*(client.stream("/v1/completions", **asked) for _ in range(3))):
            came_s = [at_s for at_s, _ in events]
            assert len(events) == 20
            assert min(b - a for a, b in itertools.pairwise(came_s)) > 0.9 * BASE_S

    served(look, profile=profile)


def test_a_key_is_asked_for_where_there_is_one() -> None:
    async def look(client: Client) -> None:
        assert (await client.post("/v1/completions", prompt="a"))[0] == 401
        async with client.session.get(client.url + "/v1/models", headers={"Authorization": "Bearer k"}) as answer:
            assert answer.status == 200

    served(look, api_key="k")


def test_calibrate_finds_its_coefficients_within_two_per_cent() -> None:
    result = calibrated(PROFILE.model_copy(update={"max_num_seqs": 16, "kv_blocks": 2000}))
    for name, own, found in result.coefficients():
        assert found == pytest.approx(own, rel=0.02, abs=1e-9), name
    assert result.worst_iteration_error < 0.02


def test_a_calibration_of_another_server_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    slower = PROFILE.model_copy(update={"max_num_seqs": 16, "kv_blocks": 2000})
    real = MockServer.submit

    def late(self: MockServer, generation: Any, prompt: list[int]) -> None:
        self.replica.replica.set_slowdown(1.05, self.replica.now_s())
        real(self, generation, prompt)

    monkeypatch.setattr(MockServer, "submit", late)
    assert calibrated(slower, quick=True).worst_iteration_error > 0.02


def test_the_loop_of_the_real_server_waits_as_it_should() -> None:
    async def wait() -> float:
        loop = asyncio.get_running_loop()
        due_s = loop.time() + 0.0003
        rang = loop.create_future()
        loop.call_at(due_s, lambda: rang.set_result(loop.time()))
        return await rang - due_s

    with asyncio.Runner(loop_factory=fine_loop) as runner:
        late_s = min(runner.run(wait()) for _ in range(50))
    assert 0 <= late_s < 0.0005  # epoll alone is late by the rest of a millisecond: 0.7 ms


def test_output_text_has_as_many_tokens_as_it_should() -> None:
    assert text_tokens(output_text(0, 5)) + text_tokens(output_text(5, 9)) == text_tokens(output_text(0, 9))
    assert len(text_tokens(output_text(0, 9))) == 9


def test_slots_follow_a_file(tmp_path: Path) -> None:
    file = tmp_path / "slots"

    async def look(client: Client) -> None:
        async def all_three() -> float:
            begun_s = asyncio.get_running_loop().time()
            asked = [client.post("/v1/completions", prompt=[1], max_tokens=10, ignore_eos=True) for _ in range(3)]
            await asyncio.gather(*asked)
            return asyncio.get_running_loop().time() - begun_s

        at_once_s = await all_three()
        file.write_text("1\n")
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert await all_three() > 2.5 * at_once_s, "one after the other"
        file.write_text("half writ")
        os.utime(file, (0, 1))
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert await all_three() > 2.5 * at_once_s
        file.write_text("1000")
        os.utime(file, (0, 2))
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert await all_three() == pytest.approx(at_once_s)

    served(look, slots_file=file)


def test_slots_of_several_replicas_are_refused(tmp_path: Path) -> None:
    words = ["mock-server", "--replicas", "2", "--slots-file", str(tmp_path / "slots")]
    said = CliRunner().invoke(app, words)
    assert isinstance(said.exception, InputError)
    assert "says the slots of one replica, and there are 2" in str(said.exception)
