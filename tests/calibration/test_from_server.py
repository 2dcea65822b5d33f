"""Calibrating a server from outside: an engine with known iteration times, on a loop whose clock jumps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from live.stand_in import Behaviour, running
from parity.virtual_loop import VirtualLoop
from typer.testing import CliRunner

from sim.calibration.from_server import Measurements, calibrate_live
from sim.calibration.measure_server import measure_endpoint
from sim.cli import app
from sim.engine.step_fitted import FittedStepTime
from sim.engine.step_time import LinearStepTime, StepTime
from sim.errors import InputError, RunError
from sim.live.loadgen.attempt import LiveAttempt
from sim.live.loadgen.completions_client import PromptKind
from sim.live.loadgen.iteration_timing import DecodeSeen, Engine, IdleSeen, Plan, Probe, PromptSeen, Seen, plan_for
from sim.records.schema import Outcome
from sim.scenario.profile import load_profile

ENGINE = Engine(max_num_seqs=16, max_num_batched_tokens=512, max_model_tokens=1024, kv_tokens=30_000)
TODAY = date(2026, 11, 24)


class FakeEngine:
    """A continuous-batching engine behind a server that takes ``overhead_s`` before and none after an iteration."""

    def __init__(
        self, loop: VirtualLoop, step_time: StepTime, overhead_s: float = 0.0, noise: float = 0.0, seed: int = 1
    ) -> None:
        self.loop = loop
        self.step_time = step_time
        self.overhead_s = overhead_s
        self.noise = noise
        self.rng = random.Random(seed)
        self.waiting: list[tuple[LiveAttempt, asyncio.Future[None]]] = []
        self.decoding: list[tuple[LiveAttempt, asyncio.Future[None]]] = []
        self.busy = False
        self.computed = 0  # of the first that waits

    def now_s(self) -> float:
        return self.loop.time()

    async def ask(self, attempt: LiveAttempt, body: bytes, key: str | None) -> None:
        attempt.http_status = 200
        done = self.loop.create_future()
        self.loop.call_later(self.overhead_s, self.submit, attempt, done)
        await done

    def submit(self, attempt: LiveAttempt, done: asyncio.Future[None]) -> None:
        self.waiting.append((attempt, done))
        if not self.busy:
            self.iterate()

    def iterate(self) -> None:
        self.busy = bool(self.waiting or self.decoding)
        if not self.busy:
            return
        budget, prefills = ENGINE.max_num_batched_tokens - len(self.decoding), []
        tokens = []
        while self.waiting and budget:
            left = self.waiting[0][0].prompt_tokens - self.computed
            tokens.append(min(left, budget))
            budget -= tokens[-1]
            self.computed += tokens[-1]
            if tokens[-1] == left:
                prefills.append(self.waiting.pop(0))
                self.computed = 0
        context = sum(a.prompt_tokens + a.delivered_tokens for a, _ in self.decoding)
        duration_s = self.step_time.iteration_s(
            sum(tokens), sum(n * (n + 1) / 2 for n in tokens), len(self.decoding), context
        )
        duration_s *= 1 + self.rng.uniform(-self.noise, self.noise)
        self.loop.call_later(duration_s, self.done, prefills)

    def done(self, prefills: Sequence[tuple[LiveAttempt, asyncio.Future[None]]]) -> None:
        self.decoding += prefills
        now_s = self.loop.time()
        for attempt, done in list(self.decoding):
            if not attempt.delivered_tokens:
                attempt.first_token_s = now_s
            attempt.delivered_tokens += 1
            assert attempt.token_s is not None
            attempt.token_s.append(now_s)
            if attempt.delivered_tokens == attempt.output_tokens:
                attempt.outcome, attempt.finish_s = Outcome.FINISHED, now_s
                self.decoding.remove((attempt, done))
                done.set_result(None)
        self.iterate()


def measured(step_time: StepTime, plan: Plan | None = None, **given: Any) -> Seen:
    loop = VirtualLoop()
    engine = FakeEngine(loop, step_time, **given)
    probe = Probe(engine, PromptKind(model="m"), ENGINE)  # type: ignore[arg-type]
    task = loop.create_task(probe.measure(plan or plan_for(ENGINE)))
    loop.run(600.0)
    return task.result()


def calibrated(seen: Seen) -> Any:
    return calibrate_live(
        Measurements(steps=seen, kv_blocks=2000, max_num_seqs=16, max_num_batched_tokens=512), today=TODAY
    )


def test_what_is_watched_are_the_iterations_and_nothing_else() -> None:
    truth = LinearStepTime(base_s=0.02, per_prefill_token_s=5e-5, per_decode_sequence_s=4e-4, per_context_token_s=1e-7)
    seen = measured(truth, overhead_s=0.004)
    for decode in seen.decodes:
        assert decode.duration_s == pytest.approx(truth.iteration_s(0, 0, *decode[:2]), rel=2e-3)
    for prompt in seen.prompts:
        iteration_s = truth.iteration_s(prompt.prompt_tokens, 0, 1, prompt.context_tokens)
        assert prompt.duration_s == pytest.approx(iteration_s, rel=1e-6)
    assert {d.sequences for d in seen.decodes} >= {1, 16}
    assert len({p.prompt_tokens for p in seen.prompts}) >= 6
    for idle in seen.idle:
        assert idle.ttft_s == pytest.approx(0.004 + truth.iteration_s(idle.prompt_tokens, 0, 0, 0))


def test_a_linear_server_is_found_again_from_noisy_measurements() -> None:
    truth = LinearStepTime(base_s=0.02, per_prefill_token_s=5e-5, per_decode_sequence_s=4e-4, per_context_token_s=2e-7)
    profile = calibrated(measured(truth, overhead_s=0.004, noise=0.02))
    found = profile.step_time
    assert isinstance(found, LinearStepTime)
    assert found.base_s == pytest.approx(truth.base_s, rel=0.05)
    assert found.per_decode_sequence_s == pytest.approx(truth.per_decode_sequence_s, rel=0.2)
    assert profile.request_overhead_s == pytest.approx(0.004, abs=0.001)
    assert profile.calibration.held_out_error["mean_abs"] < 0.03
    assert profile.calibration.ranges["decode_sequences"] == (1, 16)
    assert "other iterations" in profile.error


def test_noise_that_hides_where_a_bend_would_be_does_not_stop_a_straight_one() -> None:
    truth = LinearStepTime(base_s=0.13, per_prefill_token_s=5e-5, per_decode_sequence_s=2e-4)
    found = calibrated(measured(truth, noise=0.03, seed=2)).step_time  # the bent form's terms cannot be told apart
    assert isinstance(found, LinearStepTime)
    assert found.base_s == pytest.approx(0.13, rel=0.03)


def test_a_bend_that_a_line_misses_gets_the_step_time_that_has_it() -> None:
    truth = FittedStepTime(weights_s=0.02, per_token_s=1.5e-4, per_decode_sequence_s=1e-4)
    found = calibrated(measured(truth, noise=0.002)).step_time
    assert isinstance(found, FittedStepTime)
    assert found.weights_s + found.base_s == pytest.approx(0.02, rel=0.05)
    assert found.per_token_s == pytest.approx(1.5e-4, rel=0.1)


def test_a_bend_is_found_however_much_the_line_that_misses_it_depends_on_what_it_is_scored_on() -> None:
    """A line is off by 50 % on prompts near the bend and right elsewhere, so its error says little of a draw's."""
    truth = load_profile("b200-llama-3.1-70b-fp8-tp1").step_time
    noise = random.Random(3)

    def took(*makeup: float) -> float:
        return truth.iteration_s(*makeup) * (1 + noise.uniform(-0.004, 0.004))  # type: ignore[arg-type]

    batches = [(1, 44), (1, 438_991), (3, 8_039), (9, 434), (28, 1_474), (28, 75_326), (84, 226_484), (256, 10_004)]
    lengths = [n for n in (8, 22, 58, 156, 420, 1_130, 3_043, 8_190) for _ in range(3)]
    seen = Seen(
        [DecodeSeen(n, context, took(0, 0.0, n, context)) for n, context in batches],
        [PromptSeen(n, 18, took(n, n * (n + 1) / 2, 1, 18)) for n in lengths],
    )
    found = calibrated(seen).step_time
    assert isinstance(found, FittedStepTime)
    assert found.weights_s + found.base_s == pytest.approx(truth.weights_s, rel=0.02)
    assert found.per_token_s == pytest.approx(truth.per_token_s, rel=0.02)


