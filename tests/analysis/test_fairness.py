"""Fairness by hand, and what must hold of any numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.analysis.fairness import (
    convergence,
    gini,
    isolation,
    jain,
    max_min_gap,
    max_min_shares,
    min_max_ratio,
    service_difference,
)

amounts = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=12)


def test_indices_by_hand() -> None:
    assert jain([1, 1, 1]) == 1
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([1, 2, 3]) == pytest.approx(36 / (3 * 14))
    assert gini([1, 1, 1]) == 0
    assert gini([0, 0, 0, 4]) == 0.75  # sum |xi - xj| = 24, over 2 * 16 * 1
    assert gini([1, 3]) == 0.25  # 4 / (2 * 4 * 2)
    assert max_min_gap([2.0, 5.0, 3.0]) == 3
    assert min_max_ratio([2.0, 5.0, 3.0]) == 0.4
    assert all(math.isnan(index([])) for index in (jain, gini, max_min_gap, min_max_ratio))


def test_max_min_shares_by_hand() -> None:
    # 10 among three of weights 1, 1, 2: the first wants 1 only, so 9 go to the others as 1 to 2.
    assert max_min_shares(10, [1, 100, 100], [1, 1, 2]).tolist() == pytest.approx([1, 3, 6])
    assert max_min_shares(10, [2, 3, 0], [1, 1, 1]).tolist() == [2, 3, 0]  # there is more than is wanted
    assert max_min_shares(0, [2, 3], [1, 1]).tolist() == [0, 0]


@given(amounts, st.floats(0, 1e7), st.data())
def test_max_min_shares_divide_all_and_envy_nobody(wants: list[float], total: float, data: st.DataObject) -> None:
    weights = np.asarray(data.draw(st.lists(st.floats(0.1, 10), min_size=len(wants), max_size=len(wants))))
    shares = max_min_shares(total, wants, weights)
    assert shares.sum() == pytest.approx(min(total, sum(wants)), rel=1e-9, abs=1e-9)
    assert (shares <= np.asarray(wants) * (1 + 1e-9)).all()
    short = shares < np.asarray(wants) * (1 - 1e-9)  # who wants more has as much for its weight as anybody
    if short.any() and total > 0:
        assert (shares / weights)[short].min() >= (shares / weights).max() * (1 - 1e-6)


@given(amounts, st.floats(0.01, 100))
def test_indices_do_not_depend_on_the_unit_or_the_order(x: list[float], factor: float) -> None:
    scaled = [factor * value for value in x][::-1]
    for index in (jain, gini, min_max_ratio):
        assert index(scaled) == pytest.approx(index(x), rel=1e-9, abs=1e-12)
    assert 1 / len(x) - 1e-12 <= jain(x) <= 1 + 1e-12
    assert -1e-12 <= gini(x) < 1


def test_gini_is_the_mean_difference_of_all_pairs() -> None:
    x = np.random.default_rng(1).exponential(size=50)
    pairs = np.abs(x[:, None] - x[None, :]).sum()
    assert gini(x) == pytest.approx(pairs / (2 * 50**2 * x.mean()))


def test_service_difference_by_hand() -> None:
    # Window 1: a got 10 of 10 asked, b 4 of 9: b misses min(10 - 4, 5) = 5. Window 2: c asked for little and got it.
    served = [[10.0, 30.0], [4.0, 1.0]]
    asked = [[10.0, 30.0], [9.0, 1.0]]
    assert service_difference(served, asked).tolist() == [5.0, 0.0]
    assert service_difference(np.zeros((0, 3)), np.zeros((0, 3))).tolist() == [0, 0, 0]


def test_convergence_by_hand() -> None:
    t = [0.0, 1, 2, 3, 4, 5, 6, 7]
    value = [2.0, 2, 5, 12, 11, 9.5, 10, 10]  # changed at 2 s, target 10
    found = convergence(t, value, 10.0, changed_s=2.0, band=0.1, hold_s=3.0)
    assert found.reached_s == 2.0  # 4 s: 11, 9.5, 10, 10 are all within a tenth
    assert found.settled_s == 2.0
    assert found.overshoot == pytest.approx(0.2)
    assert math.isnan(convergence(t, value, 10.0, changed_s=2.0, hold_s=9.0).reached_s)
    away = convergence(t, [*value[:-1], 20.0], 10.0, changed_s=2.0, hold_s=2.0)
    assert away.reached_s == 2.0
    assert math.isnan(away.settled_s)
    from_above = convergence([0.0, 1, 2], [20.0, 8, 10], 10.0, changed_s=0.0, hold_s=1.0)
    assert from_above.overshoot == pytest.approx(0.2)  # below the target, seen from above it
    assert math.isnan(convergence([], [], 1.0, changed_s=0.0).reached_s)
    assert math.isnan(convergence([0.0], [1.0], 0.0, changed_s=0.0).reached_s)  # nothing to converge to


def test_isolation_by_hand() -> None:
    assert isolation([2.0, 4.0], [1.0, 2.0]) == 2
    assert isolation([1.0, 10.0], [1.0, 1.0], 1.0) == 10
    assert math.isnan(isolation([], [1.0]))
