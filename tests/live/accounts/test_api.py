"""The admin API of keys and budgets: what it does, whom it answers, and that a gateway goes by it at once."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml
from live.gate import config, free_port
from live.stand_in import running

from sim.errors import InputError
from sim.live.accounts.api import AccountsApi, WrongTokens
from sim.live.accounts.sqlite_store import SqliteStore
from sim.live.gateway.authentication import hashed

TOKEN = "tp-admin-token"
GOOD = {"authorization": f"Bearer {TOKEN}"}


class Api:
    """The API over a store in a folder, asked in this process."""

    def __init__(self, folder: Path, changed: Callable[[], Awaitable[None]] | None = None) -> None:
        self.store = SqliteStore(folder / "accounts.db")
        self.now_s = 1_795_900_000.0
        self.clock_s = 0.0
        self.changes = 0

        async def count() -> None:
            self.changes += 1

        self.app = AccountsApi(
            self.store, hashed(TOKEN), changed=changed or count, entitlements=lambda: ["chat", "batch"],
            nodes=lambda: ["group/org", "key/ci"], state=lambda: [{"node": "group/org", "used": 1.0}],
            wrong=WrongTokens(lambda: self.clock_s), now_s=lambda: self.now_s,
        ).app()  # fmt: skip

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
                return await client.request(method, path, content=content, headers=GOOD if headers is None else headers)

        return asyncio.run(ask())


def test_a_key_is_made_rotated_expired_and_disabled_and_the_log_says_so(tmp_path: Path) -> None:
    api = Api(tmp_path)
    made = api.ask("POST", "/v1/keys", {"name": "ci", "entitlement": "chat", "budgets": [{"per": "day", "limit": 9}]})
    assert made.status_code == 201
    secret = made.json()["key"]
    (key,) = api.ask("GET", "/v1/keys").json()["keys"]
    assert (key["name"], key["entitlement"], key["budgets"][0]["limit"]) == ("ci", "chat", 9)
    assert "sha256" not in json.dumps(key)
    rotated = api.ask("POST", "/v1/keys/ci/rotate", {"grace_s": 60}).json()["key"]
    assert rotated != secret
    assert api.ask("POST", "/v1/keys/ci/expire", {"at_s": 1_900_000_000}).status_code == 200
    assert api.ask("POST", "/v1/keys/ci/disable").status_code == 200
    (stored,) = api.store.all_keys()
    assert (stored.sha256, stored.old_sha256) == (hashed(rotated).hex(), hashed(secret).hex())
    assert (stored.expires_s, stored.disabled) == (1_900_000_000, True)
    assert api.changes == 4
    log = api.ask("GET", "/v1/audit").json()["audit"]
    assert [one["action"] for one in log] == ["disable", "expire", "rotate", "create"]
    assert log[0]["actor"].startswith("api ")
    assert secret not in json.dumps(log)
    assert made.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("method", "path", "body", "said"),
    [
        ("POST", "/v1/keys", {"name": "x", "entitlement": "nobody"}, "there is no 'nobody'"),
        ("POST", "/v1/keys", {"name": "x"}, "missing"),
        ("POST", "/v1/keys", {"name": "x", "entitlement": "chat", "more": 1}, "unknown field 'more'"),
        ("POST", "/v1/keys", {"name": 1, "entitlement": "chat"}, "of another type"),
        ("POST", "/v1/keys", {"name": "a\nb", "entitlement": "chat"}, "is no name"),
        ("POST", "/v1/keys", {"name": "x", "entitlement": "chat", "expires_s": 5}, "over already"),
        ("POST", "/v1/keys", {"name": "x", "entitlement": "chat", "budgets": [{"per": "year", "limit": 1}]}, "budgets"),
        ("POST", "/v1/keys", {"name": "x", "entitlement": "chat", "budgets": [{"per": "day", "limit": -1}]}, "limit"),
        ("POST", "/v1/keys", {"name": "x", "entitlement": "chat", "limit": {"slot": 1}}, "limit"),
        ("POST", "/v1/keys", b"{", "no JSON"),
        ("POST", "/v1/keys", b"[" * 60_000, "no JSON"),
        ("POST", "/v1/keys", b"x" * 70_000, "too large"),
        ("POST", "/v1/keys/nobody/rotate", {}, "there is no key"),
        ("PUT", "/v1/budgets/group/nobody", {"budgets": []}, "there is no 'group/nobody'"),
        ("PUT", "/v1/budgets/group/org", {}, "missing"),
        ("GET", "/v1/usage?since=yesterday", None, "no day"),
        ("GET", "/v1/audit?most=0", None, "whole number"),
    ],
)
def test_what_makes_no_sense_is_400_and_changes_nothing(
    tmp_path: Path, method: str, path: str, body: Any, said: str
) -> None:
    api = Api(tmp_path)
    answer = api.ask(method, path, body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert api.store.version() == 0
    assert api.changes == 0


def test_a_change_that_the_gateway_cannot_go_by_is_taken_back(tmp_path: Path) -> None:
    async def refuse() -> None:
        raise InputError("budgets", "contradict the tree", "give less")

    api = Api(tmp_path, refuse)
    assert api.ask("PUT", "/v1/budgets/group/org", {"budgets": [{"per": "day", "limit": 5}]}).status_code == 400
    assert api.store.budgets() == {}
    assert api.ask("POST", "/v1/keys", {"name": "ci", "entitlement": "chat"}).status_code == 400
    assert api.store.all_keys()[0].disabled


def test_wrong_tokens_are_refused_and_then_slowed_down(tmp_path: Path) -> None:
    api = Api(tmp_path)
    for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
        assert api.ask("GET", "/v1/keys", headers=wrong).status_code == 401
    for _ in range(7):
        assert api.ask("GET", "/v1/keys", headers={"authorization": "Bearer wrong"}).status_code == 401
    slowed = api.ask("GET", "/v1/keys")  # the right one too: whoever guesses must not learn faster
    assert (slowed.status_code, slowed.headers["retry-after"]) == (429, "7")
    api.clock_s = 7.0
    assert api.ask("GET", "/v1/keys").status_code == 200


def test_wrong_tokens_of_many_addresses_take_bounded_memory() -> None:
    wrong = WrongTokens(lambda: 0.0)
    for number in range(10_100):
        wrong.add(str(number))
    assert len(wrong._buckets) == 10_000


# ------------------------------------------------------------------------------------------- a gateway with accounts


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        try:
            if what():
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, "the gateway ended"
        assert time.monotonic() < deadline_s, "it did not become true in time"
        time.sleep(0.05)


@contextmanager
def served(file: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "sim", "serve", str(file)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200, process)
        yield process
    finally:
        process.kill()
        process.wait(20)


def test_a_gateway_goes_by_the_api_and_by_commands_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    port, admin, pages = free_port(), free_port(), free_port()
    where = tmp_path / "accounts.db"
    with running() as stand_in:
        given = config(
            [stand_in], listen={"port": port}, pool={"groups": [{"name": "acme"}]}, admin={"port": pages},
            entitlements=[{"name": "chat", "service_class": "spot", "parent": "acme"}],
            accounts={
                "store": str(where), "poll_s": 0.1, "api": {"port": admin, "token_sha256": hashed(TOKEN).hex()},
            },
        )  # fmt: skip
        given["keys"] = []
        file = tmp_path / "gateway.yaml"
        file.write_text(yaml.safe_dump(given))

        def ask(key: str) -> httpx.Response:
            body = {"model": "tiny", "prompt": "a b", "max_tokens": 10}
            headers = {"authorization": f"Bearer {key}"}
            return httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, headers=headers)

        def api(method: str, path: str, body: Any = None) -> Any:
            return httpx.request(method, f"http://127.0.0.1:{admin}{path}", json=body, headers=GOOD).json()

        with served(file, port) as process:
            assert ask("tp-nobody").status_code == 401
            key = api("POST", "/v1/keys", {"name": "ci", "entitlement": "chat"})["key"]
            assert ask(key).status_code == 200  # at once
            (state,) = api("PUT", "/v1/budgets/group/acme", {"budgets": [{"per": "month", "limit": 40}]})["budgets"]
            assert (state["limit"], state["used"]) == (40, 0)
            assert [ask(key).status_code for _ in range(2)] == [200, 200]
            process.send_signal(signal.SIGKILL)
            process.wait(20)
        with served(file, port) as process:
            (state,) = api("GET", "/v1/budgets")["budgets"]
            assert state["used"] == 24
            assert [ask(key).status_code for _ in range(2)] == [200, 429]
            (use,) = api("GET", "/v1/usage")["usage"]
            assert (use["key"], use["requests"], use["output_tokens"]) == ("ci", 4, 40)
            shown = httpx.get(f"http://127.0.0.1:{pages}/admin/state").json()
            assert [(one["name"], one["entitlement"]) for one in shown["keys"]] == [("ci", "chat")]
            assert "sha256" not in json.dumps(shown)
            assert shown["use"] == [use]
            assert shown["groups"] == [
                {"name": "acme", "parent": None, "in_flight": 0, "limit_slots": None, "members": 1}
            ]
            run = [sys.executable, "-m", "sim", "key"]
            subprocess.run([*run, "budget", "group/acme", "--budget", "1000/month", "--store", str(where)], check=True)
            wait_for(lambda: ask(key).status_code == 200, process)
            subprocess.run([*run, "disable", "ci", "--store", str(where)], check=True)
            wait_for(lambda: ask(key).status_code == 401, process)


def test_an_unusable_store_is_said_in_one_line(tmp_path: Path) -> None:
    where = tmp_path / "accounts.db"
    where.write_bytes(b"this is no database, but a text of some length")
    with running() as stand_in:
        given = config([stand_in], accounts={"store": str(where)})
        file = tmp_path / "gateway.yaml"
        file.write_text(yaml.safe_dump(given))
        said = subprocess.run(
            [sys.executable, "-m", "sim", "serve", str(file), "--check"], capture_output=True, text=True, check=False
        )
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "is damaged" in said.stderr


def test_logs_name_no_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        secret = Api(tmp_path).ask("POST", "/v1/keys", {"name": "ci", "entitlement": "chat"}).json()["key"]
    assert secret not in caplog.text
