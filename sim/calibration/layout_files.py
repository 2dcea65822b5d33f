"""Profiles of several layouts of one model from one file: its points by GPUs, the fit, and what was left out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np

from sim.calibration.checked_tables import need_columns, numbers, read_csv
from sim.calibration.from_layouts import LayoutSweep, fit_layouts
from sim.calibration.from_sweep import COLUMNS, SweepPoint, check_one_engine, error_words, points_of, simulated_copies
from sim.calibration.noise import perturbed
from sim.calibration.single_replica import Floats
from sim.errors import InputError
from sim.scenario.profile import Calibration, Profile

_GPUS, _BLOCKS = "gpus", "kv_blocks"
_LAYOUT = ("tp", "tensor_parallel", "num_gpus", _BLOCKS)  # beside a column gpus, which says it, or of each layout
_SEEDS = 4  # of lengths, over which errors are means


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What a file says of one layout: GPUs that share a layer, KV blocks if it knows, and points, maybe none."""

    gpus: int
    kv_blocks: int | None
    points: Sequence[SweepPoint]


def read_layouts(file: Path) -> list[Layout] | None:
    """Read a CSV with the fields of `SweepPoint`, ``gpus``, and ``kv_blocks`` if that is known; by GPUs.

    A row whose point is left empty names a layout that was not measured. None where the file has no column ``gpus``,
    and is the sweep of one layout.

    Raises
    ------
    InputError : unreadable, a column is missing, a layout without GPUs, or one with several numbers of blocks.
    """
    table = read_csv(file, (), f"give a CSV file with the columns {', '.join(COLUMNS)}; calibrate records reads runs")
    if _GPUS not in table:
        return None
    check_one_engine(file, table, besides=_LAYOUT)
    need_columns(file, table, COLUMNS)
    table[_GPUS] = numbers(file, table, _GPUS, least=1, whole=True, fix="give the GPUs that share a layer, e.g. 4")
    if _BLOCKS in table:
        table[_BLOCKS] = numbers(file, table, _BLOCKS, least=1, whole=True, gaps=True)
    measured = ~table[list(COLUMNS)].isna().all(axis=1)
    found = []
    for gpus in sorted(set(table[_GPUS])):
        rows = table[table[_GPUS] == gpus]
        blocks = sorted(set(rows[_BLOCKS].dropna())) if _BLOCKS in rows else []
        if len(blocks) > 1:
            problem = f"several kv_blocks for {gpus:g} GPUs ({blocks[0]:g} and {blocks[1]:g})"
            raise InputError(str(file), problem, "give one for a layout")
        here = rows[measured[rows.index]]
        points = points_of(file, here) if len(here) else []
        found.append(Layout(int(gpus), int(blocks[0]) if blocks else None, points))
    return found


def layout_sweeps(begin: Profile, layouts: Sequence[Layout]) -> list[LayoutSweep]:
    """Return what is fitted: each layout with the engine settings of ``begin``, and its own GPUs and KV blocks."""
    found = []
    for layout in layouts:
        changes = {"gpus": layout.gpus, "kv_blocks": layout.kv_blocks or begin.kv_blocks}
        found.append(LayoutSweep(begin.model_copy(update=changes), layout.gpus, layout.points))
    return found


def calibrate_layouts(
    sweeps: Sequence[LayoutSweep],
    *,
    without: Sequence[str] = (),
    held_out: float = 0.33,
    seed: int = 0,
    place: str = "sweep",
    today: date | None = None,
) -> list[Profile]:
    """Fit the layouts of a model together, leaving out a random share of the points to score each layout on.

    Raises
    ------
    InputError : see `fit_layouts`.
    """
    count = sum(len(sweep.points) for sweep in sweeps)
    left_out = np.random.default_rng(seed).permutation(count) < int(held_out * count)
    cuts = np.cumsum([len(sweep.points) for sweep in sweeps])[:-1]
    marks = np.split(left_out, cuts)
    used = [
        replace(sweep, points=[p for p, out in zip(sweep.points, marked, strict=True) if not out])
        for sweep, marked in zip(sweeps, marks, strict=True)
    ]
    fitted = fit_layouts(used, without=without, place=place)
    total = sum(len(sweep.points) for sweep in used)
    day = (today or date.today()).isoformat()
    made = []
    for sweep, fit, marked, profile in zip(sweeps, used, marks, fitted, strict=True):
        scored = [p for p, out in zip(sweep.points, marked, strict=True) if out]
        made.append(_described(profile, fit.points, scored, f"{total} points of {place}, {len(sweeps)} layouts", day))
    return made


def _described(
    profile: Profile, used: Sequence[SweepPoint], scored: Sequence[SweepPoint], source: str, day: str
) -> Profile:
    """Return a layout's profile with its source, its errors, and what of them is chance."""
    where, points = "points that were not fitted", scored
    if not scored:
        where, points = "fitted points", used
    error = "no point of this layout was measured or left out; it has its family's coefficients"
    floor: dict[str, float] = {}
    medians: dict[str, float] = {}
    ranges: dict[str, tuple[float, float]] = {}
    if points:
        errors, chance = _scored(profile, points)
        medians = dict(zip(("ttft_median_abs", "tpot_median_abs"), np.median(np.abs(errors), axis=0), strict=True))
        floor = dict(zip(("ttft", "tpot"), np.median(chance, axis=0), strict=True))
        error = error_words(medians, list(floor.values()), f"{len(points)} {where}")
    for name in ("concurrency", "prompt_tokens"):
        values = [float(getattr(point, name)) for point in used]
        if values:
            ranges[name] = (min(values), max(values))
    return profile.model_copy(
        update={
            "source": f"fitted to {source}, {len(used)} of them of this one",
            "error": error,
            "calibration": Calibration(
                method="simulated closed loops of all layouts fitted to mean TTFT and TPOT, robust",
                date=day,
                measurements=len(used),
                ranges=ranges,
                held_out_error={name: round(float(v), 4) for name, v in medians.items()} if scored else {},
                noise_floor={name: round(float(v), 4) for name, v in floor.items()},
            ),
        }
    )


def _scored(profile: Profile, points: Sequence[SweepPoint]) -> tuple[Floats, Floats]:
    """Return relative errors of both metrics at each point, shape (n, 2), and half the width of a 95 % interval."""
    copies = perturbed(profile, _SEEDS)
    means_s, floors = zip(*(simulated_copies(copies, point) for point in points), strict=True)
    measured_s = np.array([(point.ttft_s, point.tpot_s) for point in points])
    return np.array(means_s) / measured_s - 1, np.array(floors)
