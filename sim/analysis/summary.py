"""``summary.csv``: one row per policy, variant and tenant, latency never without the counts beside it.

It runs at the end of every run on up to millions of rows, hence numpy on the columns' category codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sim.analysis.student_t import quantile as student_t
from sim.analysis.text_tables import TextTable
from sim.records import metrics
from sim.records.arrow_columns import codes_of, flags, floats
from sim.records.schema import OUTCOMES, Outcome, variant_columns

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Row = dict[str, str | int | float]

ALL = "all"
STATISTICS = ("mean", "p50", "p95", "p99")
_LEVELS = (0.5, 0.95, 0.99)
LATENCIES = ("ttft", "tpot", "e2e")
LATENCY_COLUMNS = tuple(f"{metric}_{name}_s" for metric in LATENCIES for name in STATISTICS)

_SHARES = frozenset({"slo_attainment", "violation", "refused_share", "unfinished_share"})
_LOW_PRIORITY = "low_priority"
_UNSTATED = "unstated"


def summarise(requests: pa.Table, *, horizon_s: float, warmup_s: float, tenants: Sequence[str] = ()) -> list[Row]:
    """Return the rows of ``summary.csv``, tenants in the order of the table and then `ALL`.

    A request belongs to the summary when its first attempt arrived at ``warmup_s`` or later; it counts once, by its
    last attempt. So offered = finished + refused + evicted + failed + cancelled + unfinished, always.

    Parameters
    ----------
    tenants : those that get a row even where they made no request.

    Columns
    -------
    policy, one per varied parameter, tenant, replications.
    offered, admitted : requests; admitted ones were sent to a replica (in their last attempt).
    finished, refused, refused_low_priority and refused_<other reason>, evicted, failed, cancelled, unfinished.
    attempts : of those requests, retries included.
    slo_attainment : share of the offered requests with an objective that met it (`metrics.slo_met`); NaN if none has.
    goodput_per_s : finished requests that met their objective, or have none, per second after the warm-up.
    output_tokens_per_s : tokens that came back in any attempt of those requests, per second after the warm-up.
    latency_n : the finished requests behind the latency columns, all replications together (those with one token
        have no ``tpot``).
    ttft, tpot, e2e _mean_s, _p50_s, _p95_s, _p99_s : over finished requests; quantiles interpolate linearly.

    With several replications every column but ``latency_n`` is the mean over them, and each latency column has
    ``_ci_low`` and ``_ci_high``: the 95 % Student-t interval of that mean.
    """
    span_s = horizon_s - warmup_s
    if not span_s > 0:
        raise ValueError(f"warmup_s {warmup_s} leaves nothing of horizon_s {horizon_s}; give a shorter warm-up")
    if not requests.num_rows:
        return []
    columns = _read(requests, warmup_s, tenants)
    rows: list[Row] = []
    n = len(columns.tenants)
    for labels, cells in columns.cases:
        for i, name in enumerate((*columns.tenants, ALL)):
            part = slice(0, n) if name is ALL else slice(i, i + 1)
            each = [_measure(columns, slice(c * n + part.start, c * n + part.stop), span_s) for c in cells]
            row: Row = {**labels, "tenant": name, "replications": len(each)}
            rows.append(row | (each[0] if len(each) == 1 else _average(each)))
    return rows


def with_violations(rows: Sequence[Row], stats: Mapping[str, Any]) -> list[Row]:
    """Return `summarise`'s rows of one run with a column ``violation``: see `sim.analysis.entitlement_violation`.

    Parameters
    ----------
    stats : what the manifest says of the run; ``violation_by_tenant`` in it, where there was anything to promise.
    """
    found = stats.get("violation_by_tenant", {})
    return [{**row, "violation": found.get(row["tenant"], math.nan)} for row in rows]


def average_cells(measures: Sequence[Row]) -> list[Row]:
    """Return `summarise`'s rows for many replications from its rows for each of them, in the order of the first ones.

    A column that a replication lacks, such as the count of a reason for refusal that it never met, is 0 there.
    """
    names = list(dict.fromkeys(name for row in measures for name in row if name != "replication"))
    end = names.index("tenant") + 1 if names else 0
    reasons = sorted(name for name in names if name.startswith("refused_") and name != f"refused_{_LOW_PRIORITY}")
    values = [name for name in names[end:] if name != "replications" and name not in reasons]
    after = values.index("evicted") if values else 0
    values[after:after] = reasons
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in measures:
        groups.setdefault(tuple(row[name] for name in names[:end]), []).append(row)
    rows: list[Row] = []
    for key, found in groups.items():
        each: list[Row] = [{name: row.get(name, 0) for name in values} for row in found]
        labels = dict(zip(names[:end], key, strict=True))
        rows.append({**labels, "replications": len(each)} | (each[0] if len(each) == 1 else _average(each)))
    return rows


def summary_table(rows: Sequence[Mapping[str, str | int | float]]) -> TextTable | None:
    """Return the summary as a table for a terminal, counts first, then latency; None if there is no row."""
    if not rows:
        return None
    names = list(rows[0])
    labels = names[: names.index("tenant") + 1]
    promised = any(not math.isnan(float(row.get(_VIOLATION[1], math.nan))) for row in rows)
    shown = (*_SHOWN[:_LATENCY_AT], _VIOLATION, *_SHOWN[_LATENCY_AT:]) if promised else _SHOWN
    heads = (*labels, *(head for head, _, _, _ in shown))
    cells = [
        (*(str(row[label]) for label in labels),
         *(_show(row.get(column, math.nan), scale, digits) for _, column, scale, digits in shown))
        for row in rows
    ]  # fmt: skip
    return TextTable(heads, tuple(cells), len(labels), _FIRST)


def format_table(rows: Sequence[Mapping[str, str | int | float]], width: int | None = None) -> str:
    """Return the summary as aligned text; None: with every column, whatever its width."""
    table = summary_table(rows)
    return "no requests" if table is None else table.text(width)


# Heading, column, scale, digits after the point. Milliseconds only here, where they are printed.
_SHOWN = (
    ("offered", "offered", 1, 0),
    ("admitted", "admitted", 1, 0),
    ("finished", "finished", 1, 0),
    ("refused", "refused", 1, 0),
    ("SLO met %", "slo_attainment", 100, 1),
    ("TTFT p50 s", "ttft_p50_s", 1, 2),
    ("TTFT p99 s", "ttft_p99_s", 1, 2),
    ("TPOT mean ms", "tpot_mean_s", 1000, 1),
    ("TPOT p99 ms", "tpot_p99_s", 1000, 1),
    ("E2E p99 s", "e2e_p99_s", 1, 2),
    ("output tok/s", "output_tokens_per_s", 1, 1),
)
_VIOLATION = ("violated %", "violation", 100, 1)  # where something was promised
_LATENCY_AT = 5
# Where there is no room for all: what was asked and turned away, then whether the objective held, then latency.
_FIRST = ("offered", "refused", "SLO met %", "TTFT p99 s", "output tok/s", "finished", "E2E p99 s", "violated %")


def _show(value: str | int | float, scale: int, digits: int) -> str:
    number = float(value) * scale
    if math.isnan(number):
        return "-"
    return f"{number:.{digits}f}" if digits else f"{number:.1f}".removesuffix(".0")  # a mean count may have a half


# --------------------------------------------------------------------------------------------------------------------
# One replication


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """Last attempts after the warm-up, sorted by cell (a case's replication) and then tenant.

    Group ``cell * len(tenants) + tenant`` is the slice ``bounds[group]:bounds[group + 1]``. ``cases`` gives each
    case's labels and cells. ``attempts`` and ``output_tokens`` are sums over all attempts, per group. Latencies are
    NaN but for finished requests.
    """

    cases: list[tuple[dict[str, str], list[int]]]
    tenants: list[str]
    reasons: list[tuple[str, int]]
    bounds: Ints
    attempts: Ints
    output_tokens: Floats
    outcome: Ints
    reason: Ints
    admitted: NDArray[np.bool_]
    has_slo: NDArray[np.bool_]
    slo_met: NDArray[np.bool_]
    latency: dict[str, Floats]


class _Groups(NamedTuple):
    """Which group each row belongs to, a cell's tenant; ``total`` of them, tenants within cells."""

    of: NDArray[np.int32]
    total: int
    cases: list[tuple[dict[str, str], list[int]]]
    tenants: list[str]


def _grouped(requests: pa.Table, asked: Sequence[str]) -> _Groups:
    case = np.zeros(requests.num_rows, dtype=np.int64)
    labels: list[dict[str, str]] = [{}]
    for name in ("policy", *variant_columns(requests)):
        codes, categories = codes_of(requests, name)
        case, kept = _dense(case * len(categories) + codes)
        pairs = [divmod(int(key), len(categories)) for key in kept]
        labels = [{**labels[before], name: categories[code]} for before, code in pairs]
    replication, replications = _dense(floats(requests, "replication").astype(np.int64))
    cell, kept = _dense(case * len(replications) + replication)
    case_of_cell = (kept // len(replications)).tolist()
    cases = [(label, [c for c, of in enumerate(case_of_cell) if of == i]) for i, label in enumerate(labels)]
    codes, categories = codes_of(requests, "tenant")
    present = np.bincount(codes, minlength=len(categories)) > 0
    present |= np.isin(categories, asked)
    tenants = [name for name, there in zip(categories, present, strict=True) if there]
    cell *= len(tenants)
    cell += (np.cumsum(present) - 1)[codes]
    return _Groups(cell.astype(np.int32), len(case_of_cell) * len(tenants), cases, tenants)


def _read(requests: pa.Table, warmup_s: float, asked: Sequence[str]) -> _Columns:
    # A million requests make arrays of eight megabytes, so none is kept longer than it is needed.
    groups = _grouped(requests, asked)
    arrived = floats(requests, "first_arrival_s")
    counted = arrived >= warmup_s
    of_counted = groups.of[counted]
    attempts = np.bincount(of_counted, minlength=groups.total)
    tokens = floats(requests, "output_tokens")[counted]
    output_tokens = np.bincount(of_counted, weights=tokens, minlength=groups.total).astype(float)
    del of_counted, tokens
    rows = np.flatnonzero(counted & flags(requests, "final"))
    # Sixteen bits where they suffice: numpy sorts those by radix, several times faster.
    order = groups.of[rows].astype(np.uint16 if groups.total < 2**16 else np.int32)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(order, minlength=groups.total))])
    rows = rows[np.argsort(order, kind="stable")]

    def column(name: str) -> Floats:
        return floats(requests, name)[rows]

    codes, categories = codes_of(requests, "outcome")
    outcome = np.asarray([OUTCOMES.index(category) for category in categories[:-1]])[codes[rows]]
    finished = outcome == Outcome.FINISHED
    codes, categories = codes_of(requests, "reason")
    reason = codes[rows]
    first_token, finish = column("first_token_s"), np.where(finished, column("finish_s"), np.nan)
    latency = {
        "ttft": np.where(finished, metrics.ttft_s(first_token, arrived[rows]), np.nan),
        "tpot": metrics.tpot_s(first_token, finish, column("output_tokens")),
        "e2e": metrics.e2e_s(finish, arrived[rows]),
    }
    return _Columns(
        cases=groups.cases,
        tenants=groups.tenants,
        reasons=_order([(categories[i] or _UNSTATED, i) for i in _present(reason[outcome == Outcome.REFUSED])]),
        bounds=bounds,
        attempts=attempts,
        output_tokens=output_tokens,
        outcome=outcome,
        reason=reason,
        admitted=~np.isnan(column("forwarded_s")),
        has_slo=~np.isnan(column("ttft_slo_s")),
        slo_met=flags(requests, "slo_met")[rows],
        latency=latency,
    )


