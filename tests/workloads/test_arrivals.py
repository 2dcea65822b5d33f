"""Arrival laws against theory. Intervals are four standard errors wide, and checked to be narrow enough to mean it."""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workloads.arrivals import Even, Poisson
from workloads.bursts import Gamma, OnOff, Weibull
from workloads.rates import Diurnal, Mmpp, Ramp, Spike

rates = st.floats(0.01, 50.0)
laws = st.one_of(
    st.builds(Even, rate_per_s=rates, phase_s=st.floats(0.0, 5.0)),
    st.builds(Poisson, rate_per_s=rates),
    st.builds(Gamma, rate_per_s=rates, cv=st.floats(0.1, 10.0)),
    st.builds(
        OnOff,
        rate_on_per_s=rates,
        rate_off_per_s=st.sampled_from([0.0, 0.5]),
        mean_on_s=st.floats(0.1, 20.0),
        mean_off_s=st.floats(0.1, 20.0),
    ),
    st.builds(Weibull, rate_per_s=rates, cv=st.floats(0.1, 10.0)),
    st.sampled_from(
        [
            Mmpp(rates_per_s=(1.0, 8.0), means_s=(5.0, 2.0)),
            Mmpp(rates_per_s=(0.0, 2.0, 9.0), means_s=(5.0, 2.0, 1.0)),
            Diurnal(rate_per_s=3.0, amplitude=1.0, period_s=40.0, peak_s=10.0),
            Spike(rate_per_s=1.0, spike_rate_per_s=9.0, at_s=10.0, lasts_s=5.0, rise_s=2.0),
            Ramp(from_rate_per_s=0.0, to_rate_per_s=6.0, over_s=50.0),
            Ramp(from_rate_per_s=6.0, to_rate_per_s=0.0, over_s=50.0),
        ]
    ),
)
RANDOM = [
    Poisson(rate_per_s=2.0),
    Gamma(rate_per_s=2.0, cv=0.3),
    Gamma(rate_per_s=2.0, cv=4.0),
    OnOff(rate_on_per_s=8.0, mean_on_s=3.0, mean_off_s=9.0),
    OnOff(rate_on_per_s=5.0, rate_off_per_s=1.0, mean_on_s=2.0, mean_off_s=6.0),
    Weibull(rate_per_s=2.0, cv=0.3),
    Weibull(rate_per_s=2.0, cv=3.0),
    Mmpp(rates_per_s=(8.0, 0.0), means_s=(3.0, 9.0)),
    Mmpp(rates_per_s=(0.0, 1.0, 5.0), means_s=(3.0, 6.0, 4.0)),
]


def counts(law, window_s, n=4000, from_s=100.0):
    rng = np.random.default_rng(11)
    return np.array([len(law.times_s(rng, from_s, from_s + window_s, None)) for _ in range(n)])


def gaps(law, n, seed=5):
    return np.diff(law.times_s(np.random.default_rng(seed), 0.0, math.inf, n))


@given(law=laws, seed=st.integers(0, 99), from_s=st.floats(0, 1e6), length_s=st.floats(0, 60), limit=st.integers(0, 99))
def test_times_are_sorted_inside_the_window_and_within_the_limit(law, seed, from_s, length_s, limit):
    for most in (limit, None):
        times_s = law.times_s(np.random.default_rng(seed), from_s, from_s + length_s, most)
        assert times_s.dtype == np.float64
        assert np.all(np.diff(times_s) >= 0)
        assert np.all((times_s >= from_s) & (times_s < from_s + length_s))
        assert most is None or len(times_s) <= most


@given(
    law=laws, seed=st.integers(0, 99), shorter_s=st.floats(0, 60), longer_s=st.floats(60, 300), limit=st.integers(0, 50)
)
def test_a_longer_window_or_a_higher_limit_only_adds_arrivals(law, seed, shorter_s, longer_s, limit):
    def draw(until_s, most):
        return law.times_s(np.random.default_rng(seed), 0.0, until_s, most)

    whole = draw(longer_s, None)
    assert np.array_equal(draw(longer_s, None), whole)
    assert np.array_equal(draw(shorter_s, None), whole[whole < shorter_s])
    assert np.array_equal(draw(longer_s, limit), whole[:limit])


