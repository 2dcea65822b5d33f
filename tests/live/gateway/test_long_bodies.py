"""Bodies that are read in another process: the same answers, and what becomes of them when that process ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from live.gate import Gate, gateway
from live.stand_in import running

from sim.live.gateway.body_process import BodyProcess, answer_to
from sim.live.gateway.endpoints import CHAT, COMPLETIONS, Endpoints
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.prompt_tokens import EstimatingCounter
from sim.live.gateway.request_body import Endpoint, ParsedBody, read_body
from sim.live.gateway.settings import Estimate, Limits

LONG = 150_000
"""Token ids that make a body which is read apart."""


@pytest.fixture(scope="module")
def process() -> Iterator[BodyProcess]:
    one = BodyProcess(Limits(), Estimate())
    yield one
    one.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    with running() as stand_in, gateway(stand_in) as one:
        yield one


def found(endpoint: Endpoint, body: bytes) -> Any:
    try:
        return read_body(endpoint, body, 16, 2048)
    except ApiError as error:
        return error.status, error.code, error.message, error.param


PARTS = {"role": "user", "content": [{"type": "text", "text": "a b"}, {"type": "image_url", "image_url": {"url": "x"}}]}
BODIES = [
    (COMPLETIONS, {"model": "m", "prompt": [1, 2, 3], "max_tokens": 7, "stream": True}),
    (COMPLETIONS, {"model": "m", "prompt": [[1, 2], [3]], "n": 3, "priority": 4, "truncate_prompt_tokens": -1}),
    (COMPLETIONS, {"model": "m", "prompt": ["a b c", "ü" * 9], "stream_options": {"include_usage": True}}),
    (CHAT, {"model": "m", "messages": [PARTS, {"role": "system", "content": "x"}], "tools": [{"a": 1}],
            "cache_salt": "s"}),
    (COMPLETIONS, {"model": "m"}), (COMPLETIONS, {"model": "m", "prompt": "a", "kv_transfer_params": {}}),
    (CHAT, {"model": "m", "messages": "x"}), (COMPLETIONS, {"model": "\ud800", "prompt": "a"}),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "fields"), BODIES)
def test_the_process_finds_what_a_thread_finds(process: BodyProcess, endpoint: Endpoint, fields: Any) -> None:
    body = json.dumps(fields).encode()
    here = found(endpoint, body)
    try:
        there: Any = process.read(endpoint, body)
    except ApiError as error:
        there = (error.status, error.code, error.message, error.param)
    if not isinstance(here, ParsedBody):
        assert there == here
        return
    count = EstimatingCounter(Estimate()).count_now(endpoint.shape, here.fields)
    for name in ParsedBody.__slots__:
        if name not in ("fields", "counted", "where"):
            assert getattr(there, name) == getattr(here, name)
    assert dict(there.where) == dict(here.where)
    assert there.counted == (count.tokens, 1 if fields.get("truncate_prompt_tokens") == -1 else count.least_tokens)
    assert there.fields == {}


@pytest.mark.parametrize("body", [b"{", b'{"a": 1, "a": 2}', b"\xff{}", b"[" * 200_000, b'{"model": NaN}', b"[]"])
def test_what_is_no_request_is_refused_in_the_same_words(process: BodyProcess, body: bytes) -> None:
    with pytest.raises(ApiError) as error:
        process.read(COMPLETIONS, body)
    assert (error.value.status, error.value.code, error.value.message, error.value.param) == found(COMPLETIONS, body)


def test_every_path_that_is_read_has_a_place_in_the_table(process: BodyProcess) -> None:
    for path in ("/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/rerank", "/tokenize"):
        endpoint = Endpoints().find(path)
        assert endpoint is not None
        body = json.dumps({"model": "m", "input": "a", "max_tokens": 1, "messages": []}).encode()
        assert process.read(endpoint, body).model == "m"


def test_where_prompts_are_counted_elsewhere_only_texts_come_back() -> None:
    asked = json.dumps({"path": "/v1/completions", "choices": 16, "prompts": 9, "rule": None, "salt": None}).encode()
    ids = json.loads(answer_to(asked, b'{"model": "m", "prompt": [5, 6, 7], "rest": [[], []]}'))["parsed"]
    assert (ids["counted"], ids["fields"]) == ([3, 3], {})
    text = json.loads(answer_to(asked, b'{"model": "m", "prompt": "a b", "rest": [[], []]}'))["parsed"]
    assert (text["counted"], text["fields"]) == (None, {"model": "m", "prompt": "a b"})


def ids(count: int = LONG, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": list(range(count)), "max_tokens": 4, **more}


def test_a_long_body_is_served_and_counted_exactly(gate: Gate) -> None:
    answer = gate.ask(ids())
    assert answer.status in (200, 400)
    gate.balanced()
    assert gate.logs[-1].prompt_tokens == LONG
    assert gate.ask({"model": "tiny", "prompt": list(range(LONG)), "x": [1]} | {"n": 99}).code == "too_many_choices"
    short = gate.ask(prompt="a b c")
    assert short.status == 200


def test_a_process_that_was_killed_is_begun_again_and_its_body_read_all_the_same(gate: Gate) -> None:
    gate.ask(ids())
    process = gate.service.app.intake._process
    (first,) = [process._process]
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    first.wait(10)
    gate.ask(ids())
    gate.balanced()
    assert gate.logs[-1].prompt_tokens == LONG
    gate.ask(ids())
    assert process._process is not None
    assert process._process.pid != first.pid
    gate.balanced()


def test_it_ends_with_its_gateway_and_at_the_end_of_its_pipe() -> None:
    with running() as stand_in, gateway(stand_in) as gate:
        gate.ask(ids())
        held = gate.service.app.intake._process._process
        assert held is not None
        assert held.poll() is None
    assert held.wait(20) == 0


def test_a_tokenizer_elsewhere_is_asked_for_texts_and_not_for_ids() -> None:
    with running() as stand_in, gateway(stand_in, prompt_tokens={"kind": "tokenize"}) as gate:
        gate.ask(ids())
        assert not [one for one in stand_in.seen if one.path == "/tokenize"]
        gate.balanced()
        assert gate.logs[-1].prompt_tokens == LONG
