"""Profiles that were made from a database against points that were measured: what is compared with what."""

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
from sim.scenario.profile import Profile
from sim.studies.silicon_sample import FOLDER, SAMPLE, check_silicon, read_sample, silicon_table

DATA = Path(os.environ.get("TOKENPOOLS_DATA", "/nowhere"))
MADE = Profile(
    step_time=FittedStepTime(weights_s=0.01, per_token_s=5e-5), max_num_seqs=256, max_num_batched_tokens=8192,
    kv_blocks=90_000,
)  # fmt: skip


def sample(folder: Path) -> Path:
    (folder / FOLDER).mkdir()
    rows = []
    for concurrency, dp in ((4, 1.0), (8, 2.0), (512, 1.0)):
        ttft_s, tpot_s = simulate_point(MADE, SweepPoint(4, 512, 64, 1, 1))
        rows.append({
            "backend": "vllm", "mode": "agg", "model_path": "a/Llama-3.1-70B", "system": "h200_sxm", "precision": "fp8",
            "tp_size": 2.0, "attention_dp_size": dp, "moe_ep_size": np.nan, "concurrency": float(concurrency),
            "isl": 512, "osl": 64, "silicon_ttft_ms": 2e3 * ttft_s, "silicon_tpot_ms": 1e3 * tpot_s,
        })  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / FOLDER / SAMPLE, index=False)
    return folder


def test_a_rank_gets_its_share_of_the_clients(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def make(model: str, gpu: str, **layout: Any) -> Profile:
        asked.append({"model": model, "gpu": gpu, **layout})
        if layout["dp"] == 2 and len(asked) > 5:
            raise InputError("x", "y", "z")
        return MADE

    found = check_silicon(sample(tmp_path), make=make)
    assert sorted(each["dp"] for each in asked) == [1, 2]
    assert {each["gpu"] for each in asked} == {"H200-SXM"}
    assert len(found) == 2  # 512 clients are more than are compared
    assert found.ttft_error.to_numpy() == pytest.approx(-0.5)
    assert found.tpot_error.to_numpy() == pytest.approx(0.0)
    assert "| 2 of 2 | 50 % (-50) | 0 % (" in " ".join(silicon_table(found).split())


def test_a_layout_that_the_database_does_not_know_is_counted(tmp_path: Path) -> None:
    def make(*_: Any, **layout: Any) -> Profile:
        if layout["dp"] == 2:
            raise InputError("x", "y", "z")
        return MADE

    assert "| 1 of 2 |" in " ".join(silicon_table(check_silicon(sample(tmp_path), make=make)).split())
    with pytest.raises(InputError, match=f"name a folder with {FOLDER}"):
        read_sample(tmp_path / "nowhere")


@pytest.mark.skipif(not (DATA / FOLDER / SAMPLE).is_file(), reason=f"needs TOKENPOOLS_DATA with {FOLDER}")
def test_dense_models_on_hopper_are_near() -> None:
    pytest.importorskip("aiconfigurator_core")
    found = check_silicon(DATA, most=6, families="Llama")
    on_h200 = found[found.gpu == "H200-SXM"]
    assert on_h200.tpot_error.abs().median() < 0.06
    assert on_h200.ttft_error.abs().median() < 0.20
