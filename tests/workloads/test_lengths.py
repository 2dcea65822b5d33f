from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workloads.lengths import Constant, Empirical, Lognormal, Uniform

tokens = st.integers(1, 10_000)
laws = st.one_of(
    st.builds(Constant, value=tokens),
    st.builds(lambda a, b: Uniform(low=min(a, b), high=max(a, b)), tokens, tokens),
    st.builds(Lognormal, mean=st.floats(1, 1e5), cv=st.floats(0, 100)),
    st.builds(lambda values: Empirical(values=tuple(values)), st.lists(tokens, min_size=1)),
    st.builds(
        lambda pairs: Empirical(values=tuple(v for v, _ in pairs), weights=tuple(w for _, w in pairs)),
        st.lists(st.tuples(tokens, st.floats(0.001, 1e3)), min_size=1),
    ),
)


def draw(law, n, seed=1):
    return law.draw(np.random.default_rng(seed), n)


@given(law=laws, seed=st.integers(0, 99), n=st.integers(0, 50), more=st.integers(0, 50))
def test_lengths_are_at_least_1_and_drawing_more_changes_none(law, seed, n, more):
    lengths = draw(law, n + more, seed)
    assert lengths.dtype == np.int64
    assert lengths.shape == (n + more,)
    assert np.all(lengths >= 1)
    assert np.array_equal(draw(law, n, seed), lengths[:n])


def test_constant():
    assert draw(Constant(value=64), 3).tolist() == [64, 64, 64]


def test_uniform_gives_each_number_alike_both_ends_included():
    lengths = draw(Uniform(low=32, high=41), 20_000)
    seen = np.bincount(lengths - 32, minlength=10)
    assert len(seen) == 10
    assert stats.chisquare(seen).pvalue > 0.001
    assert stats.chisquare(seen, np.array([1.1] * 5 + [0.9] * 5) * 2000).pvalue < 0.001  # 10 % off would be seen


@pytest.mark.parametrize(("mean", "cv"), [(512.0, 0.8), (256.0, 0.9), (100.0, 0.1)])
def test_lognormal_has_the_mean_and_cv_asked_for(mean, cv):
    n = 200_000
    lengths = draw(Lognormal(mean=mean, cv=cv), n)
    error = 4 * cv * mean / math.sqrt(n)
    assert abs(lengths.mean() - mean) < error < 0.01 * mean
    sigma = math.sqrt(math.log1p(cv**2))
    # The logarithm is normal, so its standard deviation has a standard error of sigma / sqrt(2 n).
    assert abs(np.log(lengths).std() - sigma) < 4 * sigma / math.sqrt(2 * n)


def test_lognormal_rounds_to_the_nearest_token():
    assert draw(Lognormal(mean=10.6, cv=0.0), 2).tolist() == [11, 11]
    assert draw(Lognormal(mean=10.4, cv=0.0), 2).tolist() == [10, 10]


def test_lognormal_is_clipped_to_its_bounds_with_the_mass_beyond_them():
    n = 50_000
    lengths = draw(Lognormal(mean=500.0, cv=1.0, min=100, max=1000), n)
    assert (lengths.min(), lengths.max()) == (100, 1000)
    sigma = math.sqrt(math.log(2))
    law = stats.lognorm(sigma, scale=500 / math.sqrt(2))
    for share, theory in (((lengths == 100).mean(), law.cdf(100.5)), ((lengths == 1000).mean(), law.sf(999.5))):
        error = 4 * math.sqrt(theory * (1 - theory) / n)
        assert abs(share - theory) < error < 0.2 * theory


def test_empirical_follows_its_weights():
    n = 50_000
    lengths = draw(Empirical(values=(10, 20, 30, 40), weights=(0.0, 3.0, 1.0, 0.0)), n)
    assert set(lengths.tolist()) == {20, 30}
    assert abs((lengths == 20).mean() - 0.75) < 4 * math.sqrt(0.75 * 0.25 / n)


def test_empirical_without_weights_draws_all_values_alike():
    lengths = draw(Empirical(values=(7, 9, 9)), 50_000)
    assert abs((lengths == 9).mean() - 2 / 3) < 4 * math.sqrt(2 / 9 / 50_000)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Uniform(low=5, high=4), "low 5 is above high 4"),
        (lambda: Lognormal(mean=50, cv=1, min=60), "mean 50 is below min 60"),
        (lambda: Lognormal(mean=50, cv=1, max=40), "mean 50 is above max 40"),
        (lambda: Lognormal(mean=50, cv=1, min=60, max=40), "max 40 is below min 60"),
        (lambda: Empirical(values=()), "values is empty"),
        (lambda: Empirical(values=(3, 0)), "values holds 0"),
        (lambda: Empirical(values=(3, 4), weights=(1.0,)), "1 weights for 2 values"),
        (lambda: Empirical(values=(3, 4), weights=(1.0, -1.0)), "weights holds -1"),
        (lambda: Empirical(values=(3, 4), weights=(1.0, math.nan)), "weights holds nan"),
        (lambda: Empirical(values=(3, 4), weights=(0.0, 0.0)), "weights add up to 0"),
        (lambda: Empirical(values=(3, 4), weights=(1e308, 1e308)), "weights add up to inf"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
