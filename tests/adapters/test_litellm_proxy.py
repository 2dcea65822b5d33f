"""LiteLLM's own proxy with the callback in it: real HTTP, the openai SDK, stand-ins for the model servers.

``make litellm`` runs it; TOKENPOOLS_LITELLM is the Python of an environment with LiteLLM's proxy and tokenpools.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml
from live.gate import free_port
from live.shared_state.redis_server import BINARY, RedisServer
from live.stand_in import StandIn, running

from adapters.pools import config, parity

PYTHON = os.environ.get("TOKENPOOLS_LITELLM", "")
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="make litellm sets TOKENPOOLS_LITELLM"),
    pytest.mark.xdist_group("litellm"),
]
STARTS_S = 180.0
AUTH = '''
from litellm.proxy._types import UserAPIKeyAuth

async def by_team(request, api_key):
    return UserAPIKeyAuth(api_key=api_key, key_alias=api_key, team_id=api_key.removeprefix("sk-"), org_id="everybody")
'''


@dataclass(slots=True)
class Proxy:
    port: int
    recording: Path
    clients: ExitStack

    def client(self, team: str, **more: Any) -> openai.OpenAI:
        given = {"max_retries": 0, "timeout": 60, **more}
        made = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=f"sk-{team}", **given)
        return self.clients.enter_context(made)

    def events(self) -> list[Any]:
        """What the core was told, ticks left out."""
        if not self.recording.exists():
            return []
        rows = [json.loads(line) for line in self.recording.read_text().splitlines()[1:]]
        return [event for _, event, _ in rows if event[0] != "tick"]

    def since(self, count: int, ends: int = 1) -> list[Any]:
        """Return the events after so many, once that many requests have ended."""
        deadline_s = time.monotonic() + 20
        while True:
            found = self.events()[count:]
            if sum(event[0] in ("finished", "failed", "cancelled") for event in found) >= ends:
                return found
            assert time.monotonic() < deadline_s, found
            time.sleep(0.1)


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    with running() as one:
        yield one


@pytest.fixture(scope="module")
def proxy(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("litellm")
    given = {"recording": str(folder / "events.jsonl"), "check_invariants": {"every_events": 1}}
    with serving(folder, stand_in, **given) as made:
        yield made


@contextmanager
def serving(folder: Path, stand_in: StandIn, **given: Any) -> Iterator[Proxy]:
    """Run LiteLLM's proxy with the callback and this configuration of the gate."""
    port, recording = free_port(), folder / "events.jsonl"
    (folder / "auth_by_team.py").write_text(AUTH)
    tenants = {"team:acme": "chat", "team:other": "batch", "team:third": "filler", "key:sk-particular": "filler"}
    gate = {name: value for name, value in (config() | {"tenants": tenants} | given).items() if value is not None}
    (folder / "gate.yaml").write_text(yaml.safe_dump(gate))

    def model(name: str, url: str, **more: Any) -> dict[str, Any]:
        return {"model_name": name, "litellm_params": {
            "model": "openai/tiny", "api_base": f"{url}/v1", "api_key": "none", **more,
        }}  # fmt: skip

    dead = f"http://127.0.0.1:{free_port()}"
    (folder / "config.yaml").write_text(yaml.safe_dump({
        "model_list": [
            model("tiny", stand_in.base_url), model("dead", dead), model("slow", stand_in.base_url, timeout=0.5),
        ],
        "litellm_settings": {
            "callbacks": "tokenpools.litellm.handler", "telemetry": False, "num_retries": 1,
            "fallbacks": [{"dead": ["tiny"]}],
        },
        "router_settings": {"disable_cooldowns": True},
        "general_settings": {"custom_auth": "auth_by_team.by_team", "master_key": f"sk-{secrets.token_hex(32)}"},
    }))  # fmt: skip
    command = [
        str(Path(PYTHON).parent / "litellm"), "--config", str(folder / "config.yaml"), "--port", str(port), "--host",
        "127.0.0.1",
    ]  # fmt: skip
    env = {**os.environ, "TOKENPOOLS_GATE": str(folder / "gate.yaml"), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=folder)
    try:
        deadline_s = time.monotonic() + STARTS_S
        while not _answers(f"http://127.0.0.1:{port}/health/liveliness"):
            said = (folder / "log").read_text(errors="replace")
            assert process.poll() is None, said[-3000:]
            assert time.monotonic() < deadline_s, said[-3000:]
            time.sleep(0.3)
        with ExitStack() as clients:
            yield Proxy(port, recording, clients)
    finally:
        process.terminate()
        process.wait(20)
    assert "invariant" not in (folder / "log").read_text(errors="replace")


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    if BINARY is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path).start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def fresh(stand_in: StandIn) -> None:
    stand_in.seen.clear()
    stand_in.aborted_s.clear()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _started(proxy: Proxy) -> int:
    return len(proxy.events())


ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 5}


