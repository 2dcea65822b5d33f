"""Requests that a policy holds at the gateway: forwarded in their turn, given up, or left by their clients."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from live.gate import PROFILE, Answer, Gate, gateway, head
from live.stand_in import StandIn, running

from sim.live.observability.observer import Ended

TWO_SLOTS = {"profile": {**PROFILE, "max_num_seqs": 2}}
CHAT = [{"name": "chat", "service_class": "spot"}]


@pytest.fixture
def stand_in():  # type: ignore[no-untyped-def]
    with running() as one:
        yield one


def ask_in_threads(gate: Gate, count: int, found: list[Answer], **fields: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=lambda: found.append(gate.ask(**fields))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def held(gate: Gate) -> int:
    core = gate.service.gateway.core
    return int(next(each.value for each in core.gauges(gate.service.gateway.now_s()) if each.metric == "held"))


def test_what_is_held_is_served_in_its_turn(stand_in: StandIn) -> None:
    found: list[Answer] = []
    with gateway(stand_in, policy="fair-queue", entitlements=CHAT, pool=TWO_SLOTS) as gate:
        threads = ask_in_threads(gate, 6, found, stand_in={"ttft_s": 0.1})
        gate.until(lambda: held(gate) == 4)
        for thread in threads:
            thread.join(10)
        assert [answer.status for answer in found] == [200] * 6
        assert stand_in.most_running == 2
        gate.balanced()
        waits_s = sorted(log.forwarded_s - log.arrival_s for log in gate.logs)
        assert waits_s[1] < 0.05 < 0.08 < waits_s[2] < waits_s[-1]


def test_what_is_held_for_too_long_is_told_to_come_back(stand_in: StandIn) -> None:
    found: list[Answer] = []
    with gateway(stand_in, policy="fair-queue", entitlements=CHAT, pool=TWO_SLOTS, timeouts={"held_s": 0.3}) as gate:
        threads = ask_in_threads(gate, 2, found, stand_in={"ttft_s": 1.0})
        gate.until(lambda: stand_in.running == 2)
        late = gate.ask()
        assert (late.status, late.code, late.headers["retry-after"]) == (429, "queue_timeout", "1")
        for thread in threads:
            thread.join(10)
        assert [answer.status for answer in found] == [200, 200]


def test_a_client_that_leaves_while_it_is_held_is_forgotten(stand_in: StandIn) -> None:
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 1}).encode()
    found: list[Answer] = []
    with gateway(stand_in, policy="fair-queue", entitlements=CHAT, pool=TWO_SLOTS) as gate:
        threads = ask_in_threads(gate, 2, found, stand_in={"ttft_s": 0.5})
        gate.until(lambda: stand_in.running == 2)
        with gate.connect() as connection:
            connection.sendall(head(f"content-length: {len(body)}") + body)
            gate.until(lambda: held(gate) == 1)
        gate.until(lambda: held(gate) == 0)
        for thread in threads:
            thread.join(10)
        gate.balanced()
        assert len(stand_in.seen) == 2 + len([one for one in stand_in.seen if one.method == "GET"])
        assert sorted(log.outcome for log in gate.logs) == [Ended.CANCELLED, Ended.FINISHED, Ended.FINISHED]


def test_many_at_once_are_all_answered(stand_in: StandIn) -> None:
    found: list[Answer] = []
    with gateway(stand_in, policy="token-pool") as gate:
        threads = [
            thread
            for key in ("chat", "batch", "filler")
            for thread in ask_in_threads(gate, 40, found, key=key, timeout_s=30, stand_in={"ttft_s": 0.02})
        ]
        for thread in threads:
            thread.join(30)
        assert len(found) == 120
        assert {answer.status for answer in found} <= {200, 429, 503}
        refused = [answer for answer in found if answer.status != 200]
        assert all("retry-after" in answer.headers for answer in refused)
        gate.balanced()
        by_tenant = {log.tenant for log in gate.logs}
        assert by_tenant == {"acme", "other", "third"}