def test_a_server_whose_contexts_cost_nothing_is_found_whatever_its_noise() -> None:
    """Neither context nor pairs show, so nothing tells the two apart; that is no reason to find nothing at all."""
    truth = LinearStepTime(base_s=0.13, per_prefill_token_s=5e-5, per_decode_sequence_s=2e-4)
    for seed in (1, 2, 3):
        found = calibrated(measured(truth, noise=0.03, seed=seed)).step_time
        assert found.base_s == pytest.approx(0.13, rel=0.03)


LENGTHS = (8, 22, 58, 156, 420, 1_130, 3_043, 8_190)


def launched(truth: StepTime, *, noise: float, seed: int, overhead_s: float = 0.0105) -> Any:
    """Return a profile of an engine of 256 sequences and 8,192 tokens, of what its iterations and lone prompts took."""
    rng = random.Random(seed)

    def took(*makeup: float) -> float:
        return truth.iteration_s(*makeup) * (1 + rng.uniform(-noise, noise))  # type: ignore[arg-type]

    batches = [(n, n * c) for n in (1, 3, 9, 28, 84, 256) for c in (18, 300, 1_600)]
    prompts = [n for n in LENGTHS for _ in range(3)]
    seen = Seen(
        [DecodeSeen(n, context, took(0, 0.0, n, context)) for n, context in batches],
        [PromptSeen(n, 18, took(n, n * (n + 1) / 2, 1, 18)) for n in prompts],
        [IdleSeen(n, overhead_s + took(n, n * (n + 1) / 2, 0, 0)) for n in prompts],
    )
    return calibrate_live(Measurements(steps=seen, kv_blocks=25_000, max_num_batched_tokens=8_192), today=TODAY)


