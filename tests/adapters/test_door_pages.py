"""The pages of our own gateway at doors: what they count, and the capacity that somebody says there."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from typing import Any

import pytest

from adapters.pools import assert_empty, config
from sim.adapters.admission.config import gate_config
from sim.adapters.litellm.hooks import CONFIG_VARIABLE, Hooks
from sim.errors import ScenarioError
from tokenpools import Gate, RefusedError, SyncGate

ASK: dict[str, Any] = {"prompt_tokens": 10, "max_tokens": 20}
ADMIN = {"admin": {"port": 0}}


class Pages:
    def __init__(self, port: int | None) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self._url + path, timeout=60) as answer:
            return str(answer.read().decode())

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/admin/state"))
        return found

    def set_slots(self, slots: int | None) -> None:
        request = urllib.request.Request(
            f"{self._url}/admin/capacity", json.dumps({"slots": slots}).encode(), {"content-type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).close()


def counted(page: str, **labels: str) -> float:
    """Sum what the metrics count of requests with these labels."""
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    return sum(
        float(line.rpartition(" ")[2]) for line in page.splitlines()
        if line.startswith("tokenpools_requests_total{") and all(one in line for one in wanted)
    )  # fmt: skip


def test_every_way_out_is_counted_once() -> None:
    async def go() -> None:
        async with Gate(config(**ADMIN)) as gate:
            async with gate.admit(tenant="acme", **ASK) as lease:
                lease.first_token()
                lease.finish({"prompt_tokens": 9, "completion_tokens": 4})
            (await gate.admit(tenant="acme", **ASK)).fail()
            (await gate.admit(tenant="acme", **ASK)).cancel()
            holder = await gate.admit(tenant="other", **ASK)
            with pytest.raises(RefusedError):
                await gate.admit(tenant="other", **ASK)
            holder.cancel()
            fillers = [await gate.admit(tenant="third", **ASK) for _ in range(4)]
            inside = await gate.admit(tenant="acme", **ASK)
            assert sum(one.is_evicted for one in fillers) == 1
            for one in (*fillers, inside):
                one.finish()
            assert gate._door is not None
            assert gate._door.pages is not None
            pages = Pages(gate._door.pages.port)
            page = await asyncio.to_thread(pages.get, "/metrics")
            by_outcome = {
                "Dispatched": 2 + 3, "Failed": 1, "EvictedContextCancelled": 2, "RejectedConcurrency": 1,
                "EvictedPreempted": 1,
            }  # fmt: skip
            assert {name: counted(page, outcome=name) for name in by_outcome} == by_outcome
            assert counted(page) == sum(by_outcome.values())
            assert counted(page, tenant="third") == 4
            assert 'tokenpools_time_to_first_token_seconds_count{class="guaranteed",tenant="acme"} 1.0' in page
            assert 'tokenpools_settled_tokens_total{direction="output",tenant="acme"} 24.0' in page
            state = await asyncio.to_thread(pages.state)
            assert {one["reason"] for one in state["refusals"]} == {"concurrency", "preempted", "upstream_failed"}
            assert state["policy"] == "token-pool"
            assert "<html" in await asyncio.to_thread(pages.get, "/")
            assert_empty(gate)

    asyncio.run(go())


def test_the_pool_has_what_somebody_says_it_has_left() -> None:
    async def go() -> None:
        async with Gate(config(**ADMIN)) as gate:
            assert gate._door is not None
            assert gate._door.pages is not None
            pages = Pages(gate._door.pages.port)
            await asyncio.to_thread(pages.set_slots, 1)
            assert gate.core.pool.capacity.slots == 1
            lease = await gate.admit(tenant="third", **ASK)
            with pytest.raises(RefusedError) as caught:
                await gate.admit(tenant="third", **ASK)
            assert caught.value.reason == "concurrency", "of what there is now"
            gate.set_ready([])
            gate.set_ready([0])
            assert gate.core.pool.capacity.slots == 1, "replicas that come back do not bring more"
            await asyncio.to_thread(pages.set_slots, None)
            assert gate.core.pool.capacity.slots == 4
            (await gate.admit(tenant="third", **ASK)).cancel()
            gate.set_slots(2)
            assert (await asyncio.to_thread(pages.state))["pool"]["capacity_slots"] == 2
            lease.cancel()

    asyncio.run(go())


def test_threads_have_them_too() -> None:
    with SyncGate(config(**ADMIN)) as gate:
        pages = Pages(gate._home._door.pages.port)  # type: ignore[attr-defined]
        with gate.admit(tenant="acme", **ASK) as lease:
            assert pages.state()["pool"]["in_flight"] == 1
            lease.finish()
        assert counted(pages.get("/metrics"), outcome="Dispatched") == 1
        assert_empty(gate)
    assert not any(one.name == "tokenpools-gate" and one.is_alive() for one in threading.enumerate())


def test_litellms_hooks_show_them_before_the_first_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        hooks = Hooks(config(**ADMIN), answer=lambda error: error)
        await hooks.open()
        assert hooks.door.pages is not None
        assert (await asyncio.to_thread(Pages(hooks.door.pages.port).state))["pool"]["in_flight"] == 0
        await hooks.door.close()
        await Hooks().open()  # nothing is set: nothing to do
        monkeypatch.setenv(CONFIG_VARIABLE, "not/there.yaml")
        await Hooks().open()
        assert "nobody is let in: not/there.yaml" in caplog.text

    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    asyncio.run(go())


def test_a_door_has_no_api_beside_which_they_could_stand() -> None:
    token = "0" * 64
    with pytest.raises(ScenarioError, match=r"admin\.port: is missing, and a door has no API of its own"):
        gate_config(config(admin={"token_sha256": token}))
    with pytest.raises(ScenarioError, match="token_sha256"):
        gate_config(config(admin={"port": 9090, "host": "0.0.0.0"}))
