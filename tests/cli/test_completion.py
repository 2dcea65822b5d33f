"""What a shell gets when it asks for completions, and when something of that is broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sim.cli import completion
from sim.scenario.load import json_schema, load_scenario, resolved
from sim.scenario.paths import choices, set_paths

TREE = resolved(load_scenario("paper-exp1"))


def process(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HOME": str(folder), "SHELL": "/bin/bash", **environment}
    command = [sys.executable, "-m", "sim", *arguments]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)


def said(name: str, incomplete: str, line: str = "", monkeypatch: pytest.MonkeyPatch | None = None) -> list[str]:
    if monkeypatch is not None:
        monkeypatch.setenv("COMP_WORDS", line)
    context: Any = SimpleNamespace(params={})
    return [one if isinstance(one, str) else one[0] for one in getattr(completion, name)(context, incomplete)]


def test_a_shell_gets_names_and_paths_of_the_scenario_on_its_line(tmp_path: Path) -> None:
    def found(line: str) -> list[str]:
        words = line.split(" ")
        done = process(
            tmp_path, _TOKENPOOLS_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    assert found("tokenpools tourn") == ["tournament"]
    rate = "workload.spot-b.arrivals.rate_per_s="
    assert found(f"tokenpools run paper-exp1 --set {rate[:-8]}") == [rate]


def test_names_are_completed() -> None:
    assert "paper-exp1" in said("scenarios", "paper")
    assert said("policies", "token-p") == ["token-pool"]
    assert "h100-llama-3.1-8b" in said("profiles", "h100")
    assert "azure-llm-2023/code" in said("traces", "azure")
    assert said("data_sets", "servegen") == ["servegen"] or said("data_sets", "")


def test_paths_stop_at_a_dot_while_there_are_many_and_words_follow_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "tokenpools run paper-exp1 --set "
    top = said("set_paths", "", line, monkeypatch)
    assert {"pool.", "seed=", "horizon_s="} <= set(top)
    assert len(top) < 30
    assert said("set_paths", "pool.entitlements.spot-b.service_class=s", line) == [
        "pool.entitlements.spot-b.service_class=spot"
    ]
    assert said("range_paths", "pool.replicas=", line) == []


def test_every_path_of_a_scenario_can_be_set() -> None:
    from sim.scenario.overrides import located

    paths = [path for path, _ in set_paths(TREE, json_schema())]
    assert "workload.guaranteed-a.arrivals.rate_per_s" in paths
    assert not [path for path in paths if path.startswith(("version", "vary"))]
    for path in paths:
        if "{" not in path:
            parent = path.rpartition(".")[0]
            located(TREE, parent or path, "s.yaml")
    assert choices("nowhere.at.all", TREE, json_schema()) == []


def test_the_schema_alone_gives_paths() -> None:
    paths = [path for path, _ in set_paths({}, json_schema())]
    assert {"seed", "horizon_s", "pool.replicas"} <= set(paths)


def test_what_is_broken_completes_nothing_and_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.yaml").write_text("version: [")
    monkeypatch.chdir(tmp_path)
    assert "horizon_s=" in said("set_paths", "hor", "tokenpools run bad.yaml --set hor", monkeypatch)
    monkeypatch.setattr(completion, "_shipped", lambda _: 1 / 0)
    assert said("scenarios", "p") == []
    for word in ("x", ""):
        done = process(tmp_path, _TOKENPOOLS_COMPLETE="complete_bash", COMP_WORDS='tokenpools run "', COMP_CWORD=word)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["not UTF-8", "a folder"])
def test_a_start_up_file_that_cannot_be_used_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    place = tmp_path / ".bashrc"
    place.mkdir() if content is None else place.write_bytes(content)
    done = process(tmp_path, "--install-completion", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="")
    if "not supported" in done.stdout:
        pytest.skip("the tests run in a shell that typer does not know")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --install-completion: ")
    assert done.stderr.count("\n") == 1
