from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments.small import RATE, TREE, digest, scenario
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError, RunError, ScenarioError
from sim.experiments import cells as cells_module
from sim.experiments.cells import cell_key, code_hash, run_task, task
from sim.experiments.executors import Executor
from sim.experiments.run import run_scenario
from sim.experiments.sweep import Count, estimate, sweep
from sim.experiments.until import look, parse_target, sweep_until
from sim.records.result_folder import read_result
from sim.scenario.load import expand


def finished_cells(folder: Path) -> list[Path]:
    return [path for path in folder.glob("o/cells/*/cell.json") if not path.parent.name.startswith(".")]


def test_a_sweep_joins_to_what_a_run_writes(tmp_path: Path) -> None:
    asked = scenario(vary={RATE: [3, 7]}, replications=2)
    swept = sweep(asked, tmp_path / "s")
    ran = run_scenario(asked, tmp_path / "r")
    one, other = read_result(tmp_path / "s"), read_result(tmp_path / "r")
    assert one.requests.drop(["run_id"]) == other.requests.drop(["run_id"])
    assert one.timeline.drop(["run_id"]) == other.timeline.drop(["run_id"])
    assert swept.count == Count(finished=8, kept=0, failed=0, total=8)
    theirs = {(row["policy"], row[RATE], row["tenant"]): row for row in ran.summary}
    for mine in swept.summary:
        row = theirs.pop((mine["policy"], mine[RATE], mine["tenant"]))
        assert list(mine) == list(row)
        assert list(mine.values())[3:] == pytest.approx(list(row.values())[3:], nan_ok=True)
    assert not theirs


def test_a_finished_cell_never_runs_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(scenario(replications=2), tmp_path / "s")
    before = digest(tmp_path / "s")
    ran: list[str] = []
    monkeypatch.setattr("sim.experiments.sweep.run_task", lambda task: ran.append(task.key) or run_task(task))
    again = sweep(scenario(replications=2, title="Another title"), tmp_path / "s")
    assert ran == []
    assert again.count.kept == 4
    assert digest(tmp_path / "s") == before
    more = sweep(scenario(replications=3), tmp_path / "s")
    assert len(ran) == 2
    assert more.count == Count(finished=6, kept=4, failed=0, total=6)


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"horizon_s": 61}, {"warmup_s": 1}, {"timeline_interval_s": 2.0}, {"record_decisions": True}],
)
def test_what_decides_the_records_decides_the_key(change: dict[str, Any]) -> None:
    mine, other = (expand(scenario(**changes))[0] for changes in ({}, change))
    assert cell_key(mine, "code") != cell_key(other, "code")
    assert cell_key(mine, "code") != cell_key(mine, "other code")


def test_a_changed_trace_is_another_cell(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    workload = [{"entitlement": "chat", "arrivals": {"kind": "trace", "file": str(trace)}}]
    keys = []
    for rows in ("", "2023-11-16 18:15:50.9951690,10,20\n"):
        trace.write_text(head + rows)
        cells_module._hash_of.cache_clear()
        keys.append(cell_key(expand(scenario(workload=workload))[0], "code"))
    assert keys[0] != keys[1]


def test_a_failed_cell_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,x,44\n")
    bad = {"kind": "trace", "file": str(tmp_path / "bad.csv")}
    asked = scenario(policies=["none"], vary={"workload.batch.arrivals": [{"kind": "even", "rate_per_s": 1}, bad]})
    result = sweep(asked, tmp_path / "s")
    assert (result.count.finished, result.count.failed) == (1, 1)
    assert "bad.csv: row 2" in result.errors[0]
    rows = list(csv.DictReader((tmp_path / "s/cells.csv").read_text().splitlines()))
    assert [bool(row["error"]) for row in rows] == [False, True]
    assert {row["workload.batch.arrivals"] for row in read_result(tmp_path / "s").summary} == {"even"}
    (tmp_path / "bad.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,7,44\n")
    cells_module._hash_of.cache_clear()
    assert sweep(asked, tmp_path / "s").count == Count(finished=2, kept=1, failed=0, total=2)


def test_a_damaged_cell_runs_again(tmp_path: Path) -> None:
    sweep(scenario(), tmp_path / "s")
    before = digest(tmp_path / "s")
    victim = next((tmp_path / "s/cells").iterdir())
    (victim / "cell.json").write_text('{"stats":')
    assert sweep(scenario(), tmp_path / "s").count.kept == 1
    assert digest(tmp_path / "s") == before


def test_a_cell_is_kept_without_a_look_at_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    scanned = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder=".": looked.append(Path(folder)) or scanned(folder))
    sweep(scenario(vary={RATE: [3, 5, 7]}, replications=3), tmp_path / "s")
    cells = [folder for folder in looked if folder.name == "cells"]
    assert len(cells) == 1, "once, at the end, for what a killed sweep left: 18 cells were written"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="is not empty"):
        sweep(scenario(), tmp_path)


