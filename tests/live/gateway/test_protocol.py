from __future__ import annotations

import json

import pytest
from live.gate import Gate, gateway
from live.stand_in import StandIn

from sim.live.observability.observer import Ended

pytestmark = pytest.mark.usefixtures("books")


@pytest.fixture(scope="module")
def gate(stand_in: StandIn):  # type: ignore[no-untyped-def]
    with gateway(stand_in) as one:
        yield one


def test_an_answer_in_one_piece_comes_through(gate: Gate) -> None:
    answer = gate.ask(max_tokens=3)
    assert (answer.status, answer.json["choices"][0]["text"]) == (200, "w0 w1 w2")
    assert answer.headers["x-request-id"].startswith("req-")
    gate.balanced()
    log = gate.logs[-1]
    assert (log.tenant, log.entitlement, log.key_name) == ("acme", "chat", "key-chat")
    assert (log.outcome, log.http_status, log.output_tokens, log.counted_prompt_tokens) == (Ended.FINISHED, 200, 3, 3)
    assert log.arrival_s <= log.forwarded_s <= log.finish_s


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("asked", [None, False, True])
def test_a_stream_comes_through_and_usage_only_if_asked(
    gate: Gate, stand_in: StandIn, path: str, asked: bool | None
) -> None:
    body = {"model": "tiny", "max_tokens": 3, "stream": True, "messages": [{"role": "user", "content": "a b"}]}
    body["prompt"] = "a b"
    if asked is not None:
        body["stream_options"] = {"include_usage": asked, "other": 1}
    answer = gate.ask(body, path=path)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert len(answer.events) == (4 if asked else 3)
    assert ("usage" in answer.events[-1]) == bool(asked)
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert stand_in.seen[-1].json["stream_options"]["include_usage"] is True
    if asked is not None:
        assert stand_in.seen[-1].json["stream_options"]["other"] == 1
    gate.balanced()
    assert (gate.logs[-1].output_tokens, gate.logs[-1].counted_prompt_tokens) == (3, 2)


def test_the_body_goes_through_byte_for_byte_but_for_what_is_added(gate: Gate, stand_in: StandIn) -> None:
    whole = b'{ "model":"tiny" ,"prompt":"\\u00e9 x", "max_tokens":2,  "odd": {"deep":[1, 2.50, 1e3]} }  '
    gate.ask(whole)
    assert stand_in.seen[-1].body == whole
    without = b'{"prompt":"x",  "model":"tiny"} '
    gate.ask(without)
    assert stand_in.seen[-1].body == without  # the default is reserved, not written
    streamed = b'{"model":"tiny","stream_options": {"other":1e999} ,"prompt":"\\ud800 \xc3\xa9","stream":true}'
    gate.ask(streamed)
    assert stand_in.seen[-1].body == streamed.replace(b'{"other":1e999}', b'{"other":1e999,"include_usage": true}')


def test_headers_go_through_but_for_keys_and_hops(gate: Gate, stand_in: StandIn) -> None:
    gate.ask(headers={"x-own": "1", "x-tokenpools-class": "guaranteed", "connection": "x-hop", "x-hop": "1"})
    seen = stand_in.seen[-1].headers
    assert seen["x-own"] == "1"
    assert not {"authorization", "x-tokenpools-class", "x-hop"} & set(seen)
    assert seen["x-request-id"] == gate.logs[-1].request_id


def test_other_paths_pass_unchanged(gate: Gate, stand_in: StandIn) -> None:
    body = b"\x00\x01 not JSON \xff"
    answer = gate.ask(body, path="/v1/audio/transcriptions?a=%20b&c")
    assert stand_in.seen[-1].body == body
    assert stand_in.seen[-1].path == "/v1/audio/transcriptions?a=%20b&c"
    assert answer.status == 200
    assert gate.ask(path="/v1/models", method="GET").json["data"][0]["id"] == "tiny"


@pytest.mark.parametrize("path", ["/v1/../sleep", "/sleep", "/v1//completions", "/v1/completions/", "/metrics/x",
                                  "/v1/load_lora_adapter", "/v1/%2e%2e/sleep"])
def test_what_is_nobodys_business_is_not_there(gate: Gate, stand_in: StandIn, path: str) -> None:
    before = len(stand_in.seen)
    answer = gate.ask(path=path)
    assert (answer.status, answer.code) == (404, "not_found")
    assert len(stand_in.seen) == before


def test_both_spellings_of_the_limit_and_the_number_of_choices_count(gate: Gate) -> None:
    messages = [{"role": "user", "content": "a b"}]
    gate.ask({"model": "tiny", "messages": messages, "max_tokens": 2, "max_completion_tokens": 5, "n": 3},
             path="/v1/chat/completions")
    gate.balanced()
    assert gate.logs[-1].max_output_tokens == 15
    gate.ask({"model": "tiny", "prompt": ["a", "b c"], "max_tokens": 2, "n": 2})
    gate.balanced()
    assert gate.logs[-1].max_output_tokens == 8
    gate.ask({"model": "tiny", "prompt": [1, 2, 3, 4, 5]})
    gate.balanced()
    assert (gate.logs[-1].max_output_tokens, gate.logs[-1].prompt_tokens) == (None, 5)


def test_health_and_readiness(gate: Gate, stand_in: StandIn) -> None:
    assert gate.ask(path="/healthz", method="GET", key=None).status == 200
    for path in ("/readyz", "/health"):
        assert gate.ask(path=path, method="GET", key=None).status == 200
    stand_in.healthy = False
    try:
        gate.until(lambda: not gate.service.upstreams.ready())
        for path in ("/readyz", "/health"):
            assert gate.ask(path=path, method="GET", key=None).status == 503
        refused = gate.ask()
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "no_capacity", "5")
        assert gate.ask(path="/v1/models", method="GET").status == 503
    finally:
        stand_in.healthy = True
    gate.until(lambda: gate.service.upstreams.ready())
    assert gate.ask().status == 200


def test_an_upstreams_refusal_of_the_request_is_passed_on_and_costs_nothing(gate: Gate) -> None:
    answer = gate.ask(stand_in={"status": 400})
    assert (answer.status, answer.json["error"]["message"]) == (400, "so it was asked")
    gate.balanced()
    assert (gate.logs[-1].outcome, gate.logs[-1].http_status, gate.logs[-1].output_tokens) == (Ended.FAILED, 400, 0)


def test_error_bodies_are_json_objects_as_openai_has_them(gate: Gate) -> None:
    answer = gate.ask(b"{")
    assert set(json.loads(answer.body)["error"]) >= {"message", "type", "param", "code"}
