"""``summary.csv`` and ``metrics.csv`` once more, by plain pandas from the records, column by column.

Stretches of shipped scenarios that have what is easily miscounted: retries, refusals, clients that leave, evictions,
replicas that fail, requests that had not finished, and a warm-up. What is compared with is written from docs/metrics.md
and the columns' descriptions; nothing of `sim.analysis` is used in it.
"""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats

from sim.experiments.run import run_scenario
from sim.judging.judge import judge
from sim.scenario.load import load_scenario

RUNS: dict[str, tuple[str, list[str]]] = {
    "retries, refused at last": (
        "paper-exp1",
        ["horizon_s=70", "warmup_s=10", "workload[1].client={kind: retry, max_attempts: 3}", "replications=2"],
    ),
    "unfinished": (
        "paper-exp1",
        ["horizon_s=58", "warmup_s=5", "replications=2", "policies=[none]", "workload[1].client=openai-sdk"],
    ),
    "clients that leave": (
        "tournament-retry-storm-ignoring",
        ["horizon_s=80", "warmup_s=20", "replications=2",
         "policies=[none, {kind: cap, max_in_flight_per_replica: 8, queue_requests: 4}]",
         "workload[0].client={kind: impatient, patience_s: 3, max_attempts: 3}"],
    ),
    "evictions": (
        "five-classes",
        ["horizon_s=105", "warmup_s=15", "replications=2", "policies=[token-pool]",
         "workload[4].client={kind: retry, max_attempts: 2}"],
    ),
    "failures": (
        "tournament-replica-loss",
        ["horizon_s=150", "warmup_s=30", "replications=2", "pool.on_failure=fail",
         "events=[{at_s: 120, fail: 2}, {at_s: 120, fail: 3}]",
         "policies=[{kind: window, requests_per_min: 280}]", "workload[1].client={kind: retry, max_attempts: 3}"],
    ),
    "prefixes": (
        "tournament-prefix-heavy",
        ["horizon_s=80", "warmup_s=20", "replications=2", "policies=[none]", "pool.router=prefix-aware"],
    ),
}  # fmt: skip
COUNTED = {"offered", "refused", "late_rejects", "wasted_tokens", "lost_tokens", "retry_after_n"}
AT_MOST_ONE = {
    "slo_attainment", "violation", "completion_share", "retry_after_kept", "work_conservation", "jain",
    "jain_windowed", "gini", "min_max_ratio", "prefix_hit_rate",
}  # fmt: skip
ENDS = ("finished", "refused", "evicted", "failed", "cancelled")


@pytest.fixture(scope="module", params=RUNS, ids=list(RUNS))
def result(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, pd.DataFrame, Any]:
    name, overrides = RUNS[request.param]
    scenario = load_scenario(name, overrides=overrides)
    folder = tmp_path_factory.mktemp("second") / "out"
    run_scenario(scenario, folder)
    judge(folder)
    records, timeline = (pq.read_table(folder / f"{one}.parquet").to_pandas() for one in ("requests", "timeline"))
    return folder, records, timeline, scenario


def of_tenant(frame: pd.DataFrame, tenant: str) -> pd.DataFrame:
    return frame if tenant == "all" else frame[frame["tenant"] == tenant]


def close(mine: float, theirs: float) -> bool:
    return (math.isnan(mine) and math.isnan(theirs)) or mine == pytest.approx(theirs, rel=1e-9, abs=1e-9)


def test_the_runs_have_what_is_easily_miscounted(result: Any) -> None:
    _, records, _, scenario = result
    assert (records["first_arrival_s"] < scenario.warmup_s).any()
    assert records.groupby(["policy", "replication", "request_id"], observed=True)["final"].sum().eq(1).all()


