"""What a gateway records is told again to a fresh core: the same verdicts, and a changed one is noticed."""

from __future__ import annotations

import concurrent.futures
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from live.gate import Gate, config, gateway
from live.stand_in import Behaviour, StandIn, running
from typer.testing import CliRunner

from sim.cli import app
from sim.errors import InputError, ScenarioError
from sim.judging.parity import check_parity
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.core_from_config import core_of_head, make_core, recorded_head
from sim.live.observability.recording import Recording

POOL = {"kind": "token-pool", "mode": "paper", "tick_s": 0.05, "max_request_tokens": 60}


def recorded(path: Path, **changed: Any) -> Path:
    """Run a gateway under more load than it admits, and write its events."""
    with running(behaviour=Behaviour(ttft_s=0.01, gap_s=0.01)) as stand_in:
        with gateway(stand_in, **changed) as gate, concurrent.futures.ThreadPoolExecutor(24) as pool:
            list(pool.map(lambda i: gate.ask(key=("chat", "batch", "filler")[i % 3], stream=True), range(90)))
            gate.balanced()
            events = list(gate.events)
            started_s = gate.service.gateway.core.started_s
        head = recorded_head(parse_config(config([stand_in], **changed), "test.yaml"))
    write(path, events, started_s, head)
    return path


def write(path: Path, events: Any, started_s: float, head: dict[str, Any]) -> None:
    class Started:
        pass

    core = Started()
    core.started_s = started_s  # type: ignore[attr-defined]
    recording = Recording(path, core, head)  # type: ignore[arg-type]
    for entry in events:
        recording(*entry)
    recording.close()


@pytest.mark.parametrize("policy", ["none", POOL, {"kind": "rate-limit", "requests_per_min": 60, "burst_s": 5}])
def test_a_recording_gives_the_same_verdicts(tmp_path: Path, policy: Any) -> None:
    path = recorded(tmp_path / "events.jsonl", policy=policy)
    found = check_parity(path)
    assert found.differing == 0
    assert found.verdicts["forward"] > 0
    assert sum(found.verdicts.values()) >= 90
    assert policy == "none" or found.verdicts["refuse"] > 0
    done = CliRunner().invoke(app, ["parity", str(path)])
    assert done.exit_code == 0
    assert "all the same" in done.output


def test_a_verdict_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = recorded(tmp_path / "events.jsonl", policy=POOL)
    lines = path.read_text().splitlines()
    where = next(i for i, line in enumerate(lines) if '"refuse"' in line)
    lines[where] = lines[where].replace('"refuse"', '"hold"')
    path.write_text("\n".join(lines) + "\n")
    done = CliRunner().invoke(app, ["parity", str(path)])
    assert done.exit_code == 1
    assert f"line {where + 1}: recorded" in done.output


def test_another_policy_decides_otherwise(tmp_path: Path) -> None:
    path = recorded(tmp_path / "events.jsonl", policy=POOL)
    head, *rows = path.read_text().splitlines()
    other = recorded_head(parse_config(config([StandIn()], policy="none"), "test.yaml"))
    path.write_text("\n".join([json.dumps({**json.loads(head), "policy": other["policy"]}), *rows]))
    assert check_parity(path).differing > 0


def test_what_a_killed_gateway_leaves_can_be_read(tmp_path: Path) -> None:
    path = recorded(tmp_path / "events.jsonl", policy=POOL)
    text = path.read_text()
    path.write_text(text[: text.rindex("[")])
    with pytest.warns(UserWarning, match=r"line \d+, the last, is torn and left out"):
        assert check_parity(path).differing == 0


HEAD = {"version": 1, "started_s": 0.0, **recorded_head(parse_config(config([StandIn()], policy="none"), "test.yaml"))}
ARRIVED = '["arrived", ["r1", "chat", "chat", 8, 8, 0, 1]]'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1e400, %s, []]", "1e400 is no number"),
        ("[1.0, " + "[" * 2000 + "]" * 2000 + ", []]", "nested too deeply"),
        ("[NaN, %s, []]", "NaN is no number"),
        ("[" + "9" * 400 + ", %s, []]", "line 2 is no event"),
        ("[-1.0, %s, []]", "before"),
        ("[true, %s, []]", "no time"),
        ("[1.0, %s, [7]]", "no list of instructions"),
        ("[1.0, %s, 7]", "no list of instructions"),
        ('{"a": 1, "a": 2}', "appears twice"),
        ("\xff", "not UTF-8"),
    ],
)
def test_a_line_of_nonsense_is_refused_in_one_line(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = json.dumps(HEAD) + "\n" + line.replace("%s", ARRIVED) + "\n"
    path.write_bytes(whole.encode("latin-1"))
    with pytest.raises(InputError, match=says) as caught:
        check_parity(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("head", [{**HEAD, "seed": "x"}, {**HEAD, "started_s": "x"}, {**HEAD, "started_s": True}])
def test_a_head_of_nonsense_is_refused(head: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(head) + "\n")
    with pytest.raises(InputError, match="no head"):
        check_parity(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no head"),
        ("{}\n", "no head"),
        ('{"version": 1, "started_s": 0}\n', "pool: missing"),
        ("not json\n", "no head"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(text)
    with pytest.raises((InputError, ScenarioError), match=says):
        check_parity(path)
    with pytest.raises(InputError, match="cannot be read"):
        check_parity(tmp_path / "nothing.jsonl")


def test_a_line_that_is_no_event_is_named(tmp_path: Path) -> None:
    path = recorded(tmp_path / "events.jsonl", policy="none")
    lines = path.read_text().splitlines()
    lines.insert(3, '[1.0, ["surprise"], []]')
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match="line 4 is no event"):
        check_parity(path)


def test_the_head_makes_the_core_again(tmp_path: Path) -> None:
    read = parse_config(config([StandIn()], policy=POOL), "test.yaml")
    assert "sha256" not in json.dumps(recorded_head(read))
    again = core_of_head(json.loads(json.dumps(recorded_head(read))), "events.jsonl")
    made = make_core(read)
    assert again.start(0.0) == made.start(0.0)
    assert again.gauges(0.0) == made.gauges(0.0)


def test_a_full_disk_ends_the_recording_and_not_the_gateway(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with running() as stand_in, gateway(stand_in) as gate:
        recording = Recording(full, gate.service.gateway.core, {"padding": "x" * 100_000})
        with caplog.at_level(logging.ERROR):
            _ask_with(gate, recording)
    assert "recording ends after" in caplog.text


def _ask_with(gate: Gate, recording: Recording) -> None:
    gate.call(lambda: gate.service.recorders.append(recording))
    for _ in range(3):
        assert gate.ask().status == 200
    gate.balanced()


def test_a_refusal_by_a_live_gateway_is_explained(tmp_path: Path) -> None:
    path = recorded(tmp_path / "events.jsonl", policy={"kind": "rate-limit", "requests_per_min": 60, "burst_s": 5})
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    refused = next(step for _, _, steps in lines for step in steps if step[0] == "refuse")
    done = CliRunner().invoke(app, ["explain", str(path), refused[1]])
    assert done.exit_code == 0, done.exception
    assert "refused" in done.output
    assert refused[2] in done.output
    assert "what would have let it in" in done.output
    let_in = next(step for _, _, steps in lines for step in steps if step[0] == "forward")
    assert "let in" in CliRunner().invoke(app, ["explain", str(path), let_in[1]]).output
    nobody = CliRunner().invoke(app, ["explain", str(path), "nobody"], standalone_mode=False)
    assert "no such request in this recording" in str(nobody.exception)
