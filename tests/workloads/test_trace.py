from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.formats.rows import Rows
from workloads.formats.times import parse_time_ns
from workloads.trace import TRACES, Trace, TraceError, TraceWindow, locate

NOON_NS = 1_700_136_000_000_000_000  # 2023-11-16 12:00:00
real = pytest.mark.skipif("TOKENPOOLS_DATA" not in os.environ, reason="TOKENPOOLS_DATA names no folder of real traces")


def rows(*time_s):
    count = len(time_s)
    time_ns = NOON_NS + np.rint(np.array(time_s, dtype=float) * 1e9).astype(np.int64)
    return Rows(time_ns, np.arange(count) + 10, np.arange(count) + 1, dated=True)


def replay(trace, of, from_s=0.0, until_s=math.inf, limit=None, seed=0):
    zero_ns = parse_time_ns(trace.origin) if trace.origin else int(of.time_ns[0])
    rng, shared = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    return trace.replay(TraceWindow(of, zero_ns, trace.spread_s or 0.0), rng, from_s, until_s, limit, shared)


MINUTE = rows(0.0, 10.0, 20.0, 30.0, 30.0, 45.0)


def test_a_trace_starts_where_the_workload_does():
    got = replay(Trace(file="x"), MINUTE, from_s=100.0)
    assert got.arrival_s.tolist() == [100.0, 110.0, 120.0, 130.0, 130.0, 145.0]
    assert got.prompt_tokens.tolist() == [10, 11, 12, 13, 14, 15]
    assert got.output_tokens.tolist() == [1, 2, 3, 4, 5, 6]


def test_scale_divides_every_gap():
    assert replay(Trace(file="x", scale=2.0), MINUTE).arrival_s.tolist() == [0.0, 5.0, 10.0, 15.0, 15.0, 22.5]
    assert replay(Trace(file="x", scale=0.2), MINUTE).arrival_s.tolist() == [0.0, 50.0, 100.0, 150.0, 150.0, 225.0]


def test_a_cut_is_in_trace_time_and_leaves_its_end_out():
    got = replay(Trace(file="x", scale=2.0, from_trace_s=5.0, until_trace_s=30.0), MINUTE, from_s=7.0)
    assert got.arrival_s.tolist() == [9.5, 14.5]
    assert got.prompt_tokens.tolist() == [11, 12]
    assert len(replay(Trace(file="x", from_trace_s=10.0, until_trace_s=10.5), MINUTE).arrival_s) == 1


def test_the_window_of_the_run_and_the_limit_cut_the_end():
    assert replay(Trace(file="x"), MINUTE, until_s=30.0).arrival_s.tolist() == [0.0, 10.0, 20.0]
    assert replay(Trace(file="x"), MINUTE, limit=4).prompt_tokens.tolist() == [10, 11, 12, 13]


def test_an_origin_keeps_two_traces_of_one_clock_together():
    early = Trace(file="x", origin="2023-11-16 11:59:50")
    assert replay(early, MINUTE).arrival_s.tolist() == [10.0, 20.0, 30.0, 40.0, 40.0, 55.0]
    late = Trace(file="x", origin="2023-11-16 12:00:25.5", until_trace_s=10.0)
    assert replay(late, MINUTE).arrival_s.tolist() == [4.5, 4.5]


def test_a_cut_without_rows_is_refused_with_the_span_that_there_is():
    with pytest.raises(TraceError, match=r"x: no row from 100 s to inf s of trace time; its rows span 0 s to 45 s"):
        replay(Trace(file="x", from_trace_s=100.0), MINUTE)


def test_thinning_keeps_the_share_asked_for_and_moves_nothing():
    many = rows(*range(20_000))
    got = replay(Trace(file="x", thin=0.3), many)
    assert abs(len(got.arrival_s) / 20_000 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 20_000)
    assert np.array_equal(got.prompt_tokens, got.arrival_s.astype(int) + 10)  # each kept its own time and lengths


@given(
    times=st.lists(st.floats(0, 1000), min_size=1).map(sorted),
    scale=st.floats(0.1, 10),
    thin=st.floats(0.1, 1),
    until_s=st.floats(0, 2000),
    limit=st.integers(0, 20),
)
def test_a_shorter_window_or_lower_limit_only_drops_the_end(times, scale, thin, until_s, limit):
    of = rows(*(at - times[0] for at in times))
    trace = Trace(file="x", scale=scale, thin=thin)
    whole = replay(trace, of)
    part = replay(trace, of, until_s=until_s, limit=limit)
    count = len(part.arrival_s)
    assert count == min(limit, int(np.sum(whole.arrival_s < until_s)))
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        assert np.array_equal(getattr(part, name), getattr(whole, name)[:count])
    assert np.all(np.diff(whole.arrival_s) >= 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"from_trace_s": 60.0, "until_trace_s": 60.0}, "until_trace_s 60 is not after from_trace_s 60"),
        ({"origin": "noon"}, "origin 'noon' is no time"),
        ({"origin": "2023-11-16 24:00:00"}, "is no time"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Trace(file="x", **fields)


def test_names_are_looked_up_in_the_data_folder_and_paths_anywhere(tmp_path, monkeypatch):
    name = "azure-llm-2023/conv"
    published = tmp_path / "data" / TRACES[name]
    published.parent.mkdir(parents=True)
    published.touch()
    own = tmp_path / "own.csv"
    own.touch()
    monkeypatch.chdir(tmp_path)
    assert locate(name, tmp_path / "data") == published
    assert locate(str(own), None) == own
    assert locate("own.csv", None) == Path("own.csv")
    assert locate(TRACES[name], tmp_path / "data") == published


@pytest.mark.parametrize(
    ("file", "folder", "message"),
    [
        (
            "azure-llm-2023/conv",
            None,
            "azure-llm-2023/conv: not fetched yet, and no folder of trace data is named; tokenpools trace fetch azure",
        ),
        ("azure-llm-2023/conv", "", "azure-llm-2023/conv: not found as .*conv.csv; put the published file there"),
        ("azure-llm-2023/con", "", r"azure-llm-2023/con: no such file; did you mean azure-llm-2023/conv\?"),
        ("zzz", "", "zzz: no such file; give the path of a trace or one of azure-llm-2023/code, "),
        (".", "", ".: no such file"),
    ],
)
def test_a_trace_that_is_not_there(tmp_path, monkeypatch, file, folder, message):
    monkeypatch.setenv("TOKENPOOLS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(TraceError, match=message):
        locate(file, None if folder is None else tmp_path)


@real
def test_the_two_azure_services_share_a_clock():
    folder = Path(os.environ["TOKENPOOLS_DATA"])
    first_s = {}
    for name in ("azure-llm-2023/code", "azure-llm-2023/conv"):
        trace = Trace(file=name, origin="2023-11-16 18:15:00")
        first_s[name] = replay(trace, trace.read(folder).rows).arrival_s[0]
    # The first rows of the files: 18:15:46.680590 and 18:17:03.979960.
    assert first_s == {
        "azure-llm-2023/conv": pytest.approx(46.68059, abs=1e-9),
        "azure-llm-2023/code": pytest.approx(123.97996, abs=1e-9),
    }
