from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sim.analysis.statistics import (
    batch_means,
    batch_quantile,
    bootstrap_quantile,
    mean_interval,
    mser5,
    paired_difference,
    replications_needed,
    unpaired_difference,
)
from sim.studies.interval_coverage import LAWS, LOAD, coverage
from sim.studies.interval_coverage_until import Question, coverage_until
from sim.studies.interval_coverage_until import as_markdown as until_as_markdown

samples = st.lists(st.floats(0.1, 100), min_size=3, max_size=30)


@given(values=samples, shift=st.floats(-50, 50), factor=st.floats(0.01, 100))
def test_intervals_move_and_scale_with_the_data(values: list[float], shift: float, factor: float) -> None:
    plain, moved = mean_interval(values), mean_interval([factor * v + shift for v in values])
    assert moved.estimate == pytest.approx(factor * plain.estimate + shift, rel=1e-6, abs=1e-6)
    assert moved.half_width == pytest.approx(factor * plain.half_width, rel=1e-6, abs=1e-6)


def test_the_mean_interval_is_students() -> None:
    # W. S. Gosset, "The probable error of a mean", Biometrika 6, 1908: the sleep data, dextro against laevo.
    extra = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = mean_interval(extra)
    assert found.estimate == pytest.approx(1.58)
    # t(9, 0.975) = 2.262; s = 1.230
    assert (found.low, found.high) == (pytest.approx(0.70, abs=0.005), pytest.approx(2.46, abs=0.005))
    paired = paired_difference(np.zeros(10), extra)
    assert paired.p_value == pytest.approx(0.00283, abs=2e-5)
    assert paired.effect == pytest.approx(1.58 / 1.230, abs=0.001)


@given(a=samples, seed=st.integers(0, 100))
def test_swapping_what_is_compared_changes_the_sign_alone(a: list[float], seed: int) -> None:
    b = np.asarray(a) + np.random.default_rng(seed).normal(1, 2, len(a))
    for difference in (paired_difference, unpaired_difference):
        one, other = difference(a, b), difference(b, a)
        assert one.absolute.estimate == pytest.approx(-other.absolute.estimate)
        assert one.absolute.low == pytest.approx(-other.absolute.high)
        assert one.effect == pytest.approx(-other.effect)
        assert one.p_value == pytest.approx(other.p_value)


def test_pairing_takes_out_what_both_share() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(10, 3, 30)
    a, b = shared + rng.normal(0, 0.1, 30), shared + 0.5 + rng.normal(0, 0.1, 30)
    paired, apart = paired_difference(a, b), unpaired_difference(a, b)
    assert paired.clear
    assert not apart.clear
    assert paired.variance_ratio < 0.01
    assert paired.relative.estimate == pytest.approx(b.mean() / a.mean() - 1)
    reference = stats.ttest_rel(b, a)
    assert paired.p_value == pytest.approx(reference.pvalue)
    ends = reference.confidence_interval()
    assert (paired.absolute.low, paired.absolute.high) == (pytest.approx(ends.low), pytest.approx(ends.high))
    welch = stats.ttest_ind(b, a, equal_var=False)
    assert apart.p_value == pytest.approx(welch.pvalue)
    assert apart.absolute.high == pytest.approx(welch.confidence_interval().high)


def test_equal_replications_do_not_differ() -> None:
    values = [1.0, 2.0, 3.0]
    found = paired_difference(values, [v * (1 + 1e-13) for v in values])
    assert (found.absolute.estimate, found.effect, found.p_value, found.clear) == (0.0, 0.0, 1.0, False)


def test_few_values_give_no_interval() -> None:
    assert math.isnan(mean_interval([1.0]).low)
    assert math.isnan(mean_interval([]).estimate)
    assert math.isnan(paired_difference([1.0], [2.0]).absolute.low)
    assert math.isnan(bootstrap_quantile([[1.0, 2.0]], 0.5).low)


def test_missing_values_are_left_out_in_pairs() -> None:
    found = paired_difference([1.0, math.nan, 3.0, 4.0], [2.0, 2.0, math.nan, 6.0])
    assert (found.absolute.n, found.absolute.estimate) == (2, 1.5)


