"""Measured times of collectives between GPUs: those that come with tokenpools, and those of a user's file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from sim.errors import InputError
from sim.profiles.gpus import GPUS

SOURCE = "vLLM's all-reduce inside CUDA graphs, as aiconfigurator-core 0.12.0 measured it (NVIDIA, Apache-2.0)"
_RANKS = ("ranks", "gpus", "num_gpus")
_SIZES = {"bytes": 1.0, "message_bytes": 1.0}
_TIMES = {
    "all_reduce_s": 1.0, "all_reduce_us": 1e-6, "median_s": 1.0, "time_s": 1.0, "time_us": 1e-6, "median_us": 1e-6,
    "median_ms": 1e-3, "time_ms": 1e-3, "mean_ms": 1e-3,
}  # fmt: skip
_PER_OCTAVE = 2  # bins of message size that a scattered table is smoothed in


@dataclass(frozen=True, slots=True)
class LinkTable:
    """Seconds of an all-reduce by message size in bytes, ascending, and where they come from."""

    message_bytes: tuple[float, ...]
    all_reduce_s: tuple[float, ...]
    source: str


def gpu_named(text: str) -> str | None:
    """Return the GPU of `GPUS` that a driver's name means (``NVIDIA RTX PRO 6000 Blackwell Server Edition``)."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower())
    found = [name for name in GPUS if _bare(name) in words]
    return max(found, key=len, default=None)


def shipped_links(gpu: str, ranks: int, vllm: str = "") -> LinkTable | None:
    """Return what was measured between ``ranks`` GPUs of a kind, with the vLLM nearest to ``vllm``; None if nothing."""
    with files("sim.profiles").joinpath("links.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file, dtype={"vllm": str})
    table = table[(table.gpu == gpu) & (table.ranks == ranks)]
    if table.empty:
        return None
    versions = sorted(table.vllm.unique(), key=_version)
    known = [v for v in versions if _version(v) <= _version(vllm)] if _version(vllm) else []
    chosen = known[-1] if known else versions[0] if _version(vllm) else versions[-1]
    rows = table[table.vllm == chosen]
    return LinkTable(
        tuple(rows.bytes.astype(float)),
        tuple(float(f"{us * 1e-6:.4g}") for us in rows.all_reduce_us),
        f"{ranks} x {gpu}, vLLM {chosen}; {SOURCE}",
    )


def read_link_table(file: Path, ranks: int) -> LinkTable:
    """Read all-reduce times from a CSV with the columns gpus (or ranks), bytes, and seconds (``median_ms``, say).

    Points that scatter are smoothed: the median of each half octave of sizes, and never less than a smaller size's.

    Raises
    ------
    InputError : unreadable, columns missing, or nothing measured between so many GPUs.
    """
    try:
        table = pd.read_csv(file)
    except OSError as error:
        raise InputError(str(file), f"cannot be read ({error.strerror})", "name a table of all-reduce times") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(str(file), f"is no CSV table ({error})", "give columns gpus, bytes, median_ms") from None
    count, size, time = (_first(table, names) for names in (_RANKS, tuple(_SIZES), tuple(_TIMES)))
    if count is None:
        raise InputError(str(file), "does not say between how many GPUs", "give a column gpus, e.g. 2, 4, 8")
    if size is None or time is None:
        missing = "bytes" if size is None else "all_reduce_us"
        raise InputError(str(file), f"has no column {missing}", "give gpus, bytes and all_reduce_us (or median_ms)")
    measured = sorted({int(n) for n in table[count]})
    rows = table[table[count] == ranks]
    if rows.empty:
        listed = ", ".join(map(str, measured))
        raise InputError(str(file), f"holds no times between {ranks} GPUs, but {listed}", "measure those too")
    values = rows[time].to_numpy(float) * _TIMES[time]
    sizes = rows[size].to_numpy(float)
    if not (np.isfinite(values).all() and (values > 0).all() and (sizes > 0).all()):
        raise InputError(str(file), "holds a size or a time that is missing or not above 0", "measure it again")
    points = pd.DataFrame({"bin": np.floor(_PER_OCTAVE * np.log2(sizes)), "bytes": sizes, "s": values})
    smooth = points.groupby("bin").median()
    if len(smooth) < 2:
        raise InputError(str(file), f"holds one size of message for {ranks} GPUs", "give at least two")
    return LinkTable(
        tuple(float(f"{x:.5g}") for x in smooth.bytes),
        tuple(float(f"{x:.4g}") for x in np.maximum.accumulate(smooth.s.to_numpy())),
        f"{file.name}, {ranks} GPUs",
    )


def _first(table: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in table), None)


def _bare(gpu: str) -> str:
    return gpu.lower().removesuffix("-sxm").removesuffix("-80gb")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
