"""Two results side by side: what changed in the scenario, and what came of it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sim.analysis.cautions import UNEQUAL, few_requests
from sim.analysis.statistics import Difference, paired_difference, unpaired_difference
from sim.analysis.study import METRICS, MORE_IS_BETTER, Case, Study, difference_columns
from sim.analysis.summary import LATENCIES
from sim.analysis.text_tables import TextTable
from sim.errors import InputError
from sim.extras import require
from sim.scenario.validation_errors import suggestion

COMPARED = ("offered", "refused_share", "slo_attainment", "ttft_p50_s", "ttft_p99_s", "tpot_mean_s", "e2e_p99_s",
            "output_tokens_per_s")  # fmt: skip

_LIMIT = re.compile(
    r"(?:(?P<policy>[^/]+)/)?(?:(?P<tenant>[^/]+)/)?(?P<metric>[a-z0-9_]+)\s*:\s*(?P<number>[+-][0-9.eE+-]+)"
    r"\s*(?P<percent>%?)"
)
_TEXTS = ("title", "description", "replications", "phases")


@dataclass(frozen=True, slots=True)
class Change:
    """A field of the scenario that differs; None where one of them has no such field."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """Return the change in a line."""
        return f"{self.path}: {_shown(self.before)} -> {_shown(self.after)}"


@dataclass(frozen=True, slots=True)
class Limit:
    """How far a metric may move; beyond it, the comparison fails.

    Attributes
    ----------
    policy, tenant : whose metric; None for every policy, and for all tenants together.
    bound : signed: above it fails where positive, below it where negative.
    relative : whether it is a share of the baseline's mean or in the metric's unit.
    """

    text: str
    policy: str | None
    tenant: str | None
    metric: str
    bound: float
    relative: bool

    def broken_by(self, found: Difference) -> bool:
        """Return whether the change is beyond the bound and no accident: its interval excludes no change.

        Single runs have no interval; of them the change alone decides. What was not measured is `Comparison.broken`'s.
        """
        change = self.change(found)
        beyond = change > self.bound if self.bound >= 0 else change < self.bound
        if not beyond:
            return False
        return math.isnan(found.absolute.low) or found.clear

    def change(self, found: Difference) -> float:
        """Return the change that the bound is of: from nothing to something it is beyond every share."""
        if not self.relative or not math.isnan(found.relative.estimate):
            return (found.relative if self.relative else found.absolute).estimate
        change = found.absolute.estimate
        return math.copysign(math.inf, change) if change else change


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What two results differ in.

    Attributes
    ----------
    changes : of the scenario, but for words and the number of replications.
    paired : whether both drew from the same streams, so that they are compared replication by replication.
    table : a row for each case, tenant and metric that both have, columns as in `Study.differences`.
    only_before, only_after : cases that one of them lacks.
    """

    before: Study
    after: Study
    changes: list[Change]
    paired: bool
    table: pd.DataFrame
    differences: dict[tuple[Case, str, str], Difference]
    only_before: list[Case]
    only_after: list[Case]

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(in_words(self))}</pre>"

    def broken(self, limits: Sequence[Limit]) -> list[str]:
        """Return a line for each limit that a case breaks, or of which nobody can say that it does not.

        Raises
        ------
        InputError : a limit names a policy or tenant that the results do not share.
        """
        lines = []
        for limit in limits:
            hits = [
                (key, found)
                for key, found in self._all(limit)
                if limit.policy in (None, key[0].policy) and key[1] == (limit.tenant or "all")
            ]
            if not hits:
                raise InputError(f"--fail-if {limit.text!r}", "matches nothing that both results have", "see the table")
            for (case, tenant, metric), found in hits:
                name = f"{case}, {tenant}: {metric}"
                gaps = self._gaps(case, tenant, metric)
                if gaps:
                    lines.append(f"{name} was not measured {gaps}, so nobody can say that it is within {limit.text}")
                elif limit.broken_by(found):
                    change = limit.change(found)
                    shown = f"{change:+.1%}" if limit.relative else f"{change:+.4g}"
                    lines.append(f"{name} changed by {shown}, beyond {limit.text}")
            lines += [
                f"{case}: is in the first result alone, so nobody can say that it is within {limit.text}"
                for case in self.only_before
                if limit.policy in (None, case.policy)
            ]
        return lines

    def _gaps(self, case: Case, tenant: str, metric: str) -> str:
        """Say where a metric has no value; empty where it has one in every replication, or as many as before."""
        before, after = (study.values(case, tenant, metric).isna() for study in (self.before, self.after))
        found = [
            f"{name} ({int(missing.sum())} of {len(missing)} replications)"
            for name, missing, other in (("before", before, after), ("after", after, before))
            if missing.all() or (name == "after" and missing.mean() > other.mean())
        ]
        return " and ".join(found)

    def _all(self, limit: Limit) -> Iterator[tuple[tuple[Case, str, str], Difference]]:
        for case in self.before.cases:
            for tenant in (limit.tenant or "all",):
                found = _difference(self.before, self.after, case, tenant, limit.metric, self.paired)
                if found is not None:
                    yield (case, tenant, limit.metric), found


