"""The figures that any result has: tail latency, latency over time, queues, shares of capacity, refusals.

Latency never stands without how many requests it speaks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from sim.analysis import frames, style
from sim.analysis.binding import declared_tokens_per_s
from sim.analysis.plots_over_time import capacity_share, latency_over_time, queue_over_time
from sim.analysis.plots_shares import fair_share, fair_share_totals, gauges
from sim.analysis.plots_summary import refusals, tail_latency
from sim.analysis.style import Phase
from sim.records.result_folder import Result

_GAUGES = {
    "debt": ("Debt by entitlement: above 0 somebody is owed service", "debt (share of the baseline)"),
    "weight": ("Weight by entitlement: who is let in first", "weight"),
}


def plot_result(result: Result, folder: Path, *, phases: Sequence[Phase] = ()) -> list[Path]:
    """Write every figure that the result has data for; return the files.

    Within `style.drawn_for` they have the width of a paper, and a PDF each.
    """
    figures = figures_of(result, phases=phases)
    return [path for name, figure in figures.items() for path in style.save(figure, folder, name)]


def share_figures(result: Result, *, phases: Sequence[Phase] = ()) -> dict[str, Figure]:
    """Return the figures of shares, debts and weights that the result has data for."""
    fixed = style.looks_of(result.requests, result.timeline)
    return {name: draw() for name, draw in _of_timeline(result, fixed, phases, with_capacity=False).items()}


def figures_of(result: Result, *, phases: Sequence[Phase] = ()) -> dict[str, Figure]:
    """Return every figure that the result has data for, by name."""
    return {name: draw() for name, draw in drawers_of(result, phases=phases).items()}


def drawers_of(result: Result, *, phases: Sequence[Phase] = ()) -> dict[str, Callable[[], Figure]]:
    """Return what draws each figure that the result has data for, by name."""
    fixed = style.looks_of(result.requests, result.timeline)
    found: dict[str, Callable[[], Figure]] = {}
    if result.requests.num_rows:
        found["latency-over-time"] = lambda: latency_over_time(result.requests, looks=fixed, phases=phases)
    if set(frames.names(result.timeline, "metric")) & {"running", "waiting"}:
        found["queue-over-time"] = lambda: queue_over_time(result.timeline, phases=phases)
    found |= _of_timeline(result, fixed, phases, with_capacity=True)
    if result.summary:
        found["tail-latency"] = lambda: tail_latency(result.summary, looks=fixed)
        found["refusals"] = lambda: refusals(result.summary)
    if result.manifest.get("kind") == "live":  # nothing of it was simulated
        return {name: partial(_on_a_real_clock, draw) for name, draw in found.items()}
    return found


def _on_a_real_clock(draw: Callable[[], Figure]) -> Figure:
    figure = draw()
    for axis in figure.axes:
        if axis.get_xlabel() == style.TIME_LABEL:
            axis.set_xlabel(style.LIVE_TIME_LABEL)
    return figure


def _of_timeline(
    result: Result, fixed: style.Looks, phases: Sequence[Phase], *, with_capacity: bool
) -> dict[str, Callable[[], Figure]]:
    found: dict[str, Callable[[], Figure]] = {}
    timeline = result.timeline
    sampled = set(frames.names(timeline, "metric"))
    if sampled >= {"in_flight", "capacity_slots"}:
        pool = result.manifest.get("scenario", {}).get("pool", {"entitlements": []})
        if with_capacity:
            tokens_per_s = declared_tokens_per_s(pool)
            found["capacity-share"] = lambda: capacity_share(
                timeline, looks=fixed, phases=phases, tokens_per_s=tokens_per_s
            )
        found["fair-share"] = lambda: fair_share(timeline, pool, looks=fixed, phases=phases)
        found["fair-share-totals"] = lambda: fair_share_totals(timeline, pool, looks=fixed)
    for metric, (title, label) in _GAUGES.items():
        if metric in sampled:
            found[metric] = partial(
                gauges, timeline, metric, title=title, y_label=label, looks=fixed, phases=phases
            )
    return found
