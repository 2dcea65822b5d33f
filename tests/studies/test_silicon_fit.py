"""Laws of closed loops: exact where the sample is lawful, within the goals on what real engines did."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sim.studies.silicon_fit import held_out, held_out_table, terms
from sim.studies.silicon_sample import FOLDER, SAMPLE, read_sample

DATA = Path(os.environ.get("TOKENPOOLS_DATA", "/nowhere"))


def lawful(noise: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    points = pd.DataFrame(
        [
            {
                "backend": "vllm", "mode": "agg", "model_path": "a/b", "system": "h200_sxm", "precision": "fp8",
                "backend_version": "1", "tp_size": tp, "pp_size": 1, "attention_dp_size": 1, "moe_tp_size": np.nan,
                "moe_ep_size": np.nan, "isl": isl, "osl": osl, "concurrency": clients,
            }
            for tp in (2, 4) for isl in (1024, 8192) for osl in (1024, 8192) for clients in (4, 8, 16, 32, 64, 128)
        ]
    )  # fmt: skip
    made = {
        "tpot": terms(points, "tpot") @ [4, 2, 1, 3, 5, 2] * (4 / points.tp_size),
        "ttft": terms(points, "ttft") @ [20, 30, 5, 40, 1, 9, 10] * (4 / points.tp_size),
    }
    return points.assign(**{f"silicon_{k}_ms": v * rng.lognormal(0, noise, len(points)) for k, v in made.items()})


def test_a_lawful_sample_is_met_where_it_was_not_seen() -> None:
    found = held_out(lawful())
    assert len(found.points) == 16
    assert max(found.medians().values()) < 0.03  # some points a layout for six terms
    # What was left out plays no part: its measurements may be anything.
    sample = lawful()
    spoilt = sample.copy()
    spoilt.loc[found.points.index, ["silicon_ttft_ms", "silicon_tpot_ms"]] = 1.0
    again = held_out(spoilt)
    made = sample.silicon_tpot_ms[found.points.index] * (1 + found.points.tpot_error)
    assert again.points.tpot_error.to_numpy() + 1 == pytest.approx(made.to_numpy())


def test_noise_is_not_learnt() -> None:
    medians = held_out(lawful(noise=0.1)).medians()
    assert all(0.02 < median < 0.2 for median in medians.values())


def test_the_table_says_what_each_draw_shows(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    lawful().to_csv(tmp_path / FOLDER / SAMPLE, index=False)
    text = " ".join(held_out_table(tmp_path, draws=2).split())
    assert "| b | h200_sxm | fp8 | 32 |" in text
    assert "draw 1: 16" in text


@pytest.mark.skipif(not (DATA / FOLDER / SAMPLE).is_file(), reason=f"needs TOKENPOOLS_DATA with {FOLDER}")
def test_a_random_third_of_the_real_sample_is_within_the_goals() -> None:
    found = held_out(read_sample(DATA, most=None))
    assert len(found.points) == 340
    assert found.medians()["tpot"] < 0.05
    assert found.medians()["ttft"] < 0.12
    ranked = found.points[found.points.attention_dp_size > 1]
    assert len(ranked) > 20
    assert ranked.tpot_error.abs().median() < 0.08  # few points a layout
    assert ranked.ttft_error.abs().median() < 0.12
