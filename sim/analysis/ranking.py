"""Who won: a tournament's scores by scenario and policy, with ranks, intervals, and whether it was load shedding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.analysis.statistics import Floats, paired_difference
from sim.analysis.summary import ALL, Row, interval

BASELINE = "none"
METRIC = "slo_attainment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One policy in one scenario.

    Attributes
    ----------
    score : mean over replications of the worst SLO attainment of offered among the scored tenants; low, high: its 95 %
        Student-t interval.
    rank : 1 is the best; equal scores share the mean of their ranks.
    level : whether the 95 % interval of the paired difference to the best policy holds no difference.
    worst : the scored tenant that was worst off, on average.
    offered, admitted, refused : requests of all tenants, means over replications.
    attainment : SLO attainment of offered over all tenants.
    ttft_p99_s : over finished requests of all tenants.
    shedding : load shedding in disguise, see `judge`.
    load : how many times the scenario's own demand.
    """

    scenario: str
    load: float = 1.0
    policy: str
    score: float
    low: float
    high: float
    rank: float
    level: bool
    worst: str
    offered: float
    admitted: float
    refused: float
    attainment: float
    ttft_p99_s: float
    shedding: bool


def judge(scenario: str, measures: Sequence[Row], scored: Sequence[str], load: float = 1.0) -> list[Score]:
    """Return the scores of one scenario at one load, in the order of its policies.

    Load shedding in disguise: what is let in is quicker than without control (TTFT P99 of finished requests), but fewer
    of the offered requests meet their objective, over all tenants; each by the 95 % interval of the paired difference.

    Parameters
    ----------
    measures : rows as in ``summary.csv`` for each replication and tenant, with the ``replication``.
    scored : tenants whose worst counts; empty: all that have an objective.
    """
    table = {(str(row["policy"]), int(row["replication"]), str(row["tenant"])): row for row in measures}
    policies = list(dict.fromkeys(policy for policy, _, _ in table))
    replications = sorted({replication for _, replication, _ in table})
    tenants = list(scored) or [
        tenant for tenant in dict.fromkeys(tenant for _, _, tenant in table)
        if tenant != ALL and any(not math.isnan(_number(row, METRIC)) for key, row in table.items() if key[2] == tenant)
    ]  # fmt: skip

    def values(policy: str, tenant: str, name: str) -> Floats:
        return np.asarray([_number(table.get((policy, r, tenant)), name) for r in replications])

    worst = {policy: np.min([values(policy, tenant, METRIC) for tenant in tenants], axis=0) for policy in policies}
    means = {policy: float(np.mean(worst[policy])) for policy in policies}
    best = max(policies, key=lambda policy: means[policy])
    ranks = _ranks(means)
    found = []
    for policy in policies:
        low, high = interval(worst[policy])
        to_best = paired_difference(worst[best], worst[policy])
        by_tenant = {tenant: float(np.mean(values(policy, tenant, METRIC))) for tenant in tenants}
        found.append(
            Score(
                scenario=scenario, load=load, policy=policy,
                score=means[policy], low=max(0.0, low), high=min(1.0, high),
                rank=ranks[policy], level=policy == best or not to_best.clear,
                worst=min(by_tenant, key=lambda tenant: by_tenant[tenant]),
                offered=float(np.mean(values(policy, ALL, "offered"))),
                admitted=float(np.mean(values(policy, ALL, "admitted"))),
                refused=float(np.mean(values(policy, ALL, "refused"))),
                attainment=float(np.mean(values(policy, ALL, METRIC))),
                ttft_p99_s=float(np.mean(values(policy, ALL, "ttft_p99_s"))),
                shedding=policy != BASELINE and BASELINE in means and _sheds(
                    {name: (values(BASELINE, ALL, name), values(policy, ALL, name)) for name in (METRIC, "ttft_p99_s")}
                ),
            )
        )  # fmt: skip
    return found


def standing(scores: Sequence[Score]) -> list[tuple[str, float, float, int, int]]:
    """Return policy, mean rank, mean score, scenarios in which it is level with the best, and flags; the best first."""
    rows = []
    for policy in dict.fromkeys(one.policy for one in scores):
        own = [one for one in scores if one.policy == policy]
        rows.append((
            policy, float(np.mean([one.rank for one in own])), float(np.mean([one.score for one in own])),
            sum(one.level for one in own), sum(one.shedding for one in own),
        ))  # fmt: skip
    return sorted(rows, key=lambda row: (row[1], row[0]))


def _sheds(pairs: Mapping[str, tuple[Floats, Floats]]) -> bool:
    attainment, latency = paired_difference(*pairs[METRIC]), paired_difference(*pairs["ttft_p99_s"])
    fewer = attainment.absolute.high < 0 if attainment.absolute.n > 1 else attainment.absolute.estimate < 0
    quicker = latency.absolute.high < 0 if latency.absolute.n > 1 else latency.absolute.estimate < 0
    return bool(fewer and quicker)


def _ranks(means: Mapping[str, float]) -> dict[str, float]:
    """Return ranks, the highest first; scores alike to a millionth share the mean of their places, and none is last."""
    means = {policy: -1.0 if math.isnan(mean) else mean for policy, mean in means.items()}
    order = sorted(means, key=lambda policy: -means[policy])
    ranks: dict[str, float] = {}
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and means[order[start]] - means[order[stop]] <= 1e-6:
            stop += 1
        for policy in order[start:stop]:
            ranks[policy] = (start + 1 + stop) / 2
        start = stop
    return ranks


def _number(row: Row | None, name: str) -> float:
    value = math.nan if row is None else row.get(name, math.nan)
    return float(value)
