"""A profile from measured kernel times alone: nothing of a run is used."""

from __future__ import annotations

import warnings
from datetime import date
from pathlib import Path

from sim.calibration.kernel_tables import grid_errors, read_kernel_tables, step_from_tables
from sim.engine.step_table import ExtrapolationWarning
from sim.scenario.profile import Calibration, Physics, Profile


def calibrate_kernels(
    folder: Path,
    *,
    layers: int,
    kv_blocks: int,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 2048,
    gpus: int = 1,
    async_scheduling: bool = True,
    prefix_caching: bool = True,
    kv_bytes_per_token: float | None = None,
    max_model_tokens: int | None = None,
    physics: Physics | None = None,
    name: str | None = None,
    today: date | None = None,
) -> Profile:
    """Return a profile whose step time is interpolated from a folder of kernel times; see `read_kernel_tables`.

    Raises
    ------
    InputError : the folder does not hold what it should.
    """
    tables = read_kernel_tables(folder, layers=layers)
    step_time = step_from_tables(tables, gpus)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        grid = grid_errors(step_time, tables)
    # Iterations that no engine of these settings can run are measured too, and left out here.
    feasible = grid[
        (grid.prefill_chunk + grid.n_decode <= max_num_batched_tokens)
        & (grid.n_decode * grid.kv_decode + grid.kv_prefill <= kv_blocks * 16)
    ]
    means = feasible.groupby("kind").error.agg(lambda error: float(error.abs().mean()))
    meta = tables.meta
    measured = " ".join(str(meta[key]) for key in ("gpu", "model") if key in meta) or folder.name
    engine = f"vLLM {meta['vllm_version']}, CUDA {meta['cuda_version']}" if "vllm_version" in meta else ""
    return Profile(
        name=name or folder.name,
        source=f"kernel times of {measured}, {engine or 'engine unknown'}",
        error=f"against {len(feasible)} iterations of its own tables: "
        + ", ".join(f"{kind} {100 * error:.1f} %" for kind, error in means.items()),
        step_time=step_time,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_blocks=kv_blocks,
        async_scheduling=async_scheduling,
        prefix_caching=prefix_caching,
        kv_bytes_per_token=kv_bytes_per_token,
        max_model_tokens=max_model_tokens,
        physics=physics,
        calibration=Calibration(
            method="interpolation of measured kernel times, all layers summed",
            date=(today or date.today()).isoformat(),
            engine=engine,
            measurements=len(tables.attention) + len(tables.dense_s) + len(tables.sequence_s),
            ranges={
                "prefill_tokens": (1.0, step_time.prefill_tokens[-1]),
                "decode_sequences": (1.0, step_time.decode_batch[-1]),
                "context_tokens_each": (1.0, step_time.decode_context[-1]),
            },
        ),
    )
