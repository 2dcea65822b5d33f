"""A profile from sweep summaries: mean time to first token and per further token, by concurrency and lengths.

This is what ``vllm bench serve``, GuideLLM and AIConfigurator's samples give. Every point is simulated as the load
generator made it: so many clients, each sending its next request when the last one has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from sim.calibration.checked_tables import (
    IDLE_S,
    MOST_TOKENS,
    check_token_time,
    need_columns,
    numbers,
    read_csv,
    row_of,
)
from sim.calibration.fitting import Fit, Term, fit
from sim.calibration.from_records import with_values
from sim.calibration.noise import perturbed
from sim.calibration.single_replica import Floats, Requests, closed_loop
from sim.engine.step_roofline import RooflineStepTime
from sim.engine.step_table import TableStepTime
from sim.errors import InputError
from sim.scenario.profile import Calibration, Profile
from sim.scenario.validation_errors import suggestion
from sim.scenario.yaml_file import one_line

_ROUNDS = 10  # requests that each client sends, as InferenceMAX does; the first ones, all at once, count in the means
_SEEDS = 4  # of lengths, over which errors are means
_CONTRADICT = 3.0  # times that means of one point may differ by, measured twice; 1.2 are seen [choice]
_MOST_CLIENTS = 20_000  # each sends ten requests in every simulation of a fit; published sweeps end at 16,384
_LAYOUTS = (
    "tp", "tensor_parallel", "tensor_parallel_size", "tp_size", "num_gpus", "n_gpus", "ngpus", "gpu_count", "gpus",
)  # fmt: skip
_ENGINES = (
    "gpu", "gpu_name", "gpu_type", "hw", "hardware", "device", "model", "model_name", "model_id", "precision", "dtype",
    "quantization", "weights", "engine", "framework", "version", "vllm", "vllm_version", "dp", "data_parallel", "ep",
    "expert_parallel", "pp", "pipeline_parallel", "max_num_seqs", "max_num_batched_tokens", "kv_blocks",
)  # fmt: skip
_SPREAD = 0.2  # lengths vary by as much below the nominal ones, as InferenceMAX's benchmarks set them

SWEEP_TERMS = (
    Term("request_overhead_s", 1e-2, "points with short prompts at concurrency 1"),
    Term("weights_s", 1e-2, "a point at concurrency 1 to 4"),
    Term("per_token_s", 4e-5, "points with long prompts and short outputs"),
    Term("per_decode_sequence_s", 5e-5, "points at high concurrency and short context"),
    Term("per_context_token_s", 3e-8, "points with long context at two concurrencies"),
)
"""What a sweep over concurrency and lengths can pin down of a fitted step time."""


def sweep_terms(start: Profile, *, without: Sequence[str] = ()) -> tuple[Term, ...]:
    """Return the terms that a sweep is asked for: those of the step time, and of its links where GPUs have some.

    Raises
    ------
    InputError : ``without`` names none of them.
    """
    step_time = start.step_time
    terms = [term for term in SWEEP_TERMS if term.name.startswith("request_") or hasattr(step_time, term.name)]
    if getattr(step_time, "expert_share", 0.0):
        terms.insert(2, Term("experts_s", 5e-3, "points at several concurrencies below 32"))
    if isinstance(step_time, TableStepTime | RooflineStepTime):
        terms = [SWEEP_TERMS[0], Term("base_s", 1e-3, "a point at concurrency 1 to 4")]
    if isinstance(step_time, TableStepTime):
        terms.append(Term("scale", 1.0, "points with long prompts", least=0.3, most=3.0))
    if start.gpus > 1 and getattr(step_time, "links", None) is not None:
        terms.append(Term("links.scale", 1.0, "points at two concurrencies", least=0.05, most=20.0))
    names = [term.name for term in terms]
    for name in without:
        if name not in names:
            raise InputError(f"--without {name}", "no term of this fit", suggestion(name, names))
    return tuple(term for term in terms if term.name not in without)


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One point: means of a load test, in seconds, with fixed or nearly fixed lengths."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float


COLUMNS = tuple(each.name for each in fields(SweepPoint))


@dataclass(frozen=True, slots=True, eq=False)
class SweepCalibrated:
    """A profile found from a sweep, and a row for each point: what was measured, what is simulated, whether used."""

    profile: Profile
    fit: Fit
    points: pd.DataFrame


def loop_requests(point: SweepPoint, *, seed: int = 0) -> Requests:
    """Return the requests that the clients of a point send, some for each."""
    rng = np.random.default_rng(seed)
    count = _ROUNDS * point.concurrency
    lengths = [
        np.maximum(1, np.round(nominal * rng.uniform(1 - _SPREAD, 1, count))).astype(np.int64)
        for nominal in (point.prompt_tokens, point.output_tokens)
    ]
    return Requests(np.zeros(count), lengths[0], lengths[1])


def simulate_point(profile: Profile, point: SweepPoint, *, seed: int = 0) -> tuple[float, float]:
    """Return the mean time to first token and per further token that a profile gives at a point, in seconds."""
    requests = loop_requests(point, seed=seed)
    made = closed_loop(profile, requests, point.concurrency)
    assert made.arrival_s is not None
    ttft_s = made.first_token_s - made.arrival_s
    tpot_s = (made.finish_s - made.first_token_s) / np.maximum(1, requests.output_tokens - 1)
    return float(ttft_s.mean()), float(tpot_s.mean())


def simulated_copies(copies: Sequence[Profile], point: SweepPoint) -> tuple[Floats, Floats]:
    """Return the means of `simulate_point` over next to equal profiles, and half of a 95 % interval, relative; (2,).

    Each has lengths of its own (`sim.calibration.noise.perturbed`).
    """
    made = np.array([simulate_point(each, point, seed=seed) for seed, each in enumerate(copies)])
    means = made.mean(axis=0)
    return means, 1.96 * made.std(axis=0, ddof=1) / means


def error_words(medians: Mapping[str, float], chance: Sequence[float], where: str) -> str:
    """Return what a profile says of its median errors on some points, relative, and of chance in them."""
    return (
        f"median on {where}: TTFT {100 * medians['ttft_median_abs']:.1f} %, "
        f"TPOT {100 * medians['tpot_median_abs']:.1f} %; chance +-{100 * chance[0]:.1f} and {100 * chance[1]:.1f} %"
    )


def read_sweep(file: Path) -> list[SweepPoint]:
    """Read points from a CSV with the fields of `SweepPoint` as columns.

    Raises
    ------
    InputError : unreadable, a column is missing, or a number that cannot be.
    """
    table = read_csv(file, COLUMNS)
    check_one_engine(file, table)
    return points_of(file, table)


def check_one_engine(file: Path, table: pd.DataFrame, besides: Sequence[str] = ()) -> None:
    """Refuse points of several engines, by the columns that name one: a fit would lie between them.

    Raises
    ------
    InputError : with the column, ``besides`` left aside, and what it holds.
    """
    for name in map(str, table.columns):
        key = name.strip().lower().replace(" ", "_")
        if key in besides or key not in (*_LAYOUTS, *_ENGINES) or name in ("gpus", *COLUMNS):
            continue
        held = sorted(map(str, table[name].dropna().unique()))
        listed = one_line(", ".join(held)[:60])
        if key in _LAYOUTS and held not in ([], ["1"], ["1.0"]):
            problem = f"says in the column {name} how many GPUs share the model ({listed})"
            raise InputError(str(file), problem, "call the column gpus; --out is a folder then")
        if len(held) > 1:
            problem = f"holds points of {len(held)} engines (column {name}: {listed})"
            raise InputError(str(file), problem, "give a file for each, or leave the column out")


def points_of(file: Path, table: pd.DataFrame) -> list[SweepPoint]:
    """Return the points of a file's rows, whose index counts the rows after the header.

    Raises
    ------
    InputError : a column is missing, or a number that cannot be.
    """
    need_columns(file, table, COLUMNS)
    rows = [row_of(file, int(at)) for at in table.index]
    bounds = {COLUMNS[0]: (1, _MOST_CLIENTS), COLUMNS[1]: (1, MOST_TOKENS), COLUMNS[2]: (2, MOST_TOKENS)}
    whole = [numbers(file, table, name, least=a, most=b, whole=True, rows=rows) for name, (a, b) in bounds.items()]
    ttft_s, tpot_s = (numbers(file, table, name, above=0, rows=rows) for name in COLUMNS[3:])
    check_token_time(file, tpot_s)
    _check_first_tokens(file, rows, whole, ttft_s, tpot_s)
    _check_repeats(file, table)
    points = zip(*whole, ttft_s.tolist(), tpot_s.tolist(), strict=True)
    return [SweepPoint(int(c), int(p), int(o), ttft, tpot) for c, p, o, ttft, tpot in points]


def _check_first_tokens(
    file: Path, rows: Sequence[int], asked: Sequence[Floats], ttft_s: Floats, tpot_s: Floats
) -> None:
    """Refuse a point whose two times are not in one unit.

    No first token takes longer than if all clients were served one after another, each prompt a token at a time; and it
    takes an iteration, of which another token takes no ten.
    """
    clients, prompt, output = asked
    slow, quick = ttft_s > clients * (prompt + output) * tpot_s + IDLE_S, ttft_s < tpot_s / 10
    if (slow | quick).any():
        at = int(np.flatnonzero(slow | quick)[0])
        point = f"{clients[at]:.0f} clients, {prompt[at]:.0f} + {output[at]:.0f} tokens"
        problem = f"row {rows[at]}: ttft_s {ttft_s[at]:g} beside tpot_s {tpot_s[at]:g} ({point})"
        raise InputError(str(file), problem, "give both in seconds")


def _check_repeats(file: Path, table: pd.DataFrame) -> None:
    """Refuse points that were measured twice and contradict each other: one is of another engine, or in other units."""
    for key, rows in table.groupby(list(COLUMNS[:3])):
        for name in COLUMNS[3:]:
            times = rows[name].to_numpy(float)
            least, most = times.min(), times.max()
            if most / _CONTRADICT > least:
                low, high = (row_of(file, int(rows.index[int(at)])) for at in (times.argmin(), times.argmax()))
                point = "/".join(map(str, key))
                problem = f"rows {low} and {high} are one point ({point}) and give {name} {least:g} and {most:g}"
                raise InputError(str(file), problem, "leave one of them out")


def check_points(points: Sequence[SweepPoint], profile: Profile, place: str) -> None:
    """Raise an `InputError` for a point that cannot be simulated with a profile's engine."""
    holds_tokens = profile.kv_blocks * profile.block_tokens
    for point in points:
        if min(point.concurrency, point.prompt_tokens, point.output_tokens, point.ttft_s, point.tpot_s) <= 0:
            raise InputError(place, f"a number that is not above 0 in {point}", "leave the point out")
        asked_tokens = point.prompt_tokens + point.output_tokens
        if asked_tokens > holds_tokens:
            problem = f"a request of {asked_tokens} tokens, and the KV cache holds {holds_tokens}"
            raise InputError(place, problem, "give the kv_blocks that the engine had")


