"""Laws whose rate changes, against their theory: the time change, and the variance of counts."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from scipy import integrate, linalg, stats

from workloads.bursts import Weibull, weibull_shape
from workloads.rates import Diurnal, Mmpp, Ramp, Spike

DIURNAL = Diurnal(rate_per_s=5.0, amplitude=0.8, period_s=600.0, peak_s=100.0)
SPIKE = Spike(rate_per_s=2.0, spike_rate_per_s=30.0, at_s=200.0, lasts_s=100.0, rise_s=50.0)
RAMP = Ramp(from_rate_per_s=0.0, to_rate_per_s=10.0, over_s=600.0)


def rate(law, t_s):
    """The rate as the class describes it, seconds since the window opened."""
    if law is DIURNAL:
        return 5.0 * (1 + 0.8 * math.cos(2 * math.pi * (t_s - 100.0) / 600.0))
    if law is SPIKE:
        return float(np.interp(t_s, [200.0, 250.0, 350.0, 400.0], [2.0, 30.0, 30.0, 2.0]))
    return min(t_s / 60.0, 10.0)


@pytest.mark.parametrize("law", [DIURNAL, SPIKE, RAMP], ids=["diurnal", "spike", "ramp"])
def test_points_fall_where_the_rate_says(law):
    # Time change: where a Poisson process of this rate has points, the expected numbers up to them are one of rate 1.
    grid_s = np.linspace(0.0, 900.0, 9001)
    expected = np.concatenate(
        (
            [0.0],
            np.cumsum([integrate.quad(lambda t: rate(law, t), a, b)[0] for a, b in itertools.pairwise(grid_s[::10])]),
        )
    )
    units = [
        np.interp(law.times_s(np.random.default_rng(seed), 0.0, 900.0, None), grid_s[::10], expected)
        for seed in range(40)
    ]
    counts = np.array([len(one) for one in units])
    error = 4 * math.sqrt(expected[-1] / len(units))
    assert abs(counts.mean() - expected[-1]) < error < 0.05 * expected[-1]
    placed = np.concatenate(units) / expected[-1]
    assert stats.kstest(placed, "uniform").pvalue > 1e-4
    assert stats.kstest(placed**1.03, "uniform").pvalue < 1e-3  # 3 % off would be seen


def test_a_day_begins_at_the_run_and_not_at_the_workload():
    law = Diurnal(rate_per_s=200.0, amplitude=1.0, period_s=100.0, peak_s=50.0)
    late_s = law.times_s(np.random.default_rng(0), 40.0, 60.0, None)
    early_s = law.times_s(np.random.default_rng(0), 0.0, 20.0, None)
    assert len(late_s) > 6 * len(early_s)  # 7,740 and 970 expected


def test_a_spike_counts_from_the_window_and_needs_no_rise():
    law = Spike(rate_per_s=1.0, spike_rate_per_s=1000.0, at_s=10.0, lasts_s=2.0)
    times_s = law.times_s(np.random.default_rng(0), 100.0, 130.0, None)
    inside = (times_s >= 110.0) & (times_s < 112.0)
    assert abs(inside.sum() - 2000) < 4 * math.sqrt(2000)
    assert (~inside).sum() < 28 + 5 * math.sqrt(28)


@pytest.mark.parametrize("window_s", [2.0, 30.0])
@pytest.mark.parametrize(
    "law",
    [
        Mmpp(rates_per_s=(8.0, 0.5), means_s=(3.0, 9.0)),
        Mmpp(rates_per_s=(0.0, 2.0, 12.0), means_s=(6.0, 12.0, 3.0)),
    ],
    ids=["two", "three"],
)
def test_mmpp_counts_have_the_mean_and_variance_of_theory(law, window_s):
    # Var N(t) = mean + 2 int_0^t (t - s) cov(s) ds with cov(s) = pi R exp(Qs) R 1 - mean_rate^2.
    rates, means_s = np.array(law.rates_per_s), np.array(law.means_s)
    n = len(rates)
    share = means_s / means_s.sum()
    generator = (np.full((n, n), 1 / (n - 1)) - np.eye(n) * (1 + 1 / (n - 1))) / means_s[:, None]
    mean_rate = float(share @ rates)
    assert law.rate_per_s == pytest.approx(mean_rate)

    def covariance(s):
        return float((share * rates) @ linalg.expm(generator * s) @ rates) - mean_rate**2

    variance = mean_rate * window_s + 2 * integrate.quad(lambda s: (window_s - s) * covariance(s), 0, window_s)[0]
    rng = np.random.default_rng(3)
    seen = np.array([len(law.times_s(rng, 50.0, 50.0 + window_s, None)) for _ in range(2500)])
    assert abs(seen.mean() - mean_rate * window_s) < 4 * seen.std(ddof=1) / 50
    deviations = (seen - mean_rate * window_s) ** 2
    error = 4 * deviations.std(ddof=1) / 50
    assert abs(deviations.mean() - variance) < error < 0.35 * variance
    assert variance - error > 1.5 * mean_rate * window_s  # it could not be a Poisson process


@pytest.mark.parametrize("cv", [0.2, 1.0, 3.0])
def test_weibull_gaps_are_weibull_with_the_mean_and_cv_asked_for(cv):
    law = stats.weibull_min(weibull_shape(cv))
    assert law.std() / law.mean() == pytest.approx(cv, rel=1e-6)
    seen = np.diff(Weibull(rate_per_s=4.0, cv=cv).times_s(np.random.default_rng(5), 0.0, math.inf, 40_000))
    scale_s = 0.25 / law.mean()
    exact = stats.weibull_min(weibull_shape(cv), scale=scale_s)
    # Summed times hold a gap to about 1e-12 s; shorter ones are lost in rounding.
    assert stats.kstest(seen, exact.cdf).pvalue > 1e-3
    assert stats.kstest(seen, stats.weibull_min(weibull_shape(cv), scale=1.05 * scale_s).cdf).pvalue < 1e-3
    assert abs(seen.mean() - 0.25) < 4 * 0.25 * cv / math.sqrt(len(seen))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rates_per_s": (1.0,), "means_s": (1.0,)}, "1 rates and 1 means; give two or more"),
        ({"rates_per_s": (1.0, 2.0), "means_s": (1.0, 0.0)}, "means_s holds 0"),
        ({"rates_per_s": (0.0, 0.0), "means_s": (1.0, 1.0)}, "all rates are 0"),
        ({"rates_per_s": (1.0, -2.0), "means_s": (1.0, 1.0)}, "rates_per_s holds -2"),
    ],
)
def test_states_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Mmpp(**fields)


@pytest.mark.parametrize("law", [DIURNAL, SPIKE, RAMP, Mmpp(rates_per_s=(1.0, 9.0), means_s=(5.0, 5.0))], ids=str)
def test_a_number_of_requests_ends_an_endless_window(law):
    times_s = law.times_s(np.random.default_rng(0), 0.0, math.inf, 5000)
    assert len(times_s) == 5000
    assert np.array_equal(law.times_s(np.random.default_rng(0), 0.0, math.inf, 300), times_s[:300])
    with pytest.raises(ValueError, match="lower the rate"):
        law.times_s(np.random.default_rng(0), 0.0, math.inf, None)


def test_many_arrivals_take_a_moment():
    start_s = time.process_time()
    law = Diurnal(rate_per_s=3e5 / 86_400, amplitude=0.6)
    assert len(law.times_s(np.random.default_rng(0), 0.0, math.inf, 300_000)) == 300_000
    assert time.process_time() - start_s < 4.0
