"""What a run measures: the per-attempt table and the timeline. `sim.records.result_folder` keeps them in a folder.

The per-request table and the timeline are the only measurements a run writes and the only ones analysis reads;
simulated and live runs write the same columns. Rows repeat the run's parameters, so tables of several runs
concatenate without bookkeeping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from policies.api import EntitlementSpec, Reason
from sim.records import metrics
from sim.records.arrow_columns import CATEGORY, categories, constant, constants, numbers, texts


class Outcome(IntEnum):
    """How an attempt stood when it, or the run, ended. The lower-case name is what the table holds."""

    FINISHED = 0
    REFUSED = 1
    EVICTED = 2
    CANCELLED = 3
    FAILED = 4
    RUNNING = 5
    WAITING = 6


OUTCOMES = tuple(outcome.name.lower() for outcome in Outcome)
REASONS = tuple(str(reason) for reason in Reason)
CUT_OFF = (Outcome.EVICTED, Outcome.CANCELLED, Outcome.FAILED)

_ABSENT = {"max_output_tokens": 0, "replica": -1, "http_status": 0}  # null in the table
_REQUEST_TYPES = {
    "run_id": CATEGORY,
    "policy": CATEGORY,
    "replication": pa.int32(),
    "request_id": pa.string(),
    "attempt": pa.int32(),
    "final": pa.bool_(),
    "tenant": CATEGORY,
    "entitlement": CATEGORY,
    "service_class": CATEGORY,
    "prompt_tokens": pa.int64(),
    "max_output_tokens": pa.int64(),
    "output_tokens": pa.int64(),
    "cached_tokens": pa.int64(),
    "arrival_s": pa.float64(),
    "first_arrival_s": pa.float64(),
    "forwarded_s": pa.float64(),
    "replica": pa.int32(),
    "first_token_s": pa.float64(),
    "finish_s": pa.float64(),
    "outcome": CATEGORY,
    "reason": CATEGORY,
    "http_status": pa.int32(),
    "retry_after_s": pa.float64(),
    "preemptions": pa.int32(),
    "ttft_slo_s": pa.float64(),
    "slo_met": pa.bool_(),
}
_TIMELINE_TYPES = {
    "run_id": CATEGORY,
    "policy": CATEGORY,
    "replication": pa.int32(),
    "t_s": pa.float64(),
    "scope": CATEGORY,
    "name": CATEGORY,
    "metric": CATEGORY,
    "value": pa.float64(),
}
FIXED_COLUMNS = frozenset(_REQUEST_TYPES) | frozenset(_TIMELINE_TYPES)


def request_schema(variant: Sequence[str] = ()) -> pa.Schema:
    """Return the schema of ``requests.parquet`` with one text column for each varied parameter."""
    return _schema(_REQUEST_TYPES, variant)


def timeline_schema(variant: Sequence[str] = ()) -> pa.Schema:
    """Return the schema of ``timeline.parquet`` with one text column for each varied parameter."""
    return _schema(_TIMELINE_TYPES, variant)


def variant_columns(table: pa.Table) -> list[str]:
    """Return the names of the varied parameters of a table, in order."""
    return [name for name in table.column_names if name not in FIXED_COLUMNS]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RequestColumns:
    """Attempts of one run, one list or array per column, one element per attempt.

    Times are seconds from the start of the run, NaN where the attempt never got there.

    Attributes
    ----------
    final : True on a request's last attempt, False on those that were tried again.
    entitlement : index into ``entitlements``, which give name, tenant, service class and objective.
    max_output_tokens : what the client asked for; 0 where it named no limit (null in the table).
    arrival_s, first_arrival_s : of this attempt and of the request's first.
    forwarded_s : when the gateway sent it to a replica, the first time; ``replica`` is the last that it was sent to
        (-1, null in the table, where it was not sent).
    finish_s : when the attempt ended, however it ended.
    outcome : values of `Outcome`.
    reason : index into ``REASONS``, -1 for none.
    http_status : 0 for none yet.
    retry_after_s : what the client was told, NaN for nothing.
    preemptions : how often the replica took the attempt's KV blocks and computed it again.
    """

    request_id: Sequence[str] | NDArray[np.object_]
    attempt: ArrayLike
    final: ArrayLike
    entitlement: ArrayLike
    entitlements: Sequence[EntitlementSpec]
    prompt_tokens: ArrayLike
    max_output_tokens: ArrayLike
    output_tokens: ArrayLike
    cached_tokens: ArrayLike
    arrival_s: ArrayLike
    first_arrival_s: ArrayLike
    forwarded_s: ArrayLike
    replica: ArrayLike
    first_token_s: ArrayLike
    finish_s: ArrayLike
    outcome: ArrayLike
    reason: ArrayLike
    http_status: ArrayLike
    retry_after_s: ArrayLike
    preemptions: ArrayLike


@dataclass(frozen=True, slots=True, eq=False)
class TimelineBlock:
    """Metrics of one thing sampled together: ``metrics[m][i]`` was true at ``t_s[i]`` seconds.

    ``scope`` is pool, replica or entitlement and ``name`` says which. NaN values become null.
    """

    scope: str
    name: str
    t_s: ArrayLike
    metrics: Mapping[str, ArrayLike]


def objectives(columns: RequestColumns) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the TTFT objective of each attempt, NaN for none, and whether it was met (`metrics.slo_met`)."""
    arrived, first_token = _floats(columns.first_arrival_s), _floats(columns.first_token_s)
    slos = [math.nan if e.ttft_slo_s is None else e.ttft_slo_s for e in columns.entitlements]
    slo = np.asarray(slos, dtype=np.float64)[np.asarray(columns.entitlement, dtype=np.int32)]
    cut_off = np.isin(np.asarray(columns.outcome, dtype=np.int32), CUT_OFF)
    return slo, metrics.slo_met(metrics.ttft_s(first_token, arrived), slo, cut_off)


