"""One pass in parts gives what the whole in memory gives, and known processes have their known figures."""

from __future__ import annotations

import itertools
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.traces.report import as_mapping, as_table
from sim.traces.sources import merged, open_source, spread_out
from sim.traces.statistics import SERIES_BINS, measure
from workloads.arrivals import Poisson
from workloads.bursts import OnOff
from workloads.formats.rows import Blocks, Labels, Rows, join_rows

DATA = os.environ.get("TOKENPOOLS_DATA")
real = pytest.mark.skipif(DATA is None, reason="TOKENPOOLS_DATA names no folder of real traces")


def rows_at(time_s, **columns):
    n = len(time_s)
    rng = np.random.default_rng(0)
    prompt, output = rng.integers(1, 5000, n), rng.integers(1, 900, n)
    return Rows(np.rint(np.asarray(time_s) * 1e9).astype(np.int64), prompt, output, **columns)


def in_parts(rows, cuts):
    edges = sorted({0, len(rows), *(cut % (len(rows) + 1) for cut in cuts)})
    return [rows.take(slice(a, b)) for a, b in itertools.pairwise(edges)]


@st.composite
def some_rows(draw):
    gaps = draw(st.lists(st.floats(0, 40), min_size=2, max_size=60))
    n = len(gaps)
    ids = draw(st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=n, max_size=n))
    who = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return rows_at(
        np.cumsum(gaps),
        tenant=Labels(np.array(who, np.int32), ("a", "b", "c", "d")),
        blocks=Blocks(np.array([i for one in ids for i in one], np.int64), np.cumsum([len(i) for i in ids]), 16),
    )


