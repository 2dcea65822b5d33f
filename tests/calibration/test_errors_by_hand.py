"""What is said of a run, on paper: errors of latencies, what of them is chance, and verdicts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from sim.calibration.measured import MeasuredRun, check_fits, errors, per_request, sampling
from sim.calibration.noise import RUNS, T_OF_RUNS, averaged, perturbed, verdict
from sim.calibration.single_replica import Latencies, Requests, replay
from sim.calibration.validate import PUBLISHED, error_table, judge, plot_validation, save_plot, validate_profile
from sim.engine.step_fitted import FittedStepTime
from sim.engine.step_roofline import RooflineStepTime
from sim.engine.work import Hardware, Work
from sim.errors import InputError
from sim.scenario.profile import Profile

ASKED = Requests(np.array([0.0, 1.0, 2.0, 3.0]), np.array([9, 9, 9, 9]), np.array([11, 1, 3, 5]))
MEASURED = Latencies(np.array([0.5, 1.2, 2.4, 3.5]), np.array([1.5, 1.2, 3.4, math.nan]))  # the last did not end
MADE = Latencies(np.array([0.6, 1.1, 2.4, 3.1]), np.array([1.6, 1.1, 3.2, 4.0]))


def test_latencies_of_requests() -> None:
    found = per_request(ASKED, MEASURED)
    assert found["ttft"] == pytest.approx([0.5, 0.2, 0.4, 0.5])
    assert found["tpot"] == pytest.approx([0.1, math.nan, 0.5, math.nan], nan_ok=True)  # one token has no further one
    assert found["e2e"] == pytest.approx([1.5, 0.2, 1.4, math.nan], nan_ok=True)


def test_errors_are_of_those_that_ended() -> None:
    table = errors(ASKED, MEASURED, MADE).set_index(["metric", "statistic"])
    expected = {  # of three requests, of two with further tokens; quantiles lie on the line between neighbours
        ("ttft", "mean"): (1.1 / 3, 1.1 / 3), ("ttft", "p50"): (0.4, 0.4), ("ttft", "p90"): (0.48, 0.56),
        ("ttft", "p99"): (0.498, 0.596), ("tpot", "mean"): (0.3, 0.25), ("tpot", "p50"): (0.3, 0.25),
        ("e2e", "mean"): (3.1 / 3, 2.9 / 3), ("e2e", "p50"): (1.4, 1.2), ("e2e", "p90"): (1.48, 1.52),
    }  # fmt: skip
    for key, (there, here) in expected.items():
        assert table.measured_s[key] == pytest.approx(there), key
        assert table.simulated_s[key] == pytest.approx(here), key
        assert table.error[key] == pytest.approx(here / there - 1, abs=1e-9), key
    part = errors(ASKED, MEASURED, MADE, np.array([True, False, True, True]))
    assert part.measured_s[0] == pytest.approx(0.45)  # means of the first and third


def test_other_requests_of_the_kind_would_differ_by_what_statistics_says() -> None:
    rng = np.random.default_rng(1)
    n = 400
    asked = Requests(np.zeros(n), np.full(n, 9), np.full(n, 2))
    ttft_s = rng.exponential(1.0, n)
    ttft_s[n // 2 :] = 50.0  # no part of it
    found = sampling(asked, Latencies(ttft_s, ttft_s + 1.0), np.arange(n) < n // 2)
    assert len(found) == 12
    # Of an exponential law: the mean's standard error is 1 / sqrt(n), and so is the median's, of ln 2.
    assert found[0] == pytest.approx(1.96 / math.sqrt(200), rel=0.2)
    assert found[1] == pytest.approx(1.96 / math.sqrt(200) / math.log(2), rel=0.3)
    assert found[4] == pytest.approx(0.0, abs=1e-9)  # all further tokens take a second


def test_the_mean_of_copies_and_what_one_varies_by() -> None:
    one, other = (pd.DataFrame({"measured_s": [2.0], "simulated_s": [s], "error": [s / 2 - 1]}) for s in (2.0, 2.4))
    found = averaged([one, other])
    assert found.simulated_s[0] == pytest.approx(2.2)
    assert found.error[0] == pytest.approx(0.1)
    assert found.floor[0] == pytest.approx(2.36 * 0.2 * math.sqrt(2) / 2.0)
    assert averaged([one]).floor[0] == 0.0


def test_the_factor_is_students_of_so_many_runs() -> None:
    assert t.ppf(0.975, RUNS - 1) == pytest.approx(T_OF_RUNS, rel=0.003)


def test_chance_decides_within_an_eighth_mean_of_the_limit() -> None:
    floor = 0.01 * math.sqrt(8)  # of a mean over eight runs, 0.01
    assert [verdict(e, floor, 0.03) for e in (0.019, 0.021, -0.039, -0.041, math.inf)] == [
        True, None, None, False, False
    ]  # fmt: skip


def test_copies_of_a_profile_differ_by_a_ten_thousandth() -> None:
    step = FittedStepTime(weights_s=0.01, per_token_s=1e-4, expert_share=0.5, experts_s=0.01)
    profile = Profile(step_time=step, max_num_seqs=8, max_num_batched_tokens=64, kv_blocks=100)
    copies = perturbed(profile, 200)
    assert copies[0] is profile
    off = np.array([each.step_time.weights_s / 0.01 - 1 for each in copies[1:]])
    assert off.std() == pytest.approx(1e-4, rel=0.2)
    assert abs(off.mean()) < 3e-5
    assert {each.step_time.expert_share for each in copies} == {0.5}  # no time
    assert {each.step_time.base_s for each in copies} == {0.0}
    work = Work(parameters=7e9, kv_bytes_per_token=1e5, flops_per_pair=1e5)
    hardware = Hardware(flops_per_s=1e15, bytes_per_s=3e12)
    whole = RooflineStepTime(work=work, hardware=hardware, compute_efficiency=1.0, memory_efficiency=0.5)
    shares = [each.step_time for each in perturbed(profile.model_copy(update={"step_time": whole}), 50)[1:]]
    assert all(0.9995 < each.compute_efficiency < 1.0 for each in shares)
    assert all(0.9995 < each.memory_efficiency / 0.5 < 1.0 for each in shares)


def rows(**changes: Any) -> pd.DataFrame:
    found = {"metric": "ttft", "statistic": "mean", "measured_s": 0.2, "simulated_s": 0.21, "error": 0.05,
             "floor": 0.001, "sampling": 0.02, "published": math.nan}  # fmt: skip
    return pd.DataFrame([found | {"metric": "e2e", "error": -0.01, "published": -0.018}, found | changes])


def test_every_mean_is_judged_and_the_first_that_misses_decides() -> None:
    assert judge(rows(error=0.01), 0.03)
    assert not judge(rows(), 0.03)
    assert judge(rows(statistic="p99"), 0.03)
    with pytest.raises(InputError, match=r"no verdict: ttft is off by \+3\.00 % \+-1\.00, too near to 3 % to tell"):
        judge(rows(error=0.03, floor=0.01), 0.03)


def test_errors_as_text() -> None:
    heads, line, first, second = error_table(rows()).splitlines()
    assert line == "-" * len(heads)
    assert first.split() == ["e2e", "mean", "200.0", "210.0", "-1.00", "0.10", "2.0", "-1.8"]
    assert second.split() == ["ttft", "mean", "200.0", "210.0", "+5.00", "0.10", "2.0"]  # nobody published one
    for head, cell in (("measured ms", "200.0"), ("simulated ms", "210.0"), ("error %", "-1.00"), ("chance %", "0.10")):
        assert heads.index(head) + len(head) == first.index(cell) + len(cell)
    assert len(heads) == len(first)


def test_a_run_of_single_tokens_is_judged_by_what_it_has() -> None:
    asked = Requests(np.arange(4.0), np.full(4, 9), np.ones(4, np.int64))
    made = Latencies(asked.arrival_s + 0.5, asked.arrival_s + 0.5)
    table = errors(asked, made, made).assign(floor=0.0)
    assert table.error[table.metric == "tpot"].isna().all()
    assert judge(table, 0.01)
    assert not judge(table.assign(error=0.02), 0.01)
    assert np.isnan(sampling(asked, made)[4:8]).all()


def test_a_publishers_errors_stand_beside_those_of_its_own_runs() -> None:
    name = "RTX4090_Llama-3.1-8B"
    profile = Profile(
        step_time=FittedStepTime(weights_s=0.01), max_num_seqs=8, max_num_batched_tokens=64, kv_blocks=100
    )
    made = replay(profile, ASKED)
    table, simulated = validate_profile(profile, MeasuredRun(name, ASKED, made))
    beside = dict(zip(zip(table.metric, table.statistic, strict=True), table.published, strict=True))
    assert {key: value for key, value in beside.items() if not math.isnan(value)} == dict(PUBLISHED[name])
    assert simulated.finish_s == pytest.approx(made.finish_s)
    assert table.error.abs().max() < 1e-3
    assert table.sampling[0] > 0
    assert validate_profile(profile, MeasuredRun("another", ASKED, made))[0].published.isna().all()


def test_every_request_is_drawn_against_itself(tmp_path: Path) -> None:
    figure = plot_validation(MeasuredRun("run", ASKED, MEASURED), MADE, "a title")
    assert figure.get_suptitle() == "a title"
    panels = figure.axes
    assert [axes.get_xlabel() for axes in panels] == [
        "measured time to first token (s)", "measured time per further token (s)", "measured end to end (s)"
    ]  # fmt: skip
    assert {axes.get_ylabel() for axes in panels} == {"simulated (s)"}
    first = panels[0]
    points = np.asarray(first.collections[0].get_offsets())
    assert points == pytest.approx(np.array([[0.5, 0.6], [0.2, 0.1], [0.4, 0.4], [0.5, 0.1]]))
    lines = [np.asarray(line.get_xydata()) for line in first.lines]
    for line, factor in zip(lines, (1.0, 0.9, 1.1), strict=True):
        assert line == pytest.approx(np.array([[0.1, factor * 0.1], [0.6, factor * 0.6]]))
    legend = first.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["equal", "±10 %"]
    assert save_plot(figure, tmp_path / "new" / "folder", "run") == tmp_path / "new" / "folder" / "run.png"
    assert (tmp_path / "new" / "folder" / "run.png").stat().st_size > 1000
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .*; name another folder"):
        save_plot(figure, tmp_path / "file", "run")


def test_an_engine_that_could_not_have_served_a_run_is_refused() -> None:
    run = MeasuredRun("run", Requests(np.zeros(2), np.array([30, 20]), np.array([2, 13])), MADE)
    small = Profile(step_time=FittedStepTime(weights_s=0.01), max_num_seqs=8, max_num_batched_tokens=64, kv_blocks=2)
    with pytest.raises(InputError, match=r"a request of 20 \+ 13 tokens, and the KV cache of the profile 32 tokens"):
        check_fits(small, run)
    check_fits(small.model_copy(update={"kv_blocks": 3, "max_model_tokens": 33}), run)
    with pytest.raises(InputError, match=r"a request of 20 \+ 13 tokens, and the profile takes 32 at most"):
        check_fits(small.model_copy(update={"kv_blocks": 3, "max_model_tokens": 32}), run)
