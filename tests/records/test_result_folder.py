from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from analysis.toy import columns, spec

from sim.errors import InputError, RunError
from sim.records import result_folder as results
from sim.records.result_folder import check_output_folder, read_result, write_result
from sim.records.schema import TimelineBlock, requests_table, timeline_table

RUN = {"run_id": "x", "policy": "none", "variant": {"seed": "1"}, "replication": 0}
MANIFEST = {"scenario": {"pool": {"entitlements": []}, "workload": [], "policies": []}, "cells": []}
SUMMARY = [{"policy": "none", "seed": "1", "tenant": "a", "offered": 2, "slo_attainment": math.nan, "mean_s": 0.1}]


@pytest.fixture
def tables():
    requests = requests_table(columns([spec("a", 1.0)], [{"arrival_s": 0.1}, {"arrival_s": 0.7}]), **RUN)
    return requests, timeline_table([TimelineBlock("pool", "pool", [0.0], {"running": [1]})], **RUN)


def test_a_result_comes_back_as_it_was(tmp_path, tables):
    requests, timeline = tables
    folder = tmp_path / "new" / "result"
    write_result(folder, requests, timeline, SUMMARY, {**MANIFEST, "seed": 7, "until_s": math.inf}, decisions=timeline)
    back = read_result(folder)
    assert back.requests.equals(requests)
    assert back.requests.schema.equals(requests.schema)
    assert back.timeline.equals(timeline)
    assert back.decisions is not None
    digests = back.manifest.pop("files")
    assert back.manifest.pop("seal").startswith("sha256:")
    assert set(digests) == {"requests.parquet", "timeline.parquet", "decisions.parquet", "summary.csv"}
    assert back.manifest == {**MANIFEST, "seed": 7, "until_s": None}
    (row,) = back.summary
    assert math.isnan(row.pop("slo_attainment"))
    assert row == {"policy": "none", "seed": "1", "tenant": "a", "offered": 2, "mean_s": 0.1}


def test_equal_tables_give_equal_bytes(tmp_path, tables):
    for name in ("one", "two"):
        write_result(tmp_path / name, *tables, SUMMARY, {**MANIFEST, "seed": 7})
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["manifest.json", "requests.parquet", "summary.csv", "timeline.parquet"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_empty_folder_may_be_used(tmp_path, tables):
    (tmp_path / "result").mkdir()
    write_result(tmp_path / "result", *tables, SUMMARY, MANIFEST)
    assert read_result(tmp_path / "result").requests.num_rows == 2


@pytest.mark.parametrize("broken", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["_write_table", "write_summary", "_finite"])
def test_a_write_that_breaks_off_leaves_nothing(tmp_path, tables, monkeypatch, broken, step):
    def fail(*args):
        raise broken

    monkeypatch.setattr(results, step, fail)
    expected = RunError if isinstance(broken, OSError) else broken
    with pytest.raises(expected):
        write_result(tmp_path / "result", *tables, SUMMARY, MANIFEST)
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_is_refused_and_left_alone(tmp_path, tables):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match=r"is not empty; name another folder with --out"):
        write_result(tmp_path, *tables, SUMMARY, MANIFEST)
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
        ("requests.parquet", b"PAR1 no", "is not as it was written"),
        ("timeline.parquet", b"", "is not as it was written"),
        ("summary.csv", b"policy\n", "is not as it was written"),
        ("summary.csv", None, "is missing"),
        ("manifest.json", b"{", "cannot be read"),
        ("manifest.json", b"[]", "is not a mapping"),
    ],
)
def test_what_is_no_result_is_named(tmp_path, tables, name, content, problem):
    folder = tmp_path / "result"
    write_result(folder, *tables, SUMMARY, MANIFEST)
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
    write_result(tmp_path / "result", requests.drop_columns(["outcome"]), timeline, SUMMARY, MANIFEST)
    with pytest.raises(InputError, match="lacks the column outcome"):
        read_result(tmp_path / "result")
    with pytest.raises(InputError, match="is not a folder"):
        read_result(tmp_path / "nowhere")


