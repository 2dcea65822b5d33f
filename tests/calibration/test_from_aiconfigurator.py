"""Profiles from AIConfigurator's database: reasonable times, named errors; the package itself is an extra."""

from __future__ import annotations

import importlib.util

import pytest
from typer.testing import CliRunner

from sim.calibration import from_aiconfigurator
from sim.calibration.from_aiconfigurator import _split, calibrate_aiconfigurator
from sim.cli import app
from sim.errors import InputError
from sim.profiles.nearest import nearest
from sim.scenario.profile import Profile

here = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="the extra aiconfigurator is not installed"
)


@here
def test_a_model_on_a_gpu_reads_its_weights_and_computes_its_prompts() -> None:
    profile = calibrate_aiconfigurator("Llama-3.1-8B", "H100-SXM")
    step = profile.step_time
    assert 16.06e9 / 3.35e12 < step.iteration_s(0, 0.0, 1, 100) < 0.008  # a published run took 6.5 ms
    assert step.iteration_s(4096, 4096 * 4097 / 2, 0, 0) == pytest.approx(2 * 8e9 * 4096 / 7e14, rel=0.3)
    assert 20_000 < profile.kv_blocks < 32_000
    assert "aiconfigurator-core 0." in profile.source
    assert "Apache-2.0" in profile.source
    two = calibrate_aiconfigurator("meta-llama/Meta-Llama-3.1-70B", "H200-SXM", tp=2, gemm_quant="fp8")
    assert two.gpus == 2
    assert not two.lacks_links  # its all-reduces are among its operators
    shared = calibrate_aiconfigurator("Qwen3-30B-A3B", "RTX-PRO-6000", dp=2, ep=2)
    alone = calibrate_aiconfigurator("Qwen3-30B-A3B", "RTX-PRO-6000")
    assert shared.kv_blocks > alone.kv_blocks  # half of the experts leave room
    assert (shared.gpus, shared.data_parallel, shared.expert_parallel) == (2, 2, True)
    assert shared.held_blocks == 2 * shared.kv_blocks
    assert (alone.data_parallel, alone.expert_parallel) == (1, False)
    assert Profile.model_validate_json(shared.model_dump_json()) == shared


@here
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Llama-3.1-80B", "H100-SXM"], "did you mean llama-3.1-8b"),
        (["Llama-3.1-8B", "H100"], "unknown to aiconfigurator-core; did you mean H100"),
        (["Llama-3.1-8B", "H100-SXM", "--tp", "2", "--ep", "4"], "4 does not divide the 2 GPUs"),
        (["Llama-3.1-405B", "L4"], "cannot be estimated"),
        (["Llama-3.1-8B", "H100-SXM", "--tp", "3"], "num_heads 32 should be divisible by tp_size 3"),
        (["Llama-3.1-8B", "H100-SXM", "--precision", "fp88"], "--precision: unknown precision fp88; did you mean fp8?"),
    ],
)
def test_what_it_does_not_know_is_named(arguments: list[str], message: str) -> None:
    shown = CliRunner().invoke(app, ["calibrate", "aiconfigurator", *arguments])
    assert message in shown.output + str(shown.exception)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.extras.find_spec", lambda _: None)
    with pytest.raises(InputError, match="needs the extra 'aiconfigurator'"):
        from_aiconfigurator._sdk()


def test_attention_is_told_from_the_rest() -> None:
    operators = [("context_attention", 2.0), ("context_attention_gemm", 1.0), ("context_ar_1", 0.5), ("dispatch", 1.0)]
    assert _split(operators) == pytest.approx((0.001, 0.002, 0.0015))


def test_the_nearest_shipped_profiles_come_first() -> None:
    assert nearest("meta-llama/Meta-Llama-3.1-8B-Instruct", "H100-SXM")[0][0] == "h100-llama-3.1-8b"
    assert nearest("Qwen/Qwen3-32B", "RTX-PRO-6000")[0][0] == "rtx-pro-6000-qwen3-32b-tp2"
    shown = CliRunner().invoke(app, ["profiles", "Llama-3.1-8B", "RTX-4090"])
    assert shown.output.startswith("rtx-4090-llama-3.1-8b")
    assert "error: " in shown.output
    assert "measured for " in shown.output
