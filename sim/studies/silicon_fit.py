"""What two thirds of AIConfigurator's silicon sample say of the last third: laws of closed loops, by layout.

A closed loop of c clients decodes batches of about c, of contexts of about ``isl + osl / 2``, beside ``c isl / osl``
prompt tokens an iteration. So the time per token is a sum of non-negative terms of these, and of what saturates with c
(the experts that a batch touches, launches that captured graphs hide); the time to first token one of the prompt, of
the prompts of all clients, which come at once at the start, and of c. Each family (model, GPU, precision) has
coefficients, and each layout in it (version, tensor, data and expert parallelism) its own, drawn towards the family's
where it has few points. These are laws of what was measured, not profiles: they say nothing of a load that is no closed
loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from sim.analysis.markdown_tables import markdown
from sim.studies.silicon_sample import read_sample

Floats = NDArray[np.float64]
FAMILY = ["model_path", "system", "precision"]
LAYOUT = [
    *FAMILY, "backend_version", "tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size"
]  # fmt: skip
METRICS = ("ttft", "tpot")
_ROBUST_AT = 0.1  # of a logarithm: what is further off counts less
_WEAKLY, _TOWARDS_FAMILY = 0.03, 0.1  # of a logarithm of a coefficient, beside a relative error of one point


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """A draw: the points that were left out, with columns ``ttft_error`` and ``tpot_error``, relative."""

    points: pd.DataFrame

    def medians(self) -> dict[str, float]:
        """Return the median of each metric's absolute error over all points."""
        return {name: float(self.points[f"{name}_error"].abs().median()) for name in METRICS}


def terms(points: pd.DataFrame, metric: str) -> Floats:
    """Return the terms of a metric for each point, of size one or so."""
    ranks = points.attention_dp_size.clip(lower=1).to_numpy(float)
    clients = points.concurrency.to_numpy(float) / ranks
    isl, osl = points.isl.to_numpy(float), points.osl.to_numpy(float)
    one = np.ones(len(points))
    if metric == "tpot":
        context = isl + osl / 2
        saturating = [1 - np.exp(-clients / 8), 1 - np.exp(-clients / 64)]
        columns = [one, *saturating, clients / 64, clients * context / 1e6, clients * isl / osl / 1e3]
    else:
        prompt, prompts = isl / 1e3, clients * isl / 1e5
        columns = [one, prompt, prompt**2 / 8, prompts, prompts**2 / 10, clients / 64, np.sqrt(clients) * isl / 1e4]
    return np.column_stack(columns)


def coefficients(there: Floats, measured: Floats, prior: Floats, weight: float) -> Floats:
    """Return logarithms of the coefficients that fit best, relative, and stay near ``prior`` by ``weight``."""

    def residuals(logs: Floats) -> Floats:
        made = np.maximum(there @ np.exp(logs), 1e-9)
        return np.concatenate([np.log(made / measured), weight * (logs - prior)])

    return np.asarray(least_squares(residuals, prior, loss="soft_l1", f_scale=_ROBUST_AT, max_nfev=200).x)


def predict(points: pd.DataFrame, used: NDArray[np.bool_], metric: str) -> Floats:
    """Return a metric of every point, in milliseconds, from those that are ``used``."""
    there, measured = terms(points, metric), points[f"silicon_{metric}_ms"].to_numpy(float)
    made = np.full(len(points), np.nan)
    begin = np.full(there.shape[1], np.log(np.median(measured[used]) / there.shape[1]))
    for family in _places(points, FAMILY):
        of_family = family[used[family]]
        shared = coefficients(there[of_family], measured[of_family], begin, _WEAKLY) if len(of_family) else begin
        for at in _places(points.iloc[family], LAYOUT):
            layout = family[at]
            own = layout[used[layout]]
            found = coefficients(there[own], measured[own], shared, _TOWARDS_FAMILY) if len(own) else shared
            made[layout] = there[layout] @ np.exp(found)
    return made


def _places(points: pd.DataFrame, by: list[str]) -> list[NDArray[np.int64]]:
    """Return the positions of each group's rows."""
    group = points.groupby(by, dropna=False).ngroup().to_numpy(np.int64)
    return [np.flatnonzero(group == number) for number in range(int(group.max()) + 1)]


def held_out(points: pd.DataFrame, seed: int = 0, share: float = 1 / 3) -> HeldOut:
    """Fit a random part of the points and return the errors on the rest.

    Parameters
    ----------
    points : a sample as `read_sample` returns it.
    share : of the points, by row, that is left out.
    """
    used = np.random.default_rng(seed).permutation(len(points)) >= round(share * len(points))
    errors = {
        f"{metric}_error": predict(points, used, metric) / points[f"silicon_{metric}_ms"].to_numpy(float) - 1
        for metric in METRICS
    }
    return HeldOut(points.assign(**errors)[~used])


def held_out_table(folder: Path | None = None, draws: int = 3) -> str:
    """Return medians by family over some draws as Markdown, and of the whole for each draw.

    Raises
    ------
    InputError : the data are not there.
    """
    sample = read_sample(folder, most=None)
    found = [held_out(sample, seed) for seed in range(draws)]
    rows: list[tuple[str, ...]] = []
    for key, points in pd.concat([each.points for each in found]).groupby(FAMILY):
        cells = [f"{100 * points[f'{name}_error'].abs().median():.1f} %" for name in METRICS]
        rows.append((str(key[0]).rsplit("/", 1)[-1], *map(str, key[1:]), str(len(points)), *cells))
    for seed, each in enumerate(found):
        medians = [f"{100 * each.medians()[name]:.1f} %" for name in METRICS]
        rows.append(("all", "", "", f"draw {seed}: {len(each.points)}", *medians))
    return markdown(("model", "GPU", "weights", "points left out", "TTFT, median error", "TPOT, median error"), rows)
