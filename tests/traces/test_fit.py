"""Fitting finds the law that made a trace, and says how well each does."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from sim.traces.fit import fit, index_of_dispersion, report
from sim.traces.statistics import measure
from workloads.arrivals import Poisson
from workloads.bursts import Gamma
from workloads.coupling import coupled
from workloads.formats.rows import Rows
from workloads.lengths import Lognormal
from workloads.rates import Mmpp


def made(law, span_s, prompt=None, correlation=0.0):
    rng = np.random.default_rng(4)
    time_s = law.times_s(rng, 0.0, span_s, None)
    u, v = coupled(*rng.spawn(2), len(time_s), correlation)
    prompt = prompt or Lognormal(mean=800, cv=1.0)
    return Rows(
        np.rint(time_s * 1e9).astype(np.int64), prompt.from_uniform(u), Lognormal(mean=200, cv=0.7).from_uniform(v)
    )


@pytest.mark.parametrize(
    "law",
    [
        Poisson(rate_per_s=4.0),
        Gamma(rate_per_s=4.0, cv=2.5),
        Mmpp(rates_per_s=(20.0, 0.5), means_s=(4.0, 16.0)),
    ],
    ids=["poisson", "gamma", "mmpp"],
)
def test_what_is_fitted_makes_traffic_like_the_trace_s(law):
    found = fit(made(law, 6000.0))
    best = found.arrivals[0]
    assert best.law.rate_per_s == pytest.approx(found.rate_per_s, rel=1e-6)
    assert best.ks < 0.06
    for width, seen in found.dispersion.items():
        assert best.dispersion[width] == pytest.approx(seen, rel=0.45)
    if isinstance(law, Gamma):
        likely = next(one for one in found.arrivals if one.how.startswith("likelihood") and one.law.kind == "gamma")
        assert likely.law.cv == pytest.approx(2.5, rel=0.1)  # gaps below 1 us count as 1 us
        assert likely.ks < 0.06
    if isinstance(law, Mmpp):
        poisson = next(one for one in found.arrivals if one.law.kind == "poisson")
        assert poisson.distance > 5 * best.distance
        assert best.law.kind == "mmpp"


def test_lengths_and_their_correlation_are_found():
    found = fit(made(Poisson(rate_per_s=4.0), 5000.0, correlation=0.5))
    assert found.prompt[0].law.kind == "lognormal"
    assert found.prompt[0].law.mean == pytest.approx(800, rel=0.05)
    assert found.prompt[0].law.cv == pytest.approx(1.0, rel=0.05)
    assert found.rank_correlation == pytest.approx(0.5, abs=0.03)
    workload = yaml.safe_load(yaml.safe_dump(found.workload("me")))
    assert workload["length_correlation"] == pytest.approx(0.5, abs=0.03)
    assert "lognormal" in report(found)


def test_lengths_that_are_not_lognormal_become_a_table():
    class TwoHumps:
        def from_uniform(self, u):
            return np.where(u < 0.5, 10 + (u * 10).astype(np.int64), 5000 + (u * 100).astype(np.int64))

    found = fit(made(Poisson(rate_per_s=4.0), 1000.0, prompt=TwoHumps()))
    assert found.prompt[0].law.kind == "empirical"
    assert found.prompt[0].ks < 0.05


def test_the_index_of_dispersion_is_that_of_inspect():
    rows = made(Gamma(rate_per_s=4.0, cv=2.0), 3000.0)
    since_s = rows.since_s(int(rows.time_ns[0]))
    for width, window in measure([rows]).windows.items():
        assert index_of_dispersion(since_s, width, float(since_s[-1])) == pytest.approx(window.dispersion, rel=1e-6)


def test_too_little_to_fit_is_refused():
    one = np.ones(50, dtype=np.int64)
    with pytest.raises(ValueError, match="50 requests are too few"):
        fit(Rows(np.arange(50), one, one))
    one = np.ones(500, dtype=np.int64)
    with pytest.raises(ValueError, match="all requests came at once"):
        fit(Rows(one, one, one))