def calibrate_sweep(
    start: Profile,
    points: Sequence[SweepPoint],
    *,
    terms: Sequence[Term] = SWEEP_TERMS,
    held_out: float = 0.33,
    seed: int = 0,
    place: str = "sweep",
    today: date | None = None,
) -> SweepCalibrated:
    """Fit a step time to a sweep, leaving out a random share of the points to score it on.

    Raises
    ------
    InputError : too few points, one that is not above 0, or a term that they do not identify.
    """
    if len(points) < len(terms) + 1:
        raise InputError(place, f"{len(points)} points for {len(terms)} terms", "measure at more concurrencies")
    check_points(points, start, place)
    order = np.random.default_rng(seed).permutation(len(points))
    left_out = set(order[: int(held_out * len(points))].tolist())
    used = [p for i, p in enumerate(points) if i not in left_out]

    def with_terms(values: dict[str, float]) -> Profile:
        return with_values(start, values)

    def residuals(values: dict[str, float]) -> Floats:
        profile = with_terms(values)
        rows = []
        for point in used:
            ttft_s, tpot_s = simulate_point(profile, point)
            rows += [np.log(ttft_s / point.ttft_s), 2 * np.log(tpot_s / point.tpot_s)]
        return np.array(rows)

    found = fit(residuals, terms, place=place, robust_at=0.1)
    profile = with_terms(found.values)
    rows, floors = [], []
    copies = perturbed(profile, _SEEDS)
    for i, point in enumerate(points):
        means_s, floor = simulated_copies(copies, point)
        ttft_s, tpot_s = means_s.tolist()
        floors.append(floor)
        rows.append((
            point.concurrency, point.prompt_tokens, point.output_tokens, point.ttft_s, ttft_s, point.tpot_s, tpot_s,
            i not in left_out,
        ))  # fmt: skip
    table = pd.DataFrame(
        rows,
        columns=[
            "concurrency", "prompt_tokens", "output_tokens", "ttft_s", "sim_ttft_s", "tpot_s", "sim_tpot_s", "used",
        ],
    )
    table["ttft_error"] = table.sim_ttft_s / table.ttft_s - 1
    table["tpot_error"] = table.sim_tpot_s / table.tpot_s - 1
    scored = table[~table.used] if left_out else table
    medians = {f"{m}_median_abs": float(scored[f"{m}_error"].abs().median()) for m in ("ttft", "tpot")}
    where = f"{len(scored)} points that were not fitted" if left_out else "the fitted points"
    chance = np.median(np.array(floors), axis=0).tolist()
    calibrated = profile.model_copy(
        update={
            "source": f"fitted to {len(used)} points of {place}",
            "error": error_words(medians, chance, where),
            "calibration": Calibration(
                method="simulated closed loops fitted to mean TTFT and TPOT, robust",
                date=(today or date.today()).isoformat(),
                measurements=len(used),
                confidence=found.confidence,
                ranges={
                    "concurrency": (min(p.concurrency for p in points), max(p.concurrency for p in points)),
                    "prompt_tokens": (min(p.prompt_tokens for p in points), max(p.prompt_tokens for p in points)),
                },
                held_out_error={k: round(v, 4) for k, v in medians.items()} if left_out else {},
                noise_floor={"ttft": round(chance[0], 4), "tpot": round(chance[1], 4)},
            ),
        }
    )
    return SweepCalibrated(calibrated, found, table)
