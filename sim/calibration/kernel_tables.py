"""Measured kernel times, as the profiler of LLMServingSim writes them, and the table step time they make.

A folder holds ``meta.yaml`` and four tables, times in microseconds of one layer: ``dense.csv`` (layer, tokens),
``attention.csv`` (prefill_chunk, kv_prefill, n_decode, kv_decode), ``per_sequence.csv`` (layer, sequences) and, for
mixtures of experts, ``moe.csv`` (tokens, activated_experts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from sim.calibration.checked_tables import MOST_TOKENS, numbers, read_csv, refuse_repeats, row_of
from sim.engine.experts import Experts
from sim.engine.links import Links
from sim.engine.step_table import TableStepTime
from sim.errors import InputError, shortened

_PLACES = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
_ONCE = ("embedding", "final_layernorm")  # of the dense layers, those that a model has once
_TWICE = ("layernorm",)  # before attention and before the feed-forward part
_MIXED = (  # where the ratio of `TableStepTime.mixed_ratio` is kept: by these 864 numbers, 20,000 are known to 1 to 2 %
    (16, 128, 256, 512, 1024, 2048),
    (0, 512, 2048, 16384),
    (1, 4, 16, 32, 64, 128),
    (16, 256, 1024, 2048, 4096, 16384),
)
_KERNEL_US = {"dense": (0.5, 1e3), "attention": (0.5, 1e3), "moe": (2.0, 2e4), "per_sequence": (10.0, 1e5)}
"""Microseconds that the shortest time of a table takes at least and at most, per_sequence: its longest.

A launch takes 2; the head of a model 30 to 2,000. Wider than what was measured, narrower than a thousand. [choice]
"""
_ITERATION_S = (5e-5, 2.0)  # the smallest iteration of a model, between the fastest GPUs and the slowest [choice]
_TOLERANCE = 0.003  # relative error that leaving out knots of the dense layers may make


@dataclass(frozen=True, slots=True, eq=False)
class KernelTables:
    """Kernel times in seconds, all layers summed.

    Attributes
    ----------
    dense_s, sequence_s : by tokens, those of experts left out, and by sequences.
    attention : columns prefill_chunk, kv_prefill, n_decode, kv_decode, s.
    experts : of a mixture of experts, on one rank.
    meta : what ``meta.yaml`` says.
    """

    dense_s: pd.Series[float]
    sequence_s: pd.Series[float]
    attention: pd.DataFrame
    experts: Experts | None
    meta: dict[str, Any]


def read_kernel_tables(folder: Path, *, layers: int, experts_per_token: int = 8, experts: int = 128) -> KernelTables:
    """Read a folder of kernel times.

    Parameters
    ----------
    layers : of the model; the profiler measures one.
    experts_per_token, experts : of each layer, where there is a ``moe.csv``: tokens are taken to choose evenly.

    Raises
    ------
    InputError : a file is missing or has not the columns it should have.
    """
    of_tokens, of_sequences = folder / "dense.csv", folder / "per_sequence.csv"
    dense = _crossed(of_tokens, _read(of_tokens, ["layer", "tokens", "time_us"]), "tokens", "layer")
    per_sequence = _read(of_sequences, ["layer", "sequences", "time_us"])
    attention = _read(folder / "attention.csv", [*_PLACES, "time_us"])
    _check_attention(folder / "attention.csv", attention)
    meta = read_meta(folder)
    weight = {name: 1 if name in _ONCE else 2 * layers if name in _TWICE else layers for name in dense.columns}
    dense_s = sum((dense[name] * times for name, times in weight.items()), start=pd.Series(0.0, dense.index)) * 1e-6
    experts_of_folder = None
    if (folder / "moe.csv").exists():
        moe = _read(folder / "moe.csv", ["tokens", "activated_experts", "time_us"])
        experts_of_folder = _experts(folder / "moe.csv", moe, layers, experts, experts_per_token)
    attention["s"] = attention.time_us * layers * 1e-6
    sequence_s = _crossed(of_sequences, per_sequence, "sequences", "layer").sum(axis=1) * 1e-6
    for file, times in ((of_tokens, dense_s), (of_sequences, sequence_s)):
        if len(times) < 2:
            raise InputError(str(file), "holds one size of iteration", "measure at least two")
    found = KernelTables(dense_s, sequence_s, attention, experts_of_folder, meta)
    _check_units(folder, found)
    return found


def read_meta(folder: Path) -> dict[str, Any]:
    """Return what ``meta.yaml`` says, of the folder or of the one above; empty where there is none.

    Raises
    ------
    InputError : it is no mapping.
    """
    for place in (folder, folder.resolve().parent):
        file = place / "meta.yaml"
        if not file.exists():
            continue
        try:
            meta = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            problem = f"cannot be read ({str(error).splitlines()[0]})"
            raise InputError(str(file), problem, "give the profiler's file as written") from None
        if not isinstance(meta, dict):
            raise InputError(str(file), "is not a mapping", "give the profiler's file as written")
        degrees, skew = meta.get("tp_degrees", []), meta.get("skew_fit") or {}
        if not isinstance(degrees, list) or not all(type(each) is int for each in degrees):
            raise InputError(str(file), "tp_degrees is no list of whole numbers", "give e.g. [1, 2]")
        if not isinstance(skew, dict) or not isinstance(skew.get("per_tp") or {}, dict):
            raise InputError(str(file), "skew_fit is not a mapping", "give the profiler's file as written")
        return meta
    return {}


def _experts(file: Path, moe: pd.DataFrame, layers: int, count: int, per_token: int) -> Experts:
    """Return the experts' times; few tokens cannot touch many experts, and take what they do with the most."""
    if per_token > count:
        problem = f"{per_token} experts of a token, of {count} in a layer"
        raise InputError(str(file), problem, "correct --experts or --experts-per-token")
    if moe.tokens.nunique() < 2 or moe.activated_experts.nunique() < 2:
        raise InputError(str(file), "holds one number of tokens, or of experts", "measure at least two of each")
    grid = moe.pivot(index="tokens", columns="activated_experts", values="time_us").sort_index()
    filled = grid.interpolate(axis=1, method="index", limit_area="inside").ffill(axis=1).bfill(axis=1)
    return Experts(
        count=count,
        per_token=per_token,
        tokens=_knots(filled.index),
        touched=_knots(filled.columns),
        seconds=_rows(filled * (layers * 1e-6)),
    )


