"""A tournament at a glance: scenarios down, policies across, the darker the better; numbers in the cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from sim.analysis import style
from sim.analysis.ranking import Score, standing

# One hue from white to dark: lightness alone carries the value, so that greyscale and any colour vision read it alike.
_SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"])


@style.styled
def heat_map(scores: Sequence[Score], *, replications: int) -> Figure:
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
        f"SLO attainment of offered requests, mean of {replications} replications on common random numbers. Bold: not "
        "distinguishable from the best of its row (95\u00a0%, paired). *: load shedding in disguise (quicker than no "
        "control for those let in, yet fewer of all requests in time). Leftmost: best mean rank.",
    )
    return figure
