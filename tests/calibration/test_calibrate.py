"""Calibration finds what it is known to be made of, says how sure it is, and refuses what data cannot tell."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from calibration.lawful_tables import write_tables
from typer.testing import CliRunner

from sim.calibration.fitting import Term, fit
from sim.calibration.from_records import RECORD_TERMS, calibrate_records
from sim.calibration.from_server import Measurements, calibrate_live
from sim.calibration.from_steps import calibrate_steps, decodes, prompts
from sim.calibration.from_sweep import SweepPoint, calibrate_sweep, simulate_point
from sim.calibration.kernel_tables import grid_errors, read_kernel_tables, step_from_tables, thinned
from sim.calibration.measured import MeasuredRun, errors, read_run
from sim.calibration.single_replica import Latencies, Requests, closed_loop, replay
from sim.cli import app
from sim.engine.step_fitted import FittedStepTime
from sim.errors import InputError
from sim.scenario.profile import Profile, load_profile

DAY = date(2026, 11, 23)
TRUTH = FittedStepTime(weights_s=0.012, per_token_s=5e-5, per_context_token_s=2e-7, per_prefill_iteration_s=0.004)


def engine(step_time: Any, **changes: Any) -> Profile:
    return Profile(step_time=step_time, max_num_seqs=64, max_num_batched_tokens=2048, kv_blocks=20000, **changes)


def requests(n: int, rate_per_s: float, seed: int = 1) -> Requests:
    rng = np.random.default_rng(seed)
    return Requests(np.cumsum(rng.exponential(1 / rate_per_s, n)), rng.integers(50, 3000, n), rng.integers(20, 300, n))


def made(step_time: Any, n: int = 120, rate_per_s: float = 4.0) -> MeasuredRun:
    asked = requests(n, rate_per_s)
    return MeasuredRun("made", asked, replay(engine(step_time), asked))


def test_records_give_back_the_coefficients_that_made_them() -> None:
    start = engine(FittedStepTime(weights_s=0.01, per_token_s=4e-5))
    found = calibrate_records(start, made(TRUTH), today=DAY)
    for name, (low, high) in found.fit.confidence.items():
        assert low <= found.fit.values[name] <= high
        if name != "per_prefill_iteration_s":  # which trades against per_token_s: only their sum is pinned down
            assert found.fit.values[name] == pytest.approx(getattr(TRUTH, name), rel=0.1), name
    assert found.held_out[found.held_out.statistic == "mean"].error.abs().max() < 0.03
    calibration = found.profile.calibration
    assert calibration is not None
    assert calibration.date == "2026-11-23"
    assert calibration.held_out_error.keys() >= {"ttft_mean", "tpot_p99"}


def test_a_tenth_of_wild_records_changes_little() -> None:
    run = made(TRUTH)
    wild = np.random.default_rng(5).random(len(run.requests)) < 0.1
    late = Latencies(run.latencies.first_token_s + 5 * wild, run.latencies.finish_s + 5 * wild)
    start = engine(FittedStepTime(weights_s=0.01, per_token_s=4e-5))
    found = calibrate_records(start, MeasuredRun("wild", run.requests, late), today=DAY)
    assert found.fit.values["weights_s"] == pytest.approx(TRUTH.weights_s, rel=0.1)
    assert found.fit.values["per_token_s"] == pytest.approx(TRUTH.per_token_s, rel=0.15)


def test_a_term_without_data_is_refused_and_the_measurement_named() -> None:
    run = made(TRUTH)
    unseen = Term("per_context_token_beside_prompts_s", 1e-7, "prompts sent to a busy engine")
    lonely = Requests(np.arange(40) * 60.0, np.full(40, 500), np.full(40, 20))
    alone = MeasuredRun("alone", lonely, replay(engine(TRUTH), lonely))
    terms = [*RECORD_TERMS[FittedStepTime][:2], unseen]
    with pytest.raises(InputError, match=r"does not identify per_context_token_beside_prompts_s; .*a busy engine"):
        calibrate_records(engine(TRUTH), alone, terms=terms, today=DAY)
    few = Requests(run.requests.arrival_s[:1], run.requests.prompt_tokens[:1], run.requests.output_tokens[:1])
    with pytest.raises(InputError, match="3 measurements for 4 terms"):
        calibrate_records(engine(TRUTH), MeasuredRun("few", few, replay(engine(TRUTH), few)), share=1, today=DAY)


def test_two_terms_that_only_act_together_are_refused() -> None:
    x = np.linspace(1, 2, 30)
    terms = [Term("a", 1.0, "another"), Term("b", 1.0, "another")]
    with pytest.raises(InputError, match="does not identify"):
        fit(lambda v: (v["a"] + v["b"]) * x - 2 * x + 0.01 * np.sin(50 * x), terms, place="here", robust_at=0.1)


def test_a_sweep_gives_back_the_coefficients_that_made_it() -> None:
    step_time = FittedStepTime(weights_s=0.01, per_token_s=6e-5, per_decode_sequence_s=6e-5, per_context_token_s=1e-7)
    truth = engine(step_time)
    start = engine(FittedStepTime(weights_s=0.008, per_token_s=4e-5))
    points = []
    for concurrency in (1, 4, 10):
        for prompt, output in ((256, 64), (1500, 64), (1500, 256)):
            point = SweepPoint(concurrency, prompt, output, 1.0, 1.0)
            ttft_s, tpot_s = simulate_point(truth, point)
            points.append(replace(point, ttft_s=ttft_s, tpot_s=tpot_s))
    terms = [Term("weights_s", 1e-2, "low load"), Term("per_token_s", 5e-5, "long prompts")]
    terms += [Term("per_decode_sequence_s", 5e-5, "high load"), Term("per_context_token_s", 5e-8, "long context")]
    found = calibrate_sweep(start, points, terms=terms, today=DAY)
    assert found.points[~found.points.used].tpot_error.abs().max() < 0.02
    assert found.fit.values["weights_s"] == pytest.approx(0.01, rel=0.03)
    assert found.fit.values["per_token_s"] == pytest.approx(6e-5, rel=0.05)
    seen = Measurements(run=made(TRUTH), kv_blocks=20000, max_num_seqs=64, async_scheduling=False)
    live = calibrate_live(seen, today=DAY)
    assert live.step_time.weights_s == pytest.approx(TRUTH.weights_s, rel=0.1)
    with pytest.raises(InputError, match="nothing was measured"):
        calibrate_live(Measurements(kv_blocks=100))


def test_steps_give_back_the_coefficients_that_made_them() -> None:
    truth = FittedStepTime(weights_s=0.04, per_token_s=2e-4, per_decode_sequence_s=3e-4, per_prefill_iteration_s=0.01)
    steps = [prompts(b, p, 1.0) for b in (1, 2, 4) for p in (128, 512, 1024, 2048)]
    steps += [decodes(b, c, 1.0) for b in (1, 2, 8, 32) for c in (200, 1000)]
    steps = [step._replace(duration_s=truth.iteration_s(*step[:4])) for step in steps]
    sizes = {"weights_s": 0.01, "per_token_s": 1e-4, "per_decode_sequence_s": 1e-4, "per_prefill_iteration_s": 0.005}
    terms = [Term(name, size, "more") for name, size in sizes.items()]
    found = calibrate_steps(engine(FittedStepTime(weights_s=0.01, per_token_s=1e-4)), steps, terms=terms, today=DAY)
    assert np.abs(found.error).max() < 0.01
    # Measured without noise, other draws score alike; with a tenth of it they do not, and the profile says so.
    calibration = found.profile.calibration
    assert calibration.noise_floor["mean_abs"] < 0.005
    rng = np.random.default_rng(5)
    noisy = [step._replace(duration_s=step.duration_s * rng.lognormal(0, 0.1)) for step in steps]
    again = calibrate_steps(engine(FittedStepTime(weights_s=0.01, per_token_s=1e-4)), noisy, terms=terms, today=DAY)
    assert 0.01 < again.profile.calibration.noise_floor["mean_abs"] < 0.2
    assert f"chance +-{100 * again.profile.calibration.noise_floor['mean_abs']:.1f} %" in again.profile.error


def test_a_closed_loop_keeps_so_many_requests_in_flight() -> None:
    asked = requests(50, 1.0)
    run = closed_loop(engine(TRUTH), asked, 7)
    assert run.arrival_s is not None
    events = sorted([(t, 1) for t in run.arrival_s] + [(t, -1) for t in run.finish_s])
    depth = np.cumsum([d for _, d in events])
    assert depth.max() == 7
    assert np.all(np.sort(run.arrival_s)[7:] == np.sort(run.finish_s)[: 50 - 7])


# ------------------------------------------------------------------------------------------------------------ files


def test_kernel_tables_sum_layers_and_are_met_by_the_step_time(tmp_path: Path) -> None:
    write_tables(tmp_path)
    tables = read_kernel_tables(tmp_path, layers=10)
    assert tables.dense_s[64] == pytest.approx((10 * (50 + 6.4) + 2 * 10 * 2.0 + 3.0) * 1e-6)
    step = step_from_tables(tables)
    with pytest.warns(UserWarning, match="dense_tokens"):  # 2048 prompt tokens beside decodes: more than was measured
        table = grid_errors(step, tables)
    inside = table[table.prefill_chunk + table.n_decode <= 2048]
    assert inside.error.abs().max() < 0.005


def test_kernel_tables_that_are_wrong_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dense\.csv: cannot be read"):
        read_kernel_tables(tmp_path, layers=1)
    write_tables(tmp_path)
    (tmp_path / "per_sequence.csv").write_text("layer,sequences,time_ms\nlm_head,1,2\n")
    with pytest.raises(InputError, match=r"per_sequence\.csv: has the columns layer, sequences, time_ms"):
        read_kernel_tables(tmp_path, layers=1)
    (tmp_path / "per_sequence.csv").write_text("layer,sequences,time_us\nlm_head,1,0\n")
    with pytest.raises(InputError, match="not above 0"):
        read_kernel_tables(tmp_path, layers=1)


def test_thinning_keeps_within_the_tolerance() -> None:
    x = np.arange(1, 400, dtype=float)
    y = 0.01 + np.maximum(0.0, x - 200) * 1e-4
    knots, values = thinned(pd.Series(y, x), 0.002)
    assert len(knots) < 20
    assert np.abs(np.interp(x, knots, values) / y - 1).max() <= 0.0021


def run_csv(folder: Path, run: MeasuredRun) -> Path:
    file = folder / "run.csv"
    columns = {"arrival_s": run.requests.arrival_s, "prompt_tokens": run.requests.prompt_tokens}
    columns |= {"output_tokens": run.requests.output_tokens, "first_token_s": run.latencies.first_token_s}
    pd.DataFrame(columns | {"finish_s": run.latencies.finish_s}).to_csv(file, index=False)
    return file


def test_a_run_is_read_as_written_and_bad_ones_are_named(tmp_path: Path) -> None:
    run = made(TRUTH, n=30)
    file = run_csv(tmp_path, run)
    again = read_run(file)
    assert np.allclose(errors(again.requests, again.latencies, again.latencies).error, 0)
    assert len(again.requests) == 30
    table = pd.read_csv(file)
    for change, message in (
        (table.drop(columns="finish_s"), "has no column finish_s"),
        (table.assign(first_token_s=-1.0), "answered before it came"),
        (table.assign(finish_s=np.nan), "no request that finished"),
    ):
        change.to_csv(file, index=False)
        with pytest.raises(InputError, match=message):
            read_run(file)


def test_the_commands_write_a_profile_and_judge_it(tmp_path: Path) -> None:
    file, out = run_csv(tmp_path, made(TRUTH)), tmp_path / "found.yaml"
    options = ["--kv-blocks", "20000", "--max-num-seqs", "64", "--no-async-scheduling", "--out", str(out)]
    result = CliRunner().invoke(app, ["calibrate", "records", str(file), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert load_profile(str(out)).step_time.weights_s == pytest.approx(TRUTH.weights_s, rel=0.1)
    options = ["--at-most", "5", "--plots", str(tmp_path / "p")]
    judge = CliRunner().invoke(app, ["validate-profile", str(out), str(file), *options])
    assert judge.exit_code == 0, judge.output
    assert judge.output.splitlines()[3].startswith("ttft    mean"), judge.output
    assert (tmp_path / "p" / "run.png").stat().st_size > 10_000
    strict = CliRunner().invoke(app, ["validate-profile", str(out), str(file), "--at-most", "0.0000001"])
    assert strict.exit_code == 1
    for name, code, said in ((str(out), 1, ""), ("nothing", 2, "error: PROFILE: unknown profile 'nothing'")):
        words = ["validate-profile", name, str(file), "--at-most", "0.0000001"]  # as from a shell
        done = subprocess.run([sys.executable, "-m", "sim", *words], capture_output=True, text=True, check=False)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr


# ------------------------------------------------------------------------------------------------------ real data

DATA = os.environ.get("TOKENPOOLS_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="TOKENPOOLS_DATA does not name the folder of real data")


@needs_data
@pytest.mark.filterwarnings("ignore:step time extrapolates")
@pytest.mark.parametrize("name", ["RTX4090_meta-llama_Llama-3.1-8B_bf16_tp1", "RTXPRO6000_Qwen_Qwen3-32B_bf16_tp2"])
def test_the_table_step_is_within_two_percent_of_its_own_grid(name: str) -> None:
    tables = read_kernel_tables(Path(str(DATA)) / "kernel-profiles" / name, layers=32)
    assert grid_errors(step_from_tables(tables), tables).error.abs().mean() < 0.02


@needs_data
@pytest.mark.parametrize(
    ("profile", "name"),
    [
        ("rtx-4090-llama-3.1-8b", "RTX4090_Llama-3.1-8B"),
        ("rtx-pro-6000-llama-3.1-8b", "RTXPRO6000_Llama-3.1-8B"),
    ],
)
def test_the_published_runs_are_predicted_from_kernel_tables_alone(profile: str, name: str) -> None:
    run = read_run(Path(str(DATA)) / "vllm-0.19-sharegpt" / name / "requests.jsonl")
    table = errors(run.requests, run.latencies, replay(load_profile(profile), run.requests))
    error = table.set_index(["metric", "statistic"]).error.abs()
    assert error["ttft", "mean"] < 0.05
    assert error["ttft", "p99"] < 0.05
    assert error["tpot", "mean"] < 0.03
    assert error["tpot", "p99"] < 0.05
    assert error["e2e", "mean"] < 0.03
