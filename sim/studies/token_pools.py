"""What docs/token-pools.md reports: the shipped scenarios of token pools, run, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sim.analysis import style
from sim.analysis.markdown_tables import markdown
from sim.experiments.run import ScenarioResult, run_scenario
from sim.scenario.load import load_scenario
from sim.studies.convergence import Balance, measure

LIMITED = ("token-pool", "rate-limit", "requests-per-min", "tokens-per-min", "none")
BURSTS = {"burst-prompts": "KV cache", "burst-outputs": "tokens/s", "burst-sessions": "slots", "burst-requests": "rate"}
EXCHANGES_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A scenario's result by policy: rows of the summary by tenant, numbers of the cell, and the timeline."""

    result: ScenarioResult
    phases: Sequence[style.Phase]

    def row(self, policy: str, tenant: str) -> Mapping[str, Any]:
        """Return a tenant's row of the summary."""
        (found,) = [one for one in self.result.summary if (one["policy"], one["tenant"]) == (policy, tenant)]
        return found

    def cell(self, policy: str) -> Mapping[str, Any]:
        """Return what the manifest says of a policy's run."""
        (found,) = [one for one in self.result.manifest["cells"] if one["policy"] == policy]
        return dict(found)

    def series(self, policy: str, metric: str, name: str = "pool") -> pd.Series[float]:
        """Return a metric over time."""
        table = self.result.timeline.to_pandas()
        own = table[(table["policy"] == policy) & (table["metric"] == metric) & (table["name"] == name)]
        return pd.Series(own["value"].to_numpy(), index=own["t_s"].to_numpy())


def play(name: str, *changes: str) -> Run:
    """Run a shipped scenario."""
    scenario = load_scenario(name, overrides=changes)
    phases = [(phase.from_s, phase.until_s, phase.label) for phase in scenario.phases]
    return Run(run_scenario(scenario), phases)


# --------------------------------------------------------------------------------------------------------------------
# Bursts


def bursts(runs: Mapping[str, Run]) -> str:
    """Return what bursts of docs do to chat, as a table."""
    heads = ("burst in", "policy", "chat: SLO met", "P99 TTFT", "violation", "refused", "docs refused", "preemptions")
    rows = []
    for name, run in runs.items():
        for policy in LIMITED:
            chat, docs, cell = run.row(policy, "chat"), run.row(policy, "docs"), run.cell(policy)
            rows.append((
                f"{BURSTS[name]} (`{name}`)" if policy == "token-pool" else "",
                "rate-limit (both)" if policy == "rate-limit" else policy,
                f"{100 * chat['slo_attainment']:.1f} %", f"{chat['ttft_p99_s']:.2f} s",
                f"{100 * cell['violation']['chat']:.1f} %", _share(chat), _share(docs), f"{cell['preemptions']}",
            ))  # fmt: skip
    return markdown(heads, rows)


TIGHTER = ((1.0, 60), (1.0, 10), (1.0, 2), (0.5, 10))
CALM_S = (90.0, 170.0)


def tighter() -> str:
    """Return what a limiter with a shallower bucket or a lower limit for docs does in each burst, as a table."""
    heads = (
        "burst in", "docs is limited to", "bucket", "chat: SLO met", "P99 TTFT", "docs finished", "refused while calm"
    )  # fmt: skip
    rows = []
    for name, what in BURSTS.items():
        policies = ["token-pool"]
        for share, bucket_s in TIGHTER:
            docs = f"requests_per_min: {240 * share:g}, tokens_per_min: {90_000 * share:g}, burst_s: {bucket_s}"
            chat = "requests_per_min: 480, tokens_per_min: 120000"
            policies.append(
                f"{{kind: rate-limit, name: x{share:g}-{bucket_s}, per_entitlement: {{chat: {{{chat}}}, "
                f"docs: {{{docs}}}}}}}"
            )
        run = play(name, "timeline_interval_s=null", f"policies=[{', '.join(policies)}]")
        table = run.result.requests.to_pandas()
        calm = (table["tenant"] == "docs") & ~table["arrival_s"].between(*CALM_S)
        looks = [("token-pool", what, "(token pools)", "")]
        for share, bucket_s in TIGHTER:
            limit = "its baseline" if share == 1 else f"{share:g} of it"
            looks.append((f"x{share:g}-{bucket_s}", "", limit, f"{bucket_s} s"))
        for policy, *labels in looks:
            chat_row, own = run.row(policy, "chat"), table[calm & (table["policy"] == policy)]
            rows.append((
                *labels, f"{100 * chat_row['slo_attainment']:.1f} %", f"{chat_row['ttft_p99_s']:.2f} s",
                f"{run.row(policy, 'docs')['finished']}", f"{100 * float((own['outcome'] == 'refused').mean()):.0f} %",
            ))  # fmt: skip
    return markdown(heads, rows)


