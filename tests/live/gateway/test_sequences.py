"""A sum is not one sequence, and an estimate is no verdict: slots, context, what text costs."""

from __future__ import annotations

import base64
import io
import json
import threading
from typing import Any

import pytest
from live.gate import Gate, gateway
from live.stand_in import StandIn, running
from PIL import Image

from policies.api import Arrived
from sim.live.gateway.endpoints import CHAT, COMPLETIONS
from sim.live.gateway.prompt_tokens import EstimatingCounter, never_too_long
from sim.live.gateway.request_body import paired_prompts, parse_body, pooling_prompts
from sim.live.gateway.settings import Estimate
from sim.live.observability.observer import Ended

pytestmark = pytest.mark.usefixtures("books")
CONTEXT = 4000 * 16


@pytest.fixture(scope="module")
def gate(stand_in: StandIn):  # type: ignore[no-untyped-def]
    with gateway(stand_in) as one:
        yield one


def view(gate: Gate) -> Any:
    gate.balanced()
    return [event.request for _, event, _ in gate.events if type(event) is Arrived][-1]


def test_many_prompts_of_one_call_are_many_sequences_and_not_one_long(gate: Gate) -> None:
    answer = gate.ask({"model": "tiny", "input": ["x" * 1080] * 300}, path="/v1/embeddings")
    assert answer.status == 200  # 81,000 tokens in all, in a context of 64,000
    assert view(gate).sequences == 16  # a replica runs no more at a time
    assert view(gate).prompt_tokens == 300 * 270
    body = {"model": "tiny", "query": "q" * 40, "documents": ["d" * 400] * 3}
    assert gate.ask(body, path="/v1/rerank").status == 200
    assert (view(gate).sequences, view(gate).prompt_tokens) == (3, 3 * 10 + 300)
    assert gate.ask({"model": "tiny", "input": "x"} | {"input": ["x"] * 3000}, path="/v1/embeddings").status == 400


def test_an_estimate_is_no_reason_to_refuse_for_good(gate: Gate, stand_in: StandIn) -> None:
    assert gate.ask(prompt="x" * (CONTEXT * 4 + 4000), max_tokens=2).status == 200  # the engine may count fewer
    assert gate.ask({"model": "tiny", "prompt": [1] * (CONTEXT + 1), "max_tokens": 2}).code == "context_length_exceeded"
    cut = {"model": "tiny", "prompt": [1] * (CONTEXT + 1), "max_tokens": 2, "truncate_prompt_tokens": 50}
    assert gate.ask(cut).status == 200
    assert view(gate).prompt_tokens == 50
    assert gate.ask({**cut, "truncate_prompt_tokens": -1}).status == 200


def test_a_limit_that_fits_no_context_is_refused_whatever_the_prompt(gate: Gate) -> None:
    refused = gate.ask(max_tokens=2**31 - 1)
    assert (refused.status, refused.code) == (400, "context_length_exceeded")
    assert refused.headers["x-should-retry"] == "false"
    responses = {"model": "tiny", "input": "a", "max_output_tokens": 2**31 - 1}
    assert gate.ask(responses, path="/v1/responses").status == 200  # engines cut this one to the context
    assert view(gate).max_output_tokens == CONTEXT


def test_a_sum_over_answers_is_no_context(gate: Gate) -> None:
    body = {"model": "tiny", "prompt": [[1] * 20_000] * 4, "max_tokens": 20}
    assert gate.ask(body).status == 200
    assert (view(gate).sequences, view(gate).prompt_tokens, view(gate).context_tokens) == (4, 80_000, 20_020)


@pytest.mark.parametrize(("fields", "sequences"), [
    ({"prompt": ["a", "b", "c"], "n": 2}, 6), ({"best_of": 4, "n": 2}, 4), ({"beam_width": 5}, 5),
    ({"prompt": [[1, 2], [3]]}, 2), ({"prompt": [1, 2, 3]}, 1), ({"prompt_embeds": ["AA", "BB"]}, 3),
], ids=str)  # fmt: skip
def test_answers_and_prompts_are_sequences(fields: dict[str, Any], sequences: int) -> None:
    assert parse_body(COMPLETIONS, {"model": "m", "prompt": "a", **fields}, 16).sequences == sequences


def test_pairs_and_lists_are_sequences() -> None:
    assert pooling_prompts({"input": ["a", "b"]}) == 2
    assert pooling_prompts({"input": [1, 2, 3]}) == 1
    assert pooling_prompts({"input": [[1], [2]]}) == 2
    assert paired_prompts({"text_1": "a", "text_2": ["b", "c", "d"]}) == 3
    assert paired_prompts({"queries": ["a", "b"], "documents": ["c", "d"]}) == 2


def test_a_limit_on_slots_counts_sequences() -> None:
    entitlements = ({"name": "chat", "tenant": "acme", "service_class": "spot", "limit": {"slots": 4}},)
    with running() as stand_in, gateway(stand_in, entitlements=entitlements, policy="token-pool") as gate:
        refused = gate.ask(n=5)
        assert (refused.status, refused.headers["x-should-retry"]) == (429, "false")
        assert (refused.json["error"]["needed"], refused.json["error"]["available"]) == (5, 4)
        assert gate.ask(n=4).status == 200
        found = []
        slow = {"n": 3, "max_tokens": 30, "stand_in": {"gap_s": 0.02}}
        thread = threading.Thread(target=lambda: found.append(gate.ask(**slow)))
        thread.start()
        gate.until(lambda: stand_in.running == 1)
        core = gate.service.gateway.core
        assert gate.call(lambda: core.pool.entitlements["chat"].in_flight) == 3
        assert gate.ask(n=2).status == 429
        assert gate.ask(n=1).status == 200
        thread.join(10)
        assert found[0].status == 200


