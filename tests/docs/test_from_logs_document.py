"""The path of docs/from-logs-to-limits.md, on a small log and with few draws."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from docs.test_mock_server_document import process, two_free_ports_in_a_row
from live.gate import free_port
from typer.testing import CliRunner, Result

from sim.cli import app

TEXT = (Path(__file__).parents[2] / "docs" / "from-logs-to-limits.md").read_text()
BLOCKS = dict(re.findall(r"<!-- run: (\w+) -->\n```sh\n(.*?)```", TEXT, re.DOTALL))
FEW = ("--draws", "2", "--check-draws", "5", "--share", "0.6", "--policy", "token-pool", "--window-s", "90")


def run(name: str, *more: str, **replaced: str) -> Result:
    line = BLOCKS[name]
    for old, new in replaced.items():
        line = line.replace(old, new)
    command, *arguments = shlex.split(line)
    assert command == "tokenpools"
    return CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)


def log_of(path: Path) -> None:
    """Write a gateway's log of two tenants, one of which was refused now and then."""
    lines = []
    for i in range(400):
        fields = {
            "time": f"2026-11-28T20:{i // 150:02}:{i % 150 * 0.4:06.3f}Z", "level": "info",
            "logger": "tokenpools.requests", "message": "", "entitlement": "chat" if i % 2 else "batch", "model": "m",
            "attempt": 1, "prompt_tokens": 200, "max_output_tokens": 100, "output_tokens": 30 + i % 40,
            "http_status": 200, "verdict": "finished",
        }  # fmt: skip
        if i % 10 == 0:
            fields |= {"verdict": "refused", "http_status": 429, "output_tokens": 0}
        lines.append(json.dumps(fields))
    path.write_text("\n".join(lines))


def test_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log_of(tmp_path / "gateway.jsonl")
    inspected = run("inspect")
    assert "gateway-log" in inspected.output
    assert "unanswered" in inspected.output
    first, door, admin = two_free_ports_in_a_row(), free_port(), free_port()
    advised = run("advise", *FEW, "--upstream", f"http://127.0.0.1:{first}")
    assert advised.exit_code == 0, advised.output
    assert "These settings hold" in advised.output
    units = run("units")
    assert "PTU" in units.output
    assert "GSU" in units.output
    assert "good; 1 upstreams, 2 keys" in run("check").output
    config = tmp_path / "advice" / "gateway.yaml"
    config.write_text(config.read_text().replace("port: 8080", f"port: {door}").replace("port: 9090", f"port: {admin}"))
    config.write_text(edited("_watch", config.read_text()))
    ports = {"8000": str(first), "8080": str(door), " --check": ""}
    with (
        process("mock", ports, tmp_path, "replica 0:", BLOCKS),
        process("check", ports, tmp_path, "running", BLOCKS),
    ):
        more = f"--admin-url http://127.0.0.1:{admin} --set warmup_s=0 --out"
        done = run("replay", **{"8080": str(door), "horizon_s=60": "horizon_s=4", "--out": more})
        seen = run("shadow", **{"9090": str(admin)})
    assert done.exit_code in (0, 1), done.output  # 1 where this machine was too busy to be punctual
    table = pd.read_parquet(tmp_path / "results" / "tried" / "requests.parquet")
    assert len(table) > 3
    assert set(table["outcome"]) <= {"finished", "running"}
    assert set(table["policy"]) == {"none"}
    assert "none acts, token-pool watches: " in seen.output


def edited(how: str, text: str) -> str:
    """Edit a configuration as docs/regenerate_transcript.py does."""
    place = Path(__file__).parents[2] / "docs" / "regenerate_transcript.py"
    found: dict[str, Any] = runpy.run_path(str(place))
    return str(found[how](text))


def test_a_configuration_that_watched_is_the_same_again_when_it_acts() -> None:
    text = "pool: {}\n# To watch\n#   policy: none\n#   shadow: [{kind: rate-limit, requests_per_min: 5}]\n"
    text += "policy:\n  kind: rate-limit\n  requests_per_min: 5\nupstreams: []\n"
    watching = edited("_watch", text)
    assert yaml.safe_load(watching) == {
        "pool": {}, "policy": "none", "shadow": [{"kind": "rate-limit", "requests_per_min": 5}], "upstreams": [],
    }  # fmt: skip
    assert edited("_act", watching) == text
