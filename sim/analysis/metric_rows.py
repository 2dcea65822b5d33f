"""``metrics.csv``: how fairly, usefully and at what cost a result's runs served; docs/metrics.md defines its columns.

A row for each policy, variant and tenant, and for all tenants; means over replications with 95 % intervals. It is
computed from the records when asked for: `tokenpools metrics RESULT`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sim.analysis import fairness, refusals
from sim.analysis.service import (
    OUTPUT_WEIGHT,
    PROMPT_WEIGHT,
    Attempts,
    Service,
    attempts_of,
    backlogged_gap,
    service_of,
    weights_of,
)
from sim.analysis.summary import ALL, Row, interval
from sim.records import metrics
from sim.records.arrow_columns import codes_of, floats
from sim.records.schema import Outcome

Floats = NDArray[np.float64]

WINDOW_S = 30.0
BAND = 0.1
HOLD_S = 20.0
COUNTS = frozenset(
    {"offered", "refused", "late_rejects", "wasted_tokens", "lost_tokens", "isolation_n", "retry_after_n"}
)
SHARES = frozenset(
    {"slo_attainment", "violation", "completion_share", "retry_after_kept", "work_conservation", "jain",
     "jain_windowed", "gini", "min_max_ratio", "false_reject_share", "free_reject_share", "prefix_hit_rate"}
)  # fmt: skip
SIGNED = frozenset({"retry_after_error_s"})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Run:
    """One run of a result: its labels, records and what its scenario says.

    ``alone`` maps each tenant to its attempts in a run without the others, where there is one.
    """

    labels: Mapping[str, str]
    replication: int
    requests: pa.Table
    timeline: pa.Table
    scenario: Mapping[str, Any]
    stats: Mapping[str, Any]
    end_s: float
    warmup_s: float = 0.0
    alone: Mapping[str, pa.Table] | None = None


def measure(run: Run, *, window_s: float = WINDOW_S) -> list[Row]:
    """Return a row for each tenant of one run, and one for all."""
    from_s = run.warmup_s
    found = attempts_of(run.requests, from_s=from_s)
    if not found.tenants:
        return []
    service = service_of(found, from_s=from_s, end_s=run.end_s, window_s=window_s)
    entitlements = run.scenario["pool"]["entitlements"]
    weight = weights_of(found.tenants, entitlements)
    served, asked = service.served.sum(axis=1), service.asked.sum(axis=1)
    wanted = np.maximum(asked, served)
    fair = fairness.max_min_shares(float(served.sum()), wanted, weight)
    active = fair > 0
    x = np.where(active, served / np.where(active, fair, 1.0), np.nan)
    span_s = run.end_s - from_s
    rows = []
    violation = run.stats.get("violation_by_tenant") or {}
    for i, tenant in enumerate(found.tenants):
        own: Row = {
            "service": float(served[i]),
            "asked": float(asked[i]),
            "fair_share": float(fair[i]),
            "service_of_fair": float(x[i]),
            "violation": violation.get(tenant, math.nan),
        }
        alone = None if run.alone is None else run.alone.get(tenant)
        counted = _row(run, tenant, found, found.of(i), span_s)
        rows.append(counted | own | _isolation(run.requests, tenant, alone, from_s))
    shares = x[active]
    difference = fairness.service_difference(service.served, service.asked)
    everyone = np.ones(len(found.tenant), dtype=np.bool_)
    rows.append(
        _row(run, ALL, found, everyone, span_s)
        | {
            "service": float(served.sum()),
            "asked": float(asked.sum()),
            "violation": violation.get(ALL, math.nan),
            "jain": fairness.jain(shares),
            "jain_windowed": _windowed_jain(service, weight),
            "gini": fairness.gini(shares),
            "max_min_gap": fairness.max_min_gap(shares),
            "min_max_ratio": fairness.min_max_ratio(shares),
            "service_difference_max": float(difference.max()),
            "service_difference_avg": float(difference.mean()),
            "service_difference_var": float(difference.var()),
            "backlogged_gap": backlogged_gap(service),
            "backlogged_gap_bound": _vtc_bound(found, run.scenario),
        }
        | _pool(run, found, from_s, span_s)
    )
    _share_cost(rows, found.tenants, entitlements)
    return rows


def _share_cost(rows: list[Row], tenants: Sequence[str], entitlements: Sequence[Mapping[str, Any]]) -> None:
    """Divide the GPU-seconds, the last row's, among tenants: by the work that was done, and by what was promised."""
    gpu_s = float(rows[-1]["gpu_s"])
    served = np.array([float(row["service"]) for row in rows[:-1]])
    promised = promises_of(tenants, entitlements)
    for row, work, promise in zip(rows, served, promised, strict=False):
        row["gpu_s_by_work"] = gpu_s * work / served.sum() if served.sum() > 0 else math.nan
        row["gpu_s_by_promise"] = gpu_s * promise / promised.sum() if promised.sum() > 0 else math.nan
    rows[-1]["gpu_s_by_work"], rows[-1]["gpu_s_by_promise"] = gpu_s, gpu_s if promised.sum() > 0 else math.nan


