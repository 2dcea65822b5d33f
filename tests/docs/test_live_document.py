"""The commands and the configuration of docs/live.md work as shown, before a stand-in for vLLM."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from live.gate import gateway
from live.stand_in import StandIn, running
from typer.testing import CliRunner

from sim.calibration.profile_file import write_profile
from sim.cli import app
from sim.live.gateway.config_file import load_config
from sim.scenario.profile import load_profile

TEXT = (Path(__file__).parents[2] / "docs" / "live.md").read_text()
BLOCKS = dict(re.findall(r"<!-- run: (\w+) -->\n```sh\n(.*?)```", TEXT, re.DOTALL))
SCENARIO = {
    "version": 1, "seed": 3, "horizon_s": 1.0, "timeline_interval_s": 0.25,
    "pool": {
        "profile": "dgx-spark-qwen3-8b-nvfp4",
        "entitlements": [{"name": "chat", "service_class": "guaranteed", "baseline": {"slots": 6}}],
    },
    "workload": [
        {"entitlement": "chat", "arrivals": {"kind": "even", "rate_per_s": 10}, "prompt_tokens": 8, "output_tokens": 4}
    ],
    "policies": ["none"],
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_profile(load_profile("b200-llama-3.1-70b-fp8-tp1"), tmp_path / "replica.yaml")
    (config,) = re.findall(r"```yaml\n(version: 1\nlisten.*?)```", TEXT, re.DOTALL)
    (tmp_path / "gateway.yaml").write_text(config)
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump(SCENARIO))
    return tmp_path


def arguments(name: str, **replaced: str) -> list[str]:
    line = BLOCKS[name].replace("\\\n", " ")
    for old, new in replaced.items():
        line = line.replace(old, new)
    command, *found = shlex.split(line)
    assert command == "tokenpools"
    return found


def test_every_block_is_tested() -> None:
    assert set(BLOCKS) == {"calibrate", "key", "serve", "replay", "parity"}


def test_the_configuration_is_served(here: Path) -> None:
    done = CliRunner().invoke(app, arguments("serve"), catch_exceptions=False)
    assert (done.exit_code, "good; 1 upstreams, 2 keys" in done.output) == (0, True), done.output
    loaded = load_config(here / "gateway.yaml")
    assert loaded.admin is not None
    assert loaded.logs.style == "json"


def test_a_key_is_made(here: Path) -> None:
    done = CliRunner().invoke(app, arguments("key"), catch_exceptions=False)
    assert done.exit_code == 0
    assert '"entitlement": "chat"' in done.output


def test_calibrate_asks_for_what_the_server_does_not_say(here: Path) -> None:
    with running() as server:
        mine = arguments("calibrate")
        mine[mine.index("--base-url") + 1] = server.base_url
        done = CliRunner().invoke(app, mine)
    assert "give it by hand: --kv-blocks" in str(done.exception)  # a stand-in is no vLLM: it has no cache to speak of


def test_replay_and_parity_run_against_a_gateway(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from live.gate import ENTITLEMENTS, secret

    monkeypatch.setenv("TOKENPOOLS_KEY_CHAT", secret("chat"))
    with running() as server, gateway(server, admin={"port": 0}, entitlements=ENTITLEMENTS) as gate:
        mine = arguments("replay")
        for option, value in (
            ("--base-url", gate.base_url), ("--admin-url", f"http://127.0.0.1:{gate.observability.port}"),
            ("--metrics-url", f"{server.base_url}/metrics"),
        ):  # fmt: skip
            mine[mine.index(option) + 1] = value
        done = CliRunner().invoke(app, mine)
        assert done.exit_code in (0, 1), done.output  # 1 where this machine was too busy to be punctual
        assert "a gateway that shows its state" in done.output
        _record(gate, server, here / "events.jsonl")
    assert (here / "results" / "live-run" / "requests.parquet").exists()
    done = CliRunner().invoke(app, arguments("parity"), catch_exceptions=False)
    assert done.exit_code == 0
    assert "all the same" in done.output


def _record(gate, server: StandIn, path: Path) -> None:  # type: ignore[no-untyped-def]
    from live.gate import config

    from sim.live.gateway.config_file import parse_config
    from sim.live.gateway.core_from_config import recorded_head
    from sim.live.observability.recording import Recording

    recording = Recording(path, gate.service.gateway.core, recorded_head(parse_config(config([server]), "test.yaml")))
    for entry in list(gate.events):
        recording(*entry)
    recording.close()