H100 = FittedStepTime(  # as `hardware-check --arms` finds it: its host launches prompts slower than it computes them
    weights_s=6.2e-3, per_token_s=2.4e-5, per_decode_sequence_s=1.5e-5, per_context_token_s=4e-8,
    lone_prefill_s=1.65e-2, captured_tokens=512, uncaptured_s=4.2e-2,
)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_launching_prompts_takes_is_found_alone_and_beyond_captured_graphs(seed: int) -> None:
    profile = launched(H100, noise=0.005, seed=seed)
    found = profile.step_time
    assert isinstance(found, FittedStepTime)
    assert found.captured_tokens == 512
    assert found.uncaptured_s == pytest.approx(4.2e-2, rel=0.03)
    assert found.lone_prefill_s == pytest.approx(1.65e-2, rel=0.05)
    assert profile.request_overhead_s == pytest.approx(0.0105, abs=0.001)
    assert found.per_token_s == pytest.approx(2.4e-5, rel=0.03)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_is_found_of_launches_that_do_not_show(seed: int) -> None:
    plain = replace(H100, lone_prefill_s=0.0, captured_tokens=0, uncaptured_s=0.0)
    profile = launched(plain, noise=0.005, seed=seed)
    assert getattr(profile.step_time, "lone_prefill_s", 0.0) == 0.0
    assert getattr(profile.step_time, "uncaptured_s", 0.0) == 0.0
    assert profile.request_overhead_s == pytest.approx(0.0105, abs=0.0005)


def test_prompts_are_fresh_so_that_no_cache_hides_them() -> None:
    kind = PromptKind(model="m", seed=1)
    attempts = [LiveAttempt(f"calibrate-{i}", 1, 0, 0, 0.0, 0.0, 32, 4, 4) for i in range(50)]
    assert len({kind.body(attempt) for attempt in attempts}) == 50


def test_batches_that_do_not_fit_the_cache_are_not_tried() -> None:
    tight = Engine(max_num_seqs=256, max_num_batched_tokens=2048, max_model_tokens=4096, kv_tokens=20_000)
    assert all(n * c < 20_000 for n, c in plan_for(tight).decodes)
    assert max(plan_for(tight).prompts) <= 2046
    tiny = Engine(max_num_seqs=1, max_num_batched_tokens=64, max_model_tokens=64, kv_tokens=64)
    assert plan_for(tiny).prompts
    assert len(plan_for(ENGINE, quick=True).decodes) < len(plan_for(ENGINE).decodes)


def test_nothing_seen_is_no_profile() -> None:
    with pytest.raises(InputError, match="no iteration was seen"):
        calibrated(Seen())


def test_a_server_that_does_not_say_its_settings_is_asked_by_hand() -> None:
    with running() as server:
        with pytest.raises(InputError, match="--kv-blocks"):
            measure_endpoint(server.base_url)
        server.behaviour = Behaviour(status=503)
        with pytest.raises(RunError, match="refused, status 503"):
            measure_endpoint(server.base_url, kv_blocks=100, block_tokens=16)


def test_the_options_alone_mean_an_endpoint() -> None:
    done = CliRunner().invoke(app, ["calibrate", "--base-url", "http://127.0.0.1:9"])
    assert "does not answer" in str(done.exception)
    assert CliRunner().invoke(app, ["calibrate", "--help"]).exit_code == 0
