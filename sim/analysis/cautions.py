"""What a reader must know before believing a result: too few requests, unequal refusals, a warm-up cut too short."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sim.analysis.censored import censored_p99_s
from sim.analysis.own_limit import own_limit_losses
from sim.analysis.study import Case, Study
from sim.analysis.warm_up import FEWEST, Series, settled_s
from sim.errors import InputError
from sim.records import metrics

ENOUGH_BEYOND = 10
"""Requests that should lie beyond a percentile in each replication: the 1,000th part of 10,000, the 100th of 1,000."""

UNEQUAL = 0.01
"""Share of requests by which two refusals differ for their latencies to be of different requests."""

_FEW_REPLICATIONS = 5
_SHORT = 0.05
_MOST_RUNS_READ = 24
_NEVER = (
    "No steady state was found under {} (MSER-5 on times to first token): the numbers describe this stretch of time "
    "and no other."
)


def cautions(study: Study) -> list[str]:
    """Return sentences, the gravest first; none where there is nothing to say."""
    found = []
    if study.errors:
        runs = len(study.manifest["cells"])
        found.append(f"{len(study.errors)} of {runs} runs failed; the first: {study.errors[0]}.")
    if not len(study.replications):
        return found
    return [
        *found, *_own_limit(study), *_unequal_refusals(study), *_unfinished(study), *few_requests(study),
        *_few_replications(study),
        *_warm_up(study), *_oracle(study),
    ]  # fmt: skip


def _unequal_refusals(study: Study) -> Iterator[str]:
    """Name policies that refused more than the baseline: they are measured on other requests."""
    worst: dict[str, tuple[float, str]] = {}
    for base, case in study.pairs():
        for tenant in study.tenants:
            mine, other = (study.interval(one, tenant, "refused_share").estimate for one in (case, base))
            gap = abs(mine - other)
            if gap > max(UNEQUAL, worst.get(case.policy, (0.0, ""))[0]):
                text = (
                    f"{case} refused {mine:.1%} of {_whose(tenant)} requests and {base} {other:.1%}: "
                    "their latencies are of different requests. "
                    f"Compare SLO attainment, which counts all that were offered: {_attained(study, case, tenant)} "
                    f"against {_attained(study, base, tenant)}."
                )
                worst[case.policy] = gap, text
    yield from (text for _, text in worst.values())


def _attained(study: Study, case: Case, tenant: str) -> str:
    share = study.interval(case, tenant, "slo_attainment").estimate
    return "none stated" if math.isnan(share) else f"{share:.1%}"


def _unfinished(study: Study) -> Iterator[str]:
    shares = [(study.interval(case, "all", "unfinished_share").estimate, case) for case in study.cases]
    worst = max(shares, key=lambda one: -1.0 if math.isnan(one[0]) else one[0])
    if worst[0] > UNEQUAL:
        yield (
            f"{worst[0]:.1%} of the requests under {worst[1]} had not finished at the horizon; their latencies, the "
            f"longest of all, are not in the percentiles.{_censored(study, worst[1])}"
        )


def _censored(study: Study, case: Case) -> str:
    """Return what a P99 over those that finished is worth: how many had not, and the bound that follows."""
    labels = dict(case.variant)
    for cell in study.manifest["cells"]:
        if cell.get("error") or (cell["policy"], cell["replication"]) != (case.policy, 0) or cell["variant"] != labels:
            continue
        with contextlib.suppress(InputError):  # a result whose records were taken away
            warmup_s = study.scenario.get("warmup_s")
            bound = censored_p99_s(
                study.run(cell), study.horizon_s, warmup_s if isinstance(warmup_s, int | float) else 0.0
            )
            if bound is not None:
                n, shown_s, least_s = bound
                return (
                    f" In its first replication {n} had not; the TTFT P99 of {shown_s:.2f} s is that of the others: "
                    f"with those counted at what they had waited by then, it is at least {least_s:.2f} s."
                )
    return ""


def _own_limit(study: Study) -> Iterator[str]:
    """Name who lost most to the limit of a guaranteed entitlement while the pool had room."""
    runs = [cell for cell in study.manifest["cells"] if not cell.get("error") and not cell["replication"]]
    warmup_s = study.scenario.get("warmup_s")
    found = []
    for cell in runs[:_MOST_RUNS_READ]:
        with contextlib.suppress(InputError):  # a result whose records were taken away
            found += own_limit_losses(
                study.run(cell), study.run_timeline(cell), study.scenario["pool"],
                warmup_s=warmup_s if isinstance(warmup_s, int | float) else 0.0,
            )  # fmt: skip
    worst = max(found, key=lambda loss: loss.share, default=None)
    if worst is not None and worst.share > UNEQUAL:
        yield str(worst)


def few_requests(study: Study) -> Iterator[str]:
    """Of n requests n(1 - q) lie beyond the quantile q; a P99 of fewer than a hundred is the maximum."""
    frame = study.replications
    some = frame[frame["tenant"].isin(study.tenants)]
    finished = some["latency_n"].to_numpy()
    least = some.iloc[int(finished.argmin())]
    n = int(finished.min())
    if n * 0.01 < ENOUGH_BEYOND:
        many = int((finished * 0.01 < ENOUGH_BEYOND).sum())
        detail = "is no more than the slowest one" if n < 100 else f"rests on the {n // 100} slowest"
        yield (
            f"P99 rests on few requests in {many} of {len(some)} rows: in the smallest ({least['policy']}, "
            f"{least['tenant']}) {n} finished, so that its P99 {detail}. Run longer, or read P95."
        )


def _few_replications(study: Study) -> Iterator[str]:
    n = int(study.replications.groupby(["policy", *study.varied, "tenant"], observed=True).size().min())
    if n == 1:
        yield "One replication: no intervals. Give --replications 5 or more."
    elif n < _FEW_REPLICATIONS:
        yield f"{n} replications: intervals are wide and their coverage depends on normality. Give more."


def _warm_up(study: Study) -> Iterator[str]:
    ruled = study.manifest.get("warm_up")
    if ruled is not None:
        yield from _ruled(study, ruled)
        return
    stated = float(study.scenario["warmup_s"])
    slack_s = _SHORT * study.horizon_s  # what is this short moves no result
    cuts = warm_up_cuts(study)
    late = [(cut, case) for case, cut in cuts.items() if not math.isnan(cut) and cut > stated + slack_s]
    if late:
        cut, case = max(late, key=lambda one: one[0])
        yield (
            f"MSER-5 puts the end of the warm-up at {cut:.0f} s (under {case}); the scenario cuts {stated:g} s. "
            "Results include the way to the steady state, if there is one. Give warmup_s: mser-5 to have it cut."
        )
    never = [case for case, cut in cuts.items() if math.isnan(cut)]
    if never:
        yield _NEVER.format(f"{never[0]}{' and others' * (len(never) > 1)}")


def _ruled(study: Study, ruled: Mapping[str, Any]) -> Iterator[str]:
    """Say where the rule found no end of the warm-up, or left little."""
    never: list[Case] = []
    most, most_at = 0.0, None
    for one in ruled["cuts"]:
        variant = tuple(one["variant"].items())
        never += [Case(policy, variant) for policy, cut in one["by_policy"].items() if cut is None]
        if one["warmup_s"] > most:
            policy = max(one["by_policy"], key=lambda name: one["by_policy"][name] or 0.0)
            most, most_at = one["warmup_s"], Case(policy, variant)
    if never:
        yield _NEVER.format(f"{never[0]}{f' and {len(never) - 1} others' * (len(never) > 1)}")
    if most > 0.25 * study.horizon_s:
        yield (
            f"The warm-up of {most:.0f} s that MSER-5 found (under {most_at}) is a large part of {study.horizon_s:g} "
            "s. Run longer."
        )


def _oracle(study: Study) -> Iterator[str]:
    if re.search(r"'(estimator|kind)': '?\{?[^,}]*oracle", str(study.scenario["policies"])):
        yield "A policy uses an oracle: it knows output lengths that no gateway can know."
    seen = [study.scenario["pool"].get("router"), study.scenario["policies"], study.scenario.get("vary")]
    if "'index': 'exact'" in str(seen):
        yield "A policy or router sees into the replicas' caches (index: exact), which no gateway can."


def warm_up_cuts(study: Study) -> dict[Case, float]:
    """Return when the warm-up ends by MSER-5 in the first replication of each case; NaN for never.

    It reads times to first token in order of arrival, refused requests left out. Runs too short to judge are not in it.
    """
    found: dict[Case, float] = {}
    for cell in [cell for cell in study.manifest["cells"] if not cell.get("error") and not cell["replication"]][
        :_MOST_RUNS_READ
    ]:
        case = Case(cell["policy"], tuple(cell["variant"].items()))
        cut = _cut(study, cell)
        if cut is not None:
            found[case] = cut
    return found


def _cut(study: Study, cell: dict[str, Any]) -> float | None:
    try:
        frame = study.run(cell)
    except InputError:
        return None
    frame = frame[frame["final"] & frame["first_token_s"].notna()].sort_values("first_arrival_s", kind="stable")
    if len(frame) < FEWEST:
        return None
    arrival_s, first_s = (np.asarray(frame[name], dtype=np.float64) for name in ("first_arrival_s", "first_token_s"))
    return settled_s([Series(arrival_s, metrics.ttft_s(first_s, arrival_s))])


def _whose(tenant: str) -> str:
    return "all" if tenant == "all" else f"{tenant}'s"
