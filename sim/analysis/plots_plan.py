"""The figure of a plan: what attainment costs, policy by policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sim.analysis import style

Point = tuple[float, float, float]
"""What it costs (replicas, or another field of the scenario), attainment, and its lower bound."""


@style.styled
def frontier(
    tried: Mapping[str, Sequence[Point]],
    best: Mapping[str, Sequence[Point]],
    *,
    target: float,
    confidence: float,
    cost: str = "replicas",
    most: bool = False,
    chosen: Mapping[str, Point] | None = None,
) -> Figure:
    """Return cost against the attainment of the tenant that is worst off.

    Parameters
    ----------
    tried : by policy, every setting.
    best : by policy, those that no other one beats in both.
    cost : what the horizontal axis holds.
    most : whether there shall be much of it.
    chosen : by policy, the setting that the plan chose; it is ringed and its cost written beside it.
    """
    figure = Figure(figsize=(style.width_in(), 4.2), layout="constrained")
    axis = figure.subplots()
    looks = style.looks(tried)
    for policy, points in tried.items():
        look = looks[policy]
        axis.plot(*_columns(points), color=look.colour, marker=look.marker, linestyle="none", alpha=0.3, markersize=5)
        edge = best[policy]
        costs, shares = _columns(edge)
        axis.plot(costs, shares, color=look.colour, marker=look.marker, linestyle=look.line, label=policy)
        for at, share, bound in edge:
            axis.plot([at, at], [max(0.0, bound), share], color=look.colour, linewidth=1.0)
    for policy, (at, share, _) in (chosen or {}).items():
        axis.plot([at], [share], "o", color=looks[policy].colour, markersize=13, fillstyle="none", markeredgewidth=1.8)
        axis.annotate(f"{at:g}", (at, share), xytext=(0, -16), textcoords="offset points", ha="center", fontsize=8)
    axis.axhline(target, color=style.LIMIT, linestyle=":", label=f"goal {target:.0%}")
    axis.set_xlabel(cost)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ylabel("SLO attainment, worst tenant")
    axis.set_title("How much attainment allows" if most else "What attainment costs")
    note = f"Lines: settings that no other beats in both. Bars reach down to the one-sided {confidence:.0%} bound."
    if chosen:
        note += " Ringed: the setting chosen."
    style.legend_below(figure, [axis], note)
    return figure


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]
