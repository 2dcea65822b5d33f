"""What two thirds of AIConfigurator's silicon sample say of the last third: profiles of all layouts, simulated.

The layouts of a family (model, GPU, precision of weights) are fitted together (`sim.calibration.from_layouts`), and
every point that was left out is simulated with the profile of its layout. Of data-parallel engines it is one rank,
with its share of the clients.

The sample holds many a measurement twice, so a third drawn by row has seen a part of what it is asked for; drawn by
measurement it has not. Beside the errors stand those of whoever says the family's median of everything, and by how much
measurements of one configuration differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.analysis.markdown_tables import markdown
from sim.calibration.from_aiconfigurator import SYSTEMS
from sim.calibration.from_layouts import LayoutSweep, fit_layouts
from sim.calibration.from_sweep import SweepPoint, simulated_copies
from sim.calibration.noise import perturbed
from sim.engine.step_fitted import FittedStepTime
from sim.engine.work import touched_share
from sim.errors import InputError
from sim.profiles.gpus import memory_bytes
from sim.scenario.profile import Profile
from sim.scenario.validation_errors import suggestion
from sim.studies.silicon_sample import read_sample

Floats = NDArray[np.float64]
By = Literal["row", "measurement"]
_BY: tuple[By, ...] = ("row", "measurement")
FAMILY = ["model_path", "system", "precision"]
LAYOUT = [
    *FAMILY, "backend_version", "tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size"
]  # fmt: skip
CONFIGURATION = [*LAYOUT, "isl", "osl", "concurrency"]
METRICS = ("ttft", "tpot")


@dataclass(frozen=True, slots=True)
class Served:
    """What of a model decides how much its engine holds: from its ``config.json``, weights by precision.

    ``kv_values`` are those of a token in all layers, a byte each, ``kv_shared`` whether tensor-parallel ranks share
    them: latent attention keeps all on each.
    """

    weight_bytes: Mapping[str, float]
    kv_values: int
    kv_shared: bool = True
    expert_share: float = 0.0


MODELS: Mapping[str, Served] = MappingProxyType({
    "meta-llama/Llama-3.1-70B": Served({"fp8": 70.6e9, "fp4": 41e9}, 163840),
    "openai/gpt-oss-120b": Served({"fp4": 65e9}, 18432, expert_share=4 / 128),  # every other layer has a window
    "MiniMaxAI/MiniMax-M2.5": Served({"fp8": 230e9, "fp4": 130e9}, 126976, expert_share=8 / 256),
    "moonshotai/Kimi-K2.5": Served({"int4": 595e9, "fp4": 590e9}, 35136, kv_shared=False, expert_share=8 / 384),
})  # fmt: skip
_GPUS: Mapping[str, str] = MappingProxyType({system: gpu for gpu, system in SYSTEMS.items()})
_USABLE, _RESERVED_BYTES = 0.9, 5e9  # vLLM's gpu_memory_utilization, and what activations and graphs take of a GPU
_BLOCK_TOKENS = 16
_BATCHED_TOKENS, _SEQUENCES = 8192, 2048  # vLLM's default on such GPUs, and more than any point's clients
_COPIES = 4  # of a profile, next to equal, over which errors are means


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """A draw: the points that were left out.

    Columns ``ttft_error`` and ``tpot_error`` are relative, ``..._floor`` what of each is the simulation's chance,
    ``..._chance`` the errors of the family's median.
    """

    points: pd.DataFrame

    def medians(self, column: str = "error") -> dict[str, float]:
        """Return the median of each metric's absolute error over all points."""
        return {name: float(self.points[f"{name}_{column}"].abs().median()) for name in METRICS}


def held_out(points: pd.DataFrame, seed: int = 0, *, by: By = "row", share: float = 1 / 3) -> HeldOut:
    """Fit a random part of the points and return the errors on the rest.

    Parameters
    ----------
    points : a sample as `read_sample` returns it.
    share : of the rows, or of the distinct measurements, that is left out.
    """
    what = np.arange(len(points)) if by == "row" else measurement(points)
    count = int(what.max()) + 1
    left_out = np.random.default_rng(seed).permutation(count) < round(share * count)
    used = ~left_out[what]
    found = predict(points, used)
    for name in METRICS:
        measured = points[f"silicon_{name}_ms"]
        usual = measured[used].groupby([points[key] for key in FAMILY]).median()
        chance = usual.reindex(pd.MultiIndex.from_frame(points[FAMILY])).to_numpy()
        found[f"{name}_chance"] = chance / measured.to_numpy() - 1
        found[f"{name}_error"] = found[f"{name}_ms"] / measured.to_numpy() - 1
    return HeldOut(pd.concat([points, found], axis=1)[~used])