def _measure(columns: _Columns, groups: slice, span_s: float) -> Row:
    """Return one replication's numbers over neighbouring groups: one tenant's, or all tenants'."""
    rows = slice(int(columns.bounds[groups.start]), int(columns.bounds[groups.stop]))
    outcome, has_slo, met = columns.outcome[rows], columns.has_slo[rows], columns.slo_met[rows]
    counts = np.bincount(outcome, minlength=len(OUTCOMES)).tolist()
    refused = outcome == Outcome.REFUSED
    reasons = columns.reason[rows][refused]
    finished = outcome == Outcome.FINISHED
    with_slo = int(has_slo.sum())
    row: Row = {
        "offered": len(outcome),
        "admitted": int(columns.admitted[rows].sum()),
        "finished": counts[Outcome.FINISHED],
        "refused": counts[Outcome.REFUSED],
        **{f"refused_{name}": int((reasons == code).sum()) for name, code in columns.reasons},
        "evicted": counts[Outcome.EVICTED],
        "failed": counts[Outcome.FAILED],
        "cancelled": counts[Outcome.CANCELLED],
        "unfinished": counts[Outcome.RUNNING] + counts[Outcome.WAITING],
        "attempts": int(columns.attempts[groups].sum()),
        "slo_attainment": int((met & has_slo).sum()) / with_slo if with_slo else math.nan,
        "goodput_per_s": int((finished & (met | ~has_slo)).sum()) / span_s,
        "output_tokens_per_s": float(columns.output_tokens[groups].sum()) / span_s,
        "latency_n": counts[Outcome.FINISHED],
    }
    for metric in LATENCIES:
        values = columns.latency[metric][rows]
        values = values[~np.isnan(values)]
        quantiles = metrics.quantiles(values, _LEVELS) if values.size else [math.nan] * len(_LEVELS)
        mean = float(values.mean()) if values.size else math.nan
        row |= {f"{metric}_{name}_s": value for name, value in zip(STATISTICS, [mean, *quantiles], strict=True)}
    return row


