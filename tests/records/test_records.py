from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from analysis.toy import NAN, columns, spec
from hypothesis import given
from hypothesis import strategies as st

from sim.records import arrow_columns as cols
from sim.records.schema import (
    REASONS,
    Outcome,
    TimelineBlock,
    join_tables,
    request_schema,
    requests_table,
    timeline_table,
    variant_columns,
)

RUN = {"run_id": "x", "policy": "none", "variant": {}, "replication": 0}

# design.md section 4, in its order
REQUESTS = [
    "run_id", "policy", "replication", "request_id", "attempt", "final", "tenant", "entitlement",
    "service_class", "prompt_tokens", "max_output_tokens", "output_tokens", "cached_tokens", "arrival_s",
    "first_arrival_s", "forwarded_s", "replica", "first_token_s", "finish_s", "outcome", "reason",
    "http_status", "retry_after_s", "preemptions", "ttft_slo_s", "slo_met",
]  # fmt: skip
TIMELINE = ["run_id", "policy", "replication", "t_s", "scope", "name", "metric", "value"]


def test_the_columns_are_those_of_the_design():
    assert request_schema().names == REQUESTS
    table = timeline_table([], **RUN)
    assert table.column_names == TIMELINE
    assert table.num_rows == 0


def test_a_varied_parameter_is_a_text_column_after_the_policy():
    run = {**RUN, "variant": {"policies.a_debt": "4", "seed": "1"}}
    table = requests_table(columns([spec("a")], [{}]), **run)
    assert table.column_names[:5] == ["run_id", "policy", "policies.a_debt", "seed", "replication"]
    assert variant_columns(table) == ["policies.a_debt", "seed"]
    assert table.column("policies.a_debt").to_pylist() == ["4"]
    with pytest.raises(ValueError, match="tenant"):
        request_schema(["tenant"])


def test_what_was_not_reached_is_null():
    row = requests_table(columns([spec("a")], [{"max_output_tokens": 0}]), **RUN).to_pylist()[0]
    missing = {name for name, value in row.items() if value is None}
    assert missing == {
        "max_output_tokens", "forwarded_s", "replica", "first_token_s", "finish_s", "reason", "http_status",
        "retry_after_s", "ttft_slo_s", "slo_met",
    }  # fmt: skip
    assert row["outcome"] == "waiting"


def test_rows_carry_their_entitlement_and_reason():
    owners = [spec("a1", 1.0, tenant="a"), spec("b"), spec("a2", tenant="a")]
    code = REASONS.index("low_priority")
    table = requests_table(columns(owners, [{"entitlement": i, "reason": code} for i in (2, 0, 1)]), **RUN)
    assert table.column("tenant").to_pylist() == ["a", "a", "b"]
    assert table.column("entitlement").to_pylist() == ["a2", "a1", "b"]
    assert table.column("ttft_slo_s").to_pylist() == [None, 1.0, None]
    assert set(table.column("reason").to_pylist()) == {"low_priority"}


@pytest.mark.parametrize(
    ("first_token_s", "outcome", "met"),
    [
        (2.0, Outcome.FINISHED, True),
        (2.0, Outcome.RUNNING, True),
        (2.5, Outcome.FINISHED, False),
        (NAN, Outcome.WAITING, False),
        (NAN, Outcome.REFUSED, False),
        (1.5, Outcome.EVICTED, False),
        (1.5, Outcome.FAILED, False),
        (1.5, Outcome.CANCELLED, False),
    ],
)
def test_the_objective_counts_from_the_first_attempt_and_not_for_what_was_cut_off(first_token_s, outcome, met):
    row = {"first_arrival_s": 1.0, "arrival_s": 1.9, "first_token_s": first_token_s, "outcome": outcome}
    table = requests_table(columns([spec("a", 1.0)], [row]), **RUN)
    assert table.column("slo_met").to_pylist() == [met]


