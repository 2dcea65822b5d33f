"""The figures that any result has: tail latency, latency over time, queues, shares of capacity, refusals.

Latency never stands without how many requests it speaks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sim.analysis import frames, style
from sim.analysis.plots_over_time import capacity_share, latency_over_time, queue_over_time
from sim.analysis.plots_summary import refusals, tail_latency
from sim.analysis.style import Phase
from sim.records.result_folder import Result


def plot_result(result: Result, folder: Path, *, phases: Sequence[Phase] = ()) -> list[Path]:
    """Write every figure of this module that the result has data for; return the files."""
    fixed = style.looks_of(result.requests, result.timeline)
    figures: dict[str, Figure] = {}
    if result.requests.num_rows:
        figures["latency-over-time"] = latency_over_time(result.requests, looks=fixed, phases=phases)
    sampled = set(frames.names(result.timeline, "metric"))
    if sampled & {"running", "waiting"}:
        figures["queue-over-time"] = queue_over_time(result.timeline, phases=phases)
    if sampled >= {"in_flight", "capacity_slots"}:
        figures["capacity-share"] = capacity_share(result.timeline, looks=fixed, phases=phases)
    if result.summary:
        figures["tail-latency"] = tail_latency(result.summary, looks=fixed)
        figures["refusals"] = refusals(result.summary)
    if result.manifest.get("kind") == "live":  # nothing of it was simulated
        for figure in figures.values():
            for axis in figure.axes:
                if axis.get_xlabel() == style.TIME_LABEL:
                    axis.set_xlabel(style.LIVE_TIME_LABEL)
    return [path for name, figure in figures.items() for path in style.save(figure, folder, name)]
