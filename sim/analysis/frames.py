"""Tables cut for plotting: one frame per case, series in windows of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from sim.records import metrics
from sim.records.schema import variant_columns

TIMELINE_COLUMNS = ("t_s", "scope", "name", "metric", "value")
MAX_CASES = 6
MAX_POINTS = 600


@dataclass(frozen=True, slots=True, eq=False)
class ShownCases:
    """The cases of a table, a case being a policy with one setting of what was varied.

    A case's frame holds its first replication. ``note`` says in words what is left out, if anything.
    """

    cases: list[tuple[str, pd.DataFrame]]
    note: str


def cut(table: pa.Table, columns: Sequence[str]) -> ShownCases:
    """Return the first `MAX_CASES` cases of a table with the given columns, in the table's order."""
    varied = variant_columns(table)
    frame = table.select(["policy", *varied, "replication", *columns]).to_pandas()
    for owner in {"tenant", "entitlement"} & set(columns):  # by alphabet, so that all figures stack and list alike
        categories = frame[owner].astype("category").cat
        frame[owner] = categories.reorder_categories(sorted(categories.categories))
    cases: list[tuple[str, pd.DataFrame]] = []
    replications = 1
    for key, rows in frame.groupby(["policy", *varied], sort=False, observed=True):
        each = rows["replication"].unique()
        replications = max(replications, len(each))
        rows = rows[rows["replication"] == each.min()].reset_index(drop=True)
        cases.append((case_label(dict(zip(["policy", *varied], map(str, key), strict=True))), rows))
    left_out = []
    if len(cases) > MAX_CASES:
        left_out.append(f"the first {MAX_CASES} of {len(cases)} variants")
    if replications > 1:
        left_out.append(f"the first of {replications} replications")
    return ShownCases(cases[:MAX_CASES], f"Shown: {' and '.join(left_out)}." if left_out else "")


def case_label(labels: dict[str, str]) -> str:
    """Return a case in words: the policy, and on a second line what was varied, by the last part of its path."""
    varied = [f"{path.rsplit('.', 1)[-1]}={value}" for path, value in labels.items() if path != "policy"]
    return "\n".join([labels["policy"], ", ".join(varied)]) if varied else labels["policy"]


def names(table: pa.Table, column: str) -> list[str]:
    """Return the distinct texts of a column, by alphabet."""
    return sorted(name for name in table.column(column).unique().to_pylist() if name is not None)


def pool_series(timeline: pd.DataFrame) -> pd.DataFrame:
    """Return the pool's metrics: one row for each ``t_s``, one column for each metric."""
    rows = timeline[timeline["scope"] == "pool"]
    return rows.pivot_table(index="t_s", columns="metric", values="value", observed=True)


def entitlement_series(timeline: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one metric of all entitlements: one row for each ``t_s``, one column for each name, by alphabet."""
    rows = timeline[(timeline["scope"] == "entitlement") & (timeline["metric"] == metric)]
    wide = rows.pivot_table(index="t_s", columns="name", values="value", observed=True)
    wide.columns = pd.Index([str(name) for name in wide.columns])
    return wide[sorted(wide.columns)]


def thinned(series: pd.DataFrame, most: int = MAX_POINTS) -> pd.DataFrame:
    """Return means over equal runs of rows, so that at most about ``most`` remain; an hour needs no 3,600 points."""
    step = -(-len(series) // most)
    if step <= 1:
        return series
    means = series.groupby(np.arange(len(series)) // step).mean()
    means.index = series.index[::step]
    return means


def first_tokens(requests: pd.DataFrame) -> pd.DataFrame:
    """Return the last attempts that got a first token, with ``ttft_s``."""
    rows = requests[requests["final"] & requests["first_token_s"].notna()]
    return rows.assign(ttft_s=metrics.ttft_s(rows["first_token_s"], rows["first_arrival_s"]))


def windows(at_s: pd.Series[float], value: pd.Series[float], window_s: float) -> pd.DataFrame:
    """Return ``p50``, ``p99`` and ``n`` of the values in each window, indexed by the window's centre.

    Windows without values are rows of NaN with n = 0, so that a line breaks there.
    """
    window = np.floor_divide(at_s, window_s).astype(int)
    groups = value.groupby(np.asarray(window))
    table = pd.DataFrame({"p50": groups.median(), "p99": groups.quantile(0.99), "n": groups.count()})
    if len(table):
        table = table.reindex(range(int(table.index.min()), int(table.index.max()) + 1))
    table["n"] = table["n"].fillna(0).astype(int)
    table.index = pd.Index((np.asarray(table.index, dtype=np.float64) + 0.5) * window_s)
    return table


def mean_present(
    start_s: NDArray[np.float64],
    end_s: NDArray[np.float64],
    weight: NDArray[np.float64],
    edges_s: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the total weight of the intervals [start, end) present, averaged over each window between two edges."""
    total = [float((weight * np.clip(edge - start_s, 0.0, end_s - start_s)).sum()) for edge in edges_s]
    return np.diff(total) / np.diff(edges_s)
