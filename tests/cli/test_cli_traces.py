"""The commands: what they print, what they write, and one line for every mistake."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from sim.cli import app
from sim.errors import InputError, TokenpoolsError
from sim.scenario.load import parse_scenario
from workloads.arrivals import Poisson
from workloads.formats.layouts import LAYOUTS
from workloads.formats.read import layout_of, read_trace
from workloads.formats.rows import Labels, Rows, join_rows
from workloads.formats.write import write_trace

DATA = os.environ.get("TOKENPOOLS_DATA")
real = pytest.mark.skipif(DATA is None, reason="TOKENPOOLS_DATA names no folder of real traces")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENPOOLS_CACHE", str(tmp_path / "cache"))


def command(*words):
    return CliRunner().invoke(app, ["trace", *map(str, words)], catch_exceptions=True)


def refusal(*words):
    result = command(*words)
    assert isinstance(result.exception, TokenpoolsError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def some_trace(path="t.csv", n=400, layout="arena-vtc", start_ns=0, seed=0):
    rng = np.random.default_rng(seed)
    time_s = Poisson(rate_per_s=2.0).times_s(rng, 0.0, 1e9, n)
    who = Labels(rng.integers(0, 3, n).astype(np.int32), ("a", "b", "c"))
    time_ns = start_ns + (time_s * 1e6).astype(np.int64) * 1000
    rows = Rows(time_ns, rng.integers(1, 999, n), rng.integers(1, 99, n), tenant=who, dated=start_ns > 0)
    from pathlib import Path

    write_trace([rows], Path(path), LAYOUTS[layout])
    return rows


def test_inspect_prints_a_table_or_a_mapping_and_draws(tmp_path):
    some_trace()
    shown = command("inspect", "t.csv", "--plot", "t.png")
    assert shown.exit_code == 0
    assert "requests         400" in shown.stdout
    assert "3: " in shown.stdout
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    mapping = json.loads(command("inspect", "t.csv", "--json").stdout)
    assert (mapping["requests"], mapping["format"]) == (400, "arena-vtc")
    assert set(mapping["tenants"]) == {"a", "b", "c"}


def test_convert_there_and_back_loses_nothing(tmp_path):
    some_trace()
    for out, to in (("v2.csv", "trace-v2"), ("p.parquet", None), ("p.jsonl.gz", None), ("back.csv", "arena-vtc")):
        source = {"v2.csv": "t.csv", "p.parquet": "v2.csv", "p.jsonl.gz": "p.parquet", "back.csv": "p.jsonl.gz"}[out]
        done = command("convert", source, "--out", out, *(["--to", to] if to else []))
        assert done.exit_code == 0, done.exception
    assert (tmp_path / "back.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()
    assert yaml.safe_load((tmp_path / "v2.yaml").read_text())["trace_version"] == 2
    assert not [path for path in tmp_path.iterdir() if "half-written" in path.name]


def test_what_gets_lost_is_said():
    some_trace()
    done = command("convert", "t.csv", "--out", "a.csv", "--to", "azure-llm")
    assert "left out, azure-llm has no place for it: tenant, the clock: times are dated from 1970-01-01" in done.stderr


def test_several_are_merged_on_one_clock(tmp_path):
    start_ns = 1_700_000_000 * 10**9
    some_trace("a.jsonl", layout="plain-jsonl", start_ns=start_ns)
    some_trace("b.jsonl", layout="plain-jsonl", start_ns=start_ns + 50 * 10**9, seed=1)
    assert command("convert", "a.jsonl", "b.jsonl", "--out", "both.jsonl").exit_code == 0
    rows = join_rows(list(read_trace(tmp_path / "both.jsonl", LAYOUTS["plain-jsonl"])))
    assert len(rows) == 800
    assert set(rows.service.texts()) == {"a.jsonl", "b.jsonl"}
    some_trace("zero.jsonl", layout="plain-jsonl")
    assert "some have dates and some count from their own zero" in refusal(
        "convert", "a.jsonl", "zero.jsonl", "--out", "x.jsonl"
    )


def test_traces_with_blocks_of_several_sizes_are_not_merged(tmp_path):
    line = '{{"time_ns": {}000000000, "prompt_tokens": 40, "output_tokens": 5, "block_tokens": {}, "blocks": [7, 8]}}\n'
    for name, size, first in (("a", 16, 1), ("b", 32, 10_000), ("c", 16, 20_000)):
        (tmp_path / f"{name}.jsonl").write_text("".join(line.format(first + n, size) for n in range(50)))
    said = refusal("convert", "a.jsonl", "b.jsonl", "--out", "ab.jsonl")
    assert "a.jsonl, b.jsonl: blocks have 16 tokens (a.jsonl) and 32 tokens (b.jsonl); merge traces with" in said
    assert not (tmp_path / "ab.jsonl").exists()
    assert command("convert", "a.jsonl", "c.jsonl", "--same-ids", "--out", "ac.jsonl").exit_code == 0
    (rows,) = read_trace(tmp_path / "ac.jsonl", LAYOUTS["plain-jsonl"])
    assert rows.blocks.lists() == [[7, 8]] * 100
    assert command("convert", "a.jsonl", "c.jsonl", "--out", "apart.jsonl").exit_code == 0
    (rows,) = read_trace(tmp_path / "apart.jsonl", LAYOUTS["plain-jsonl"])
    assert rows.blocks.lists() == [[21, 24]] * 50 + [[22, 25]] * 50  # three apart, though a text may be in both
    assert command("convert", "b.jsonl", "--out", "b.csv").exit_code == 0  # the fix that is named
    assert command("convert", "a.jsonl", "b.csv", "--out", "fixed.jsonl").exit_code == 0
    (rows,) = read_trace(tmp_path / "fixed.jsonl", LAYOUTS["plain-jsonl"])
    assert (len(rows), len(rows.blocks.ids)) == (100, 100)


def test_rows_in_any_order_are_sorted_when_asked(tmp_path):
    (tmp_path / "t.csv").write_text("at,in,out\n5,50,1\n1,10,1\n3,30,1\n")
    columns = ("--columns", "time=at,prompt=in,output=out")
    assert "t.csv: row 3: time 1 is before that of the row above; sort the rows by at, or: tokenpools trace" in refusal(
        "inspect", "t.csv", *columns
    )
    assert command("convert", "t.csv", *columns, "--sort", "--out", "s.csv").exit_code == 0
    rows = join_rows(list(read_trace(tmp_path / "s.csv", layout_of(tmp_path / "s.csv"))))
    assert rows.prompt_tokens.tolist() == [10, 30, 50]


def test_a_part_can_be_kept(tmp_path):
    rows = some_trace()
    assert command("convert", "t.csv", "--out", "p.csv", "--from-s", 20, "--until-s", 60).exit_code == 0
    since_s = rows.since_s(int(rows.time_ns[0]))
    part = join_rows(list(read_trace(tmp_path / "p.csv", LAYOUTS["plain-csv"])))
    assert len(part) == int(np.sum((since_s >= 20) & (since_s < 60)))
    assert "no row is in that part" in refusal("convert", "t.csv", "--out", "q.csv", "--from-s", 1e6)
    assert not (tmp_path / "q.csv").exists()


def test_a_fit_is_a_workload_that_a_scenario_takes(tmp_path):
    some_trace(n=2000)
    done = command("convert", "t.csv", "--fit", "--out", "w.yaml")
    assert done.exit_code == 0, done.exception
    assert "rank correlation" in done.stdout
    workload = yaml.safe_load((tmp_path / "w.yaml").read_text())
    workload[0]["entitlement"] = "a"
    profile = {"step_time": {"kind": "linear", "base_s": 0.01}, "max_num_seqs": 8, "max_num_batched_tokens": 512}
    pool = {"profile": profile | {"kv_blocks": 999}, "entitlements": [{"name": "a", "service_class": "spot"}]}
    scenario = {"version": 1, "horizon_s": 60, "pool": pool, "workload": workload, "policies": ["none"]}
    assert parse_scenario(scenario, "x").workload[0].spec().arrivals.kind in ("poisson", "gamma", "weibull", "mmpp")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "none.csv"], "none.csv: no such file"),
        (["inspect", "t.csv", "--format", "mooncak"], "unknown format 'mooncak'; give one of azure-llm"),
        (["inspect", "t.csv", "--format", "azure-llm"], "t.csv: row 1: the columns are 'req_id,tenant"),
        (["inspect", "t.csv", "--plot", "t.gif"], "t.gif: is neither PNG nor SVG"),
        (["inspect", "t.csv", "--plot", "no/t.png"], "no/t.png: cannot be written"),
        (["inspect", "t.csv", "--columns", "time=a"], "--columns: prompt is missing"),
        (["inspect", "t.csv", "--columns", "tim=a"], "--columns: unknown role 'tim'; did you mean time"),
        (["inspect", "t.csv", "--columns", "x"], "--columns: got 'x'; give role=column"),
        (["inspect", "t.csv", "--columns", "time=a,prompt=b,output=c,time_unit=h"], "--columns: unknown unit 'h'"),
        (["convert", "t.csv"], "--out: missing"),
        (["convert", "t.csv", "--out", "t.csv"], "t.csv: is there already"),
        (["convert", "t.csv", "--out", "x.foo"], "x.foo: its ending says no format"),
        (["convert", "t.csv", "--out", "x.csv", "--to", "y"], "--to: unknown format 'y'"),
        (["convert", "t.csv", "--out", "no/x.csv"], "no/x.csv: cannot be written"),
        (["convert", "t.csv", "--out", "x.jsonl", "--to", "mooncake"], "x.jsonl: mooncake needs prefix blocks"),
        (["fetch", "azure"], "azure: no such data set"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, message):
    some_trace()
    assert message in refusal(*words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv"]


def test_fetch_without_a_name_lists_them():
    assert "azure-llm-2023" in command("fetch").stdout
    assert issubclass(InputError, TokenpoolsError)


@real
def test_a_day_of_servegen_clients_can_be_looked_at(monkeypatch):
    monkeypatch.setenv("TOKENPOOLS_DATA", DATA)
    mapping = json.loads(command("inspect", "servegen-deepseek-r1", "--json").stdout)
    assert len(mapping["tenants"]) == 73
    assert "not a trace" in mapping["note"]
