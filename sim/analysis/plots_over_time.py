"""Figures over time, one panel per policy: latency, queues, shares of capacity.

Functions take tables and return a figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, PercentFormatter

from sim.analysis import frames, style
from sim.analysis.binding import WORDS, binding, use_over_time
from sim.analysis.style import Looks, Phase

REQUEST_COLUMNS = ("final", "tenant", "outcome", "first_arrival_s", "first_token_s")


@style.styled
def latency_over_time(
    requests: pa.Table, *, looks: Looks | None = None, phases: Sequence[Phase] = (), window_s: float | None = None
) -> Figure:
    """Return median and P99 time to first token by tenant in windows of arrival, with a mark for each refusal."""
    cut = frames.cut(requests, REQUEST_COLUMNS)
    looks = looks or style.looks_of(requests)
    until_s = max(float(frame["first_arrival_s"].max()) for _, frame in cut.cases)
    window_s = window_s or style.nice_window_s(until_s, 20)
    titles, drawn = [], []
    for label, frame in cut.cases:
        served = frames.first_tokens(frame)
        by_tenant = {
            str(tenant): frames.windows(rows["first_arrival_s"], rows["ttft_s"], window_s)
            for tenant, rows in served.groupby("tenant", observed=True)
        }
        sizes = [int(n) for table in by_tenant.values() for n in table["n"] if n]
        spread = f"n = {min(sizes)} to {max(sizes)} per point" if sizes else "no first token"
        titles.append(f"{label}\n{len(served):,} of {int(frame['final'].sum()):,} got a first token\n{spread}")
        drawn.append((by_tenant, frame[frame["final"] & (frame["outcome"] == "refused")]))
    title = "Time to first token by tenant"
    figure, axes = style.panels(titles, height_in=3.4, title=title, y_label="time to first token (s)")
    values = [v for by_tenant, _ in drawn for table in by_tenant.values() for v in (*table["p50"], *table["p99"])]
    _set_latency_scale(axes, values, rows=max(refused["tenant"].nunique() for _, refused in drawn))
    for axis, (by_tenant, refused) in zip(axes, drawn, strict=True):
        style.shade(axis, phases)
        for tenant, table in by_tenant.items():
            look = looks[tenant]
            axis.plot(table.index, table["p50"], color=look.colour, linestyle=look.line, linewidth=0.9)
            axis.plot(
                table.index, table["p99"], color=look.colour, linestyle=look.line, marker=look.marker, markersize=4,
                label=f"{tenant}: P99",
            )  # fmt: skip
        _rug(axis, refused, looks)
        axis.set_xlim(0, max(until_s, window_s))
    median = Line2D([], [], color=style.INK, linewidth=1.0, label="thin: median")
    refusal = Line2D([], [], color=style.INK, label="a refused request", **_TICK)
    note = f"Windows of {window_s:g} s by first arrival; retries count. A P99 of fewer than 100 is near the maximum."
    style.legend_below(figure, axes, f"{note} {cut.note}".strip(), [median, refusal])
    return figure


_TICK: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 6, "markeredgewidth": 0.8}
_ROW = 0.045  # of the panel's height, for one tenant's refusals


def _set_latency_scale(axes: Sequence[Axes], values: Sequence[float], *, rows: int) -> None:
    """Choose the shared scale, and keep ``rows`` strips free under the data."""
    known = [value for value in values if math.isfinite(value)]
    axis, free = axes[0], _ROW * rows + (0.03 if rows else 0.0)
    if style.log_if_wide(axis, known):
        low, high = min(v for v in known if v > 0) / 1.3, max(known) * 1.5
        axis.set_ylim(low * (low / high) ** (free / (1 - free)), high)
        floor = low
    else:
        high = max(known, default=1.0) * 1.15 or 1.0
        axis.set_ylim(-high * free / (1 - free), high)
        floor = 0.0
    for each in axes:  # no tick where the refusals are
        scale = each.yaxis
        ticks = [tick for tick in scale.get_major_locator().tick_values(floor, high) if floor <= tick <= high]
        between = [tick for tick in scale.get_minor_locator().tick_values(floor, high) if floor <= tick <= high]
        scale.set_major_locator(FixedLocator(ticks))
        scale.set_minor_locator(FixedLocator(between))
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scale.set_minor_formatter(NullFormatter())


def _rug(axis: Axes, refused: pd.DataFrame, looks: Looks) -> None:
    """Mark refusals at their time in a strip per tenant; marks that would cover each other are drawn once."""
    span_s = float(refused["first_arrival_s"].max()) if len(refused) else 1.0
    for i, (tenant, rows) in enumerate(refused.groupby("tenant", observed=True)):
        at_s = np.unique(np.round(rows["first_arrival_s"] / span_s * 1000)) * span_s / 1000
        height = np.full(len(at_s), _ROW * (i + 0.6))
        axis.plot(at_s, height, color=looks[str(tenant)].colour, transform=axis.get_xaxis_transform(), **_TICK)


@style.styled
def queue_over_time(timeline: pa.Table, *, phases: Sequence[Phase] = ()) -> Figure:
    """Return how many sequences run and how many wait at the replicas, against the capacity in slots."""
    cut = frames.cut(timeline, frames.TIMELINE_COLUMNS)
    series = [(label, frames.pool_series(frame)) for label, frame in cut.cases]
    title = "Sequences running and waiting at the replicas"
    return draw_queue(series, title=title, note=cut.note, phases=phases)


def draw_queue(series: Sequence[tuple[str, pd.DataFrame]], *, title: str, note: str, phases: Sequence[Phase]) -> Figure:
    """Draw the pool's series (`frames.pool_series`), one panel for each label."""
    titles = [f"{label}\npeak queue {_peak(pool, 'waiting'):g}" for label, pool in series]
    figure, axes = style.panels(titles, height_in=2.8, title=title, y_label="sequences")
    for axis, (_, pool) in zip(axes, series, strict=True):
        style.shade(axis, phases)
        if "waiting" in pool:
            axis.fill_between(pool.index, pool["waiting"], color=style.MUTED, alpha=0.25, linewidth=0)
            axis.plot(pool.index, pool["waiting"], color=style.MUTED, linestyle=(0, (4, 1.2)), label="waiting")
        if "running" in pool:
            axis.plot(pool.index, pool["running"], color=style.INK, label="running")
        if "capacity_slots" in pool:
            slots = pool["capacity_slots"]
            axis.step(pool.index, slots, where="post", color=style.LIMIT, linestyle=":", label="capacity (slots)")
        axis.margins(x=0)
    tops = [float(pool[m].max()) for _, pool in series for m in ("waiting", "running", "capacity_slots") if m in pool]
    axes[0].set_ylim(0, 1.15 * max(tops, default=1.0))  # room for the phases' names
    style.legend_below(figure, axes, note)
    return figure


