"""The end of a connection is not that of a message, and one timeout does not mean two things."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from live.gate import Gate, gateway
from live.stand_in import Behaviour, StandIn, running

from sim.live.gateway.sse import Splitter, event, split
from sim.live.gateway.stream_reader import StreamReader
from sim.live.observability.observer import Ended

pytestmark = pytest.mark.usefixtures("books")
TOP = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def gate(stand_in: StandIn):  # type: ignore[no-untyped-def]
    with gateway(stand_in) as one:
        yield one


def choice(text: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"id": "c", "object": "text_completion", "created": 1, "model": "tiny",
            "choices": [{"index": index, "text": text, "finish_reason": finish}]}


def stream(*values: dict[str, Any] | str) -> str:
    """Return an answer that ends by a plain FIN."""
    said = [one if isinstance(one, str) else f"data: {json.dumps(one)}\n\n" for one in values]
    return TOP + "".join(said)


def last(gate: Gate) -> Any:
    gate.balanced()
    return gate.logs[-1]


def test_a_connection_that_ends_within_an_answer_is_a_failure(gate: Gate) -> None:
    answer = gate.ask(stream=True, max_tokens=500, stand_in={"raw": stream(*[choice(f" w{n}") for n in range(5)])})
    assert answer.events[-1]["error"]["code"] == "upstream_failed"
    assert answer.events[-2]["choices"][0]["finish_reason"] == "error"
    log = last(gate)
    assert (log.outcome, log.output_tokens) == (Ended.FAILED, 5)


@pytest.mark.parametrize("raw", [
    stream(choice(" a"), choice("", "stop")), stream(choice(" a"), "data: [DONE]\n\n"),
], ids=["finish_reason", "done"])  # fmt: skip
def test_an_answer_that_says_that_it_ends_is_whole(gate: Gate, raw: str) -> None:
    assert gate.ask(stream=True, stand_in={"raw": raw}).status == 200
    assert last(gate).outcome is Ended.FINISHED


@pytest.mark.parametrize("tail", ["data: [DONE]", "data: [DONE]\n", "data:[DONE]\r\n", "\n"])
def test_the_last_event_needs_no_blank_line_where_nothing_follows(gate: Gate, tail: str) -> None:
    answer = gate.ask(stream=True, stand_in={"raw": stream(choice(" a"), choice("", "stop"), tail)})
    assert b"error" not in answer.body
    assert answer.body.rstrip().endswith(tail.strip().encode() or b"}")
    assert last(gate).outcome is Ended.FINISHED
    answer = gate.ask(stream=True, stand_in={"raw": stream(choice(" a"), 'data: {"choices": [')})
    assert (answer.events[-1]["error"]["code"], last(gate).outcome) == ("upstream_failed", Ended.FAILED)


def test_an_empty_reason_is_no_end(gate: Gate) -> None:
    raw = stream(*[choice(f" w{n}", "") for n in range(5)])
    gate.ask(stream=True, max_tokens=500, stand_in={"raw": raw})
    log = last(gate)
    assert (log.outcome, log.output_tokens) == (Ended.FAILED, 5)


def test_an_answer_that_says_twice_that_it_ends_does_not_end_another(gate: Gate) -> None:
    raw = stream(choice("a"), choice("b", index=1), choice("", "length"), choice("", "stop"))
    gate.ask(stream=True, n=2, stand_in={"raw": raw})
    assert last(gate).outcome is Ended.FAILED


@pytest.mark.parametrize(("values", "outcome", "tokens"), [
    ([choice("a"), "data: [DONE]\n\n"], Ended.FINISHED, 1), ([choice("a"), choice("b")], Ended.FAILED, 2),
    ([{"type": "transcript.text.delta", "delta": "a"}], Ended.FAILED, 1),
    ([{"type": "transcript.text.delta", "delta": "a"},
      {"type": "transcript.text.done", "usage": {"type": "tokens", "input_tokens": 9, "output_tokens": 7}}],
     Ended.FINISHED, 7),
    (["data: plain words\n\n"], Ended.FINISHED, 1),
], ids=["done", "cut", "cut-typed", "done-typed", "plain"])  # fmt: skip
def test_a_stream_of_a_transcription_ends_as_it_says(
    gate: Gate, values: list[Any], outcome: Ended, tokens: int
) -> None:
    gate.ask({"stand_in": {"raw": stream(*values)}}, path="/v1/audio/transcriptions")
    log = last(gate)
    assert (log.outcome, log.output_tokens) == (outcome, tokens)


def test_of_several_answers_each_has_to_end(gate: Gate) -> None:
    raw = stream(choice("a"), choice("b", index=1), choice("", "stop"))
    gate.ask(stream=True, n=2, stand_in={"raw": raw})
    assert last(gate).outcome is Ended.FAILED


@pytest.mark.parametrize(("kind", "outcome"), [
    ("response.completed", Ended.FINISHED), ("response.incomplete", Ended.FINISHED),
    ("response.failed", Ended.FAILED), ("", Ended.FAILED),
])  # fmt: skip
def test_responses_end_as_they_say(gate: Gate, kind: str, outcome: Ended) -> None:
    response = {"id": "resp_x", "status": kind.rpartition(".")[2], "usage": {"input_tokens": 3, "output_tokens": 2}}
    values = [
        {"type": "response.created", "response": {"id": "resp_x"}}, {"type": "response.in_progress", "response": {}},
        {"type": "response.output_text.delta", "delta": "w0"}, {"type": "response.output_text.delta", "delta": "w1"},
    ]  # fmt: skip
    raw = stream(*values, *([{"type": kind, "response": response}] if kind else []))
    gate.ask({"model": "tiny", "input": "a", "stream": True, "stand_in": {"raw": raw}}, path="/v1/responses")
    log = last(gate)
    assert (log.outcome, log.output_tokens) == (outcome, 2)


@pytest.mark.parametrize(("status", "outcome"), [
    ("completed", Ended.FINISHED), ("incomplete", Ended.FINISHED), ("failed", Ended.FAILED),
])  # fmt: skip
def test_a_response_in_one_piece_ends_as_it_says(gate: Gate, status: str, outcome: Ended) -> None:
    body = json.dumps({"id": "resp_y", "status": status, "usage": {"input_tokens": 3, "output_tokens": 2}})
    raw = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    answer = gate.ask({"model": "tiny", "input": "a", "stand_in": {"raw": raw}}, path="/v1/responses")
    assert (answer.status, answer.json["status"]) == (200, status)
    assert last(gate).outcome is outcome


def test_half_an_answer_that_ends_with_its_connection_is_a_failure(gate: Gate) -> None:
    raw = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    assert gate.ask(stand_in={"raw": raw + '{"choices": [{"te'}).code == "upstream_failed"
    assert gate.ask(stand_in={"raw": raw + '{"choices": []}'}).status == 200


def test_frames_that_carry_no_output_are_no_tokens() -> None:
    reader = StreamReader("responses", False, False)
    reader.read(event({"type": "response.created", "response": {"id": "r"}}))
    reader.read(event({"type": "response.output_item.added", "item": {}}))
    assert (reader.events, reader.complete) == (0, False)
    reader = StreamReader("messages", False, False)
    reader.read(event({"type": "message_start", "message": {}}) + event({"type": "ping"}))
    assert reader.events == 0
    reader.read(event({"type": "content_block_delta", "delta": {"text": "a"}}))
    assert (reader.events, reader.complete) == (1, False)
    reader.read(event({"type": "message_stop"}))
    assert reader.complete
    reader = StreamReader("chat", False, False)
    reader.read(event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
    assert reader.events == 0
    reader.read(event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]}))
    assert reader.events == 1


@pytest.mark.parametrize("blank", ["\n\n", "\r\n\r\n", "\r\r", "\n\r\n", "\r\n\n", "\r\n\r"], ids=repr)
def test_a_blank_line_is_any_two_ends_of_lines(blank: str) -> None:
    data = f"data: a{blank}data: b{blank}data: c{blank}".encode()
    assert len([one for one in split(data) if one.strip()]) == 3
    splitter, out = Splitter(100), b""
    for n in range(len(data)):
        out += splitter.feed(data[n : n + 1])
    assert out.count(b"data:") >= 2  # the last may wait for the other half of its end
    out += splitter.end()
    assert out + splitter.rest == data
    assert not splitter.rest.strip()


def test_deep_json_in_an_event_is_passed_on(gate: Gate) -> None:
    deep = 'data: {"usage": ' + "[" * 20_000 + "]" * 20_000 + "}\n\n"
    answer = gate.ask(stream=True, stand_in={"raw": stream(choice(" a"), deep, choice("", "stop"))})
    assert answer.status == 200
    assert deep.encode() in answer.body
    assert last(gate).outcome is Ended.FINISHED


@pytest.mark.parametrize("line", [
    "x-odd: a\x01b", "x-odd: a\x7fb", "x-odd: a\x0bb", "x-odd: a\x00b", "x\x01odd: a", "no header at all",
], ids=repr)  # fmt: skip
def test_control_bytes_from_an_upstream_are_502(gate: Gate, line: str) -> None:
    raw = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{line}\r\ncontent-length: 2\r\n\r\n{{}}"
    answer = gate.ask(stand_in={"raw": raw})
    assert (answer.status, answer.code) == (502, "bad_upstream_answer")
    assert last(gate).outcome is Ended.FAILED


@pytest.mark.parametrize(("said", "heard"), [
    ("0", "1"), ("-5", "1"), ("1e9", "1"), ("999999999", "1"), ("soon", "1"), ("nan", "1"), ("", "1"),
    ("Wed, 21 Oct 2099 07:28:00 GMT", "1"), ("Wed, 21 Oct 2015 07:28:00 GMT", "1"), ("7", "7"), ("2.5", "2.5"),
])  # fmt: skip
def test_a_time_to_come_back_that_nobody_could_obey_is_a_second(gate: Gate, said: str, heard: str) -> None:
    answer = gate.ask(stand_in={"status": 503, "retry_after": said})
    assert answer.headers["retry-after"] == heard


@pytest.mark.parametrize(("lines", "heard"), [
    ("retry-after-ms: 250", ("1", "250")), ("retry-after: 5\r\nretry-after-ms: -3", ("5", None)),
    ("retry-after: 0\r\nretry-after-ms: 2500", ("3", "2500")), ("retry-after: 5\r\nretry-after-ms: nan", ("5", None)),
    ("retry-after: Fri, 31 Dec 9999 23:59:59 -2359", ("1", "1000")),
    ("retry-after: Mon, 01 Jan 0001 00:00:00 +2359", ("1", "1000")),
])  # fmt: skip
def test_both_times_to_come_back_can_be_obeyed(gate: Gate, lines: str, heard: tuple[str, str | None]) -> None:
    raw = f"HTTP/1.1 429 -\r\n{lines}\r\ncontent-length: 2\r\n\r\n{{}}"
    answer = gate.ask(stand_in={"raw": raw})
    assert (answer.headers["retry-after"], answer.headers.get("retry-after-ms")) == heard


def test_a_whole_answer_may_take_longer_than_a_first_token_and_is_computed_once() -> None:
    timeouts = {"first_byte_s": 0.3, "whole_s": 1.5, "idle_s": 0.5}
    pool = {"on_failure": "retry", "router": "round-robin"}
    with running() as one, running() as two, gateway(one, two, pool=pool, timeouts=timeouts) as gate:

        def asked() -> int:
            return sum(seen.method == "POST" for stand_in in (one, two) for seen in stand_in.seen)

        assert gate.ask(stand_in={"ttft_s": 0.8}).status == 200
        assert asked() == 1
        answer = gate.ask(stand_in={"ttft_s": 9.0})
        assert (answer.status, answer.code) == (504, "upstream_timeout")
        assert asked() == 2  # what still computes is not asked for again elsewhere
        one.behaviour = two.behaviour = Behaviour(silent_after=0)
        assert gate.ask(stream=True).status == 504
        gate.balanced()
        assert gate.logs[-1].tries == 2  # a stream that does not begin may begin elsewhere


def test_a_role_does_not_put_off_the_first_token() -> None:
    with running() as upstream, gateway(upstream, timeouts={"first_byte_s": 0.5, "idle_s": 5.0}) as gate:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "stream": True,
                "stand_in": {"role_first": True, "role_s": 3.0}}
        began_s = time.monotonic()
        answer = gate.ask(body, path="/v1/chat/completions")
        assert time.monotonic() - began_s < 2.5
        assert answer.events[-1]["error"]["code"] == "upstream_timeout"
