"""Statistics against definitions, other libraries and numbers that were worked out on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sim.analysis.statistics import (
    Interval,
    batch_means,
    batch_quantile,
    bootstrap_quantile,
    mean_interval,
    mser5,
    paired_difference,
    replications_needed,
    section_quantile,
    unpaired_difference,
)


def test_a_tie_has_a_p_value_of_one_and_a_constant_difference_of_nothing() -> None:
    for difference in (paired_difference, unpaired_difference):
        same = difference([2.0, 2.0, 2.0], [2.0, 2.0, 2.0])
        assert (same.p_value, same.effect, same.clear) == (1.0, 0.0, False)
        more = difference([2.0, 2.0, 2.0], [3.0, 3.0, 3.0])
        assert (more.p_value, more.effect, more.absolute.estimate) == (0.0, math.inf, 1.0)
        assert difference([3.0, 3.0], [2.0, 2.0]).effect == -math.inf
    shifted = paired_difference([1.0, 2.0, 4.0], [2.0, 3.0, 5.0])  # they vary, their difference does not
    assert (shifted.p_value, shifted.clear, shifted.variance_ratio) == (0.0, True, 0.0)


def test_whether_it_was_paired_is_said() -> None:
    for n in (1, 4):
        values = np.arange(n) + 1.0
        assert paired_difference(values, 2 * values).paired is True
        assert unpaired_difference(values, 2 * values).paired is False


def test_an_unpaired_difference_by_hand() -> None:
    # Means 2 and 6, variances 1 and 16, three and four values: errors 1/3 and 4.
    a, b = [1.0, 2.0, 3.0], [1.0, 5.0, 7.0, 11.0]
    found = unpaired_difference(a, b)
    vb = float(np.var(b, ddof=1)) / 4
    assert np.var(a, ddof=1) == 1.0
    error, freedom = math.sqrt(1 / 3 + vb), (1 / 3 + vb) ** 2 / (1 / 9 / 2 + vb**2 / 3)
    half = float(stats.t.ppf(0.975, freedom)) * error
    assert (found.absolute.low, found.absolute.high) == (pytest.approx(4 - half), pytest.approx(4 + half))
    assert found.absolute.n == 3
    # Hedges' g: pooled variance over 5 degrees, 1 - 3 / (4 * 7 - 9).
    pooled = math.sqrt((2 * 1 + 3 * 4 * vb) / 5)
    assert found.effect == pytest.approx((1 - 3 / 19) * 4 / pooled)
    # The ratio of means is 3; its error by the delta method: sqrt(vb + 9 va) / 2.
    ratio_half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(vb + 9 / 3) / 2
    assert found.relative.estimate == pytest.approx(2.0)
    assert found.relative.half_width == pytest.approx(ratio_half)
    assert found.variance_ratio == 1.0


def test_a_paired_ratio_by_hand() -> None:
    a, b = np.asarray([1.0, 2.0, 4.0, 5.0]), np.asarray([3.0, 3.0, 9.0, 9.0])
    found = paired_difference(a, b)
    assert found.relative.estimate == pytest.approx(1.0)  # 24 / 12 - 1
    residual = b - 2 * a  # 1, -1, 1, -1: deviation sqrt(4 / 3)
    error = math.sqrt(4 / 3) / math.sqrt(4) / 3
    assert residual.tolist() == [1, -1, 1, -1]
    assert found.relative.half_width == pytest.approx(float(stats.t.ppf(0.975, 3)) * error)
    # var(b - a) = var(2, 1, 5, 4) = 10/3; var(a) + var(b) = 10/3 + 12.
    assert found.variance_ratio == pytest.approx((10 / 3) / (10 / 3 + 12))


def test_nothing_relative_to_a_mean_of_nothing() -> None:
    for difference in (paired_difference, unpaired_difference):
        found = difference([-1.0, 1.0], [2.0, 4.0])
        assert math.isnan(found.relative.estimate)
        assert found.absolute.estimate == 3.0


def by_definition(series: np.ndarray) -> int | None:
    """MSER-5 as the article has it: the cut that minimises the squared standard error of what remains."""
    means = series[: len(series) // 5 * 5].reshape(-1, 5).mean(axis=1)
    n = len(means)
    errors = [means[cut:].var() / (n - cut) for cut in range(n - 5)]
    best = int(np.argmin(errors))
    return None if best > n // 2 else 5 * best


@given(st.integers(0, 10_000), st.integers(50, 400), st.integers(0, 120), st.floats(-30, 30))
def test_mser_finds_the_cut_of_the_definition(seed: int, length: int, warm_up: int, bias: float) -> None:
    rng = np.random.default_rng(seed)
    series = 100 + rng.normal(0, 3, length) + bias * np.exp(-np.arange(length) / (1 + warm_up / 4))
    assert mser5(series) == by_definition(series)


def test_mser_says_nothing_of_short_runs_and_cuts_nothing_from_constant_ones() -> None:
    assert mser5(np.arange(49.0)) is None
    assert mser5(np.full(50, 7.0)) == 0
    assert mser5(np.full(54, 7.0)) == 0
    ramp = np.concatenate([np.zeros(50), np.ones(50)])
    assert mser5(ramp) == 50
    assert mser5(np.concatenate([np.zeros(60), np.ones(40)])) is None  # in the second half


def test_batches_by_hand() -> None:
    # The first values are left out so that batches are equal: 201 values in two batches of 100.
    series = np.concatenate([[1e9], np.full(100, 3.0), np.full(100, 5.0)])
    found = batch_means(series, batches=2)
    assert found == Interval(4.0, pytest.approx(4 - 12.7062047), pytest.approx(4 + 12.7062047), 2)
    middle = batch_quantile(series[1:], 0.5, batches=2)
    assert (middle.estimate, middle.n) == (4.0, 2)
    assert middle.half_width == pytest.approx(12.7062047)  # deviation sqrt 2, over sqrt 2, times t(1)
    with pytest.raises(ValueError, match="199 values do not fill 2 batches of 100"):
        batch_means(np.zeros(199), batches=2)
    assert batch_quantile(np.zeros(200), 0.9, batches=2).estimate == 0.0  # ten beyond it in each batch of 100
    with pytest.raises(ValueError, match=r"leave 100 each; the quantile 0\.95 needs 200"):
        batch_quantile(np.zeros(200), 0.95, batches=2)


def test_sections_by_hand() -> None:
    groups = [[1.0, 2.0, 3.0], [math.nan, 4.0, 6.0], [5.0]]
    found = section_quantile(groups, 0.5)
    assert (found.estimate, found.n) == (3.5, 3)  # of 1 2 3 4 5 6
    # Medians 2, 5, 5: squares 2.25 + 2.25 + 2.25 over 2 over 3.
    assert found.half_width == pytest.approx(float(stats.t.ppf(0.975, 2)) * math.sqrt(6.75 / 6))
    alone = section_quantile([[1.0, 2.0]], 0.5)
    assert (alone.estimate, alone.n, math.isnan(alone.low)) == (1.5, 1, True)
    none = section_quantile([[math.nan], []], 0.5)
    assert (none.n, math.isnan(none.estimate)) == (0, True)


def test_the_bootstrap_is_scipys_over_whole_replications() -> None:
    groups = [[1.0], [2.0], [4.0], [8.0], [16.0]]
    found = bootstrap_quantile(groups, 0.5, resamples=199, seed=3)

    def middle(chosen: np.ndarray) -> float:  # one value each: the median of five is the third
        return float(sorted(2.0**i for i in chosen)[2])

    there = stats.bootstrap(
        (np.arange(5),), middle, vectorized=False, n_resamples=199, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (found.low, found.high, found.estimate, found.n) == (there.low, there.high, 4.0, 5)
    assert bootstrap_quantile(groups, 0.5) == bootstrap_quantile(groups, 0.5, seed=0, resamples=999)
    one = bootstrap_quantile([[1.0, 3.0], []], 0.5)
    assert (one.estimate, one.n, math.isnan(one.high)) == (2.0, 1, True)
    nothing = bootstrap_quantile([[], [math.nan]], 0.5)
    assert (nothing.n, math.isnan(nothing.estimate)) == (0, True)


def test_a_larger_group_weighs_more_in_the_bootstrap() -> None:
    # Ninety values of 1 and ten of 2 are one replication, one value of 3 the other: the 95th percentile of both is 2.
    found = bootstrap_quantile([[1.0] * 90 + [2.0] * 10, [3.0]], 0.95, seed=1)
    assert (found.low, found.estimate, found.high) == (2.0, 2.0, 3.0)


def test_replications_needed_by_the_t_law() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]  # deviation 1.58
    deviation = math.sqrt(2.5)
    needed = replications_needed(values, 0.5)
    assert stats.t.ppf(0.975, needed - 1) * deviation / math.sqrt(needed) <= 0.5
    before = needed - max(1, int(needed * 0.06))
    assert stats.t.ppf(0.975, before - 1) * deviation / math.sqrt(before) > 0.5
    assert replications_needed(values, 100.0) == 5  # as many as there are will do
    assert replications_needed([3.0], 0.1) == 2
    assert replications_needed([3.0, 3.0, math.nan], 0.1) == 2
    assert replications_needed([0.0, 1e9], 1e-9) >= 1_000_000


def test_means_of_one_and_none() -> None:
    assert mean_interval([math.nan, 4.0]).estimate == 4.0
    assert mean_interval([math.nan, 4.0]).n == 1
    assert mean_interval([]).n == 0
    found = mean_interval([1.0, 3.0], level=0.5)
    assert (found.low, found.high) == (pytest.approx(1.0), pytest.approx(3.0))  # t(1, 0.75) = 1, error 1
    assert found.half_width == pytest.approx(1.0)


def test_few_replications_differ_without_an_interval() -> None:
    for difference in (paired_difference, unpaired_difference):
        one = difference([2.0], [3.0])
        assert (one.absolute.estimate, one.absolute.n) == (1.0, 1)
        assert math.isnan(one.p_value)
        assert math.isnan(one.effect)
        assert math.isnan(one.variance_ratio)
        assert not one.clear
    assert math.isnan(unpaired_difference([], [1.0, 2.0]).absolute.estimate)
    assert unpaired_difference([1.0, 2.0, 3.0], [1.0, 4.0]).absolute.n == 2
    assert not math.isnan(unpaired_difference([1.0, 2.0], [1.0, 4.0]).absolute.low)


def test_what_is_left_out_is_twenty_batches_a_level_of_95_percent_and_seed_0() -> None:
    series = np.arange(4000, dtype=np.float64) % 97
    for found, said in (
        (batch_means(series), batch_means(series, batches=20, level=0.95)),
        (batch_quantile(series, 0.5), batch_quantile(series, 0.5, batches=20, level=0.95)),
    ):
        assert found == said
        assert found.n == 20
    groups = [list(np.arange(40.0) ** 1.5 + 7 * k) for k in range(6)]
    assert section_quantile(groups, 0.9) == section_quantile(groups, 0.9, level=0.95)
    quantile = bootstrap_quantile(groups, 0.9)
    assert quantile == bootstrap_quantile(groups, 0.9, level=0.95, resamples=999, seed=0)
    assert len({bootstrap_quantile(groups, 0.9, resamples=49, seed=seed) for seed in range(8)}) > 1
    assert replications_needed([1.0, 2.0, 4.0], 0.7) == replications_needed([1.0, 2.0, 4.0], 0.7, 0.95)


def test_replications_needed_pass_what_is_needed_by_a_twentieth_at_most() -> None:
    """The least n with t(n - 1) s / sqrt(n) <= h, by scipy, one n after the other."""
    values = [0.0, 10.0, 3.0]
    deviation = float(np.std(values, ddof=1))
    for half_width in (1.0, 2.0, 5.0):
        least = next(n for n in range(3, 10_000) if stats.t.ppf(0.975, n - 1) * deviation / n**0.5 <= half_width)
        assert least <= replications_needed(values, half_width) <= max(least + 1, 1.05 * least)
