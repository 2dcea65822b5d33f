"""The checker beside the core of a gateway that serves."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from live.gate import Gate, config, gateway
from live.stand_in import StandIn
from prometheus_client import CollectorRegistry, generate_latest

from sim.errors import ScenarioError
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.settings import CheckInvariants
from sim.live.gateway.settings_from_config import make_settings
from sim.live.observability.invariants import InvariantWatch


def watched(gate: Gate, how: CheckInvariants, stops: list[str]) -> tuple[InvariantWatch, CollectorRegistry]:
    watch = InvariantWatch(how, lambda: gate.service.gateway.core, lambda: stops.append("stop"))
    gate.call(lambda: gate.service.recorders.append(watch))
    registry = CollectorRegistry()
    registry.register(watch)
    return watch, registry


@pytest.mark.parametrize("reaction", ["log", "stop"])
def test_a_violation_is_logged_counted_and_reacted_to(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture, reaction: Any
) -> None:
    stops: list[str] = []
    with gateway(stand_in) as gate:
        watch, registry = watched(gate, CheckInvariants(every_events=1, on_violation=reaction), stops)
        assert gate.ask().status == 200
        assert watch.first is None
        book = gate.service.gateway.core.pool.entitlements["chat"]
        gate.call(lambda: setattr(book, "reserved_tokens", book.reserved_tokens + 5))
        with caplog.at_level(logging.ERROR, "tokenpools.invariants"):
            assert gate.ask().status == 200  # the client is served all the same
        gate.call(lambda: setattr(book, "reserved_tokens", book.reserved_tokens - 5))
        assert watch.first is not None
        assert "reserved_tokens of chat" in caplog.text
        text = generate_latest(registry).decode()
        count = next(line for line in text.splitlines() if 'invariant="entitlement"' in line)
        assert float(count.split()[-1]) > 0
        assert stops == (["stop"] if reaction == "stop" else [])
        gate.broken.clear()


def test_the_configuration_says_whether_and_how(stand_in: StandIn) -> None:
    def read(value: Any) -> CheckInvariants | None:
        return make_settings(parse_config(config([stand_in], check_invariants=value), "serve.yaml")).check_invariants

    assert read(None) is None
    assert read(False) is None
    assert read(True) == CheckInvariants()
    assert read({"every_events": 10, "on_violation": "stop"}) == CheckInvariants(every_events=10, on_violation="stop")
    with pytest.raises(ScenarioError, match=r"check_invariants\.on_violation"):
        read({"on_violation": "panic"})