def test_a_worker_with_other_code_is_refused() -> None:
    cell = expand(scenario())[0]
    answer = run_task(replace(task(cell, "key"), code="older"))
    assert answer.found == code_hash()  # type: ignore[union-attr]


def test_a_mixed_cluster_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.experiments.sweep.run_task", lambda task: run_task(replace(task, code="older")))
    with pytest.raises(RunError, match="other code"):
        sweep(scenario(), tmp_path / "s")


def test_an_estimate_counts_what_is_left(tmp_path: Path) -> None:
    asked = scenario(vary={RATE: [3, 7]}, replications=2)
    before = estimate(asked, tmp_path / "s")
    assert (before.cells, before.finished, before.measured) == (8, 0, False)
    sweep(scenario(vary={RATE: [3]}, replications=2), tmp_path / "s")
    after = estimate(asked, tmp_path / "s")
    assert (after.finished, after.measured) == (4, True)
    # (3 + 7) requests per second for 60 s, in 2 policies and 2 replications
    assert after.requests == pytest.approx(4 * 600, rel=0.2)


def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    tree = TREE | {"replications": 40}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(tree))
    code = "import sim.cli; sim.cli.main()"
    command = [sys.executable, "-c", code, "sweep", "s.yaml", "--out", "o"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60
    while len(finished_cells(tmp_path)) < 5 and time.monotonic() < deadline_s:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(finished_cells(tmp_path))
    assert 5 <= kept < 80
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"80 of 80 cells finished, {kept} of them before" in done.stderr
    assert not list(tmp_path.glob("o/cells/.*"))
    sweep(scenario(replications=40), tmp_path / "whole")
    assert digest(tmp_path / "whole") == digest(tmp_path / "o")


def test_an_interrupted_sweep_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(TREE | {"replications": 300}))
    code = "import sim.cli; sim.cli.main()"
    command = [sys.executable, "-c", code, "sweep", "s.yaml", "--out", "o", "--jobs", "2", "--progress"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline_s = time.monotonic() + 60
    while not finished_cells(tmp_path) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert re.search(r"\d+%.*cell", err)  # the bar was there


# --------------------------------------------------------------------------------------------------------------------
# What varies


def labels(vary: Any) -> list[tuple[str, ...]]:
    return [tuple(cell.variant.values()) for cell in expand(scenario(policies=["none"], vary=vary))]


def test_a_list_runs_its_combinations_and_no_others() -> None:
    cells = [{"seed": 1, RATE: 2}, {"seed": 2, RATE: 3.5}]
    assert labels({"kind": "list", "cells": cells}) == [("1", "2"), ("2", "3.5")]


def test_a_latin_hypercube_meets_every_stratum_once() -> None:
    found = labels(
        {"kind": "latin-hypercube", "cells": 20, "over": {RATE: {"low": 2, "high": 4}, "seed": [1, 2, 3, 4]}}
    )
    rates = sorted(float(rate) for rate, _ in found)
    assert [int((rate - 2) * 10) for rate in rates] == list(range(20))
    assert sorted(seed for _, seed in found) == sorted(list("1234") * 5)


@given(
    seed=st.integers(0, 2**32),
    low=st.floats(0.01, 100),
    factor=st.floats(1.1, 1e3),
    scale=st.sampled_from(["linear", "log"]),
)
@settings(max_examples=20, deadline=None)
def test_draws_stay_in_their_range_and_repeat(seed: int, low: float, factor: float, scale: str) -> None:
    over = {RATE: {"low": low, "high": low * factor, "scale": scale}}
    vary = {"kind": "random", "cells": 8, "seed": seed, "over": over}
    found = labels(vary)
    assert found == labels(vary)
    assert all(low * (1 - 1e-5) <= float(rate) <= low * factor * (1 + 1e-5) for (rate,) in found)


def test_whole_numbers_are_drawn_evenly() -> None:
    over = {"pool.replicas": {"low": 1, "high": 4, "whole": True}, "seed": {"low": 0, "high": 1e6, "whole": True}}
    found = [int(replicas) for replicas, _ in labels({"kind": "latin-hypercube", "cells": 40, "over": over})]
    assert [found.count(n) for n in (1, 2, 3, 4)] == [10, 10, 10, 10]


def test_a_setting_on_the_command_line_is_varied_no_more(tmp_path: Path) -> None:
    from sim.scenario.load import load_scenario

    for vary, left in (
        ({"kind": "random", "cells": 3, "over": {RATE: [1, 2], "seed": [1, 2]}}, {"seed"}),
        ({"kind": "list", "cells": [{RATE: 1, "seed": 1}, {RATE: 2, "seed": 1}]}, {"seed"}),
        ({"kind": "list", "cells": [{RATE: 1}, {RATE: 2}]}, set()),
    ):
        path = tmp_path / "s.json"
        path.write_text(json.dumps(TREE | {"vary": vary}))
        loaded = load_scenario(path, overrides=[f"{RATE}=5"])
        assert {name for cell in expand(loaded) for name in cell.variant} == left
        assert {cell.scenario.workload[1].arrivals.rate_per_s for cell in expand(loaded)} == {5}


@pytest.mark.parametrize(
    ("vary", "field", "problem"),
    [
        ({"kind": "randm"}, "vary.kind", "did you mean random?"),
        (
            {"kind": "random", "cells": 2, "over": {RATE: {"low": 2, "high": 1}}},
            f"vary.over.'{RATE}'",
            "give low < high",
        ),
        (
            {"kind": "random", "cells": 2, "over": {RATE: {"lo": 2, "high": 1}}},
            f"vary.over.'{RATE}'.lo",
            "did you mean low?",
        ),
        ({"kind": "list", "cells": [{"seed": 1}, {"seed": 1}]}, "vary.cells[1]", "keep one of the two"),
        ({"kind": "list", "cells": [{"seed": 1}, {RATE: 1}]}, "vary.cells[1]", "the same paths"),
    ],
)
def test_a_bad_vary_is_named(vary: Any, field: str, problem: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(vary=vary)
    assert caught.value.args[1] == field
    assert problem in str(caught.value)


# --------------------------------------------------------------------------------------------------------------------
# Until


def test_replications_are_added_until_the_interval_is_narrow(tmp_path: Path) -> None:
    from sim.analysis.study import Study

    target = parse_target("chat/ttft_mean_s:8%")
    reached = sweep_until(scenario(policies=["token-pool"]), tmp_path / "s", [target], most=100)
    assert reached.met
    study = Study(tmp_path / "s")
    found = study.interval(study.cases[0], "chat", "ttft_mean_s")
    assert found.n == reached.replications >= 10
    assert found.half_width <= 0.08 * found.estimate


def test_a_width_out_of_reach_is_said(tmp_path: Path) -> None:
    reached = sweep_until(scenario(), tmp_path / "s", [parse_target("ttft_p99_s:0.0001")], most=12)
    assert (reached.replications, reached.met) == (12, False)
    assert reached.widest > 1
    assert not math.isinf(reached.widest)


@pytest.mark.parametrize("values", [[], [math.nan], [math.nan] * 4, [1.0], [0.0, 0.0, 1.0, -1.0]])
def test_nothing_measured_is_not_narrow_enough(values: list[float]) -> None:
    needed, width = look(values, parse_target("ttft_p99_s:5%"))
    assert width == math.inf
    assert needed == 2 * len(values)
    assert look([2.0, 2.0], parse_target("ttft_p99_s:5%")) == (0, 0.0)


@pytest.mark.parametrize(
    "text", ["ttft_p99_s", "ttft_p99_s:", "ttft_p98_s:5%", "ttft_p99_s:-5%", ":5%", "ttft_p99_s:1e"]
)
def test_a_bad_target_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--until"):
        parse_target(text)


def test_an_executor_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="unknown executor"):
        Executor(kind="spark")
    with pytest.raises(InputError, match="has no address"):
        Executor(address="tcp://somewhere:1")
