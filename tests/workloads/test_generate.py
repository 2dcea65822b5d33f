from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.seeds import stream
from workloads.arrivals import Even, Poisson
from workloads.clients import Drop
from workloads.generate import WorkloadSpec, generate
from workloads.lengths import Constant, Lognormal, Uniform
from workloads.registry import ARRIVALS, CLIENTS, LENGTHS
from workloads.trace import Trace, TraceError

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens", "max_output_tokens")
BASE = WorkloadSpec(
    name="chat",
    entitlement="chat",
    arrivals=Poisson(rate_per_s=3.0),
    prompt_tokens=Lognormal(mean=512, cv=0.8),
    output_tokens=Uniform(low=32, high=176),
    max_output_tokens=Uniform(low=100, high=200),
)


def demand(spec, *, seed=7, replication=0, horizon_s=100.0, folder=None):
    return generate(spec, functools.partial(stream, seed, replication), horizon_s, folder)


def changed(before, after):
    """Names of the columns that differ in what both have."""
    count = min(len(before), len(after))
    assert count > 100
    return {name for name in COLUMNS if not np.array_equal(getattr(before, name)[:count], getattr(after, name)[:count])}


def test_the_same_seed_gives_the_same_requests_and_another_does_not():
    assert changed(demand(BASE), demand(BASE)) == set()
    assert changed(demand(BASE), demand(BASE, seed=8)) == set(COLUMNS)
    assert changed(demand(BASE), demand(BASE, replication=1)) == set(COLUMNS)
    assert changed(demand(BASE), demand(dataclasses.replace(BASE, name="other"))) == set(COLUMNS)


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"arrivals": Even(rate_per_s=3.0)}, {"arrival_s"}),
        ({"arrivals": Poisson(rate_per_s=6.0)}, {"arrival_s"}),
        ({"prompt_tokens": Uniform(low=1, high=9)}, {"prompt_tokens"}),
        ({"output_tokens": Uniform(low=1, high=99)}, {"output_tokens"}),
        ({"max_output_tokens": Uniform(low=300, high=400)}, {"max_output_tokens", "output_tokens"}),  # cut-off moves
        ({"entitlement": "other", "priority": 3, "client": Drop()}, set()),
    ],
)
def test_changing_one_law_moves_no_other_draws(change, moved):
    assert changed(demand(BASE), demand(dataclasses.replace(BASE, **change))) == moved


def test_columns_with_the_same_law_are_independent():
    law = Uniform(low=1, high=1000)
    got = demand(dataclasses.replace(BASE, prompt_tokens=law, output_tokens=law, max_output_tokens=None))
    count = len(got)
    assert abs(np.corrcoef(got.prompt_tokens, got.output_tokens)[0, 1]) < 4 / math.sqrt(count) < 0.3
    limits = demand(dataclasses.replace(BASE, prompt_tokens=law, max_output_tokens=law)).max_output_tokens
    for column in (got.prompt_tokens, got.output_tokens):
        assert abs(np.corrcoef(limits, column)[0, 1]) < 4 / math.sqrt(count)


@given(horizon_s=st.floats(0.0, 300.0), requests=st.integers(0, 100))
def test_the_horizon_and_the_number_of_requests_only_cut_the_end(horizon_s, requests):
    whole = demand(BASE, horizon_s=300.0)
    part = demand(dataclasses.replace(BASE, requests=requests), horizon_s=horizon_s)
    assert len(part) == min(requests, int(np.sum(whole.arrival_s < horizon_s)))
    for name in COLUMNS:
        assert np.array_equal(getattr(part, name), getattr(whole, name)[: len(part)])


def test_a_phase_is_a_window_of_the_run():
    spec = dataclasses.replace(BASE, arrivals=Even(rate_per_s=1.0, phase_s=0.0), from_s=30.0, until_s=33.0)
    assert demand(spec).arrival_s.tolist() == [30.0, 31.0, 32.0]
    assert demand(spec, horizon_s=31.5).arrival_s.tolist() == [30.0, 31.0]
    assert len(demand(spec, horizon_s=30.0)) == 0
    assert len(demand(spec, horizon_s=20.0)) == 0