def test_the_runs_together_have_every_end(result: Any, request: Any) -> None:
    _, records, _, _ = result
    wanted = {
        "retries, refused at last": {"refused"}, "unfinished": {"waiting", "running"},
        "clients that leave": {"cancelled", "refused"}, "evictions": {"evicted", "refused", "running"},
        "failures": {"failed", "refused", "running"}, "prefixes": {"finished", "running"},
    }  # fmt: skip
    name = request.node.callspec.params["result"]
    final = records[records["final"]]
    assert wanted[name] <= set(final["outcome"]), final["outcome"].value_counts()
    if name not in ("unfinished", "prefixes"):
        assert (records["attempt"] > 1).any()


def summary_of(last: pd.DataFrame, every: pd.DataFrame, span_s: float, reasons: list[str]) -> dict[str, float]:
    """One replication's row, from last attempts and from all."""
    n = len(last)
    done = last[last["outcome"] == "finished"]
    with_objective = last[last["ttft_slo_s"].notna()]
    in_time = (with_objective["first_token_s"] - with_objective["first_arrival_s"]) <= with_objective["ttft_slo_s"]
    whole = ~with_objective["outcome"].isin(["evicted", "failed", "cancelled"])
    good = (done["ttft_slo_s"].isna() | (done["first_token_s"] - done["first_arrival_s"] <= done["ttft_slo_s"])).sum()
    row: dict[str, float] = {
        "offered": n,
        "admitted": last["forwarded_s"].notna().sum(),
        **{end: (last["outcome"] == end).sum() for end in ENDS},
        "unfinished": last["outcome"].isin(["running", "waiting"]).sum(),
        **{
            f"refused_{reason}": ((last["outcome"] == "refused") & (last["reason"] == reason)).sum()
            for reason in reasons
        },
        "attempts": len(every),
        "slo_attainment": (in_time & whole).sum() / len(with_objective) if len(with_objective) else math.nan,
        "goodput_per_s": good / span_s,
        "output_tokens_per_s": every["output_tokens"].sum() / span_s,
        "latency_n": len(done),
    }
    several = done[done["output_tokens"] > 1]
    latencies = {
        "ttft": done["first_token_s"] - done["first_arrival_s"],
        "e2e": done["finish_s"] - done["first_arrival_s"],
        "tpot": (several["finish_s"] - several["first_token_s"]) / (several["output_tokens"] - 1),
    }
    for name, values in latencies.items():
        row[f"{name}_mean_s"] = values.mean()
        for label, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            row[f"{name}_{label}_s"] = values.quantile(q) if len(values) else math.nan
    return {key: float(value) for key, value in row.items()}


def test_every_column_of_the_summary(result: Any) -> None:
    folder, records, _, scenario = result
    written = pd.read_csv(folder / "summary.csv")
    counted = records[records["first_arrival_s"] >= scenario.warmup_s]
    span_s = scenario.horizon_s - scenario.warmup_s
    reasons = [name.removeprefix("refused_") for name in written.columns if name.startswith("refused_")]
    seen = set(counted.loc[counted["final"] & (counted["outcome"] == "refused"), "reason"].dropna())
    assert seen <= set(reasons)
    labels = {"policy", "tenant", "replications", "violation"}  # the last has a test of its own
    for _, line in written.iterrows():
        mine = of_tenant(counted[counted["policy"] == line["policy"]], line["tenant"])
        each = [
            summary_of(part[part["final"]], part, span_s, reasons)
            for number in range(int(line["replications"]))
            for part in [mine[mine["replication"] == number]]
        ]
        for column in set(written.columns) - labels:
            base = column.removesuffix("_ci_low").removesuffix("_ci_high")
            values = np.asarray([one[base] for one in each])
            values = values[~np.isnan(values)]
            if column == "latency_n":
                expected = values.sum()
            elif column == base:
                expected = values.mean() if len(values) else math.nan
            elif len(values) < 2:
                expected = math.nan
            else:
                half = float(stats.t.ppf(0.975, len(values) - 1)) * float(stats.sem(values))
                ends = values.mean() - half, values.mean() + half
                expected = max(0.0, ends[0]) if column.endswith("low") else ends[1]  # no latency is below 0
            assert close(float(line[column]), float(expected)), (line["policy"], line["tenant"], column)
        total = sum(line[end] for end in (*ENDS, "unfinished"))
        assert close(float(line["offered"]), float(total))


