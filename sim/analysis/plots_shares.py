"""Figures of who has how much: the share of what binds against the promise, and the debts and weights behind it.

Functions take tables and return a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sim.analysis import frames, style
from sim.analysis.binding import WORDS, binding, declared_tokens_per_s, promised_shares
from sim.analysis.frames import TIMELINE_COLUMNS
from sim.analysis.style import Looks, Phase

SERVICE = {"slots": "in_flight", "tokens_per_s": "tokens_per_s"}
"""The metric of an entitlement that says what it has of a resource."""


@style.styled
def fair_share(
    timeline: pa.Table, pool: Mapping[str, Any], *, looks: Looks | None = None, phases: Sequence[Phase] = ()
) -> Figure:
    """Return each entitlement's share over time of what binds, beside its share of the promises.

    Parameters
    ----------
    pool : ``scenario.pool`` of a manifest: what is promised, and the declared capacity.

    Where KV blocks bind, the share is of slots: a sample does not say whose a block is.
    """
    cut = frames.cut(timeline, TIMELINE_COLUMNS)
    cases = [_case(label, frame, pool) for label, frame in cut.cases]
    looks = looks or style.looks(str(name) for case in cases for name in case.had)
    titles = [f"{case.label}\n{case.binds}" for case in cases]
    title = "Share of what everybody had together, against the promise"
    figure, axes = style.panels(titles, height_in=3.3, title=title, y_label="share")
    for axis, case in zip(axes, cases, strict=True):
        window_s = style.nice_window_s(float(case.had.index.max()), 40)
        had = case.had.groupby((np.asarray(case.had.index) // window_s + 0.5) * window_s).mean()
        style.shade(axis, phases)
        together = had.sum(axis=1)
        for name, share in had.div(together.where(together > 0), axis=0).items():
            look = looks[str(name)]
            axis.plot(had.index, share, color=look.colour, linestyle=look.line, label=str(name))
            if case.promised.get(str(name)):
                axis.axhline(case.promised[str(name)], color=look.colour, linewidth=1.2, linestyle=(0, (1, 2)))
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.margins(x=0)
    words = " and ".join(sorted({WORDS[case.resource] for case in cases}))
    note = f"Shares of {words}, means over windows. Dotted: the share of all that is promised."
    style.legend_below(figure, axes, f"{note} {cut.note}".strip())
    return figure


@style.styled
def fair_share_totals(timeline: pa.Table, pool: Mapping[str, Any], *, looks: Looks | None = None) -> Figure:
    """Return each entitlement's share of what everybody had in the whole run, a bar for each case and the promise."""
    cut = frames.cut(timeline, TIMELINE_COLUMNS)
    cases = [_case(label, frame, pool) for label, frame in cut.cases]
    looks = looks or style.looks(str(name) for case in cases for name in case.had)
    figure = Figure(figsize=(style.width_in(), 1.7 + 0.42 * (len(cases) + 1)), layout="constrained")
    figure.suptitle("Share of the whole run, and of the promises")
    axis = figure.subplots()
    bars = [(case.label.replace("\n", ", "), dict(case.had.sum())) for case in cases]
    promised: dict[str, float] = next((case.promised for case in cases if case.promised), {})
    if promised:
        bars.insert(0, ("promised", {name: promised.get(name, 0.0) for name in bars[0][1]}))
    for y, (_, had) in enumerate(bars):
        _stacked(axis, y, had, looks)
    axis.set_yticks(range(len(bars)), [label for label, _ in bars])
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.set_xlim(0, 1)
    axis.grid(visible=False, axis="y")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlabel("share of " + " and ".join(sorted({WORDS[case.resource] for case in cases})))
    style.legend_below(figure, [axis], cut.note)
    return figure


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    label: str
    resource: str
    binds: str
    had: pd.DataFrame
    promised: dict[str, float]


def _case(label: str, timeline: pd.DataFrame, pool: Mapping[str, Any]) -> _Case:
    found = binding(frames.pool_series(timeline), tokens_per_s=declared_tokens_per_s(pool))
    resource = found.resource if found.resource in SERVICE else "slots"
    had = frames.entitlement_series(timeline, SERVICE[resource])
    return _Case(label, resource, str(found), had, promised_shares(pool, resource))


def _stacked(axis: Axes, y: int, had: Mapping[str, float], looks: Looks) -> None:
    left, whole = 0.0, sum(had.values())
    for name, total in had.items():
        look, share = looks[name], total / whole if whole else 0.0
        axis.barh(
            y, share, left=left, height=0.66, color=look.colour, hatch=look.hatch, edgecolor="white", label=name
        )
        if share > 0.05:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            axis.text(left + share / 2, y, f"{share:.0%}", ha="center", va="center", fontsize=8, bbox=box)
        left += share


@style.styled
def gauges(
    timeline: pa.Table, metric: str, *, title: str, y_label: str, looks: Looks | None = None,
    phases: Sequence[Phase] = (),
) -> Figure:  # fmt: skip
    """Return one sampled gauge of every entitlement over time, a panel for each case that has it."""
    cut = frames.cut(timeline, TIMELINE_COLUMNS)
    series = [(label, frames.entitlement_series(frame, metric)) for label, frame in cut.cases]
    series = [(label, frames.thinned(one)) for label, one in series if len(one)]
    looks = looks or style.looks(str(name) for _, one in series for name in one)
    figure, axes = style.panels([label for label, _ in series], height_in=3.0, title=title, y_label=y_label)
    values = [float(value) for _, one in series for value in one.to_numpy().ravel()]
    log = min(values, default=0.0) > 0 and style.log_if_wide(axes[0], values)
    for axis, (_, one) in zip(axes, series, strict=True):
        style.shade(axis, phases)
        if not log:
            axis.axhline(0.0, color=style.MUTED, linewidth=0.8)
        for name, line in one.items():
            look = looks[str(name)]
            axis.plot(one.index, line, color=look.colour, linestyle=look.line, label=str(name))
        axis.margins(x=0)
    style.legend_below(figure, axes, cut.note)
    return figure
