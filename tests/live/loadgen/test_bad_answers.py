"""Answers that no server should give: each costs the attempt that it answers, and never the run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from live.stand_in import Behaviour, running
from openai._streaming import SSEDecoder
from typer.testing import CliRunner

from sim.cli import app
from sim.errors import InputError, RunError
from sim.live.loadgen.attempt import LiveAttempt
from sim.live.loadgen.completions_client import Completions, PromptKind
from sim.live.loadgen.event_stream import BadAnswerError, EventDecoder, read_event
from sim.live.loadgen.iteration_timing import Engine, Plan, Probe, Seen
from sim.live.loadgen.replay import count_by_usage, uncounted
from sim.records.schema import Outcome

TOKEN = json.dumps({"choices": [{"index": 0, "text": " w", "finish_reason": None}]}).encode()
LAST = json.dumps({"choices": [{"index": 0, "text": " w", "finish_reason": "length"}]}).encode()


def sse(*events: bytes) -> bytes:
    return b"".join(b"data: " + event + b"\n\n" for event in events)


def usage(tokens: Any) -> bytes:
    return json.dumps({"choices": [], "usage": tokens}).encode()


GOOD = sse(TOKEN, TOKEN, TOKEN, TOKEN, LAST, usage({"completion_tokens": 5}), b"[DONE]")
NONSENSE = {
    "an event of 600 kB": sse(TOKEN, json.dumps({"choices": [{"text": "x" * 600_000}]}).encode(), b"[DONE]"),
    "an event without an end": sse(TOKEN) + b"data: " + b"x" * 3_000_000,
    "a number": sse(TOKEN, b"1", b"[DONE]"),
    "a list": sse(b"[]", b"[DONE]"),
    "text": sse(b'"no"', b"[DONE]"),
    "null": sse(b"null", b"[DONE]"),
    "usage that is a list": sse(TOKEN, usage([5]), b"[DONE]"),
    "usage that is text": sse(TOKEN, usage({"completion_tokens": "5"}), b"[DONE]"),
    "usage below zero": sse(TOKEN, usage({"completion_tokens": -5}), b"[DONE]"),
    "usage beyond counting": sse(TOKEN, usage({"completion_tokens": 10**30}), b"[DONE]"),
    "usage of 5000 digits": sse(TOKEN, b'{"usage": {"completion_tokens": ' + b"9" * 5000 + b"}}", b"[DONE]"),
    "choices that are a number": sse(b'{"choices": 7}', b"[DONE]"),
    "a choice that is a number": sse(b'{"choices": [7]}', b"[DONE]"),
    "no UTF-8": sse(TOKEN, b'{"choices": [{"text": "\xff\xfe"}]}', b"[DONE]"),
    "JSON 100,000 deep": sse(TOKEN, b"[" * 100_000, b"[DONE]"),
    "half an event": sse(TOKEN) + b'data: {"choi',
    "an error of a strange shape": sse(b'{"error": [[[1]]]}', b"[DONE]"),
    "an error with a code beyond counting": sse(b'{"error": {"code": 1e400}}', b"[DONE]"),
    "an error with a huge status": sse(b'{"error": {"code": 99999999999999, "message": {"a": 1}}}', b"[DONE]"),
    "nothing": b"",
}


def head(body: bytes, more: str = "", status: int = 200) -> bytes:
    kind = "content-type: text/event-stream\r\nconnection: close\r\n"
    return f"HTTP/1.1 {status} -\r\n{kind}{more}content-length: {len(body)}\r\n\r\n".encode() + body


HEADS = {
    "a body that is no gzip": head(b"no gzip", "content-encoding: gzip\r\n"),
    "a header of 100 kB": head(b"", f"x: {'x' * 100_000}\r\n"),
    "a refusal as a list": head(b"[" * 50_000, status=429),
    "a failure of 2 MB": head(b"x" * 2_000_000, status=500),
}


async def served(answer: Callable[[int], bytes], use: Callable[[str], Coroutine[Any, Any, Any]]) -> Any:
    """Give ``use`` the address of a server that answers its n-th request with ``answer(n)``."""
    numbers = count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            length = int(request.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or b"0")
            await reader.readexactly(length)
            writer.write(answer(next(numbers)))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        return await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


def attempts_of(answer: Callable[[int], bytes], times: int = 2) -> list[LiveAttempt]:
    attempts = [LiveAttempt(f"chat-{n}", 1, 0, 0, 0.0, 0.0, 7, 5, 5) for n in range(times)]

    async def use(url: str) -> None:
        async with Completions(url, origin_s=asyncio.get_running_loop().time(), timeout_s=5.0) as completions:
            for attempt in attempts:
                await completions.ask(attempt, b"{}", None)

    asyncio.run(served(answer, use))
    return attempts


@pytest.mark.parametrize("name", [*NONSENSE, *HEADS])
def test_a_bad_answer_is_one_failed_attempt(name: str) -> None:
    bad = head(NONSENSE[name]) if name in NONSENSE else HEADS[name]
    first, second = attempts_of(lambda n: head(GOOD) if n else bad)
    assert first.outcome in (Outcome.FAILED, Outcome.REFUSED)
    assert first.finish_s > 0
    assert len(first.error) <= 320
    assert "\n" not in first.error
    assert 0 <= first.http_status <= 599
    assert first.delivered_tokens <= 1
    assert (second.outcome, second.delivered_tokens, second.usage_tokens, second.events) == (Outcome.FINISHED, 5, 5, 5)


def test_an_unknown_key_ends_the_run_at_its_first_request_and_fails_an_attempt_later() -> None:
    refused = head(b'{"error": {"message": "no"}}', status=401)
    with pytest.raises(InputError, match="does not know it"):
        attempts_of(lambda _: refused)
    first, second = attempts_of(lambda n: refused if n else head(GOOD))
    assert (first.outcome, second.outcome, second.http_status) == (Outcome.FINISHED, Outcome.REFUSED, 401)


def test_a_replay_goes_on_after_every_kind_of_nonsense(tmp_path: Path) -> None:
    models = json.dumps({"data": [{"id": "tiny"}]}).encode()
    bodies = [head(body) for body in NONSENSE.values()] + list(HEADS.values())
    scenario = {
        "version": 1, "seed": 1,
        "pool": {"replicas": 1, "profile": {"max_num_seqs": 64, "kv_blocks": 4096, "max_num_batched_tokens": 512,
                 "step_time": {"kind": "linear", "base_s": 0.01}},
                 "entitlements": [{"name": "chat", "service_class": "elastic", "baseline": {"slots": 8}}]},
        "workload": [{"entitlement": "chat", "arrivals": {"kind": "even", "rate_per_s": 50}, "prompt_tokens": 3,
                      "output_tokens": 5, "until_s": 1.0}],
        "policies": ["none"],
    }  # fmt: skip
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(scenario))

    def answer(n: int) -> bytes:
        if n < 3:  # /admin/state, /v1/models, /metrics
            return head(models) if n == 1 else head(b"", status=404)
        return bodies[n - 3] if n - 3 < len(bodies) else head(GOOD)

    async def use(url: str) -> Any:
        command = ["replay", str(file), "--base-url", url, "--out", str(tmp_path / "out")]
        return await asyncio.to_thread(CliRunner().invoke, app, command)

    done = asyncio.run(served(answer, use))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    outcomes = pq.read_table(tmp_path / "out" / "requests.parquet").column("outcome").to_pylist()
    assert len(outcomes) == 50
    assert outcomes.count("finished") == 50 - len(bodies)


def test_what_broke_off_is_counted_by_the_usage_of_what_finished() -> None:
    whole = LiveAttempt("a", 1, 0, 0, 0.0, 0.0, 7, 40, 40, outcome=Outcome.FINISHED, events=5, usage_tokens=40)
    cut = LiveAttempt("b", 1, 0, 0, 0.0, 0.0, 7, 40, 40, outcome=Outcome.CANCELLED, events=2, delivered_tokens=2)
    assert count_by_usage([whole, cut]) == 8.0
    assert cut.delivered_tokens == 16
    silent = LiveAttempt("c", 1, 0, 0, 0.0, 0.0, 7, 40, 40, outcome=Outcome.FINISHED, events=5)
    assert (uncounted([whole, cut]), uncounted([whole, cut, silent])) == (0, 1)


@pytest.mark.parametrize(
    ("behaviour", "code", "said"),
    [
        (Behaviour(chunk_tokens=2), 0, ""),
        (Behaviour(chunk_tokens=2, no_usage=True), 1, "answers without usage"),
        (Behaviour(no_usage=True), 0, ""),
    ],
)
def test_a_replay_whose_tokens_nobody_counted_is_not_valid(
    behaviour: Behaviour, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.live.loadgen.replay.MOST_LAG_S", math.inf)  # a busy machine is another matter
    monkeypatch.setattr("sim.cli.replay.sys.exit", lambda status: (_ for _ in ()).throw(SystemExit(status)))
    file = tmp_path / "scenario.yaml"
    workload = {"entitlement": "chat", "arrivals": {"kind": "even", "rate_per_s": 20}, "prompt_tokens": 3,
                "output_tokens": 5, "until_s": 0.5}  # fmt: skip
    file.write_text(yaml.safe_dump({
        "version": 1, "pool": {"replicas": 1, "profile": "a10g-llama-2-7b-slora", "entitlements": [
            {"name": "chat", "service_class": "elastic", "baseline": {"slots": 8}}]},
        "workload": [workload], "policies": ["none"],
    }))  # fmt: skip
    with running(behaviour=behaviour) as server:
        command = ["replay", str(file), "--base-url", server.base_url, "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(app, command)
    assert done.exit_code == code, done.output
    assert said in done.output


def probed(answer: Callable[[int], bytes], told: list[str]) -> Seen:
    engine = Engine(max_num_seqs=4, max_num_batched_tokens=256, max_model_tokens=1024, kv_tokens=9000)

    async def use(url: str) -> Seen:
        async with Completions(url, origin_s=asyncio.get_running_loop().time()) as completions:
            probe = Probe(completions, PromptKind(model="m"), engine)
            return await probe.measure(Plan(decodes=[], prompts=[8], repeats=2), told.append)

    seen: Seen = asyncio.run(served(answer, use))
    return seen


def stream(tokens: int, per_event: int = 1) -> bytes:
    events = [TOKEN] * (tokens // per_event - 1)
    return head(sse(*events, LAST, usage({"completion_tokens": tokens}), b"[DONE]"))


ASKED = [40, 1, 1, 24, 1, 24, 1]  # the stream that is watched alone, two prompts alone, two beside a stream


@pytest.mark.parametrize("name", NONSENSE)
def test_a_calibration_takes_a_measurement_again_that_a_bad_answer_cost(name: str) -> None:
    def answer(n: int) -> bytes:
        return head(NONSENSE[name]) if n == 1 else stream(ASKED[n - (n > 1)])

    told: list[str] = []
    assert len(probed(answer, told).idle) == 2
    assert not any("nothing more" in words for words in told)


def test_a_calibration_refuses_a_server_that_sends_several_tokens_an_event() -> None:
    with pytest.raises(RunError, match="one token"):
        probed(lambda _: stream(4, per_event=2), [])
    with pytest.raises(RunError, match="failed, status 200"):
        probed(lambda _: head(sse(b"1")), [])


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
pieces = st.one_of(
    st.sampled_from(["data: ", "data:", "data", ":", "event: x", "id: 7", "\n", "\r\n", "\r", "\n\n", "[DONE]", " "]),
    texts,
)


@settings(max_examples=300)
@given(st.lists(pieces, max_size=30), st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_the_decoder_reads_what_openais_library_reads(parts: list[str], sizes: list[int]) -> None:
    data = "".join(parts).encode()
    if data.startswith(b"\xef\xbb\xbf"):
        return  # the standard leaves a byte order mark out, the library does not
    theirs = [event.data for event in SSEDecoder().iter_bytes(iter([data])) if event.data]
    decoder, ours, at = EventDecoder(), [], 0
    for number in count():
        if at >= len(data):
            break
        size = sizes[number % len(sizes)]
        ours += decoder.feed(data[at : at + size])
        at += size
    assert [one.decode() for one in ours if one] == theirs


@given(st.binary(max_size=200))
def test_an_event_is_understood_or_refused(data: bytes) -> None:
    with contextlib.suppress(BadAnswerError):
        read_event(data)