def promises_of(tenants: Sequence[str], entitlements: Sequence[Mapping[str, Any]]) -> Floats:
    """Return what each tenant was promised of the first resource of which anybody was: slots, tokens/s, KV bytes."""
    for dimension in ("slots", "tokens_per_s", "kv_bytes", "kv_gib"):
        found = np.zeros(len(tenants))
        for one in entitlements:
            amount = float((one.get("baseline") or {}).get(dimension) or 0.0)
            tenant = one.get("tenant") or one["name"]
            if tenant in tenants:
                found[list(tenants).index(tenant)] += amount
        if found.any():
            return found
    return np.zeros(len(tenants))


def average(rows: Sequence[Row]) -> list[Row]:
    """Return means over replications, each with ``_ci_low`` and ``_ci_high`` where there are several."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    found = []
    for members in groups.values():
        names = list(dict.fromkeys(name for row in members for name in row))
        labels = names[: names.index("tenant") + 1]
        out: Row = {name: members[0][name] for name in labels if name != "replication"}
        out["replications"] = len(members)
        for name in names[len(labels) :]:
            values = np.asarray([float(row.get(name, math.nan)) for row in members])
            values = values[~np.isnan(values)]
            out[name] = float(values.mean()) if len(values) else math.nan
            if len(members) > 1 and name not in COUNTS:
                out[f"{name}_ci_low"], out[f"{name}_ci_high"] = _within_bounds(name, *interval(values))
        found.append(out)
    return found


def _within_bounds(name: str, low: float, high: float) -> tuple[float, float]:
    """Return an interval without what its measure can never be; NaN stays NaN."""
    if math.isnan(low) or name in SIGNED:
        return low, high
    return max(0.0, low), min(1.0, high) if name in SHARES else high


@dataclass(frozen=True, slots=True)
class Change:
    """A moment at which what is fair changes, and why."""

    at_s: float
    what: str


def changes(scenario: Mapping[str, Any], end_s: float) -> list[Change]:
    """Return the events of a scenario and the moments at which workloads and entitlements begin and end."""
    found: dict[float, list[str]] = {}
    for event in scenario.get("events") or ():
        what = [f"{key} {event[key]}" for key in ("fail", "restore", "slow") if event.get(key) is not None]
        found.setdefault(float(event["at_s"]), []).append(", ".join(what) or "capacity")
    for kind, many in (("", scenario["workload"]), ("entitlement ", scenario["pool"]["entitlements"])):
        for one in many:
            for key, verb in (("from_s", "begins"), ("until_s", "ends")):
                at_s = one.get(key)
                if at_s is not None and 0 < at_s < end_s:
                    found.setdefault(float(at_s), []).append(f"{kind}{one['name']} {verb}")
    return [Change(at_s, "; ".join(found[at_s])) for at_s in sorted(found)]


def convergence_rows(
    run: Run, *, window_s: float = 10.0, band: float = BAND, hold_s: float = HOLD_S
) -> Iterator[Row]:
    """Yield, for each change of a scenario and tenant, how its service came to its max-min fair share after it."""
    found = attempts_of(run.requests)
    service = service_of(found, from_s=0.0, end_s=run.end_s, window_s=window_s)
    weight = weights_of(found.tenants, run.scenario["pool"]["entitlements"])
    wanted = np.maximum(service.asked, service.served)
    totals = service.served.sum(axis=0)
    fair = np.stack([fairness.max_min_shares(totals[k], wanted[:, k], weight) for k in range(len(totals))], axis=1)
    begins_s = service.edges_s[:-1]
    marks = changes(run.scenario, run.end_s)
    ends_s = [one.at_s for one in marks[1:]]
    for change, until_s in zip(marks, [*ends_s, run.end_s] if marks else [], strict=True):
        part = begins_s < until_s
        for i, tenant in enumerate(found.tenants):
            one = fairness.convergence(
                begins_s[part], service.served[i, part], fair[i, part], changed_s=change.at_s, band=band, hold_s=hold_s
            )
            yield {
                **run.labels, "replication": run.replication, "tenant": tenant, "changed_s": change.at_s,
                "change": change.what, "reached_s": one.reached_s, "settled_s": one.settled_s,
                "overshoot": one.overshoot,
            }  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# Columns


def _row(run: Run, tenant: str, found: Attempts, rows: NDArray[np.bool_], span_s: float) -> Row:
    last = rows & found.final
    with_slo = last & found.has_slo
    finished = last & (found.outcome == Outcome.FINISHED)
    good = finished & (found.slo_met | ~found.has_slo)
    ntpot = metrics.ntpot_s(
        metrics.e2e_s(found.finish_s[finished], found.first_arrival_s[finished]), found.output_tokens[finished]
    )
    ntpot = ntpot[np.isfinite(ntpot)]
    kept, error_s, told = refusals.retry_after(found, rows)
    ttft_s = metrics.ttft_s(found.first_token_s[finished], found.first_arrival_s[finished])
    return {
        **run.labels,
        "replication": run.replication,
        "tenant": tenant,
        "offered": int(last.sum()),
        "refused": int((last & (found.outcome == Outcome.REFUSED)).sum()),
        "slo_attainment": int((with_slo & found.slo_met).sum()) / int(with_slo.sum()) if with_slo.any() else math.nan,
        "good_tokens_per_s": float(found.output_tokens[good].sum()) / span_s,
        "ntpot_p50_s": float(np.quantile(ntpot, 0.5)) if len(ntpot) else math.nan,
        "ntpot_p99_s": float(np.quantile(ntpot, 0.99)) if len(ntpot) else math.nan,
        "ttft_p99_s": float(np.quantile(ttft_s, 0.99)) if len(ttft_s) else math.nan,
        "prefix_hit_rate": _prefix_hit_rate(run, found, finished),
        "late_rejects": refusals.late_rejects(found, rows),
        "wasted_tokens": refusals.wasted_tokens(found, rows),
        "lost_tokens": refusals.lost_tokens(found, rows),
        "retry_amplification": refusals.retry_amplification(found, rows),
        "retry_after_kept": kept,
        "retry_after_error_s": error_s,
        "retry_after_n": told,
        "completion_share": refusals.completion_share(found, rows),
    }


def _prefix_hit_rate(run: Run, found: Attempts, finished: NDArray[np.bool_]) -> float:
    """Return the share of prompt tokens that were found in a cache; NaN where the replicas keep none."""
    prompt_tokens = float(found.prompt_tokens[finished].sum())
    pool = run.scenario["pool"]
    kinds = [pool["profile"], *(one["profile"] for one in pool.get("also") or ())]
    if not prompt_tokens or not any(kind.get("prefix_caching") for kind in kinds):
        return math.nan
    return float(found.cached_tokens[finished].sum()) / prompt_tokens


def _isolation(shared: pa.Table, tenant: str, alone: pa.Table | None, from_s: float) -> Row:
    """Return the ratios of latency of a tenant's requests that finished in both runs, and how many those are."""
    if alone is None:
        return {}
    a, b = (_finished(table, tenant, from_s) for table in (shared, alone))
    place = pc.index_in(a.column("request_id"), value_set=b.column("request_id"))
    both = np.asarray(pc.fill_null(place, -1).to_numpy(), dtype=np.int64)
    in_a, in_b = np.flatnonzero(both >= 0), both[both >= 0]
    row: Row = {}
    for name, latency in (("ttft", _ttft), ("e2e", _e2e)):
        over, under = latency(a)[in_a], latency(b)[in_b]
        row[f"isolation_{name}_mean"] = fairness.isolation(over, under)
        row[f"isolation_{name}_p99"] = fairness.isolation(over, under, 0.99)
    return row | {"isolation_n": len(in_b)}