# --------------------------------------------------------------------------------------------------------------------
# Several replications


def _average(replications: Sequence[Row]) -> Row:
    """Return the mean of each column over replications, with intervals for latency."""
    row: Row = {}
    for name in replications[0]:
        values = np.asarray([float(replication[name]) for replication in replications])
        values = values[~np.isnan(values)]
        if name == "latency_n":
            row[name] = int(values.sum())
            continue
        row[name] = float(values.mean()) if values.size else math.nan
        if name in LATENCY_COLUMNS:
            row[f"{name}_ci_low"], row[f"{name}_ci_high"] = within_bounds(name, *interval(values))
    return row


def within_bounds(name: str, low: float, high: float) -> tuple[float, float]:
    """Return an interval of one of the summary's measures without what the measure can never be.

    None is below 0; a share is at most 1. Student's t knows of neither. NaN stays NaN.
    """
    most = 1.0 if name in _SHARES else math.inf
    return (max(0.0, low), min(most, high)) if low == low else (low, high)


def interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """Return the Student-t interval of the mean of independent values; NaN for fewer than two.

    References
    ----------
    A. M. Law, "Simulation Modeling and Analysis", 5th ed., 2015, section 9.4.1 (replications).
    """
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = float(student_t((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return float(values.mean()) - half, float(values.mean()) + half


# --------------------------------------------------------------------------------------------------------------------
# Columns as codes


def _present(codes: Ints) -> list[int]:
    """Return which codes there are. `numpy.unique` would import masked arrays, ten milliseconds of a start."""
    found: list[int] = np.flatnonzero(np.bincount(codes)).tolist()
    return found


def _dense(keys: Ints) -> tuple[Ints, Ints]:
    """Renumber small keys as 0, 1, ... without gaps, and return which key each number stands for."""
    present = np.bincount(keys) > 0
    return (np.cumsum(present) - 1)[keys], np.flatnonzero(present)


def _order(reasons: list[tuple[str, Any]]) -> list[tuple[str, int]]:
    """Sort reasons by name behind low priority, which is always shown."""
    found = {name: int(code) for name, code in reasons}
    return [(_LOW_PRIORITY, found.pop(_LOW_PRIORITY, -1)), *sorted(found.items())]
