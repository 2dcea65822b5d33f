"""`serve --check` finds a port that is used twice, and an upstream that is the gateway itself."""

from __future__ import annotations

from typing import Any

import pytest
from live.gate import config
from live.stand_in import running

from sim.errors import ScenarioError
from sim.live.gateway.config_file import parse_config

TOKEN = "0" * 64


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"listen": {"port": 8080}, "admin": {"port": 8080}}, "admin.port"),
        ({"listen": {"port": 8080, "host": "0.0.0.0"}, "admin": {"port": 8080}}, "admin.port"),
        ({"listen": {"port": 8080, "host": "localhost"}, "admin": {"port": 8080}}, "admin.port"),
        ({"admin": {"port": 9}, "accounts": {"store": "a.db", "api": {"port": 9, "token_sha256": TOKEN}}},
         "accounts.api.port"),
        ({"listen": {"port": 8000}, "upstreams": [{"name": "u", "base_url": "http://localhost:8000"}]},
         "upstreams[0].base_url"),
        ({"admin": {"port": 8000}, "upstreams": [{"name": "u", "base_url": "http://127.0.0.1:8000"}]},
         "upstreams[0].base_url"),
    ],
)  # fmt: skip
def test_a_port_that_is_used_twice_is_refused(changed: dict[str, Any], field: str) -> None:
    with running() as stand_in, pytest.raises(ScenarioError) as refused:
        parse_config(config([stand_in], **changed), "test.yaml")
    assert refused.value.args[1] == field


def test_ports_of_two_addresses_and_free_ones_are_no_clash() -> None:
    with running() as stand_in:
        parse_config(config([stand_in], listen={"port": 0}, admin={"port": 0}), "test.yaml")
        host = {"host": "192.0.2.1", "port": 9090, "token_sha256": TOKEN}
        parse_config(config([stand_in], listen={"port": 9090}, admin=host), "test.yaml")
