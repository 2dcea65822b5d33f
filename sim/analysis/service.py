"""Who got how much service, and who asked for how much: weighted tokens by tenant and window, of one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sim.analysis.windowed_sums import per_window
from sim.records.arrow_columns import codes_of, flags, floats
from sim.records.schema import OUTCOMES, Outcome

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""w_p and w_q, what a token of prompt and of output counts (VTC's own choice)."""


@dataclass(frozen=True, slots=True, eq=False)
class Attempts:
    """The attempts of one run as arrays, one element each; NaN where an attempt never got there."""

    tenants: list[str]
    tenant: Ints
    attempt: Ints
    final: NDArray[np.bool_]
    request_id: Ints
    prompt_tokens: Floats
    cached_tokens: Floats
    max_output_tokens: Floats
    output_tokens: Floats
    arrival_s: Floats
    first_arrival_s: Floats
    forwarded_s: Floats
    first_token_s: Floats
    finish_s: Floats
    retry_after_s: Floats
    outcome: Ints
    has_slo: NDArray[np.bool_]
    slo_met: NDArray[np.bool_]

    def of(self, tenant: int) -> NDArray[np.bool_]:
        """Return which attempts are a tenant's."""
        return np.asarray(self.tenant == tenant)


def attempts_of(requests: pa.Table, *, from_s: float = 0.0) -> Attempts:
    """Return the attempts of requests that first arrived at ``from_s`` or later, in the order of the table."""
    if from_s > 0:
        requests = requests.filter(pa.array(floats(requests, "first_arrival_s") >= from_s))
    codes, names = codes_of(requests, "tenant")
    kept = np.unique(codes)
    outcomes, texts = codes_of(requests, "outcome")
    as_code = np.asarray([OUTCOMES.index(text) if text else -1 for text in texts])
    ids = requests.column("request_id").combine_chunks().dictionary_encode()
    return Attempts(
        tenants=[names[code] for code in kept],
        tenant=np.searchsorted(kept, codes),
        attempt=floats(requests, "attempt").astype(np.int64),
        final=flags(requests, "final"),
        request_id=_indices(ids),
        prompt_tokens=floats(requests, "prompt_tokens"),
        cached_tokens=floats(requests, "cached_tokens"),
        max_output_tokens=floats(requests, "max_output_tokens"),
        output_tokens=floats(requests, "output_tokens"),
        arrival_s=floats(requests, "arrival_s"),
        first_arrival_s=floats(requests, "first_arrival_s"),
        forwarded_s=floats(requests, "forwarded_s"),
        first_token_s=floats(requests, "first_token_s"),
        finish_s=floats(requests, "finish_s"),
        retry_after_s=floats(requests, "retry_after_s"),
        outcome=as_code[outcomes],
        has_slo=~np.isnan(floats(requests, "ttft_slo_s")),
        slo_met=flags(requests, "slo_met"),
    )


def _indices(column: pa.Array) -> Ints:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    indices = column.indices
    data = np.frombuffer(indices.buffers()[1], dtype=np.int32, count=indices.offset + len(indices))
    return data[indices.offset :].astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """Weighted tokens of each tenant (rows) in each window (columns).

    Attributes
    ----------
    served : w_p for every prompt token at its first token, w_q for every output token, spread evenly until the last.
    asked : what the requests that first arrived in a window would be worth, served in full.
    waiting : requests at the gateway or in an engine's queue at each of ``edges_s``.
    """

    tenants: list[str]
    edges_s: Floats
    served: Floats
    asked: Floats
    waiting: Ints

    @property
    def window_s(self) -> float:
        """The length of a window."""
        return float(self.edges_s[1] - self.edges_s[0])


