from __future__ import annotations

import threading
import time
from typing import Any

import openai
import pytest
from live.gate import Gate, gateway, secret
from live.stand_in import running

from policies.api import Allowance, Margin, Reason, Refuse
from sim.live.gateway.error_responses import REFUSALS, allowance_headers, duration, refusal, retry_headers
from sim.live.observability.observer import Ended

RATE = {"kind": "rate-limit", "per_entitlement": {
    "chat": {"requests_per_min": 30, "burst_s": 2}, "batch": {"tokens_per_min": 600, "burst_s": 6},
}}  # fmt: skip


@pytest.mark.parametrize(("seconds", "said"), [
    (0, "0ms"), (0.0201, "21ms"), (1, "1s"), (1.23, "1.3s"), (60, "1m0s"), (360, "6m0s"), (3725.5, "1h2m5.5s"),
])
def test_durations_are_written_as_openai_does(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_retry_after_is_whole_and_its_milliseconds_exact() -> None:
    assert dict(retry_headers(0.25)) == {b"retry-after": b"1", b"retry-after-ms": b"250"}
    assert dict(retry_headers(7.0)) == {b"retry-after": b"7", b"retry-after-ms": b"7000"}


def test_headers_say_what_is_left() -> None:
    found = dict(allowance_headers(Allowance(Margin(6, 2, 1.0), Margin(4096.0, -3.5, 360))))
    assert found[b"x-ratelimit-limit-requests"] == b"6"
    assert found[b"x-ratelimit-remaining-tokens"] == b"0"
    assert found[b"x-ratelimit-reset-tokens"] == b"6m0s"
    assert allowance_headers(Allowance()) == []


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("retry_after_s", [None, 3.0])
def test_every_reason_has_an_answer(reason: Reason, retry_after_s: float | None) -> None:
    problem = refusal(Refuse("r", reason, 429, retry_after_s, 12.0, 3.5))
    assert reason is Reason.ADMITTED or reason in REFUSALS
    names = {name for name, _ in problem.headers()}
    assert (b"retry-after" in names) == (retry_after_s is not None)
    assert (b"x-should-retry" in names) == (retry_after_s is None)
    assert problem.error()["reason"] == str(reason)


def client(gate: Gate, name: str, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gate.base_url}/v1", api_key=secret(name), **more)


def test_the_openai_client_is_served_and_waits_as_long_as_it_is_told() -> None:
    with running() as stand_in, gateway(stand_in, policy=RATE) as gate, client(gate, "chat") as ask:
        first = ask.completions.with_raw_response.create(model="tiny", prompt="a b", max_tokens=3)
        assert first.headers["x-ratelimit-limit-requests"] == "1"
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        assert first.parse().choices[0].text == "w0 w1 w2"
        began_s = time.monotonic()
        chat = ask.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=2)
        waited_s = time.monotonic() - began_s
        assert chat.choices[0].message.content == "w0 w1"
        assert 1.7 < waited_s < 4
        gate.balanced()
        assert [(log.outcome, log.attempt) for log in gate.logs] == [
            (Ended.FINISHED, 1), (Ended.REFUSED, 1), (Ended.FINISHED, 2),
        ]  # fmt: skip
        assert gate.logs[1].reason is Reason.REQUESTS


def test_the_openai_client_does_not_try_again_what_can_never_be() -> None:
    with running() as stand_in, gateway(stand_in, policy=RATE) as gate, client(gate, "batch") as ask:
        with pytest.raises(openai.RateLimitError) as caught:
            ask.completions.create(model="tiny", prompt="a b", max_tokens=700)
        assert caught.value.code == "request_too_large"
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert "retry-after" not in caught.value.response.headers
        with pytest.raises(openai.BadRequestError) as too_long:
            ask.completions.create(model="tiny", prompt="a b", max_tokens=1_000_000)
        assert too_long.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError):
            ask.completions.create(model="huge", prompt="a b", max_tokens=1)
        with pytest.raises(openai.AuthenticationError):
            ask.with_options(api_key="sk-no").completions.create(model="tiny", prompt="a b", max_tokens=1)
        gate.balanced()
        assert len(gate.logs) == 4


def test_the_openai_client_gives_up_on_a_wait_that_is_too_long() -> None:
    slow = {"kind": "rate-limit", "requests_per_min": 0.3, "burst_s": 200}
    with running() as stand_in, gateway(stand_in, policy=slow) as gate, client(gate, "chat") as ask:
        ask.completions.create(model="tiny", prompt="a", max_tokens=1)
        began_s = time.monotonic()
        with pytest.raises(openai.RateLimitError) as caught:
            ask.with_options(max_retries=0).completions.create(model="tiny", prompt="a", max_tokens=1)
        assert int(caught.value.response.headers["retry-after"]) > 120
        assert time.monotonic() - began_s < 1