def parse_limit(text: str) -> Limit:
    """Return the limit of ``[policy/][tenant/]metric:+10%``; with one name before the metric, it is the tenant.

    Raises
    ------
    InputError : it is none, or there is no such metric.
    """
    match = _LIMIT.fullmatch(text.strip())
    try:
        number = float(match["number"]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or not math.isfinite(number):
        fix = 'give a metric and a signed bound, e.g. "ttft_p99_s:+10%" or "chat/slo_attainment:-0.01"'
        raise InputError(f"--fail-if {text!r}", "is no limit", fix)
    policy, tenant = match["policy"], match["tenant"]
    if tenant is None:
        policy, tenant = None, policy
    if match["metric"] not in METRICS:
        raise InputError(
            f"--fail-if {text!r}", f"unknown metric {match['metric']}", suggestion(match["metric"], METRICS)
        )
    relative = bool(match["percent"])
    return Limit(text, policy, tenant, match["metric"], number / 100 if relative else number, relative)


def compare(before: Study, after: Study, metrics: Sequence[str] = COMPARED) -> Comparison:
    """Return what two results differ in, simulated or live, of any versions.

    Results of one seed drew from the same streams, and where a workload did not change, met the same arrivals: their
    replications are compared one by one. Others are compared as independent samples.
    """
    require("scipy", "a comparison")
    changes = list(scenario_changes(before.scenario, after.scenario))
    paired = _same_streams(before, after)
    shared = [case for case in before.cases if case in set(after.cases)]
    tenants = [tenant for tenant in before.tenants if tenant in after.tenants]
    rows, differences = [], {}
    for case in shared:
        for tenant in tenants:
            for metric in metrics:
                found = _difference(before, after, case, tenant, metric, paired)
                if found is None:
                    continue
                differences[case, tenant, metric] = found
                rows.append(
                    {
                        "policy": case.policy, **dict(case.variant), "tenant": tenant, "metric": metric,
                        "before": before.interval(case, tenant, metric).estimate,
                        "after": after.interval(case, tenant, metric).estimate,
                        **difference_columns(found),
                    }
                )  # fmt: skip
    return Comparison(
        before, after, changes, paired, pd.DataFrame(rows), differences,
        [case for case in before.cases if case not in shared], [case for case in after.cases if case not in shared],
    )  # fmt: skip


def scenario_changes(before: Any, after: Any, path: str = "") -> Iterator[Change]:
    """Yield the fields in which two resolved scenarios differ; elements of a list are matched by name."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            if path or key not in _TEXTS:
                below = f"{path}.{key}" if path else str(key)
                yield from scenario_changes(before.get(key), after.get(key), below)
    elif _named(before) and _named(after):
        mine, theirs = ({one["name"]: one for one in side} for side in (before, after))
        for name in dict.fromkeys([*mine, *theirs]):
            yield from scenario_changes(mine.get(name), theirs.get(name), f"{path}.{name}")
    elif before != after:
        yield Change(path, before, after)


def head(found: Comparison) -> str:
    """Return what was compared, and what changed in the scenario, as lines for a terminal."""
    lines = [f"before  {_origin(found.before)}", f"after   {_origin(found.after)}"]
    how = "replication by replication (one seed)" if found.paired else "as independent samples"
    lines.append(f"compared {how}")
    lines += ["", "scenario" if found.changes else "scenario: no change", *(f"  {change}" for change in found.changes)]
    for cases, which in ((found.only_before, "before"), (found.only_after, "after")):
        if cases:
            lines.append(f"only {which}: {'; '.join(map(str, cases[:5]))}{' ...' if len(cases) > 5 else ''}")
    return "\n".join([*lines, ""])


def table(found: Comparison) -> TextTable:
    """Return what changed in the outcome, a row for each case, tenant and metric."""
    heads = ("case", "tenant", "metric", "before", "after", "change", "95 % interval", "effect", "verdict")
    body = []
    for (case, tenant, metric), one in found.differences.items():
        mine, theirs = found.before.interval(case, tenant, metric), found.after.interval(case, tenant, metric)
        if math.isnan(mine.estimate) and math.isnan(theirs.estimate):
            continue
        body.append(
            (str(case).replace("\n", " "), tenant, metric, _number(mine.estimate), _number(theirs.estimate),
             _change(one), _ends(one), "" if math.isnan(one.effect) else f"{one.effect:+.2f}", verdict(metric, one))
        )  # fmt: skip
    return TextTable(heads, tuple(body), 3, ("change", "verdict", "95 % interval", "before", "after", "effect"))


def care(found: Comparison) -> list[str]:
    """Return what to know before believing it, a line each."""
    lines = [f"read with care: {text}" for text in _care(found)]
    return ["", *lines] if lines else []


def in_words(found: Comparison, width: int | None = None) -> str:
    """Return the comparison as text."""
    return "\n".join([head(found), table(found).text(width), *care(found)])


def _care(found: Comparison) -> Iterator[str]:
    """Say where latencies compare different requests, and where a P99 rests on few."""
    metrics = {metric for _, _, metric in found.differences}
    if not any(metric.startswith(LATENCIES) for metric in metrics):
        return
    worst: tuple[float, str] = (UNEQUAL, "")
    for case, tenant in dict.fromkeys((case, tenant) for case, tenant, _ in found.differences):
        one, other = (study.interval(case, tenant, "refused_share").estimate for study in (found.before, found.after))
        if abs(one - other) > worst[0]:
            text = f"{case} refused {one:.1%} of {tenant} requests before and {other:.1%} after"
            worst = abs(one - other), f"{text}: their latencies are of different requests; compare slo_attainment"
    if worst[1]:
        yield worst[1]
    if any(metric.endswith("_p99_s") for metric in metrics):
        for study, name in ((found.before, "before"), (found.after, "after")):
            yield from (f"{name}: {text}" for text in few_requests(study))


def verdict(metric: str, found: Difference) -> str:
    """Return "better", "worse", "changed" or nothing where an interval, absolute or relative, includes no change."""
    if not found.clear or found.relative.low <= 0 <= found.relative.high:
        return ""
    if metric in ("offered", "refused", "refused_share", "admitted"):
        return "changed"
    return "better" if (found.absolute.estimate > 0) == (metric in MORE_IS_BETTER) else "worse"


def _difference(before: Study, after: Study, case: Case, tenant: str, metric: str, paired: bool) -> Difference | None:
    a, b = before.values(case, tenant, metric), after.values(case, tenant, metric)
    if not len(a) or not len(b):
        return None
    if not paired:
        return unpaired_difference(a.to_numpy(), b.to_numpy())
    both = a.index.intersection(b.index)
    return paired_difference(a.loc[both].to_numpy(), b.loc[both].to_numpy())


def _same_streams(before: Study, after: Study) -> bool:
    if before.manifest.get("kind") == "live" or after.manifest.get("kind") == "live":
        return False
    same_seed = before.scenario.get("seed") == after.scenario.get("seed")
    return same_seed and set(before.replications["replication"]) == set(after.replications["replication"])


def _named(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or not value:
        return False
    names = [one.get("name") if isinstance(one, Mapping) else None for one in value]
    return all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def _origin(study: Study) -> str:
    manifest = study.manifest
    commit = str(manifest.get("commit") or "no commit")
    short = commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")
    version = manifest.get("versions", {}).get("tokenpools", "?")
    n = study.replications.groupby(["policy", *study.varied, "tenant"]).size().min()
    return f"{study.folder} (tokenpools {version}, {short}, seed {manifest.get('seed')}, {n} replications)"


def _change(found: Difference) -> str:
    if math.isnan(found.relative.estimate):
        return f"{found.absolute.estimate:+.4g}" if found.absolute.estimate else "0"
    return f"{found.relative.estimate:+.1%}"


def _ends(found: Difference) -> str:
    if math.isnan(found.absolute.low):
        return "-"
    if math.isnan(found.relative.low):
        return f"{found.absolute.low:+.4g} to {found.absolute.high:+.4g}"
    return f"{found.relative.low:+.1%} to {found.relative.high:+.1%}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