def engines(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points with the layout of the engine that each is of, which need not be the one it stands under.

    Two of the sample's four series give every engine that shares its experts as many data-parallel ranks as GPUs, the
    other two give none, and measurements stand under both (`doubled`). Where a load is there with ranks and without,
    it is of one engine, without: repeats under either name agree to 1 % in TPOT, and first tokens of 64 prompts of
    8,192 tokens wait as on one rank.
    """
    keys = [*FAMILY, "tp_size", "isl", "osl", "concurrency"]
    shared = (points.attention_dp_size == 1) & (points.moe_ep_size == points.tp_size) & (points.tp_size > 1)
    plain = pd.MultiIndex.from_frame(points.loc[shared, keys])
    same = (points.attention_dp_size > 1) & pd.MultiIndex.from_frame(points[keys]).isin(plain)
    read = points.copy()
    read.loc[same, "moe_ep_size"] = points.tp_size[same]
    read.loc[same, ["attention_dp_size", "moe_tp_size"]] = 1.0
    return read


def doubled(points: pd.DataFrame) -> int:
    """Return how many measurements stand under several layouts."""
    layouts = points[LAYOUT].assign(measurement=measurement(points)).drop_duplicates()
    return int((layouts.measurement.value_counts() > 1).sum())


def measurement(points: pd.DataFrame) -> NDArray[np.int64]:
    """Return the number of each row's measurement: rows that agree to three digits are one, under whatever layout."""
    what = [points[name].map("{:.3g}".format) for name in ("silicon_ttft_ms", "silicon_tpot_ms")]
    keys = [points[name] for name in ("model_path", "system", "isl", "osl", "concurrency")]
    return np.asarray(points.groupby([*keys, *what], dropna=False).ngroup(), np.int64)


def predict(points: pd.DataFrame, used: NDArray[np.bool_]) -> pd.DataFrame:
    """Return ``ttft_ms``, ``tpot_ms`` and their floors, for the points that are not ``used``, from those that are.

    NaN where no point of a family is.
    """
    made = np.full((len(points), 4), np.nan)
    points = engines(points)
    for family in _places(points, FAMILY):
        if not used[family].any():
            continue
        layouts = [family[at] for at in _places(points.iloc[family], LAYOUT)]
        sweeps = [layout_sweep(points.iloc[at[used[at]]], points.iloc[at[0]]) for at in layouts]
        place = " ".join(map(str, points.iloc[family[0]][FAMILY]))
        for at, profile in zip(layouts, fit_layouts(sweeps, place=place), strict=True):
            copies = perturbed(profile, _COPIES)
            for row in at[~used[at]]:
                means_s, floor = simulated_copies(copies, _point(points.iloc[row]))
                made[row] = [*(1e3 * means_s), *floor]
    return pd.DataFrame(made, index=points.index, columns=["ttft_ms", "tpot_ms", "ttft_floor", "tpot_floor"])


def layout_sweep(used: pd.DataFrame, layout: pd.Series[float]) -> LayoutSweep:
    """Return what is fitted of a layout: one rank of it, with a cache of what its GPUs have beside the weights.

    Of data-parallel layouts the sample's ``tp_size`` is the GPUs of all ranks: only so does the KV cache fill where
    its first tokens begin to wait.

    Raises
    ------
    InputError : a model, precision or GPU of which nothing is known, or that does not hold the weights.
    """
    name, precision, system = str(layout.model_path), str(layout.precision), str(layout.system)
    for what, key, known in (("model", name, MODELS), ("GPU", system, _GPUS)):
        if key not in known:
            raise InputError(f"{what} {key}", "unknown to the silicon fit", suggestion(key, list(known)))
    model = MODELS[name]
    if precision not in model.weight_bytes:
        problem = f"unknown at precision {precision}"
        raise InputError(f"model {name}", problem, suggestion(precision, list(model.weight_bytes)))
    gpus, ranks = int(layout.tp_size), int(layout.attention_dp_size)
    of_rank = max(1, gpus // ranks)
    free_bytes = of_rank * (_USABLE * memory_bytes(_GPUS[system]) - _RESERVED_BYTES)
    free_bytes -= model.weight_bytes[precision] / ranks
    kv_bytes = model.kv_values * (1 if model.kv_shared else of_rank)
    blocks = int(free_bytes / kv_bytes) // _BLOCK_TOKENS
    if blocks < 1:
        raise InputError(f"{gpus} GPUs of {system}", f"do not hold {name} at {precision}", "leave the layout out")
    step_time = FittedStepTime(weights_s=1e-2, expert_share=touched_share(model.expert_share, ranks))
    profile = Profile(
        step_time=step_time, max_num_seqs=_SEQUENCES, max_num_batched_tokens=_BATCHED_TOKENS, async_scheduling=True,
        kv_blocks=blocks, block_tokens=_BLOCK_TOKENS,
    )  # fmt: skip
    return LayoutSweep(profile, of_rank, [_point(row) for _, row in used.iterrows()])


def _point(row: pd.Series[float]) -> SweepPoint:
    """Return what one rank's clients saw."""
    clients = max(1, int(row.concurrency) // int(row.attention_dp_size))
    ttft_s, tpot_s = float(row.silicon_ttft_ms) / 1e3, float(row.silicon_tpot_ms) / 1e3
    return SweepPoint(clients, int(row.isl), int(row.osl), ttft_s, tpot_s)


def _places(points: pd.DataFrame, by: list[str]) -> list[NDArray[np.int64]]:
    """Return the positions of each group's rows."""
    group = points.groupby(by, dropna=False).ngroup().to_numpy(np.int64)
    return [np.flatnonzero(group == number) for number in range(int(group.max()) + 1)]


def held_out_table(folder: Path | None = None, draws: int = 4) -> str:
    """Return medians by draw, by row and by measurement, and by family over the latter, as two tables of Markdown.

    Raises
    ------
    InputError : the data are not there.
    """
    sample = read_sample(folder, most=None)
    return draws_table(sample, {by: [held_out(sample, seed, by=by) for seed in range(draws)] for by in _BY})


def draws_table(sample: pd.DataFrame, draws: Mapping[By, Sequence[HeldOut]]) -> str:
    """Return what draws from a sample show, as Markdown."""
    rows = []
    for by, several in draws.items():
        for seed, found in enumerate(several):
            ranked = HeldOut(found.points[found.points.attention_dp_size > 1])
            rows.append((
                f"by {by}, draw {seed}", str(len(found.points)), *_percents(found), *_percents(found, "floor"),
                *_percents(found, "chance"), f"{len(ranked.points)}: {' and '.join(_percents(ranked))}",
            ))  # fmt: skip
    heads = (
        "left out", "points", "TTFT", "TPOT", "chance in TTFT", "in TPOT", "family's median, TTFT", "TPOT",
        "data-parallel points: TTFT and TPOT",
    )  # fmt: skip
    families = [
        (str(key[0]).rsplit("/", 1)[-1], *map(str, key[1:]), str(len(points)), *_percents(HeldOut(points)))
        for key, points in pd.concat([each.points for each in draws["measurement"]]).groupby(FAMILY)
    ]
    said = "Median errors."
    again = repeats(sample)
    if np.isfinite(again).all():
        said += f" Measurements of one configuration differ by {100 * again[0]:.1f} % in TTFT"
        said += f" and {100 * again[1]:.1f} % in TPOT."
    if twice := doubled(sample):
        said += f" {twice} measurements stand under two layouts, with data-parallel ranks and without."
    below = markdown(("model", "GPU", "weights", "points, all draws by measurement", "TTFT", "TPOT"), families)
    return f"{said}\n\n{markdown(heads, rows)}\n\n{below}"


def repeats(points: pd.DataFrame) -> tuple[float, float]:
    """Return how far measurements of one configuration differ, greatest over least, in the median; NaN for none."""
    distinct = points.assign(measurement=measurement(points)).drop_duplicates([*CONFIGURATION, "measurement"])
    groups = distinct.groupby(CONFIGURATION, dropna=False)
    several = groups.filter(lambda rows: len(rows) > 1).groupby(CONFIGURATION, dropna=False)
    ttft, tpot = (
        float((several[f"silicon_{name}_ms"].max() / several[f"silicon_{name}_ms"].min() - 1).median())
        for name in METRICS
    )
    return ttft, tpot


def _percents(found: HeldOut, column: str = "error") -> list[str]:
    return [f"{100 * median:.1f} %" for median in found.medians(column).values()]
