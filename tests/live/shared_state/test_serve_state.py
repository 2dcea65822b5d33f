"""`tokenpools serve --state`: real processes, a real redis-server, and HTTP."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from live.gate import ENTITLEMENTS, config, free_port, secret
from live.shared_state.redis_server import BINARY, RedisServer
from live.stand_in import StandIn, running

from sim.errors import ScenarioError
from sim.live.gateway.authentication import hashed
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.settings_from_config import make_settings

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs redis-server")

SLOW = {"stand_in": {"gap_s": 0.05}}

FRESH = (
    *(one for one in ENTITLEMENTS if one["name"] != "batch"),
    {"name": "fresh", "tenant": "new", "service_class": "spot", "limit": {"slots": 1}},
)


class Serve:
    def __init__(self, folder: Path, name: str, stand_in: StandIn, url: str, **changed: Any) -> None:
        self.port = free_port()
        self.file, self._stand_in = folder / f"{name}.yaml", stand_in
        self.write(**changed)
        self.errors = folder / f"{name}.err"
        with self.errors.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sim", "serve", str(self.file), *(["--state", url] if url else [])],
                stderr=err, stdout=err,
            )

    def write(self, **changed: Any) -> None:
        written = config([self._stand_in], policy="token-pool", **changed) | {"listen": {"port": self.port}}
        self.file.write_text(yaml.safe_dump(written))

    def reload(self) -> None:
        said = self._outcomes()
        self.process.send_signal(signal.SIGHUP)
        deadline_s = time.monotonic() + 10
        while self._outcomes() == said:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)

    def _outcomes(self) -> int:
        text = self.errors.read_text()
        return text.count("changed over: ") + text.count("stays as it was")

    def ask(self, key: str, max_tokens: int, *, path: str = "/v1/completions", **fields: Any) -> tuple[int, Any]:
        body = json.dumps({"model": "tiny", "prompt": "a b c", "max_tokens": max_tokens, **fields})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", path, body, {"authorization": f"Bearer {secret(key)}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def get(self, path: str, token: str = "") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path, headers={"authorization": f"Bearer {token}"} if token else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def until_ready(self, status: int = 200) -> Serve:
        deadline_s = time.monotonic() + 20
        while self.get("/readyz")[0] != status:
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline_s, self.errors.read_text()
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with running() as one:
        yield one


def in_background(serve: Serve, key: str, max_tokens: int, found: list[int]) -> threading.Thread:
    def ask() -> None:
        try:
            found.append(serve.ask(key, max_tokens, **SLOW)[0])
        except (OSError, http.client.HTTPException):
            found.append(0)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_a_limit_holds_over_two_processes_and_a_killed_one_gives_its_slots_back(
    tmp_path: Path, server: RedisServer, stand_in: StandIn
) -> None:
    state = {"ttl_s": 1.0, "timeout_s": 3.0}
    admin = {"token_sha256": hashed("look").hex()}
    serves = [
        Serve(tmp_path, name, stand_in, server.url, state=state, admin=admin).until_ready() for name in ("one", "two")
    ]
    try:
        found: list[list[int]] = [[], []]
        threads = [in_background(serves[0], "batch", 200, found[0]), in_background(serves[1], "batch", 30, found[1])]
        time.sleep(0.5)
        seen = [serve.get("/metrics", token="look")[1] for serve in serves]
        assert sorted("tokenpools_state_leader 1.0" in text for text in seen) == [False, True]
        assert all("tokenpools_state_gateways 2.0" in text for text in seen)
        assert all("tokenpools_state_reachable 1.0" in text for text in seen)
        for serve in serves:  # batch may have two requests in flight in the whole pool
            status, body = serve.ask("batch", 2)
            assert (status, body["error"]["reason"]) == (429, "concurrency")
        serves[0].process.send_signal(signal.SIGKILL)
        died_s = time.monotonic()
        threads[1].join(10)
        assert found[1] == [200]
        threads[1] = in_background(serves[1], "batch", 40, found[1])
        time.sleep(0.2)
        while serves[1].ask("batch", 2)[0] != 200:
            assert time.monotonic() - died_s < 4
            time.sleep(0.05)
        for thread in threads:
            thread.join(10)
        assert found == [[0], [200, 200]]
        serves[1].stop()
        assert serves[1].process.returncode == 0
        assert "Traceback" not in serves[1].errors.read_text()
        assert "redis.sock" not in serves[1].errors.read_text()
    finally:
        for serve in serves:
            serve.stop()


def test_a_gateway_whose_state_was_never_there_is_not_ready_until_it_is(
    tmp_path: Path, server: RedisServer, stand_in: StandIn
) -> None:
    server.kill()
    serve = Serve(tmp_path, "one", stand_in, server.url, state={"timeout_s": 0.3})
    try:
        serve.until_ready(503)
        deadline_s = time.monotonic() + 10
        while "never" not in serve.get("/readyz")[1] and "not reached" not in serve.get("/readyz")[1]:
            assert time.monotonic() < deadline_s
        status, body = serve.ask("chat", 2)
        assert (status, body["error"]["code"]) == (503, "state_unavailable")
        server.start()
        serve.until_ready()
        assert serve.ask("chat", 2)[0] == 200
    finally:
        serve.stop()


def test_gateways_that_were_told_different_things_do_not_share(
    tmp_path: Path, server: RedisServer, stand_in: StandIn
) -> None:
    serve = Serve(tmp_path, "one", stand_in, server.url).until_ready()
    other = Serve(tmp_path, "two", stand_in, server.url, seed=9)
    try:
        assert other.process.wait(20) == 1
        assert "another configuration" in other.errors.read_text()
    finally:
        serve.stop()
        other.stop()


def test_all_are_stopped_and_begin_with_another_configuration(
    tmp_path: Path, server: RedisServer, stand_in: StandIn
) -> None:
    Serve(tmp_path, "one", stand_in, server.url).until_ready().stop()
    second = Serve(tmp_path, "two", stand_in, server.url, entitlements=FRESH).until_ready()
    third = Serve(tmp_path, "three", stand_in, server.url, entitlements=FRESH).until_ready()
    try:
        assert (second.ask("fresh", 2)[0], third.ask("chat", 2)[0], third.ask("batch", 2)[0]) == (200, 200, 401)
    finally:
        second.stop()
        third.stop()


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_new_configuration_drops_no_request(
    tmp_path: Path, server: RedisServer, stand_in: StandIn, shared: bool
) -> None:
    state = {"state": {"url": server.url, "timeout_s": 3.0}} if shared else {}
    serves = [Serve(tmp_path, name, stand_in, "", **state).until_ready() for name in ("one", "two")[: 1 + shared]]
    try:
        found: list[int] = []
        running = [in_background(serve, "batch", 40, found) for serve in serves]  # 2 s each
        time.sleep(0.4)
        assert serves[0].ask("fresh", 2)[0] == 401

        serves[0].file.write_text("version: 1\npool: {entitlements: 7}\n")
        serves[0].reload()
        assert "the configuration stays as it was" in serves[0].errors.read_text()
        assert serves[0].ask("chat", 2)[0] == 200

        for serve in serves:
            serve.write(entitlements=FRESH, **state)
            serve.reload()
            assert serve.ask("fresh", 2)[0] == 200
            assert serve.ask("batch", 2)[0] == 401
            assert serve.ask("chat", 2)[0] == 200
        held = in_background(serves[0], "fresh", 20, [])
        time.sleep(0.3)
        assert serves[-1].ask("fresh", 2)[0] == 429  # one slot in the whole pool
        for thread in (*running, held):
            thread.join(10)
        assert found == [200] * len(serves)
        for serve in serves:
            serve.stop()
            assert serve.process.returncode == 0
            assert "Traceback" not in serve.errors.read_text()
    finally:
        for serve in serves:
            serve.stop()


def test_a_recording_of_shared_state_is_refused() -> None:
    shared = config([], policy="none", state="redis://127.0.0.1/0", recording="events.jsonl")
    shared["upstreams"] = [{"name": "a", "base_url": "http://127.0.0.1:1"}]
    with pytest.raises(ScenarioError, match="recording: is of one core"):
        parse_config(shared, "test.yaml")
    with pytest.raises(ScenarioError, match=r"give e\.g\. redis://127"):
        parse_config({**shared, "recording": None, "state": "http://127.0.0.1"}, "test.yaml")
    read = make_settings(parse_config({**shared, "recording": None}, "test.yaml"))
    assert read.state is not None
    assert (read.state.when_away.guaranteed, read.state.when_away.spot) == ("open", "closed")
    assert "redis://" not in repr(read)
