"""Measured times of collectives between GPUs: those that come with tokenpools, and those of a user's file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.calibration.checked_tables import numbers, read_csv, row_of
from sim.errors import InputError
from sim.profiles.gpus import GPUS

Floats = NDArray[np.float64]
SOURCE = "vLLM's all-reduce inside CUDA graphs, as aiconfigurator-core 0.12.0 measured it (NVIDIA, Apache-2.0)"
_RANKS = ("ranks", "gpus", "num_gpus")
_SIZES = {"bytes": 1.0, "message_bytes": 1.0}
_TIMES = {
    "all_reduce_s": 1.0, "all_reduce_us": 1e-6, "median_s": 1.0, "time_s": 1.0, "time_us": 1e-6, "median_us": 1e-6,
    "median_ms": 1e-3, "time_ms": 1e-3, "mean_ms": 1e-3,
}  # fmt: skip
_SMALL_BYTES, _SMALL_S = 1 << 20, (5e-7, 5e-3)  # a small message, between the fastest GPUs and over a network [choice]
_FASTEST_BYTES_PER_S = 1e13  # five times NVLink of 2025 [choice]
_SLOWEST_BYTES_PER_S = 2e8  # a sixth of ten-gigabit Ethernet [choice]
_OUT_OF_ORDER = 10.0  # noise between two sizes is a few times smaller [choice]
_OTHER_STATISTIC = 10.0  # what a mean and a median of one size may differ by [choice]
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
    table = read_csv(file, (), "give columns gpus, bytes and all_reduce_us (or median_ms)")
    count, size, time = (_first(table, names) for names in (_RANKS, tuple(_SIZES), tuple(_TIMES)))
    for names in (_RANKS, tuple(_SIZES)):
        _check_alike(file, table, names)
    if count is None:
        raise InputError(str(file), "does not say between how many GPUs", "give a column gpus, e.g. 2, 4, 8")
    if size is None or time is None:
        missing = "bytes" if size is None else "all_reduce_us"
        raise InputError(str(file), f"has no column {missing}", "give gpus, bytes and all_reduce_us (or median_ms)")
    of = numbers(file, table, count, least=1, whole=True)
    all_bytes, all_s = numbers(file, table, size, above=0), _TIMES[time] * numbers(file, table, time, above=0)
    if not (of == ranks).any():
        listed = ", ".join(f"{n:.0f}" for n in np.unique(of))
        raise InputError(str(file), f"holds no times between {ranks} GPUs, but {listed}", "measure those too")
    for name in _TIMES:  # another statistic may stand beside it, another unit may not
        if name in table and name != time:
            ratio = float(np.median(_TIMES[name] * numbers(file, table, name, above=0) / all_s))
            if not 1 / _OTHER_STATISTIC < ratio < _OTHER_STATISTIC:
                problem = f"has {name} of {ratio:.3g} times {time} in the median"
                raise InputError(str(file), problem, "correct the units, or leave one of the columns out")
    rows = np.flatnonzero(of == ranks)
    sizes, values = all_bytes[rows], all_s[rows]
    _check_units(file, time, ranks, sizes, values)
    _check_order(file, [row_of(file, int(at)) for at in rows], sizes, values)
    points = pd.DataFrame({"bin": np.floor(_PER_OCTAVE * np.log2(sizes)), "bytes": sizes, "s": values})
    smooth = points.groupby("bin").median()
    if len(smooth) < 2:
        raise InputError(str(file), f"holds one size of message for {ranks} GPUs", "give at least two")
    return LinkTable(
        tuple(float(f"{x:.5g}") for x in smooth.bytes),
        tuple(float(f"{x:.4g}") for x in np.maximum.accumulate(smooth.s.to_numpy())),
        f"{file.name}, {ranks} GPUs",
    )


def _check_units(file: Path, column: str, ranks: int, sizes: Floats, seconds: Floats) -> None:
    """Refuse times that no link has: they are in another unit than their column says."""
    least, largest = int(np.argmin(sizes)), int(np.argmax(sizes))
    moved_per_s = 2 * (ranks - 1) / ranks * sizes[largest] / seconds[largest]
    fix = f"correct the unit of {column}"
    slow = sizes[least] <= _SMALL_BYTES and seconds[least] > _SMALL_S[1]
    if slow or seconds[least] < _SMALL_S[0]:
        problem = f"has {seconds[least]:.3g} s for {sizes[least]:.0f} bytes, which no all-reduce takes"
        raise InputError(str(file), problem, fix)
    if moved_per_s > _FASTEST_BYTES_PER_S:
        problem = f"moves {sizes[largest]:.0f} bytes at {moved_per_s:.3g} bytes/s, faster than any link"
        raise InputError(str(file), problem, fix)


def _check_order(file: Path, rows: list[int], sizes: Floats, seconds: Floats) -> None:
    """Refuse a time ten times that of a larger message, and times that grow as if bytes were kilobytes."""
    order = np.argsort(sizes, kind="stable")
    least_s = np.minimum.accumulate(seconds[order][::-1])[::-1]
    late = seconds[order] > _OUT_OF_ORDER * least_s
    if late.any():
        at = int(order[int(np.flatnonzero(late)[0])])
        found = f"{seconds[at]:.3g} s for {sizes[at]:.0f} bytes"
        problem = f"row {rows[at]}: {found}, ten times what a larger message takes"
        raise InputError(str(file), problem, "correct the unit, or leave the row out")
    first, last = int(order[0]), int(order[-1])
    grows_s = seconds[last] - seconds[first]
    if grows_s > seconds[first] and (sizes[last] - sizes[first]) / grows_s < _SLOWEST_BYTES_PER_S:
        problem = f"grows by {grows_s:.3g} s over {sizes[last] - sizes[first]:.0f} bytes, slower than any link"
        raise InputError(str(file), problem, "give the message size in bytes")


def _check_alike(file: Path, table: pd.DataFrame, names: tuple[str, ...]) -> None:
    there = [name for name in names if name in table]
    if len(there) > 1 and not (table[there[0]] == table[there[1]]).all():
        raise InputError(str(file), f"has columns {' and '.join(there[:2])} that differ", "leave one of them out")


def _first(table: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in table), None)


def _bare(gpu: str) -> str:
    return gpu.lower().removesuffix("-sxm").removesuffix("-80gb")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
