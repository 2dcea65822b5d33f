"""Does the debt term change who is served? Tables and a figure from ``scenarios/paper-exp2-ablation.yaml``.

All combinations meet the same arrivals, so the effect of debt is a paired difference: with it less without it,
replication by replication. Intervals are 95 % Student-t intervals of the mean difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from sim.analysis import frames, style
from sim.analysis.markdown_tables import markdown
from sim.analysis.summary import interval
from sim.experiments.run import run_scenario
from sim.scenario.load import Scenario, parse_scenario, resolved
from sim.studies import paper_measures as measures
from sim.studies.paper_measures import TENANTS, Floats
from sim.studies.paper_reproduction import shipped
from sim.studies.paper_sensitivity import ARRIVALS, Setting

SCENARIO = "paper-exp2-ablation"
RULES = ("weight_at", "threshold", "tick_s")
PAPER_RULES = {"weight_at": "live", "threshold": "strict", "tick_s": "5"}
COEFFICIENTS = (0, 1, 2, 4, 8, 12, 16)
_DEBT = "alpha_debt"
_PATH = "policies.token-pool."
_FLIPS = ("synth_over_copilot_s", "synth_over_reports_s", "reports_over_copilot_s")
_FLIP_HEADS = ("synth > copilot s", "synth > reports s", "reports > copilot s")


@dataclass(frozen=True, slots=True, eq=False)
class Ablation:
    """Measures of every combination, one row a replication, and the timeline of the paper's rules."""

    scenario: Scenario
    measured: pd.DataFrame
    timeline: pa.Table


def ablation(*, jobs: int = 1, replications: int | None = None) -> Ablation:
    """Run the whole grid."""
    scenario = shipped(SCENARIO, replications)
    result = run_scenario(scenario, jobs=jobs)
    measured = _measured(scenario, result.requests, result.timeline)
    return Ablation(scenario, measured, _with(result.timeline, PAPER_RULES))


def effects(measured: pd.DataFrame) -> str:
    """Return the effect of debt for each of the other rules: successes, refusals, seconds in another order."""
    heads = ("weights", "threshold", "tick s", *TENANTS, "refused, all", *_FLIP_HEADS)
    lines = []
    for rules, own in measured.groupby(list(RULES), sort=False):
        without, with_debt = _pair(own)
        changes = [_change(with_debt[f"{tenant}_successes"], without[f"{tenant}_successes"]) for tenant in TENANTS]
        names = [f"{tenant}_low_priority" for tenant in TENANTS]
        refused = _change(with_debt[names].sum(axis=1), without[names].sum(axis=1))
        flips = [f"{without[name].mean():.1f} -> {with_debt[name].mean():.1f}" for name in _FLIPS]
        lines.append((*map(str, rules), *changes, refused, *flips))
    return markdown(heads, lines)


def in_the_outage(measured: pd.DataFrame) -> str:
    """Return successes of requests that arrived in the outage, without and with debt, for each of the other rules."""
    heads = ("weights", "threshold", "tick s", "copilot", "difference", "synth", "difference")
    lines = []
    for rules, own in measured.groupby(list(RULES), sort=False):
        without, with_debt = _pair(own)
        cells: list[str] = []
        for tenant in ("copilot", "synth"):
            before, after = (side[f"{tenant}_successes_outage"] for side in (without, with_debt))
            cells += [f"{before.mean():.1f} -> {after.mean():.1f}", _change(after, before)]
        lines.append((*map(str, rules), *cells))
    return markdown(heads, lines)


def levels(measured: pd.DataFrame) -> str:
    """Return the means of every combination: successes, refusals, debts, requests above the capacity."""
    heads = (
        "a_debt", "weights", "threshold", "tick s", "successes c / s / r", "refused c / s / r",
        "peak debt c / s / r", "least debt c / s / r", "most above capacity",
    )  # fmt: skip
    lines = []
    for key, own in measured.groupby([_DEBT, *RULES], sort=False):
        mean = own.mean(numeric_only=True)
        groups = [
            " / ".join(f"{mean[f'{tenant}_{name}']:.{digits}f}" for tenant in TENANTS)
            for name, digits in (("successes", 1), ("low_priority", 1), ("peak_debt", 2), ("least_debt", 2))
        ]
        lines.append((*map(str, key), *groups, f"{mean['most_over']:.0f}"))
    return markdown(heads, lines)


