"""Every kind of step time keeps the promises of the Protocol, and none beats the hardware it is made of."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.step_fitted import FittedStepTime
from sim.engine.step_roofline import RooflineStepTime
from sim.engine.step_table import ExtrapolationWarning, TableStepTime
from sim.engine.step_time import STEP_TIMES, LinearStepTime
from sim.engine.work import Hardware, Work, least_iteration_s

WORK = Work(parameters=7.5e9, kv_bytes_per_token=131072, flops_per_pair=524288)
EXPERTS = Work(
    parameters=1.2e9, expert_parameters=2.9e10, experts=128, experts_per_token=8, kv_bytes_per_token=98304,
    flops_per_pair=786432,
)
GPU = Hardware(flops_per_s=9.89e14, bytes_per_s=3.35e12)


def table(**changes: Any) -> TableStepTime:
    lone, full = ((0.6, 0.9), (0.95, 1.0)), ((1.0, 0.9), (1.2, 1.1))
    values: dict[str, Any] = dict(  # noqa: C408  (as one writes the call)
        dense_tokens=(1.0, 64.0, 2048.0), dense_s=(0.010, 0.011, 0.080),
        sequences=(1.0, 256.0), sequence_s=(0.0007, 0.0010),
        decode_batch=(1.0, 8.0, 64.0), decode_context=(16.0, 256.0, 1024.0, 4096.0),
        decode_s=((0.0003, 0.0004, 0.0005, 0.0009), (0.0004, 0.0007, 0.0012, 0.0035), (0.0007, 0.0022, 0.007, 0.024)),
        prefill_tokens=(16.0, 512.0, 2048.0), prefill_context=(0.0, 1024.0, 4096.0),
        prefill_s=((0.0002, 0.0009, 0.003), (0.0008, 0.0021, 0.006), (0.0055, 0.0095, 0.021)),
        beside_batch=(1.0, 8.0, 64.0), beside_context=(16.0, 1024.0, 4096.0),
        beside_s=((0.0003, 0.0009, 0.003), (0.0004, 0.0018, 0.006), (0.0017, 0.010, 0.046)),
        mixed_tokens=(16.0, 2048.0), mixed_before=(0.0, 4096.0), mixed_batch=(1.0, 64.0), mixed_context=(16.0, 4096.0),
        mixed_ratio=((lone, ((0.6, 0.8), (0.9, 1.0))), (full, ((1.0, 0.9), (1.0, 1.0)))),
    )  # fmt: skip
    return TableStepTime(**(values | changes))


EXPERTS_READ = FittedStepTime(weights_s=0.004, experts_s=0.01, expert_share=1 / 16, per_token_s=4e-5)
STEPS: dict[str, Any] = {
    "linear": LinearStepTime(base_s=0.01, per_decode_sequence_s=1e-5, per_context_token_s=1e-7),
    "fitted": FittedStepTime(weights_s=0.01, per_token_s=4e-5, per_decode_sequence_s=1e-5, per_context_token_s=1e-7),
    "table": table(),
    "roofline": RooflineStepTime(work=EXPERTS, hardware=GPU, base_s=0.001),
}
every_kind = pytest.mark.parametrize("kind", STEP_TIMES)
batches = st.integers(1, 80)


@every_kind
@given(sequences=batches, each=st.integers(1, 3000), iterations=st.integers(1, 300))
def test_a_run_is_the_sum_of_its_iterations(kind: str, sequences: int, each: int, iterations: int) -> None:
    step, context = STEPS[kind], sequences * each
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        one_by_one = math.fsum(step.iteration_s(0, 0.0, sequences, context + i * sequences) for i in range(iterations))
        assert math.isclose(step.decode_run_s(sequences, context, iterations), one_by_one, rel_tol=1e-9)


@every_kind
@given(sequences=batches, each=st.integers(1, 4000), elapsed_s=st.floats(0, 50))
def test_iterations_until_is_the_first_that_ends_later(kind: str, sequences: int, each: int, elapsed_s: float) -> None:
    step, context = STEPS[kind], sequences * each
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        k = step.iterations_until(sequences, context, elapsed_s)
        assert k >= 1
        assert step.decode_run_s(sequences, context, k) > elapsed_s
        assert k == 1 or step.decode_run_s(sequences, context, k - 1) <= elapsed_s


@every_kind
@given(prefill=st.integers(0, 2000), decodes=st.integers(0, 40), each=st.integers(16, 4000))
def test_more_work_never_takes_less_time(kind: str, prefill: int, decodes: int, each: int) -> None:
    if prefill + decodes == 0 or (kind == "table" and prefill):
        return  # a table says what was measured, and kernels do get faster with size here and there
    step = STEPS[kind]
    pairs = prefill * (prefill + 1) / 2
    before = step.iteration_s(prefill, pairs, decodes, decodes * each)
    assert step.iteration_s(prefill, pairs, decodes + 1, (decodes + 1) * each) >= before
    assert step.iteration_s(prefill, pairs, decodes, decodes * each + 10) >= before


@given(
    work=st.sampled_from([WORK, EXPERTS]), compute=st.floats(0.05, 1), memory=st.floats(0.05, 1),
    prefill=st.integers(0, 8192), decodes=st.integers(0, 256), each=st.integers(1, 8000),
)  # fmt: skip
def test_no_roofline_beats_the_hardware(
    work: Work, compute: float, memory: float, prefill: int, decodes: int, each: int
) -> None:
    if prefill + decodes == 0:
        return
    step = RooflineStepTime(work=work, hardware=GPU, compute_efficiency=compute, memory_efficiency=memory)
    make_up = (prefill, prefill * (prefill + 1) / 2, decodes, decodes * each)
    assert step.iteration_s(*make_up) >= least_iteration_s(work, GPU, *make_up) * (1 - 1e-12)


def test_a_decode_step_of_one_sequence_reads_the_weights_once() -> None:
    step = RooflineStepTime(work=WORK, hardware=GPU, memory_efficiency=1.0)
    assert step.iteration_s(0, 0.0, 1, 0) == pytest.approx(7.5e9 * 2 / 3.35e12)


def test_a_table_gives_what_was_measured_at_its_knots() -> None:
    step = table()
    assert step.iteration_s(0, 0.0, 64, 64 * 1024) == pytest.approx(0.011 + 0.0007 + 0.0003 * 63 / 255 + 0.007)
    alone_s = 0.080 + 0.0007 + 0.0095
    assert step.iteration_s(2048, 2048 * (1024 + 2049 / 2), 0, 0) == pytest.approx(alone_s)
    dense_s = 0.010 + (0.011 - 0.010) * (16 + 1 - 1) / 63
    mixed_s = dense_s + 0.0007 + 0.0003 / 255 + (0.0002 + 0.003) * 0.9
    assert step.iteration_s(16, 16 * 17 / 2, 1, 4096) == pytest.approx(mixed_s)


def test_several_short_prompts_take_less_than_one_of_as_many_tokens() -> None:
    step = table()
    one = step.iteration_s(2048, 2048 * 2049 / 2, 0, 0)
    four = step.iteration_s(2048, 4 * 512 * 513 / 2, 0, 0)
    assert one - 0.0055 < four < one


def test_scale_and_host_time_apply_to_every_iteration() -> None:
    plain, changed = table(), table(scale=2.0, base_s=0.5, per_prefill_iteration_s=0.25)
    assert changed.iteration_s(0, 0.0, 8, 800) == pytest.approx(0.5 + 2 * plain.iteration_s(0, 0.0, 8, 800))
    make_up = (512, 512 * 513 / 2, 8, 800)
    assert changed.iteration_s(*make_up) == pytest.approx(0.75 + 2 * plain.iteration_s(*make_up))


def test_leaving_what_was_measured_warns_once_with_the_range() -> None:
    step = table()
    with pytest.warns(ExtrapolationWarning, match=r"decode_context 9\d\d\d.* is outside the measured 16 to 4096"):
        step.decode_run_s(8, 8 * 9000, 10)
    step.decode_run_s(8, 8 * 9000, 10)  # warnings are errors here


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense_tokens": (64.0, 1.0, 2048.0)}, "dense_tokens does not ascend"),
        ({"sequence_s": (0.0007, 0.0, 0.1)}, "sequence_s is a table of"),
        ({"dense_s": (0.01, -0.011, 0.08)}, "dense_s holds a number that is not above 0"),
        ({"decode_s": ((0.1, 0.2),)}, "decode_s is a table of"),
    ],
)
def test_a_table_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(**change)


def test_decode_attention_is_slower_beside_prompts_where_the_profile_says_so() -> None:
    step = FittedStepTime(weights_s=0.01, per_context_token_s=1e-7, per_context_token_beside_prompts_s=5e-8)
    assert step.iteration_s(1, 1.0, 8, 8000) - step.iteration_s(0, 0.0, 8, 8000) == pytest.approx(8000 * 5e-8)
    step = FittedStepTime(weights_s=0.01, per_decode_sequence_s=1e-5, per_decode_sequence_beside_prompts_s=6e-5)
    assert step.iteration_s(1, 1.0, 8, 8000) - step.iteration_s(0, 0.0, 8, 8000) == pytest.approx(8 * 6e-5)
    assert step.iteration_s(1, 1.0, 0, 0) == step.iteration_s(0, 0.0, 0, 0)  # alone there is nobody to slow down


@pytest.mark.parametrize("mixed", [0, 1])
def test_an_iteration_reads_the_experts_that_its_tokens_touch(mixed: int) -> None:
    def took_s(tokens: int) -> float:
        return EXPERTS_READ.iteration_s(mixed * tokens, 0.0, (1 - mixed) * tokens, 0)

    assert took_s(1) == pytest.approx(0.004 + 0.01 / 16)
    assert took_s(2) == pytest.approx(0.004 + 0.01 * (1 - (15 / 16) ** 2))
    assert took_s(100) == pytest.approx(0.014, rel=2e-3)
    assert took_s(1000) == pytest.approx(0.04)  # computing takes longer than reading all
    # Two ranks that share the experts touch together what twice the tokens of one do.
    ranked = FittedStepTime(weights_s=0.004, experts_s=0.01, expert_share=1 - (15 / 16) ** 2, per_token_s=4e-5)
    assert ranked.iteration_s(0, 0.0, 3, 0) == pytest.approx(took_s(6))


@given(sequences=batches, each=st.integers(1, 3000), iterations=st.integers(1, 300))
def test_a_run_reads_the_same_experts_in_each_iteration(sequences: int, each: int, iterations: int) -> None:
    one_by_one = iterations * EXPERTS_READ.iteration_s(0, 0.0, sequences, sequences * each)
    assert math.isclose(EXPERTS_READ.decode_run_s(sequences, sequences * each, iterations), one_by_one, rel_tol=1e-9)


def test_experts_of_which_no_token_uses_any_are_refused() -> None:
    with pytest.raises(ValueError, match="experts_s is given and expert_share is 0; give the share"):
        FittedStepTime(weights_s=0.004, experts_s=0.01)
