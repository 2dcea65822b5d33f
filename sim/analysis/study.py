"""A result as tidy tables: what is read once, and what comparisons, reports and notebooks ask of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sim.analysis.cell_measures import read_measures
from sim.analysis.statistics import Difference, Interval, mean_interval, paired_difference
from sim.analysis.summary import ALL, LATENCY_COLUMNS, within_bounds
from sim.records.result_folder import horizon_s, read_manifest, read_records, read_summary

COUNTS = ("offered", "admitted", "finished", "refused", "evicted", "failed", "cancelled", "unfinished")
SHARES = ("slo_attainment",)
RATES = ("goodput_per_s", "output_tokens_per_s")
METRICS = (*LATENCY_COLUMNS, *SHARES, *RATES, "violation", "refused_share", "unfinished_share", *COUNTS)
"""What can be compared, and asked of ``--until`` and ``--fail-if``."""

MORE_IS_BETTER = frozenset({*SHARES, *RATES, "admitted", "finished"})
BASELINE = "none"


def short_paths(paths: Sequence[str]) -> dict[str, str]:
    """Return what each dotted path is called among the others: its last name, or all of it where two end alike."""
    last = {path: path.rpartition(".")[2] for path in paths}
    often = Counter(last.values())
    return {path: name if often[name] == 1 else path for path, name in last.items()}


@dataclass(frozen=True, slots=True)
class Case:
    """A policy with one setting of what was varied."""

    policy: str
    variant: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Return the case in words."""
        names = short_paths([path for path, _ in self.variant])
        return ", ".join([self.policy, *(f"{names[path]}={value}" for path, value in self.variant)])


