"""Policies that watch a live gateway: they change no byte, are counted, and can be made to act by a reload."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from live.gate import ENTITLEMENTS, config, gateway, head, shadowed
from live.stand_in import running
from typer.testing import CliRunner

from policies.api import Arrived, RequestView
from policies.shadow import ShadowedCore
from sim.analysis.shadows import of_gateway
from sim.cli import app
from sim.errors import InputError, ScenarioError
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.core_from_config import core_of_head, make_core, recorded_head
from sim.live.gateway.shadowing import Shadowing
from sim.live.observability.shadows import ShadowTally

TIGHT = {"name": "tight", "kind": "rate-limit", "requests_per_min": 60, "burst_s": 1.0}
ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s'
MODELS = json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode()
DONE = json.dumps({
    "id": "c", "object": "text_completion", "choices": [{"index": 0, "text": "w", "finish_reason": "length"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}).encode()  # fmt: skip


class Recorder:
    """An upstream that keeps the bytes of every request to the API."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(one,), daemon=True).start()

    def _answer(self, one: socket.socket) -> None:
        with one, one.makefile("rb") as reading:
            while first := reading.readline():
                lines = [first]
                while (line := reading.readline()) not in (b"\r\n", b""):
                    lines.append(line)
                length = next((int(x.split(b":")[1]) for x in lines if x.lower().startswith(b"content-length:")), 0)
                body = reading.read(length)
                if b"/v1/completions" in first:
                    self.heard.append(b"".join(lines) + b"\r\n" + body)
                    one.sendall(ANSWER % (len(DONE), DONE))
                else:
                    one.sendall(ANSWER % (len(MODELS), MODELS))

    def close(self) -> None:
        self._listening.close()


@contextmanager
def recorder() -> Iterator[Recorder]:
    one = Recorder()
    try:
        yield one
    finally:
        one.close()


def raw_requests(port: int) -> None:
    """Send requests of several shapes, byte for byte the same each time."""
    bodies = [
        b'{"model": "tiny", "prompt": "a b c", "max_tokens": 4}', b'{"prompt":"x"  ,"model":"tiny","n":1}',
        b'{"model":"tiny","prompt":"\\ud83d\\ude00 \xc3\xa9","temperature":1e0, "user":"u"}',
    ]  # fmt: skip
    for body in bodies:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
            one.sendall(head("content-type: application/json", f"content-length: {len(body)}", "x-mine: 1") + body)
            answer = one.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200"), answer


def test_a_gateway_without_control_sends_the_same_bytes_with_shadows_and_without() -> None:
    found = []
    for shadows in ([], ["token-pool", TIGHT, {"name": "fair", "kind": "fair-queue"}]):
        with recorder() as upstream, gateway(upstream) as gate:  # type: ignore[arg-type]
            if shadows:
                shadowed(gate, config([upstream], shadow=shadows), lambda _: None)  # type: ignore[list-item]
                assert isinstance(gate.service.gateway.core, ShadowedCore)
                gate.service.recorders.remove(gate.check)
                gate.checker = None
            raw_requests(gate.port)
            said = [re.sub(rb"req-[0-9a-f]{8}-[0-9a-f]+", b"ID", one) for one in upstream.heard]
            found.append([one.replace(upstream.base_url[7:].encode(), b"HOST") for one in said])
    assert len(found[0]) == 3
    assert found[0] == found[1]


def test_would_be_refusals_are_counted_by_tenant_and_reason_shown_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    tally = ShadowTally()
    with caplog.at_level(logging.INFO, "tokenpools.shadow"), running() as stand_in, gateway(stand_in) as gate:
        shadowed(gate, config([stand_in], shadow=[TIGHT]), tally)
        gate.service.recorders.remove(gate.check)
        gate.checker = None
        for _ in range(3):
            assert gate.ask().status == 200
        assert gate.ask(key="batch").status == 200
        gate.balanced()
    rows = {row["tenant"]: row for row in tally.rows()}
    assert rows["acme"] == {
        "shadow": "tight", "tenant": "acme", "attempts": 3, "would_refuse": 2, "of_these_served": 2,
        "would_let_in": 0, "reasons": {"requests": 2},
    }  # fmt: skip
    assert (rows["other"]["attempts"], rows["other"]["would_refuse"]) == (1, 0)
    (family,) = tally.collect()
    counted = {tuple(sample.labels.values()): sample.value for sample in family.samples}
    assert counted["tight", "acme", "in", "refuse", "requests"] == 2
    logged = [record.fields for record in caplog.records if record.name == "tokenpools.shadow"]  # type: ignore[attr-defined]
    assert [(one["tenant"], one["would"], one["reason"]) for one in logged] == [("acme", "refuse", "requests")] * 2


