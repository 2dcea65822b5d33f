"""A profile for a GPU that it was not measured on, by operators that were measured on both."""

from __future__ import annotations

import importlib.util
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sim.calibration.from_aiconfigurator import IterationOperators
from sim.calibration.other_gpu import (
    OperatorTerms,
    _terms,
    on_other_gpu,
    shipped_operators,
    table_rows,
    term_ratios,
)
from sim.cli import app
from sim.engine.step_fitted import FittedStepTime
from sim.errors import InputError
from sim.scenario.profile import Profile, load_profile

here = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="the extra aiconfigurator is not installed"
)
ONE = OperatorTerms(
    weights_s=0.006, per_decode_sequence_s=1e-5, per_context_token_s=4e-8, per_token_s=2e-5, per_prefill_pair_s=1e-9
)


def slower(terms: OperatorTerms, by: float) -> OperatorTerms:
    return replace(terms, weights_s=by * terms.weights_s, per_token_s=2 * by * terms.per_token_s)


def test_each_term_goes_by_its_own_ratio_the_median_over_engines() -> None:
    there = {"vllm": ONE, "sglang": ONE, "trtllm": ONE, "new": ONE}
    other = {"vllm": slower(ONE, 3.0), "sglang": slower(ONE, 1.5), "trtllm": slower(ONE, 1.75)}
    ratios = term_ratios(there, other)
    assert ratios["weights_s"] == pytest.approx(1.75)
    assert ratios["per_token_s"] == pytest.approx(3.5)
    assert ratios["per_prefill_pair_s"] == 1.0


def test_the_gpu_is_scaled_and_the_host_stays_but_for_what_goes_by_tokens_a_second() -> None:
    profile = load_profile("h100-llama-3.1-8b")
    other = {"vllm": replace(slower(ONE, 1.8), per_decode_sequence_beside_prompts_s=5e-5)}
    made = on_other_gpu(profile, {"vllm": ONE}, other, name="there")
    was, now = profile.step_time, made.step_time
    assert now.weights_s == pytest.approx(1.8 * was.weights_s)
    assert now.per_token_s == pytest.approx(3.6 * was.per_token_s)
    assert now.per_decode_sequence_beside_prompts_s == pytest.approx(5e-5)
    assert (now.lone_prefill_s, now.prompt_launch_s, now.uncaptured_s, now.captured_tokens) == (
        was.lone_prefill_s, was.prompt_launch_s, was.uncaptured_s, was.captured_tokens,
    )  # fmt: skip
    assert made.request_overhead_s == profile.request_overhead_s
    assert made.request_per_running_s == pytest.approx(profile.request_per_running_s / 1.8)
    assert (made.name, made.max_num_seqs, made.calibration) == ("there", profile.max_num_seqs, None)
    assert "weights_s x1.80" in made.source
    assert profile.source in made.source
    back = on_other_gpu(made, other, {"vllm": ONE}).step_time
    assert back.weights_s == pytest.approx(was.weights_s)
    assert back.per_decode_sequence_beside_prompts_s == pytest.approx(0.0)


def test_what_has_no_terms_and_gpus_that_no_engine_has_in_common_are_refused() -> None:
    with pytest.raises(InputError, match=r"its step time is table, .*give one of kind fitted"):
        on_other_gpu(load_profile("rtx-4090-llama-3.1-8b"), {"vllm": ONE}, {"vllm": ONE})
    with pytest.raises(InputError, match="measured with vllm on one, sglang on the other"):
        term_ratios({"vllm": ONE}, {"sglang": ONE})
    with pytest.raises(InputError, match=r"Llama-3.1-8B on A100: is not in operators.csv; did you mean .*A100-80GB"):
        shipped_operators("Llama-3.1-8B", "A100")


class _Lawful(IterationOperators):
    """Operators of known terms; attention of prompts computes tiles of 64 queries."""

    def prompts(self, batch: int, tokens: int) -> tuple[float, float, float]:
        tiles_s = 3e-5 * batch + 2e-9 * batch * tokens * (tokens + 1) / 2
        return 0.001 + 6e-5 * batch * tokens, tiles_s, 0.0

    def decode(self, batch: int, context: int) -> tuple[float, float, float]:
        return 0.010 + 1e-5 * batch, 1e-3 + 1e-5 * batch + 8e-8 * batch * context, 0.0005


