"""How well a profile predicts a measured run: errors beside the source's own simulator, and every request in a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sim.calibration.measured import METRICS, MeasuredRun, check_fits, errors, per_request, sampling
from sim.calibration.noise import averaged, perturbed, verdict
from sim.calibration.single_replica import Latencies, replay
from sim.errors import InputError
from sim.scenario.profile import Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED: Mapping[str, Mapping[tuple[str, str], float]] = MappingProxyType({
    "RTX4090_Llama-3.1-8B": MappingProxyType({
        ("ttft", "mean"): 0.006, ("ttft", "p99"): 0.003, ("tpot", "mean"): 0.002, ("tpot", "p99"): 0.009,
        ("e2e", "mean"): 0.005,
    }),
    "RTXPRO6000_Llama-3.1-8B": MappingProxyType({
        ("ttft", "mean"): -0.040, ("ttft", "p99"): -0.020, ("tpot", "mean"): -0.010, ("tpot", "p99"): 0.006,
        ("e2e", "mean"): -0.018,
    }),
})  # fmt: skip
"""Relative errors of LLMServingSim on its own runs, by run, metric and statistic, as its authors publish them."""

_TITLES = {"ttft": "time to first token", "tpot": "time per further token", "e2e": "end to end"}


def validate_profile(profile: Profile, run: MeasuredRun) -> tuple[pd.DataFrame, Latencies]:
    """Simulate a measured run; returns the errors, beside published ones where there are any, and the latencies.

    The errors are means over copies of the profile that differ by next to nothing; ``floor`` is what one varies by,
    and ``sampling`` what the measured statistic would over other requests.
    """
    check_fits(profile, run)
    made = [replay(each, run.requests) for each in perturbed(profile)]
    simulated = made[0]
    table = averaged([errors(run.requests, run.latencies, each) for each in made])
    table["sampling"] = sampling(run.requests, run.latencies)
    published = PUBLISHED.get(run.name, {})
    keys = zip(table.metric.tolist(), table.statistic.tolist(), strict=True)
    table["published"] = [published.get(key, np.nan) for key in keys]
    return table, simulated


def error_table(table: pd.DataFrame) -> str:
    """Return the errors as text: a line for each metric and statistic, times in ms."""
    heads = "metric  statistic  measured ms  simulated ms   error %  chance %  sampling %  publisher's simulator %"
    lines = [heads, "-" * len(heads)]
    for row in table.to_dict("records"):
        published = "" if pd.isna(row["published"]) else f"{100 * row['published']:+.1f}"
        times = f"{1e3 * row['measured_s']:>11.1f}  {1e3 * row['simulated_s']:>12.1f}"
        floors = f"{100 * row['floor']:>8.2f}  {100 * row.get('sampling', np.nan):>10.1f}"
        errors_ = f"{100 * row['error']:>+8.2f}  {floors}  {published:>23}"
        lines.append(f"{row['metric']:<6}  {row['statistic']:<9}  {times}  {errors_}".rstrip())
    return "\n".join(lines)


def judge(table: pd.DataFrame, at_most: float) -> bool:
    """Return whether every mean is off by at most so much, relative; of what no request has, none is.

    Raises
    ------
    InputError : chance would decide.
    """
    undecided = []
    for row in table[(table.statistic == "mean") & table.measured_s.notna()].to_dict("records"):
        found = verdict(float(row["error"]), float(row["floor"]), at_most)
        if found is False:
            return False
        if found is None:
            undecided.append(f"{row['metric']} is off by {100 * row['error']:+.2f} % +-{100 * row['floor']:.2f}")
    if undecided:
        problem = f"no verdict: {', '.join(undecided)}, too near to {100 * at_most:g} % to tell from chance"
        raise InputError("--at-most", problem, "measure longer, or give another limit")
    return True


def plot_validation(run: MeasuredRun, simulated: Latencies, title: str) -> Figure:
    """Return a figure with a panel for each metric: every request, simulated against measured, in seconds."""
    from matplotlib.figure import Figure

    measured, made = per_request(run.requests, run.latencies), per_request(run.requests, simulated)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 3), METRICS, strict=True):
        axes.scatter(measured[metric], made[metric], s=9, alpha=0.6, color="#1f77b4", linewidths=0)
        low = float(np.nanmin([np.nanmin(measured[metric]), np.nanmin(made[metric])]))
        high = float(np.nanmax([np.nanmax(measured[metric]), np.nanmax(made[metric])]))
        axes.plot([low, high], [low, high], color="black", linewidth=0.8, label="equal")
        axes.plot([low, high], [0.9 * low, 0.9 * high], color="grey", linewidth=0.6, linestyle="--", label="±10 %")
        axes.plot([low, high], [1.1 * low, 1.1 * high], color="grey", linewidth=0.6, linestyle="--")
        axes.set_xlabel(f"measured {_TITLES[metric]} (s)")
        axes.set_ylabel("simulated (s)")
        axes.legend(frameon=False, loc="upper left")
    figure.suptitle(title)
    return figure


def save_plot(figure: Figure, folder: Path, name: str) -> Path:
    """Write a figure as PNG and return its path."""
    path = folder / f"{name}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise InputError(str(path), f"cannot be written ({error.strerror})", "name another folder") from None
    return path
