"""Profiles from AIConfigurator's database against its own silicon sample: nothing of the sample is used to make them.

Points of one family (model, GPU, precision) are drawn at random from those of vLLM with a concurrency up to 256, and
simulated as closed loops; of data-parallel engines one rank, with its share of the clients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from sim.analysis.markdown_tables import markdown
from sim.calibration.checked_tables import read_csv
from sim.calibration.from_aiconfigurator import SYSTEMS, calibrate_aiconfigurator
from sim.calibration.from_sweep import SweepPoint, simulate_point
from sim.errors import InputError
from sim.scenario.profile import Profile

FOLDER = "silicon-sample"
SAMPLE = "silicon_sample_half.csv.gz"
_MOST = 256
# Repositories that hold a model in the precision that the sample names, where it is not the model's own.
_REPOSITORIES: Mapping[tuple[str, str], tuple[str, str | None]] = MappingProxyType({
    ("meta-llama/Llama-3.1-70B", "fp8"): ("meta-llama/Meta-Llama-3.1-70B", "fp8"),
    ("meta-llama/Llama-3.1-70B", "fp4"): ("meta-llama/Meta-Llama-3.1-70B", "nvfp4"),
    ("MiniMaxAI/MiniMax-M2.5", "fp4"): ("nvidia/MiniMax-M2.5-NVFP4", None),
    ("moonshotai/Kimi-K2.5", "fp4"): ("nvidia/Kimi-K2.5-NVFP4", None),
})  # fmt: skip


def read_sample(folder: Path | None = None, most: int | None = _MOST) -> pd.DataFrame:
    """Return the sample's vLLM points of engines that do both prefill and decode, of at most so many clients.

    Raises
    ------
    InputError : the data are not there.
    """
    data = folder or (Path(os.environ["TOKENPOOLS_DATA"]) if "TOKENPOOLS_DATA" in os.environ else None)
    if data is None:
        raise InputError("hardware-check", "needs measured data", f"set TOKENPOOLS_DATA to the folder with {FOLDER}")
    table = read_csv(data / FOLDER / SAMPLE, ("backend", "mode", "concurrency"), f"name a folder with {FOLDER}")
    here = (table.backend == "vllm") & (table["mode"] == "agg")
    return table[here if most is None else here & (table.concurrency <= most)]


def check_silicon(
    folder: Path | None = None,
    *,
    most: int = 14,
    families: str = "",
    make: Callable[..., Profile] = calibrate_aiconfigurator,
) -> pd.DataFrame:
    """Return a row for each point that was drawn: family, ttft_error and tpot_error, relative; NaN where none is made.

    Parameters
    ----------
    most : points of a family.
    families : only those whose model has this in its name.
    """
    sample = read_sample(folder)
    gpus = {system: gpu for gpu, system in SYSTEMS.items()}
    profiles: dict[tuple[Any, ...], Profile | None] = {}
    rng = np.random.default_rng(0)
    rows = []
    for key, points in sample.groupby(["model_path", "system", "precision"]):
        model, system, precision = map(str, key)
        drawn = points.iloc[rng.permutation(len(points))[:most]]
        if families.lower() not in model.lower():
            continue
        for point in drawn.to_dict("records"):
            tp, dp, ep = (_whole(point[name]) for name in ("tp_size", "attention_dp_size", "moe_ep_size"))
            layout = (*key, tp, dp, ep)
            if layout not in profiles:
                name, quant = _REPOSITORIES.get((model, precision), (model, None))
                try:
                    profiles[layout] = make(name, gpus[system], tp=tp, dp=dp, ep=ep, gemm_quant=quant)
                except InputError:
                    profiles[layout] = None
            profile = profiles[layout]
            errors = (np.nan, np.nan)
            if profile is not None:
                clients = max(1, _whole(point["concurrency"]) // dp)
                asked = SweepPoint(clients, _whole(point["isl"]), _whole(point["osl"]), 1.0, 1.0)
                rank = profile.model_copy(update={"data_parallel": 1, "expert_parallel": False})
                ttft_s, tpot_s = simulate_point(rank, asked)
                errors = (1e3 * ttft_s / point["silicon_ttft_ms"] - 1, 1e3 * tpot_s / point["silicon_tpot_ms"] - 1)
            rows.append((model.rsplit("/", 1)[-1], gpus[system], precision, *errors))
    return pd.DataFrame(rows, columns=["model", "gpu", "precision", "ttft_error", "tpot_error"])


def silicon_table(found: pd.DataFrame) -> str:
    """Return medians by family as Markdown."""
    rows = []
    for key, points in found.groupby(["model", "gpu", "precision"]):
        made = points.dropna()
        cells = [f"{100 * made[name].abs().median():.0f} % ({100 * made[name].median():+.0f})" for name in _ERRORS]
        rows.append((*map(str, key), f"{len(made)} of {len(points)}", *(cells if len(made) else ("", ""))))
    heads = ("model", "GPU", "weights", "points", "TTFT, median error (signed)", "TPOT, median error (signed)")
    return markdown(heads, rows)


_ERRORS = ("ttft_error", "tpot_error")


def _whole(value: Any) -> int:
    return max(1, int(float(value))) if np.isfinite(float(value)) else 1