def metrics_of(mine: pd.DataFrame, span_s: float, *, caches: bool) -> dict[str, float]:
    """Those columns of one replication that are one tenant's own."""
    last = mine[mine["final"]]
    done = last[last["outcome"] == "finished"]
    refused = last[last["outcome"] == "refused"]
    broken = mine[mine["outcome"].isin(["evicted", "failed"])]
    cut = mine[mine["outcome"].isin(["evicted", "failed", "cancelled"])]
    ttft_s = last["first_token_s"] - last["first_arrival_s"]
    met = (ttft_s <= last["ttft_slo_s"]) & ~last["outcome"].isin(["evicted", "failed", "cancelled"])
    with_objective = last["ttft_slo_s"].notna()
    good = done[met[done.index] | done["ttft_slo_s"].isna()]
    ntpot_s = (done["finish_s"] - done["first_arrival_s"]) / done["output_tokens"]
    return {
        "offered": len(last),
        "refused": len(refused),
        "slo_attainment": met[with_objective].mean() if with_objective.any() else math.nan,
        "good_tokens_per_s": good["output_tokens"].sum() / span_s,
        "ntpot_p50_s": ntpot_s.quantile(0.5),
        "ntpot_p99_s": ntpot_s.quantile(0.99),
        "ttft_p99_s": ttft_s[done.index].quantile(0.99),
        "prefix_hit_rate": done["cached_tokens"].sum() / done["prompt_tokens"].sum() if caches else math.nan,
        "late_rejects": broken["first_token_s"].notna().sum(),
        "wasted_tokens": cut["output_tokens"].sum() + cut.loc[cut["first_token_s"].notna(), "prompt_tokens"].sum(),
        "lost_tokens": broken["output_tokens"].sum(),
        "retry_amplification": len(mine) / (mine["attempt"] == 1).sum(),
        "completion_share": len(done) / (len(done) + len(refused)) if len(done) + len(refused) else math.nan,
        **retry_after_of(mine),
    }


def retry_after_of(mine: pd.DataFrame) -> dict[str, float]:
    """By looking at each request's attempts one after the other."""
    kept: list[bool] = []
    errors: list[float] = []
    tries: dict[str, list[Any]] = {}
    for one in mine.sort_values("attempt").to_dict("records"):
        tries.setdefault(one["request_id"], []).append(one)
    for rows in tries.values():
        for before, after in pairwise(rows):
            told_s = before["retry_after_s"]
            if not math.isnan(told_s) and after["arrival_s"] - before["finish_s"] >= told_s - 1e-9:
                kept.append(not math.isnan(after["forwarded_s"]))
        first = rows[0]
        let_in = [one for one in rows[1:] if not math.isnan(one["forwarded_s"])]
        told = first["outcome"] == "refused" and not math.isnan(first["retry_after_s"])
        if first["attempt"] == 1 and told and let_in:
            errors.append(let_in[0]["arrival_s"] - first["finish_s"] - first["retry_after_s"])
    return {
        "retry_after_n": len(kept),
        "retry_after_kept": float(np.mean(kept)) if kept else math.nan,
        "retry_after_error_s": float(np.mean(errors)) if errors else math.nan,
    }