def _finished(table: pa.Table, tenant: str, from_s: float) -> pa.Table:
    chosen = pc.and_(pc.equal(table.column("outcome"), "finished"), pc.equal(table.column("tenant"), tenant))
    chosen = pc.and_(chosen, pc.and_(table.column("final"), pc.greater_equal(table.column("first_arrival_s"), from_s)))
    columns = ["request_id", "first_arrival_s", "first_token_s", "finish_s"]
    return table.select([*columns, "outcome", "tenant", "final"]).filter(chosen).select(columns)


def _ttft(table: pa.Table) -> Floats:
    return metrics.ttft_s(floats(table, "first_token_s"), floats(table, "first_arrival_s"))


def _e2e(table: pa.Table) -> Floats:
    return metrics.e2e_s(floats(table, "finish_s"), floats(table, "first_arrival_s"))


def _windowed_jain(service: Service, weight: Floats) -> float:
    """Return the mean of Jain's index over windows in which at least two tenants asked for something."""
    found = []
    for served, asked in zip(service.served.T, service.asked.T, strict=True):
        fair = fairness.max_min_shares(float(served.sum()), np.maximum(asked, served), weight)
        active = fair > 0
        if active.sum() > 1:
            found.append(fairness.jain(served[active] / fair[active]))
    return float(np.mean(found)) if found else math.nan


