"""What a result says, in sentences: numbers with their intervals, latency never without refusals."""

from __future__ import annotations

import math

from sim.analysis.statistics import Interval
from sim.analysis.study import Case, Study

_MOST_TENANTS = 6


def findings(study: Study, baseline: str | None = None) -> list[str]:
    """Return what the policies did, each against the baseline: everybody together first, then tenant by tenant."""
    if not len(study.replications):
        return ["No run finished, or no request arrived."]
    base = study.baseline(baseline)
    others = [policy for policy in study.policies if policy != base]
    if not others:
        return _alone(study, study.cases[0]) if len(study.cases) == 1 else _spread(study)
    found = []
    for policy in others:
        pairs = [(one, other) for one, other in study.pairs(baseline) if other.policy == policy]
        if len(pairs) == 1:
            found += _pair(study, *pairs[0])
        else:
            found += _many(study, pairs)
    return found


def _alone(study: Study, case: Case) -> list[str]:
    texts = []
    for tenant in study.tenants[:_MOST_TENANTS]:
        p99, refused = (study.interval(case, tenant, metric) for metric in ("ttft_p99_s", "refused_share"))
        met = study.interval(case, tenant, "slo_attainment")
        text = f"{case}: {_name(tenant)} P99 time to first token {_seconds(p99)}, {refused.estimate:.1%} refused"
        texts.append(text + (f", objective met in {_percent(met)}." if not math.isnan(met.estimate) else "."))
    return texts


def _spread(study: Study) -> list[str]:
    """Say of one policy between what its variants lie, tenant by tenant."""
    texts = []
    for tenant in _everybody_first(study)[:_MOST_TENANTS]:
        parts = []
        for metric, what, show in (
            ("slo_attainment", "objective met in", _percent),
            ("ttft_p99_s", "P99 time to first token", _seconds),
            ("refused_share", "refused", _percent),
        ):
            each = [(study.interval(case, tenant, metric), case) for case in study.cases]
            known = sorted((one for one in each if not math.isnan(one[0].estimate)), key=lambda one: one[0].estimate)
            if not known:
                continue
            (low, at_low), (high, at_high) = known[0], known[-1]
            if show(low) == show(high):
                parts.append(f"{what} {show(low)} in every variant")
            else:
                parts.append(f"{what} {show(low)} at {_where(at_low)} to {show(high)} at {_where(at_high)}")
        if parts:
            texts.append(f"{_name(tenant)} requests, over {len(study.cases)} variants: {'; '.join(parts)}.")
    return texts


def _pair(study: Study, base: Case, case: Case) -> list[str]:
    texts = []
    met = study.difference(base, case, "all", "slo_attainment")
    if not math.isnan(met.absolute.estimate):
        mine, other = (study.interval(one, "all", "slo_attainment") for one in (case, base))
        texts.append(
            f"{case.policy} met the objective of {_percent(mine)} of all requests offered, {base.policy} of "
            f"{_percent(other)}: {_points(met.absolute)}."
        )
    for tenant in [one for one in study.tenants if one != "all"][:_MOST_TENANTS]:
        mine, other = (study.interval(one, tenant, "ttft_p99_s") for one in (case, base))
        change = study.difference(base, case, tenant, "ttft_p99_s")
        refused = [study.interval(one, tenant, "refused_share").estimate for one in (case, base)]
        if math.isnan(mine.estimate) or math.isnan(other.estimate):
            texts.append(f"{_name(tenant)} requests: none finished under one of {case.policy} and {base.policy}.")
            continue
        if change.clear:
            moved = _relative(change.relative)
        else:  # one replication has no interval, and nothing can be said of what is clear
            moved = "no interval" if math.isnan(change.absolute.low) else "no clear difference"
        texts.append(
            f"{_name(tenant)} P99 time to first token: {_seconds(mine)} under {case.policy}, {_seconds(other)} under "
            f"{base.policy} ({moved}). Refused: {refused[0]:.1%} and {refused[1]:.1%}."
        )
    return texts


def _many(study: Study, pairs: list[tuple[Case, Case]]) -> list[str]:
    """Say in how many variants a policy did better, and where most and least."""
    texts = []
    policy, base = pairs[0][1].policy, pairs[0][0].policy
    for tenant in _everybody_first(study)[:_MOST_TENANTS]:
        for metric, what, good in (
            ("slo_attainment", "SLO attainment", 1),
            ("ttft_p99_s", "P99 time to first token", -1),
        ):
            changes = [(study.difference(a, b, tenant, metric), b) for a, b in pairs]
            known = [(change, case) for change, case in changes if not math.isnan(change.absolute.estimate)]
            if not known:
                continue
            up = sum(change.clear and change.absolute.estimate * good > 0 for change, _ in known)
            down = sum(change.clear and change.absolute.estimate * good < 0 for change, _ in known)
            known.sort(key=lambda one: one[0].absolute.estimate * good)
            ends = [
                f"{_points(change.absolute) if good > 0 else _relative(change.relative)} at {_where(case)}"
                for change, case in (known[-1], known[0])
            ]
            texts.append(
                f"{_name(tenant)} {what} under {policy} against {base}: clearly better in {up} and worse in {down} of "
                f"{len(known)} variants; from {ends[0]} to {ends[1]}."
            )
    refused = [study.interval(case, "all", "refused_share").estimate for _, case in pairs]
    texts.append(f"{policy} refused between {min(refused):.1%} and {max(refused):.1%} of all requests.")
    return texts


def _everybody_first(study: Study) -> list[str]:
    return sorted(study.tenants, key=lambda name: name != "all")


def _where(case: Case) -> str:
    return ", ".join(f"{path.rsplit('.', 1)[-1]}={value}" for path, value in case.variant)


def _name(tenant: str) -> str:
    return "All tenants'" if tenant == "all" else f"{tenant}'s"


def _seconds(found: Interval) -> str:
    if math.isnan(found.estimate):
        return "none"
    ends = "" if math.isnan(found.low) else f" [{max(0.0, found.low):.3g}, {found.high:.3g}]"
    return f"{found.estimate:.3g} s{ends}"


def _percent(found: Interval) -> str:
    ends = "" if math.isnan(found.low) else f" [{max(0.0, found.low):.1%}, {min(1.0, found.high):.1%}]"
    return f"{found.estimate:.1%}{ends}"


def _points(found: Interval) -> str:
    ends = "" if math.isnan(found.low) else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.estimate:+.1f} points{ends}"


def _relative(found: Interval) -> str:
    if math.isnan(found.estimate):
        return "from nothing"
    ends = "" if math.isnan(found.low) else f" [{found.low:+.0%}, {found.high:+.0%}]"
    return f"{found.estimate:+.0%}{ends}"