def _skew(meta: dict[str, Any], gpus: int) -> float:
    """Return what the profiler found for attention of uneven contexts, 0 where it did not look.

    It measures batches in which some sequences have longer contexts, and gives the share ``alpha_default`` of the way
    from the time at the mean context to the time at the longest.
    """
    fit = meta.get("skew_fit") or {}
    found = (fit.get("per_tp") or {}).get(gpus) or {}
    share = found.get("alpha_default", 0.0) if fit.get("enabled") else 0.0
    if type(share) not in (int, float) or not 0 <= share <= 1:
        problem = f"skew_fit: alpha_default is {shortened(str(share), 40)}, and no share from 0 to 1"
        raise InputError("meta.yaml", problem, "give the profiler's file as written")
    return float(share)


def unsplit_batch(multiprocessors: int, kv_heads: int) -> int:
    """Return the least batch in whose decodes FlashAttention 2 reads each context in one piece.

    It splits contexts while sequences times KV heads (of one GPU) are fewer than 0.8 of the blocks that run at a time,
    two a multiprocessor. Batches are those of vLLM's captured graphs: 1, 2, 4, and multiples of 8.
    """
    fewer = math.ceil(0.8 * 2 * multiprocessors / kv_heads) - 1
    return max([size for size in (0, 1, 2, 4, fewer // 8 * 8) if size <= fewer]) + 1


def step_from_tables(
    tables: KernelTables, gpus: int = 1, links: Links | None = None, unsplit: int = 0
) -> TableStepTime:
    """Return the step time that the tables make: few enough numbers for a file, close enough to the tables.

    ``gpus`` is how many share the model, for what the tables' ``meta.yaml`` says of each number, ``links`` what they
    tell each other, which no such table holds, and ``unsplit`` the least batch whose contexts attention reads in one
    piece.
    """
    times = tables.attention.set_index(list(_PLACES)).s
    alone = _grid(times.xs((0, 0), level=("prefill_chunk", "kv_prefill")))
    prompts = _grid(times.xs((0, 0), level=("n_decode", "kv_decode")))
    least = int(prompts.index[0])
    beside = _grid(times.xs((least, 0), level=("prefill_chunk", "kv_prefill")).drop((0, 0)))
    dense_tokens, dense_s = thinned(tables.dense_s, _TOLERANCE)
    sequences, sequence_s = thinned(tables.sequence_s, _TOLERANCE)
    axes = _axes(tables.attention)
    together = dict(zip(times.index.to_list(), times.tolist(), strict=True))
    apart = {(p, c, 0, 0): together[p, c, 0, 0] for p in axes[0] for c in axes[1]}
    apart |= {(0, 0, n, k): together[least, 0, n, k] for n in axes[2] for k in axes[3]}
    ratio = [
        [
            [
                [round(together[p, c, n, k] / (apart[p, c, 0, 0] + apart[0, 0, n, k]), 3) for k in axes[3]]
                for n in axes[2]
            ]
            for c in axes[1]
        ]
        for p in axes[0]
    ]
    return TableStepTime(
        dense_tokens=tuple(dense_tokens), dense_s=tuple(dense_s), sequences=tuple(sequences),
        sequence_s=tuple(sequence_s),
        decode_batch=_knots(alone.index), decode_context=_knots(alone.columns), decode_s=_rows(alone),
        prefill_tokens=_knots(prompts.index), prefill_context=_knots(prompts.columns), prefill_s=_rows(prompts),
        beside_batch=_knots(beside.index), beside_context=_knots(beside.columns), beside_s=_rows(beside),
        skew=_skew(tables.meta, gpus), unsplit_batch=unsplit, links=links, experts=tables.experts,
        mixed_tokens=tuple(map(float, axes[0])), mixed_before=tuple(map(float, axes[1])),
        mixed_batch=tuple(map(float, axes[2])), mixed_context=tuple(map(float, axes[3])),
        mixed_ratio=_tuples(ratio),
    )  # fmt: skip


def grid_errors(step: Any, tables: KernelTables) -> pd.DataFrame:
    """Return, for each iteration that the attention table holds, the tables' duration and the step time's.

    Columns: those of the table, ``kind`` (prompt, decode, mixed), ``measured_s``, ``step_s`` and ``error`` (relative).
    The dense layers of an iteration of more tokens than were measured are taken at the last measured number. Links are
    in neither.
    """
    rows = tables.attention.copy()
    tokens = np.minimum(rows.prefill_chunk + rows.n_decode, tables.dense_s.index[-1])
    sampled = np.minimum(rows.n_decode + (rows.prefill_chunk > 0), tables.sequence_s.index[-1])
    rows["measured_s"] = (
        np.interp(tokens, tables.dense_s.index, tables.dense_s)
        + np.interp(sampled, tables.sequence_s.index, tables.sequence_s)
        + rows.s
    )
    experts, links = tables.experts, step.links
    if experts is not None:
        rows["measured_s"] += [experts.iteration_s(n) for n in tokens]
    rows["step_s"] = [
        step.iteration_s(p, p * (c + (p + 1) / 2), n, n * k) - (links.iteration_s(p + n) if links is not None else 0.0)
        for p, c, n, k in zip(rows.prefill_chunk, rows.kv_prefill, rows.n_decode, rows.kv_decode, strict=True)
    ]
    kinds = {(True, False): "prompt", (False, True): "decode", (True, True): "mixed"}
    rows["kind"] = [kinds[p > 0, n > 0] for p, n in zip(rows.prefill_chunk, rows.n_decode, strict=True)]
    rows["error"] = rows.step_s / rows.measured_s - 1
    return rows


def thinned(points: pd.Series[float], tolerance: float) -> tuple[list[float], list[float]]:
    """Return as few of the points as keep a line through them within a relative ``tolerance`` of all."""
    x, y = np.asarray(points.index, float), np.asarray(points, float)
    keep = [0, len(x) - 1]
    while True:
        error = np.abs(np.interp(x, x[keep], y[keep]) / y - 1)
        worst = int(np.argmax(error))
        if error[worst] <= tolerance:
            return [float(v) for v in x[keep]], [float(f"{v:.5g}") for v in y[keep]]
        keep = sorted([*keep, worst])


def _grid(times: pd.Series[float]) -> pd.DataFrame:
    """Return rows by the first level, columns by the second; what was not measured is interpolated along rows.

    Columns are those that most rows have.
    """
    grid = times.unstack()
    grid = grid.loc[grid.index > 0, grid.columns[grid.notna().sum() > 1]]
    filled = {
        label: np.interp(grid.columns, row.dropna().index.to_numpy(float), row.dropna().to_numpy())
        for label, row in grid.iterrows()
    }
    return pd.DataFrame.from_dict(filled, orient="index", columns=grid.columns).sort_index()


def _knots(index: pd.Index[Any]) -> tuple[float, ...]:
    return tuple(float(x) for x in index)


def _rows(grid: pd.DataFrame) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(f"{x:.4g}") for x in row) for row in grid.to_numpy())


def _tuples(nested: Any) -> Any:
    return tuple(_tuples(x) for x in nested) if isinstance(nested, list) else nested


def _read(file: Path, columns: list[str]) -> pd.DataFrame:
    """Return one of the profiler's tables: of so many columns, the last a time, the others what it was measured at."""
    fix = "give the profiler's file as written"
    table = read_csv(file, (), fix)
    if list(table.columns) != columns:
        problem = f"has the columns {', '.join(map(str, table.columns))}"
        raise InputError(str(file), problem, f"give {', '.join(columns)}")
    *places, time = columns
    for name in places:
        if name != "layer":
            table[name] = numbers(file, table, name, least=0, most=MOST_TOKENS, whole=True, fix=fix).astype(np.int64)
        elif table[name].isna().any():
            raise InputError(str(file), f"row {row_of(file, int(table[name].isna().argmax()))}: layer is missing", fix)
    table[time] = numbers(file, table, time, above=0, fix="measure it again")
    shortest_us = float(table[time].min() if file.stem != "per_sequence" else table[time].max())
    least_us, most_us = _KERNEL_US[file.stem]
    if not least_us <= shortest_us <= most_us:
        which = "shortest" if file.stem != "per_sequence" else "longest"
        problem = f"has {shortest_us:.3g} us as its {which} time, which no kernel of one layer takes"
        raise InputError(str(file), problem, "give times in microseconds")
    refuse_repeats(file, table, places)
    return table


def _crossed(file: Path, table: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """Return the times by ``rows`` and ``columns``, every one of them measured at every other."""
    grid = table.pivot(index=rows, columns=columns, values="time_us")
    if grid.isna().to_numpy().any():
        at, layer = next((i, c) for i, row in grid.iterrows() for c in grid.columns if pd.isna(row[c]))
        raise InputError(str(file), f"has no row of {columns} {layer} at {rows} {at}", "measure each at all of them")
    return grid


def _check_units(folder: Path, tables: KernelTables) -> None:
    """Refuse times in another unit than microseconds, by what a single token takes in all layers."""
    least_s = float(tables.dense_s.iloc[0] + tables.sequence_s.iloc[0])
    if not _ITERATION_S[0] <= least_s <= _ITERATION_S[1]:
        problem = f"makes {least_s:.3g} s of the smallest iteration, which no GPU takes"
        raise InputError(str(folder), problem, "give times of one layer in microseconds, and the model's --layers")


def _axes(attention: pd.DataFrame) -> list[list[int]]:
    """Return where the ratio of prompts beside decodes is kept: of the usual places, those that were measured."""
    measured = [set(attention[name]) for name in _PLACES]
    return [[x for x in axis if x in found] for axis, found in zip(_MIXED, measured, strict=True)]


def _check_attention(file: Path, attention: pd.DataFrame) -> None:
    """Refuse an attention table that lacks one of the iterations that the step time is made of."""
    axes = _axes(attention)
    for name, axis, usual in zip(_PLACES, axes, _MIXED, strict=True):
        if len(axis) < 2:
            problem = f"has {len(axis)} of the usual values of {name} ({', '.join(map(str, usual))})"
            raise InputError(str(file), problem, "measure at least two of them")
    least = int(attention.prefill_chunk[attention.prefill_chunk > 0].min())
    prompts, before, batches, contexts = axes
    wanted = [(p, c, 0, 0) for p in prompts for c in before]
    for batch, context in product(batches, contexts):
        wanted += [(0, 0, batch, context), (least, 0, batch, context)]
        wanted += [(p, c, batch, context) for p in prompts for c in before]
    measured = set(attention[list(_PLACES)].itertuples(index=False, name=None))
    gone = next((place for place in wanted if place not in measured), None)
    if gone is not None:
        words = ", ".join(f"{name} {value}" for name, value in zip(_PLACES, gone, strict=True))
        raise InputError(str(file), f"has no row of {words}", "measure every pair of the grid")