@given(rows=some_rows(), cuts=st.lists(st.integers(0, 100), max_size=8))
def test_parts_give_what_the_whole_in_memory_gives(rows, cuts):
    found = measure(in_parts(rows, cuts))
    since_s = rows.since_s(int(rows.time_ns[0]))
    gaps_s = np.diff(since_s)
    assert found.count == len(rows)
    if len(gaps_s) > 1 and gaps_s.mean() > 1e-6:
        assert found.gaps_s.cv == pytest.approx(gaps_s.std() / gaps_s.mean(), rel=1e-6, abs=1e-9)
    for width_s, window in found.windows.items():
        whole = int((rows.time_ns[-1] - rows.time_ns[0]) // round(width_s * 1e9))
        number = (rows.time_ns - rows.time_ns[0]) // round(width_s * 1e9)
        counts = np.bincount(number[number < whole], minlength=whole)
        assert window.counts.n == whole
        if whole:
            assert window.counts.mean == pytest.approx(counts.mean())
            assert window.most == counts.max()
        if whole > 1 and counts.any():
            assert window.dispersion == pytest.approx(counts.var() / counts.mean(), rel=1e-9, abs=1e-12)
    assert found.prompt.quantile(0.5) == np.quantile(rows.prompt_tokens, 0.5, method="inverted_cdf")
    assert found.prompt.quantile(0.99) == np.quantile(rows.prompt_tokens, 0.99, method="inverted_cdf")
    assert found.series.counts.sum() == len(rows)
    names = rows.tenant.texts()
    assert dict(found.tenants) == {name: names.count(name) for name in set(names)}
    logs = np.log(rows.prompt_tokens), np.log(rows.output_tokens)
    if len(rows) > 2:
        assert found.log_correlation == pytest.approx(np.corrcoef(*logs)[0, 1], abs=1e-9)
    seen: set[int] = set()
    reused = 0
    for own, prompt in zip(rows.blocks.lists(), rows.prompt_tokens.tolist(), strict=True):
        reused += min(prompt, 16 * sum(one in seen for one in own))
        seen.update(own)
    if seen:
        assert (found.reuse.reused_tokens, len(found.reuse.distinct)) == (reused, len(seen))


def test_known_processes_have_their_known_figures():
    rng = np.random.default_rng(1)
    poisson = measure([rows_at(Poisson(rate_per_s=5.0).times_s(rng, 0.0, 20_000.0, None))])
    assert poisson.rate_per_s == pytest.approx(5.0, rel=0.02)
    assert poisson.gaps_s.cv == pytest.approx(1.0, rel=0.02)
    for window in poisson.windows.values():
        # The index of dispersion of n independent Poisson counts varies by sqrt(2/n).
        assert abs(window.dispersion - 1.0) < 4 * math.sqrt(2 / window.counts.n)
    law = OnOff(rate_on_per_s=20.0, mean_on_s=2.0, mean_off_s=8.0)
    bursty = measure([rows_at(law.times_s(rng, 0.0, 40_000.0, None))])
    s, mean = 1 / 2.0 + 1 / 8.0, 4.0
    for width_s, window in bursty.windows.items():
        expected = 1 + 2 * 20.0**2 * 0.2 * 0.8 / (mean * s) * (1 - (1 - math.exp(-s * width_s)) / (s * width_s))
        assert window.dispersion == pytest.approx(expected, rel=0.12)


def test_a_long_trace_keeps_to_its_bins():
    rows = rows_at(np.arange(0, 40_000_000.0, 4_000.0))
    found = measure(in_parts(rows, range(0, 10_000, 997)))
    assert len(found.series.counts) == SERIES_BINS
    assert found.series.counts.sum() == 10_000
    assert found.span_s < found.series.width_ns / 1e9 * SERIES_BINS < 2.1 * found.span_s


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_requests_to_say_are_said_so(n):
    found = measure([rows_at(np.zeros(n))])
    mapping = as_mapping(found, "x", "azure-llm")
    assert mapping["rate_per_s"] is None
    assert mapping["dispersion"]["60s"] is None
    assert "CV -" in as_table(found, "x", "azure-llm")


@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=30).filter(lambda counts: counts[0] > 0),
    cuts=st.lists(st.integers(0, 100), max_size=8),
)
def test_spreading_parts_is_spreading_the_whole(counts, cuts):
    rows = rows_at(np.repeat(np.arange(len(counts)) * 3.0, counts))
    got = join_rows(list(spread_out(in_parts(rows, cuts), 3.0, seed=1)))
    assert np.all(np.diff(got.time_ns) >= 0)
    assert np.bincount(got.time_ns // 3_000_000_000, minlength=len(counts)).tolist() == counts
    assert np.array_equal(got.prompt_tokens, rows.prompt_tokens)


def test_times_that_are_not_rounded_stay():
    rows = rows_at([0.0, 0.7, 3.0])
    assert next(iter(spread_out([rows], 3.0, seed=1))) is rows


@given(
    traces=st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20).map(sorted), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 100), max_size=6),
)
def test_merging_keeps_every_request_in_order_of_time(traces, cuts):
    named = [(f"t{i}", in_parts(rows_at(np.array(times, float)), cuts)) for i, times in enumerate(traces)]
    got = join_rows(list(merged(named)))
    want = sorted((at, i) for i, times in enumerate(traces) for at in times)
    services = got.service.texts() if got.service else ["t0"] * len(got)
    assert list(zip((got.time_ns // 10**9).tolist(), services, strict=True)) == [(at, f"t{i}") for at, i in want]


@real
@pytest.mark.parametrize(
    ("name", "requests", "cv"),
    [  # as in the description of the data
        ("azure-llm-2023/code", 8_819, 13),
        ("azure-llm-2023/conv", 19_366, 1.1),
        ("lmsys-arena-vtc", 1_500, None),
        ("mooncake-fast25/conversation", 12_031, None),
    ],
)
def test_real_traces_agree_with_their_description(name, requests, cv):
    found = measure(open_source(name).rows())
    assert found.count == requests
    if cv is not None:
        assert found.gaps_s.cv == pytest.approx(cv, rel=0.03)
    if name == "lmsys-arena-vtc":
        assert len(found.tenants) == 27