def service_of(part: pd.DataFrame, from_s: float, end_s: float, window_s: float = 30.0) -> tuple[Any, Any]:
    """Weighted tokens served and asked for, a row for each tenant (sorted) and a column for each whole window."""
    tenants = sorted(part["tenant"].unique())
    edges = [from_s + window_s * k for k in range(max(1, int((end_s - from_s) / window_s + 1e-9)) + 1)]
    served, asked = np.zeros((len(tenants), len(edges) - 1)), np.zeros((len(tenants), len(edges) - 1))
    for i, tenant in enumerate(tenants):
        mine = part[part["tenant"] == tenant]
        done = mine[mine["outcome"] == "finished"]
        stated = done[done["max_output_tokens"].notna()]
        share = stated["output_tokens"].sum() / stated["max_output_tokens"].sum() if len(stated) else 1.0
        typical = done["output_tokens"].mean() if len(done) else 0.0
        for one in mine.to_dict("records"):
            if not math.isnan(one["first_token_s"]):
                stop_s = end_s if math.isnan(one["finish_s"]) else one["finish_s"]
                for k, (low, high) in enumerate(pairwise(edges)):
                    at_the_end = k == len(edges) - 2 and one["first_token_s"] == high
                    inside = low <= one["first_token_s"] < high or at_the_end
                    if inside:
                        served[i, k] += one["prompt_tokens"]
                    length_s = stop_s - one["first_token_s"]
                    if length_s > 0:
                        overlap = max(0.0, min(high, stop_s) - max(low, one["first_token_s"]))
                        served[i, k] += 2 * one["output_tokens"] * overlap / length_s
                    elif inside:
                        served[i, k] += 2 * one["output_tokens"]
            if one["attempt"] == 1:
                wanted = one["output_tokens"]
                if one["outcome"] != "finished":
                    limit = one["max_output_tokens"]
                    wanted = max(wanted, limit * share if limit and not math.isnan(limit) else typical)
                for k, (low, high) in enumerate(pairwise(edges)):
                    if low <= one["arrival_s"] < high or (k == len(edges) - 2 and one["arrival_s"] == high):
                        asked[i, k] += one["prompt_tokens"] + 2 * wanted
    return served, asked


def max_min(total: float, wants: list[float], weights: list[float]) -> list[float]:
    """Pour in small steps: water that is level per weight, found by halving."""
    low, high = 0.0, 1e12
    for _ in range(200):
        level = (low + high) / 2
        poured = sum(min(want, level * weight) for want, weight in zip(wants, weights, strict=True))
        low, high = (level, high) if poured < min(total, sum(wants)) else (low, level)
    return [min(want, high * weight) for want, weight in zip(wants, weights, strict=True)]


def indices_of(served: Any, asked: Any, weights: list[float]) -> dict[str, float]:
    """The fairness columns of all tenants together."""
    total, wants = served.sum(axis=1), np.maximum(asked.sum(axis=1), served.sum(axis=1))
    fair = max_min(float(total.sum()), list(wants), weights)
    x = [got / due for got, due in zip(total, fair, strict=True) if due > 1e-9]
    n = len(x)
    windowed = []
    for k in range(served.shape[1]):
        due = max_min(float(served[:, k].sum()), list(np.maximum(asked[:, k], served[:, k])), weights)
        y = [got / one for got, one in zip(served[:, k], due, strict=True) if one > 1e-9]
        if len(y) > 1:
            windowed.append(sum(y) ** 2 / (len(y) * sum(v * v for v in y)))
    apart = [
        sum(min(served[:, k].max() - served[i, k], abs(asked[i, k] - served[i, k])) for i in range(len(served)))
        for k in range(served.shape[1])
    ]
    return {
        "service": float(served.sum()),
        "asked": float(asked.sum()),
        "jain": sum(x) ** 2 / (n * sum(v * v for v in x)),
        "jain_windowed": float(np.mean(windowed)) if windowed else math.nan,
        "gini": sum(abs(a - b) for a in x for b in x) / (2 * n * sum(x)),
        "max_min_gap": max(x) - min(x),
        "min_max_ratio": min(x) / max(x),
        "service_difference_max": max(apart),
        "service_difference_avg": float(np.mean(apart)),
        "service_difference_var": float(np.var(apart)),
    }


