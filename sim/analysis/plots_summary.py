"""Figures of the summary, one bar per tenant and policy: tail latency, outcomes, reasons of refusal.

Functions take tables and return a figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from sim.analysis import frames, style
from sim.analysis.style import Looks

_SHARES = (  # columns, words, hatch, grey; what finished has its tenant's colour
    (("refused",), "refused", "////", "#ffffff"),
    (("evicted", "failed", "cancelled"), "evicted, failed, cancelled", "xxxx", "#bdbdbd"),
    (("unfinished",), "unfinished at the horizon", "", "#e6e6e6"),
)


_WHAT_N_IS = "After the warm-up. n: finished requests behind a P99 (all replications). Whiskers, if any: 95 % interval."


@style.styled
def tail_latency(summary: Sequence[Mapping[str, Any]], *, looks: Looks | None = None) -> Figure:
    """Return P99 time to first token and end to end by tenant and policy, and what became of the requests."""
    rows = _bars(summary)
    looks = looks or style.looks(str(row["tenant"]) for row in rows)
    figure, axes = _bar_figure(rows, columns=3, title="P99 latency and what became of the requests")
    for axis, metric, label in (
        (axes[0], "ttft", "P99 time to first token (s)"),
        (axes[1], "e2e", "P99 end to end (s)"),
    ):
        values = [float(row[f"{metric}_p99_s"]) for row in rows]
        spans = [_span(row, f"{metric}_p99_s") for row in rows]
        known = [value for value in values if math.isfinite(value)]
        top = max((high for _, high in spans if math.isfinite(high)), default=1.0) or 1.0
        log = style.log_if_wide(axis, known, along="x")
        low = _decade_below(min(v for v in known if v > 0)) if log else 0.0
        # Room on the right for the figures at the bars' ends.
        axis.set_xlim(low, top * (top / low) ** 0.75 if log else top * 1.75)
        axis.set_xlabel(label)
        for y, (row, value) in enumerate(zip(rows, values, strict=True)):
            if not math.isfinite(value):
                axis.text(0.02, y, "none finished", transform=axis.get_yaxis_transform(), va="center", fontsize=8)
                continue
            look = looks[str(row["tenant"])]
            axis.barh(y, value - low, left=low, height=0.72, color=look.colour, hatch=look.hatch, edgecolor="white")
            begin, end = spans[y]
            if begin < end:
                ends = [max(low, begin), end]
                axis.plot(ends, [y, y], color=style.INK, linewidth=1.2, marker="|", markersize=6)
            words = f"{style.seconds(value)} (n={int(row['latency_n']):,})"
            axis.annotate(words, (end, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    _outcomes(axes[2], rows, looks)
    legend = [_patch(colour, hatch, words) for _, words, hatch, colour in _SHARES]
    style.legend_below(figure, axes, _summary_note(rows, _WHAT_N_IS), legend)
    return figure


def _decade_below(value: float) -> float:
    """Return the power of ten at which a logarithmic bar begins: lengths of bars then say something of decades."""
    return float(10.0 ** (math.ceil(math.log10(value)) - 1))


def _span(row: Mapping[str, Any], column: str) -> tuple[float, float]:
    """Return the interval of a latency, or the value twice where there is none."""
    ends = float(row.get(f"{column}_ci_low", math.nan)), float(row.get(f"{column}_ci_high", math.nan))
    return ends if all(map(math.isfinite, ends)) else (float(row[column]), float(row[column]))


def _outcomes(axis: Axes, rows: Sequence[Mapping[str, Any]], looks: Looks) -> None:
    for y, row in enumerate(rows):
        offered = float(row["offered"])
        if not offered:
            continue
        look, left = looks[str(row["tenant"])], float(row["finished"]) / offered
        axis.barh(y, left, height=0.72, color=look.colour, hatch=look.hatch, edgecolor="white")
        if left > 0.2:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            axis.text(left / 2, y, f"{left:.0%}", ha="center", va="center", fontsize=8, bbox=box)
        for columns, _, hatch, colour in _SHARES:
            share = sum(float(row[column]) for column in columns) / offered
            bar: dict[str, Any] = {"facecolor": colour, "hatch": hatch, "edgecolor": style.MUTED, "linewidth": 0.5}
            if share:
                axis.barh(y, share, left=left, height=0.72, **bar)
            left += share
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlabel("share of offered (% finished)")


# Greys, because colours are the entitlements'.
_REASON_LOOKS = (
    ("#4d4d4d", ""), ("#ffffff", "////"), ("#a6a6a6", "...."), ("#e0e0e0", "xxxx"),
    ("#7a7a7a", "\\\\\\\\"), ("#ffffff", "++++"), ("#c8c8c8", "oo"), ("#f4f4f4", "||||"),
)  # fmt: skip


@style.styled
def refusals(summary: Sequence[Mapping[str, Any]]) -> Figure:
    """Return the refused share of the offered requests by reason, tenant and policy."""
    rows = _bars(summary)
    figure, (axis,) = _bar_figure(rows, columns=1, title="Refused requests by reason, as a share of those offered")
    reasons = [name for name in rows[0] if name.startswith("refused_")]
    reasons = [name for name in reasons if any(float(row[name]) > 0 for row in rows)]
    most = 0.0
    for y, row in enumerate(rows):
        offered, left = float(row["offered"]), 0.0
        for i, reason in enumerate(reasons if offered else ()):
            colour, hatch = _REASON_LOOKS[i % len(_REASON_LOOKS)]
            share = float(row[reason]) / offered
            bar: dict[str, Any] = {"facecolor": colour, "hatch": hatch, "edgecolor": style.INK, "linewidth": 0.5}
            axis.barh(y, share, left=left, height=0.72, **bar)
            left += share
        words = f"{left:.1%} of {float(row['offered']):,.6g}"
        axis.annotate(words, (left, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        most = max(most, left)
    legend = [
        _patch(*_REASON_LOOKS[i % len(_REASON_LOOKS)], reason.removeprefix("refused_").replace("_", " "))
        for i, reason in enumerate(reasons)
    ]
    axis.set_xlim(0, max(1.25 * most, 0.1))
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axis.set_xlabel("share of offered requests")
    style.legend_below(
        figure, [axis], _summary_note(rows, "After the warm-up; a request counts by its last attempt."), legend
    )
    return figure


def _bars(summary: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the tenants' rows, tenant by tenant, so that its policies stand side by side."""
    rows = [row for row in summary if row["tenant"] != "all"]
    tenants = list(dict.fromkeys(row["tenant"] for row in rows))
    return sorted(rows, key=lambda row: tenants.index(row["tenant"]))


