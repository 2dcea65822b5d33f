"""Doors tell routers of texts and policies of sessions, as our own gateway does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.ext_proc import request_body, request_headers
from adapters.pools import config, parity
from adapters.test_ext_proc_exchange import At
from sim.adapters.litellm.calls import Calls
from sim.live.gateway.prompt_text import prefix_of, session_name
from sim.live.gateway.settings import Estimate
from tokenpools import SyncGate

TEXT = "begins alike " * 100
MESSAGES = {"model": "tiny", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 8}
NAMES = prefix_of("chat", MESSAGES, "", Estimate())
TWO = {"replicas": 2, "router": "prefix-aware"}


def views(core: Any) -> list[Any]:
    return [flight.request for flight in core.pool.in_flight.values()]


def test_a_library_keeps_texts_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with SyncGate(config("concur", TWO, recording=str(path))) as gate:
        went = []
        for turn in range(4):
            lease = gate.admit(
                tenant="acme", prompt_tokens=300 + turn, max_tokens=5, prompt=TEXT + "more " * turn, session="ann"
            )
            assert len(views(gate.core)[0].prefix) >= 5
            assert views(gate.core)[0].session == session_name("ann", "acme")
            went.append(lease.replica_id)
            other = gate.admit(tenant="acme", prompt_tokens=9, max_tokens=1000, session="other")
            lease.finish()  # the other replica owes more now, and then less again
            other.finish()
        ids = gate.admit(tenant="acme", prompt_tokens=256, max_tokens=1, prompt=list(range(256)))
        assert len(views(gate.core)[0].prefix) == 4
        ids.finish()
    assert len(set(went)) == 1
    assert parity(path).differing == 0


def test_a_library_that_goes_by_neither_keeps_neither() -> None:
    with SyncGate(config()) as gate, gate.admit(tenant="acme", prompt_tokens=9, prompt=TEXT, session="ann"):
        assert (views(gate.core)[0].prefix, views(gate.core)[0].session) == ((), "")


@pytest.mark.parametrize("header", [{}, {"x-session-id": "here"}])
def test_envoys_door_reads_both(header: dict[str, str]) -> None:
    at = At(policy="fairserve", pool=TWO)
    body = json.dumps(MESSAGES | {"user": "ann"}).encode()
    exchange = at.exchange()
    at.run(request_headers(**header), request_body(body), exchange=exchange)
    (view,) = views(at.admissions.core)
    assert view.prefix == NAMES
    assert view.session == session_name(header.get("x-session-id", "ann"), view.tenant)
    exchange.left()
    at.admissions.close()


def test_litellms_door_reads_both() -> None:
    with SyncGate(config("fairserve", TWO)) as gate:
        asked = Calls(4).asked(MESSAGES | {"user": "ann"}, "acompletion", gate.core)
    assert asked["prefix"] == NAMES
    assert asked["session"] == "ann"
