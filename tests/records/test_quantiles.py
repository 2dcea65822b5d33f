"""Quantiles are numpy's, to the bit, without numpy's price for few values."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sim.records.metrics import quantiles

LEVELS = [0.0, 0.1, 0.5, 0.95, 0.99, 1.0]


@given(st.lists(st.floats(-1e9, 1e9) | st.sampled_from([0.0, 0.5, math.inf]), min_size=1, max_size=40))
def test_they_are_numpys_to_the_bit(values: list[float]) -> None:
    given = np.asarray(values)
    with np.errstate(invalid="ignore"):
        expected = np.quantile(given, LEVELS).tolist()
    assert list(map(repr, quantiles(given, LEVELS))) == list(map(repr, expected))
    assert given.tolist() == values  # which stay as they are


def test_nan_in_nan_out() -> None:
    assert all(math.isnan(one) for one in quantiles(np.asarray([1.0, math.nan, 2.0]), [0.0, 0.5]))