def test_without_a_law_the_client_asks_for_the_true_length():
    got = demand(dataclasses.replace(BASE, max_output_tokens=None))
    assert np.array_equal(got.max_output_tokens, got.output_tokens)
    assert got.output_tokens.max() > 150


def test_a_drawn_limit_cuts_the_output_off():
    free = demand(dataclasses.replace(BASE, max_output_tokens=None))
    got = demand(BASE)
    assert np.array_equal(got.output_tokens, np.minimum(free.output_tokens, got.max_output_tokens))
    assert 0 < np.mean(got.output_tokens == got.max_output_tokens) < 1


def test_a_client_that_names_no_limit_asks_for_0_and_is_not_cut_off():
    got = demand(dataclasses.replace(BASE, max_output_tokens=None, ask_max_tokens=False))
    assert set(got.max_output_tokens.tolist()) == {0}
    assert got.output_tokens.max() > 150


@pytest.fixture
def trace_file(tmp_path):
    path = tmp_path / "own.csv"
    lines = [f"2023-11-16 12:00:{second:02}.0000000,{100 + second},{second + 1}" for second in range(10)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    return path


def test_a_trace_brings_its_lengths_and_a_law_beside_it_replaces_them(trace_file):
    spec = WorkloadSpec(
        name="a", entitlement="a", arrivals=Trace(file="own.csv", scale=2.0), from_s=5.0, until_s=7.0, requests=9
    )
    got = demand(spec, folder=trace_file.parent)
    assert got.arrival_s.tolist() == [5.0, 5.5, 6.0, 6.5]
    assert got.prompt_tokens.tolist() == [100, 101, 102, 103]
    assert got.output_tokens.tolist() == got.max_output_tokens.tolist() == [1, 2, 3, 4]
    law = dataclasses.replace(spec, output_tokens=Constant(value=8), max_output_tokens=Constant(value=6))
    got = demand(law, folder=trace_file.parent)
    assert got.prompt_tokens.tolist() == [100, 101, 102, 103]
    assert got.output_tokens.tolist() == [6, 6, 6, 6]


def test_thinning_a_trace_moves_no_draws_of_lengths(trace_file):
    spec = dataclasses.replace(BASE, arrivals=Trace(file=str(trace_file)))
    whole = demand(spec)
    thinned = demand(dataclasses.replace(spec, arrivals=Trace(file=str(trace_file), thin=0.5)))
    assert 0 < len(thinned) < len(whole) == 10
    assert np.array_equal(thinned.prompt_tokens, whole.prompt_tokens[: len(thinned)])


def test_a_bad_trace_is_named(trace_file):
    with trace_file.open("a") as file:
        file.write("\n2023-11-16 12:00:59,1,x\n")
    spec = dataclasses.replace(BASE, arrivals=Trace(file=str(trace_file)))
    with pytest.raises(TraceError, match=r"own\.csv: row 12: GeneratedTokens 'x' is not a whole number"):
        demand(spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_tokens": None}, "prompt_tokens is missing"),
        ({"output_tokens": None}, "output_tokens is missing"),
        ({"ask_max_tokens": False}, "max_output_tokens is given although ask_max_tokens is false"),
        ({"from_s": 5.0, "until_s": 5.0}, "from_s 5 and until_s 5 leave no time"),
        ({"from_s": -1.0}, "leave no time"),
        ({"from_s": math.nan}, "leave no time"),
        ({"requests": -1}, "requests is -1"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **change)


@pytest.mark.parametrize("registry", [ARRIVALS, LENGTHS, CLIENTS], ids=["arrivals", "lengths", "clients"])
def test_every_registered_kind_can_be_read_from_a_scenario(registry):
    for kind, variant in registry.items():
        first, *others = dataclasses.fields(variant)
        assert (first.name, first.default) == ("kind", kind)
        assert variant.__dataclass_params__.frozen
        for field in others:
            assert field.kw_only
            # The description is the fix that an error shows: a request, with an example or the values explained.
            description = field.metadata["description"]
            assert "e.g." in description or description.startswith("true: ")
