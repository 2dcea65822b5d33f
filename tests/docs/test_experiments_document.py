"""The scenarios and the Python of docs/experiments.md work as shown; its commands are in test_commands.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from experiments.small import scenario

from sim.scenario.load import expand

TEXT = (Path(__file__).parents[2] / "docs/experiments.md").read_text()


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


def test_the_python_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    space: dict[str, object] = {}
    exec(compile(block.replace("jobs=2", "jobs=1").replace("replications=5", "replications=2"), "docs", "exec"), space)
    assert len(space["results"].differences(["ttft_p99_s"]))  # type: ignore[attr-defined]
