"""Amounts that come over time, summed in windows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def per_window(edges_s: Floats, begin_s: Floats, end_s: Floats, at_once: Floats, evenly: Floats) -> Floats:
    """Return the sum in each window of amounts that come at ``begin_s`` and from then until ``end_s`` evenly."""
    lasts = end_s > begin_s
    slope = np.where(lasts, evenly / np.where(lasts, end_s - begin_s, 1.0), 0.0)
    at_once = at_once + np.where(lasts, 0.0, evenly)
    n = len(edges_s)
    # The first edge at or after each time, so that sums over all times up to an edge are cumulated counts.
    begun = _edge(begin_s, edges_s)
    ended = _edge(end_s, edges_s)

    def summed(values: Floats, edge: NDArray[np.int64]) -> Floats:
        counts = np.bincount(edge, weights=values, minlength=n + 1)
        return np.cumsum(np.asarray(counts, dtype=np.float64))[:n]

    rising = edges_s * summed(slope, begun) - summed(slope * begin_s, begun)
    risen = edges_s * summed(slope, ended) - summed(slope * end_s, ended)
    total: Floats = summed(at_once, begun) + rising - risen
    return total[1:] - total[:-1]


def _edge(times_s: Floats, edges_s: Floats) -> NDArray[np.int64]:
    """Return the index of the first edge at or after each time, the number of edges where there is none."""
    index = np.ceil((times_s - edges_s[0]) / (edges_s[1] - edges_s[0]))
    return np.asarray(np.clip(index, 0, len(edges_s)), dtype=np.int64)