def service_of(
    found: Attempts,
    *,
    from_s: float,
    end_s: float,
    window_s: float,
    prompt_weight: float = PROMPT_WEIGHT,
    output_weight: float = OUTPUT_WEIGHT,
) -> Service:
    """Return the service of a run in windows from ``from_s`` on; what is left at the end is no whole window."""
    count = max(1, math.floor((end_s - from_s) / window_s + 1e-9))
    edges_s: Floats = from_s + window_s * np.arange(count + 1, dtype=np.float64)
    n = len(found.tenants)
    served, asked = np.zeros((n, count)), np.zeros((n, count))
    waiting = np.zeros((n, count + 1), dtype=np.int64)
    stop_s = np.where(np.isnan(found.finish_s), end_s, found.finish_s)
    reached = ~np.isnan(found.first_token_s)
    wanted = expected_output_tokens(found)
    # Who had neither a first token nor an end still waits when the run stops.
    until_s = np.where(reached, found.first_token_s, np.where(np.isnan(found.finish_s), np.inf, found.finish_s))
    for i in range(n):
        mine = found.of(i)
        rows = mine & reached
        served[i] = per_window(
            edges_s, found.first_token_s[rows], stop_s[rows], prompt_weight * found.prompt_tokens[rows],
            output_weight * found.output_tokens[rows],
        )  # fmt: skip
        fresh = mine & (found.attempt == 1)
        worth = prompt_weight * found.prompt_tokens[fresh] + output_weight * wanted[fresh]
        asked[i] = np.histogram(found.arrival_s[fresh], edges_s, weights=worth)[0]
        came, went = np.sort(found.arrival_s[mine]), np.sort(until_s[mine])
        waiting[i] = np.searchsorted(came, edges_s, side="right") - np.searchsorted(went, edges_s, side="right")
    return Service(found.tenants, edges_s, served, asked, waiting)


def expected_output_tokens(found: Attempts) -> Floats:
    """Return the output of each attempt had it been served in full.

    Known where it finished. Else what was asked for times the share that finished requests of the tenant used of it;
    where nothing was asked for, the tenant's mean output.
    """
    output = found.output_tokens.copy()
    finished = found.outcome == Outcome.FINISHED
    asked = np.nan_to_num(found.max_output_tokens)
    for i in range(len(found.tenants)):
        mine = found.of(i)
        known = mine & finished
        stated = known & (asked > 0)
        share = float(found.output_tokens[stated].sum() / asked[stated].sum()) if stated.any() else 1.0
        typical = float(found.output_tokens[known].mean()) if known.any() else 0.0
        rest = mine & ~finished
        guess = np.where(asked[rest] > 0, asked[rest] * share, typical)
        output[rest] = np.maximum(output[rest], guess)
    return output


def weights_of(tenants: Sequence[str], entitlements: Sequence[Mapping[str, object]]) -> Floats:
    """Return the weight of each tenant: the tokens/s promised to it, or else its slots, or else 1.

    A dimension counts only where every tenant is promised some of it; otherwise all tenants weigh the same.
    """
    for dimension in ("tokens_per_s", "slots"):
        sums = dict.fromkeys(tenants, 0.0)
        for one in entitlements:
            baseline = one.get("baseline")
            promised = baseline.get(dimension) if isinstance(baseline, Mapping) else None
            if one.get("tenant") in sums and promised:
                sums[str(one["tenant"])] += float(promised)
        if sums and all(value > 0 for value in sums.values()):
            return np.asarray([sums[name] for name in tenants])
    return np.ones(len(tenants))


def backlogged_gap(found: Service) -> float:
    """Return the largest |W_f - W_g| over stretches in which tenants f and g both have requests waiting; 0 if none.

    W is the service of a stretch of windows at all of whose edges both wait: what VTC bounds by 2 max(w_p L, w_q M).
    """
    cumulated = np.concatenate([np.zeros((len(found.tenants), 1)), np.cumsum(found.served, axis=1)], axis=1)
    worst = 0.0
    for f in range(len(found.tenants)):
        both = (found.waiting[f] > 0) & (found.waiting[f + 1 :] > 0)
        ahead = cumulated[f] - cumulated[f + 1 :]
        for pair, gap in zip(both, ahead, strict=True):
            if not pair.any():
                continue
            cuts = np.flatnonzero(np.diff(np.concatenate([[False], pair, [False]]).astype(np.int8)))
            for begin, end in zip(cuts[::2], cuts[1::2], strict=True):
                worst = max(worst, float(np.ptp(gap[begin:end])))
    return worst
