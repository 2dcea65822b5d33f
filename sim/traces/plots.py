"""A trace in four panels: rate over time, gaps, lengths, tenants."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sim.analysis.style import LOOKS, MUTED, PNG_DPI, RC, WIDTH_IN
from sim.traces.statistics import TraceStatistics

_TENANTS = 30


def draw_trace(found: TraceStatistics, title: str) -> Figure:
    """Return a figure of a trace's statistics."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH_IN, 6.2), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title)
        axes = figure.subplots(2, 2)
        _rate(axes[0, 0], found)
        _gaps(axes[0, 1], found)
        _lengths(axes[1, 0], found)
        _tenants(axes[1, 1], found)
    return figure


def save_trace_plot(found: TraceStatistics, title: str, path: Path) -> None:
    """Draw a trace to a PNG or SVG file, by the name's ending."""
    with mpl.rc_context(RC):
        draw_trace(found, title).savefig(path, dpi=PNG_DPI, metadata={"Date": None} if path.suffix == ".svg" else None)


def _rate(axes: Axes, found: TraceStatistics) -> None:
    series = found.series
    if series is None:
        return
    width_s = series.width_ns / 1e9
    used = int(found.span_s // width_s) + 1
    # About two hundred steps: of a long trace the bins are wide already, of a short one they are joined.
    join = max(1, used // 200)
    counts = series.counts[: max(1, used // join) * join].reshape(-1, join).sum(axis=1)
    unit, seconds = next((u, s) for u, s in (("days", 86_400), ("hours", 3_600), ("minutes", 60), ("seconds", 1))
                         if found.span_s >= 3 * s or s == 1)  # fmt: skip
    edges = np.arange(len(counts) + 1) * width_s * join / seconds
    axes.stairs(counts / (width_s * join), edges, fill=True, color=LOOKS[0].colour, alpha=0.85)
    axes.axhline(found.rate_per_s, color=MUTED, linewidth=1.0, linestyle="--")
    axes.set(title=f"Rate, mean {found.rate_per_s:.3g} per second (dashed)", xlabel=unit, ylabel="requests per second")


def _gaps(axes: Axes, found: TraceStatistics) -> None:
    edges_s = 10 ** (np.arange(len(found.gap_counts) + 1) / 10) / 1e9
    share = found.gap_counts / max(1, found.gap_counts.sum())
    used = np.flatnonzero(share)
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    axes.stairs(share[low:high], edges_s[low : high + 1], fill=True, color=LOOKS[0].colour, alpha=0.85)
    # Of a Poisson process with the same rate.
    poisson = -np.diff(np.exp(-edges_s[low : high + 1] * found.rate_per_s))
    axes.stairs(poisson, edges_s[low : high + 1], color=LOOKS[1].colour, label="Poisson of this rate")
    axes.set(xscale="log", title=f"Gaps, CV {found.gaps_s.cv:.3g}", xlabel="seconds", ylabel="share")
    axes.legend()


def _lengths(axes: Axes, found: TraceStatistics) -> None:
    for name, lengths, look in (("prompt", found.prompt, LOOKS[0]), ("output", found.output, LOOKS[1])):
        below = np.cumsum(lengths.counts) / max(1, lengths.counts.sum())
        tokens = np.flatnonzero(lengths.counts)
        axes.step(tokens, below[tokens], where="post", color=look.colour, linestyle=look.line, label=name)
    axes.set(xscale="log", ylim=(0, 1), title="Lengths", xlabel="tokens", ylabel="share of requests at most as long")
    axes.legend()


def _tenants(axes: Axes, found: TraceStatistics) -> None:
    counter, what = (found.tenants, "Tenants") if len(found.tenants) > 1 else (found.services, "Services")
    if len(counter) < 2:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "one tenant, one service", ha="center", va="center", color=MUTED)
        return
    shares = np.array(sorted(counter.values(), reverse=True)[:_TENANTS]) / found.count
    axes.bar(np.arange(1, len(shares) + 1), 100 * shares, color=LOOKS[0].colour)
    axes.set(title=f"{what}: {len(counter)}, largest first", xlabel="rank", ylabel="% of requests")