def _bar_figure(rows: Sequence[Mapping[str, Any]], *, columns: int, title: str) -> tuple[Figure, list[Axes]]:
    """Return a figure of horizontal bars: a row says tenant and case, and a rule parts the tenants."""
    names = list(rows[0])
    labels = names[: names.index("tenant")]
    below = columns if style.narrow() else 1
    figure = Figure(figsize=(style.width_in(), below * (0.6 + 0.27 * len(rows)) + 1.0), layout="constrained")
    figure.suptitle(title)
    axes: list[Axes] = list(figure.subplots(below, columns // below, sharey=True, squeeze=False).flat)
    tenants = [str(row["tenant"]) for row in rows]
    cases = [frames.case_label({label: str(row[label]) for label in labels}).replace("\n", ", ") for row in rows]
    ticks = [f"{tenant}: {case}" for tenant, case in zip(tenants, cases, strict=True)]
    axes[0].set_yticks(range(len(rows)), ticks)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    for axis in axes:
        axis.grid(visible=False, axis="y")
        for y in range(1, len(rows)):
            if tenants[y] != tenants[y - 1]:
                axis.axhline(y - 0.5, color="#cccccc", linewidth=0.8)
    return figure, axes


def _patch(colour: str, hatch: str, label: str) -> Patch:
    return Patch(facecolor=colour, hatch=hatch, edgecolor=style.INK, linewidth=0.5, label=label)


def _summary_note(rows: Sequence[Mapping[str, Any]], first: str) -> str:
    replications = max(int(row["replications"]) for row in rows)
    return first if replications == 1 else f"{first} Means over {replications} replications."