@given(rate_per_s=rates, phase_s=st.floats(0, 5), n=st.integers(0, 200))
def test_even_arrivals_are_the_multiples_of_the_spacing(rate_per_s, phase_s, n):
    half_a_gap_s = 0.5 / rate_per_s
    until_s = 30.0 + phase_s + n / rate_per_s - half_a_gap_s  # halfway between two arrivals, clear of rounding
    times_s = Even(rate_per_s=rate_per_s, phase_s=phase_s).times_s(np.random.default_rng(0), 30.0, until_s, None)
    assert times_s == pytest.approx([30.0 + phase_s + i / rate_per_s for i in range(n)], rel=1e-12)


def test_even_arrivals_by_hand():
    rng = np.random.default_rng(0)
    # Six slots at 0.125 requests/s each, 30 s to 36 s: every 4/3 s, the end of the window left out.
    assert Even(rate_per_s=0.75, phase_s=0.0).times_s(rng, 30.0, 34.0, None) == pytest.approx(
        [30.0, 30 + 4 / 3, 30 + 8 / 3]
    )
    assert Even(rate_per_s=2.0, phase_s=0.25).times_s(rng, 0.0, 1.25, None).tolist() == [0.25, 0.75]
    assert Even(rate_per_s=2.0, phase_s=3.0).times_s(rng, 0.0, 1.0, None).tolist() == []
    assert Even(rate_per_s=2.0, phase_s=0.0).times_s(rng, 5.0, math.inf, 3).tolist() == [5.0, 5.5, 6.0]


def test_a_phase_left_out_is_drawn_within_one_spacing():
    firsts_s = [Even(rate_per_s=4.0).times_s(np.random.default_rng(i), 5.0, math.inf, 1)[0] for i in range(200)]
    assert stats.kstest(firsts_s, stats.uniform(5.0, 0.25).cdf).pvalue > 1e-4


def test_even_arrivals_do_not_drift():
    times_s = Even(rate_per_s=3.0, phase_s=0.0).times_s(np.random.default_rng(0), 0.0, 400_000.0, None)
    assert len(times_s) == 1_200_000
    assert times_s[900_000] == 300_000.0


@pytest.mark.parametrize("law", RANDOM, ids=str)
def test_the_rate_is_exact_even_in_a_short_window(law):
    # A gamma process that starts with a full gap would make (cv^2 - 1) / 2 = 7.5 too many at cv = 4.
    window_s = 10.0
    seen = counts(law, window_s)
    error = 4 * seen.std(ddof=1) / math.sqrt(len(seen))
    assert abs(seen.mean() - 2.0 * window_s) < error
    assert error < 0.1 * 2.0 * window_s


@pytest.mark.parametrize("law", [law for law in RANDOM if isinstance(law, OnOff)], ids=str)
@pytest.mark.parametrize("window_s", [2.0, 40.0])
def test_on_off_counts_vary_as_a_markov_modulated_poisson_process(law, window_s):
    # The rate's autocovariance is (on - off)^2 p (1 - p) exp(-s t): integrate it twice over the window.
    # W. Fischer and K. Meier-Hellstern, "The Markov-modulated Poisson process cookbook", 1993.
    share_on = law.mean_on_s / (law.mean_on_s + law.mean_off_s)
    s = 1 / law.mean_on_s + 1 / law.mean_off_s
    rate_variance = (law.rate_on_per_s - law.rate_off_per_s) ** 2 * share_on * (1 - share_on)
    variance = 2.0 * window_s + 2 * rate_variance * (window_s / s - (1 - math.exp(-s * window_s)) / s**2)
    seen = counts(law, window_s)
    deviations = (seen - 2.0 * window_s) ** 2
    error = 4 * deviations.std(ddof=1) / math.sqrt(len(seen))
    assert abs(deviations.mean() - variance) < error
    assert error < 0.25 * variance
    assert variance - error > 1.5 * 2.0 * window_s  # it could not be a Poisson process


def test_poisson_gaps_are_exponential():
    seen = gaps(Poisson(rate_per_s=4.0), 20_000)
    assert stats.kstest(seen, stats.expon(scale=0.25).cdf).pvalue > 0.001
    assert stats.kstest(seen, stats.expon(scale=0.25 * 1.05).cdf).pvalue < 0.001  # 5 % off would be seen