class Study:
    """One result folder, a run's or a sweep's, read when asked.

    Raises
    ------
    InputError : it is no result.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = read_manifest(self.folder)

    @property
    def scenario(self) -> dict[str, Any]:
        """The resolved scenario."""
        found: dict[str, Any] = self.manifest["scenario"]
        return found

    @property
    def horizon_s(self) -> float:
        """When the runs ended."""
        return horizon_s(self.manifest)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """``summary.csv``: a row for each policy, variant and tenant, means over replications."""
        return pd.DataFrame(read_summary(self.folder, self.manifest))

    @cached_property
    def replications(self) -> pd.DataFrame:
        """A row for each policy, variant, replication and tenant, with the columns of the summary."""
        rows = read_measures(self.folder, self.manifest)
        if not rows:
            return pd.DataFrame(columns=["policy", *self.varied, "replication", "tenant"])
        frame = pd.DataFrame(rows)
        reasons = [str(name) for name in frame if str(name).startswith("refused_")]
        frame[reasons] = frame[reasons].fillna(0.0)
        if "violation" not in frame:  # a result of an earlier version
            frame["violation"] = math.nan
        frame["refused_share"] = frame["refused"] / frame["offered"].where(frame["offered"] > 0)
        frame["unfinished_share"] = frame["unfinished"] / frame["offered"].where(frame["offered"] > 0)
        front = ["policy", *self.varied, "replication", "tenant"]
        return frame[[*front, *(str(name) for name in frame if name not in {*front, "replications"})]]

    @cached_property
    def varied(self) -> list[str]:
        """The paths that were varied."""
        cells = self.manifest["cells"]
        return list(cells[0]["variant"]) if cells else []

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row for each run: its labels, cost and, in a sweep, its error."""
        rows = [{**cell, **cell["variant"]} for cell in self.manifest["cells"]]
        return pd.DataFrame(rows).drop(columns="variant")

    @property
    def errors(self) -> list[str]:
        """The cells that failed, each with its error."""
        found = []
        for cell in self.manifest["cells"]:
            if cell.get("error"):
                case = Case(cell["policy"], tuple(cell["variant"].items()))
                found.append(f"{case}, replication {cell['replication']}: {cell['error']}")
        return found

    @cached_property
    def cases(self) -> list[Case]:
        """Policies and variants, in the order of the result."""
        keys = self.replications[["policy", *self.varied]].drop_duplicates()
        rows = keys.itertuples(index=False, name=None)
        return [Case(str(row[0]), tuple(zip(self.varied, map(str, row[1:]), strict=True))) for row in rows]

    @cached_property
    def tenants(self) -> list[str]:
        """The tenants, and "all" at the end where there is more than one."""
        found = [str(name) for name in self.replications["tenant"].unique()]
        return [name for name in found if name != ALL] if len(found) == 2 else found

    @property
    def policies(self) -> list[str]:
        """The policies, in the order of the result."""
        return list(dict.fromkeys(case.policy for case in self.cases))

    def requests(self, cells: Sequence[str] | None = None) -> pd.DataFrame:
        """Return ``requests.parquet``, of all cells or, in a sweep, of those with these keys."""
        found: pd.DataFrame = read_records(self.folder, self.manifest, "requests", cells).to_pandas()
        return found

    def timeline(self, cells: Sequence[str] | None = None) -> pd.DataFrame:
        """Return ``timeline.parquet``, likewise."""
        found: pd.DataFrame = read_records(self.folder, self.manifest, "timeline", cells).to_pandas()
        return found

    @cached_property
    def _all_requests(self) -> pd.DataFrame:
        return self.requests()

    @cached_property
    def _whole_timeline(self) -> pd.DataFrame:
        return self.timeline()

    def run(self, cell: Mapping[str, Any]) -> pd.DataFrame:
        """Return the attempts of one run, an element of the manifest's cells."""
        if "key" in cell:
            return self.requests([cell["key"]])
        return _of(self._all_requests, cell)

    def run_timeline(self, cell: Mapping[str, Any]) -> pd.DataFrame:
        """Return the timeline of one run."""
        if "key" in cell:
            return self.timeline([cell["key"]])
        return _of(self._whole_timeline, cell)

    @cached_property
    def _by_case(self) -> dict[tuple[str, ...], pd.DataFrame]:
        keys = ["policy", *self.varied, "tenant"]
        groups = self.replications.groupby(keys, sort=False, observed=True)
        return {tuple(map(str, key)): rows.set_index("replication").sort_index() for key, rows in groups}

    def values(self, case: Case, tenant: str, metric: str) -> pd.Series[float]:
        """Return one metric of a case by replication; empty where there is none."""
        rows = self._by_case.get((case.policy, *(value for _, value in case.variant), tenant))
        if rows is None or metric not in rows:
            return pd.Series(dtype=float)
        return rows[metric].astype(float)

    def interval(self, case: Case, tenant: str, metric: str) -> Interval:
        """Return the mean of a metric over replications, with its 95 % interval within what the metric can be."""
        found = mean_interval(self.values(case, tenant, metric))
        low, high = within_bounds(metric, found.low, found.high)
        return replace(found, low=low, high=high)

    def difference(self, baseline: Case, other: Case, tenant: str, metric: str) -> Difference:
        """Return how much more ``other`` measured; both met the same arrivals, so by replication."""
        a, b = self.values(baseline, tenant, metric), self.values(other, tenant, metric)
        both = a.index.intersection(b.index)
        return paired_difference(a.loc[both].to_numpy(), b.loc[both].to_numpy())

    def baseline(self, name: str | None = None) -> str:
        """Return the policy that others are compared with: the named one, else "none", else the first."""
        if name is not None and name not in self.policies:
            raise ValueError(f"no policy {name!r} in this result; give one of: {', '.join(self.policies)}")
        return name or (BASELINE if BASELINE in self.policies else self.policies[0])

    def pairs(self, baseline: str | None = None) -> Iterator[tuple[Case, Case]]:
        """Yield each case with the baseline's case of the same variant."""
        base = self.baseline(baseline)
        for case in self.cases:
            if case.policy != base:
                yield Case(base, case.variant), case

    def differences(self, metrics: Sequence[str], baseline: str | None = None) -> pd.DataFrame:
        """Return every case against the baseline of its variant: a row for each tenant and metric.

        Each row has both means, the absolute and the relative difference with intervals, effect size and p-value, and
        what both refused: a latency alone compares nothing.
        """
        rows = []
        for base, case in self.pairs(baseline):
            for tenant in self.tenants:
                refused = [self.interval(one, tenant, "refused_share").estimate for one in (base, case)]
                for metric in metrics:
                    found = self.difference(base, case, tenant, metric)
                    rows.append(
                        {
                            "policy": case.policy, **dict(case.variant), "tenant": tenant, "metric": metric,
                            "baseline": base.policy,
                            "baseline_mean": self.interval(base, tenant, metric).estimate,
                            "mean": self.interval(case, tenant, metric).estimate,
                            **difference_columns(found),
                            "baseline_refused_share": refused[0], "refused_share": refused[1],
                        }
                    )  # fmt: skip
        return pd.DataFrame(rows)


def difference_columns(found: Difference) -> dict[str, Any]:
    """Return a difference as columns of a table."""
    return {
        "difference": found.absolute.estimate,
        "difference_ci_low": found.absolute.low,
        "difference_ci_high": found.absolute.high,
        "relative": found.relative.estimate,
        "relative_ci_low": found.relative.low,
        "relative_ci_high": found.relative.high,
        "effect_size": found.effect,
        "p_value": found.p_value,
        "n": found.absolute.n,
        "paired": found.paired,
    }


def better(metric: str, difference: float) -> bool | None:
    """Return whether a difference is an improvement; None where it is none or nobody can say."""
    if not difference or math.isnan(difference) or metric in ("offered", "refused", "refused_share"):
        return None
    return (difference > 0) == (metric in MORE_IS_BETTER)


def _of(frame: pd.DataFrame, cell: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of one run."""
    chosen = frame["replication"] == cell["replication"]
    for column, value in {"policy": cell["policy"], **cell["variant"]}.items():
        chosen &= frame[column] == value
    found: pd.DataFrame = frame.loc[chosen]
    return found