def requests_table(
    columns: RequestColumns, *, run_id: str, policy: str, variant: Mapping[str, str], replication: int
) -> pa.Table:
    """Return the attempts of one run with the columns of ``requests.parquet``.

    ``variant`` maps the dotted path of each varied parameter to its value as text.
    """
    n = len(columns.request_id)
    entitlement = np.asarray(columns.entitlement, dtype=np.int32)
    outcome = np.asarray(columns.outcome, dtype=np.int32)
    slo, met = objectives(columns)

    def label(names: Sequence[str]) -> pa.Array:
        """Label each attempt by its entitlement."""
        unique = list(dict.fromkeys(names))
        return categories(np.asarray([unique.index(name) for name in names], dtype=np.int32)[entitlement], unique)

    special = {
        "run_id": constant(run_id, n),
        "policy": constant(policy, n),
        **{name: constant(value, n) for name, value in variant.items()},
        "replication": numbers(np.full(n, replication), pa.int32()),
        "request_id": texts(columns.request_id),
        "tenant": label([e.tenant for e in columns.entitlements]),
        "entitlement": label([e.name for e in columns.entitlements]),
        "service_class": label([str(e.service_class) for e in columns.entitlements]),
        "outcome": categories(outcome, OUTCOMES),
        "reason": categories(np.asarray(columns.reason, dtype=np.int32), REASONS),
        "ttft_slo_s": numbers(slo, pa.float64(), np.isnan(slo)),
        "slo_met": numbers(met, pa.bool_(), np.isnan(slo)),
    }
    schema = request_schema(list(variant))
    arrays = []
    for field in schema:
        if field.name in special:
            arrays.append(special[field.name])
            continue
        values = np.asarray(getattr(columns, field.name))
        if pa.types.is_floating(field.type):
            values = values.astype(np.float64, copy=False)
            arrays.append(numbers(values, field.type, np.isnan(values)))
        else:
            absent = _ABSENT.get(field.name)
            arrays.append(numbers(values, field.type, None if absent is None else values == absent))
    return pa.Table.from_arrays(arrays, schema=schema)


def timeline_table(
    blocks: Iterable[TimelineBlock], *, run_id: str, policy: str, variant: Mapping[str, str], replication: int
) -> pa.Table:
    """Return blocks of samples in the long form of ``timeline.parquet``, in the order of the blocks."""
    scopes: dict[str, int] = {}
    names: dict[str, int] = {}
    metrics: dict[str, int] = {}
    codes: list[tuple[int, int, int]] = []
    series: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for block in blocks:
        t_s = _floats(block.t_s)
        scope, name = scopes.setdefault(block.scope, len(scopes)), names.setdefault(block.name, len(names))
        for metric, values in block.metrics.items():
            sampled = _floats(values)
            if sampled.shape != t_s.shape:
                problem = f"{block.scope} {block.name}: {metric} has {sampled.size} values for {t_s.size} times"
                raise ValueError(f"{problem}; give one value for each t_s")
            series.append((t_s, sampled))
            codes.append((scope, name, metrics.setdefault(metric, len(metrics))))
    lengths = [t_s.size for t_s, _ in series]
    n = sum(lengths)
    # A thousand entitlements make millions of rows: each column is made once, and nothing beside it.
    same = constants([run_id, policy, *variant.values()], n)
    replications = numbers(np.full(n, replication, np.int32), pa.int32())
    times = numbers(np.concatenate([np.empty(0), *(t_s for t_s, _ in series)]), pa.float64())
    of_each = np.asarray(codes, dtype=np.int32).reshape(-1, 3)
    texts_of = [
        categories(np.repeat(of_each[:, i], lengths), list(labels)) for i, labels in enumerate((scopes, names, metrics))
    ]
    sampled = np.concatenate([np.empty(0), *(values for _, values in series)])
    series.clear()
    arrays = [*same, replications, times, *texts_of, numbers(sampled, pa.float64(), np.isnan(sampled))]
    return pa.Table.from_arrays(arrays, schema=timeline_schema(list(variant)))


def join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the tables of several runs as one, with one list of categories for each text column."""
    return pa.concat_tables(tables).unify_dictionaries()


def _schema(types: Mapping[str, pa.DataType], variant: Sequence[str]) -> pa.Schema:
    clash = sorted(set(variant) & FIXED_COLUMNS)
    if clash:
        raise ValueError(f"a varied parameter is called {clash[0]!r} like a column of the records; use its dotted path")
    fields = []
    for name, kind in types.items():
        if name == "replication":
            fields += [pa.field(path, CATEGORY) for path in variant]
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)