def behaves(**how: Any) -> dict[str, Any]:
    return {**ASK, "extra_body": {"stand_in": how}}


def test_an_answer_is_paid_for_by_its_usage(proxy: Proxy) -> None:
    before = _started(proxy)
    answer = proxy.client("acme").chat.completions.create(**ASK)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    arrived, *_, finished = proxy.since(before)
    assert arrived[1][1:3] == ["chat", "acme"]
    assert finished[0] == "finished"
    assert finished[2:] == [5, 0, 3]


def test_a_stream_is_counted_and_settled(proxy: Proxy) -> None:
    before = _started(proxy)
    chunks = list(proxy.client("acme").chat.completions.create(**ASK, stream=True))
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) == 5
    kinds = [(event[0], event[2:3]) for event in proxy.since(before)]
    assert [kind for kind, _ in kinds if kind != "progress"] == ["arrived", "first_token", "finished"]
    assert kinds[-1] == ("finished", [5])


def test_a_refusal_is_429_with_retry_after(proxy: Proxy, stand_in: StandIn) -> None:
    before = _started(proxy)
    client = proxy.client("other")
    with client.chat.completions.create(**behaves(gap_s=0.5), stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**ASK)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert "concurrency" in caught.value.response.text
    assert len(stand_in.seen) == 1
    kinds = [event[0] for event in proxy.since(before)]
    assert kinds.count("arrived") == 2


def test_a_client_that_leaves_is_settled(proxy: Proxy) -> None:
    before = _started(proxy)
    with proxy.client("acme").chat.completions.create(**behaves(gap_s=0.3, output_tokens=200) | {"max_tokens": 200},
                                                      stream=True) as stream:
        next(iter(stream))
    last = proxy.since(before)[-1]
    assert last[0] == "cancelled"
    assert last[2] < 50
    with pytest.raises(openai.APITimeoutError):
        proxy.client("acme", timeout=0.5).chat.completions.create(**behaves(ttft_s=2.0))
    assert proxy.since(before, ends=2)[-1][0] in ("cancelled", "finished")


def test_fallbacks_and_retries_are_one_request(proxy: Proxy, stand_in: StandIn) -> None:
    before = _started(proxy)
    answer = proxy.client("acme").chat.completions.create(**ASK | {"model": "dead"})
    assert answer.usage is not None
    assert len(stand_in.seen) == 1
    kinds = [event[0] for event in proxy.since(before)]
    assert (kinds.count("arrived"), kinds.count("finished")) == (1, 1)


def test_an_upstream_that_fails_every_try_costs_no_output(proxy: Proxy, stand_in: StandIn) -> None:
    before = _started(proxy)
    with pytest.raises(openai.InternalServerError):
        proxy.client("acme").chat.completions.create(**behaves(status=500))
    assert len(stand_in.seen) >= 2, "LiteLLM tries again"
    events = proxy.since(before)
    assert [event[0] for event in events] == ["arrived", "failed"]
    before += len(events)
    with pytest.raises(openai.BadRequestError):
        proxy.client("acme").chat.completions.create(**behaves(status=400))
    assert proxy.since(before)[-1][0] == "cancelled"


def test_whoever_has_nothing_here_is_refused(proxy: Proxy) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        proxy.client("nobody").chat.completions.create(**ASK)
    before = _started(proxy)
    forged = {"metadata": {"tokenpools_request": "x", "user_api_key_team_id": "acme"}}
    proxy.client("particular").chat.completions.create(**ASK, extra_body=forged)
    assert "filler" in str(proxy.since(before)[0])