def pool_of(part: pd.DataFrame, samples: pd.DataFrame, scenario: Any) -> dict[str, float]:
    """What is said of the engines, from the pool's samples."""
    pool = samples[(samples["scope"] == "pool") & (samples["t_s"] >= scenario.warmup_s)]
    wide = pool.pivot_table(index="t_s", columns="metric", values="value", observed=True)
    span_s = scenario.horizon_s - scenario.warmup_s
    left_s = part["forwarded_s"].fillna(part["finish_s"]).fillna(math.inf)
    held = pd.Series([((part["arrival_s"] <= at_s) & (left_s > at_s)).sum() for at_s in wide.index], index=wide.index)
    backlog = (held > 0) | (wide["refused_per_s"] > 0)
    busy = (wide["waiting"] > 0) | (wide["running"] >= wide["capacity_slots"])
    last = part[part["final"] & (part["outcome"] == "finished")]
    good = last[last["ttft_slo_s"].isna() | (last["first_token_s"] - last["first_arrival_s"] <= last["ttft_slo_s"])]
    gpu_s = float(wide["ready_replicas"].mean()) * span_s * scenario.pool.gpus_per_replica
    good_tokens = good["output_tokens"].sum()
    profile = scenario.pool.profile
    kv_tokens = profile.kv_blocks * profile.block_tokens * scenario.pool.replicas
    return {
        "utilisation": wide["running"].sum() / wide["capacity_slots"].sum(),
        "work_conservation": busy[backlog].mean() if backlog.any() else math.nan,
        "gpu_s": gpu_s,
        "gpu_s_per_good_1000_tokens": 1000 * gpu_s / good_tokens if good_tokens else math.nan,
        "backlogged_gap_bound": 2 * max(part["prompt_tokens"].max(), 2 * kv_tokens),
    }


def gap_of(part: pd.DataFrame, served: Any, scenario: Any, window_s: float = 30.0) -> float:
    """The largest difference in service over any stretch of windows at all of whose edges two tenants both wait."""
    tenants = sorted(part["tenant"].unique())
    edges = [scenario.warmup_s + window_s * k for k in range(served.shape[1] + 1)]

    def waits(tenant: str, at_s: float) -> bool:
        mine = part[(part["tenant"] == tenant) & (part["arrival_s"] <= at_s)]
        gone_s = mine["first_token_s"].fillna(mine["finish_s"])  # NaN: it waits for ever
        return bool((gone_s.isna() | (gone_s > at_s)).any())

    waiting = [[waits(tenant, at_s) for at_s in edges] for tenant in tenants]
    worst = 0.0
    for f, g in combinations(range(len(tenants)), 2):
        for begin, end in combinations(range(len(edges)), 2):
            if all(waiting[f][k] and waiting[g][k] for k in range(begin, end + 1)):
                worst = max(worst, abs(served[f, begin:end].sum() - served[g, begin:end].sum()))
    return worst


