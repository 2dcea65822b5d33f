"""What may be done to a trace: counts and rates kept or changed as each transformation says."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.seeds import stream
from workloads import transforms
from workloads.formats.errors import TraceError
from workloads.formats.rows import Blocks, Labels, Rows
from workloads.generate import WorkloadSpec, generate
from workloads.lengths import Constant
from workloads.trace import Columns, Trace, TraceWindow

DATA = os.environ.get("TOKENPOOLS_DATA")
real = pytest.mark.skipif(DATA is None, reason="TOKENPOOLS_DATA names no folder of real traces")


def random_rows(n=4000, seed=0, **columns):
    rng = np.random.default_rng(seed)
    time_ns = np.cumsum(rng.integers(0, 10**9, n))
    return Rows(time_ns, np.arange(1, n + 1), np.full(n, 10), **columns)


def replay(trace, rows, until_s=math.inf, seed=1, shared=2):
    cut = TraceWindow(rows, int(rows.time_ns[0]), trace.spread_s or 0.0)
    return trace.replay(cut, np.random.default_rng(seed), 0.0, until_s, None, np.random.default_rng(shared))


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=40), bin_s=st.sampled_from([1.0, 3.0]))
def test_spreading_keeps_every_bin_s_count_and_the_order(counts, bin_s):
    time_s = np.repeat(np.arange(len(counts)) * bin_s, counts)
    got = transforms.jitter_within_bins(time_s, bin_s, np.random.default_rng(0))
    assert np.all(np.diff(got) >= 0)
    assert np.bincount((got / bin_s).astype(int), minlength=len(counts)).tolist() == counts


def test_superposing_multiplies_the_rate_and_keeps_the_duration_and_each_request():
    rows = random_rows()
    once, thrice = replay(Trace(file="x"), rows), replay(Trace(file="x", superpose=3), rows)
    assert len(thrice.arrival_s) == 3 * len(once.arrival_s)
    assert thrice.arrival_s[-1] <= once.arrival_s[-1]
    assert np.array_equal(np.sort(thrice.prompt_tokens), np.repeat(once.prompt_tokens, 3))
    assert np.all(np.diff(thrice.arrival_s) >= 0)


def test_superposing_smooths_and_stretching_does_not():
    rng = np.random.default_rng(5)
    bursts_s = np.sort((np.arange(100)[:, None] * 50.0 + rng.random((100, 40))).ravel())
    rows = Rows((bursts_s * 1e9).astype(np.int64), np.ones(4000, np.int64), np.ones(4000, np.int64))

    def relative_variance(got, window_s):
        counts = np.bincount((got.arrival_s / window_s).astype(int))
        return counts.var() / counts.mean() ** 2

    once = relative_variance(replay(Trace(file="x"), rows), 10.0)
    faster = relative_variance(replay(Trace(file="x", scale=20.0), rows), 0.5)  # the same windows, in trace time
    smoother = relative_variance(replay(Trace(file="x", superpose=20), rows), 10.0)
    assert faster == pytest.approx(once, rel=0.05)
    assert smoother < once / 8  # theory: by 20, of copies whose rotations are independent


def test_redrawing_keeps_blocks_and_the_rate_and_fills_any_duration():
    rows = random_rows()
    trace = Trace(file="x", bootstrap_block_s=30.0)
    got = replay(trace, rows, until_s=20_000.0)
    rate = len(rows) / ((rows.time_ns[-1] - rows.time_ns[0]) / 1e9)
    # Blocks overlap, so their counts vary as a mean over 667 draws of windows of 30 s.
    assert len(got.arrival_s) / 20_000.0 == pytest.approx(rate, rel=0.05)
    assert got.arrival_s[-1] > 19_900
    assert np.mean(np.diff(got.prompt_tokens) == 1) > 0.95  # neighbours stay neighbours, but at block ends
    other = replay(trace, rows, until_s=20_000.0, seed=9)
    assert not np.array_equal(other.prompt_tokens[:100], got.prompt_tokens[:100])


@given(groups=st.integers(1, 9), skew=st.floats(0, 3), by=st.sampled_from(["skew", "session", "prefix"]))
def test_groups_divide_a_trace_each_request_to_one(groups, skew, by):
    n = 300
    rng = np.random.default_rng(3)
    rows = random_rows(
        n,
        session=Labels(rng.integers(0, 40, n, dtype=np.int32), tuple(f"s{i}" for i in range(40))),
        blocks=Blocks(
            np.stack([np.zeros(n, np.int64), rng.integers(1, 9, n)], axis=1).ravel(), np.arange(1, n + 1) * 2, 16
        ),
    )
    seen = np.zeros(n, dtype=int)
    for group in range(groups):
        trace = Trace(file="x", groups=groups, group=group, group_by=by, skew=skew)
        tokens = replay(trace, rows, seed=group).prompt_tokens  # the stream of the workload is its own
        seen[tokens - 1] += 1
        for key, label in (("session", rows.session.codes), ("prefix", rows.blocks.ids[1::2])):
            if by == key:
                assert set(label[tokens - 1]).isdisjoint(np.delete(label, tokens - 1))
    assert seen.tolist() == [1] * n


def test_groups_have_the_sizes_of_the_skew():
    sizes = [len(replay(Trace(file="x", groups=4, group=k, skew=1.0), random_rows(20_000)).arrival_s) for k in range(4)]
    expected = np.array([1, 1 / 2, 1 / 3, 1 / 4]) / (25 / 12)
    error = 4 * np.sqrt(expected * (1 - expected) / 20_000)
    assert np.all(np.abs(np.array(sizes) / 20_000 - expected) < error)


def test_a_tenant_is_chosen_by_its_name():
    rows = random_rows(6, tenant=Labels(np.array([0, 1, 0, 2, 1, 0], np.int32), ("a", "b", "c")))
    assert replay(Trace(file="x", tenant="a"), rows).prompt_tokens.tolist() == [1, 3, 6]
    with pytest.raises(TraceError, match="x: no row is tenant 'd'; give one of a, b, c"):
        replay(Trace(file="x", tenant="d"), rows)
    with pytest.raises(TraceError, match="x: it has no service column; use groups instead"):
        replay(Trace(file="x", service="d"), rows)
    with pytest.raises(TraceError, match="x: it has no sessions; use group_by: skew"):
        replay(Trace(file="x", groups=2, group=0, group_by="session"), rows)


def test_lengths_are_multiplied_then_cut():
    trace = Trace(file="x", prompt_factor=0.3, prompt_at_most_tokens=2, output_factor=2.0)
    got = replay(trace, random_rows(8))
    assert got.prompt_tokens.tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert got.output_tokens.tolist() == [20] * 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group": 1}, "group and groups go together"),
        ({"groups": 2, "group": 2}, "group 2 is not among 2"),
        (
            {"format": "mooncake", "columns": Columns(time="a", prompt="b", output="c")},
            "format is given beside columns",
        ),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Trace(file="x", **fields)


@given(
    fields=st.fixed_dictionaries(
        {
            "scale": st.floats(0.2, 5),
            "thin": st.floats(0.2, 1),
            "superpose": st.integers(1, 3),
            "spread_s": st.sampled_from([0.0, 3.0]),
            "from_trace_s": st.floats(0, 100),
            "groups": st.just(3),
            "group": st.integers(0, 2),
        }
    ),
    until_s=st.floats(0, 400),
)
def test_a_shorter_window_only_drops_the_end(fields, until_s):
    rows = random_rows(400)
    whole = replay(Trace(file="x", **fields), rows)
    part = replay(Trace(file="x", **fields), rows, until_s=until_s)
    count = len(part.arrival_s)
    assert count == int(np.sum(whole.arrival_s < until_s))
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        assert np.array_equal(getattr(part, name), getattr(whole, name)[:count])


def demand(trace, horizon_s=math.inf, folder=None, name="w"):
    spec = WorkloadSpec(name=name, entitlement="e", arrivals=trace)
    return generate(spec, functools.partial(stream, 7, 0), horizon_s, folder)


def test_a_table_of_other_names_is_replayed_through_its_map(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("who,when,n_in,n_out\nacme,1500,10,20\nzeta,2750,11,21\n")
    columns = Columns(time="when", prompt="n_in", output="n_out", tenant="who", time_unit="ms")
    got = demand(Trace(file=str(path), columns=columns, tenant="zeta"))
    assert (got.arrival_s.tolist(), got.prompt_tokens.tolist()) == ([1.25], [11])
    got = demand(Trace(file=str(path), columns=dataclasses.replace(columns, tenant=None)), horizon_s=1.0)
    assert got.prompt_tokens.tolist() == [10]


@real
def test_reading_only_what_a_run_needs_changes_nothing():
    for file in ("mooncake-fast25/conversation", "azure-llm-2023/conv", "lmsys-arena-vtc"):
        trace = Trace(file=file, from_trace_s=61.0, scale=2.0, thin=0.7, groups=2, group=1)
        whole, part = demand(trace, folder=Path(DATA)), demand(trace, 100.0, folder=Path(DATA))
        count = int(np.sum(whole.arrival_s < 100.0))
        assert len(part) == count > 20
        assert np.array_equal(part.arrival_s, whole.arrival_s[:count])
        assert np.array_equal(part.prompt_tokens, whole.prompt_tokens[:count])


@real
def test_mooncake_s_bins_are_spread_unless_told_otherwise():
    name = "mooncake-fast25/conversation"
    published = demand(Trace(file=name, spread_s=0.0), folder=Path(DATA)).arrival_s
    got = demand(Trace(file=name), folder=Path(DATA)).arrival_s
    bins = np.rint(published / 3.0)
    assert np.abs(published / 3.0 - bins).max() < 0.0015  # all but a few milliseconds
    assert np.array_equal(np.floor(got / 3.0), bins)
    assert len(np.unique(got)) == len(got) == 12_031


@pytest.mark.parametrize("given_", [{"prompt_factor": 0.5}, {"prompt_at_most_tokens": 100}])
def test_a_change_to_prompts_that_a_law_replaces_is_refused(given_):
    law = Constant(value=5)
    with pytest.raises(ValueError, match=f"{next(iter(given_))} changes a trace's prompts, and prompt_tokens replaces"):
        WorkloadSpec(name="w", entitlement="e", arrivals=Trace(file="x", **given_), prompt_tokens=law)
    WorkloadSpec(name="w", entitlement="e", arrivals=Trace(file="x", **given_), output_tokens=law)
    WorkloadSpec(name="w", entitlement="e", arrivals=Trace(file="x"), prompt_tokens=law)
