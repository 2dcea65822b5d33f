"""What of a trace is left out or raised is counted right, however the file is cut and whoever asks."""

from __future__ import annotations

import csv
import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sim.cli import app
from sim.traces.convert import convert, cut, layout_for, rows_of
from sim.traces.sources import open_source
from sim.traces.statistics import measure
from workloads.formats import read
from workloads.formats.lines import line_blocks
from workloads.formats.rows import Rows, carried, join_rows
from workloads.trace import Trace

HEAD = ["Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"]

Given = list[tuple[int, int, int]]


def burst(path: Path, requests: Given) -> Path:
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(HEAD)
        writer.writerows([at_s, "ChatGPT", a, b, a + b, "API log"] for at_s, a, b in requests)
    return path


requests_of = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40
).map(sorted)


@settings(max_examples=40, deadline=None)
@given(given=requests_of, size=st.integers(30, 400), spread=st.booleans(), window=st.tuples(*[st.integers(0, 31)] * 2))
def test_inspect_convert_and_run_count_alike_at_every_size_of_a_part(
    given: Given, size: int, spread: bool, window: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    file = burst(folder / "b.csv", given)
    kept = [one for one in given if one[2]]
    if not kept:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "line_blocks", partial(line_blocks, size=size))
        source = open_source(str(file))
        found = measure(rows_of([source], spread=spread))
        failed, zeros = len(given) - len(kept), sum(prompt == 0 for _, prompt, _ in kept)
        assert (found.count, found.dropped, found.clipped) == (len(kept), failed, zeros)
        done = convert([source], folder / "out.jsonl", layout_for(folder / "out.jsonl", None), spread=spread)
        assert (done.rows, done.dropped, done.clipped) == (len(kept), failed, zeros)
        trace = Trace(file=str(file), spread_s=0.0)
        replayed = trace.replay(trace.read(None), np.random.default_rng(), 0.0, 1e9, None, np.random.default_rng())
        assert (len(replayed.arrival_s), replayed.failed, replayed.raised) == (len(kept), failed, zeros)
        # A part of the trace, by time: what failed in it, and not what failed elsewhere.
        from_s, until_s = sorted(window)
        zero = kept[0][0]
        inside = [one for one in given if (not from_s or from_s <= one[0] - zero) and one[0] - zero < until_s]
        parts = list(cut(rows_of([source], spread=False), from_s, until_s))
        rows = sum(map(len, parts))
        assert rows == sum(one[2] > 0 for one in inside)
        if rows:
            assert sum(part.dropped for part in parts) == sum(one[2] == 0 for one in inside)
            assert sum(part.clipped for part in parts) == sum(one[1] == 0 for one in inside if one[2])


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=30).map(sorted),
       st.lists(st.integers(0, 30), max_size=6).map(sorted))  # fmt: skip
def test_slices_of_rows_share_out_what_was_left_out(given: list[tuple[int, bool]], cuts: list[int]) -> None:
    time_ns = np.array([at for at, good in given if good], dtype=np.int64)
    dropped = np.array([at for at, good in given if not good], dtype=np.int64)
    rows = Rows(time_ns, np.ones_like(time_ns), np.ones_like(time_ns), dropped_ns=dropped)
    edges = [0, *(min(one, len(rows)) for one in cuts), len(rows)]
    parts = list(carried(rows.take(slice(a, b)) for a, b in pairwise(edges)))
    if len(rows):
        whole = join_rows(parts)
        assert whole.time_ns.tolist() == time_ns.tolist()
        assert whole.dropped_ns.tolist() == dropped.tolist()


def test_a_run_says_what_its_trace_left_out(tmp_path: Path) -> None:
    file = burst(tmp_path / "b.csv", [(0, 5, 5), (1, 5, 0), (2, 0, 5), (3, 5, 0), (9, 5, 0), (10, 5, 5)])
    scenario = {
        "version": 1, "horizon_s": 100,
        "pool": {"profile": "a10g-llama-2-7b-slora", "entitlements": [{"name": "a", "service_class": "spot"}]},
        "workload": [{"entitlement": "a", "arrivals": {"kind": "trace", "file": str(file)}, "until_s": 8}],
        "policies": ["none"],
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(scenario))
    done = CliRunner().invoke(app, ["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "workload a: 3 requests that failed in its trace are left out, 1 counts of 0" in done.output
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["cells"][0]["recorded"] == {"a": {"failed": 3, "raised": 1}}
    shown = CliRunner().invoke(app, ["trace", "convert", str(file), "--out", str(tmp_path / "b.jsonl")])
    assert "left out: 3 requests that failed" in shown.output


def document(tmp_path: Path, value: Any) -> Any:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(value))
    return measure(rows_of([open_source(str(file))], spread=False))


def test_failures_in_results_of_measuring_tools_are_counted(tmp_path: Path) -> None:
    found = document(tmp_path, {
        "start_times": [1.0, 2.0, 3.0], "input_lens": [5, 5, 5], "output_lens": [5, 0, 5], "errors": ["", "no", ""],
    })  # fmt: skip
    assert (found.count, found.dropped) == (2, 1)
    row = {"request_id": "1", "request_start_time": 1.0, "prompt_tokens": 3, "output_tokens": 3}
    requests = {"successful": [row], "errored": [{"request_start_time": None}], "incomplete": [row, row]}
    found = document(tmp_path, {"benchmarks": [{"requests": requests}]})
    assert (found.count, found.dropped) == (1, 3)


def test_a_limit_that_the_trace_names_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("time_ns,prompt_tokens,output_tokens,max_output_tokens,tenant,service,session,turn\n"
                    "0,5,8,16,,,,\n1000000000,5,8,4,,,,\n2000000000,5,8,0,,,,\n")  # fmt: skip
    scenario = {
        "version": 1, "horizon_s": 100,
        "pool": {"profile": "a10g-llama-2-7b-slora", "entitlements": [{"name": "a", "service_class": "spot"}]},
        "workload": [{"entitlement": "a", "arrivals": {"kind": "trace", "file": str(file)}}],
        "policies": ["none"],
    }
    from sim.experiments.demands import demands
    from sim.scenario.load import parse_scenario

    (demand,) = demands(parse_scenario(scenario, "here"), 0)
    assert demand.max_output_tokens.tolist() == [16, 4, 0]
    assert demand.output_tokens.tolist() == [8, 4, 8]
    (demand,) = demands(parse_scenario({**scenario, "workload": [
        {"entitlement": "a", "arrivals": {"kind": "trace", "file": str(file), "output_factor": 0.5}}
    ]}, "here"), 0)  # fmt: skip
    assert demand.max_output_tokens.tolist() == [8, 2, 0]
    assert demand.output_tokens.tolist() == [4, 2, 4]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"skew": 1.0}, "groups"),
        ({"group_by": "prefix"}, "groups"),
        ({"columns": {"tenant": "t"}}, "columns names tenant"),
        ({"columns": {"service": "t"}}, "columns names service"),
        ({"columns": {"session": "t"}}, "columns names session"),
        ({"columns": {"turn": "t"}}, "columns names turn"),
    ],
)
def test_what_nothing_would_read_is_refused(given: dict[str, Any], said: str) -> None:
    from workloads.trace import Columns

    if "columns" in given:
        given = {"columns": Columns(time="a", prompt="b", output="c", **given["columns"])}
    with pytest.raises(ValueError, match=said):
        Trace(file="x", **given)
