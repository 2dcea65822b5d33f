"""The work that an engine does between tokens: nothing is lost, and latencies go with coefficients as it says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from sim.calibration.from_sweep import SweepPoint, loop_requests, simulate_point
from sim.calibration.single_replica import Requests, Work, closed_loop, replay
from sim.calibration.work_slopes import REQUEST_TERMS, STEP_TERMS, multipliers, point_slopes
from sim.engine.step_fitted import FittedStepTime
from sim.scenario.profile import Profile

TERMS = (*STEP_TERMS, *REQUEST_TERMS)
STEP = FittedStepTime(
    base_s=1e-3, weights_s=4e-3, experts_s=6e-3, expert_share=1 / 32, per_token_s=2e-5, per_decode_sequence_s=2e-5,
    per_context_token_s=1e-8, per_prefill_pair_s=1e-11, per_prefill_iteration_s=2e-3,
)  # fmt: skip
ROOMY, SHORT = 100_000, 500


def engine(**changes: Any) -> Profile:
    values: dict[str, Any] = {
        "step_time": STEP, "max_num_seqs": 64, "max_num_batched_tokens": 2048, "kv_blocks": ROOMY,
        "async_scheduling": True, "request_overhead_s": 0.017, "request_per_running_s": 3e-4,
    }  # fmt: skip
    return Profile(**values | changes)


def coefficients(profile: Profile) -> np.ndarray:
    return np.array([getattr(profile if name in REQUEST_TERMS else profile.step_time, name) for name in TERMS])


def changed(profile: Profile, name: str, by: float) -> Profile:
    if name in REQUEST_TERMS:
        return profile.model_copy(update={name: getattr(profile, name) * by})
    step_time = profile.step_time
    return profile.model_copy(update={"step_time": replace(step_time, **{name: getattr(step_time, name) * by})})


@pytest.mark.parametrize("asynchronous", [True, False])
def test_work_sums_to_what_the_requests_are(asynchronous: bool) -> None:
    asked = loop_requests(SweepPoint(8, 3000, 100, 1, 1))
    work: list[Work] = []
    made = closed_loop(engine(async_scheduling=asynchronous), asked, 8, work=work)
    assert made.preemptions == 0
    prompts, outputs = asked.prompt_tokens, asked.output_tokens
    assert sum(each.prefill_tokens for each in work) == prompts.sum()
    assert sum(each.prefill_pairs for each in work) == (prompts * (prompts + 1) / 2).sum()
    assert sum(each.iterations * each.decode_sequences for each in work) == (outputs - 1).sum()
    entries = sum(
        each.iterations * each.context_tokens + each.decode_sequences * each.iterations * (each.iterations - 1) / 2
        for each in work
    )
    # The first further token reads the prompt and itself, and so on.
    assert entries == sum(sum(range(int(p) + 1, int(p + o))) for p, o in zip(prompts, outputs, strict=True))
    # One thing at a time, and as long as the step time says.
    assert all(a.end_s <= b.start_s for a, b in pairwise(work))
    took_s = multipliers(STEP, work) @ coefficients(engine())[: len(STEP_TERMS)]
    assert took_s == pytest.approx([each.end_s - each.start_s for each in work])


def test_what_is_computed_again_after_a_preemption_is_work_too() -> None:
    asked = loop_requests(SweepPoint(8, 800, 900, 1, 1))
    work: list[Work] = []
    made = closed_loop(engine(kv_blocks=SHORT), asked, 8, work=work)
    assert made.preemptions > 0
    assert sum(each.prefill_tokens for each in work) > asked.prompt_tokens.sum()


def test_counting_changes_nothing() -> None:
    asked = loop_requests(SweepPoint(4, 500, 50, 1, 1))
    plain, counted = closed_loop(engine(), asked, 4), closed_loop(engine(), asked, 4, work=[])
    assert list(plain.finish_s) == list(counted.finish_s)
    assert plain.others is not None
    assert list(plain.others[:4]) == [0, 1, 2, 3]
    assert plain.others.max() == 3
    alone = Requests(np.zeros(1), np.full(1, 100), np.full(1, 1))
    assert replay(engine(), alone).submitted_s is None


@pytest.mark.parametrize("blocks", [ROOMY, SHORT])
@pytest.mark.parametrize("concurrency", [1, 5, 24])
def test_means_are_the_work_times_the_coefficients(concurrency: int, blocks: int) -> None:
    point, profile = SweepPoint(concurrency, 1500, 200, 1.0, 1.0), engine(kv_blocks=blocks)
    made_s, slopes = point_slopes(profile, point, TERMS)
    assert made_s == pytest.approx(simulate_point(profile, point))
    assert slopes @ coefficients(profile) == pytest.approx(made_s)
    # What is not counted is left over, and nothing else is.
    more = changed(profile, "base_s", 1.0).model_copy(update={"request_handling_s": 0.05})
    made_s, slopes = point_slopes(more, point, TERMS)
    assert made_s[0] - slopes[0] @ coefficients(profile) >= 0.04


@pytest.mark.parametrize("name", TERMS)
def test_slopes_are_those_of_the_simulation(name: str) -> None:
    # A server's part makes requests come in the middle of iterations. Which one they are in time for jumps, and slopes
    # are those of a fixed schedule, roughly: taken over several iterations. Without it they hold for small changes.
    of_server = name in REQUEST_TERMS
    profile = engine(request_overhead_s=0.05 * of_server, request_per_running_s=5e-3 * of_server)
    by = 0.5 if of_server else 0.01
    there, found = np.zeros(2), np.zeros(2)
    for concurrency in (1, 2, 3, 5, 8, 12, 17):
        for prompt in (700, 1100, 1700):
            point = SweepPoint(concurrency, prompt, 150, 1.0, 1.0)
            more, less = (np.array(simulate_point(changed(profile, name, 1 + d), point)) for d in (by, -by))
            there += (more - less) / (2 * by)
            found += point_slopes(profile, point, [name])[1][:, 0] * coefficients(profile)[TERMS.index(name)]
    assert found[0] == pytest.approx(there[0], rel=0.3 if of_server else 1e-3)
    assert found[1] == pytest.approx(there[1], rel=1e-3, abs=5e-3 if of_server else 0.0)