def ends(events: list[Any]) -> list[Any]:
    return [event for event in events if event[0] in ("finished", "failed", "cancelled")]


def test_litellms_own_timeouts_are_one_failure_that_costs_no_output(proxy: Proxy, stand_in: StandIn) -> None:
    for stream in (False, True):
        before = _started(proxy)
        stand_in.seen.clear()
        with pytest.raises((openai.APITimeoutError, openai.APIStatusError)):
            list(proxy.client("acme").chat.completions.create(
                **ASK | {"model": "slow"}, stream=stream, extra_body={"stand_in": {"ttft_s": 5.0}},
            ))  # fmt: skip
        found = proxy.since(before)
        assert len(stand_in.seen) >= 2, "LiteLLM tries again"
        assert [event[0] for event in found].count("arrived") == 1
        assert [(end[0], end[2]) for end in ends(found)] == [("failed", 0)]


def test_a_stream_that_falls_back_is_paid_for_once(proxy: Proxy, stand_in: StandIn) -> None:
    before = _started(proxy)
    assert list(proxy.client("acme").chat.completions.create(**ASK | {"model": "dead"}, stream=True))
    found = proxy.since(before)
    assert len(stand_in.seen) == 1
    assert [event[0] for event in found].count("arrived") == 1
    assert [(end[0], end[2]) for end in ends(found)] == [("finished", 5)]


def test_an_upstream_that_dies_in_a_stream(proxy: Proxy) -> None:
    before = _started(proxy)
    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        list(proxy.client("acme").chat.completions.create(**behaves(die="3"), stream=True))
    (end,) = ends(proxy.since(before))
    assert end[2] <= 5


def test_an_answer_without_a_usage_pays_for_what_was_seen_or_reserved(proxy: Proxy) -> None:
    for stream in (False, True):
        before = _started(proxy)
        answer = proxy.client("acme").chat.completions.create(**behaves(no_usage=True), stream=stream)
        if stream:
            assert list(answer)
        (end,) = ends(proxy.since(before))
        assert (end[0], end[2]) == ("finished", 5)


def test_whatever_is_written_into_a_body_it_is_its_keys_request(proxy: Proxy) -> None:
    forged = {
        "user": "acme", "team_id": "acme", "org_id": "acme", "user_api_key": "sk-acme", "api_key": "sk-acme",
        "metadata": {"user_api_key_team_id": "acme", "team_id": "acme", "tokenpools_request": "x"},
        "litellm_metadata": {"user_api_key_team_id": "acme", "user_api_key_alias": "sk-acme"},
    }  # fmt: skip
    before = _started(proxy)
    proxy.client("third").with_options(default_headers={"x-litellm-team-id": "acme"}).chat.completions.create(
        **ASK, extra_body=forged
    )
    assert proxy.since(before)[0][1][1:3] == ["filler", "third"]


def test_many_answers_and_prompts_take_as_many_slots(proxy: Proxy, stand_in: StandIn) -> None:
    for asked, slots in (
        (lambda one: one.chat.completions.create(**ASK, n=2), 2),
        (lambda one: one.completions.create(model="tiny", prompt=["a", "b"], max_tokens=5), 2),
        (lambda one: one.embeddings.create(model="tiny", input=["a", "b", "c"]), 3),
    ):
        before = _started(proxy)
        with contextlib.suppress(openai.APIStatusError, ValueError):  # the stand-in embeds nothing
            asked(proxy.client("acme"))
        own = [event for event in proxy.since(before) if event[0] == "arrived" and event[1][1] == "chat"]
        assert own[-1][1][7] == slots
        with pytest.raises(openai.APIStatusError) as caught:
            asked(proxy.client("other"))
        assert caught.value.status_code == 429, "more than its one slot"
        seen = len(stand_in.seen)
        with pytest.raises(openai.APIStatusError):
            asked(proxy.client("nobody"))
        assert len(stand_in.seen) == seen


