"""Profiles from two thirds of the silicon sample: near where it is lawful, within the goals on real engines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim.calibration.from_sweep import SweepPoint, simulate_point
from sim.engine.step_fitted import FittedStepTime
from sim.errors import InputError
from sim.studies.silicon_fit import (
    METRICS,
    HeldOut,
    doubled,
    draws_table,
    engines,
    held_out,
    held_out_table,
    layout_sweep,
    measurement,
    predict,
    repeats,
)
from sim.studies.silicon_sample import FOLDER, SAMPLE, read_sample

DATA = Path(os.environ.get("TOKENPOOLS_DATA", "/nowhere"))
NOTHING = {f"{metric}_{what}": 0.0 for metric in METRICS for what in ("error", "floor", "chance")}
LLAMA = {"model_path": "meta-llama/Llama-3.1-70B", "system": "h200_sxm", "precision": "fp8"}


def row(tp: int, isl: int, osl: int, clients: int, **changes: Any) -> dict[str, Any]:
    found = {
        "backend": "vllm", "mode": "agg", **LLAMA, "backend_version": np.nan, "tp_size": float(tp), "pp_size": 1.0,
        "attention_dp_size": 1.0, "moe_tp_size": float(tp), "moe_ep_size": 1.0, "isl": isl, "osl": osl,
        "concurrency": float(clients), "silicon_ttft_ms": 1.0, "silicon_tpot_ms": 1.0,
    }  # fmt: skip
    return found | changes


def lawful(noise: float = 0.0) -> pd.DataFrame:
    """Return points of engines that go by a law of their GPUs."""
    rng = np.random.default_rng(3)
    rows = []
    for tp in (2, 4, 8):
        step_time = FittedStepTime(
            base_s=3e-3, weights_s=0.03 / tp, per_token_s=1.6e-4 / tp, per_decode_sequence_s=3e-5,
            per_context_token_s=6e-8 / tp, per_prefill_iteration_s=2e-3, per_prefill_pair_s=4e-12 / tp,
        )  # fmt: skip
        start = layout_sweep(pd.DataFrame([row(tp, 1024, 256, 4)]), pd.Series(row(tp, 1024, 256, 4))).profile
        engine = start.model_copy(update={"step_time": step_time, "request_overhead_s": 0.02})
        for isl in (1024, 4096):
            for osl in (256, 512):
                for clients in (4, 8, 16, 32):
                    made = simulate_point(engine, SweepPoint(clients, isl, osl, 1.0, 1.0))
                    ttft_ms, tpot_ms = 1e3 * np.array(made) * rng.lognormal(0, noise, 2)
                    rows.append(row(tp, isl, osl, clients, silicon_ttft_ms=ttft_ms, silicon_tpot_ms=tpot_ms))
    return pd.DataFrame(rows)


SAMPLE_OF_LAWS = lawful()


def test_a_lawful_sample_is_met_where_it_was_not_seen() -> None:
    found = held_out(SAMPLE_OF_LAWS)
    assert len(found.points) == 16
    assert found.medians()["tpot"] < 0.01
    assert found.medians()["ttft"] < 0.04
    assert min(found.medians("chance").values()) > 0.2
    assert 0 < max(found.medians("floor").values()) < 0.05
    # What was left out plays no part: its measurements may be anything.
    spoilt = SAMPLE_OF_LAWS.copy()
    spoilt.loc[found.points.index, ["silicon_ttft_ms", "silicon_tpot_ms"]] = 1.0
    again = held_out(spoilt)
    assert again.points.tpot_ms.to_numpy() == pytest.approx(found.points.tpot_ms.to_numpy())


def test_noise_is_not_learnt() -> None:
    medians = held_out(lawful(noise=0.1)).medians()
    assert all(0.02 < median < 0.15 for median in medians.values())


def test_a_layout_that_was_not_measured_is_met_by_its_family() -> None:
    used = (SAMPLE_OF_LAWS.tp_size != 4).to_numpy()
    made = predict(SAMPLE_OF_LAWS, used)[~used]
    for name in ("ttft", "tpot"):
        off = made[f"{name}_ms"] / SAMPLE_OF_LAWS[f"silicon_{name}_ms"][~used] - 1
        assert off.abs().median() < 0.05
    other = SAMPLE_OF_LAWS[:1].assign(model_path="openai/gpt-oss-120b", precision="fp4")
    both = pd.concat([SAMPLE_OF_LAWS[:8], other], ignore_index=True)
    assert predict(both, np.arange(9) < 8).iloc[8].isna().all()  # of that family nothing is known


def test_copies_of_a_measurement_are_left_out_together() -> None:
    copies = SAMPLE_OF_LAWS.assign(backend_version="0.19.0", silicon_ttft_ms=SAMPLE_OF_LAWS.silicon_ttft_ms * 1.00001)
    twice = pd.concat([SAMPLE_OF_LAWS, copies], ignore_index=True)
    which = measurement(twice)
    assert list(which[: len(copies)]) == list(which[len(copies) :])
    left = held_out(twice, by="measurement").points
    assert len(left) == 2 * 16
    assert left.isl.value_counts().mod(2).eq(0).all()
    assert set(measurement(left).tolist()) == set(range(16))
    by_row = held_out(twice).points
    assert len(by_row) == 32
    assert len(set(measurement(by_row).tolist())) > 16  # a part of what was left out has been seen
    assert np.isnan(repeats(twice)).all()


def test_what_measurements_of_one_configuration_differ_by() -> None:
    again = SAMPLE_OF_LAWS.assign(silicon_ttft_ms=1.1 * SAMPLE_OF_LAWS.silicon_ttft_ms)
    assert repeats(pd.concat([SAMPLE_OF_LAWS, again], ignore_index=True)) == pytest.approx((0.1, 0.0))


def test_a_rank_has_its_share_of_gpus_clients_and_weights() -> None:
    minimax = {"model_path": "MiniMaxAI/MiniMax-M2.5", "system": "b200_sxm", "precision": "fp4"}
    ranked = pd.DataFrame([row(2, 1024, 1024, 64, **minimax, attention_dp_size=2.0, moe_ep_size=4.0)])
    plain = pd.DataFrame([row(2, 1024, 1024, 64, **minimax)])
    one, both = (layout_sweep(each, each.iloc[0]) for each in (ranked, plain))
    assert (one.gpus, one.points[0].concurrency) == (1, 32)
    assert (both.gpus, both.points[0].concurrency) == (2, 64)
    assert one.profile.kv_blocks == pytest.approx(both.profile.kv_blocks / 2, rel=1e-3)
    assert both.profile.step_time.expert_share == 8 / 256
    assert one.profile.step_time.expert_share == pytest.approx(1 - (1 - 8 / 256) ** 2)


def shared_experts(**changes: Any) -> dict[str, Any]:
    minimax = {"model_path": "MiniMaxAI/MiniMax-M2.5", "system": "b200_sxm", "precision": "fp4"}
    return row(2, 1024, 1024, 64, **minimax, moe_tp_size=1.0, moe_ep_size=2.0) | changes


def test_an_engine_that_stands_under_two_layouts_is_the_one_without_ranks() -> None:
    ranks = {"attention_dp_size": 2.0, "moe_ep_size": 4.0}
    beyond = shared_experts(**ranks, concurrency=512.0)
    points = pd.DataFrame([shared_experts(), shared_experts(**ranks), beyond, row(2, 1024, 1024, 64)])
    read = engines(points)
    assert list(read.attention_dp_size) == [1, 1, 2, 1]  # at 512 it is there with ranks only
    assert list(read.moe_ep_size) == [2, 2, 4, 1]
    assert list(points.attention_dp_size) == [1, 2, 2, 1]  # what it stands under is kept for the tables
    assert doubled(points) == 1
    text = draws_table(points, {"row": [], "measurement": [HeldOut(points.assign(**NOTHING))]})
    assert "1 measurements stand under two layouts, with data-parallel ranks and without." in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_path": "meta-llama/Llama-3.1-71B"}, "model meta-llama/Llama-3.1-71B: unknown to the silicon fit"),
        ({"system": "h300_sxm"}, "GPU h300_sxm: unknown to the silicon fit; did you mean h200_sxm"),
        ({"precision": "int4"}, "model meta-llama/Llama-3.1-70B: unknown at precision int4"),
        ({"model_path": "MiniMaxAI/MiniMax-M2.5", "tp_size": 1.0}, "1 GPUs of h200_sxm: do not hold MiniMaxAI"),
    ],
)
def test_what_nothing_is_known_of_is_named(changes: dict[str, Any], message: str) -> None:
    points = pd.DataFrame([row(2, 1024, 1024, 4) | changes])
    with pytest.raises(InputError) as said:
        layout_sweep(points, points.iloc[0])
    assert message in str(said.value)


def test_the_table_says_what_each_draw_shows(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    SAMPLE_OF_LAWS.to_csv(tmp_path / FOLDER / SAMPLE, index=False)
    text = " ".join(held_out_table(tmp_path, draws=1).split())
    assert "| Llama-3.1-70B | h200_sxm | fp8 | 16 |" in text
    assert "differ by" not in text  # each was measured once
    assert "| by row, draw 0 | 16 |" in text
    assert "| by measurement, draw 0 | 16 |" in text


@pytest.mark.skipif(not (DATA / FOLDER / SAMPLE).is_file(), reason=f"needs TOKENPOOLS_DATA with {FOLDER}")
def test_a_random_third_of_one_family_is_within_the_goals() -> None:
    sample = read_sample(DATA, most=None)
    llama = sample[sample.model_path.str.contains("Llama")]
    found = held_out(llama, seed=1, by="measurement")
    assert len(found.points) == 60
    assert found.medians()["tpot"] < 0.05
    assert found.medians()["ttft"] < 0.12
    assert found.medians("chance")["tpot"] > 0.2