def by_stretch(measured: pd.DataFrame, scenario: Scenario) -> str:
    """Return when the paper's rules serve whom: successes with and without debt in each stretch of the experiment."""
    without, with_debt = _pair(_with_rules(measured, PAPER_RULES))
    lines = []
    for part in measures.stretches(scenario):
        for tenant in TENANTS:
            before, after = (side[f"{tenant}_successes_{part.name}"] for side in (without, with_debt))
            if before.any() or after.any():
                span = f"{part.from_s:g} to {part.until_s:g} s"
                means = f"{before.mean():.1f}", f"{after.mean():.1f}"
                lines.append((part.name, span, tenant, *means, _change(after, before)))
    return markdown(("stretch", "when", "tenant", "a_debt 0", "a_debt 4", "difference"), lines)


def coefficients(*, jobs: int = 1, replications: int | None = None) -> str:
    """Return what other coefficients of debt do under the paper's rules."""
    scenario = _rescaled(shipped("paper-exp2", replications), {f"{_PATH}{_DEBT}": list(COEFFICIENTS)})
    result = run_scenario(scenario, jobs=jobs)
    measured = _measured(scenario, result.requests, result.timeline)
    heads = ("a_debt", *TENANTS, "in the outage: copilot", "synth", *_FLIP_HEADS)
    lines = []
    for value, own in measured.groupby(_DEBT, sort=False):
        mean = own.mean(numeric_only=True)
        names = [*(f"{t}_successes" for t in TENANTS), "copilot_successes_outage", "synth_successes_outage", *_FLIPS]
        lines.append((str(value), *(f"{mean[name]:.1f}" for name in names)))
    return markdown(heads, lines)


def arrival_laws(*, jobs: int = 1, replications: int | None = None) -> str:
    """Return the effect of debt under the paper's rules for other laws of arrival."""
    lines = []
    for law in ARRIVALS:
        base = shipped("paper-exp2", replications)
        base = shipped("paper-exp2", replications, *Setting(arrivals=law).overrides(base))
        scenario = _rescaled(base, {f"{_PATH}{_DEBT}": [0, 4]})
        result = run_scenario(scenario, jobs=jobs)
        without, with_debt = _pair(_measured(scenario, result.requests, result.timeline))
        changes = [_change(with_debt[f"{tenant}_successes"], without[f"{tenant}_successes"]) for tenant in TENANTS]
        flips = [f"{without[name].mean():.1f} -> {with_debt[name].mean():.1f}" for name in _FLIPS]
        lines.append((law, *changes, *flips))
    return markdown(("arrivals", *TENANTS, *_FLIP_HEADS), lines)


def mechanism(found: Ablation) -> str:
    """Return what makes up the weights of synth and reports while they stand in either order, with debt."""
    third = measures.stretches(found.scenario)[-1]
    samples = _with(found.timeline, {_DEBT: "4"}).to_pandas()
    samples = samples[(samples["scope"] == "entitlement") & (samples["t_s"] >= third.from_s)]
    names = ("weight", "debt", "burst")
    wide = samples[samples["metric"].isin(names)].pivot_table(
        index=["replication", "t_s"], columns=["metric", "name"], values="value", observed=True
    )
    flipped = wide["weight", "synth"] > wide["weight", "reports"]
    lines = []
    for words, rows in (("reports above synth", wide[~flipped]), ("synth above reports", wide[flipped])):
        mean = rows.mean()
        cells = [f"{mean[name, tenant]:.2f}" for tenant in ("synth", "reports") for name in names]
        lines.append((words, f"{len(rows) / len(wide):.0%}", *cells))
    heads = [f"{tenant} {name}" for tenant in ("synth", "reports") for name in names]
    return markdown(("order", "share of the time", *heads), lines)


