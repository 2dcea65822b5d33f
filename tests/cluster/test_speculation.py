"""Speculative decoding: the law of acceptance, what it makes of the time per token, and what a profile may not say."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.calibration.single_replica import Requests, replay
from sim.engine.speculation import Speculation, SpeculativeStepTime
from sim.engine.step_time import LinearStepTime
from sim.errors import ScenarioError
from sim.scenario.profile import Profile, load_profile, parse_profile

STEP = LinearStepTime(
    base_s=0.006, per_prefill_token_s=2e-5, per_decode_sequence_s=1e-4, per_context_token_s=2e-8
)  # fmt: skip
DRAFTS = Speculation(tokens=3, acceptance=0.7, per_draft_token_s=2e-5, draft_s=0.001)


def profile(speculation: Speculation | None, **changes: Any) -> Profile:
    settings = {"step_time": STEP, "max_num_seqs": 256, "max_num_batched_tokens": 2048, "kv_blocks": 100_000}
    return Profile(**settings | {"speculation": speculation} | changes)


def together(count: int, prompt: int, output: int) -> Requests:
    return Requests(np.zeros(count), np.full(count, prompt), np.full(count, output))


@pytest.mark.parametrize(("tokens", "acceptance"), [(1, 0.5), (3, 0.7), (5, 0.9), (4, 0.0), (2, 1.0)])
def test_the_mean_is_that_of_the_stated_law(tokens, acceptance):
    rng = np.random.default_rng(1)
    accepted = rng.random((200_000, tokens)) < acceptance
    drawn = 1 + np.cumprod(accepted, axis=1).sum(axis=1)
    gain = float(Speculation(tokens=tokens, acceptance=acceptance, per_draft_token_s=0).gain)
    assert gain == pytest.approx(drawn.mean(), abs=5 * drawn.std() / math.sqrt(len(drawn)) + 1e-9)


@pytest.mark.parametrize("count", [1, 32, 200])
def test_time_per_token_is_the_step_over_the_mean(count):
    output = 3000
    found = replay(profile(DRAFTS), together(count, 1, output))
    tpot_s = (found.finish_s - found.first_token_s) / (output - 1)
    # The context grows by the output, so its mean is half of it; all requests join and leave together.
    step_s = STEP.iteration_s(0, 0, count, round(count * output / 2)) + DRAFTS.extra_s(count)
    assert tpot_s.mean() == pytest.approx(step_s / float(DRAFTS.gain), rel=2e-3)


def test_nothing_accepted_is_a_slower_step_and_everything_a_faster_one():
    requests = Requests(np.arange(40) * 0.05, np.arange(40) * 7 % 90 + 1, np.arange(40) * 11 % 70 + 1)
    none = replay(profile(replace(DRAFTS, acceptance=0.0, draft_s=0.0)), requests)
    slower = replace(STEP, per_decode_sequence_s=STEP.per_decode_sequence_s + 3 * 2e-5)
    plain = replay(profile(None), requests, step_time=slower)
    assert none.finish_s == pytest.approx(plain.finish_s, rel=1e-9)
    all_of_it = replay(profile(Speculation(tokens=1, acceptance=1.0, per_draft_token_s=0)), together(1, 5, 101))
    single = replay(profile(None), together(1, 5, 101))
    twice = all_of_it.finish_s - all_of_it.first_token_s
    assert twice == pytest.approx((single.finish_s - single.first_token_s) / 2, rel=1e-3)


@given(
    st.integers(1, 8), st.floats(0, 1), st.integers(0, 10_000), st.integers(1, 500), st.integers(0, 500)
)  # fmt: skip
def test_iterations_and_tokens_convert(tokens, acceptance, iteration, wanted, most):
    drafts = Speculation(tokens=tokens, acceptance=acceptance, per_draft_token_s=0)
    enough, within = drafts.until(iteration, wanted), drafts.within(iteration, most)
    assert drafts.gained(iteration, enough) >= wanted > drafts.gained(iteration, enough - 1)
    assert drafts.gained(iteration, within) <= most < drafts.gained(iteration, within + 1)
    assert 1 <= drafts.gained(iteration, 1) <= tokens + 1
    assert drafts.gained(iteration, wanted) == sum(drafts.gained(iteration + i, 1) for i in range(wanted))


@functools.cache
def measured(name: str) -> SpeculativeStepTime:
    return SpeculativeStepTime(load_profile(name).step_time, DRAFTS)


@pytest.mark.parametrize("name", ["rtx-4090-llama-3.1-8b", "h200-llama-3.1-70b-fp8-tp4", "a100-llama-2-70b-tp8"])
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 37), st.integers(1, 2000), st.integers(1, 200))
def test_a_run_is_the_sum_of_its_iterations(name, sequences, each_context, iterations):
    step, context = measured(name), sequences * each_context
    gain = float(DRAFTS.gain)
    each = [step.iteration_s(0, 0, sequences, context + sequences * gain * i) for i in range(iterations)]
    assert step.decode_run_s(sequences, context, iterations) == pytest.approx(sum(each), rel=1e-9)
    half_s = sum(each[: iterations // 2]) + each[iterations // 2] / 2
    assert step.iterations_until(sequences, context, half_s) == iterations // 2 + 1


def test_a_profile_must_leave_room_for_drafts_and_beat_no_physics():
    with pytest.raises(ScenarioError, match="give at least 1024"):
        parse_profile(mapping(max_num_batched_tokens=1023), "p")
    with pytest.raises(ScenarioError, match="fair-batching, which has none"):
        parse_profile(mapping(scheduling="fair-batching", tpot_slo_s=0.05), "p")
    # 8e9 parameters at 1e14 operations per second: 16e9 / 1e14 s a token and 256 sequences.
    physics = {
        "work": {"parameters": 8e9, "kv_bytes_per_token": 1, "flops_per_pair": 1},
        "hardware": {"flops_per_s": 1e14, "bytes_per_s": 1e13},
    }
    step = {"kind": "linear", "base_s": 0.05, "per_prefill_token_s": 1.6e-4}
    parse_profile(mapping(physics=physics, step_time=step, speculation=None), "p")
    with pytest.raises(ScenarioError, match="physics allows"):
        parse_profile(mapping(physics=physics, step_time=step), "p")


def mapping(**changes: Any) -> dict[str, Any]:
    return {
        "step_time": {"kind": "linear", "base_s": 0.006},
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
        "kv_blocks": 10_000,
        "speculation": {"tokens": 3, "acceptance": 0.7, "per_draft_token_s": 2e-5},
    } | changes


def test_an_answer_ends_where_it_should():
    for output in range(1, 12):
        found = replay(profile(DRAFTS), together(1, 4, output))
        iterations = -(-(output - 1) // DRAFTS.gain)
        last_s = found.first_token_s[0] + iterations * (0.006 + 1e-4 + DRAFTS.extra_s(1))
        assert found.finish_s[0] == pytest.approx(last_s, rel=1e-3, abs=0.0075)
