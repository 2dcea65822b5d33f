"""What docs/which-policy.md says of predictive pools: what each part is worth, and the paper's two experiments.

`docs/regenerate_which_policy.py` brings the page up to date.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sim.analysis import style
from sim.analysis.markdown_tables import markdown
from sim.analysis.summary import ALL, Row
from sim.errors import RunError
from sim.experiments.cells import Done, Task, run_task, task
from sim.experiments.executors import Executor
from sim.scenario.load import expand, load_scenario, parse_scenario, resolved

PARTS: Mapping[str, Mapping[str, Any]] = {
    "whole": {},
    "(a) `hold: false`": {"hold": False},
    "(b) `reserve: max-tokens`": {"reserve": "max-tokens"},
    "(c) `overbook: 0, take_back: false`": {"overbook": 0.0, "take_back": False},
    "(d) `cached_weight: 1`": {"cached_weight": 1.0},
    "(e) `trickle: 0`": {"trickle": 0.0},
    "(f) `share_by: entitlement`": {"share_by": "entitlement"},
    "(g) `capacity: declared`": {"capacity": "declared"},
    "`headroom: null`": {"headroom": None},
}
"""Each part of predictive pools left out; the letters are issue 19's."""


@dataclass(frozen=True, slots=True)
class Place:
    """A scenario, what is set otherwise in it, and whose attainment counts: the worst of those that it scores."""

    scenario: str
    overrides: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()


PLACES: Mapping[str, Place] = {
    "noisy-neighbour": Place("tournament-noisy-neighbour"),
    "synchronised-prefill": Place("tournament-synchronised-prefill"),
    "estimator-error": Place("tournament-estimator-error"),
    "starvation": Place("tournament-starvation"),
    "many-keys": Place("tournament-many-keys"),
    "cached prompts": Place("tournament-prefix-heavy", (
        "workload.docs.arrivals.rate_per_s=14", "pool.entitlements.docs.baseline.tokens_per_s=1000",
        "pool.entitlements.agent.baseline.tokens_per_s=1400", "pool.entitlements.agent.ttft_slo_s=0.5",
    )),
    "lent slots": Place("tournament-holiday-week", (
        "pool.entitlements.owner.ttft_slo_s=0.5", "pool.entitlements.borrower.service_class=preemptible",
        "pool.entitlements.borrower.baseline={}", "pool.entitlements.borrower.ttft_slo_s=30",
        "workload.borrower.output_tokens.mean=800", "workload.borrower.output_tokens.max=3000",
        "workload.borrower.arrivals.rate_per_s=1.6",
    )),
    "experiment 2": Place("paper-exp2", scored=("copilot",)),
}  # fmt: skip
"""Where each part can show. *Cached prompts*: an objective so short that only who is inside its promise is in time.
*Lent slots*: the borrower's answers take half a minute and may be taken back."""

POLICIES: Mapping[str, Mapping[str, Any]] = {
    "`token-pool`, paper": {"kind": "token-pool", "mode": "paper"},
    "`token-pool`": {"kind": "token-pool"},
    "`predictive-pool`": {"kind": "predictive-pool"},
}
REPLICATIONS = 3
SERVICES = "azure-two-services"


def ablation(places: Mapping[str, Place] = PLACES, executor: Executor | None = None) -> str:
    """Return parts by places as Markdown: in time of the worst off (%), and good requests a second of all.

    Raises
    ------
    RunError : a run broke.
    """
    asked = [(part, place) for part in PARTS for place in places.values()]
    tasks = [
        _tasks(place.scenario, {"kind": "predictive-pool", **PARTS[part]}, 1, place.overrides)[0]
        for part, place in asked
    ]
    rows = _measured(tasks, executor)
    cells = []
    for (_, place), found in zip(asked, rows, strict=True):
        by_tenant = {str(row["tenant"]): row for row in found}
        scored = place.scored or load_scenario(place.scenario).scored
        worst = min(float(by_tenant[name]["slo_attainment"]) for name in scored)
        cells.append(f"{100 * worst:.0f}, {float(by_tenant[ALL]['goodput_per_s']):.1f}/s")
    n = len(places)
    table = [(part, *cells[i * n : (i + 1) * n]) for i, part in enumerate(PARTS)]
    return markdown(("without", *places), table)


@dataclass(frozen=True, slots=True)
class Served:
    """Means over the replications for one tenant of one experiment under one policy."""

    experiment: int
    tenant: str
    policy: str
    offered: float
    finished: float
    refused: float
    in_time: float
    ttft_p99_s: float