@pytest.mark.parametrize(("gpu", "engine", "beside"), [("A100-80GB", "vllm", True), ("H100-SXM", "vllm", False),
                                                       ("A100-80GB", "sglang", False)])  # fmt: skip
def test_terms_are_read_off_iterations(gpu: str, engine: str, beside: bool) -> None:
    found = _terms(_Lawful(None), gpu, engine)
    assert found.weights_s == pytest.approx(0.0115 + 2e-5 + 16 * 8e-8)
    assert found.per_decode_sequence_s == pytest.approx(2e-5 + 16 * 8e-8)
    assert found.per_context_token_s == pytest.approx(8e-8)
    assert found.per_token_s == pytest.approx(6e-5)
    assert found.per_prefill_pair_s == pytest.approx(2e-9, rel=0.01)
    tile_s = 3e-5 + 2e-9 * 64 * 65 / 2 - 1e-5 - 64 * 8e-8
    assert found.per_decode_sequence_beside_prompts_s == pytest.approx(tile_s if beside else 0.0)


def test_an_a100_reads_as_its_memory_allows_and_computes_tiles_beside_prompts() -> None:
    a100, h100 = (shipped_operators("Llama-3.1-8B", gpu) for gpu in ("A100-80GB", "H100-SXM"))
    assert set(a100) == set(h100) == {"vllm", "sglang", "trtllm"}
    ratios = term_ratios(h100, a100)
    assert 3.35 / 2.039 < ratios["weights_s"] < 2  # what the sheets say, and what small kernels lose besides
    assert 2 < ratios["per_token_s"] < 989 / 312
    assert a100["vllm"].per_decode_sequence_beside_prompts_s > 3e-5
    assert h100["vllm"].per_decode_sequence_beside_prompts_s == 0.0


@here
def test_the_shipped_table_is_what_the_package_says() -> None:
    rows = table_rows("Llama-3.1-8B", ("A100-80GB", "H100-SXM"))
    assert len(rows) == 6
    for model, gpu, engine, *terms in rows:
        assert astuple(shipped_operators(model, gpu)[engine]) == tuple(terms)


@here
def test_a_profile_of_another_layout_is_refused() -> None:
    arguments = ["calibrate", "aiconfigurator", "Llama-3.1-8B", "A100-80GB", "--tp", "2"]
    shown = CliRunner().invoke(app, [*arguments, "--profile", "h100-llama-3.1-8b", "--measured-on", "H100-SXM"])
    assert "--tp: 2, and the profile is of 1 GPUs; give --tp 1" in shown.output + str(shown.exception)


@here
def test_the_command_carries_a_profile_over(tmp_path: Path) -> None:
    out = tmp_path / "a100.yaml"
    arguments = ["calibrate", "aiconfigurator", "Llama-3.1-8B", "A100-80GB", "--kv-tokens", "419728"]
    arguments += ["--profile", "h100-llama-3.1-8b", "--measured-on", "H100-SXM", "--out", str(out)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    made = load_profile(str(out))
    assert isinstance(made.step_time, FittedStepTime)
    assert made.step_time.weights_s == pytest.approx(1.749 * 0.0064802, rel=0.001)
    assert (made.max_num_seqs, made.max_num_batched_tokens, made.kv_blocks) == (256, 2048, 26_233)
    assert Profile.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile", "h100-llama-3.1-8b"], "--measured-on: missing beside --profile; give both"),
        (["--measured-on", "H100-SXM"], "--profile: missing beside --measured-on; give both"),
        (["--profile", "h100-llama-3.1-8b", "--measured-on", "H100-SXM", "--dp", "2"], "rank by rank"),
    ],
)
def test_half_of_what_it_takes_is_refused(options: list[str], message: str) -> None:
    shown = CliRunner().invoke(app, ["calibrate", "aiconfigurator", "Llama-3.1-8B", "A100-80GB", *options])
    assert message in shown.output + str(shown.exception)
