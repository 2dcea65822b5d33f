"""What `deploy/make_secrets.py` makes is enough for gateways and for nobody else, at a real redis-server.

Redis runs with the arguments that the compose file gives it, gateways with the URL that docs/live.md gives.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from live.gate import free_port
from live.shared_state.redis_server import BINARY
from live.shared_state.test_serve_state import Serve
from live.stand_in import StandIn, running
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "deploy" / "make_secrets.py"
STATE = ROOT / "sim" / "live" / "shared_state"
PREFIX = "tokenpools:{default}:"

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs redis-server")


def make(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@dataclass(slots=True)
class Guarded:
    """A Redis with the secrets of a folder, and somebody who may see what it has refused."""

    folder: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"rediss://tokenpools@localhost:{self.port}/0?ssl_ca_certs={self.folder}/redis.crt"

    def client(self, user: str, password: str, **changed: Any) -> redis.Redis:
        given = {"ssl": True, "ssl_ca_certs": str(self.folder / "redis.crt"), **changed}
        return redis.Redis("localhost", self.port, username=user, password=password, decode_responses=True, **given)


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    folder, port = tmp_path / "secrets", free_port()
    made = make(folder)
    assert made.returncode == 0, made.stderr
    found = dict(line.split("=", 1) for line in (folder / "secrets.env").read_text().split())
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    with (folder / "users.acl").open("a") as users:
        users.write("user looker on >look resetkeys +acl|log +debug +ping\n")
    (compose,) = yaml.safe_load_all((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    command = [word.replace("/secrets", str(folder)) for word in compose["services"]["redis"]["command"]]
    command[command.index("--tls-port") + 1] = str(port)
    with (tmp_path / "redis.log").open("wb") as log:
        process = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=log, stderr=log)
    one = Guarded(folder, port, found["REDIS_PASSWORD"])
    try:
        until(lambda: answers(one) or process.poll() is not None, lambda: (tmp_path / "redis.log").read_text())
        assert process.poll() is None, (tmp_path / "redis.log").read_text()
        yield one
    finally:
        process.kill()
        process.wait(10)


def answers(guarded: Guarded) -> bool:
    try:
        with guarded.client("looker", "look") as client:
            return bool(client.ping())
    except RedisError:
        return False


def until(true: Any, why: Any, within_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline_s, why()
        time.sleep(0.05)


def test_secrets_are_made_once_and_for_oneself(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made = make(folder)
    assert made.returncode == 0
    assert {file.name for file in folder.iterdir()} == {
        "users.acl", "redis.crt", "redis.key", "secrets.env", "metrics.token"
    }  # fmt: skip
    assert (folder.stat().st_mode & 0o777, (folder / "secrets.env").stat().st_mode & 0o777) == (0o700, 0o600)
    password = re.findall(r"REDIS_PASSWORD=(\S{43})\n", (folder / "secrets.env").read_text())
    assert len(password) == 1
    assert password[0] not in (folder / "users.acl").read_text()
    before = (folder / "secrets.env").read_text()
    again = make(folder)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert str(folder) in again.stderr
    assert (folder / "secrets.env").read_text() == before
    assert make(tmp_path / "other").returncode == 0
    assert (tmp_path / "other" / "secrets.env").read_text() != before


def test_what_is_granted_is_what_gateways_use() -> None:
    granted = runpy.run_path(str(PROGRAM))["COMMANDS"]
    scripts = "".join(file.read_text() for file in STATE.glob("*.lua"))
    assert {one.lower() for one in re.findall(r"redis\.p?call\('(\w+)'", scripts)} == set(granted["in scripts"])
    client = (STATE / "log_client.py").read_text()
    used = {one.replace("script_load", "script|load") for one in re.findall(r"self\._client\.(\w+)\(", client)}
    assert used - {"aclose"} == set(granted["called"])
    assert f"the {len({*granted['connection'], *granted['called'], *granted['in scripts']})} commands" in (
        (ROOT / "docs" / "live.md").read_text()
    )


def test_compose_and_kubernetes_give_redis_the_same_arguments() -> None:
    (compose,) = yaml.safe_load_all((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    manifests = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "redis.yaml").read_text())
    (pod,) = [one["spec"]["template"]["spec"] for one in manifests if one["kind"] == "Deployment"]
    assert ["redis-server", *pod["containers"][0]["args"]] == compose["services"]["redis"]["command"]


def test_nobody_else_gets_in_and_gateways_get_no_further(guarded: Guarded) -> None:
    with guarded.client("tokenpools", guarded.password) as own:
        assert own.hset("tokenpools:{x}:meta", "a", "1") == 1
        for refused in (
            lambda: own.flushall(), lambda: own.keys("*"), lambda: own.config_get("*"), lambda: own.acl_list(),
            lambda: own.hset("others:x", "a", "1"), lambda: own.eval("return 1", 0), lambda: own.publish("x", "y"),
        ):  # fmt: skip
            with pytest.raises(NoPermissionError):
                refused()
    with guarded.client("tokenpools", "wrong") as stranger, pytest.raises(AuthenticationError):
        stranger.ping()
    with guarded.client("default", "") as nobody, pytest.raises(RedisError):
        nobody.ping()
    with guarded.client("tokenpools", guarded.password, ssl_ca_certs=None) as credulous, pytest.raises(RedisError):
        credulous.ping()
    with redis.Redis("localhost", guarded.port, password=guarded.password) as clear, pytest.raises(RedisError):
        clear.ping()
    check = ["redis-cli", "-p", str(guarded.port), "--tls", "--cacert", f"{guarded.folder}/redis.crt", "ping"]
    assert subprocess.run(check, check=False, capture_output=True, timeout=30).returncode == 0  # as compose looks


def test_gateways_do_all_that_they_do_with_what_they_are_granted(tmp_path: Path, guarded: Guarded) -> None:
    """Join, decide, leave a snapshot, be lost, heal what is damaged and leave; then the same by leases."""
    state = {
        "ttl_s": 1.0, "timeout_s": 3.0, "snapshot_every": 10, "password_env": "REDIS_PASSWORD",
        "key_env": "TOKENPOOLS_STATE_KEY",
    }  # fmt: skip
    with running() as stand_in, guarded.client("tokenpools", guarded.password) as own:
        begin = Gateways(tmp_path, stand_in, guarded.url)
        try:
            first, second = begin("first", state=state), begin("second", state=state)
            for serve in (first, second):
                for _ in range(6):
                    assert serve.until_ready().ask("chat", 2)[0] == 200
            until(lambda: own.hget(PREFIX + "snapshot", "seq"), first.errors.read_text)
            second.process.kill()
            until(lambda: own.xrevrange(PREFIX + "events", count=200) and any(
                "gateway_lost" in fields["e"] for _, fields in own.xrevrange(PREFIX + "events", count=200)
            ), first.errors.read_text)  # fmt: skip
            own.delete(PREFIX + "meta")
            until(lambda: first.ask("chat", 2)[0] == 200 and own.hget(PREFIX + "meta", "seq"), first.errors.read_text)
            first.stop()
            assert first.process.returncode == 0
            leased = begin("leased", state={**state, "share": "leases", "every_s": 0.2, "pool": "leased"})
            assert leased.until_ready().ask("chat", 2)[0] == 200
            leased.stop()
            assert leased.process.returncode == 0
        finally:
            begin.stop()
    with guarded.client("looker", "look") as looker:
        refused: Any = looker.acl_log()
        assert not refused, refused


class Gateways:
    """Begins gateway processes, and stops all."""

    def __init__(self, folder: Path, stand_in: StandIn, url: str) -> None:
        self._folder, self._stand_in, self._url = folder, stand_in, url
        self._begun: list[Serve] = []

    def __call__(self, name: str, **changed: Any) -> Serve:
        assert {"REDIS_PASSWORD", "TOKENPOOLS_STATE_KEY"} <= os.environ.keys()
        changed["state"] = {"url": self._url, **changed["state"]}
        self._begun.append(Serve(self._folder, name, self._stand_in, "", **changed))
        return self._begun[-1]

    def stop(self) -> None:
        for serve in self._begun:
            serve.stop()
