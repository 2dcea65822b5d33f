from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from analysis.toy import columns, spec

from sim.errors import InputError, RunError
from sim.records import result_folder as results
from sim.records.result_folder import check_output_folder, read_result, write_result
from sim.records.schema import TimelineBlock, requests_table, timeline_table

RUN = {"run_id": "x", "policy": "none", "variant": {"seed": "1"}, "replication": 0}
SUMMARY = [{"policy": "none", "seed": "1", "tenant": "a", "offered": 2, "slo_attainment": math.nan, "mean_s": 0.1}]


@pytest.fixture
def tables():
    requests = requests_table(columns([spec("a", 1.0)], [{"arrival_s": 0.1}, {"arrival_s": 0.7}]), **RUN)
    return requests, timeline_table([TimelineBlock("pool", "pool", [0.0], {"running": [1]})], **RUN)


def test_a_result_comes_back_as_it_was(tmp_path, tables):
    requests, timeline = tables
    folder = tmp_path / "new" / "result"
    write_result(folder, requests, timeline, SUMMARY, {"seed": 7, "until_s": math.inf}, decisions=timeline)
    back = read_result(folder)
    assert back.requests.equals(requests)
    assert back.requests.schema.equals(requests.schema)
    assert back.timeline.equals(timeline)
    assert back.decisions is not None
    assert back.manifest == {"seed": 7, "until_s": None}
    (row,) = back.summary
    assert math.isnan(row.pop("slo_attainment"))
    assert row == {"policy": "none", "seed": "1", "tenant": "a", "offered": 2, "mean_s": 0.1}


def test_equal_tables_give_equal_bytes(tmp_path, tables):
    for name in ("one", "two"):
        write_result(tmp_path / name, *tables, SUMMARY, {"seed": 7})
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["manifest.json", "requests.parquet", "summary.csv", "timeline.parquet"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_empty_folder_may_be_used(tmp_path, tables):
    (tmp_path / "result").mkdir()
    write_result(tmp_path / "result", *tables, SUMMARY, {})
    assert read_result(tmp_path / "result").requests.num_rows == 2


@pytest.mark.parametrize("broken", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["_write_table", "write_summary", "_finite"])
def test_a_write_that_breaks_off_leaves_nothing(tmp_path, tables, monkeypatch, broken, step):
    def fail(*args):
        raise broken

    monkeypatch.setattr(results, step, fail)
    expected = RunError if isinstance(broken, OSError) else broken
    with pytest.raises(expected):
        write_result(tmp_path / "result", *tables, SUMMARY, {})
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_is_refused_and_left_alone(tmp_path, tables):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match=r"is not empty; name another folder with --out"):
        write_result(tmp_path, *tables, SUMMARY, {})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check_output_folder(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        check_output_folder(tmp_path / "file" / "below")


def test_a_place_that_takes_no_folder_is_refused():
    place = Path("/proc/self")
    if not place.is_dir():
        pytest.skip("this system has no /proc, where not even root may make a folder")
    with pytest.raises(InputError, match="cannot be written"):
        check_output_folder(place / "result")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            check_output_folder(tmp_path / "result")
    finally:
        tmp_path.chmod(0o700)


def test_checking_leaves_nothing_behind(tmp_path):
    check_output_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("requests.parquet", None, "is missing"),
        ("requests.parquet", b"PAR1 no", "cannot be read"),
        ("timeline.parquet", b"", "cannot be read"),
        ("summary.csv", b"policy\n", "cannot be read"),
        ("summary.csv", b"tenant,offered\na,many\n", "cannot be read"),
        ("manifest.json", b"{", "cannot be read"),
        ("manifest.json", b"[]", "is not a mapping"),
    ],
)
def test_what_is_no_result_is_named(tmp_path, tables, name, content, problem):
    folder = tmp_path / "result"
    write_result(folder, *tables, SUMMARY, {})
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_result(folder)
    assert caught.value.args[0] == str(folder / name)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_without_its_columns_is_no_result(tmp_path, tables):
    requests, timeline = tables
    write_result(tmp_path / "result", requests.drop_columns(["outcome"]), timeline, SUMMARY, {})
    with pytest.raises(InputError, match="lacks the column outcome"):
        read_result(tmp_path / "result")
    with pytest.raises(InputError, match="is not a folder"):
        read_result(tmp_path / "nowhere")


def test_a_manifest_is_strict_json(tmp_path, tables):
    write_result(tmp_path / "result", *tables, SUMMARY, {"nested": [{"x": math.nan}], "name": "Zürich"})
    text = (tmp_path / "result" / "manifest.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"nested": [{"x": None}], "name": "Zürich"}


def test_a_process_killed_by_ctrl_c_leaves_nothing(tmp_path):
    code = """
import os, pathlib, signal, sys
from analysis.toy import columns, spec
from sim.records import result_folder as results
from sim.records.schema import requests_table, timeline_table
run = dict(run_id="x", policy="none", variant={}, replication=0)
results.write_summary = lambda *_: os.kill(os.getpid(), signal.SIGINT)
tables = requests_table(columns([spec("a")], [{}]), **run), timeline_table([], **run)
results.write_result(pathlib.Path(sys.argv[1]), *tables, [], {})
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "result")],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert "KeyboardInterrupt" in done.stderr
    assert list(tmp_path.iterdir()) == []