def violations_of(whole: pd.DataFrame, scenario: Any, window_s: float = 10.0) -> dict[str, float]:
    """What was owed and did not come, over what was owed: by tenant, window after window, request after request."""
    from_s, end_s = scenario.warmup_s, scenario.horizon_s
    windows = [(from_s + window_s * k, from_s + window_s * (k + 1)) for k in range(int((end_s - from_s) / window_s))]
    sums: dict[str, list[float]] = {}
    for spec in scenario.pool.entitlements:
        promised = spec.baseline.tokens_per_s
        mine = whole[whole["entitlement"] == spec.name]
        if not promised:
            continue
        done = mine[mine["outcome"] == "finished"]
        first_s, each_s, share, typical = 0.0, 0.0, 1.0, 0.0
        if len(done):
            several = done[done["output_tokens"] > 1]
            first_s = (done["first_token_s"] - done["arrival_s"]).quantile(0.1)
            per_token_s = (several["finish_s"] - several["first_token_s"]) / (several["output_tokens"] - 1)
            each_s = per_token_s.quantile(0.1) if len(several) else 0.0
            stated = done[done["max_output_tokens"] > 0]
            share = stated["output_tokens"].sum() / stated["max_output_tokens"].sum() if len(stated) else 1.0
            typical = done["output_tokens"].mean()

        def within(window: tuple[float, float], begin_s: float, stop_s: float, at_once: float, evenly: float) -> float:
            # What comes at an edge belongs to the window that ends there.
            inside = at_once if window[0] < begin_s <= window[1] else 0.0
            if stop_s > begin_s:
                both_s = max(0.0, min(window[1], stop_s) - max(window[0], begin_s))
                return inside + evenly * both_s / (stop_s - begin_s)
            return inside + (evenly if inside else 0.0)

        rows = list(mine.to_dict("records"))
        for window in windows[:-1]:  # the last may have been cut off
            came = owed = 0.0
            for one in rows:
                if not math.isnan(one["first_token_s"]):
                    stop_s = end_s if math.isnan(one["finish_s"]) else one["finish_s"]
                    came += within(window, one["first_token_s"], stop_s, one["prompt_tokens"], one["output_tokens"])
                if one["attempt"] == 1:
                    most = one["max_output_tokens"]
                    wants = most * share if most > 0 else typical
                    begin_s = one["arrival_s"] + first_s
                    owed += within(window, begin_s, begin_s + wants * each_s, one["prompt_tokens"], wants)
            in_force_s = max(0.0, min(window[1], spec.until_s or math.inf) - max(window[0], spec.from_s or 0.0))
            owed = min(owed, promised * in_force_s)
            for name in (spec.tenant or spec.name, "all"):
                both = sums.setdefault(name, [0.0, 0.0])
                both[0] += max(0.0, owed - came)
                both[1] += owed
    return {name: missing / owed for name, (missing, owed) in sums.items() if owed > 0}


def test_the_violation_of_the_summary(result: Any) -> None:
    folder, records, _, scenario = result
    written = pd.read_csv(folder / "summary.csv")
    for _, line in written.iterrows():
        each = [
            violations_of(records[(records["policy"] == line["policy"]) & (records["replication"] == number)], scenario)
            for number in range(int(line["replications"]))
        ]
        values = [one[line["tenant"]] for one in each if line["tenant"] in one]
        expected = float(np.mean(values)) if values else math.nan
        assert float(line["violation"]) == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True), line["tenant"]


def test_gpu_seconds_of_a_pool_that_loses_half_are_those_of_the_clock(result: Any, request: Any) -> None:
    folder, _, _, _ = result
    if request.node.callspec.params["result"] != "failures":
        return
    written = pd.read_csv(folder / "metrics.csv")
    (line,) = written[written["tenant"] == "all"].to_dict("records")
    # Four replicas of one GPU from 30 s to 150 s, less two from 120 s on: 480 - 60; samples each second.
    assert line["gpu_s"] == pytest.approx(480 - 60, rel=0.01)


def weights_by_promise(scenario: Any, tenants: list[str]) -> list[float]:
    for dimension in ("tokens_per_s", "slots"):
        sums = dict.fromkeys(tenants, 0.0)
        for one in scenario.pool.entitlements:
            if (one.tenant or one.name) in sums:
                sums[one.tenant or one.name] += getattr(one.baseline, dimension, None) or 0.0
        if all(value > 0 for value in sums.values()):
            return [sums[name] for name in tenants]
    return [1.0] * len(tenants)


def promised_by(scenario: Any, tenants: list[str]) -> list[float]:
    """Return what each tenant was promised: slots, or tokens/s where nobody was promised any."""
    for amount in ("slots", "tokens_per_s"):
        each = [
            sum(getattr(one.baseline, amount) or 0.0 for one in scenario.pool.entitlements if one.spec().tenant == name)
            for name in tenants
        ]
        if any(each):
            return each
    return [math.nan] * len(tenants)


