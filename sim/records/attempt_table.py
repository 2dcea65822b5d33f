"""From the attempts that a run kept, simulated or live, to the columns of the records."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policies.api import EntitlementSpec
from sim.records.schema import REASONS, Outcome, RequestColumns

_REASON = {"": -1, **{name: i for i, name in enumerate(REASONS)}}


class Recordable(Protocol):
    """An attempt of a request; times in seconds from the start of the run, NaN until reached.

    Attributes
    ----------
    number : 1 for the first attempt; a retry shares ``request_id`` with it.
    workload : index of the workload that asks.
    asked_tokens : max_tokens as the client gives it; 0 where it names none.
    delivered_tokens : output that had come back when the attempt ended.
    cached_tokens : of its prompt, found in the KV cache; -1 where that is not known.
    replica : -1 where none is known.
    reason : one of `sim.records.schema.REASONS`, or empty.
    """

    request_id: str
    number: int
    workload: int
    final: bool
    prompt_tokens: int
    asked_tokens: int
    delivered_tokens: int
    cached_tokens: int
    arrival_s: float
    first_arrival_s: float
    forwarded_s: float
    first_token_s: float
    finish_s: float
    retry_after_s: float
    replica: int
    outcome: Outcome
    reason: str
    http_status: int
    preemptions: int


def attempt_columns(
    attempts: Sequence[Recordable], workload_entitlements: Sequence[str], entitlements: Sequence[EntitlementSpec]
) -> RequestColumns:
    """Return the attempts as columns.

    ``workload_entitlements`` names the entitlement of each workload.
    """
    n = len(attempts)

    def column(name: str, dtype: type) -> NDArray[Any]:
        return np.fromiter(map(attrgetter(name), attempts), dtype, n)

    index = {e.name: i for i, e in enumerate(entitlements)}
    entitlement = np.asarray([index[name] for name in workload_entitlements])
    outcome = column("outcome", np.int32)
    return RequestColumns(
        # Not as Python's strings, which take four times as much memory.
        request_id=np.array([a.request_id for a in attempts], dtype=np.dtypes.StringDType()),
        attempt=column("number", np.int32),
        final=column("final", np.bool_),
        entitlement=entitlement[column("workload", np.int64)],
        entitlements=entitlements,
        prompt_tokens=column("prompt_tokens", np.int64),
        max_output_tokens=column("asked_tokens", np.int64),
        output_tokens=column("delivered_tokens", np.int64),
        cached_tokens=np.maximum(column("cached_tokens", np.int64), 0),
        arrival_s=column("arrival_s", np.float64),
        first_arrival_s=column("first_arrival_s", np.float64),
        forwarded_s=column("forwarded_s", np.float64),
        replica=column("replica", np.int32),
        first_token_s=column("first_token_s", np.float64),
        finish_s=column("finish_s", np.float64),
        outcome=outcome,
        reason=np.fromiter((_REASON[a.reason] for a in attempts), np.int32, n),
        http_status=np.where(outcome == Outcome.FINISHED, 200, column("http_status", np.int32)),
        retry_after_s=column("retry_after_s", np.float64),
        preemptions=column("preemptions", np.int32),
    )
