"""Series over time that follow from the attempts of a run, simulated or live: in flight, and rates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.records.schema import Outcome, RequestColumns

Floats = NDArray[np.float64]


class AttemptSeries:
    """Series that follow from the attempts: in flight at each sample, rates over the interval before it.

    Arrays have the shape (entitlement, sample). Within one request the gap between tokens changes only with the
    batch, so output is counted as one token at the first and the rest evenly until the end.
    """

    def __init__(self, columns: RequestColumns, t_s: Floats, interval_s: float, end_s: float) -> None:
        self._t_s = t_s
        self._shape = (len(columns.entitlements), len(t_s))
        self._key = np.asarray(columns.entitlement) * (len(t_s) + 1)
        outcome = np.asarray(columns.outcome)
        first_s = np.asarray(columns.first_token_s, dtype=np.float64)
        finish_s = np.asarray(columns.finish_s, dtype=np.float64)
        open_ = np.isnan(finish_s)
        stop_s = np.where(open_, end_s, finish_s)
        tokens = np.asarray(columns.output_tokens, dtype=np.float64)
        span_s = stop_s - first_s
        steady = (span_s > 0) & (tokens > 1)  # False where there was no first token
        rate = np.where(steady, (tokens - 1) / np.where(steady, span_s, 1.0), 0.0)
        sent = self._sample(np.asarray(columns.forwarded_s, dtype=np.float64))
        first, stop = self._sample(first_s), self._sample(stop_s)
        ended = self._sample(np.where(np.isnan(columns.forwarded_s), np.nan, finish_s))
        refused = self._sample(np.where(outcome == Outcome.REFUSED, finish_s, np.nan))
        admitted = self._until(sent)
        output = (
            self._until(first, np.where(steady, 1.0, tokens))
            + t_s * (self._until(first, rate) - self._until(stop, rate))
            - self._until(first, np.where(steady, rate * first_s, 0.0))
            + self._until(stop, rate * stop_s)
        )
        prompt = self._until(first, np.asarray(columns.prompt_tokens, dtype=np.float64))

        def per_s(total: Floats) -> Floats:
            return np.maximum(np.diff(total, axis=1, prepend=0.0), 0.0) / interval_s

        self._series = {
            "in_flight": admitted - self._until(ended),
            "admitted_per_s": per_s(admitted),
            "refused_per_s": per_s(self._until(refused)),
            "output_tokens_per_s": per_s(output),
            "tokens_per_s": per_s(output + prompt),
        }

    def of(self, entitlement: int | None) -> dict[str, Floats]:
        """Return the series of one entitlement, or of the pool."""
        if entitlement is None:
            return {metric: series.sum(axis=0) for metric, series in self._series.items()}
        return {metric: series[entitlement] for metric, series in self._series.items()}

    def _sample(self, at_s: Floats) -> NDArray[np.int64]:
        """Return the first sample at or after each time, as an index into (entitlement, sample + 1) flattened.

        The extra sample takes what comes after the last, and what never came (NaN).
        """
        return self._key + np.searchsorted(self._t_s, at_s, side="left")

    def _until(self, samples: NDArray[np.int64], weight: Floats | None = None) -> Floats:
        """Return how much happened up to and including each sample."""
        rows, width = self._shape
        counts = np.bincount(samples, weight, minlength=rows * (width + 1)).reshape(rows, width + 1)
        return np.asarray(counts[:, :width].cumsum(axis=1), dtype=np.float64)