def experiments(replications: int = REPLICATIONS, executor: Executor | None = None) -> list[Served]:
    """Run both experiments of the paper under each of `POLICIES`, on the same arrivals.

    Raises
    ------
    RunError : a run broke.
    """
    found = []
    for number in (1, 2):
        rows: dict[str, dict[str, list[Row]]] = {}
        for policy, settings in POLICIES.items():
            tasks = _tasks(f"paper-exp{number}", settings, replications)
            for measures in _measured(tasks, executor):
                for row in measures:
                    rows.setdefault(str(row["tenant"]), {}).setdefault(policy, []).append(row)
        for tenant, of_policies in rows.items():
            for policy, each in of_policies.items():
                mean = {
                    name: math.fsum(float(row[name]) for row in each) / len(each)
                    for name in ("offered", "finished", "refused", "slo_attainment", "ttft_p99_s")
                }
                found.append(Served(
                    number, tenant, policy, mean["offered"], mean["finished"], mean["refused"] / mean["offered"],
                    mean["slo_attainment"], mean["ttft_p99_s"],
                ))  # fmt: skip
    return found


def experiments_table(found: Sequence[Served]) -> str:
    """Return the experiments by tenant and policy as Markdown."""
    heads = ("experiment", "entitlement", "policy", "offered", "finished", "refused %", "in time %", "TTFT P99 s")
    return markdown(heads, [
        (str(one.experiment), one.tenant, one.policy, f"{one.offered:.0f}", f"{one.finished:.0f}",
         f"{100 * one.refused:.1f}", f"{100 * one.in_time:.1f}", f"{one.ttft_p99_s:.2f}")
        for one in found
    ])  # fmt: skip


def two_services(executor: Executor | None = None) -> str:
    """Return what each service of the Azure trace has under each of the scenario's policies, as Markdown.

    Raises
    ------
    ScenarioError : TOKENPOOLS_DATA does not name a folder with the trace.
    RunError : a run broke.
    """
    tree = resolved(load_scenario(SERVICES))
    cells = expand(parse_scenario(tree, SERVICES))
    found = _measured([task(cell, f"{SERVICES}/{cell.policy}") for cell in cells], executor)
    rows = []
    for cell, measures in zip(cells, found, strict=True):
        by_tenant = {str(row["tenant"]): row for row in measures}
        of_each: list[str] = []
        for tenant in ("conv", "code", ALL):
            row = by_tenant[tenant]
            in_time, refused = float(row["slo_attainment"]), float(row["refused"]) / float(row["offered"])
            of_each += [f"{100 * in_time:.1f}", f"{100 * refused:.1f}", f"{float(row['ttft_p99_s']):.2f}"]
        rows.append((f"`{cell.policy}`", *of_each))
    heads = [f"{tenant}: {what}" for tenant in ("conv", "code", ALL) for what in ("in time %", "refused %", "P99 s")]
    return markdown(("policy", *heads), rows)


@style.styled
def experiments_figure(found: Sequence[Served]) -> Figure:
    """Return what each entitlement had in time, in both experiments, under each policy."""
    figure = Figure(figsize=(style.WIDTH_IN, 3.4), layout="constrained")
    figure.suptitle("The paper's experiments: requests whose first token was in time")
    axes = figure.subplots(1, 2, sharey=True)
    for number, axis in zip((1, 2), axes, strict=True):
        own = [one for one in found if one.experiment == number]
        tenants = list(dict.fromkeys(one.tenant for one in own))
        for i, policy in enumerate(POLICIES):
            shares = [100 * one.in_time for one in own if one.policy == policy]
            bars = axis.bar(
                np.arange(len(tenants)) + 0.26 * (i - 1), shares, width=0.25, label=policy.replace("`", ""),
                color=("#999999", "#56B4E9", "#0072B2")[i], hatch=("", "///", "")[i], edgecolor="white",
            )  # fmt: skip
            axis.bar_label(bars, [f"{share:.0f}" for share in shares], fontsize=7)
        axis.set_xticks(range(len(tenants)), tenants)
        axis.set_title(f"experiment {number}", fontsize="medium")
    axes[0].set_ylabel("of offered requests (%)")
    axes[0].set_ylim(0, 108)
    style.legend_below(figure, [axes[0]], f"means of {REPLICATIONS} seeds, the same arrivals for all")
    return figure


def _tasks(
    ref: str, policy: Mapping[str, Any], replications: int, overrides: Sequence[str] = ()
) -> list[Task]:
    tree = resolved(load_scenario(ref, overrides=overrides))
    tree |= {"policies": [dict(policy)], "replications": replications, "vary": {}}
    return [task(cell, f"{ref}/{cell.replication}") for cell in expand(parse_scenario(tree, ref))]


def _measured(tasks: Sequence[Task], executor: Executor | None) -> list[list[Row]]:
    found: dict[int, list[Row]] = {}
    for position, answer in (executor or Executor()).map(run_task, tasks):
        if not isinstance(answer, Done):
            raise RunError(f"{tasks[position].key}: {getattr(answer, 'error', answer)}")
        found[position] = answer.measures
    return [found[position] for position in range(len(tasks))]
