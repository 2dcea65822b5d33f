"""The real Envoy with the processor in it: HTTP clients, stand-ins for the model servers, all modes of the filter.

``make envoy`` runs it; TOKENPOOLS_ENVOY is the program.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from live.stand_in import StandIn, running

from adapters import envoy_proxy
from adapters.envoy_proxy import ASK, ENVOY, LONG_S, ROOT, Proxy, behaves

pytestmark = envoy_proxy.MARKS


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    with running() as one:
        yield one


@pytest.fixture(scope="module", params=["FULL_DUPLEX_STREAMED", "STREAMED", "BUFFERED"])
def proxy(request: Any, stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with envoy_proxy.proxy(tmp_path_factory.mktemp("envoy"), request.param, stand_in.port) as made:
        yield made


@pytest.fixture(autouse=True)
def fresh(stand_in: StandIn) -> None:
    stand_in.seen.clear()
    stand_in.aborted_s.clear()


DESCRIBE = """
import json, sys
def described(file):
    found = {}
    def message(one):
        found[one.full_name] = [[f.name, f.number, f.type, f.label if hasattr(f, "label") else 0] for f in one.fields]
        for inner in one.nested_types: message(inner)
        for kind in one.enum_types: found[kind.full_name] = [[v.name, v.number] for v in kind.values]
    for one in file.message_types_by_name.values(): message(one)
    return found
