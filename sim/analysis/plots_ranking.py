"""A tournament at a glance: scenarios down, policies across, the darker the better; numbers in the cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from sim.analysis import style
from sim.analysis.ranking import Score, standing
from sim.analysis.standings import METRICS, Table

# One hue from white to dark: lightness alone carries the value, so that greyscale and any colour vision read it alike.
_SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"])


@style.styled
def heat_map(scores: Sequence[Score], *, replications: int, load: float = 1.0) -> Figure:
    """Return the heat map; the policy with the best mean rank is leftmost."""
    order = standing(scores)
    policies = [row[0] for row in order]
    scenarios = list(dict.fromkeys(one.scenario for one in scores))
    cells = {(one.scenario, one.policy): one for one in scores}
    values = np.asarray([[100 * cells[s, p].score if (s, p) in cells else np.nan for p in policies] for s in scenarios])
    figure = Figure(figsize=(style.width_in(), 1.7 + 0.32 * (len(scenarios) + 1)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap=_SHADES, vmin=0, vmax=100, aspect="auto")
    axis.set_xticks(range(len(policies)), policies, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(scenarios)), [name.replace("-", " ") for name in scenarios])
    axis.grid(False)
    for edge in axis.spines.values():
        edge.set_visible(False)
    axis.set_xticks(np.arange(1, len(policies)) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, len(scenarios)) - 0.5, minor=True)
    axis.grid(True, which="minor", color="white", linewidth=1.2)
    axis.tick_params(which="both", length=0)
    for y, scenario in enumerate(scenarios):
        for x, policy in enumerate(policies):
            one = cells.get((scenario, policy))
            if one is None:
                axis.text(x, y, "–", ha="center", va="center", fontsize=8, color=style.MUTED)
                continue
            text = f"{100 * one.score:.0f}" + ("*" if one.shedding else "")
            dark = one.score > 0.55
            axis.text(
                x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else style.INK,
                fontweight="bold" if one.level else "normal",
            )  # fmt: skip
    bar = figure.colorbar(image, ax=axis, shrink=0.8, pad=0.01)
    bar.set_label("requests in time, worst-off scored tenant (%)")
    figure.suptitle("Which policy keeps its promises where?")
    style.note_below(
        figure,
        f"SLO attainment of offered requests at {load:g} times each scenario's load, mean of {replications} "
        "replications on common random numbers. Bold: not "
        "distinguishable from the best of its row (95\u00a0%, paired). *: load shedding in disguise (quicker than no "
        "control for those let in, yet fewer of all requests in time). Leftmost: best mean rank.",
    )
    return figure


@style.styled
def mean_ranks(table: Table, *, replications: int) -> Figure:
    """Return the mean rank of each policy with its interval: one panel for each metric, one mark for each load."""
    order = [one.policy for one in table.standings("attainment")]
    shown = [metric for metric in METRICS if table.standings(metric)]
    figure = Figure(figsize=(style.width_in(), 1.6 + 0.27 * len(order)), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    spread = 0.5 / max(1, len(table.loads) - 1)
    for axis, metric in zip(axes, shown, strict=True):
        for number, load in enumerate(table.loads):
            found = {one.policy: one for one in table.standings(metric, load)}
            y = [order.index(name) + spread * (number - (len(table.loads) - 1) / 2) for name in found]
            rank = [one.rank for one in found.values()]
            reach = [
                [max(0.0, one.rank - one.low) for one in found.values()],
                [max(0.0, one.high - one.rank) for one in found.values()],
            ]
            axis.errorbar(
                rank, y, xerr=reach, fmt=_MARKS[number % len(_MARKS)], markersize=4, linewidth=1.0,
                color=_LINES[number % len(_LINES)], label=f"load {load:g}",
            )
        axis.set_title(metric)
        axis.set_xlabel("mean rank")
        axis.set_xlim(0.5, len(order) + 0.5)
        axis.grid(axis="y", visible=True)
    axes[0].set_yticks(range(len(order)), order)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(table.loads))
    figure.suptitle("Mean rank by metric and load", x=0.01, ha="left")
    style.note_below(
        figure,
        f"{replications} seeds, the same for every policy; bars: 95\u00a0% intervals of a paired bootstrap over seeds. "
        "Ranks are over the scenarios of this tournament alone. Violation: the least is rank 1.",
    )
    return figure


_MARKS = ("o", "s", "^", "D")
_LINES = ("#6baed6", "#2171b5", "#08306b", "#555555")
