"""From the attempts that a run kept, simulated or live, to the columns of the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import starmap
from operator import attrgetter
from struct import Struct
from typing import Any, Protocol

import numpy as np

from policies.api import EntitlementSpec
from sim.records.schema import REASONS, Outcome, RequestColumns

_REASON = {"": -1, **{name: i for i, name in enumerate(REASONS)}}
# The numbers of an attempt are read and packed together: column by column takes five times as long.
NUMBERS = {
    "arrival_s": "d", "first_arrival_s": "d", "forwarded_s": "d", "first_token_s": "d", "finish_s": "d",
    "retry_after_s": "d", "workload": "q", "prompt_tokens": "q", "asked_tokens": "q", "delivered_tokens": "q",
    "cached_tokens": "q", "number": "i", "replica": "i", "outcome": "i", "http_status": "i", "preemptions": "i",
    "final": "?",
}  # fmt: skip
numbers_by_name: Callable[[Any], tuple[float, ...]] = attrgetter(*NUMBERS)
_packed = Struct("=" + "".join(NUMBERS.values())).pack
_ROW = np.dtype([(name, f"={code}") for name, code in NUMBERS.items()])
_id_of, _reason_of = attrgetter("request_id"), attrgetter("reason")


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
    attempts: Sequence[Recordable], workload_entitlements: Sequence[str], entitlements: Sequence[EntitlementSpec],
    numbers_of: Callable[[Any], tuple[float, ...]] = numbers_by_name,
) -> RequestColumns:
    """Return the attempts as columns.

    Parameters
    ----------
    workload_entitlements : names the entitlement of each workload.
    numbers_of : returns an attempt's `NUMBERS`, in their order, where something is quicker than asking by name.
    """
    packed = BytesIO()
    packed.writelines(starmap(_packed, map(numbers_of, attempts)))
    rows = np.frombuffer(packed.getbuffer(), _ROW)
    index = {e.name: i for i, e in enumerate(entitlements)}
    entitlement = np.asarray([index[name] for name in workload_entitlements])
    outcome = rows["outcome"]
    return RequestColumns(
        # Not as Python's strings, which take four times as much memory.
        request_id=np.array(list(map(_id_of, attempts)), dtype=np.dtypes.StringDType()),
        attempt=rows["number"],
        final=rows["final"],
        entitlement=entitlement[rows["workload"]],
        entitlements=entitlements,
        prompt_tokens=rows["prompt_tokens"],
        max_output_tokens=rows["asked_tokens"],
        output_tokens=rows["delivered_tokens"],
        cached_tokens=np.maximum(rows["cached_tokens"], 0),
        arrival_s=rows["arrival_s"],
        first_arrival_s=rows["first_arrival_s"],
        forwarded_s=rows["forwarded_s"],
        replica=rows["replica"],
        first_token_s=rows["first_token_s"],
        finish_s=rows["finish_s"],
        outcome=outcome,
        reason=np.fromiter(map(_REASON.__getitem__, map(_reason_of, attempts)), np.int32, len(attempts)),
        http_status=np.where(outcome == Outcome.FINISHED, np.int32(200), rows["http_status"]),
        retry_after_s=rows["retry_after_s"],
        preemptions=rows["preemptions"],
    )
