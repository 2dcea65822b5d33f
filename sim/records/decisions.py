"""``decisions.parquet``: every verdict with the numbers that were compared; ``shadows.parquet``: those of shadows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from policies.api import Arrived, Demote, Event, Evict, Forward, Hold, Instruction, Refuse
from sim.records.arrow_columns import constant

if TYPE_CHECKING:
    from policies.shadow import Opinion


def decisions_table(
    log: Sequence[tuple[float, Event, Sequence[Instruction]]],
    *,
    run_id: str,
    policy: str,
    variant: Mapping[str, str],
    replication: int,
) -> pa.Table:
    """Return a row for each verdict: time, request, attempt, verdict, reason, needed, available, replica.

    ``needed`` and ``available`` are in the unit of the reason (`policies.api.Refuse`), null where nothing was compared.
    """
    rows: list[_Row] = []
    attempts: dict[str, int] = {}
    for now_s, event, instructions in log:
        if isinstance(event, Arrived):
            attempts[event.request.request_id] = event.request.attempt
        for step in instructions:
            row = _row(step)
            if row is not None:
                rows.append((now_s, step_id := row[0], attempts[step_id], *row[1:]))
    times, ids, numbers_, verdicts, reasons, needed, available, replicas = zip(*rows, strict=True) if rows else [()] * 8
    n = len(rows)
    return pa.table(
        {
            "run_id": constant(run_id, n),
            "policy": constant(policy, n),
            **{name: constant(value, n) for name, value in variant.items()},
            "replication": pa.array([replication] * n, pa.int32()),
            "t_s": pa.array(times, pa.float64()),
            "request_id": pa.array(ids, pa.string()),
            "attempt": pa.array(numbers_, pa.int32()),
            "verdict": pa.array(verdicts, pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "needed": pa.array(needed, pa.float64()),
            "available": pa.array(available, pa.float64()),
            "replica": pa.array(replicas, pa.int32()),
        }
    )


def opinions_table(
    opinions: Sequence[Opinion], *, run_id: str, policy: str, variant: Mapping[str, str], replication: int
) -> pa.Table:
    """Return a row for each attempt and shadow: what the shadow said beside what the acting policy did.

    In the order of arrival. ``decided_s`` is when the shadow's last word came, ``needed`` and ``available`` as above.
    """
    rows = sorted(opinions, key=lambda one: (one.t_s, one.request_id, one.attempt, one.shadow))
    n = len(rows)

    def texts(name: str) -> pa.Array:
        return pa.array([getattr(one, name) or None for one in rows], pa.string())

    def numbers(name: str) -> pa.Array:
        return pa.array([getattr(one, name) for one in rows], pa.float64())

    return pa.table(
        {
            "run_id": constant(run_id, n),
            "policy": constant(policy, n),
            **{name: constant(value, n) for name, value in variant.items()},
            "replication": pa.array([replication] * n, pa.int32()),
            "t_s": numbers("t_s"),
            "request_id": texts("request_id"),
            "attempt": pa.array([one.attempt for one in rows], pa.int32()),
            "tenant": texts("tenant").dictionary_encode(),
            "entitlement": texts("entitlement").dictionary_encode(),
            "acting_verdict": texts("acting").dictionary_encode(),
            "acting_reason": texts("acting_reason").dictionary_encode(),
            "shadow": texts("shadow").dictionary_encode(),
            "verdict": texts("verdict").dictionary_encode(),
            "reason": texts("reason").dictionary_encode(),
            "needed": numbers("needed"),
            "available": numbers("available"),
            "retry_after_s": numbers("retry_after_s"),
            "decided_s": numbers("decided_s"),
        }
    )


_Verdict = tuple[str, str, str | None, float | None, float | None, int | None]
_Row = tuple[float, str, int, str, str | None, float | None, float | None, int | None]


def _row(step: Instruction) -> _Verdict | None:
    match step:
        case Forward(request_id, replica_id):
            return (request_id, "forward", None, None, None, replica_id)
        case Demote(request_id):
            return (request_id, "demote", None, None, None, None)
        case Hold(request_id, reason):
            return (request_id, "hold", reason.value, None, None, None)
        case Refuse(request_id, reason, _, _, needed, available):
            return (request_id, "refuse", reason.value, needed, available, None)
        case Evict(request_id, reason):
            return (request_id, "evict", reason.value, None, None, None)
        case _:
            return None
