"""The closing table of docs/token-pools.md: what each scenario's principle promises, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sim.analysis.markdown_tables import markdown
from sim.scenario.load import load_scenario
from sim.studies.convergence import fairness
from sim.studies.token_pools import BURSTS, CHANGED_S, UNTIL_S, Run, play

HEADS = ("scenario", "what the principle promises", "measured", "token pools", "rate limit", "none")
SHARED_S = 0.1
LIMITS = "heavy: {tokens_per_min: 120000}, medium: {tokens_per_min: 78000}, light: {tokens_per_min: 36000}"
_POLICIES = ("token-pool", "rate-limit", "none")
_PRINCIPLES = {
    "burst-prompts": "a neighbour's burst of KV cache is its own problem",
    "burst-outputs": "so is its burst of tokens/s",
    "burst-sessions": "and of concurrency",
    "burst-requests": "and of requests",
}


def closing(
    bursts: Mapping[str, Run], classes: Run, day: Run, failures: Run, gateways: pd.DataFrame, equal: Mapping[str, float]
) -> str:
    """Return the table; ``equal`` is `unfairness`."""
    rows: list[tuple[str, ...]] = []
    for name in BURSTS:
        cells = [
            f"{_s(bursts[name].row(policy, 'chat'))}, {_violation(bursts[name].cell(policy), 'chat')}"
            for policy in _POLICIES
        ]
        rows.append((f"`{name}`", _PRINCIPLES[name], "chat P99 TTFT, violation", *cells))
    cells = [f"{100 * classes.row(policy, 'trading')['slo_attainment']:.0f} %" for policy in _POLICIES]
    rows.append(("`five-classes`", "dedicated capacity is never lent", "trading within 0.3 s", *cells))
    cells = []
    for policy in ("pool+capacity", "limit+utilisation", "none+utilisation"):
        every = day.row(policy, "all")
        refused = 100 * float(every["refused"]) / float(every["offered"])
        cells.append(f"{refused:.1f} %, {float(day.cell(policy)['gpu_s']) / 3600:.1f} GPU-h")
    promise = "one capacity model for admission and scaling: demand is seen before it is let in"
    rows.append(("`day-with-a-peak`", promise, "refused, cost", *cells))
    cells = [_violation(failures.cell(policy), "chat") for policy in _POLICIES]
    rows.append(("`half-the-pool-lost`", "guarantees hold as far as capacity allows", "chat violation", *cells))
    four = gateways[gateways["gateways"] == 4]
    often, never = four[four["share_s"] == SHARED_S].iloc[0], four[four["share_s"].isna()].iloc[0]
    over = f"{100 * (often['peak'] - 1):.0f} % (never: {100 * (never['peak'] - 1):.0f} %)"
    promise = f"state is shared by all gateways (four, every {SHARED_S:g} s)"
    rows.append(("`several-gateways`", promise, "in flight above the slots", over, "", ""))
    cells = [f"{equal['token-pool']:.2f} (equalise: {equal['equalise']:.2f})", f"{equal['rate-limit']:.2f}",
             f"{equal['none']:.2f}"]  # fmt: skip
    promise = "elastic is held on average, through debt"
    rows.append(("`convergence`", promise, "largest less smallest share of promise", *cells))
    return markdown(HEADS, rows)


def unfairness() -> dict[str, float]:
    """Return how unequally a shortage is borne in `convergence`, by policy."""
    policies = (
        f"token-pool, {{kind: token-pool, name: equalise, equalise: 0.3}}, "
        f"{{kind: rate-limit, per_entitlement: {{{LIMITS}}}}}, none"
    )
    changes = f"policies=[{policies}]"
    run = play("convergence", changes)
    scenario = load_scenario("convergence", overrides=[changes])
    return {
        policy: fairness(run.result, scenario, policy, CHANGED_S, UNTIL_S)
        for policy in ("token-pool", "equalise", "rate-limit", "none")
    }


def _s(row: Mapping[str, Any]) -> str:
    value = float(row["ttft_p99_s"])
    return "-" if np.isnan(value) else f"{value:.2g} s" if value < 10 else f"{value:.0f} s"


def _violation(cell: Mapping[str, Any], tenant: str) -> str:
    return f"{100 * float(cell['violation'][tenant]):.1f} %"