def test_short_runs_are_refused_with_what_they_need() -> None:
    with pytest.raises(ValueError, match="give a longer run"):
        batch_means(np.arange(1999.0))
    with pytest.raises(ValueError, match="needs 1000"):
        batch_quantile(np.arange(10_000.0), 0.99, batches=20)


def test_the_bootstrap_resamples_replications_not_requests() -> None:
    rng = np.random.default_rng(2)
    # Each replication is nearly constant: as requests they are 4,000 values, as evidence ten.
    groups = [level + rng.normal(0, 0.01, 400) for level in rng.normal(10, 2, 10)]
    found = bootstrap_quantile(groups, 0.5)
    assert found.half_width > 0.5
    assert found.low < found.estimate < found.high


# --------------------------------------------------------------------------------------------------------------------
# Warm-up


def ar1(n: int, rho: float, rng: np.random.Generator) -> np.ndarray:
    noise, values = rng.normal(size=n), np.zeros(n)
    for i in range(1, n):
        values[i] = rho * values[i - 1] + noise[i]
    return values


def test_mser5_finds_where_a_transient_ends() -> None:
    rng = np.random.default_rng(3)
    cuts = []
    for _ in range(30):
        series = ar1(4000, 0.7, rng)
        series[:500] += np.linspace(20, 0, 500)
        cuts.append(mser5(series))
    found = [cut for cut in cuts if cut is not None]
    assert len(found) == 30
    assert 350 <= float(np.median(found)) <= 600
    assert all(cut % 5 == 0 for cut in found)


def test_mser5_cuts_little_from_a_steady_run_and_knows_a_trend() -> None:
    rng = np.random.default_rng(4)
    steady = [mser5(ar1(4000, 0.5, rng)) for _ in range(20)]
    assert float(np.median([cut for cut in steady if cut is not None])) < 400
    assert mser5(np.arange(4000.0) + rng.normal(size=4000)) is None
    assert mser5(np.ones(20)) is None


def test_the_replications_needed_are_enough() -> None:
    values = np.random.default_rng(5).normal(10, 2, 200)
    n = replications_needed(values[:20], 0.5)
    deviation = float(np.std(values[:20], ddof=1))
    assert stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n) <= 0.5
    assert stats.t.ppf(0.975, n * 0.9 - 1) * deviation / math.sqrt(n * 0.9) > 0.5


# --------------------------------------------------------------------------------------------------------------------
# Coverage where the truth is known; docs/statistics.md has the table


def test_intervals_cover_the_truth_of_mg1() -> None:
    experiments = 40
    rows = coverage(experiments=experiments, seed=1, replications=(20,))
    least = 0.95 - 3 * math.sqrt(0.95 * 0.05 / experiments)
    fair = [row for row in rows if "lognormal" not in row.estimand and "mean of" not in row.method]
    assert len(fair) == 7
    for row in fair:
        assert row.covered >= least, row
        assert row.width < 0.2, row  # a wide interval proves nothing
        assert abs(row.bias) < 0.03, row


def test_the_mean_of_extreme_quantiles_is_biased_and_sections_are_not() -> None:
    rows = {row.method: row for row in coverage(experiments=40, seed=2, replications=(20,)) if "P99" in row.estimand}
    assert rows["t, mean of the P99s"].bias < -0.015
    assert abs(rows["t, sections"].bias) < 0.015


def test_the_rule_of_until_covers_a_little_less_than_it_says() -> None:
    md1 = LAWS[0]
    truth_s = LOAD / (2 * (1 - LOAD))
    asked = [
        Question("mean wait", md1, truth_s, lambda run: float(run.mean()), False, 0.08, first) for first in (2, 10)
    ]
    early, late = coverage_until(experiments=120, seed=1, asked=asked)
    assert late.covered > 0.85
    assert late.covered >= early.covered
    assert late.replications[1] >= 10
    assert abs(late.bias) < 0.02
    assert "| 8%" in until_as_markdown([early, late])
