"""``tokenpools metrics``: every metric of docs/metrics.md for a result, with further runs where a metric needs them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.analysis.metric_rows import WINDOW_S, average, convergence_rows, measure
from sim.analysis.summary import ALL, Row
from sim.analysis.text_tables import TextTable
from sim.experiments.executors import Executor
from sim.judging.counterfactual import judge_refusals
from sim.judging.result_runs import alone_runs, result_runs, run_key
from sim.records.result_folder import replace_file, rows_csv

FILE = "metrics.csv"


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Rows as in ``metrics.csv``, those of each change, and where the file is."""

    rows: list[Row]
    changes: list[Row]
    path: Path

    def csv(self) -> str:
        """Return what to print as CSV: the changes where they were asked for, else the metrics."""
        return rows_csv(self.changes or self.rows)

    def tables(self) -> list[TextTable]:
        """Return tables for a terminal: everybody by policy, by tenant, and of changes where they were asked for."""
        parts = (
            _table([row for row in self.rows if row["tenant"] == ALL], _POOL),
            _table([row for row in self.rows if row["tenant"] != ALL], _TENANT),
            _table(self.changes, _CHANGE),
        )
        return [part for part in parts if part is not None]


def judge(
    folder: Path, *, alone: bool = False, refusals: int | None = None, window_s: float = WINDOW_S,
    convergence: bool = False, jobs: int = 1,
) -> Judged:  # fmt: skip
    """Compute the metrics of a result and write ``metrics.csv`` into it.

    Parameters
    ----------
    alone : also run each tenant alone, for its isolation index.
    refusals : also judge up to this many refusals of each run, see `sim.judging.counterfactual`.

    Raises
    ------
    InputError : it is no result, or further runs are asked of one that cannot run again.
    """
    found = result_runs(folder)
    beside = alone_runs(found, Executor(jobs=jobs)) if alone else None
    rows: list[Row] = []
    changes: list[Row] = []
    judged = judge_refusals(found, refusals, Executor(jobs=jobs)) if refusals else {}
    for run, entry in zip(found.runs(beside), found.cells, strict=True):
        measured = measure(run, window_s=window_s)
        extra = judged.get(run_key(entry), {})
        rows += [row | extra.get(str(row["tenant"]), {}) for row in measured]
        if convergence:
            changes += convergence_rows(run)
    averaged = average(rows)
    path = folder / FILE
    replace_file(path, rows_csv(averaged))
    return Judged(averaged, _first_of(changes), path)


def _first_of(changes: Sequence[Row]) -> list[Row]:
    """Return the mean over replications of how each tenant came to its share after each change."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in changes:
        key = tuple(v for k, v in row.items() if k not in ("replication", "reached_s", "settled_s", "overshoot"))
        groups.setdefault(key, []).append(row)
    found = []
    for members in groups.values():
        out: Row = {k: v for k, v in members[0].items() if k != "replication"}
        out["replications"] = len(members)
        for name in ("reached_s", "settled_s", "overshoot"):
            values = [float(row[name]) for row in members if not math.isnan(float(row[name]))]
            out[name] = sum(values) / len(values) if values else math.nan
            if name == "reached_s":
                out["reached_n"] = len(values)
        found.append(out)
    return found


# Heading, column, scale, digits.
_POOL = (
    ("offered", "offered", 1, 0), ("refused", "refused", 1, 0), ("SLO met %", "slo_attainment", 100, 1),
    ("TTFT P99 s", "ttft_p99_s", 1, 2), ("prefix hits %", "prefix_hit_rate", 100, 1),
    ("Jain", "jain", 1, 3), ("Jain 30 s", "jain_windowed", 1, 3), ("Gini", "gini", 1, 3),
    ("min/max", "min_max_ratio", 1, 3), ("service diff avg", "service_difference_avg", 1, 0),
    ("util %", "utilisation", 100, 1), ("work-conserving %", "work_conservation", 100, 1),
    ("wasted tokens", "wasted_tokens", 1, 0), ("attempts/request", "retry_amplification", 1, 2),
    ("GPU-s/1000 good", "gpu_s_per_good_1000_tokens", 1, 2),
)  # fmt: skip
_TENANT = (
    ("offered", "offered", 1, 0), ("refused", "refused", 1, 0), ("SLO met %", "slo_attainment", 100, 1),
    ("TTFT P99 s", "ttft_p99_s", 1, 2), ("prefix hits %", "prefix_hit_rate", 100, 1),
    ("good tok/s", "good_tokens_per_s", 1, 1), ("service", "service", 1, 0), ("of fair share", "service_of_fair", 1, 3),
    ("violation %", "violation", 100, 1), ("TTFT x alone", "isolation_ttft_mean", 1, 2),
    ("E2E x alone", "isolation_e2e_mean", 1, 2), ("false rejects %", "false_reject_share", 100, 1),
    ("late rejects", "late_rejects", 1, 0), ("Retry-After kept %", "retry_after_kept", 100, 1),
    ("too early by s", "retry_after_error_s", 1, 2), ("GPU-s by work", "gpu_s_by_work", 1, 0),
    ("GPU-s by promise", "gpu_s_by_promise", 1, 0),
)  # fmt: skip
_CHANGE = (
    ("at s", "changed_s", 1, 0), ("change", "change", 0, 0), ("reached s", "reached_s", 1, 0),
    ("in runs", "reached_n", 1, 0), ("settled s", "settled_s", 1, 0), ("overshoot %", "overshoot", 100, 0),
)  # fmt: skip


def _table(rows: Sequence[Row], shown: Sequence[tuple[str, str, int, int]]) -> TextTable | None:
    if not rows:
        return None
    names = list(rows[0])
    labels = names[: names.index("tenant") + 1]
    kept = [one for one in shown if any(not _empty(row.get(one[1])) for row in rows)]
    lines = tuple(
        (*(str(row[label]) for label in labels), *(_show(row.get(c), scale, digits) for _, c, scale, digits in kept))
        for row in rows
    )
    return TextTable((*labels, *(head for head, *_ in kept)), lines, len(labels))


def _show(value: object, scale: int, digits: int) -> str:
    if _empty(value):
        return "-"
    return str(value) if isinstance(value, str) else f"{float(str(value)) * scale:,.{digits}f}"


def _empty(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