PROMPT = [
    {"role": "assistant", "content": None, "refusal": "r" * 40},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "t" * 40}]},
    {"role": "assistant", "reasoning_content": "c" * 40, "content": ""},
    {"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "d" * 40}}]},
    {"role": "tool", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "x" * 40}]}]},
    {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"arguments": "a" * 40}}]},
    {"role": "r" * 80, "content": ""},
    {"role": "tool", "tool_call_id": "i" * 80, "content": ""},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"n" * 40: True}}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": [0.25] * 12}}]},
    {"role": "user", "content": [{"type": "file_search_call", "results": [{"text": "x" * 40}]}]},
    {"role": "user", "content": [{"type": "image_and_words", "words": "x" * 36}]},
]


@pytest.mark.parametrize("message", PROMPT, ids=lambda one: str(sorted(one)))
def test_whatever_a_message_calls_its_text_it_counts(message: dict[str, Any]) -> None:
    tokens = EstimatingCounter(Estimate()).count_now("chat", {"messages": [message]}).tokens
    assert 4 + 10 <= tokens <= 4 + 20


@pytest.mark.parametrize("more", [
    {"documents": [{"title": "t", "text": "x" * 4000}]}, {"chat_template_kwargs": {"note": "x" * 4000}},
    {"chat_template": "x" * 4000}, {"tools": [{"type": "function", "function": {"description": "x" * 4000}}]},
], ids=lambda one: next(iter(one)))  # fmt: skip
def test_text_beside_the_messages_counts(more: dict[str, Any]) -> None:
    fields = {"messages": [{"role": "user", "content": "a"}], **more}
    assert EstimatingCounter(Estimate()).count_now("chat", fields).tokens >= 1000
    assert parse_body(CHAT, {"model": "m", **fields}, 16).sequences == 1


def count(shape: str, **fields: Any) -> int:
    return EstimatingCounter(Estimate()).count_now(shape, fields).tokens


def test_what_stands_before_a_prompt_counts_once_for_each() -> None:
    items = [{"role": "user", "content": "abcd"}] * 9
    assert count("responses", instructions="x" * 400, input=items) == 100 + 9  # which are one prompt
    assert count("pooling", input=["abcd"] * 9) == 9
    assert count("pairs", query="abcd", documents=["x" * 400] * 3) == 3 * 101
    assert count("pairs", query="abcd", documents=["x" * 400] * 3, truncate_prompt_tokens=50) == 3 * 50
    assert count("pairs", query="abcd", documents=["x" * 400] * 3, instruction="i" * 40) == 3 * 111
    assert count("text", tokens=list(range(500))) == 500


def test_who_lets_the_engine_cut_the_prompt_is_never_refused_for_its_length() -> None:
    assert never_too_long({"truncation": "auto"})
    assert never_too_long({"truncate_prompt_tokens": -1})
    assert not never_too_long({"truncation": "disabled", "truncate_prompt_tokens": 9})


def test_long_sound_reserves_an_answer_for_each_window_and_pays_for_its_length(gate: Gate) -> None:
    def transcribed(seconds: float, size: int) -> Any:
        body = json.dumps({"text": "w " * 20_000, "usage": {"type": "duration", "seconds": seconds}})
        raw = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        asked = json.dumps({"stand_in": {"raw": raw}})
        gate.ask((asked + " " * (size - len(asked))).encode(), path="/v1/audio/transcriptions")
        gate.balanced()
        return gate.logs[-1]

    log = transcribed(600.0, 320 * 750 * 4)  # four windows by its bytes
    assert (log.prompt_tokens, log.max_output_tokens, log.output_tokens) == (3000, 4 * 256, 4 * 256)
    assert log.counted_prompt_tokens == 600 * 25  # twenty by its length
    assert transcribed(1e6, 320 * 750 * 4).counted_prompt_tokens == 11 * 3000


def picture(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_pictures_sounds_and_embeddings_cost_what_they_are() -> None:
    counter = EstimatingCounter(Estimate())

    def of(part: dict[str, Any]) -> int:
        return counter.count_now("chat", {"messages": [{"role": "user", "content": [part]}]}).tokens - 4

    assert of({"type": "image_url", "image_url": {"url": picture(280, 280)}}) == 100
    assert of({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}) == 1024
    assert of({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}) == 1024
    sound = base64.b64encode(bytes(32_000)).decode()
    assert of({"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}) == 100
    embeds = base64.b64encode(bytes(8192 * 7)).decode()
    assert counter.count_now("completion", {"prompt_embeds": embeds}).tokens == 7


def test_a_client_that_the_engine_refuses_was_no_demand(gate: Gate) -> None:
    book = gate.service.gateway.core.pool.entitlements["chat"]
    before = gate.call(lambda: (book.demanded_tokens, book.demanded_requests))
    assert gate.ask(stand_in={"status": 400}).status == 400
    assert gate.ask(max_tokens=2**31 - 1).status == 400
    gate.balanced()
    assert gate.call(lambda: (book.demanded_tokens, book.demanded_requests)) == before
    assert gate.ask().status == 200
    gate.balanced()
    assert gate.call(lambda: book.demanded_requests) == before[1] + 1
    assert gate.logs[-1].outcome is Ended.FINISHED
