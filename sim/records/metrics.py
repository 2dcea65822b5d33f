"""Each metric, defined once. Arguments are numpy arrays or pandas Series of the columns of ``requests.parquet``.

Times are seconds from the start of the run, NaN where a request never got there; NaN goes in, NaN comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Column = TypeVar("Column", NDArray[np.float64], "pd.Series[float]")


def ttft_s(first_token_s: Column, first_arrival_s: Column) -> Column:
    """Time to first token: from the first attempt's arrival, so gateway wait and retries count."""
    return first_token_s - first_arrival_s


def e2e_s(finish_s: Column, first_arrival_s: Column) -> Column:
    """End-to-end time: from the first attempt's arrival to the last token."""
    return finish_s - first_arrival_s


def tpot_s(first_token_s: Column, finish_s: Column, output_tokens: Column) -> Column:
    """Time per output token after the first; NaN for a single token, which has no gap to measure."""
    gaps = np.where(output_tokens > 1, output_tokens - 1, np.nan)
    return (finish_s - first_token_s) / gaps


def ntpot_s(e2e_s: Column, output_tokens: Column) -> Column:
    """Normalised time per output token: end-to-end time over all output tokens, so that waiting counts in it."""
    return e2e_s / output_tokens


def slo_met(ttft_s: Column, ttft_slo_s: Column, cut_off: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the first token came within the objective, in a request that was not cut off.

    ``cut_off`` marks what was evicted, failed or cancelled. A request still running at the horizon has met its
    objective if its first token came in time; one without a first token has not. Where there is no objective
    (NaN) the answer is False and means nothing.
    """
    return np.asarray(ttft_s <= ttft_slo_s, dtype=np.bool_) & ~cut_off


def quantiles(values: NDArray[np.float64], levels: Sequence[float]) -> list[float]:
    """Return `numpy.quantile` of one or more values, to the bit: between two, in proportion.

    A thousand tenants want five thousand of them, and numpy's own takes ten times as long for few values.
    """
    last = len(values) - 1
    places = [last * level for level in levels]
    below = [math.floor(place) for place in places]
    ordered = np.partition(values, sorted({*below, *(min(place + 1, last) for place in below), last}))
    if math.isnan(ordered[last]):  # they are put last
        return [math.nan] * len(places)
    found = []
    for place, index in zip(places, below, strict=True):
        share = place - index
        low, high = float(ordered[index]), float(ordered[min(index + 1, last)])
        found.append(low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share))
    return found