@pytest.mark.parametrize("cv", [0.2, 1.0, 4.0])
def test_gamma_gaps_have_the_mean_and_cv_asked_for(cv):
    seen = gaps(Gamma(rate_per_s=4.0, cv=cv), 40_000)

    def pvalue(cv):
        # The shortest 40 % share a bin: at cv = 4 they are under 2 us, and many too short to tell apart at 10,000 s.
        shares = np.array([0.4] + [0.05] * 12)
        edges_s = stats.gamma(cv**-2, scale=0.25 * cv**2).ppf(np.cumsum(shares)[:-1])
        return stats.chisquare(np.bincount(np.searchsorted(edges_s, seen), minlength=13), shares * len(seen)).pvalue

    assert pvalue(cv) > 0.001
    assert pvalue(0.93 * cv) < 0.001  # 7 % off would be seen
    assert pvalue(1.07 * cv) < 0.001
    error = 4 * 0.25 * cv / math.sqrt(len(seen))
    assert abs(seen.mean() - 0.25) < error < 0.1 * 0.25


def test_gamma_with_cv_1_is_poisson_from_the_first_arrival_on():
    rng = np.random.default_rng(3)
    first_s = [Gamma(rate_per_s=4.0, cv=1.0).times_s(rng, 0.0, math.inf, 1)[0] for _ in range(5000)]
    assert stats.kstest(first_s, stats.expon(scale=0.25).cdf).pvalue > 0.001
    assert stats.kstest(first_s, stats.expon(scale=0.25 * 1.1).cdf).pvalue < 0.001


def test_nothing_arrives_while_off():
    # Long bursts and longer silences: with 1000 arrivals a second in a burst, a gap of over 0.1 s is a silence.
    law = OnOff(rate_on_per_s=1000.0, mean_on_s=5.0, mean_off_s=20.0)
    seen = np.diff(law.times_s(np.random.default_rng(8), 0.0, 20_000.0, None))
    silences_s = seen[seen > 0.1]
    assert stats.kstest(silences_s - 0.1, stats.expon(scale=20.0).cdf).pvalue > 0.001
    assert stats.kstest(silences_s - 0.1, stats.expon(scale=20.0 * 1.3).cdf).pvalue < 0.001
    assert seen[seen <= 0.1].mean() == pytest.approx(0.001, rel=0.01)


def test_a_flood_is_refused_before_memory_runs_out():
    for law in (
        Even(rate_per_s=1e9),
        Poisson(rate_per_s=1e9),
        Gamma(rate_per_s=1e9, cv=2.0),
        OnOff(rate_on_per_s=1e9, mean_on_s=1.0, mean_off_s=1.0),
        OnOff(rate_on_per_s=1.0, mean_on_s=1e-7, mean_off_s=1e-7),
    ):
        with pytest.raises(ValueError, match="lower the rate"):
            law.times_s(np.random.default_rng(0), 0.0, 1000.0, None)


def test_a_limit_makes_a_high_rate_harmless():
    for law in (Even(rate_per_s=1e9), Poisson(rate_per_s=1e9), Gamma(rate_per_s=1e9, cv=2.0)):
        assert len(law.times_s(np.random.default_rng(0), 0.0, 1000.0, 10)) == 10
    bursts = OnOff(rate_on_per_s=1e9, mean_on_s=1.0, mean_off_s=1.0)
    assert len(bursts.times_s(np.random.default_rng(0), 0.0, 1000.0, 10)) == 10


def test_time_for_a_million_arrivals_is_shown(capsys):
    lines = []
    for law in (
        Even(rate_per_s=1e4),
        Poisson(rate_per_s=1e4),
        Gamma(rate_per_s=1e4, cv=4.0),
        OnOff(rate_on_per_s=4e4, mean_on_s=1.0, mean_off_s=3.0),
    ):
        start_s = time.perf_counter()
        law.times_s(np.random.default_rng(0), 0.0, 200.0, 1_000_000)
        lines.append(f"{law.kind} {time.perf_counter() - start_s:.3f} s")
    with capsys.disabled():
        sys.stdout.write(f"\n  a million arrivals: {', '.join(lines)}\n")