@style.styled
def figure(found: Ablation) -> Figure:
    """Return the weights over time without and with debt, and the effect of debt on every tenant's successes."""
    drawn = Figure(figsize=(style.WIDTH_IN, 8.2), layout="constrained")
    drawn.suptitle("Does debt change who is served? Experiment 2 without and with the debt term")
    grid = GridSpec(2, 6, figure=drawn, height_ratios=(1.0, 1.15))
    first = drawn.add_subplot(grid[0, 0:3])
    second = drawn.add_subplot(grid[0, 3:6], sharey=first)
    looks = style.looks(TENANTS)
    phases = [(p.from_s, p.until_s, p.label) for p in found.scenario.phases]
    reports_from_s = phases[-1][0]
    for axis, value in ((first, "0"), (second, "4")):
        rows = _with(found.timeline, {_DEBT: value}).to_pandas()
        series = frames.entitlement_series(rows[rows["replication"] == rows["replication"].min()], "weight")
        for tenant in TENANTS:
            own = series[tenant].loc[reports_from_s if tenant == "reports" else 0.0 :]
            look = looks[tenant]
            axis.step(own.index, own, where="post", color=look.colour, linestyle=look.line, label=tenant)
        style.shade(axis, phases)
        axis.set(title=f"Weights, a_debt = {value} (paper's rules)", xlabel="simulated time (s)")
        axis.set_xlim(0, float(series.index[-1]))
    first.set(ylabel="weight", ylim=(0, 1.25 * first.get_ylim()[1]))
    second.tick_params(labelleft=False)

    cells = list(found.measured.groupby(list(RULES), sort=False))
    below = [drawn.add_subplot(grid[1, 2 * i : 2 * i + 2]) for i in range(3)]
    for axis, tenant in zip(below, TENANTS, strict=True):
        _effects_panel(axis, [own for _, own in cells], tenant, looks[tenant])
    labels = [f"{weights}, {threshold}, {tick} s" for (weights, threshold, tick), _ in cells]
    below[0].set_yticks(range(len(cells)), labels)
    for axis in below[1:]:
        axis.set_yticks(range(len(cells)), [])
    n = int(found.measured["replication"].nunique())
    note = (
        f"Below: successes with a_debt = 4 less those with 0, means of {n} paired replications and 95 % intervals; "
        "rows say how weights count (live, or as at admission), the threshold, the tick. Above: the first replication."
    )
    style.legend_below(drawn, [first, second], note)
    return drawn


def _effects_panel(axis: Axes, cells: Sequence[pd.DataFrame], tenant: str, look: style.Look) -> None:
    for y, own in enumerate(cells):
        without, with_debt = _pair(own)
        change = _difference(with_debt[f"{tenant}_successes"], without[f"{tenant}_successes"])
        axis.plot(list(interval(change)), [y, y], color=look.colour, linewidth=1.6, marker="|", markersize=5)
        axis.plot([change.mean()], [y], color=look.colour, marker=look.marker, markersize=5)
    axis.axvline(0.0, color=style.INK, linewidth=0.9)
    axis.set(title=f"Effect of debt on {tenant}", xlabel="successes", ylim=(len(cells) - 0.5, -0.5))


def _measured(scenario: Scenario, requests: pa.Table, timeline: pa.Table) -> pd.DataFrame:
    found = measures.each_replication(requests, timeline, measures.experiment2(scenario))
    return found.rename(columns=lambda name: str(name).removeprefix(_PATH))


def _rescaled(scenario: Scenario, vary: Mapping[str, Any]) -> Scenario:
    return parse_scenario(resolved(scenario) | {"vary": vary}, SCENARIO)


def _with(timeline: pa.Table, labels: Mapping[str, str]) -> pa.Table:
    """Return the rows of one variant."""
    for name, value in labels.items():
        timeline = timeline.filter(pc.equal(pc.cast(timeline[f"{_PATH}{name}"], pa.string()), value))
    return timeline


def _with_rules(measured: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    for name, value in labels.items():
        measured = measured[measured[name] == value]
    return measured


def _pair(measured: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the measures without and with debt, rows paired by replication."""
    for value in ("0", "4"):
        yield measured[measured[_DEBT] == value].set_index("replication").sort_index()


def _change(after: pd.Series[float], before: pd.Series[float]) -> str:
    change = _difference(after, before)
    if not change.any():
        return "0"
    low, high = interval(change)
    return f"{change.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def _difference(after: pd.Series[float], before: pd.Series[float]) -> Floats:
    return np.asarray(after - before, dtype=np.float64)
