"""The silicon fit's books on paper: who is left out, what errors are of, what an engine holds, what the tables say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim.calibration.from_layouts import LayoutSweep
from sim.calibration.from_sweep import SweepPoint
from sim.scenario.profile import Profile
from sim.studies import silicon_fit
from sim.studies.silicon_fit import (
    HeldOut,
    doubled,
    draws_table,
    engines,
    held_out,
    layout_sweep,
    measurement,
    predict,
    repeats,
)

LLAMA = {"model_path": "meta-llama/Llama-3.1-70B", "system": "h200_sxm", "precision": "fp8"}
KIMI = {"model_path": "moonshotai/Kimi-K2.5", "system": "h200_sxm", "precision": "int4"}


def points(ttft_ms: list[float], tpot_ms: list[float], **changes: Any) -> pd.DataFrame:
    """Return points of one layout, each of other clients."""
    layout = {
        **LLAMA, "backend_version": np.nan, "tp_size": 2.0, "pp_size": 1.0, "attention_dp_size": 1.0,
        "moe_tp_size": 2.0, "moe_ep_size": 1.0, "isl": 1024, "osl": 256,
    }  # fmt: skip
    clients = [float(2**i) for i in range(len(ttft_ms))]
    return pd.DataFrame(
        {"concurrency": clients, "silicon_ttft_ms": ttft_ms, "silicon_tpot_ms": tpot_ms, **layout, **changes}
    )


def test_errors_are_of_what_was_left_out_and_chance_is_the_median_of_what_was_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ttft_ms = [100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0]
    sample = points(ttft_ms, [10.0] * 7)
    asked: list[Any] = []

    def predicted(of: pd.DataFrame, used: Any) -> pd.DataFrame:
        asked.append(used)
        made = {"ttft_ms": 1.1 * of.silicon_ttft_ms, "tpot_ms": 9.0, "ttft_floor": 0.01, "tpot_floor": 0.02}
        return pd.DataFrame(made, index=of.index)

    monkeypatch.setattr(silicon_fit, "predict", predicted)
    found = held_out(sample, 3)
    (used,) = asked
    assert used.sum() == 5  # of seven a third is two
    assert found.points.index.tolist() == np.flatnonzero(~used).tolist()
    assert found.points.ttft_error.to_numpy() == pytest.approx([0.1, 0.1])
    assert found.points.tpot_error.to_numpy() == pytest.approx([-0.1, -0.1])
    usual = float(np.median(np.array(ttft_ms)[used]))
    assert found.points.ttft_chance.to_numpy() == pytest.approx(usual / np.array(ttft_ms)[~used] - 1)
    assert found.medians() == pytest.approx({"ttft": 0.1, "tpot": 0.1})
    assert found.medians("floor") == pytest.approx({"ttft": 0.01, "tpot": 0.02})
    assert len(held_out(sample, 3, share=0.5).points) == 4  # three and a half, to the even one
    assert held_out(sample, 4).points.index.tolist() != found.points.index.tolist()


def test_layouts_of_a_family_are_fitted_together_and_predict_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: dict[str, list[tuple[int, list[float]]]] = {}
    copies: list[int] = []

    def fit(sweeps: list[LayoutSweep], place: str) -> list[Profile]:
        fitted[place] = [(sweep.gpus, [point.concurrency for point in sweep.points]) for sweep in sweeps]
        return [sweep.profile for sweep in sweeps]

    def simulated(of: list[Profile], point: SweepPoint) -> tuple[Any, Any]:
        copies.append(len(of))
        return np.array([0.1 * point.concurrency, 0.01]), np.array([0.03, 0.04])

    monkeypatch.setattr(silicon_fit, "fit_layouts", fit)
    monkeypatch.setattr(silicon_fit, "simulated_copies", simulated)
    two = points([100.0, 110.0, 120.0], [9.0] * 3)
    four = points([90.0], [8.0], tp_size=4.0, moe_tp_size=4.0)
    unknown, lone = points([150.0], [9.0], **KIMI, tp_size=8.0), points([80.0], [9.0], system="b200_sxm")
    sample = pd.concat([two, four, unknown, lone], ignore_index=True)
    made = predict(sample, np.array([True, False, True, False, False, True]))
    assert fitted == {
        "meta-llama/Llama-3.1-70B h200_sxm fp8": [(2, [1, 4]), (4, [])],
        "meta-llama/Llama-3.1-70B b200_sxm fp8": [(2, [1])],
    }
    assert copies == [4, 4]
    nan = [np.nan] * 4
    expected = [nan, [200.0, 10.0, 0.03, 0.04], nan, [100.0, 10.0, 0.03, 0.04], nan, nan]
    assert made.to_numpy() == pytest.approx(np.array(expected), nan_ok=True)
    assert list(made) == ["ttft_ms", "tpot_ms", "ttft_floor", "tpot_floor"]


def test_ranks_that_stand_beside_none_are_read_as_none() -> None:
    shared = {"tp_size": 2.0, "moe_tp_size": 1.0, "moe_ep_size": 2.0}
    plain = points([1.0, 2.0], [1.0, 1.0], **shared)
    ranked = points([1.0, 2.0, 3.0], [1.0] * 3, **shared | {"attention_dp_size": 2.0, "moe_tp_size": 4.0})
    read = engines(pd.concat([plain, ranked], ignore_index=True))
    assert read.attention_dp_size.tolist() == [1, 1, 1, 1, 2]  # of four clients there is none without
    assert read.moe_tp_size.tolist() == [1, 1, 1, 1, 4]
    assert read.moe_ep_size.tolist() == [2, 2, 2, 2, 2]


def test_measurements_that_agree_to_three_digits_are_one() -> None:
    sample = points([100.0, 100.04, 101.0, 100.0], [9.0, 9.001, 9.0, 9.0], concurrency=4.0)
    sample["tp_size"] = [2.0, 2.0, 2.0, 4.0]  # whatever the layout
    assert len(set(measurement(sample)[[0, 1, 3]].tolist())) == 1
    assert len(set(measurement(sample).tolist())) == 2
    assert doubled(sample) == 1
    assert doubled(sample[:3]) == 0
    # Of two measurements of one configuration, 100 and 101 ms; those that agree are one, and say nothing.
    assert repeats(sample[:3]) == pytest.approx((0.01, 0.0))
    assert np.isnan(repeats(sample[:2])).all()


@pytest.mark.parametrize(
    ("layout", "gpus", "ranks", "kv_blocks"),
    [
        # Of an H200's 141 GiB nine tenths, less 5e9 bytes: 131,257,837,466 bytes a GPU beside the weights.
        (LLAMA, 2, 1, int((2 * 131_257_837_466 - 70.6e9) / 163_840) // 16),
        (LLAMA, 8, 1, int((8 * 131_257_837_466 - 70.6e9) / 163_840) // 16),
        (KIMI, 8, 1, int((8 * 131_257_837_466 - 595e9) / (35_136 * 8)) // 16),  # every GPU keeps all of its latents
        (KIMI, 8, 8, int((131_257_837_466 - 595e9 / 8) / 35_136) // 16),
    ],
)
def test_an_engine_holds_what_its_gpus_have_beside_the_weights(
    layout: dict[str, str], gpus: int, ranks: int, kv_blocks: int
) -> None:
    sample = points([120.0], [9.0], **layout, tp_size=float(gpus), attention_dp_size=float(ranks), concurrency=20.0)
    found = layout_sweep(sample, sample.iloc[0])
    assert found.gpus == gpus // ranks
    profile = found.profile
    assert abs(profile.kv_blocks - kv_blocks) <= 1
    assert (profile.block_tokens, profile.max_num_seqs, profile.max_num_batched_tokens) == (16, 2048, 8192)
    assert profile.async_scheduling
    (point,) = found.points
    assert (point.concurrency, point.prompt_tokens, point.output_tokens) == (20 // ranks, 1024, 256)
    assert (point.ttft_s, point.tpot_s) == (pytest.approx(0.12), pytest.approx(0.009))


def test_fewer_clients_than_ranks_are_one_for_each() -> None:
    sample = points([120.0], [9.0], **KIMI, tp_size=8.0, attention_dp_size=8.0, concurrency=4.0)
    assert layout_sweep(sample, sample.iloc[0]).points[0].concurrency == 1


def test_tables_say_medians_in_percent() -> None:
    def drawn(ttft: list[float], ranks: list[float]) -> HeldOut:
        columns = {f"{name}_{what}": 0.002 for name in ("ttft", "tpot") for what in ("floor", "chance")}
        rows = points([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], attention_dp_size=ranks, ttft_error=ttft, tpot_error=-0.03)
        return HeldOut(rows.assign(**columns))

    one, other = drawn([0.1, -0.2, 0.4], [1.0, 2.0, 2.0]), drawn([0.0, 0.5, 0.5], [1.0, 1.0, 1.0])
    again = pd.concat([one.points, one.points.assign(silicon_ttft_ms=lambda of: 1.1 * of.silicon_ttft_ms)])
    said = draws_table(again, {"row": [], "measurement": [one]})
    assert said.startswith("Median errors. Measurements of one configuration differ by 10.0 % in TTFT and 0.0 % in TP")
    text = draws_table(one.points, {"row": [one], "measurement": [other, one]})
    assert text.startswith("Median errors.\n")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| by")]
    assert [line[:4] for line in lines] == [
        ["by row, draw 0", "3", "20.0 %", "3.0 %"],
        ["by measurement, draw 0", "3", "50.0 %", "3.0 %"],
        ["by measurement, draw 1", "3", "20.0 %", "3.0 %"],
    ]
    assert lines[0][4:] == ["0.2 %"] * 4 + ["2: 30.0 % and 3.0 %"]
    assert "| Llama-3.1-70B | h200_sxm | fp8 | 6 | 30.0 % | 3.0 % |" in " ".join(text.split())  # both draws together
