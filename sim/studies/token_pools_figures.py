"""The figures of docs/token-pools.md; `sim.studies.token_pools` runs what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.analysis import style
from sim.analysis.plots_over_time import capacity_share
from sim.studies.token_pools import BURSTS, CHANGED_S, DAY, LIMITED, UNTIL_S, Run, play

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
_LINES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 1.5)), (0, (3, 1, 1, 1)))
_MARKERS = "os^DvP"
_HATCHES = ("", "///", "\\\\\\", "xx", "...")


@style.styled
def bursts_figure(runs: Mapping[str, Run]) -> Figure:
    """Return chat's tail under each burst and policy."""
    figure = Figure(figsize=(style.WIDTH_IN, 3.2), layout="constrained")
    figure.suptitle("A neighbour's burst, and what chat feels of it (objective 1 s)")
    late, met = figure.subplots(1, 2)
    for i, policy in enumerate(LIMITED):
        places = np.arange(len(runs)) + 0.17 * (i - 2)
        label = "rate-limit (both)" if policy == "rate-limit" else policy
        look = {"color": _COLOURS[i], "hatch": _HATCHES[i], "edgecolor": "white", "width": 0.16, "label": label}
        late.bar(places, [float(run.row(policy, "chat")["ttft_p99_s"]) for run in runs.values()], **look)
        met.bar(places, [100 * float(run.row(policy, "chat")["slo_attainment"]) for run in runs.values()], **look)
    late.axhline(1.0, color=style.LIMIT, linewidth=1)
    late.set_yscale("log")
    late.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    late.set_ylabel("P99 time to first token (s)")
    met.set_ylabel("within the objective (%)")
    for axis in (late, met):
        axis.set_xticks(range(len(runs)), [f"burst in\n{what}" for what in BURSTS.values()])
    n = ", ".join(f"{run.row('none', 'chat')['offered']}" for run in runs.values())
    style.legend_below(figure, [late], f"n (chat's requests in each scenario): {n}; one run each, equal arrivals")
    return figure


@style.styled
def day_figure(run: Run) -> Figure:
    """Return replicas over the day, promised against provisioned, and what was refused."""
    figure = Figure(figsize=(style.WIDTH_IN, 6.6), layout="constrained")
    figure.suptitle("A day with a peak: who scales the pool, and on what")
    replicas, promised, refused = figure.subplots(3, 1, sharex=True)
    for i, policy in enumerate(DAY):
        ready = run.series(policy, "ready_replicas")
        replicas.step(ready.index / 60, ready, where="post", color=_COLOURS[i], linestyle=_LINES[i], label=policy)
        share = run.series(policy, "refused_per_s").rolling(12).mean()
        if i < 2:
            refused.plot(share.index / 60, share, color=_COLOURS[i], linestyle=_LINES[i])
    replicas.set_ylabel("ready replicas")
    for metric, label, colour, line in (
        ("provisioned_tokens_per_s", "provisioned", "#000000", _LINES[0]),
        ("promised_tokens_per_s", "leased", style.MUTED, _LINES[4]),
        ("needed_tokens_per_s", "needed of what was promised", "#8c510a", _LINES[1]),
        ("tokens_per_s", "served", _COLOURS[0], _LINES[2]),
    ):
        series = run.series("pool+capacity", metric)
        series = series.rolling(12).mean() if metric == "tokens_per_s" else series
        promised.plot(series.index / 60, series, color=colour, linestyle=line, label=label)
    promised.set_ylabel("tokens/s")
    promised.set_title("pool+capacity")
    promised.legend(loc="lower center", ncols=4)
    promised.set_ylim(0)
    refused.set_ylabel("refused per second")
    refused.set_xlabel("simulated time (min)")
    style.legend_below(figure, [replicas], "Refusals are means over 2 min; policies without a limiter refuse nothing.")
    return figure


def classes_figure(run: Run) -> Figure:
    """Return who held the slots."""
    every = run.result.timeline
    own = every.filter(pc.equal(every["policy"].cast("string"), "token-pool"))
    return capacity_share(own, phases=run.phases)


@style.styled
def failures_figure(run: Run) -> Figure:
    """Return service over the promise of each entitlement, through the failures."""
    promised = {"chat": 5000.0, "docs": 4000.0, "notes": 4000.0}
    demanded = {"chat": 14 * 256.0, "docs": 11 * 256.0, "notes": 11 * 256.0}
    figure = Figure(figsize=(style.WIDTH_IN, 3.4), layout="constrained")
    figure.suptitle("A crash, a slow replica, and half the pool lost: service over min(demand, baseline)")
    axes: Sequence[Axes] = list(figure.subplots(1, 2, sharey=True))
    for axis, policy in zip(axes, ("token-pool", "none"), strict=True):
        for i, (name, most) in enumerate(promised.items()):
            served = run.series(policy, "tokens_per_s", name).rolling(10).mean() / min(most, demanded[name])
            axis.plot(served.index, served, color=_COLOURS[i], linestyle=_LINES[i], label=name)
        style.shade(axis, run.phases)
        axis.set_title(policy)
        axis.set_xlabel("simulated time (s)")
        axis.set_ylim(0, 1.6)
    axes[0].set_ylabel("share (10 s means)")
    style.legend_below(figure, axes, "min(demand, baseline) taken from the mean demand; failed requests fail.")
    return figure


