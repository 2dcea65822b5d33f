"""What the paper's two experiments are judged by, measured on one replication of one policy.

Requests count once, by their last attempt, and belong to the phase in which they first arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from sim.records import metrics
from sim.records.schema import variant_columns
from sim.scenario.load import Scenario

Floats = NDArray[np.float64]
Measures = Mapping[str, float]

TENANTS = ("copilot", "synth", "reports")
SETTLED_DEBT = 0.05
_REQUEST_COLUMNS = [
    "final", "entitlement", "service_class", "outcome", "reason", "first_arrival_s", "first_token_s",
]  # fmt: skip
_TIMELINE_COLUMNS = ["t_s", "scope", "name", "metric", "value"]


def each_replication(
    requests: pa.Table, timeline: pa.Table, measure: Callable[[pd.DataFrame, pd.DataFrame], Measures]
) -> pd.DataFrame:
    """Return one row for each policy, variant and replication: what identifies it, then its measures."""
    keys = ["policy", *variant_columns(requests), "replication"]
    rows = requests.select([*keys, *_REQUEST_COLUMNS]).to_pandas()
    rows = rows[rows["final"]]
    rows["ttft_s"] = metrics.ttft_s(rows["first_token_s"], rows["first_arrival_s"])
    samples = dict(tuple(timeline.select([*keys, *_TIMELINE_COLUMNS]).to_pandas().groupby(keys, observed=True)))
    found = []
    for key, own in rows.groupby(keys, observed=True, sort=False):
        labels = dict(zip(keys, key, strict=True))
        found.append({**labels, **measure(own, samples[key])})
    return pd.DataFrame(found)


# --------------------------------------------------------------------------------------------------------------------
# Experiment 1: cross-class protection


def experiment1(scenario: Scenario) -> Callable[[pd.DataFrame, pd.DataFrame], Measures]:
    """Return what measures experiment 1; the scenario's phase is the one in which guaranteed-c is active.

    Measures
    --------
    guaranteed_p99_s : P99 time to first token, of the guaranteed tenant and the phase (before, in, after) where it is
        worst. A phase has about 22 requests of a tenant, so this is nearly a maximum.
    phase_p99_s : P99 time to first token of guaranteed requests that arrived in the phase.
    low_priority : guaranteed requests refused for low priority.
    own_limit : share of guaranteed requests refused at their own concurrency limit.
    spot_before, spot_phase, spot_after : share of spot requests refused.
    peak_waiting, waiting_at_end, peak_running : sequences at the replica; the second when the phase ends.
    """
    phase = scenario.phases[0]

    def measure(rows: pd.DataFrame, samples: pd.DataFrame) -> Measures:
        guaranteed = rows[rows["service_class"] == "guaranteed"]
        spot = rows[rows["service_class"] == "spot"]
        edges_s = [-math.inf, phase.from_s, phase.until_s, math.inf]
        at = pd.cut(rows["first_arrival_s"], edges_s, right=False, labels=False)
        by_phase = guaranteed.groupby(["entitlement", at.loc[guaranteed.index]], observed=True)
        worst = by_phase["ttft_s"].quantile(0.99).max()
        refused = (spot["outcome"] == "refused").groupby(at.loc[spot.index]).mean()
        pool = _series(samples[samples["scope"] == "pool"], "metric")
        return {
            "guaranteed_p99_s": float(worst),
            "phase_p99_s": float(guaranteed.loc[at.loc[guaranteed.index] == 1, "ttft_s"].quantile(0.99)),
            "low_priority": float((guaranteed["reason"] == "low_priority").sum()),
            "own_limit": float((guaranteed["reason"] == "concurrency").mean()),
            "spot_before": float(refused[0]),
            "spot_phase": float(refused[1]),
            "spot_after": float(refused[2]),
            "peak_waiting": float(pool["waiting"].max()),
            "waiting_at_end": float(pool.loc[: phase.until_s, "waiting"].iloc[-1]),
            "peak_running": float(pool["running"].max()),
        }

    return measure


# --------------------------------------------------------------------------------------------------------------------
# Experiment 2: fair share through an outage


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time between two changes of experiment 2."""

    name: str
    from_s: float
    until_s: float


def stretches(scenario: Scenario) -> list[Stretch]:
    """Return the stretches of experiment 2: before the outage, in it, recovered, and with reports active."""
    outage, third = scenario.phases
    end_s = scenario.horizon_s or third.until_s
    return [
        Stretch("before", 0.0, outage.from_s),
        Stretch("outage", outage.from_s, outage.until_s),
        Stretch("recovered", outage.until_s, third.from_s),
        Stretch("reports", third.from_s, end_s),
    ]