print(json.dumps(described(FILE.DESCRIPTOR)))
"""
FILES = {
    "base": "envoy.config.core.v3", "external_processor": "envoy.service.ext_proc.v3",
    "http_status": "envoy.type.v3", "processing_mode": "envoy.extensions.filters.http.ext_proc.v3",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_our_part_of_the_messages_is_a_part_of_envoys(name: str) -> None:
    def described(python: str, package: str) -> dict[str, list[list[Any]]]:
        code = f"import {package}.{name}_pb2 as FILE{DESCRIBE}"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        found: dict[str, list[list[Any]]] = json.loads(done.stdout)
        return found

    ours = described(sys.executable, "sim.adapters.envoy.protos")
    theirs = described(str(Path(ENVOY).parent / "python"), FILES[name])
    assert ours
    for message, fields in ours.items():
        assert all(field in theirs[message] for field in fields), message


def test_answers_and_streams_are_paid_for_by_their_usage(proxy: Proxy, stand_in: StandIn) -> None:
    before = len(proxy.events())
    assert proxy.client("acme").chat.completions.create(**ASK).usage is not None
    chunks = list(proxy.client("acme").chat.completions.create(**ASK, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == [" w0", " w1", " w2", " w3", " w4"]
    assert all(chunk.usage is None for chunk in chunks), "nobody asked for it but us"
    told = proxy.since(before, ends=2)
    assert [event[2:] for event in told if event[0] == "finished"] == [[5, 0, 3]] * 2
    assert stand_in.seen[-1].json["stream_options"] == {"include_usage": True}


def test_a_large_body_arrives_whole(proxy: Proxy, stand_in: StandIn) -> None:
    messages = [{"role": "user", "content": "x" * 40} for _ in range(5000)]
    headers = {"x-tenant": "acme"}
    answer = httpx2.post(f"{proxy.url}/v1/chat/completions", json=ASK | {"messages": messages}, headers=headers)
    assert answer.status_code == 200
    assert stand_in.seen[-1].json == ASK | {"messages": messages}
    text = {"model": "tiny", "input": "x" * 20_000}
    httpx2.post(f"{proxy.url}/v1/embeddings", json=text, headers=headers)
    assert stand_in.seen[-1].json == text


def test_who_is_refused_never_reaches_a_replica(proxy: Proxy, stand_in: StandIn) -> None:
    with proxy.client("other").chat.completions.create(**behaves(gap_s=0.5), stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            proxy.client("other").chat.completions.create(**ASK)
        assert int(caught.value.response.headers["retry-after"]) >= 1
    with pytest.raises(openai.PermissionDeniedError):
        proxy.client("nobody").chat.completions.create(**ASK)
    forged = httpx2.post(f"{proxy.url}/v1/chat/completions", json=ASK, headers={
        "x-tenant": "nobody", "x-gateway-destination-endpoint": f"127.0.0.1:{stand_in.port}",
    })  # fmt: skip
    assert forged.status_code == 403
    assert [one for one in stand_in.seen if one.body] == stand_in.seen[:1]


def test_a_client_that_leaves_is_settled_and_its_replica_stops(proxy: Proxy, stand_in: StandIn) -> None:
    before = len(proxy.events())
    ask = behaves(gap_s=0.2, output_tokens=200) | {"max_tokens": 200}
    with proxy.client("acme").chat.completions.create(**ask, stream=True) as stream:
        next(iter(stream))
    last = proxy.since(before)[-1]
    assert (last[0], last[2] < 50) == ("cancelled", True)
    with pytest.raises(openai.APITimeoutError):
        proxy.client("acme", timeout=0.3).chat.completions.create(**behaves(ttft_s=30.0))
    assert proxy.since(before, ends=2)[-1][0] == "cancelled"


def test_an_upstream_that_fails_costs_no_output(proxy: Proxy) -> None:
    for how, kind in (
        ({"status": 500}, "failed"), ({"status": 400}, "cancelled"), ({"die": "before"}, "failed"),
    ):  # fmt: skip
        before = len(proxy.events())
        with pytest.raises(openai.APIStatusError):
            proxy.client("acme").chat.completions.create(**behaves(**how))
        assert proxy.since(before)[-1][0] == kind, how
    before = len(proxy.events())
    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        list(proxy.client("acme").chat.completions.create(**behaves(die="3"), stream=True))
    last = proxy.since(before)[-1]
    assert last[0] in ("failed", "cancelled")


def test_who_is_evicted_hears_of_it_and_the_replica_stops(proxy: Proxy, stand_in: StandIn) -> None:
    ask = {"json": ASK | {"max_tokens": 100, "stream": True, "stand_in": {"gap_s": 0.1, "output_tokens": 100}}}

    async def go() -> str:
        async with httpx2.AsyncClient(timeout=LONG_S) as client:
            async def fill() -> str:
                text = ""
                try:
                    async with client.stream("POST", f"{proxy.url}/v1/chat/completions", **ask,
                                             headers={"x-tenant": "third"}) as answer:
                        async for piece in answer.aiter_text():
                            text += piece
                            begun.set()
                except httpx2.HTTPError:
                    text += "broken off"
                return text

            begun = asyncio.Event()
            fillers = [asyncio.ensure_future(fill()) for _ in range(4)]
            await asyncio.wait_for(begun.wait(), LONG_S)
            while stand_in.running < 4:
                await asyncio.sleep(0.01)
            answer = await client.post(f"{proxy.url}/v1/chat/completions", json=ASK, headers={"x-tenant": "acme"})
            assert answer.status_code == 200
            done, _ = await asyncio.wait(fillers, return_when=asyncio.FIRST_COMPLETED, timeout=LONG_S)
            for one in fillers:
                one.cancel()
            await asyncio.gather(*fillers, return_exceptions=True)
            return next(iter(done)).result()

    text = asyncio.run(go())
    assert "preempted" in text or text.endswith("broken off")
    deadline_s = time.monotonic() + LONG_S
    while len(stand_in.aborted_s) < 4:
        assert time.monotonic() < deadline_s, stand_in.aborted_s
        time.sleep(0.05)


def test_a_processor_that_goes_away_fails_closed_and_comes_back(proxy: Proxy, stand_in: StandIn) -> None:
    ask = behaves(gap_s=0.2, output_tokens=200) | {"max_tokens": 200}
    streams = [proxy.client("acme").chat.completions.create(**ask, stream=True) for _ in range(2)]
    for stream in streams:
        next(iter(stream))
    proxy.stop_processor()
    with pytest.raises(openai.APIStatusError) as caught:
        proxy.client("other").chat.completions.create(**ASK)
    assert caught.value.status_code == 503
    seen = len(stand_in.seen)
    proxy.start_processor()
    assert len(stand_in.seen) == seen, "nobody was served meanwhile"
    assert proxy.client("acme").chat.completions.create(**ASK).usage is not None
    for stream in streams:
        stream.close()
