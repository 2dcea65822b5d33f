"""The command as a user meets it: what goes to stdout, what to stderr, and how it ends."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.cli import main

SCENARIO: dict[str, Any] = {
    "version": 1,
    "seed": 1,
    "horizon_s": 20,
    "pool": {
        "profile": {
            "step_time": {"kind": "linear", "base_s": 0.02},
            "max_num_seqs": 4,
            "max_num_batched_tokens": 64,
            "kv_blocks": 100,
        },
        "entitlements": [{"name": "chat", "service_class": "guaranteed", "baseline": {"slots": 2}}],
    },
    "workload": [
        {
            "entitlement": "chat",
            "arrivals": {"kind": "poisson", "rate_per_s": 2},
            "prompt_tokens": 8,
            "output_tokens": 8,
        }
    ],
    "policies": ["none", "token-pool"],
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tokenpools(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SCENARIO))

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


def test_a_run_prints_its_summary_alone_and_writes_the_folder(tokenpools: Run) -> None:
    code, out, err = tokenpools("run", "s.yaml", "--out", "o")
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["policy", "tenant", "offered"]
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["none", "none", "token-pool", "token-pool"]
    assert err == "wrote o; draw it with: tokenpools plot o\n"
    assert sorted(p.name for p in Path("o").iterdir()) == [
        "manifest.json",
        "requests.parquet",
        "summary.csv",
        "timeline.parquet",
    ]
    assert json.loads(Path("o/manifest.json").read_text())["scenario"]["horizon_s"] == 20
    assert [p.name for p in Path().iterdir() if p.name.startswith(".")] == []


def test_the_same_run_is_recognised_not_repeated(tokenpools: Run) -> None:
    _, first, _ = tokenpools("run", "s.yaml")
    code, again, err = tokenpools("run", "s.yaml")
    assert code == 0
    assert "already" in err
    assert again == first
    assert len(list(Path("results").iterdir())) == 1


def test_same_seed_same_bytes_whatever_the_jobs(tokenpools: Run) -> None:
    tokenpools("run", "s.yaml", "--out", "a", "--replications", "2")
    tokenpools("run", "s.yaml", "--out", "b", "--replications", "2", "--jobs", "2")
    for name in ("requests.parquet", "timeline.parquet", "summary.csv"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()


def test_policy_option_selects_or_adds(tokenpools: Run) -> None:
    _, out, _ = tokenpools("run", "s.yaml", "--out", "o", "--policy", "none")
    assert {line.split()[0] for line in out.splitlines()[2:]} == {"none"}
    code, _, err = tokenpools("run", "s.yaml", "--out", "p", "--policy", "token-pol")
    assert code == 2
    assert "token-pool" in err


@pytest.mark.parametrize(
    ("setting", "place", "fix"),
    [
        ("workload.0.arrivals.rate_per_sec=4", "rate_per_sec", "rate_per_s"),
        ("workload.chat.arrivals.rate_per_s=-1", "workload[0].arrivals.rate_per_s", "e.g. 4.0"),
        ("horizon_s=20s", "horizon_s", "give a plain number: 20"),
        ("workload.chat.entitlement=chatt", "workload[0].entitlement", "chat"),
        ("pool.entitlements.chat.baseline.slots=5", "pool.entitlements", "replicas to 2"),
        ("policies=[tokenpool]", "policies[0]", "token-pool"),
        ("pool.profile=h2OO", "pool.profile", "dgx-spark-qwen3-8b-nvfp4"),
    ],
)
def test_bad_scenarios_are_refused_in_one_line(tokenpools: Run, setting: str, place: str, fix: str) -> None:
    code, out, err = tokenpools("run", "s.yaml", "--out", "o", "--set", setting)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: s.yaml: ")
    assert place in err
    assert fix in err
    assert not Path("o").exists()


def test_a_used_folder_is_refused_before_anything_runs(tokenpools: Run) -> None:
    Path("o").mkdir()
    Path("o/keep.txt").write_text("mine")
    code, _, err = tokenpools("run", "s.yaml", "--out", "o")
    assert (code, err.count("\n")) == (2, 1)
    assert "o: is not empty" in err
    assert [p.name for p in Path("o").iterdir()] == ["keep.txt"]


def test_a_trace_with_a_bad_row_names_it(tokenpools: Run) -> None:
    Path("t.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,x,109\n"
    )
    code, _, err = tokenpools(
        "run", "s.yaml", "--out", "o", "--set", "workload.chat.arrivals={kind: trace, file: t.csv}"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "t.csv: row 3" in err
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("text", "more", "problem"),
    [
        ("2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.99,x,109\n", "", "t.csv: row 3"),
        ("2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:45.99,3,109\n", "", "t.csv: row 3"),
        ("2023-11-16 18:15:46.68,374,44\n", ", from_trace_s: 50", "no row from 50 s"),
        ("2023-11-16 18:15:46.68,374,44\n", ", tenant: a", "it has no tenant column"),
        ("", "", "there is no row"),
        (None, "", "no such file"),
    ],
)
def test_validate_refuses_what_a_run_would_refuse_in_a_trace(
    tokenpools: Run, text: str | None, more: str, problem: str
) -> None:
    if text is not None:
        Path("t.csv").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{text}")
    setting = f"workload.chat.arrivals={{kind: trace, file: t.csv{more}}}"
    for command in (("validate", "s.yaml"), ("run", "s.yaml", "--out", "o")):
        code, out, err = tokenpools(*command, "--set", setting)
        assert (code, out, err.count("\n")) == (2, "", 1), command
        assert problem in err


def test_validate_warns_of_a_published_trace_that_is_not_fetched(
    tokenpools: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKENPOOLS_CACHE", str(tmp_path / "none"))
    monkeypatch.delenv("TOKENPOOLS_DATA", raising=False)
    code, out, err = tokenpools(
        "validate", "s.yaml", "--set", "workload.chat.arrivals={kind: trace, file: azure-llm-2023/code}"
    )
    assert (code, "good" in out) == (0, True)
    assert "warning: workload chat: azure-llm-2023/code: not fetched yet" in err


def test_plot_of_something_else_is_refused(tokenpools: Run) -> None:
    code, _, err = tokenpools("plot", "nowhere")
    assert code == 2
    assert "nowhere: is not a folder" in err


def test_validate_and_list(tokenpools: Run) -> None:
    assert tokenpools("validate", "s.yaml")[1].startswith("s.yaml: good; 2 runs")
    assert "token-pool" in tokenpools("list", "policies")[1]
    assert "paper-exp1" in tokenpools("list", "scenarios")[1]
    assert json.loads(tokenpools("schema")[1])["type"] == "object"


def test_an_unknown_option_is_bad_input(tokenpools: Run) -> None:
    code, _, err = tokenpools("run", "s.yaml", "--seeds", "3")
    assert code == 2
    assert "--seed" in err


def test_ctrl_c_in_mid_run_leaves_nothing(tmp_path: Path) -> None:
    scenario = SCENARIO | {"horizon_s": 1e6, "timeline_interval_s": 100}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(scenario))
    process = subprocess.Popen(
        [sys.executable, "-m", "sim", "run", "s.yaml", "--out", "o", "--progress"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = ""
    deadline_s = time.monotonic() + 60
    while "requests" not in seen and time.monotonic() < deadline_s:  # the progress bar: it is in mid-run
        seen += os.read(process.stderr.fileno(), 4096).decode()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, seen + err
    assert out == ""
    assert err.splitlines()[-1].strip().endswith("interrupted; nothing was written")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.yaml"]


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['tokenpools', '--help']\nimport sim.cli\n"
        "try: sim.cli.main()\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'pydantic', 'pyarrow', 'pandas', 'matplotlib', 'scipy', 'simpy', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    assert done.stderr.strip() == "[]"


def test_no_garbage_is_looked_for_while_the_command_is_imported() -> None:
    code = (
        "import gc, sys; from tokenpools.__main__ import main; sys.argv = ['tokenpools', '--version']\n"
        "seen = []; gc.callbacks.append(lambda *what: seen.append(what))\n"
        "try: main()\nfinally: print(len(seen), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "0\n"


def test_a_plain_run_imports_no_analysis_libraries(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    code = (
        "import sys; sys.argv = ['tokenpools', 'run', 's.yaml', '--out', 'o']\nimport sim.cli\nsim.cli.main()\n"
        "print(sorted({'pandas', 'matplotlib', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_plain_run_imports_no_kind_that_its_scenario_does_not_name(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SCENARIO | {"policies": ["none"]}))
    unused = [
        "policies.bands", "policies.predictive_pool.policy", "policies.presets.gateways", "policies.token_pool.policy",
        "policies.routers.scored", "policies.scaling.capacity", "workloads.trace", "workloads.servegen",
        "workloads.interactive", "numpy.ma", "sim.records.manifest_shape", "sim.scenario.manifests",
        "policies.budgets", "policies.hierarchy", "policies.invariants", "policies.limit_leases", "policies.shadow",
        "policies.scaling.rules", "policies.snapshot", "sim.engine.links", "sim.engine.step_fitted",
        "sim.engine.step_roofline", "sim.engine.step_table", "sim.cluster.disaggregated", "sim.cluster.flow_prefill",
        "sim.cluster.gateways", "sim.cluster.lora", "sim.cluster.pipeline", "sim.cluster.ranks", "statistics",
        "workloads.formats.rows", "workloads.prefixes", "sim.engine.disaggregation", "sim.engine.lora",
        "sim.engine.ranks", "sim.engine.speculation", "sim.engine.work", "sim.scenario.samples", "workloads.bursts",
        "workloads.long_tails",
    ]  # fmt: skip
    code = (
        "import sys; sys.argv = ['tokenpools', 'run', 's.yaml', '--out', 'o']\nimport sim.cli\nsim.cli.main()\n"
        f"print(sorted(set({unused}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "[]"
    for name in unused:  # or the test would not notice that one has another name by now
        assert importlib.util.find_spec(name) is not None, name


def test_a_guaranteed_tenant_that_its_own_limit_refuses_is_named_before_and_after(tokenpools: Run) -> None:
    chosen = ["--set", "policies=[token-pool]", "--replications", "1"]
    code, out, err = tokenpools("validate", "paper-exp1", *chosen)
    assert code == 0
    assert "good" in out
    assert "warning: guaranteed-c is guaranteed 6 slots and never has more" in err
    code, out, err = tokenpools("run", "paper-exp1", *chosen, "--out", "o")
    assert code == 0
    assert "warning: guaranteed-c lost 13.6%" in err
    assert tokenpools("plot", "o", "--width", "column")[0] == 0
    assert Path("o/plots/fair-share.pdf").is_file()


def test_a_warning_is_said_once_and_missing_characters_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from sim.cli.app import _warn

    for character in "客服团队":
        _warn(f"Glyph {ord(character)} (\\N{{CJK}}) missing from font(s) DejaVu Sans.", UserWarning, "x.py", 1)
    for _ in range(2):
        _warn("this was said before", UserWarning, "x.py", 1)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "boxes stand for them" in said[0]