# --------------------------------------------------------------------------------------------------------------------
# A day with a peak

SURGE_PER_S = 20
DAY = ("pool+capacity", "limit+utilisation", "none+utilisation", "none+saturation", "none+sla")


def day(run: Run) -> str:
    """Return what each pair of admission and autoscaler gave and cost, as a table."""
    heads = (
        "admission + autoscaler", "refused", "SLO met, all", "chat P99 TTFT", "agents P99 TTFT", "GPU-hours",
        "output tokens per GPU-s",
    )  # fmt: skip
    rows = []
    others = ("pool+utilisation", "limit+utilisation", "limit+saturation")
    for policy in (DAY[0], *others, *DAY[2:], "none+fixed"):
        every, cell = run.row(policy, "all"), run.cell(policy)
        gpu_s = float(cell.get("gpu_s", 2 * 7200))
        rows.append((
            policy, _share(every), f"{100 * every['slo_attainment']:.1f} %",
            _seconds(run.row(policy, "chat")["ttft_p99_s"]), _seconds(run.row(policy, "agents")["ttft_p99_s"]),
            f"{gpu_s / 3600:.1f}", f"{every['output_tokens_per_s'] * 7200 / gpu_s:.0f}",
        ))  # fmt: skip
    return markdown(heads, rows)


def surge() -> str:
    """Return the same day with so much spot work that the pool cannot hold all of it, as a table."""
    heads = ("admission + autoscaler", "tenant", "refused", "SLO met", "violation", "P99 TTFT", "GPU-hours")
    run = play("day-with-a-peak", "timeline_interval_s=null", f"workload.batch.arrivals.rate_per_s={SURGE_PER_S}")
    rows = []
    for policy in ("pool+capacity", "none+utilisation", "none+sla"):
        for tenant in ("chat", "agents", "batch"):
            one, violated = run.row(policy, tenant), run.cell(policy)["violation"].get(tenant)
            rows.append((
                policy if tenant == "chat" else "", tenant, _share(one), f"{100 * one['slo_attainment']:.1f} %",
                "" if violated is None else f"{100 * violated:.1f} %", _seconds(one["ttft_p99_s"]),
                f"{float(run.cell(policy)['gpu_s']) / 3600:.1f}" if tenant == "chat" else "",
            ))  # fmt: skip
    return markdown(heads, rows)


# --------------------------------------------------------------------------------------------------------------------
# Classes and failures


def classes(run: Run) -> str:
    """Return what each class got, as a table."""
    heads = ("entitlement", "policy", "offered", "finished", "refused", "evicted", "SLO met", "violation")
    rows = []
    for tenant in ("trading", "chat", "docs", "batch", "filler"):
        for policy in ("token-pool", "rate-limit", "none"):
            one, violated = run.row(policy, tenant), run.cell(policy)["violation"].get(tenant)
            rows.append((
                tenant if policy == "token-pool" else "", policy, f"{one['offered']}", f"{one['finished']}",
                _share(one), f"{one['evicted']}", f"{100 * one['slo_attainment']:.1f} %",
                "" if violated is None else f"{100 * violated:.1f} %",
            ))  # fmt: skip
    return markdown(heads, rows)


def failures(runs: Mapping[tuple[str, float], Run]) -> str:
    """Return violations and failed requests with failures, as a table."""
    heads = (
        "what a lost replica had", "notice", "policy", "chat violation", "docs", "notes", "failed", "evicted",
        "chat P99 TTFT", "tokens lost",
    )  # fmt: skip
    rows = []
    for (on_failure, notice_s), run in runs.items():
        for policy in ("token-pool", "none"):
            cell, every = run.cell(policy), run.row(policy, "all")
            violated = [f"{100 * cell['violation'][name]:.1f} %" for name in ("chat", "docs", "notes")]
            rows.append((
                on_failure, f"{notice_s:g} s", policy, *violated, f"{every['failed']}", f"{every['evicted']}",
                f"{run.row(policy, 'chat')['ttft_p99_s']:.2f} s", f"{cell['lost_tokens']:,}",
            ))  # fmt: skip
    return markdown(heads, rows)


# --------------------------------------------------------------------------------------------------------------------
# Several gateways


