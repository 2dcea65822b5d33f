"""Layouts of a model fitted together: coefficients come back, and one without points has its family's."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.calibration.from_layouts import LayoutSweep, fit_layouts
from sim.calibration.from_sweep import SweepPoint, calibrate_sweep, simulate_point
from sim.calibration.layout_files import calibrate_layouts, layout_sweeps, read_layouts
from sim.engine.disaggregation import Disaggregated
from sim.engine.speculation import Speculation
from sim.engine.step_fitted import FittedStepTime
from sim.engine.step_time import LinearStepTime
from sim.errors import InputError
from sim.scenario.profile import Profile, parse_profile

DAY = date(2026, 11, 29)
SHARE = 1 / 16


def engine(step_time: Any, **changes: Any) -> Profile:
    values: dict[str, Any] = {"max_num_seqs": 256, "max_num_batched_tokens": 4096, "kv_blocks": 60_000}
    return Profile(step_time=step_time, **values | {"async_scheduling": True} | changes)


def truth(gpus: int) -> Profile:
    """Return an engine whose work is shared by its GPUs, but for what each does by itself."""
    step_time = FittedStepTime(
        base_s=3e-3, weights_s=8e-3 / gpus, experts_s=4e-2 / gpus, expert_share=SHARE, per_token_s=1.2e-4 / gpus,
        per_decode_sequence_s=3e-5, per_context_token_s=4e-8 / gpus, per_prefill_pair_s=4e-11 / gpus,
        per_prefill_iteration_s=3e-3,
    )  # fmt: skip
    return engine(step_time, request_overhead_s=0.015, request_per_running_s=3e-4, gpus=gpus)


def measured(profile: Profile, *, most: int = 64, noise: float = 0.0) -> list[SweepPoint]:
    rng = np.random.default_rng(profile.gpus)
    points = []
    for concurrency in (1, 2, 4, 8, 16, 32, 64):
        for prompt, output in ((512, 128), (2048, 128), (2048, 32)):
            point = SweepPoint(concurrency, prompt, output, 1.0, 1.0)
            ttft_s, tpot_s = np.array(simulate_point(profile, point)) * rng.lognormal(0, noise, 2)
            points.append(replace(point, ttft_s=ttft_s, tpot_s=tpot_s))
    return [point for point in points if point.concurrency <= most]


START = engine(FittedStepTime(weights_s=1e-2, expert_share=SHARE))


def errors(profile: Profile, points: list[SweepPoint]) -> np.ndarray:
    made = np.array([simulate_point(profile, point) for point in points])
    return made / np.array([(point.ttft_s, point.tpot_s) for point in points]) - 1


def test_a_sweep_gives_back_the_profile_that_made_it() -> None:
    points = measured(truth(4))
    (found,) = fit_layouts([LayoutSweep(START, 4, points)], passes=6)
    off = np.abs(errors(found, points))
    assert off[:, 1].max() < 0.01
    assert np.median(off[:, 0]) < 0.005
    assert off[:, 0].max() < 0.06  # where a request just misses an iteration
    step, real = found.step_time, truth(4).step_time
    assert step.expert_share == SHARE
    for name, within in {"experts_s": 0.2, "per_token_s": 0.05, "per_context_token_s": 0.3}.items():
        assert getattr(step, name) == pytest.approx(getattr(real, name), rel=within)
    # What reads all weights and what each iteration takes besides act alike, but for the greatest chunks.
    assert step.base_s + step.weights_s == pytest.approx(real.base_s + real.weights_s, rel=0.2)


def test_a_layout_without_points_has_its_familys_coefficients() -> None:
    sweeps = [LayoutSweep(START, gpus, measured(truth(gpus), noise=0.02) if gpus != 4 else []) for gpus in (1, 2, 4, 8)]
    found = fit_layouts(sweeps)
    unseen = errors(found[2], measured(truth(4)))
    assert np.median(np.abs(unseen)) < 0.05
    # It is the GPUs that say so: taken for one of another size, it is not met.
    elsewhere = fit_layouts([*sweeps[:2], replace(sweeps[2], gpus=1), sweeps[3]])[2]
    assert np.median(np.abs(errors(elsewhere, measured(truth(4))))) > 0.2


def test_few_points_are_drawn_to_the_family_and_many_are_not() -> None:
    odd = truth(2).model_copy(update={"step_time": replace(truth(2).step_time, per_token_s=1e-4)})
    many, few = measured(odd), [p for p in measured(odd) if p.concurrency == 1][:1]
    others = [LayoutSweep(START, gpus, measured(truth(gpus))) for gpus in (1, 4, 8)]
    own = fit_layouts([*others, LayoutSweep(START, 2, many)])[-1]
    drawn = fit_layouts([*others, LayoutSweep(START, 2, few)])[-1]
    assert np.median(np.abs(errors(own, many))) < 0.03
    assert abs(own.step_time.per_token_s - 1e-4) < abs(drawn.step_time.per_token_s - 1e-4)


def test_an_outlier_moves_little() -> None:
    points = measured(truth(4))
    wrong = [replace(p, ttft_s=9 * p.ttft_s) if i == 5 else p for i, p in enumerate(points)]
    (found,) = fit_layouts([LayoutSweep(START, 4, wrong)])
    assert np.median(np.abs(errors(found, points))) < 0.02


def test_models_without_experts_have_no_term_for_them() -> None:
    dense = engine(FittedStepTime(base_s=2e-3, weights_s=1e-2, per_token_s=4e-5), request_overhead_s=0.01)
    start = engine(FittedStepTime(weights_s=1e-2))
    (found,) = fit_layouts([LayoutSweep(start, 4, measured(dense, most=8))])
    assert found.step_time.experts_s == 0.0
    off = np.abs(errors(found, measured(dense, most=8)))  # most coefficients are 0, which a logarithm only nears
    assert np.median(off) < 0.03
    assert off.max() < 0.08
    kept = start.model_copy(update={"request_overhead_s": 0.01})
    (found,) = fit_layouts([LayoutSweep(kept, 4, measured(dense, most=8))], without=["request_overhead_s"])
    assert found.request_overhead_s == 0.01


POINT = SweepPoint(4, 512, 64, 0.1, 0.01)
STEP = FittedStepTime(weights_s=1e-2)
DRAFTS = Speculation(tokens=2, acceptance=0.5, per_draft_token_s=1e-5)
APART = Disaggregated(prefill_engines=1, decode_engines=1, kv_bytes_per_s=1e10)


@pytest.mark.parametrize(
    ("profile", "points", "without", "message"),
    [
        (START, [], (), "here: holds no point; give what was measured"),
        (START, [replace(POINT, tpot_s=0.0)], (), "here: a number that is not above 0 in SweepPoint"),
        (engine(LinearStepTime(base_s=0.01)), [POINT], (), "time is of kind linear; begin from one of kind fitted"),
        (engine(STEP, data_parallel=2, gpus=2), [POINT], (), "here: a layout has data_parallel, whose work is not"),
        (engine(STEP, speculation=DRAFTS), [POINT], (),
         "here: a layout has speculation, whose work is not counted; leave speculation out"),
        (engine(STEP, kv_bytes_per_token=1e5, disaggregated=APART), [POINT], (), "has disaggregated, whose work"),
        (engine(STEP, kv_blocks=257), [replace(POINT, prompt_tokens=4096)], (),
         "here: a request of 4160 tokens, and the KV cache holds 4112; give the kv_blocks that the engine had"),
        (START, [POINT], ["weight_s"], "--without weight_s: no term of this fit; did you mean weights_s"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_named(
    profile: Profile, points: list[SweepPoint], without: list[str], message: str
) -> None:
    with pytest.raises(InputError) as said:
        fit_layouts([LayoutSweep(profile, 4, points)], without=without, place="here")
    assert message in str(said.value)


def test_a_sweep_of_one_layout_refuses_requests_that_do_not_fit() -> None:
    points = [replace(POINT, concurrency=n, prompt_tokens=4096) for n in range(1, 12)]
    with pytest.raises(InputError, match="a request of 4160 tokens, and the KV cache holds 4112"):
        calibrate_sweep(engine(STEP, kv_blocks=257), points)


HEAD = "concurrency,prompt_tokens,output_tokens,ttft_s,tpot_s,gpus,kv_blocks"


def write(file: Path, *layouts: tuple[int, int, list[SweepPoint]]) -> Path:
    rows = [
        f"{p.concurrency},{p.prompt_tokens},{p.output_tokens},{p.ttft_s},{p.tpot_s},{gpus},{blocks}"
        for gpus, blocks, points in layouts
        for p in points
    ]
    rows += [f",,,,,{gpus},{blocks}" for gpus, blocks, points in layouts if not points]
    file.write_text("\n".join([HEAD, *rows]))
    return file


def test_a_file_of_several_layouts_makes_a_profile_of_each(tmp_path: Path) -> None:
    sizes = {1: 9000, 4: 60_000}
    file = write(tmp_path / "a.csv", *((g, b, measured(truth(g), most=16)) for g, b in sizes.items()), (2, 20_000, []))
    layouts = read_layouts(file)
    assert layouts is not None
    seen = [(each.gpus, each.kv_blocks, len(each.points)) for each in layouts]
    assert seen == [(1, 9000, 15), (2, 20_000, 0), (4, 60_000, 15)]
    made = calibrate_layouts(layout_sweeps(START, layouts), place="a", today=DAY)
    assert [(each.gpus, each.kv_blocks) for each in made] == [(1, 9000), (2, 20_000), (4, 60_000)]
    one, two, four = made
    for profile in (one, four):
        assert profile.calibration is not None
        assert profile.source.startswith("fitted to 21 points of a, 3 layouts, ")
        assert profile.calibration.held_out_error["tpot_median_abs"] < 0.05
        assert profile.calibration.ranges["concurrency"] == (1.0, 16.0)
        assert set(profile.calibration.noise_floor) == {"ttft", "tpot"}
        assert "points that were not fitted: TTFT" in profile.error
        parse_profile(profile.model_dump(mode="json", exclude_none=True), "again")
    assert one.calibration.measurements + four.calibration.measurements == 21  # type: ignore[union-attr]
    assert two.error.startswith("no point of this layout")
    assert np.median(np.abs(errors(two, measured(truth(2), most=16)))) < 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus\n1\n", "(it has gpus); give concurrency, prompt_tokens, output_tokens, ttft_s, tpot_s"),
        (f"{HEAD}\n4,512,64,0.1,0.01,,900", "row 2: gpus is missing; give the GPUs that share a layer"),
        (f"{HEAD}\n4,512,64,0.1,0.01,1.5,900", "row 2: gpus '1.5' is no whole number"),
        (f"{HEAD}\n4,512,64,0.1,0.01,2,900\n8,512,64,0.1,0.01,2,901", "several kv_blocks for 2 GPUs (900 and 901)"),
        (f"{HEAD}\n4,512,64,0.1,0.01,2,900,7,8", "has rows of more cells than its header; give each row as many"),
        (f"{HEAD}\n4,512,64,0.1,0.01,2,-{'9' * 400}", "row 2: kv_blocks '-9999"),
        (f"{HEAD}\n4,many,64,0.1,0.01,2,900", "row 2: prompt_tokens 'many' is no number"),
    ],
)
def test_a_file_that_does_not_say_its_layouts_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(text)
    with pytest.raises(InputError) as said:
        read_layouts(file)
    assert message in str(said.value)


def test_a_sweep_of_one_layout_is_read_as_before(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("concurrency,prompt_tokens,output_tokens,ttft_s,tpot_s\n4,512,64,0.1,0.01\n")
    assert read_layouts(file) is None
    with pytest.raises(InputError, match="cannot be read"):
        read_layouts(tmp_path / "nothing.csv")
