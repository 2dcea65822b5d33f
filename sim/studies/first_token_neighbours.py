"""What requests that come shortly before or after another cost its first token, by linear regression over an arm."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sim.studies.hardware_check_tenants import Arm

_EDGES_MS = (-60, -30, -20, -10, -5, 0, 5, 10, 15, 20, 30, 50)
_COLD_S = 10.0
_FAR = 4.0  # residuals beyond so many robust standard deviations are left out, three times over


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What one that comes between two times after a request adds to its first token, and the standard error."""

    from_ms: int
    to_ms: int
    adds_ms: float
    standard_error_ms: float


def neighbours(arm: Arm, *, predicted: bool = False) -> list[Neighbour]:
    """Return what neighbours add to measured first tokens, or to those predicted, beside what each running one adds."""
    of = "" if predicted else "measured_"
    rows = arm.requests[arm.requests[f"{of}status"] == "ok"].sort_values("start_s")
    start_s = rows.start_s.to_numpy(float)
    ends_s = np.sort(start_s + rows[f"{of}e2e_s"].to_numpy(float))
    running = np.arange(len(rows)) - np.searchsorted(ends_s, start_s)
    columns = [np.ones(len(rows)), running.astype(float)]
    slots = list(pairwise(_EDGES_MS))
    for low, high in slots:
        side = "left" if high <= 0 else "right"  # nobody is a neighbour of its own
        ends = [np.searchsorted(start_s, start_s + edge / 1e3, side) for edge in (low, high)]  # type: ignore[call-overload]
        columns.append((ends[1] - ends[0]).astype(float))
    used = (rows.start_s >= _COLD_S).to_numpy() & rows.exact.to_numpy(bool)
    x, y = np.column_stack(columns)[used], 1e3 * rows[f"{of}ttft_s"].to_numpy(float)[used]
    for _ in range(3):
        found = np.linalg.lstsq(x, y, rcond=None)[0]
        off = np.abs(y - x @ found)
        near = off < _FAR * np.median(off) / 0.6745
        x, y = x[near], y[near]
    found = np.linalg.lstsq(x, y, rcond=None)[0]
    errors = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * float(np.var(y - x @ found)))
    pairs = zip(slots, found[2:].tolist(), errors[2:].tolist(), strict=True)
    return [Neighbour(low, high, adds, error) for (low, high), adds, error in pairs]