def test_every_column_of_the_metrics(result: Any) -> None:
    folder, records, timeline, scenario = result
    written = pd.read_csv(folder / "metrics.csv")
    counted = records[records["first_arrival_s"] >= scenario.warmup_s].copy()
    counted["tenant"] = counted["tenant"].astype(str)
    span_s = scenario.horizon_s - scenario.warmup_s
    checked: set[str] = set()
    for policy, lines in written.groupby("policy"):
        found: dict[str, list[dict[str, float]]] = {}
        for number in sorted(counted["replication"].unique()):
            part = counted[(counted["policy"] == policy) & (counted["replication"] == number)]
            samples = timeline[(timeline["policy"] == policy) & (timeline["replication"] == number)]
            caches = scenario.pool.profile.prefix_caching
            whole = records[(records["policy"] == policy) & (records["replication"] == number)]
            violated = violations_of(whole, scenario)
            tenants = sorted(part["tenant"].unique())
            weights = weights_by_promise(scenario, tenants)
            served, asked = service_of(part, scenario.warmup_s, scenario.horizon_s)
            wants = np.maximum(asked.sum(axis=1), served.sum(axis=1))
            fair = max_min(float(served.sum()), list(wants), weights)
            for i, tenant in enumerate(tenants):
                own = metrics_of(part[part["tenant"] == tenant], span_s, caches=caches)
                own |= {"service": served[i].sum(), "asked": asked[i].sum(), "fair_share": fair[i],
                        "service_of_fair": served[i].sum() / fair[i] if fair[i] > 1e-9 else math.nan}  # fmt: skip
                own["violation"] = violated.get(tenant, math.nan)
                found.setdefault(tenant, []).append(own)
            everyone = metrics_of(part, span_s, caches=caches) | indices_of(served, asked, weights)
            everyone |= pool_of(part, samples, scenario)
            everyone |= {"violation": violated.get("all", math.nan), "backlogged_gap": gap_of(part, served, scenario)}
            everyone |= {"gpu_s_by_work": everyone["gpu_s"], "gpu_s_by_promise": everyone["gpu_s"]}
            found.setdefault("all", []).append(everyone)
            promised = promised_by(scenario, tenants)
            for i, tenant in enumerate(tenants):
                bears = found[tenant][-1]
                bears["gpu_s_by_work"] = everyone["gpu_s"] * served[i].sum() / served.sum()
                bears["gpu_s_by_promise"] = everyone["gpu_s"] * promised[i] / sum(promised)
        for _, line in lines.iterrows():
            each = found[line["tenant"]]
            for column in each[0]:
                if column not in written.columns:
                    continue
                values = np.asarray([float(one[column]) for one in each])
                values = values[~np.isnan(values)]
                expected = float(values.mean()) if len(values) else math.nan
                where = policy, line["tenant"], column
                assert float(line[column]) == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True), where
                checked.add(column)
                low, high = (line.get(f"{column}_ci_{end}") for end in ("low", "high"))
                assert (low is None) == (column in COUNTED), where
                if low is not None:
                    half = math.nan
                    if len(values) > 1:
                        half = float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
                    ends = expected - half, expected + half
                    if column != "retry_after_error_s":
                        ends = max(0.0, ends[0]) if ends[0] == ends[0] else ends[0], ends[1]
                    if column in AT_MOST_ONE and ends[1] > 1:
                        ends = ends[0], 1.0
                    assert (low, high) == pytest.approx(ends, rel=1e-5, abs=1e-6, nan_ok=True), where
    plain = {c for c in written.columns if not c.endswith(("_ci_low", "_ci_high"))}
    assert plain - checked == {"policy", "tenant", "replications"}
