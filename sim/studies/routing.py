"""Routers side by side: what they find in prefix caches and how late the slowest first tokens are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from sim.analysis import style
from sim.analysis.markdown_tables import markdown
from sim.analysis.summary import ALL
from sim.experiments.executors import Executor
from sim.experiments.sweep import sweep
from sim.judging.judge import judge
from sim.scenario.load import load_scenario

SCENARIO = "prefix-routing"
NAMES: Mapping[str, str] = {
    "random": "random",
    "least-outstanding-tokens": "least outstanding tokens",
    "{kind: scored, queue_weight: 1, kv_weight: 0, prefix_weight: 0}": "least waiting, by reports",
    "scored": "scored (llm-d's weights)",
    "{kind: scored, index: exact}": "scored, exact caches",
    "prefix-aware": "prefix-aware",
    "{kind: prefix-aware, index: exact}": "prefix-aware, exact caches",
}
_READS_REPORTS = ("least waiting", "scored")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One router at one interval between scrapes: means over replications, with the interval of the P99."""

    router: str
    scrape_s: float
    hit_rate: float
    ttft_p99_s: float
    low_s: float
    high_s: float
    in_time: float


def measure(folder: Path, *, jobs: int = 2, replications: int = 5) -> list[Measured]:
    """Run what is missing in ``folder`` and return what was measured."""
    scenario = load_scenario(SCENARIO, overrides=[f"replications={replications}"])
    sweep(scenario, folder, executor=Executor(jobs=jobs))
    found = []
    for row in judge(folder).rows:
        if row["tenant"] != ALL:
            continue
        label = str(row["pool.router"])
        found.append(
            Measured(
                router=NAMES.get(label, label), scrape_s=float(str(row["pool.scrape_interval_s"])),
                hit_rate=float(row["prefix_hit_rate"]), ttft_p99_s=float(row["ttft_p99_s"]),
                low_s=float(row.get("ttft_p99_s_ci_low", math.nan)),
                high_s=float(row.get("ttft_p99_s_ci_high", math.nan)), in_time=float(row["slo_attainment"]),
            )
        )  # fmt: skip
    return found


def table(found: Sequence[Measured]) -> str:
    """Return a Markdown table: a row for each router, and for each interval where it reads reports."""
    rows = []
    for one in found:
        reads = one.router.startswith(_READS_REPORTS)
        if not reads and one.scrape_s != 0.5:
            continue
        rows.append(
            (
                one.router, f"{one.scrape_s:g} s" if reads else "not read", f"{100 * one.hit_rate:.1f} %",
                f"{one.ttft_p99_s:.2f} s ({one.low_s:.2f} to {one.high_s:.2f})", f"{100 * one.in_time:.1f} %",
            )
        )  # fmt: skip
    rows.sort(key=lambda row: list(NAMES.values()).index(row[0]) if row[0] in NAMES.values() else len(NAMES))
    return markdown(("router", "reports every", "prompt tokens found", "TTFT P99 (95 %)", "in time"), rows)


@style.styled
def figure(found: Sequence[Measured]) -> Figure:
    """Return hit rate against tail latency; what reads reports has a point for each interval, joined by a line."""
    drawn = Figure(figsize=(style.width_in(), 4.6), layout="constrained")
    axis = drawn.subplots()
    looks = style.looks(list(NAMES.values()))
    left = False  # neighbours' labels are on either side of their points, in their colours
    for name in dict.fromkeys(one.router for one in found):
        mine = sorted((one for one in found if one.router == name), key=lambda one: one.scrape_s)
        reads = name.startswith(_READS_REPORTS)
        mine = mine if reads else mine[:1]
        look = looks[name]
        axis.plot(
            [100 * one.hit_rate for one in mine], [one.ttft_p99_s for one in mine], color=look.colour,
            marker=look.marker, linestyle=look.line if reads else "none", label=name,
        )  # fmt: skip
        for one in mine if reads else ():
            axis.annotate(
                f"{one.scrape_s:g} s", (100 * one.hit_rate, one.ttft_p99_s), xytext=(-7, -3) if left else (7, -3),
                ha="right" if left else "left", textcoords="offset points", fontsize=8, color=look.colour,
            )  # fmt: skip
        left = left != (reads and len(mine) > 1)
    style.log_if_wide(axis, [one.ttft_p99_s for one in found])
    axis.set_xlabel("prompt tokens found in a prefix cache (%)")
    axis.set_ylabel("P99 of time to first token (s)")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    drawn.suptitle("Affinity finds prompts; only books of now keep the tail short")
    return drawn