@style.styled
def capacity_share(
    timeline: pa.Table, *, looks: Looks | None = None, phases: Sequence[Phase] = (), tokens_per_s: float | None = None
) -> Figure:
    """Return what each entitlement has in flight as a share of the pool's slots, stacked.

    What lies above 100 % was sent to a replica and waits there. A panel's title says which resource binds; where it is
    not the slots, its use is a line beside the stack.

    Parameters
    ----------
    tokens_per_s : the declared capacity, prompt and output together; None where none is declared.
    """
    cut = frames.cut(timeline, frames.TIMELINE_COLUMNS)
    shares, titles, lines = [], [], []
    for label, frame in cut.cases:
        pool = frames.pool_series(frame)
        found = binding(pool, tokens_per_s=tokens_per_s)
        in_flight = frames.entitlement_series(frame, "in_flight")
        slots = pool["capacity_slots"].reindex(in_flight.index, method="ffill")
        shares.append((label, in_flight.div(slots.where(slots > 0), axis=0).fillna(0.0)))
        titles.append(f"{label}\n{found}")
        lines.append(None if found.resource == "slots" else use_over_time(pool, found.resource, tokens_per_s))
    looks = looks or style.looks(str(name) for _, share in shares for name in share)
    title = "Share of the pool's slots in flight, by entitlement"
    figure, axes = style.panels(titles, height_in=3.4, title=title, y_label="share of slots")
    for axis, (_, share), line in zip(axes, shares, lines, strict=True):
        stack(axis, share, looks)
        style.shade(axis, phases)
        axis.axhline(1.0, color=style.INK, linewidth=1.0, linestyle=(0, (4, 2)), label="all slots")
        if line is not None:
            thin = frames.thinned(line.to_frame("used"))["used"]
            words = f"{WORDS[str(line.name)]} in use"
            axis.plot(thin.index, thin, color=style.INK, linewidth=1.4, label=words)
    note = "In flight = sent to a replica and not ended; what is above 100 % waits there."
    style.legend_below(figure, axes, f"{note} {cut.note}".strip())
    return figure


def stack(axis: Axes, share: pd.DataFrame, looks: Looks) -> None:
    """Draw shares (columns, by ``t_s``) on top of each other, with colour and hatch."""
    thin = frames.thinned(share)
    at_s, below = np.asarray(thin.index, dtype=np.float64), np.zeros(len(thin))
    for name in thin.columns:
        look, above = looks[name], below + thin[name].to_numpy()
        axis.fill_between(
            at_s, below, above, step="post", facecolor=look.colour, alpha=0.85, hatch=look.hatch, edgecolor="white",
            linewidth=0.0, label=name,
        )  # fmt: skip
        below = above
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ylim(0, max(axis.get_ylim()[1], 1.15, 1.12 * float(below.max(initial=0.0))))  # panels share the axis
    axis.margins(x=0)


def _peak(pool: pd.DataFrame, metric: str) -> float:
    return float(pool[metric].max()) if metric in pool else math.nan