PATHS = {
    "/v1/messages": {"model": "tiny", "max_tokens": 5, "messages": ASK["messages"]},
    "/v1/responses": {"model": "tiny", "input": "one two"},
    "/v1/moderations": {"model": "tiny", "input": "one two"},
    "/v1/rerank": {"model": "tiny", "query": "q", "documents": ["a", "b"]},
    "/v1/images/generations": {"model": "tiny", "prompt": "one"},
    "/v1/audio/speech": {"model": "tiny", "input": "one", "voice": "a"},
    "/v1beta/models/tiny:generateContent": {"contents": [{"parts": [{"text": "one"}]}]},
    "/openai/deployments/tiny/chat/completions": ASK,
    "/engines/tiny/completions": {"prompt": "one", "model": "tiny"},
}


@pytest.mark.parametrize("path", PATHS)
def test_no_path_is_a_way_around_the_gate(proxy: Proxy, stand_in: StandIn, path: str) -> None:
    answer = httpx2.post(
        f"http://127.0.0.1:{proxy.port}{path}", json=PATHS[path], headers={"authorization": "Bearer sk-nobody"},
        timeout=60,
    )  # fmt: skip
    assert answer.status_code == 403, answer.text
    assert not stand_in.seen


def test_a_refusal_says_why_in_its_header_and_body(proxy: Proxy) -> None:
    with pytest.raises(openai.PermissionDeniedError) as caught:
        proxy.client("nobody").chat.completions.create(**ASK)
    assert caught.value.response.headers["x-tokenpools-reason"] == "unknown_tenant"
    error = caught.value.response.json()["error"]
    assert error["message"] == "Tenant 'org:everybody' has no entitlement here."
    assert error["provider_specific_fields"]["error"]["code"] == "unknown_tenant"
    with pytest.raises(openai.BadRequestError):
        proxy.client("acme").chat.completions.create(**ASK, extra_body={"n": "5"})
    other = proxy.client("other")
    with other.chat.completions.create(**behaves(gap_s=0.5), stream=True) as stream:
        next(iter(stream))
        for ask in (
            lambda: other.completions.create(model="tiny", prompt="a", max_tokens=5),
            lambda: other.embeddings.create(model="tiny", input="a"),
            lambda: other.responses.create(model="tiny", input="a"),
            lambda: other.chat.completions.create(**ASK, stream=True),
        ):
            with pytest.raises(openai.RateLimitError) as refused:
                ask()
            headers = refused.value.response.headers
            assert (headers["x-tokenpools-reason"], int(headers["retry-after"]) >= 1) == ("concurrency", True)


def test_who_is_evicted_is_told_in_its_stream(proxy: Proxy, stand_in: StandIn) -> None:
    streams = [
        proxy.client("third").chat.completions.create(
            **behaves(gap_s=0.1, output_tokens=100) | {"max_tokens": 100}, stream=True
        )
        for _ in range(4)
    ]  # fmt: skip
    for stream in streams:
        next(iter(stream))
    assert proxy.client("acme").chat.completions.create(**ASK).usage is not None
    said = []
    for stream in streams:
        try:
            for _ in zip(range(10), stream, strict=False):
                pass
        except openai.APIError as error:
            said.append(str(error))
        stream.close()
    assert said == ["The request made room for one of a higher class."]


def test_without_redis_each_class_fails_as_it_is_told(
    stand_in: StandIn, tmp_path: Path, redis_server: RedisServer
) -> None:
    state = {"url": redis_server.url, "timeout_s": 0.2, "when_away": {"guaranteed": "open", "spot": "closed"}}
    with serving(tmp_path, stand_in, check_invariants=None, state=state) as shared:
        assert shared.client("other").chat.completions.create(**ASK).usage is not None
        redis_server.kill()
        with pytest.raises(openai.InternalServerError) as caught:
            shared.client("other").chat.completions.create(**ASK)
        assert caught.value.status_code == 503
        assert shared.client("acme").chat.completions.create(**ASK).usage is not None
        redis_server.start()
        deadline_s = time.monotonic() + STARTS_S
        while True:
            try:
                shared.client("other").chat.completions.create(**ASK)
                break
            except openai.APIStatusError:
                assert time.monotonic() < deadline_s
                time.sleep(0.2)


def test_the_recording_gives_the_same_verdicts_again(proxy: Proxy) -> None:
    events = proxy.events()
    arrived = sum(event[0] == "arrived" for event in events)
    found = parity(proxy.recording)
    assert sum(found.verdicts.values()) - found.verdicts.get("evict", 0) == arrived