def test_a_stream_through_the_openai_client() -> None:
    with running() as stand_in, gateway(stand_in) as gate, client(gate, "chat") as ask:
        parts = list(ask.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}], stream=True, max_tokens=4,
            stream_options={"include_usage": True},
        ))
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == " w0 w1 w2 w3"
        assert parts[-1].usage is not None
        assert parts[-1].usage.completion_tokens == 4


def test_concurrency_is_limited_for_each_entitlement_alone() -> None:
    with running() as stand_in, gateway(stand_in, policy="token-pool") as gate:
        slow = {"stand_in": {"ttft_s": 1.0}}
        threads = [threading.Thread(target=lambda: gate.ask(key="batch", **slow)) for _ in range(2)]
        for thread in threads:
            thread.start()
        gate.until(lambda: gate.service.gateway.core.pool.entitlements["batch"].in_flight == 2)
        refused = gate.ask(key="batch")
        assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
        assert refused.json["error"]["reason"] == "concurrency"
        assert refused.headers["x-ratelimit-limit-requests"] == "2"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert int(refused.headers["retry-after"]) >= 1
        assert gate.ask(key="chat").status == 200
        for thread in threads:
            thread.join()
        gate.balanced()
        assert gate.service.gateway.core.pool.entitlements["chat"].refused == 0


def test_estimates_are_settled_by_the_upstreams_count() -> None:
    limited = {"kind": "rate-limit", "per_entitlement": {"batch": {"tokens_per_min": 60, "burst_s": 600}}}
    with running() as stand_in, gateway(stand_in, policy=limited) as gate:
        words = " ".join(["abcdefghijklmnop"] * 100)  # 425 tokens by length, 100 by the stand-in's count
        first = gate.ask(key="batch", prompt=words, max_tokens=10, stand_in={"output_tokens": 5})
        assert first.headers["x-ratelimit-remaining-tokens"] == "495"
        second = gate.ask(key="batch", prompt="a", max_tokens=1)
        assert int(second.headers["x-ratelimit-remaining-tokens"]) in (493, 494)


@pytest.mark.parametrize("kind", ["tokenize", {"kind": "estimate", "bytes_per_token": 2}])
def test_prompts_are_counted_as_configured(kind: Any) -> None:
    with running() as stand_in, gateway(stand_in, prompt_tokens=kind) as gate:
        gate.ask(prompt="ab cd ef", max_tokens=1)
        gate.ask({"model": "tiny", "messages": [{"role": "user", "content": "ab cd"}], "max_tokens": 1},
                 path="/v1/chat/completions")
        gate.balanced()
        expected = [3, 2] if kind == "tokenize" else [4, 4 + 3]
        assert [log.prompt_tokens for log in gate.logs] == expected
        assert stand_in.tokenize_calls == (2 if kind == "tokenize" else 0)


def test_a_preempted_stream_ends_with_a_reason_and_an_error() -> None:
    entitlements = [
        {"name": "filler", "service_class": "preemptible"},
        {"name": "vip", "service_class": "guaranteed", "baseline": {"slots": 1}},
    ]
    profile = {
        "step_time": {"kind": "linear", "base_s": 0.01}, "max_num_seqs": 1, "max_num_batched_tokens": 512,
        "kv_blocks": 4000, "block_tokens": 16,
    }  # fmt: skip
    found: list[Any] = []

    def stream(ask: openai.OpenAI) -> None:
        parts: list[Any] = []
        try:
            parts.extend(ask.completions.create(
                model="tiny", prompt="a", max_tokens=400, stream=True, extra_body={"stand_in": {"gap_s": 0.02}}
            ))
        except openai.APIError as error:
            found.extend([parts, error])

    with running() as stand_in, gateway(
        stand_in, policy="token-pool", entitlements=entitlements, pool={"profile": profile}
    ) as gate, client(gate, "filler") as ask:
        thread = threading.Thread(target=stream, args=(ask,))
        thread.start()
        gate.until(lambda: any(one.output_tokens > 3 for one in gate.service.in_flight))
        assert gate.ask(key="vip").status == 200
        thread.join(10)
        parts, error = found
        assert parts[-1].choices[0].finish_reason == "preempted"
        assert error.code == "preempted"
        gate.balanced()
        evicted = next(log for log in gate.logs if log.entitlement == "filler")
        assert (evicted.outcome, evicted.reason, evicted.http_status) == (Ended.EVICTED, Reason.PREEMPTED, 200)
        gate.until(lambda: stand_in.running == 0)

        slow = threading.Thread(target=lambda: found.append(gate.ask(key="filler", stand_in={"ttft_s": 30})))
        slow.start()
        gate.until(lambda: stand_in.running == 1)
        assert gate.ask(key="vip").status == 200
        slow.join(10)
        cut = found[-1]
        assert (cut.status, cut.code, cut.headers["retry-after"]) == (503, "preempted", "1")
