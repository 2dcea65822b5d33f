"""The commands and scenarios of docs/experiments.md work as shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from experiments.small import scenario

import sim.cli_experiments  # registers its commands
from sim.cli import app
from sim.scenario import expand

assert sim.cli_experiments

TEXT = (Path(__file__).parents[2] / "docs/experiments.md").read_text()
BLOCKS = dict(re.findall(r"<!-- run: (\w+) -->\n```sh\n(.*?)```", TEXT, re.DOTALL))


def test_every_vary_of_the_document_expands() -> None:
    found = re.findall(r"```yaml\n(vary:.*?)```", TEXT, re.DOTALL)
    assert len(found) == 3
    sizes = []
    for block in found:
        asked = scenario(
            vary=yaml.safe_load(block)["vary"],
            policies=["none", "token-pool"],
        )
        sizes.append(len(expand(asked)))
    assert sizes == [2 * 6, 2 * 40, 2 * 2]


def test_every_command_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(BLOCKS) == {"sweep", "until", "compare", "report", "plan"}
    for block in BLOCKS.values():
        for line in block.replace("\\\n", " ").splitlines():
            name, *arguments = shlex.split(line, comments=True)
            assert name == "tokenpools"
            # Shorter than shown: a minute of the documentation's time is not worth a minute of every test run.
            if arguments[0] in ("sweep", "plan"):
                arguments += ["--set", "horizon_s=95", "--set", "timeline_interval_s=5"]
            done = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert done.exit_code in ((0, 1) if "--until" in arguments else (0,)), (line, done.output)
    assert (tmp_path / "results/exp1/report.html").exists()
    assert (tmp_path / "results/plan/frontier.png").exists()


def test_the_python_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    space: dict[str, object] = {}
    exec(compile(block.replace("jobs=2", "jobs=1").replace("replications=5", "replications=2"), "docs", "exec"), space)
    assert len(space["results"].differences(["ttft_p99_s"]))  # type: ignore[attr-defined]