def test_a_timeline_is_long():
    blocks = [
        TimelineBlock("pool", "pool", [0.0, 1.0], {"running": [3, 4], "waiting": [0, NAN]}),
        TimelineBlock("entitlement", "a", [0.5], {"debt": [0.25]}),
    ]
    rows = [
        (row["t_s"], row["scope"], row["name"], row["metric"], row["value"])
        for row in timeline_table(blocks, **RUN).to_pylist()
    ]
    assert rows == [
        (0.0, "pool", "pool", "running", 3.0), (1.0, "pool", "pool", "running", 4.0),
        (0.0, "pool", "pool", "waiting", 0.0), (1.0, "pool", "pool", "waiting", None),
        (0.5, "entitlement", "a", "debt", 0.25),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="running has 1 values for 2 times"):
        timeline_table([TimelineBlock("pool", "pool", [0.0, 1.0], {"running": [3]})], **RUN)


def test_tables_of_several_runs_join_with_one_list_of_categories():
    parts = [requests_table(columns([spec(name)], [{}]), **{**RUN, "policy": name}) for name in ("b", "a")]
    joined = join_tables(parts)
    assert joined.column("policy").to_pylist() == ["b", "a"]
    assert len({chunk.dictionary.to_pylist().__repr__() for chunk in joined.column("tenant").chunks}) == 1


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), max_size=40), st.integers(0, 12), st.integers(0, 40))
def test_numbers_survive_the_way_to_arrow_and_back(values, start, length):
    array = np.asarray([math.nan if v is None else v for v in values], dtype=float)
    column = cols.numbers(array, pa.float64(), np.isnan(array))
    column.validate(full=True)
    assert column.to_pylist() == values
    part = pa.table({"x": column}).slice(start, length)
    np.testing.assert_array_equal(cols.floats(part, "x"), array[start : start + length])


@given(st.lists(st.one_of(st.none(), st.text(max_size=4)), max_size=30), st.integers(0, 12), st.integers(0, 30))
def test_texts_survive_the_way_to_arrow_and_back(values, start, length):
    names = list(dict.fromkeys(v for v in values if v is not None))
    codes = np.asarray([-1 if v is None else names.index(v) for v in values], dtype=np.int32)
    column = cols.categories(codes, names)
    column.validate(full=True)
    assert column.to_pylist() == values
    plain = cols.texts([v or "" for v in values])
    plain.validate(full=True)
    assert plain.to_pylist() == [v or "" for v in values]
    for array in (column, pa.array(values, pa.string())):
        part = pa.table({"x": pa.chunked_array([array, array])}).slice(start, length)
        back, kinds = cols.codes_of(part, "x")
        assert [kinds[code] if code < len(kinds) - 1 else None for code in back] == part.column("x").to_pylist()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40), st.integers(0, 12))
def test_flags_survive_the_way_to_arrow_and_back(pairs, start):
    values, missing = (np.asarray([pair[i] for pair in pairs], dtype=bool) for i in (0, 1))
    column = cols.numbers(values, pa.bool_(), missing)
    assert column.to_pylist() == [None if gone else value for value, gone in pairs]
    part = pa.table({"x": column}).slice(start)
    assert cols.flags(part, "x").tolist() == (values & ~missing)[start:].tolist()


def test_a_run_imports_neither_pandas_nor_scipy_nor_matplotlib():
    # They cost a third of a second and more; pyarrow would import pandas behind our back.
    code = """
import sys, pathlib, tempfile
from analysis.toy import columns, spec
from sim.records.schema import requests_table, timeline_table, TimelineBlock
from sim.analysis.summary import summarise, format_table
from sim.records.result_folder import write_result
run = dict(run_id="x", policy="none", variant={}, replication=0)
requests = requests_table(columns([spec("a", 1.0)], [{}, {}]), **run)
rows = summarise(requests, horizon_s=10, warmup_s=0)
format_table(rows)
timeline = timeline_table([TimelineBlock("pool", "pool", [0.0], {"running": [1]})], **run)
with tempfile.TemporaryDirectory() as folder:
    write_result(pathlib.Path(folder) / "r", requests, timeline, rows, {})
print(sorted({"pandas", "scipy", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.strip() == "[]"