def test_a_manifest_is_strict_json(tmp_path, tables):
    write_result(tmp_path / "result", *tables, SUMMARY, {**MANIFEST, "nested": [{"x": math.nan}], "name": "Zürich"})
    text = (tmp_path / "result" / "manifest.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=pytest.fail)
    assert (found["nested"], found["name"]) == ([{"x": None}], "Zürich")


def test_a_process_killed_by_ctrl_c_leaves_nothing(tmp_path):
    code = """
import os, pathlib, signal, sys
from analysis.toy import columns, spec
from sim.records import result_folder as results
from sim.records.schema import requests_table, timeline_table
run = dict(run_id="x", policy="none", variant={}, replication=0)
results.write_summary = lambda *_: os.kill(os.getpid(), signal.SIGINT)
tables = requests_table(columns([spec("a")], [{}]), **run), timeline_table([], **run)
results.write_result(pathlib.Path(sys.argv[1]), *tables, [], __import__("json").loads(sys.argv[2]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "result"), json.dumps(MANIFEST)],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert "KeyboardInterrupt" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def result(tmp_path, tables):
    write_result(tmp_path / "result", *tables, SUMMARY, {**MANIFEST, "seed": 7})
    return tmp_path / "result"


def unsealed(folder, change):
    """Damage a manifest by hand: of an earlier version, which had no seal."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("seal", "files"):
        del manifest[name]
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("requests.parquet", b"PAR1 no", "cannot be read"),
        ("timeline.parquet", b"", "cannot be read"),
        ("summary.csv", b"policy\n", "cannot be read"),
        ("summary.csv", b"tenant,offered\na,many\n", "cannot be read"),
    ],
)
def test_results_of_earlier_versions_are_read_without_digests(result, name, content, problem):
    unsealed(result, dict.copy)
    assert read_result(result).requests.num_rows == 2
    (result / name).write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        read_result(result)
    assert caught.value.args[0] == str(result / name)


CELL = {"policy": "none", "variant": {}, "replication": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"cells": None}, {"cells": {}}, {"cells": [1]}, {"cells": [{}]}, {"cells": [CELL | {"replication": -1}]},
        {"cells": [CELL | {"replication": "0"}]}, {"cells": [CELL | {"replication": 10**30}]},
        {"cells": [CELL | {"variant": []}]}, {"cells": [CELL | {"variant": {"a": 1}}]},
        {"cells": [CELL | {"policy": None}]}, {"cells": [CELL | {"end_s": "late"}]},
        {"cells": [CELL | {"end_s": -1.0}]}, {"cells": [CELL | {"key": "../../etc"}]},
        {"kind": "sweep", "cells": [CELL]}, {"kind": 7}, {"scenario": []}, {"scenario": None}, {"seed": "x"},
        {"versions": []}, {"files": {"requests.parquet": 7}}, {"host": 1},
    ],
)  # fmt: skip
def test_a_manifest_damaged_by_hand_is_refused_in_one_line(result, change):
    unsealed(result, lambda manifest: manifest.update(change))
    with pytest.raises(InputError, match=r"manifest\.json") as caught:
        read_result(result)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["1e400", "NaN", "[" * 2000, "9" * 5000, '{"cells": [], "cells": []}', '{"seed": 1e999}', "\ud800"]
)
def test_a_manifest_that_is_no_strict_json_is_refused(result, text):
    (result / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match="cannot be read"):
        read_result(result)


def test_of_400_flipped_bits_of_a_result_none_is_read_as_data(result):
    rng = random.Random(5)
    files = sorted(result.iterdir())
    before = read_result(result)
    refused = 0
    for _ in range(400):
        file = rng.choice(files)
        whole = file.read_bytes()
        bit = rng.randrange(8 * len(whole))
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            now = read_result(result)  # 1e-05 may become 1E-05
            assert now.requests.equals(before.requests)
            assert now.timeline.equals(before.timeline)
            assert (str(now.summary), now.manifest) == (str(before.summary), before.manifest)
        except InputError as error:
            refused += "\n" not in str(error)
        file.write_bytes(whole)
    assert refused >= 395
    read_result(result)


def test_flipped_bits_of_pages_are_found_where_only_the_file_is_there(tmp_path):
    n = 3000
    rng = np.random.default_rng(3)
    rows = [{"arrival_s": float(at)} for at in np.sort(rng.random(n))]
    table = requests_table(columns([spec("a", 1.0)], rows), **RUN)
    path = tmp_path / "alone.parquet"
    path.write_bytes(results.table_bytes(table))
    whole = path.read_bytes()
    pages = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    wrong = 0
    for bit in rng.integers(32, 8 * pages, 400).tolist():
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            wrong += not results.read_table(path, table.schema).equals(table)
        except InputError:
            continue
    assert wrong == 0


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_process_left_is_removed_by_the_next_and_what_runs_is_not(tmp_path, tables, kind):
    code = f"""
import pathlib, sys, time
from sim.records.whole_files import whole_{kind}
with whole_{kind}(pathlib.Path(sys.argv[1])) as partial:
    {'(partial / "x").write_text("half")' if kind == "folder" else 'partial.write_text("half")'}
    print("ready", flush=True)
    time.sleep(60)
"""
    def begun():
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "other.gz")], stdout=subprocess.PIPE, text=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        assert process.stdout.readline() == "ready\n"
        return process

    killed, runs = begun(), begun()
    try:
        killed.kill()
        killed.wait(10)
        assert len(list(tmp_path.iterdir())) == 2
        assert all(path.name.endswith(".gz") for path in tmp_path.iterdir())
        write_result(tmp_path / "result", *tables, SUMMARY, MANIFEST)
        left = [path.name for path in tmp_path.iterdir()]
        assert len(left) == 2
        assert "result" in left
        assert str(runs.pid) in "".join(left)
    finally:
        for process in (killed, runs):
            process.kill()
            process.wait(10)
            process.stdout.close()
