"""Tokens are not events, and what a client did not wait for was generated all the same."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from live.gate import Gate, gateway, head
from live.stand_in import Behaviour, StandIn, running

from sim.live.observability.observer import Ended

pytestmark = pytest.mark.usefixtures("books")


@pytest.fixture(scope="module")
def vllm() -> Iterator[StandIn]:
    with running(owned_by="vllm") as one:
        yield one


@pytest.fixture(scope="module")
def gate(vllm: StandIn):  # type: ignore[no-untyped-def]
    with gateway(vllm) as one:
        yield one


def hang_up(gate: Gate, after_s: float, **fields: Any) -> Any:
    """Ask for a stream, leave, and return what the gateway wrote down."""
    body = json.dumps({"model": "tiny", "prompt": "a b", "max_tokens": 4000, "stream": True, **fields}).encode()
    with gate.connect() as connection:
        connection.sendall(head(f"content-length: {len(body)}") + body)
        time.sleep(after_s)
    gate.balanced()
    log = gate.logs[-1]
    assert log.outcome is Ended.CANCELLED
    return log


def test_the_usage_of_each_event_is_asked_for_and_shown_only_to_who_asked(gate: Gate, vllm: StandIn) -> None:
    plain = gate.ask(stream=True, max_tokens=5)
    assert vllm.seen[-1].json["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert b"usage" not in plain.body
    assert len(plain.events) == 5
    final = gate.ask(stream=True, max_tokens=5, stream_options={"include_usage": True})
    assert [("usage" in one) for one in final.events] == [False] * 5 + [True]
    every = gate.ask(
        stream=True, max_tokens=5, stream_options={"include_usage": True, "continuous_usage_stats": True}
    )
    assert [one["usage"]["completion_tokens"] for one in every.events] == [1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("answers", [1, 2])
def test_several_tokens_an_event_count_as_several(gate: Gate, answers: int) -> None:
    log = hang_up(gate, 0.5, n=answers, stand_in={"chunk_tokens": 8, "gap_s": 0.04})
    assert log.output_tokens >= 8 * 10 * answers * 0.7  # about twelve events of eight tokens


def test_without_such_usage_events_are_taken_for_what_they_carried_before() -> None:
    slow = {"base_s": 10.0, "kind": "linear"}
    profile = {"step_time": slow, "max_num_seqs": 16, "max_num_batched_tokens": 2048, "kv_blocks": 4000,
               "block_tokens": 16}
    with running() as plain, gateway(plain, pool={"profile": profile}) as gate:
        for _ in range(2):
            gate.ask(stream=True, max_tokens=80, stand_in={"chunk_tokens": 8, "gap_s": 0.01})
        log = hang_up(gate, 0.4, stand_in={"chunk_tokens": 8, "gap_s": 0.04})
        assert log.output_tokens >= 8 * 8 * 0.7


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_before_anything_came_pays_for_the_time(gate: Gate, stream: bool) -> None:
    log = hang_up(gate, 0.5, stream=stream, stand_in={"ttft_s": 30.0})
    assert 40 <= log.output_tokens <= 400  # 6 ms a token, as the profile says, or as the last streams took
    book = gate.service.gateway.core.pool.entitlements["chat"]
    assert gate.call(lambda: book.worked_tokens) > 0


def test_who_hangs_up_late_on_a_one_piece_answer_never_pays_more_than_was_asked_for(gate: Gate) -> None:
    log = hang_up(gate, 0.4, stream=False, max_tokens=20, stand_in={"ttft_s": 30.0})
    assert log.output_tokens == 20


def test_a_limit_cannot_be_passed_by_hanging_up() -> None:
    limits = {"kind": "rate-limit", "tokens_per_min": 1000}
    with running() as plain, gateway(plain, policy=limits) as gate:
        let_in = 0
        for _ in range(10):
            body = json.dumps({
                "model": "tiny", "prompt": "a", "max_tokens": 300, "stand_in": {"ttft_s": 30.0},
            }).encode()  # fmt: skip
            with gate.connect() as connection:
                connection.settimeout(2)
                connection.sendall(head(f"content-length: {len(body)}") + body)
                connection.settimeout(1.0)
                try:
                    refused = b" 429 " in connection.recv(100)
                except TimeoutError:
                    refused = False
                let_in += not refused
            gate.balanced()
        assert let_in <= 7  # each costs 150 tokens and more: a second at 6 ms a token


def test_the_role_is_no_first_token(gate: Gate) -> None:
    messages = [{"role": "user", "content": "a"}]
    body = {"model": "tiny", "messages": messages, "stream": True, "max_tokens": 3,
            "stand_in": {"role_first": True, "role_s": 0.3}}
    assert gate.ask(body, path="/v1/chat/completions").status == 200
    gate.balanced()
    log = gate.logs[-1]
    assert log.first_token_s - log.arrival_s >= 0.25
    assert log.output_tokens == 3


def test_usage_is_never_more_than_could_be_asked_for() -> None:
    whole = json.dumps({"choices": [], "usage": {"prompt_tokens": 10**9, "completion_tokens": 10**9}})
    raw = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(whole)}\r\n\r\n{whole}"
    with running() as liar, gateway(liar) as gate:
        assert gate.ask(max_tokens=7, stand_in={"raw": raw}).status == 200
        gate.balanced()
        assert (gate.logs[-1].output_tokens, gate.logs[-1].counted_prompt_tokens) == (7, 4000 * 16)


@pytest.mark.parametrize("stream", [False, True])
def test_a_usage_of_nothing_beside_an_answer_is_none(gate: Gate, stream: bool) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    text = {"choices": [{"index": 0, "text": "w0 w1 w2 w3", "finish_reason": None if stream else "stop"}]}
    said = json.dumps({**text, "usage": usage})
    kind = "text/event-stream" if stream else "application/json"
    if stream:
        said = f"data: {json.dumps(text)}\n\n" * 5 + f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
        said += "data: [DONE]\n\n"
    raw = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(said)}\r\n\r\n{said}"
    assert gate.ask(stream=stream, max_tokens=100, stand_in={"raw": raw}).status == 200
    gate.balanced()
    assert gate.logs[-1].output_tokens >= 5
    assert gate.logs[-1].counted_prompt_tokens is None  # as it was estimated
    empty = json.dumps({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}], "usage": usage})
    raw = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(empty)}\r\n\r\n{empty}"
    gate.ask(max_tokens=100, stand_in={"raw": raw})
    gate.balanced()
    assert gate.logs[-1].output_tokens == 0


def test_a_default_is_reserved_and_not_written_unless_it_is_wanted() -> None:
    with running() as upstream, gateway(upstream, metering={"write_default_limit": True}) as gate:
        gate.ask(b'{"prompt":"x",  "model":"tiny"} ')
        assert upstream.seen[-1].body == b'{"prompt":"x",  "model":"tiny","max_tokens": 256}'
        gate.ask(b'{"model":"tiny","max_tokens": null ,"x":1e999,"prompt":"\\ud800"}')
        assert upstream.seen[-1].body == b'{"model":"tiny","max_tokens": 256 ,"x":1e999,"prompt":"\\ud800"}'
    with running() as upstream, gateway(upstream) as gate:
        upstream.behaviour = Behaviour(output_tokens=None)
        gate.ask(b'{"model":"tiny","max_tokens":null,"prompt":"x"}')
        assert upstream.seen[-1].body == b'{"model":"tiny","max_tokens":null,"prompt":"x"}'
        gate.balanced()
        book = gate.service.gateway.core.pool.entitlements["chat"]
        assert gate.call(lambda: book.demanded_tokens) == 256 + 1


def test_each_tenant_may_have_a_cache_of_its_own() -> None:
    with running() as upstream, gateway(upstream, metering={"cache_salt": True}) as gate:
        salts = []
        for key in ("chat", "batch", "chat"):
            gate.ask({"model": "tiny", "prompt": "a", "cache_salt": "theirs"}, key=key)
            salts.append(upstream.seen[-1].json["cache_salt"])
        assert salts[0] == salts[2] != salts[1]
        assert "theirs" not in salts
