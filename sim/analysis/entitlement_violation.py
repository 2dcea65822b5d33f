"""How far a run kept what it promised: the entitlement violation.

    violation = sum of max(0, min(demand, baseline) - service) / sum of min(demand, baseline)

over windows of time, in tokens of prompt and output. Demand is what first attempts ask for, refused or not, spread
over the time that serving it would take unhindered; service is what came back, in any attempt. Unhindered is the fast
tenth of the entitlement's own finished requests: a run that is slow throughout looks better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from policies.api import EntitlementSpec
from sim.analysis.windowed_sums import per_window as _per_window
from sim.records.metrics import quantiles
from sim.records.schema import Outcome, RequestColumns

Floats = NDArray[np.float64]

WINDOW_S = 10.0
_FAST = 0.1


def shortfalls(
    columns: RequestColumns, end_s: float, window_s: float = WINDOW_S, *, from_s: float = 0.0
) -> dict[str, tuple[float, float]]:
    """Return the tokens not served and those owed, for each entitlement that has tokens/s promised and met with demand.

    A baseline counts from ``from_s`` to ``until_s`` of its entitlement; windows begin at ``from_s`` of the run. The
    last one, whose service may have been cut off by the end of the run, is left out.
    """
    found: dict[str, tuple[float, float]] = {}
    which = np.asarray(columns.entitlement)
    by_entitlement = np.argsort(which, kind="stable")  # once for all: a look at every row for each costs their product
    bounds = np.searchsorted(which[by_entitlement], np.arange(len(columns.entitlements) + 1))
    whole_s = math.floor(max(0.0, end_s - from_s) / window_s) * window_s
    edges_s = from_s + np.arange(0.0, whole_s + window_s / 2, window_s)
    for index, spec in enumerate(columns.entitlements):
        promised = spec.baseline.tokens_per_s
        if not promised or len(edges_s) < 3:
            continue
        rows = by_entitlement[bounds[index] : bounds[index + 1]]
        owed, served = _owed_and_served(columns, rows, edges_s, end_s)
        in_force_s = np.clip(np.minimum(edges_s[1:], spec.until_s) - np.maximum(edges_s[:-1], spec.from_s), 0, None)
        owed = np.minimum(owed, promised * in_force_s)[:-1]
        total = float(owed.sum())
        if total > 0:
            found[spec.name] = float(np.maximum(owed - served[:-1], 0.0).sum()), total
    return found


def violations(
    columns: RequestColumns, end_s: float, window_s: float = WINDOW_S, *, from_s: float = 0.0
) -> dict[str, float]:
    """Return the violation, from 0 to 1, of each entitlement that `shortfalls` has."""
    found = shortfalls(columns, end_s, window_s, from_s=from_s)
    return {name: unserved / owed for name, (unserved, owed) in found.items()}


def by_tenant(
    found: Mapping[str, tuple[float, float]], entitlements: Iterable[EntitlementSpec], every: str
) -> dict[str, float]:
    """Return the violation of each tenant over all its entitlements, and under ``every`` that of all together."""
    sums: dict[str, tuple[float, float]] = {}
    for spec in entitlements:
        for name in (spec.tenant, every) if spec.name in found else ():
            unserved, owed = sums.get(name, (0.0, 0.0))
            sums[name] = unserved + found[spec.name][0], owed + found[spec.name][1]
    return {name: unserved / owed for name, (unserved, owed) in sums.items()}


def lost_tokens(columns: RequestColumns) -> int:
    """Return the output tokens of attempts that were evicted or failed: computed, and of no use to anybody."""
    lost = np.isin(np.asarray(columns.outcome), (Outcome.EVICTED, Outcome.FAILED))
    return int(np.asarray(columns.output_tokens)[lost].sum())


def _owed_and_served(
    columns: RequestColumns, rows: NDArray[np.int64], edges_s: Floats, end_s: float
) -> tuple[Floats, Floats]:
    """Return the tokens asked for and those that came back in each window."""
    # One after the other, and only of the rows that count: a million requests make arrays of eight megabytes.
    served = _served(columns, rows[~np.isnan(_of(columns, "first_token_s", rows))], edges_s, end_s)
    finished = rows[_of(columns, "outcome", rows) == Outcome.FINISHED]
    fresh = rows[_of(columns, "attempt", rows) == 1]
    return _owed(columns, fresh, edges_s, _unhindered(columns, finished, end_s)), served


def _of(columns: RequestColumns, name: str, rows: NDArray[np.int64]) -> Floats:
    return np.asarray(np.asarray(getattr(columns, name))[rows], dtype=np.float64)


def _stop_s(columns: RequestColumns, rows: NDArray[np.int64], end_s: float) -> Floats:
    finish_s = _of(columns, "finish_s", rows)
    finish_s[np.isnan(finish_s)] = end_s
    return finish_s


def _served(columns: RequestColumns, rows: NDArray[np.int64], edges_s: Floats, end_s: float) -> Floats:
    """Return what came back in each window, of requests that got a first token."""
    return _per_window(
        edges_s, _of(columns, "first_token_s", rows), _stop_s(columns, rows, end_s),
        _of(columns, "prompt_tokens", rows), _of(columns, "output_tokens", rows),
    )  # fmt: skip


def _unhindered(
    columns: RequestColumns, rows: NDArray[np.int64], end_s: float
) -> tuple[float, float, float, float]:
    """Return what is typical of finished requests: fast TTFT and TPOT, share of the output asked for, output."""
    if not len(rows):
        return 0.0, 0.0, 1.0, 0.0
    first_s, output = _of(columns, "first_token_s", rows), _of(columns, "output_tokens", rows)
    ttft_s = quantiles(first_s - _of(columns, "arrival_s", rows), [_FAST])[0]
    decode_s, steps = _stop_s(columns, rows, end_s) - first_s, output - 1
    several = steps > 0
    tpot_s = quantiles(decode_s[several] / steps[several], [_FAST])[0] if several.any() else 0.0
    asked = _of(columns, "max_output_tokens", rows)
    known = asked > 0
    used = float(output[known].sum() / asked[known].sum()) if known.any() else 1.0
    return ttft_s, tpot_s, used, float(output.mean())


def _owed(
    columns: RequestColumns, rows: NDArray[np.int64], edges_s: Floats, typical: tuple[float, float, float, float]
) -> Floats:
    """Return what first attempts asked for in each window, spread over the time that it would take unhindered."""
    ttft_s, tpot_s, used, output = typical
    asked = _of(columns, "max_output_tokens", rows)
    wanted = np.where(asked > 0, asked * used, output)
    begin_s = _of(columns, "arrival_s", rows) + ttft_s
    return _per_window(edges_s, begin_s, begin_s + wanted * tpot_s, _of(columns, "prompt_tokens", rows), wanted)