def experiment2(scenario: Scenario) -> Callable[[pd.DataFrame, pd.DataFrame], Measures]:
    """Return what measures experiment 2.

    Measures, TENANT being each of `TENANTS`
    ----------------------------------------
    TENANT_successes, TENANT_successes_STRETCH : finished requests, in all and by the stretch they arrived in.
    TENANT_low_priority, TENANT_low_priority_STRETCH : requests refused for low priority.
    TENANT_weight : at the start, with neither debt nor burst.
    TENANT_peak_debt, TENANT_least_debt : over the whole run; the second is negative where more than the baseline was
        served.
    TENANT_outage_in_flight : mean over the outage.
    least_gap : least ratio of the weights of copilot and synth during the outage.
    settled_s : seconds after the recovery from which copilot's and synth's debts stay below `SETTLED_DEBT` until
        reports becomes active; infinite if they never do.
    synth_over_copilot_s, synth_over_reports_s, reports_over_copilot_s : seconds for which the weights stand in another
        order than at the start; those with reports while it is active.
    most_over : most requests in flight above the capacity in slots.
    """
    parts = stretches(scenario)
    outage, recovered, third = parts[1], parts[2], parts[3]

    def measure(rows: pd.DataFrame, samples: pd.DataFrame) -> Measures:
        found: dict[str, float] = {}
        edges = [part.from_s for part in parts] + [math.inf]
        names = [part.name for part in parts]
        at = pd.cut(rows["first_arrival_s"], edges, right=False, labels=names)
        events = {"successes": rows["outcome"] == "finished", "low_priority": rows["reason"] == "low_priority"}
        for tenant in TENANTS:
            mine = rows["entitlement"] == tenant
            for event, happened in events.items():
                found[f"{tenant}_{event}"] = float((mine & happened).sum())
                for name in names:
                    found[f"{tenant}_{event}_{name}"] = float((mine & happened & (at == name)).sum())

        debt, weight, in_flight = (_of_tenants(samples, metric) for metric in ("debt", "weight", "in_flight"))
        capacity = _series(samples[samples["scope"] == "pool"], "metric")["capacity_slots"]
        for tenant in TENANTS:
            found[f"{tenant}_weight"] = float(weight[tenant].iloc[0])
            found[f"{tenant}_peak_debt"] = float(debt[tenant].max())
            found[f"{tenant}_least_debt"] = float(debt[tenant].min())
            found[f"{tenant}_outage_in_flight"] = float(_within(in_flight, outage)[tenant].mean())
        gap = _within(weight, outage)
        found["least_gap"] = float((gap["copilot"] / gap["synth"]).min())
        found["settled_s"] = _settled_s(_within(debt[["copilot", "synth"]], recovered), recovered.from_s)

        late, step_s = _within(weight, third), float(np.median(np.diff(weight.index)))
        found["synth_over_copilot_s"] = step_s * float((weight["synth"] > weight["copilot"]).sum())
        found["synth_over_reports_s"] = step_s * float((late["synth"] > late["reports"]).sum())
        found["reports_over_copilot_s"] = step_s * float((late["reports"] > late["copilot"]).sum())
        found["most_over"] = float((in_flight.sum(axis=1) - capacity).max())
        return found

    return measure


def _settled_s(debt: pd.DataFrame, since_s: float) -> float:
    above = debt.index[(debt >= SETTLED_DEBT).any(axis=1)]
    if not len(above):
        return 0.0
    after = debt.index[debt.index > above[-1]]
    return float(after[0]) - since_s if len(after) else math.inf


def _within(series: pd.DataFrame, part: Stretch) -> pd.DataFrame:
    return series[(series.index >= part.from_s) & (series.index < part.until_s)]


def _of_tenants(samples: pd.DataFrame, metric: str) -> pd.DataFrame:
    return _series(samples[(samples["scope"] == "entitlement") & (samples["metric"] == metric)], "name")


def _series(samples: pd.DataFrame, columns: str) -> pd.DataFrame:
    """Return one row for each sampled time, one column for each value of ``columns``."""
    wide = samples.pivot_table(index="t_s", columns=columns, values="value", observed=True)
    wide.columns = pd.Index([str(name) for name in wide.columns])
    return wide
