"""The commands of `sim.cli.experiments` as a user meets them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from experiments.small import RATE, TREE

from sim.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tokenpools(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(TREE))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tokenpools", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    yield run
    gc.enable()
    gc.unfreeze()


def test_a_sweep_a_comparison_and_a_report(tokenpools: Run) -> None:
    code, out, err = tokenpools("sweep", "s.yaml", "--out", "a", "--replications", "6")
    assert code == 0, err
    assert out.splitlines()[0].split()[:3] == ["policy", "tenant", "offered"]
    assert err == "12 of 12 cells finished; wrote a\n"
    code, out, err = tokenpools("sweep", "s.yaml", "--out", "b", "--replications", "6", "--set", f"{RATE}=12")
    assert code == 0
    code, out, err = tokenpools("compare", "a", "b")
    assert (code, err) == (0, "")
    assert "workload.batch.arrivals.rate_per_s: 7.0 -> 12.0" in out
    code, out, err = tokenpools("compare", "a", "b", "--fail-if", "none/chat/slo_attainment:-0.1")
    assert code == 1
    assert err.startswith("failed: none, chat: slo_attainment changed by")
    code, out, _ = tokenpools("compare", "a", "b", "--csv", "--metric", "offered")
    assert out.splitlines()[0].startswith("policy,tenant,metric,before,after,difference")
    code, out, _ = tokenpools("report", "a")
    assert (code, out) == (0, "a/report.html\n")
    assert Path("a/report.html").exists()


def test_a_dry_run_runs_nothing(tokenpools: Run) -> None:
    code, out, err = tokenpools("sweep", "s.yaml", "--out", "a", "--dry-run", "--jobs", "2")
    assert (code, err) == (0, "")
    numbers, _, variants = out.partition("\n\n")
    assert [line.split()[0] for line in numbers.splitlines()] == ["cells", "finished", "to", "requests", "CPU", "wall"]
    assert next(line.split()[0] for line in variants.splitlines()) == "runs"
    assert len(variants.splitlines()) >= 2
    assert not Path("a").exists()


def test_a_target_out_of_reach_ends_in_one(tokenpools: Run) -> None:
    asked = ("sweep", "s.yaml", "--out", "a", "--until", "ttft_p99_s:0.01%", "--max-replications", "10")
    code, _, err = tokenpools(*asked)
    assert code == 1
    assert "10 replications; ttft_p99_s:0.01% not met" in err


def test_failed_cells_are_named_and_end_in_one(tokenpools: Run) -> None:
    setting = "workload.batch.arrivals={kind: trace, file: gone.csv}"
    code, _, err = tokenpools("sweep", "s.yaml", "--out", "a", "--policy", "none", "--set", setting)
    assert code == 1
    assert "failed: none, #0: InputError: workload batch: gone.csv" in err


def test_a_plan(tokenpools: Run) -> None:
    code, out, err = tokenpools(
        "plan", "s.yaml", "--out", "p", "--set", "policies=[none]", "--replications", "3",
        "--over", "pool.replicas=1..4", "--target", "0.9",
    )  # fmt: skip
    assert code == 0, err
    assert out.startswith("none: pool.replicas=")
    assert out.rstrip().endswith("holds")
    assert Path("p/frontier.png").exists()
    assert tokenpools("report", "p")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sweep", "s.yaml", "--until", "ttft:5%"), "unknown metric ttft; did you mean"),
        (("sweep", "s.yaml", "--address", "tcp://x:1"), "loky has no address"),
        (("sweep", "s.yaml", "--out", "s.yaml"), "s.yaml: is a file"),
        (("compare", "nowhere", "nowhere"), "nowhere/manifest.json: is missing"),
        (("report", "nowhere"), "nowhere/manifest.json: is missing"),
        (("plan", "s.yaml", "--out", "p", "--over", "pool.replicas"), "give path=low..high"),
        (("compare", "a", "b", "--metric", "ttft_p98_s"), "did you mean"),
    ],
)
def test_bad_input_is_one_line_and_code_two(tokenpools: Run, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = tokenpools(*arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
