"""The figures of arXiv 2603.00356: three for experiment 1 (cross-class protection), six panels for experiment 2.

What they show is ours; which quantities stand together is the paper's choice.
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
from matplotlib.gridspec import GridSpec

from sim.analysis import frames, style
from sim.analysis.frames import TIMELINE_COLUMNS
from sim.analysis.plots_over_time import draw_queue, stack
from sim.analysis.style import Looks, Phase

_COLUMN_ORDER = ("token-pool", "none", "rate-limit")
_COLUMNS = (
    "final", "entitlement", "outcome", "arrival_s", "first_arrival_s", "forwarded_s", "first_token_s", "finish_s",
    "output_tokens", "ttft_slo_s",
)  # fmt: skip


def experiment1(requests: pa.Table, timeline: pa.Table, *, phases: Sequence[Phase] = ()) -> dict[str, Figure]:
    """Return the three figures of experiment 1 by name; their columns: token pools, no control, rate limit."""
    return {
        "exp1-queue": experiment1_queue(timeline, phases=phases),
        "exp1-latency": experiment1_latency(requests, phases=phases),
        "exp1-slots": experiment1_slots(requests, timeline, phases=phases),
    }


@style.styled
def experiment1_queue(timeline: pa.Table, *, phases: Sequence[Phase] = ()) -> Figure:
    """Return sequences running and waiting over time."""
    cases, note = _columns(timeline, TIMELINE_COLUMNS)
    series = [(label, frames.pool_series(frame)) for label, frame in cases]
    return draw_queue(
        series, title="Experiment 1: sequences running and waiting at the replica", note=note, phases=phases
    )


@style.styled
def experiment1_latency(requests: pa.Table, *, phases: Sequence[Phase] = ()) -> Figure:
    """Return the time to first token of every request by arrival, with P99 over the phases in the legends."""
    cases, note = _columns(requests, _COLUMNS)
    looks = style.looks_of(requests)
    served = [(label, frame, frames.first_tokens(frame)) for label, frame in cases]
    titles = [f"{label}\n{_counts(frame)}" for label, frame, _ in served]
    title = "Experiment 1: time to first token of each request"
    figure, axes = style.panels(titles, height_in=4.0, title=title, y_label="time to first token (s)")
    style.log_if_wide(axes[0], [value for _, _, rows in served for value in rows["ttft_s"]])
    for axis, (_, frame, rows) in zip(axes, served, strict=True):
        style.shade(axis, phases)
        for name, own in rows.groupby("entitlement", observed=True):
            look = looks[str(name)]
            inside = _within(own, phases)["ttft_s"]
            offered = _within(frame[frame["final"] & (frame["entitlement"] == name)], phases)
            p99 = f"P99 {inside.quantile(0.99):.2f} s" if len(inside) else "none"
            words = f"{name}: {p99}, {len(inside)} of {len(offered)}"
            axis.plot(
                own["first_arrival_s"], own["ttft_s"], linestyle="none", marker=look.marker, markersize=4,
                color=look.colour, markerfacecolor="none", markeredgewidth=1.0, label=words,
            )  # fmt: skip
        _objectives(axis, frame, looks, label=True)
        axis.set_xlim(left=0)
        axis.legend(loc="upper left", bbox_to_anchor=(-0.12, -0.2), handletextpad=0.3, borderpad=0.0)
    words = ", ".join(f"{name} ({from_s:g} to {until_s:g} s)" for from_s, until_s, name in phases) or "the whole run"
    first = f"P99 over requests that arrived in {words}; beside it how many of those offered got a first token."
    style.note_below(figure, f"{first} {note}".strip())
    return figure


@style.styled
def experiment1_slots(requests: pa.Table, timeline: pa.Table, *, phases: Sequence[Phase] = ()) -> Figure:
    """Return the share of the replica's slots that produce tokens for each entitlement, stacked.

    A sequence counts from its first token to its end. In flight would not do: without control most of it waits.
    """
    cases, note = _columns(requests, _COLUMNS)
    pools = {label: frames.pool_series(frame) for label, frame in _columns(timeline, TIMELINE_COLUMNS)[0]}
    looks = style.looks_of(requests)
    title = "Experiment 1: share of the replica's slots by entitlement"
    labels = [label for label, _ in cases]
    figure, axes = style.panels(labels, height_in=3.2, title=title, y_label="share of slots")
    for axis, (label, frame) in zip(axes, cases, strict=True):
        slots = pools[label]["capacity_slots"]
        edges_s = np.append(slots.index.to_numpy(), 2 * slots.index[-1] - slots.index[-2])
        held = {str(name): _producing(rows, edges_s) for name, rows in frame.groupby("entitlement", observed=True)}
        share = pd.DataFrame(held, index=slots.index).div(slots.where(slots > 0), axis=0).fillna(0.0)
        stack(axis, share, looks)
        style.shade(axis, phases)
        axis.axhline(1.0, color=style.INK, linewidth=1.0, linestyle=(0, (4, 2)), label="all slots")
    style.legend_below(figure, axes, f"A sequence holds its slot from its first token to its end. {note}".strip())
    return figure


@style.styled
def experiment2(
    requests: pa.Table,
    timeline: pa.Table,
    *,
    policy: str = "token-pool",
    phases: Sequence[Phase] = (),
    window_s: float = 10.0,
) -> Figure:
    """Return the six panels of experiment 2 for one policy; rates and percentiles in windows of ``window_s``."""
    rows = dict(_columns(requests, _COLUMNS)[0])[policy]
    samples = dict(_columns(timeline, TIMELINE_COLUMNS)[0])[policy]
    looks = style.looks_of(requests, timeline)
    pool = frames.pool_series(samples)
    until_s = float(pool.index[-1])
    edges_s = np.arange(0.0, until_s + window_s / 2, window_s)

    figure = Figure(figsize=(style.WIDTH_IN, 10.5), layout="constrained")
    figure.suptitle(f"Experiment 2 under {policy}: fair share through an outage ({_counts(rows)})")
    grid = GridSpec(6, 2, figure=figure)
    flight = figure.add_subplot(grid[0:2, 0])
    halves = {name: figure.add_subplot(grid[i, j]) for name, i, j in _HALVES}
    delay, first, output = (figure.add_subplot(grid[a : a + 2, j]) for a, j in ((2, 1), (4, 0), (4, 1)))

    in_flight = _window_means(frames.entitlement_series(samples, "in_flight"), window_s)
    _lines(flight, in_flight, looks)
    flight.step(pool.index, pool["capacity_slots"], where="post", color=style.INK, linewidth=1.2, label="capacity")
    top = max(float(pool["capacity_slots"].max()), float(in_flight.to_numpy().max()))
    flight.set(title="In flight and capacity", ylabel="slots", ylim=(0, 1.12 * top))
    for name, title, y_label in _HALF_LABELS:
        series = frames.entitlement_series(samples, name)
        if name.endswith("_per_s"):
            series = _window_means(series, window_s)
        _lines(halves[name], series, looks)
        halves[name].set(title=title, ylabel=y_label)
    low, high = halves["debt"].get_ylim()
    halves["debt"].set_ylim(low, low + 1.25 * (high - low))  # room for the phases' names
    for name in ("weight", "admitted_per_s", "refused_per_s"):
        halves[name].set_ylim(bottom=0)

    admitted = rows[rows["final"] & rows["forwarded_s"].notna()]
    in_all = admitted["forwarded_s"] - admitted["first_arrival_s"]
    _lines(delay, _windowed_p99(admitted, in_all, window_s), looks)
    gateway = _windowed_p99(admitted, admitted["forwarded_s"] - admitted["arrival_s"], window_s).max(axis=1)
    delay.plot(gateway.index, gateway, color=style.INK, linewidth=1.0, linestyle=":", label="gateway wait alone")
    delay.set(title="Admission delay, retries included (P99)", ylabel="delay (s)")
    delay.set_ylim(bottom=-0.03 * max(1e-3, float(in_all.max())))

    served = frames.first_tokens(rows)
    tails = _windowed_p99(served, served["ttft_s"], window_s)
    _lines(first, tails, looks)
    _objectives(first, rows, looks)
    style.log_if_wide(first, [*tails.to_numpy().ravel(), *rows["ttft_slo_s"].dropna()])
    sizes = served.groupby(["entitlement", np.floor_divide(served["first_arrival_s"], window_s)], observed=True).size()
    first.set(title=f"P99 time to first token and objective (n = {sizes.min()} to {sizes.max()})", ylabel="seconds")

    tokens = {str(name): _token_rate(own, edges_s) for name, own in rows.groupby("entitlement", observed=True)}
    _lines(output, pd.DataFrame(tokens, index=(edges_s[1:] + edges_s[:-1]) / 2), looks)
    output.set(title="Output tokens", ylabel="tokens/s", ylim=(0, None))

    every = [flight, *halves.values(), delay, first, output]
    for axis in every:
        style.shade(axis, phases, label=axis in (flight, halves["debt"]))
        axis.set_xlim(0, until_s)
        axis.tick_params(labelbottom=axis not in (halves["debt"], halves["admitted_per_s"]))
    for axis in (first, output):
        axis.set_xlabel("simulated time (s)")
    note = f"In flight, rates and percentiles in windows of {window_s:g} s; a P99 of a few dozen is near the maximum."
    style.legend_below(figure, every, f"{note} Dashed in the fifth panel: objectives.")
    return figure


_HALVES = (("debt", 0, 1), ("weight", 1, 1), ("admitted_per_s", 2, 0), ("refused_per_s", 3, 0))
_HALF_LABELS = (
    ("debt", "Debt and weight", "debt"),
    ("weight", "", "weight"),
    ("admitted_per_s", "Admissions and refusals", "admitted/s"),
    ("refused_per_s", "", "refused/s"),
)


def _columns(table: pa.Table, columns: Sequence[str]) -> tuple[list[tuple[str, pd.DataFrame]], str]:
    """Return the cases, token pools first, then no control, then rate limit, then any other."""
    cut = frames.cut(table, columns)
    place = {name: i for i, name in enumerate(_COLUMN_ORDER)}
    return sorted(cut.cases, key=lambda case: place.get(case[0], len(place))), cut.note


def _counts(frame: pd.DataFrame) -> str:
    last = frame[frame["final"]]
    refused = int((last["outcome"] == "refused").sum())
    return f"{len(last):,} offered, {refused:,} refused"


def _within(rows: pd.DataFrame, phases: Sequence[Phase]) -> pd.DataFrame:
    if not phases:
        return rows
    at_s = rows["first_arrival_s"]
    inside = np.logical_or.reduce([(at_s >= from_s) & (at_s < until_s) for from_s, until_s, _ in phases])
    return rows[inside]


def _objectives(axis: Axes, frame: pd.DataFrame, looks: Looks, *, label: bool = False) -> None:
    """Draw each distinct objective as a dashed line; one that several share is in ink."""
    slos = frame.dropna(subset=["ttft_slo_s"]).groupby("entitlement", observed=True)["ttft_slo_s"].first()
    for slo_s in sorted(set(slos)):
        owners = [str(name) for name in slos.index[slos == slo_s]]
        colour = looks[owners[0]].colour if len(owners) == 1 else style.INK
        words: dict[str, Any] = {"label": f"objective {slo_s:g} s"} if label else {}
        axis.axhline(slo_s, color=colour, linewidth=1.1, linestyle=(0, (6, 3)), alpha=0.9, **words)


def _lines(axis: Axes, series: pd.DataFrame, looks: Looks) -> None:
    for name in series.columns:
        look = looks[str(name)]
        axis.plot(
            series.index, series[name], color=look.colour, linestyle=look.line, marker=look.marker, markersize=3.5,
            markevery=max(1, len(series) // 12), label=str(name),
        )  # fmt: skip


def _window_means(series: pd.DataFrame, window_s: float) -> pd.DataFrame:
    means = series.groupby(np.floor_divide(np.asarray(series.index, dtype=np.float64), window_s)).mean()
    means.index = (means.index + 0.5) * window_s
    return means


def _windowed_p99(rows: pd.DataFrame, value: pd.Series[float], window_s: float) -> pd.DataFrame:
    """Return the P99 in windows of first arrival, one column for each entitlement."""
    found = {
        str(name): frames.windows(own["first_arrival_s"], value.loc[own.index], window_s)["p99"]
        for name, own in rows.groupby("entitlement", observed=True)
    }
    return pd.DataFrame(found)


def _producing(rows: pd.DataFrame, edges_s: Any) -> Any:
    """Return how many sequences produce tokens, averaged between the edges."""
    begun = rows[rows["first_token_s"].notna()]
    end_s = begun["finish_s"].fillna(math.inf).to_numpy()
    return frames.mean_present(begun["first_token_s"].to_numpy(), end_s, np.ones(len(begun)), edges_s)


def _token_rate(rows: pd.DataFrame, edges_s: Any) -> Any:
    """Return output tokens per second between the edges, a request's tokens spread evenly from first to last."""
    begun = rows[rows["first_token_s"].notna()]
    start_s = begun["first_token_s"].to_numpy()
    end_s = begun["finish_s"].fillna(float(edges_s[-1])).to_numpy()
    end_s = np.maximum(end_s, start_s + 1e-3)  # a single token takes no time, but must still be counted
    return frames.mean_present(start_s, end_s, begun["output_tokens"].to_numpy() / (end_s - start_s), edges_s)
