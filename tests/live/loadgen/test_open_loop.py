"""The load generator, on a loop whose clock jumps, against a server that is a function."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity.virtual_loop import VirtualLoop

from sim.cluster.world import simulate
from sim.experiments.demands import client_chances, demands
from sim.experiments.run import world_of
from sim.live.loadgen.attempt import LiveAttempt
from sim.live.loadgen.completions_client import PromptKind, reason_of, retry_after_s
from sim.live.loadgen.open_loop import LoadGenerator
from sim.records.schema import Outcome
from sim.scenario.load import Scenario, expand, parse_scenario

PROMPTS = PromptKind(model="tiny", seed=3)
SERVICE_S = 0.8


def scenario(*, client: Any = "drop", horizon_s: float | None = 20, arrivals: Any = None, **changes: Any) -> Scenario:
    mapping = {
        "version": 1, "seed": 11, "horizon_s": horizon_s,
        "pool": {
            "profile": "dgx-spark-qwen3-8b-nvfp4",
            "entitlements": [
                {"name": "a", "service_class": "guaranteed", "baseline": {"slots": 2}},
                {"name": "b", "service_class": "spot"},
            ],
        },
        "workload": [
            {"entitlement": "a", "arrivals": arrivals or {"kind": "poisson", "rate_per_s": 3}, "prompt_tokens": 20,
             "output_tokens": 4, "client": client, "until_s": 15},
            {"entitlement": "b", "arrivals": {"kind": "even", "rate_per_s": 2}, "until_s": 12,
             "prompt_tokens": {"kind": "uniform", "low": 5, "high": 50}, "output_tokens": 4, "max_output_tokens": 9},
        ],
        "policies": ["none"], **changes,
    }  # fmt: skip
    return parse_scenario(mapping, "here")


class Server:
    """Answers after SERVICE_S; ``refuses`` says which attempts it turns away."""

    def __init__(self, loop: VirtualLoop, refuses: Callable[[LiveAttempt], bool] = lambda _: False) -> None:
        self.loop = loop
        self.refuses = refuses
        self.seen: list[tuple[str, int, float, dict[str, Any]]] = []
        self.dropped: list[str] = []

    async def send(self, attempt: LiveAttempt, body: bytes, key: str | None) -> None:
        self.seen.append((attempt.request_id, attempt.number, self.loop.time(), json.loads(body)))
        if self.refuses(attempt):
            attempt.outcome, attempt.http_status, attempt.retry_after_s = Outcome.REFUSED, 429, 1.5
            attempt.finish_s = self.loop.time()
            return
        attempt.http_status, attempt.forwarded_s = 200, attempt.arrival_s
        try:
            await _after(self.loop, SERVICE_S / 2)
            attempt.first_token_s, attempt.delivered_tokens = self.loop.time(), 1
            await _after(self.loop, SERVICE_S / 2)
        except asyncio.CancelledError:
            self.dropped.append(attempt.request_id)
            raise
        attempt.finish_s, attempt.delivered_tokens = self.loop.time(), attempt.output_tokens
        attempt.outcome = Outcome.FINISHED


async def _after(loop: VirtualLoop, wait_s: float) -> None:
    future = loop.create_future()
    handle = loop.call_later(wait_s, future.set_result, None)
    try:
        await future
    finally:
        handle.cancel()


def played(made: Scenario, refuses: Callable[[LiveAttempt], bool] = lambda _: False) -> tuple[LoadGenerator, Server]:
    loop = VirtualLoop()
    server = Server(loop, refuses)
    workloads = [w.spec() for w in made.workload]
    load = LoadGenerator(
        workloads, demands(made, 0), send=server.send, prompts=PROMPTS, chances=client_chances(made, 0),
        keys={"a": "key-a"}, horizon_s=made.horizon_s,
    )  # fmt: skip
    task = loop.create_task(load.run(0.0))
    loop.run(200.0)
    task.result()
    return load, server


def test_it_sends_what_the_simulated_clients_send_when_they_send_it() -> None:
    made = scenario()
    load, server = played(made)
    simulated = simulate(world_of(expand(made)[0])).columns
    mine = [(a.request_id, a.prompt_tokens, a.asked_tokens, a.arrival_s) for a in load.attempts]
    theirs = zip(
        simulated.request_id, simulated.prompt_tokens, simulated.max_output_tokens, simulated.arrival_s, strict=True
    )
    assert mine == [(i, p, m, pytest.approx(t)) for i, p, m, t in theirs]
    assert [at_s for _, _, at_s, _ in server.seen] == pytest.approx([a.arrival_s for a in load.attempts])


def test_prompts_have_the_drawn_length_and_are_never_the_same_twice() -> None:
    load, server = played(scenario())
    for attempt, (_, _, _, body) in zip(load.attempts, server.seen, strict=True):
        assert len(body["prompt"]) == attempt.prompt_tokens
        assert all(PROMPTS.first_id < token <= PROMPTS.last_id for token in body["prompt"])
    prompts = [tuple(body["prompt"][:16]) for *_, body in server.seen]
    assert len(set(prompts)) == len(prompts)


def test_outputs_end_at_the_drawn_length_also_where_more_is_asked_for() -> None:
    load, server = played(scenario())
    for attempt, (_, _, _, body) in zip(load.attempts, server.seen, strict=True):
        assert body["ignore_eos"] is True
        assert body["max_tokens"] == attempt.asked_tokens
        if attempt.asked_tokens == attempt.output_tokens:
            assert body["min_tokens"] == attempt.output_tokens
        else:  # the token that ends it is the last one
            assert body["min_tokens"] == attempt.output_tokens - 1
            assert body["stop_token_ids"] == [int(token) for token in body["logit_bias"]] == [PROMPTS.first_id]


@pytest.mark.parametrize("client", [{"kind": "retry", "max_attempts": 3}, "openai-sdk"])
def test_clients_come_again_when_they_are_told_to_and_give_up(client: Any) -> None:
    load, server = played(scenario(client=client), refuses=lambda a: a.workload == 0)
    by_id: dict[str, list[LiveAttempt]] = {}
    for attempt in load.attempts:
        by_id.setdefault(attempt.request_id, []).append(attempt)
    mine = [tries for name, tries in by_id.items() if name.startswith("a-")]
    assert mine
    for tries in mine:
        assert [t.number for t in tries] == [1, 2, 3]
        assert [t.final for t in tries] == [False, False, True]
        assert [t.arrival_s - tries[0].arrival_s for t in tries] == pytest.approx([0.0, 1.5, 3.0])
        assert {t.first_arrival_s for t in tries} == {tries[0].arrival_s}
    bodies = {name: body["prompt"] for name, number, _, body in server.seen if number == 1}
    assert all(body["prompt"] == bodies[name] for name, number, _, body in server.seen if number > 1)


def test_who_would_have_come_again_after_the_end_has_made_its_last_attempt() -> None:
    load, _ = played(scenario(client={"kind": "retry", "max_attempts": 50}, horizon_s=16), lambda a: a.workload == 0)
    finals = [a.request_id for a in load.attempts if a.final]
    assert sorted(finals) == sorted({a.request_id for a in load.attempts})


def test_impatient_clients_hang_up() -> None:
    client = {"kind": "impatient", "patience_s": 0.6, "waits_for": "last-token"}
    load, server = played(scenario(client=client))
    mine = [a for a in load.attempts if a.workload == 0]
    assert mine
    for attempt in mine:
        assert (attempt.outcome, attempt.http_status) == (Outcome.CANCELLED, 499)
        assert attempt.finish_s == pytest.approx(attempt.arrival_s + 0.6)
        assert attempt.delivered_tokens == 1
    assert sorted(server.dropped) == sorted(a.request_id for a in mine)
    patient, _ = played(scenario(client={"kind": "impatient", "patience_s": 0.6}))  # for the first token, at 0.4 s
    assert {a.outcome for a in patient.attempts} == {Outcome.FINISHED}


def test_what_is_open_at_the_horizon_is_told_from_what_has_finished() -> None:
    load, server = played(scenario(horizon_s=10))
    for attempt in load.attempts:
        late = attempt.arrival_s + SERVICE_S > 10
        assert attempt.outcome is (Outcome.RUNNING if late else Outcome.FINISHED)
        assert math.isnan(attempt.finish_s) == late
    assert server.dropped


def test_without_a_horizon_the_run_ends_with_the_last_answer() -> None:
    made = scenario(horizon_s=None, client={"kind": "retry", "max_attempts": 2})
    load, server = played(made, lambda a: a.number == 1 and a.workload == 0)
    assert {a.outcome for a in load.attempts if a.final} == {Outcome.FINISHED}
    assert server.loop.time() == pytest.approx(max(a.finish_s for a in load.attempts))


def test_sessions_wait_for_their_answers() -> None:
    arrivals = {"kind": "sessions", "rate_per_s": 0.5, "mean_turns": 3, "mean_think_s": 1.0}
    load, _ = played(scenario(arrivals=arrivals, horizon_s=60))
    ended = {a.request_id: a.finish_s for a in load.attempts}
    follow_ups = [a for a in load.attempts if "." in a.request_id]
    assert follow_ups
    for attempt in follow_ups:
        stem, _, step = attempt.request_id.partition(".")
        before = stem if step == "2" else f"{stem}.{int(step) - 1}"
        assert attempt.arrival_s > ended[before]


def test_a_turn_of_a_session_repeats_the_text_before_it() -> None:
    arrivals = {"kind": "sessions", "rate_per_s": 0.5, "mean_turns": 3, "mean_think_s": 1.0, "system_tokens": 30}
    load, server = played(scenario(arrivals=arrivals, horizon_s=60))
    prompts = {name: body["prompt"] for name, _, _, body in server.seen if name.startswith("a-")}
    lengths = {a.request_id: a.prompt_tokens for a in load.attempts}
    assert all(len(prompts[name]) == lengths[name] for name in prompts)
    turns = [name for name in prompts if "." in name]
    assert turns
    for name in turns:
        stem, _, step = name.partition(".")
        before = prompts[stem if step == "2" else f"{stem}.{int(step) - 1}"]
        assert prompts[name][: len(before)] == before
    firsts = [prompt for name, prompt in prompts.items() if "." not in name]
    assert len({tuple(prompt[:30]) for prompt in firsts}) == 1  # the system prompt is everybody's
    assert len({tuple(prompt) for prompt in firsts}) == len(firsts)


@pytest.mark.parametrize(
    ("error", "headers", "reason"),
    [
        ({"code": "rate_limit_exceeded", "reason": "low_priority"}, {}, "low_priority"),
        ({"code": "request_too_large"}, {}, "too_large"),
        ({"code": "no_capacity"}, {}, "no_capacity"),
        ({"code": 503, "message": "queue full"}, {}, ""),
        ({}, {"x-tokenpools-reason": "tokens"}, "tokens"),
        ({"code": "<script>"}, {"x-tokenpools-reason": "nonsense"}, ""),
    ],
)
def test_reasons_are_those_of_the_records(error: dict[str, Any], headers: dict[str, str], reason: str) -> None:
    assert reason_of(error, headers) == reason


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after-ms": "1200", "retry-after": "2"}, 1.2),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 20.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 99999999999 07:27:00 GMT"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_milliseconds_go_before_seconds_and_seconds_before_a_date(
    headers: dict[str, str], wait_s: float | None
) -> None:
    assert retry_after_s(headers, datetime(2026, 10, 21, 7, 27, 40, tzinfo=UTC).timestamp()) == wait_s


@given(st.integers(1, 2**31), st.integers(0, 10**6))
def test_a_date_is_read_as_openais_library_reads_it(at_unix_s: int, before_s: int) -> None:
    now_unix_s = float(at_unix_s - before_s)
    text = email.utils.formatdate(at_unix_s, usegmt=True)
    tuple_ = email.utils.parsedate_tz(text)
    assert tuple_ is not None
    # openai/_base_client.py, _parse_retry_after_header
    assert retry_after_s({"retry-after": text}, now_unix_s) == float(email.utils.mktime_tz(tuple_) - now_unix_s)