@style.styled
def gateways_figure(found: pd.DataFrame) -> Figure:
    """Return over-admission and its price against the time between exchanges."""
    figure = Figure(figsize=(style.WIDTH_IN, 3.2), layout="constrained")
    figure.suptitle("Several gateways that exchange their books every x seconds (token pools, 64 slots)")
    over, late = figure.subplots(1, 2)
    for i, (count, rows) in enumerate(found[found["gateways"] > 1].groupby("gateways")):
        rows = rows.sort_values("share_s", na_position="last")
        x = rows["share_s"].fillna(60.0)
        look: dict[str, Any] = {"color": _COLOURS[i], "linestyle": _LINES[i], "marker": _MARKERS[i]}
        over.plot(x, rows["peak"], label=f"{count} gateways", **look)
        late.plot(x, rows["ttft_p99_s"], **look)
    alone = found[found["gateways"] == 1].iloc[0]
    over.axhline(alone["peak"], color=style.MUTED, linewidth=1, label="one gateway")
    late.axhline(alone["ttft_p99_s"], color=style.MUTED, linewidth=1)
    over.set_ylabel("peak in flight / slots")
    late.set_ylabel("chat: P99 TTFT (s)")
    late.set_yscale("log")
    late.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
    for axis in (over, late):
        axis.set_xscale("log")
        axis.set_xticks([0.1, 1, 10, 60], ["0.1", "1", "10", "never"])
        axis.set_xlabel("seconds between exchanges")
    style.legend_below(
        figure, [over], "Demand is about three times what the pool serves; 150 s after 30 s of warm-up. "
        f"P99 of n = {found['n'].min()} to {found['n'].max()} requests of chat.",
    )  # fmt: skip
    return figure


@style.styled
def convergence_figure() -> Figure:
    """Return how heavy and light move against each other, and their weights, for four settings."""
    settings: dict[str, dict[str, Any]] = {
        "no debt": {"alpha_debt": 0}, "a_debt 4 (paper)": {"alpha_debt": 4},
        "a_debt 64, gd 0, tick 1 s": {"alpha_debt": 64, "gamma_debt": 0, "tick_s": 1},
        "a_debt 4, equalise 0.3": {"alpha_debt": 4, "equalise": 0.3},
    }  # fmt: skip
    figure = Figure(figsize=(style.WIDTH_IN, 3.9), layout="constrained")
    figure.suptitle("Half the slots lost at 120 s: shares of the promise, and heavy's part of all weights")
    phase, over_time = figure.subplots(1, 2, width_ratios=(1, 1.25))
    for i, (label, setting) in enumerate(settings.items()):
        whole = {"gamma_debt": 0.7, "tick_s": 5} | setting
        run = play("convergence", *(f"policies.token-pool.{key}={value}" for key, value in whole.items()))
        heavy = run.series("token-pool", "tokens_per_s", "heavy").rolling(30).mean() / 2000
        light = run.series("token-pool", "tokens_per_s", "light").rolling(30).mean() / 600
        there = (heavy.index >= CHANGED_S + 30) & (heavy.index <= UNTIL_S)
        phase.plot(light[there], heavy[there], color=_COLOURS[i], linestyle=_LINES[i], label=label)
        phase.plot(light[there].iloc[-1], heavy[there].iloc[-1], color=_COLOURS[i], marker=_MARKERS[i], markersize=8)
        weights = [run.series("token-pool", "weight", name) for name in ("heavy", "medium", "light")]
        part = (weights[0] / sum(weights)).rolling(3).mean()
        nervous = "64" in label
        look: dict[str, Any] = {"color": _COLOURS[i], "linestyle": _LINES[i], "linewidth": 0.7 if nervous else 1.6}
        over_time.plot(part.index, part, zorder=1 if nervous else 3, **look)
    phase.plot([0.2, 1.2], [0.2, 1.2], color=style.MUTED, linewidth=1)
    phase.text(0.82, 0.84, "equal shares", rotation=40, fontsize=8, color=style.MUTED, ha="center", va="bottom")
    phase.set_xlim(0.3, 1.2)
    phase.set_ylim(0.2, 1.0)
    phase.set_xlabel("light: served / promised")
    phase.set_ylabel("heavy: served / promised")
    over_time.axvspan(CHANGED_S, UNTIL_S, color=style.SHADE, alpha=0.07, linewidth=0)
    over_time.set_xlim(60, 480)
    over_time.set_xlabel("simulated time (s)")
    over_time.set_ylabel("heavy's part of the weights")
    style.legend_below(figure, [phase], "Left: means over 30 s from 150 s on; the marker is the end, at 360 s.")
    return figure
