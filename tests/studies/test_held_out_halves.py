"""Errors on what a fit did not see: who is fitted and who is scored, on points and tables whose errors are known."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim.calibration.fitting import Term
from sim.calibration.from_steps import MeasuredStep
from sim.scenario.profile import Calibration, Profile
from sim.studies import held_out_halves
from sim.studies.hardware_check_tenants import ARMS, FOLDER, SWEEPS, TENANTS
from sim.studies.held_out_halves import SPLITWISE, TIMES, splitwise_rows, sweep_rows


@dataclass
class Point:
    name: str
    measured: dict[str, float]

    @property
    def chance(self) -> dict[str, float]:
        return {name: 0.01 * len(name) for name in ("tpot", "e2e", "ttft mean")}

    def simulated(self, profile: list[str]) -> dict[str, float]:
        """Return what the fit to points of these names makes of it."""
        assert profile == ["a", "c"]
        return {"tpot": 0.02, "e2e": 3.0, "ttft mean": 0.5, "ttft of 2": 1.0}


def test_every_second_run_is_fitted_and_the_others_are_scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    points = [
        Point("a", {"tpot": 1.0}), Point("b", {"tpot": 0.016, "e2e": 4.0, "ttft of 2": 1.0}), Point("c", {}),
        Point("d", {"tpot": 0.02, "e2e": 2.0, "ttft mean": 0.4}),
    ]  # fmt: skip
    (tmp_path / FOLDER).mkdir()
    for name in (SWEEPS, ARMS, TENANTS):
        pd.DataFrame({"workload": ["fixed"], "series": ["benchmark"]}).to_csv(tmp_path / FOLDER / name, index=False)
    monkeypatch.setattr(held_out_halves, "sweep_points", lambda _: points)
    monkeypatch.setattr(held_out_halves, "fitted_to", lambda chosen: [point.name for point in chosen])
    rows: list[Any] = [astuple(row) for row in sweep_rows(tmp_path)]
    assert rows == [
        ("h100 b", "tpot", pytest.approx(0.25), 0.04),
        ("h100 b", "e2e", pytest.approx(-0.25), 0.03),
        ("h100 d", "tpot", pytest.approx(0.0), 0.04),
        ("h100 d", "e2e", pytest.approx(0.5), 0.03),
        ("h100 d", "ttft mean", pytest.approx(0.25), 0.09),
    ]


COLUMNS = (
    "model", "hardware", "prompt_size", "batch_size", "token_size", "prompt_time", "token_time", "tensor_parallel"
)
OF_A100 = [
    ("llama2-70b", "a100-80gb", 512, 1, 128, 110.0, 40.0, 8), ("llama2-70b", "a100-80gb", 512, 1, 128, 90.0, 42.0, 8),
    ("llama2-70b", "a100-80gb", 512, 1, 128, 100.0, 900.0, 8), ("llama2-70b", "a100-80gb", 512, 4, 129, 350.0, 50.0, 8),
]  # fmt: skip
OTHERS = [("bloom-176b", "a100-80gb", 512, 1, 128, 1.0, 1.0, 8), ("llama2-70b", "a100-80gb", 512, 1, 128, 1.0, 1.0, 4)]
OF_H100 = [("llama2-70b", "h100-80gb", 1024, 2, 256, 60.0, 20.0, 8)]


def test_a_third_of_splitwises_iterations_is_scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    def calibrated(start: Profile, steps: list[MeasuredStep], *, terms: list[Term], place: str) -> SimpleNamespace:
        given[place] = steps
        names = ["weights_s", "per_token_s", "per_decode_sequence_s", "per_prefill_iteration_s"]
        assert [term.name for term in terms] == names  # its batches hold no long contexts, nor prompts of many tokens
        calibration = Calibration(method="x", date="2026-11-29", noise_floor={"mean_abs": 0.02})
        error, used = np.array([0.5, -0.1, 0.02, 0.06]), np.array([True, False, True, False])
        return SimpleNamespace(
            error=error, used=used, profile=start.model_copy(update={"calibration": calibration})
        )

    (tmp_path / SPLITWISE).mkdir()
    table = pd.DataFrame([*OF_A100, *OTHERS, *OF_H100], columns=list(COLUMNS))
    table.to_csv(tmp_path / SPLITWISE / TIMES, index=False)
    monkeypatch.setattr(held_out_halves, "calibrate_steps", calibrated)
    rows = splitwise_rows(tmp_path)
    # The median of what was measured several times, in seconds; a decode reads the prompt and half of the answer.
    assert given["8 A100"] == [
        (512, 512 * 513 / 2, 0, 0, pytest.approx(0.1)), (0, 0.0, 1, 512 + 64, pytest.approx(0.042)),
        (2048, 4 * 512 * 513 / 2, 0, 0, pytest.approx(0.35)), (0, 0.0, 4, 4 * (512 + 64), pytest.approx(0.05)),
    ]  # fmt: skip
    assert given["8 H100"] == [
        (2048, 2 * 1024 * 1025 / 2, 0, 0, pytest.approx(0.06)), (0, 0.0, 2, 2 * (1024 + 128), pytest.approx(0.02)),
    ]  # fmt: skip
    scored: list[Any] = [(row.name, row.statistic, row.error) for row in rows]
    assert scored == [
        (f"splitwise {gpus}", f"{which} |error|", pytest.approx(error))
        for gpus in ("8 A100", "8 H100") for which, error in (("mean", 0.08), ("worst", 0.1))
    ]  # fmt: skip
    assert [row.floor for row in rows] == pytest.approx([0.02, math.nan, 0.02, math.nan], nan_ok=True)