def test_the_command_says_what_those_that_watch_a_running_gateway_would_have_turned_away() -> None:
    tally = ShadowTally()
    with running() as stand_in, gateway(stand_in, admin={"port": 0}) as gate:
        pages = f"http://127.0.0.1:{gate.observability.port}"
        with pytest.raises(InputError, match="no policy watches"):
            CliRunner().invoke(app, ["shadow", pages], catch_exceptions=False)
        with pytest.raises(InputError, match="shows no state; see the gateway's admin setting"):
            CliRunner().invoke(app, ["shadow", gate.base_url], catch_exceptions=False)
        shadowed(gate, config([stand_in], shadow=[TIGHT]), tally)
        gate.observability.state.shadows = tally.rows
        gate.service.recorders.remove(gate.check)
        gate.checker = None
        for _ in range(3):
            gate.ask()
        gate.balanced()
        done = CliRunner().invoke(app, ["shadow", pages], catch_exceptions=False)
        table = CliRunner().invoke(app, ["shadow", pages, "--csv"], catch_exceptions=False)
    assert done.output.splitlines() == [
        "none acts, tight watches: 3 attempts, 2 would be turned away",
        "  acme: 2 of 3 (requests 2), 2 of them served; would let in 0 refused",
    ]
    quiet = [{**tally.rows()[0], "tenant": name, "would_refuse": 0, "reasons": {}} for name in ("a", "b")]
    assert of_gateway("none", [*tally.rows(), *quiet]).splitlines()[2:] == ["  2 others: none of 6"]
    assert of_gateway("tight", tally.rows()).startswith("tight watched before it acted: 3 attempts, ")
    assert table.output.splitlines()[1] == "tight,acme,3,2,2,0,requests"


def test_a_reload_lets_a_shadow_act_with_what_it_remembers_and_back() -> None:
    opinions: list[Any] = []
    with running() as stand_in:
        given = config([stand_in], shadow=[TIGHT])
        read = parse_config(given, "test.yaml")
        shadowing = Shadowing(lambda found, leaving: core_of_head(found, "test.yaml", leaving), opinions.append)
        core = shadowing.begin(make_core(read), recorded_head(read))
        core.start(0.0)
        said = core.handle(Arrived(RequestView("r1", "chat", "acme", 3, 4)), 0.0)
        assert type(said[0]).__name__ == "Forward"
        enforcing = recorded_head(parse_config(config([stand_in], policy=TIGHT), "test.yaml"))
        core, _ = shadowing.change_over(enforcing, core, 0.0)
        assert not isinstance(core, ShadowedCore)
        assert list(core.pool.in_flight) == ["r1"]
        refused = core.handle(Arrived(RequestView("r2", "chat", "acme", 3, 4)), 0.0)[-1]
        assert type(refused).__name__ == "Refuse"  # the shadow's bucket was used already
        core, _ = shadowing.change_over(recorded_head(read), core, 1.0)
        assert isinstance(core, ShadowedCore)
        assert type(core.handle(Arrived(RequestView("r3", "chat", "acme", 3, 4)), 1.0)[-1]).__name__ == "Forward"


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"shadow": [TIGHT, TIGHT]}, "shadow"), ({"shadow": ["no-such"]}, "shadow[0]"),
     ({"shadow": [TIGHT], "recording": "r.jsonl"}, "shadow"),
     ({"shadow": [TIGHT], "state": "redis://127.0.0.1:1/0"}, "shadow")],
)  # fmt: skip
def test_what_shadows_cannot_be_beside_is_refused(changed: dict[str, Any], field: str) -> None:
    with running() as stand_in, pytest.raises(ScenarioError) as refused:
        parse_config(config([stand_in], entitlements=ENTITLEMENTS, **changed), "test.yaml")
    assert refused.value.args[1] == field


def test_ticks_of_shadows_do_not_make_the_gateway_tick_for_ever() -> None:
    with running() as stand_in, gateway(stand_in) as gate:
        shadowed(gate, config([stand_in], shadow=["token-pool"]), lambda _: None)
        gate.service.recorders.remove(gate.check)
        gate.checker = None
        before = len(gate.events)
        asyncio.run(asyncio.sleep(0))
        assert gate.ask().status == 200
        assert len(gate.events) - before < 50