def _vtc_bound(found: Attempts, scenario: Mapping[str, Any]) -> float:
    """Return 2 max(w_p L, w_q M): L the longest prompt, M the tokens that the pool's KV cache holds."""
    pool = scenario["pool"]
    if not (pool.get("profile") or {}).get("kv_blocks") or not len(found.prompt_tokens):
        return math.nan
    held = sum(
        int(kind["profile"]["kv_blocks"]) * int(kind["profile"]["block_tokens"]) * int(kind.get("replicas") or 1)
        for kind in (pool, *(pool.get("also") or ()))
    )
    return 2 * max(PROMPT_WEIGHT * float(found.prompt_tokens.max()), OUTPUT_WEIGHT * held)


def _pool(run: Run, found: Attempts, from_s: float, span_s: float) -> Row:
    """Return how busy the engines were, whether they were while somebody wanted them, and what good tokens cost."""
    series = _pool_series(run.timeline, from_s)
    row: Row = {"utilisation": math.nan, "work_conservation": math.nan}
    if series.get("running") is not None and len(series["running"]):
        running, slots = series["running"], series["capacity_slots"]
        row["utilisation"] = float(running.sum() / slots.sum()) if slots.sum() > 0 else math.nan
        t_s = series["t_s"]
        # A sample is backlogged if somebody is held at the gateway, or was refused since the sample before.
        came, left = np.sort(found.arrival_s), np.sort(_left_gateway_s(found, run.end_s))
        held = np.searchsorted(came, t_s, side="right") - np.searchsorted(left, t_s, side="right")
        backlog = (held > 0) | (series["refused_per_s"] > 0)
        busy = (series["waiting"] > 0) | (running >= slots)
        row["work_conservation"] = float(busy[backlog].mean()) if backlog.any() else math.nan
    gpu_s = run.stats.get("gpu_s")
    if gpu_s is not None:
        gpu_s = float(gpu_s) - _held_before(run.timeline, from_s)
    elif series.get("ready_replicas") is not None and len(series["ready_replicas"]):
        gpus = _gpus_of_a_replica(run.scenario["pool"])
        gpu_s = float(series["ready_replicas"].mean()) * gpus * span_s
    last = found.final & (found.outcome == Outcome.FINISHED) & (found.slo_met | ~found.has_slo)
    good_tokens = float(found.output_tokens[last].sum())
    row["gpu_s"] = math.nan if gpu_s is None else float(gpu_s)
    row["gpu_s_per_good_1000_tokens"] = 1000 * row["gpu_s"] / good_tokens if good_tokens > 0 else math.nan  # type: ignore[operator]
    return row


def _gpus_of_a_replica(pool: Mapping[str, Any]) -> float:
    """Return the GPUs of a replica, in the mean over the kinds of them that a pool has."""
    kinds = [pool, *(pool.get("also") or ())]
    replicas = [int(kind.get("replicas") or 1) for kind in kinds]
    gpus = [int((kind.get("profile") or {}).get("gpus") or pool.get("gpus_per_replica") or 1) for kind in kinds]
    return sum(count * each for count, each in zip(replicas, gpus, strict=True)) / sum(replicas)


def _held_before(timeline: pa.Table, from_s: float) -> float:
    """Return the GPU-seconds that scaled replicas held in the warm-up, read off the timeline's running total."""
    series = _pool_series(timeline, 0.0, "gpu_s") if from_s > 0 else {}
    if "gpu_s" not in series or not len(series["gpu_s"]):
        return 0.0
    return float(np.interp(from_s, series["t_s"], series["gpu_s"]))


def _left_gateway_s(found: Attempts, end_s: float) -> Floats:
    left = np.where(np.isnan(found.forwarded_s), found.finish_s, found.forwarded_s)
    return np.where(np.isnan(left), end_s + 1, left)


def _pool_series(timeline: pa.Table, from_s: float, timed_by: str = "running") -> dict[str, Floats]:
    if not timeline.num_rows:
        return {}
    chosen = pc.equal(timeline.column("scope"), "pool")
    rows = timeline.filter(pc.and_(chosen, pc.greater_equal(timeline.column("t_s"), from_s)))
    codes, names = codes_of(rows, "metric")
    values, t_s = floats(rows, "value"), floats(rows, "t_s")
    found = {name: values[codes == i] for i, name in enumerate(names) if name}
    if timed_by in names:
        found["t_s"] = t_s[codes == names.index(timed_by)]
    return found


def _key(row: Row) -> tuple[Any, ...]:
    names = list(row)
    return tuple(row[name] for name in names[: names.index("tenant") + 1] if name != "replication")
