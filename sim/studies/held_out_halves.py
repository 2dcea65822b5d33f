"""Errors on what a fit did not see, of two sets of measurements: the H100 sweeps of kvwarden, and Splitwise's steps.

The sweeps' runs are dealt out in turn, one half is fitted, the other predicted. Of Splitwise's prompt and token times a
third is left out, eight times.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.calibration.checked_tables import read_csv
from sim.calibration.fitting import Term
from sim.calibration.from_steps import STEP_TERMS, calibrate_steps, decodes, prompts
from sim.engine.step_fitted import FittedStepTime
from sim.scenario.profile import Profile
from sim.studies.hardware_check_tenants import SWEEPS, data_folder, fitted_to, sweep_points

SPLITWISE = "splitwise-perf"
TIMES = "perf_model.csv.gz"
_GPUS = {"a100-80gb": "8 A100", "h100-80gb": "8 H100"}
_COLUMNS = (
    "model", "hardware", "prompt_size", "batch_size", "token_size", "prompt_time", "token_time", "tensor_parallel",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One error: of which measurement, which statistic, and half a 95 % interval of chance, relative."""

    name: str
    statistic: str
    error: float
    floor: float


def sweep_rows(folder: Path | None = None) -> list[Row]:
    """Return the errors on the H100 sweeps' runs that were not fitted: means of TPOT, E2E and first tokens.

    The floor is what a mean over so many requests would differ by, those of a run being 200.

    Raises
    ------
    InputError : the data are not there.
    """
    points = sweep_points(read_csv(data_folder(folder) / SWEEPS, ("workload", "series")))
    profile = fitted_to(points[::2])
    rows = []
    for point in points[1::2]:
        made = point.simulated(profile)
        rows += [
            Row(f"h100 {point.name}", name, made[name] / point.measured[name] - 1, point.chance[name])
            for name in ("tpot", "e2e", "ttft mean") if name in point.measured
        ]  # fmt: skip
    return rows


def splitwise_rows(folder: Path) -> list[Row]:
    """Return the mean error on a third of Splitwise's iterations of Llama-2-70B, and the worst, by GPUs.

    Raises
    ------
    InputError : the data are not there.
    """
    table = read_csv(folder / SPLITWISE / TIMES, _COLUMNS, f"name a folder with {SPLITWISE}")
    rows = []
    for hardware, name in _GPUS.items():
        here = table[(table.model == "llama2-70b") & (table.hardware == hardware) & (table.tensor_parallel == 8)]
        medians = here.groupby(["prompt_size", "batch_size", "token_size"])[["prompt_time", "token_time"]].median()
        steps = {}
        for prompt, batch, token, prompt_ms, token_ms in medians.reset_index().itertuples(index=False):
            steps[0, prompt, batch] = prompts(int(batch), int(prompt), prompt_ms / 1e3)
            steps[1, prompt, batch] = decodes(int(batch), int(prompt + token // 2), token_ms / 1e3)
        start = Profile(
            step_time=FittedStepTime(weights_s=0.04, per_token_s=1e-4), max_num_seqs=64, max_num_batched_tokens=8192,
            kv_blocks=80_000, gpus=8,
        )  # fmt: skip
        terms: list[Term] = [t for t in STEP_TERMS if t.name not in ("per_context_token_s", "per_prefill_pair_s")]
        found = calibrate_steps(start, list(steps.values()), terms=terms, place=name)
        calibration = found.profile.calibration
        assert calibration is not None
        scored = np.abs(found.error[~found.used])
        floor = calibration.noise_floor.get("mean_abs", float("nan"))
        rows.append(Row(f"splitwise {name}", "mean |error|", float(scored.mean()), floor))
        rows.append(Row(f"splitwise {name}", "worst |error|", float(scored.max()), float("nan")))
    return rows