def gateways() -> pd.DataFrame:
    """Return how far gateways go over what is there, by how many they are and how often they share what they know."""
    rows = []
    for share_s in (None, *EXCHANGES_S):
        rows += [_gateways(count, share_s) for count in (2, 4, 8)]
    rows.append(_gateways(1, None))
    return pd.DataFrame(rows)


def _gateways(count: int, share_s: float | None) -> dict[str, Any]:
    text = "null" if share_s is None else f"{share_s:g}"
    run = play("several-gateways", f"pool.share_every_s={text}", f"pool.gateways={count}")
    flying = run.series("token-pool", "in_flight")[30:]
    chat = run.row("token-pool", "chat")
    return {
        "gateways": count, "share_s": share_s, "peak": float(flying.max()) / 64, "over": float((flying > 64).mean()),
        "mean": float(flying.mean()) / 64, "ttft_p99_s": float(chat["ttft_p99_s"]),
        "n": int(chat["latency_n"]), "slo": float(chat["slo_attainment"]),
    }  # fmt: skip


def gateways_table(found: pd.DataFrame) -> str:
    """Return the rows of four gateways and of one, as a table."""
    heads = (
        "gateways", "exchange every", "peak in flight / slots", "mean", "time above the slots", "chat P99 TTFT",
        "chat SLO met",
    )  # fmt: skip
    rows = []
    four = found[found["gateways"] == 4].sort_values("share_s", na_position="last")
    for one in (*found[found["gateways"] == 1].to_dict("records"), *four.to_dict("records")):
        every = "never" if pd.isna(one["share_s"]) else f"{one['share_s']:g} s"
        rows.append((
            str(one["gateways"]), "-" if one["gateways"] == 1 else every, f"{one['peak']:.2f}", f"{one['mean']:.2f}",
            f"{100 * one['over']:.0f} %", f"{one['ttft_p99_s']:.2f} s", f"{100 * one['slo']:.1f} %",
        ))  # fmt: skip
    return markdown(heads, rows)


# --------------------------------------------------------------------------------------------------------------------
# Convergence

CHANGED_S, UNTIL_S = 120.0, 360.0
SEEDS = (1, 2, 3)


def convergence() -> list[tuple[dict[str, Any], Balance]]:
    """Measure the grid: coefficient of debt, memory, tick, and the rule that adds up differences."""
    grid: list[dict[str, Any]] = [
        {"alpha_debt": alpha, "gamma_debt": gamma, "tick_s": tick_s, "equalise": 0}
        for alpha in (0, 1, 4, 16, 64)
        for gamma in ((0, 0.7, 0.95) if alpha else (0.7,))
        for tick_s in (1, 5, 15)
    ]
    grid += [
        {"alpha_debt": 4, "gamma_debt": 0.7, "tick_s": tick_s, "equalise": equalise}
        for equalise in (0.1, 0.3, 1)
        for tick_s in (1, 5, 15)
    ]
    return [(setting, mean_balance(setting)) for setting in grid]


def mean_balance(setting: Mapping[str, Any]) -> Balance:
    """Return the mean over the seeds; a time to settle only where every seed settled."""
    found = [measure("convergence", setting, CHANGED_S, UNTIL_S, seed=seed) for seed in SEEDS]
    names = found[0].shares
    return Balance(
        unfairness=float(np.mean([one.unfairness for one in found])),
        settled_s=float(np.mean([one.settled_s for one in found])),
        overshoot=float(np.mean([one.overshoot for one in found])),
        wobble=float(np.mean([one.wobble for one in found])),
        shares={name: float(np.mean([one.shares[name] for one in found])) for name in names},
    )


def convergence_table(found: Sequence[tuple[Mapping[str, Any], Balance]]) -> str:
    """Return the grid as a table."""
    heads = (
        "a_debt", "gd", "equalise", "tick s", "heavy / medium / light", "unfairness", "settled", "overshoot", "wobble",
    )  # fmt: skip
    rows = []
    for setting, one in found:
        settled = "not" if np.isnan(one.settled_s) else f"{one.settled_s:.0f} s"
        rows.append((
            *(f"{setting[name]:g}" for name in ("alpha_debt", "gamma_debt", "equalise", "tick_s")),
            " / ".join(f"{share:.2f}" for share in one.shares.values()), f"{one.unfairness:.2f}", settled,
            f"{one.overshoot:.1f}", f"{one.wobble:.3f}",
        ))  # fmt: skip
    return markdown(heads, rows)


def _share(row: Mapping[str, Any]) -> str:
    return f"{100 * float(row['refused']) / max(1, int(row['offered'])):.1f} %"


def _seconds(value: Any) -> str:
    return "-" if np.isnan(float(value)) else f"{float(value):.2f} s"
