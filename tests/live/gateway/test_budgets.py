"""Groups, keys and budgets at the live gateway: the same tree as in a scenario, with headers for clients."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from live.gate import config, gateway
from live.stand_in import running

from sim.errors import ScenarioError
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.core_from_config import make_core

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp()
POOL = {"groups": [{"name": "acme", "budgets": [{"per": "day", "limit": 60}]}]}
CHAT = {"name": "chat", "service_class": "guaranteed", "baseline": {"slots": 6}, "parent": "acme"}
BATCH = {"name": "batch", "service_class": "spot", "parent": "acme"}


def test_a_spent_budget_is_429_until_midnight_and_there_again_after_it() -> None:
    with running() as stand_in, gateway(stand_in, entitlements=[CHAT, BATCH], pool=POOL) as gate:
        now = [NOON]
        gate.service.app.wall_clock = lambda: now[0]
        assert gate.ask(max_tokens=30).status == 200
        assert gate.ask(max_tokens=20, key="batch").status == 200
        refused = gate.ask(max_tokens=30)
        assert (refused.status, refused.code) == (429, "insufficient_quota")
        assert refused.json["error"]["reason"] == "budget"
        assert refused.headers["retry-after"] == str(12 * 3600)
        assert refused.headers["x-should-retry"] == "false"
        assert refused.headers["x-budget-scope"] == "group/acme"
        assert refused.headers["x-budget-reset"] == "2026-11-29T00:00:00Z"
        assert float(refused.headers["x-budget-remaining"]) < 30
        now[0] = NOON + 12 * 3600
        assert gate.ask(max_tokens=30).status == 200
        gate.balanced()


def test_a_key_has_a_budget_of_its_own() -> None:
    with running() as stand_in:
        given = config([stand_in])
        given["keys"][0]["budgets"] = [{"per": "day", "limit": 20}]
        core = make_core(parse_config(given, "test.yaml"))
        assert core.hierarchy is not None
        assert [state.limit for state in core.budgets("chat", "key-chat", 0.0)] == [20]
        assert core.budgets("chat", "another", 0.0) == []


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"pool": {**POOL, "keys": [{"name": "k", "entitlement": "chat"}]}}, "pool.keys"),
        ({"pool": POOL, "state": {"url": "redis://127.0.0.1:1/0", "share": "leases"}}, "state.share"),
    ],
)
def test_what_keeps_no_books_of_a_tree_is_refused(changed: dict[str, Any], field: str) -> None:
    with running() as stand_in, pytest.raises(ScenarioError) as refused:
        parse_config(config([stand_in], entitlements=[CHAT, BATCH], **changed), "test.yaml")
    assert refused.value.args[1] == field


def test_a_key_above_its_group_is_refused_with_its_place() -> None:
    with running() as stand_in:
        given = config([stand_in], entitlements=[{**CHAT, "budgets": [{"per": "day", "limit": 50}]}, BATCH], pool=POOL)
        given["keys"][0]["budgets"] = [{"per": "day", "limit": 55}]
        with pytest.raises(ScenarioError) as refused:
            parse_config(given, "test.yaml")
    assert refused.value.args[1] == "keys[0].budgets[0].limit"


def test_losses_of_a_guaranteed_tenant_to_its_own_limit_are_in_the_state() -> None:
    slow = {"stand_in": {"gap_s": 0.02}}
    pool = {"groups": []}
    with running() as stand_in, gateway(
        stand_in, policy="token-pool", pool=pool,
        entitlements=[{"name": "chat", "service_class": "guaranteed", "baseline": {"slots": 1}}],
    ) as gate:  # fmt: skip
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(gate.ask(max_tokens=40, stream=True, **slow).status))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        gate.balanced()
        (chat,) = gate.call(gate.observability.state.read)["entitlements"]
        assert sorted(found)[0] == 200
        assert chat["refused_at_own_limit_while_idle"] == sum(status == 429 for status in found) == chat["refused"]
