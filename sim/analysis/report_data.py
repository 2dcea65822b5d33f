"""The numbers behind a report's plots, small enough to travel inside one page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from sim.analysis import frames, style
from sim.analysis.study import Case, Study
from sim.errors import InputError

SHOWN = {
    "ttft_p99_s": "P99 time to first token (s)",
    "ttft_p50_s": "Median time to first token (s)",
    "ttft_mean_s": "Mean time to first token (s)",
    "tpot_mean_s": "Mean time per output token (s)",
    "e2e_p99_s": "P99 end to end (s)",
    "slo_attainment": "SLO attainment (share of offered)",
    "violation": "Entitlement violation (share of min(demand, baseline) not served)",
    "refused_share": "Refused (share of offered)",
    "goodput_per_s": "Goodput (requests per second)",
    "output_tokens_per_s": "Output tokens per second",
}
OUTCOMES = ("finished", "refused", "evicted", "failed", "cancelled", "unfinished")
MOST_CASES_OVER_TIME = 8


def plot_data(study: Study) -> dict[str, Any]:
    """Return what the page draws: intervals of every case, outcomes, and a few runs over time."""
    cases = study.cases
    intervals: dict[str, dict[str, list[list[float | None]]]] = {}
    for metric in SHOWN:
        by_tenant = {}
        for tenant in study.tenants:
            found = [study.interval(case, tenant, metric) for case in cases]
            if any(not math.isnan(one.estimate) for one in found):
                by_tenant[tenant] = [[_short(v) for v in (one.estimate, one.low, one.high)] for one in found]
        if by_tenant:
            intervals[metric] = by_tenant
    tenants = [one for one in study.tenants if one != "all"] or study.tenants
    outcomes = {
        tenant: [[_short(study.interval(case, tenant, name).estimate) for name in OUTCOMES] for case in cases]
        for tenant in tenants
    }
    return {
        "metrics": {metric: SHOWN[metric] for metric in intervals},
        "tenants": study.tenants,
        "policies": study.policies,
        "varied": study.varied,
        "cases": [{"policy": case.policy, "variant": dict(case.variant), "label": str(case)} for case in cases],
        "intervals": intervals,
        "outcomes": outcomes,
        "outcomeNames": OUTCOMES,
        "overTime": _over_time(study),
        "timeLabel": style.LIVE_TIME_LABEL if study.manifest.get("kind") == "live" else style.TIME_LABEL,
        "phases": [[p["from_s"], p["until_s"], p["label"]] for p in study.scenario.get("phases", ())],
        "looks": {name: look.colour for name, look in style.looks(tenants).items()},
    }


def _over_time(study: Study) -> list[dict[str, Any]]:
    """Return the first replication of the first cases: times to first token in windows, and the queue."""
    runs = [cell for cell in study.manifest["cells"] if not cell.get("error") and not cell["replication"]]
    found = []
    for cell in runs[:MOST_CASES_OVER_TIME]:
        case = Case(cell["policy"], tuple(cell["variant"].items()))
        try:
            requests = study.run(cell)
            timeline = study.run_timeline(cell)
        except InputError:
            continue
        served = frames.first_tokens(requests)
        until_s = float(requests["first_arrival_s"].max()) if len(requests) else 0.0
        window_s = style.nice_window_s(until_s, 40)
        tenants: dict[str, Any] = {}
        for tenant, rows in served.groupby("tenant", observed=True):
            windows = frames.windows(rows["first_arrival_s"], rows["ttft_s"], window_s)
            tenants[str(tenant)] = {name: _list(windows[name]) for name in ("p50", "p99", "n")} | {
                "t": _list(windows.index.to_series())
            }
        refused = requests[requests["final"] & (requests["outcome"] == "refused")]
        for tenant, rows in refused.groupby("tenant", observed=True):
            window = pd.Series(np.floor_divide(rows["first_arrival_s"].to_numpy(), window_s))
            counts = window.value_counts().sort_index()
            mine = tenants.setdefault(str(tenant), {"t": [], "p50": [], "p99": [], "n": []})
            mine["refusedT"] = _list((counts.index.to_series() + 0.5) * window_s)
            mine["refused"] = _list(counts)
        pool = frames.pool_series(timeline) if len(timeline) else pd.DataFrame()
        pool = frames.thinned(pool, 300)
        found.append(
            {
                "label": str(case),
                "windowS": window_s,
                "tenants": tenants,
                "pool": {name: _list(pool[name]) for name in ("running", "waiting", "capacity_slots") if name in pool}
                | {"t": _list(pool.index.to_series())},
            }
        )
    return found


def _list(values: pd.Series[Any]) -> list[float | None]:
    return [_short(float(value)) for value in values]


def _short(value: float) -> float | None:
    """Return five significant digits: more than a plot shows, and half the bytes."""
    return None if math.isnan(value) or math.isinf(value) else float(f"{value:.5g}")
