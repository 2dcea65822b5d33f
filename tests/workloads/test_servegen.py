"""ServeGen clients: rates, variation and lengths as published, and no code in a histogram is ever run."""

from __future__ import annotations

import functools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sim.seeds import stream
from workloads.formats.errors import TraceError
from workloads.servegen import ServeGen, clients_in, parse_histogram, read_client

DATA = os.environ.get("TOKENPOOLS_DATA")
real = pytest.mark.skipif(DATA is None, reason="TOKENPOOLS_DATA names no folder of real traces")


@pytest.fixture
def folder(tmp_path):
    """Two clients: one steady for two windows, one in the second window only."""
    for number, rates in ((0, (5.0, 5.0, 0.0)), (3, (0.0, 2.0, 0.0))):
        lines = [f"{600 * i},{rate},{1.0 if rate else 0},{'Gamma' if rate else ''},1,1" for i, rate in enumerate(rates)]
        (tmp_path / f"chunk-{number}-trace.csv").write_text("\n".join(lines))
        early = {"input_tokens": "{10: 0.25, 20: 0.75}", "output_tokens": "{5: 1.0}", "reason_ratio": "{0.0: 1.0}"}
        late = {"input_tokens": "{300: 1.0}", "output_tokens": "{}", "reason_ratio": "{}"}
        (tmp_path / f"chunk-{number}-dataset.json").write_text(json.dumps({"0": early, "900": late}))
    return tmp_path


def requests(law, folder=None, until_s=math.inf, limit=None, name="w"):
    return law.requests(functools.partial(stream, 5, 0), name, folder, 0.0, until_s, limit)


def test_clients_keep_their_windows_and_stretches(folder):
    got = requests(ServeGen(folder=str(folder), client=0))
    assert abs(len(got.arrival_s) - 6000) < 4 * math.sqrt(6000)
    assert got.arrival_s[-1] < 1200
    early = got.arrival_s < 900
    assert set(got.prompt_tokens[early]) == {10, 20}
    assert np.mean(got.prompt_tokens[early] == 20) == pytest.approx(0.75, abs=0.03)
    assert set(got.prompt_tokens[~early]) == {300}
    assert set(got.output_tokens) == {5}  # an empty histogram: that of the stretch before
    only = requests(ServeGen(folder=str(folder), client=3))
    assert only.arrival_s[0] >= 600


def test_all_clients_are_each_of_them_together(folder):
    everyone = requests(ServeGen(folder=str(folder)))
    each = [requests(ServeGen(folder=str(folder), client=number)).arrival_s for number in (0, 3)]
    assert np.array_equal(everyone.arrival_s, np.sort(np.concatenate(each)))


def test_a_cut_of_the_day_is_the_day_s_own(folder):
    whole = requests(ServeGen(folder=str(folder), client=0))
    part = requests(ServeGen(folder=str(folder), client=0, from_trace_s=500.0), until_s=300.0)
    inside = (whole.arrival_s >= 500) & (whole.arrival_s < 800)
    assert np.allclose(part.arrival_s + 500.0, whole.arrival_s[inside])


@pytest.mark.parametrize(("asked", "low", "high"), [(0.0, -0.1, 0.1), (1.0, 0.99, 1.0)])
def test_both_couplings_are_offered(tmp_path, asked, low, high):
    (tmp_path / "chunk-0-trace.csv").write_text("0,5,1,Gamma,1,1\n600,5,1,Weibull,1,1")
    law = {str(i): 0.01 for i in range(1, 101)}
    text = str({int(k): v for k, v in law.items()})
    (tmp_path / "chunk-0-dataset.json").write_text(json.dumps({"0": {"input_tokens": text, "output_tokens": text}}))
    got = requests(ServeGen(folder=str(tmp_path), rank_correlation=asked))
    assert low <= stats.spearmanr(got.prompt_tokens, got.output_tokens).statistic <= high


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch exploded')",
        "{1: __import__('os').getpid()}",
        "{1: 0.5, **{2: 0.5}}",
        "[1, 2]",
        "{1: 1e}",
        "{'1': 0.5}",
        "{1: 0.5} or exit()",
        "{1: inf}",
    ],
)
def test_a_literal_with_code_in_it_is_refused_and_nothing_runs(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TraceError, match=r"0\.input_tokens is not a dictionary of numbers, and was not evaluated"):
        parse_histogram(text, "f.json", "0.input_tokens")
    assert list(tmp_path.iterdir()) == []


@given(shares=st.dictionaries(st.integers(1, 10**6), st.floats(1e-9, 1.0), max_size=20))
def test_histograms_are_read_as_python_writes_them(shares):
    found = parse_histogram(str(shares), "f.json", "x")
    if not shares:
        assert found is None
    else:
        assert found.tokens.tolist() == sorted(shares)
        total = sum(shares.values())
        assert np.diff(found.share, prepend=0.0) == pytest.approx([shares[k] / total for k in sorted(shares)], abs=1e-9)


@pytest.mark.parametrize(
    ("trace", "problem"),
    [
        ("0,5,1,Gamma,1,1", "fewer than two windows"),
        ("0,5,1,Gamma\n0,5,1,Gamma", "row 2: the window is not after"),
        ("0,5,1,Gamma\n600,-5,1,Gamma", "row 2: a number is negative"),
        ("0,5,1,Gamma\n600,5,1,Cauchy", "row 2: family 'Cauchy' is unknown"),
        ("0,5,1,Gamma\nx", "row 2: 'x' is not a window"),
    ],
)
def test_damaged_clients_are_named(folder, trace, problem):
    (folder / "chunk-3-trace.csv").write_text(trace)
    with pytest.raises(TraceError, match=problem):
        requests(ServeGen(folder=str(folder), client=3))


def test_clients_that_are_not_there_are_named(folder, tmp_path_factory):
    with pytest.raises(TraceError, match="there is no client 2; give one of 0 to 3"):
        requests(ServeGen(folder=str(folder), client=2))
    with pytest.raises(TraceError, match="no such folder"):
        requests(ServeGen(folder="none"))
    with pytest.raises(TraceError, match="there is no chunk-0-trace"):
        requests(ServeGen(folder=str(tmp_path_factory.mktemp("empty"))))


@real
def test_the_published_day_has_its_73_clients_rates_and_variation():
    place = Path(DATA) / "servegen-deepseek-r1"
    numbers = clients_in(place)
    assert len(numbers) == 73
    client = read_client(place, 5)
    got = requests(ServeGen(folder=str(place), client=5))
    expected = float(client.rates_per_s.sum() * client.window_s)
    # Counts of a window of a renewal process vary about rate * window * cv^2.
    variance = float((client.rates_per_s * client.window_s * client.cvs**2).sum())
    assert abs(len(got.arrival_s) - expected) < 4 * math.sqrt(variance)
    assert client.window_s == 600.0
    assert got.arrival_s[-1] < 86_400
