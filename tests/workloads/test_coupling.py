"""Joint and heavy-tailed lengths: ranks go together as asked, and neither law changes."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from sim.seeds import stream
from workloads.arrivals import Poisson
from workloads.coupling import coupled, normal_cdf, normal_quantile
from workloads.generate import WorkloadSpec, generate
from workloads.lengths import Constant, Empirical, Lognormal, Uniform
from workloads.long_tails import Pareto, Reasoning

LAWS = [
    Constant(value=7),
    Uniform(low=3, high=9),
    Lognormal(mean=500, cv=0.8, min=20, max=4000),
    Lognormal(mean=500, cv=0.0),
    Empirical(values=(900, 16, 64), weights=(0.2, 0.5, 0.3)),
    Empirical(values=(5, 3)),
    Pareto(alpha=1.2, min=100, max=30_000),
    Reasoning(mean=400, cv=0.7, long_share=0.2, long_from=2000, alpha=1.5, max=32_768),
]


@given(z=st.lists(st.floats(-8, 8), min_size=1, max_size=20))
def test_the_normal_distribution_is_scipy_s(z):
    assert normal_cdf(np.array(z)) == pytest.approx(special.ndtr(z), rel=1e-12)
    u = np.clip(special.ndtr(z), 1e-12, 1 - 1e-12)
    assert normal_quantile(u) == pytest.approx(special.ndtri(u), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_quantiles_and_draws_are_of_the_same_law(law):
    n = 20_000
    drawn = law.draw(np.random.default_rng(1), n)
    placed = law.from_uniform((np.arange(n) + 0.5) / n)
    assert np.all(np.diff(placed) >= 0)
    assert placed.dtype == drawn.dtype == np.int64
    assert drawn.min() >= 1
    # Discrete laws have ties, for which the test is only more lenient.
    assert stats.ks_2samp(drawn, placed).pvalue > 1e-4
    ends = law.from_uniform(np.array([0.0, 1.0]))
    assert ends[0] <= drawn.min()
    assert ends[1] >= drawn.max()


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_drawing_more_leaves_the_first_lengths_unchanged(law):
    few, many = law.draw(np.random.default_rng(2), 10), law.draw(np.random.default_rng(2), 1000)
    assert np.array_equal(few, many[:10])


def test_a_pareto_tail_is_one():
    law = Pareto(alpha=1.5, min=100, max=10_000_000)
    seen = law.draw(np.random.default_rng(3), 100_000)
    for x in (200, 1000, 5000):
        share = (100 / x) ** 1.5
        assert abs(np.mean(seen >= x) - share) < 4 * np.sqrt(share / len(seen))


def test_a_share_thinks_at_length():
    law = Reasoning(mean=400, cv=0.5, long_share=0.25, long_from=4000, alpha=1.5, max=131_072)
    seen = law.draw(np.random.default_rng(3), 40_000)
    assert abs(np.mean(seen >= 4000) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 40_000)
    tail = seen[seen >= 4000]
    assert abs(np.mean(tail >= 8000) - 0.5**1.5) < 0.03


@pytest.mark.parametrize("asked", [-0.9, -0.3, 0.0, 0.5, 0.95])
def test_ranks_go_together_as_asked(asked):
    u, v = coupled(np.random.default_rng(1), np.random.default_rng(2), 20_000, asked)
    assert stats.spearmanr(u, v).statistic == pytest.approx(asked, abs=4 / np.sqrt(20_000))
    for column in (u, v):
        assert stats.kstest(column, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("sign", [-1, 1])
def test_full_correlation_is_one_order(sign):
    u, v = coupled(np.random.default_rng(1), np.random.default_rng(2), 500, sign)
    assert np.array_equal(np.argsort(u), np.argsort(sign * v))


SPEC = WorkloadSpec(
    name="w",
    entitlement="e",
    arrivals=Poisson(rate_per_s=50.0),
    prompt_tokens=Lognormal(mean=500, cv=0.8),
    output_tokens=Lognormal(mean=200, cv=1.1),
)


def test_a_workload_s_lengths_go_together_and_its_arrivals_stay():
    def demand(horizon_s=200.0, **changes):
        return generate(dataclasses.replace(SPEC, **changes), functools.partial(stream, 3, 0), horizon_s, None)

    alone, joint = demand(), demand(length_correlation=0.6)
    assert np.array_equal(alone.arrival_s, joint.arrival_s)
    assert stats.spearmanr(joint.prompt_tokens, joint.output_tokens).statistic == pytest.approx(0.6, abs=0.04)
    assert stats.ks_2samp(alone.output_tokens, joint.output_tokens).pvalue > 1e-3
    assert np.array_equal(demand(50.0, length_correlation=0.6).output_tokens, joint.output_tokens[: len(demand(50.0))])


def test_a_correlation_without_laws_is_refused():
    with pytest.raises(ValueError, match="length_correlation is 2"):
        dataclasses.replace(SPEC, length_correlation=2.0)
