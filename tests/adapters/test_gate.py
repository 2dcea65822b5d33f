"""The library's asyncio gate: every way into and out of a lease, with the core's invariants checked at every event."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.pools import Clock, assert_empty, config, parity, worked
from policies.api import Reason, ReplicaReport
from sim.adapters.admission.clock import SteadyClock
from sim.errors import TokenpoolsError
from tokenpools import EvictedError, Gate, Lease, RefusedError

ASK: dict[str, Any] = {"prompt_tokens": 10, "max_tokens": 20}
POLICIES = ("token-pool", "fair-queue", {"kind": "rate-limit", "tokens_per_min": 30000}, "vtc")


def with_gate(what: Callable[[Gate], Awaitable[None]], given: dict[str, Any] | None = None, **more: Any) -> None:
    """Run something with a gate, and see that nothing is left of it."""

    async def go() -> None:
        async with Gate(config() if given is None else given, **more) as gate:
            await what(gate)
            gc.collect()
            await asyncio.sleep(0.01)  # what was dropped is settled on the loop
            assert_empty(gate)

    asyncio.run(go())


def test_a_lease_is_paid_for_by_its_usage() -> None:
    async def go(gate: Gate) -> None:
        async with gate.admit(tenant="acme", **ASK) as lease:
            assert (lease.entitlement, lease.replica_id, lease.max_output_tokens) == ("chat", 0, 20)
            assert gate.core.pool.entitlements["chat"].reserved_tokens == 30
            lease.first_token()
            lease.progress(3)
            lease.finish({"prompt_tokens": 12, "completion_tokens": 7})
            assert not lease.is_open
        assert worked(gate, "chat") == 19

    with_gate(go)


@pytest.mark.parametrize(
    ("usage", "paid"),
    [
        (None, 30), ({}, 30), ("nonsense", 30), ({"completion_tokens": -4}, 30), ({"completion_tokens": 1e9}, 30),
        ({"completion_tokens": 10**9}, 30), ({"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, 3),
        ({"input_tokens": 4, "output_tokens": 5}, 9), ({"completion_tokens": "7", "prompt_tokens": True}, 30),
        ({"prompt_tokens": 10**12, "completion_tokens": 1}, 6401),
        (SimpleNamespace(model_dump=lambda: {"prompt_tokens": 2, "completion_tokens": 2}), 4),
    ],
)  # fmt: skip
def test_a_missing_or_senseless_usage_costs_what_was_reserved_and_never_more(usage: Any, paid: int) -> None:
    async def go(gate: Gate) -> None:
        async with gate.admit(tenant="acme", **ASK) as lease:
            lease.finish(usage)
        assert worked(gate, "chat") == paid

    with_gate(go)


def test_without_a_usage_what_was_seen_is_paid() -> None:
    async def go(gate: Gate) -> None:
        async with gate.admit(tenant="acme", **ASK) as lease:
            lease.progress(6)
            lease.progress(4)
        assert worked(gate, "chat") == 16
        async with gate.admit(tenant="acme", **ASK) as lease:
            lease.progress(10**6)
        assert worked(gate, "chat") == 16 + 30

    with_gate(go)


def test_settling_twice_counts_once() -> None:
    async def go(gate: Gate) -> None:
        async with gate.admit(tenant="acme", **ASK) as lease:
            lease.finish({"prompt_tokens": 10, "completion_tokens": 5})
            lease.finish({"prompt_tokens": 10, "completion_tokens": 5})
            lease.cancel()
            lease.fail()
            lease.reject()
            assert not lease.retry()
        assert worked(gate, "chat") == 15

    with_gate(go)


def test_a_block_left_by_an_exception_failed() -> None:
    async def go(gate: Gate) -> None:
        async def ask() -> None:
            async with gate.admit(tenant="acme", **ASK) as lease:
                lease.progress(2)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await ask()
        assert worked(gate, "chat") == 12

    with_gate(go)


def test_a_cancelled_task_settles() -> None:
    async def go(gate: Gate) -> None:
        async def ask() -> None:
            async with gate.admit(tenant="acme", **ASK) as lease:
                lease.progress(2)
                await asyncio.sleep(10)

        task = asyncio.create_task(ask())
        await asyncio.sleep(0)
        assert len(gate) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(gate) == 0
        assert worked(gate, "chat") == 12

    with_gate(go)


def test_a_stream_that_nobody_reads_any_more_settles() -> None:
    async def go(gate: Gate) -> None:
        async def stream() -> Any:
            async with gate.admit(tenant="acme", **ASK) as lease:
                lease.progress(1)
                yield "w"
                yield "w"

        words = stream()
        assert await anext(words) == "w"
        assert len(gate) == 1
        del words

    with_gate(go)


def test_a_lease_that_is_collected_settles() -> None:
    async def go(gate: Gate) -> None:
        lease: Lease | None = await gate.admit(tenant="acme", **ASK)
        assert lease is not None
        lease.progress(4)
        cycle: list[Any] = [lease]
        cycle.append(cycle)
        del lease, cycle
        gc.collect()
        await asyncio.sleep(0.01)
        assert len(gate) == 0
        assert worked(gate, "chat") == 14

    with_gate(go)


def test_the_ways_to_end_one_by_hand() -> None:
    async def go(gate: Gate) -> None:
        (await gate.admit(tenant="acme", **ASK)).cancel(sent=False)
        assert worked(gate, "chat") == 0
        (await gate.admit(tenant="acme", **ASK)).cancel(output_tokens=8)
        assert worked(gate, "chat") == 18
        book = gate.core.pool.entitlements["chat"]
        demanded = book.demanded_tokens
        (await gate.admit(tenant="acme", **ASK)).reject()
        assert (worked(gate, "chat"), book.demanded_tokens) == (18, demanded)
        (await gate.admit(tenant="acme", **ASK)).fail()
        assert worked(gate, "chat") == 18

    with_gate(go)


def test_a_refusal_says_status_headers_and_reason() -> None:
    async def go(gate: Gate) -> None:
        async with gate.admit(tenant="other", **ASK):
            with pytest.raises(RefusedError) as caught:
                await gate.admit(tenant="other", **ASK)
        error = caught.value
        assert (error.status, error.reason, error.code) == (429, "concurrency", "rate_limit_exceeded")
        assert int(error.headers["retry-after"]) >= 1
        assert error.retry_after_s is not None
        assert error.body["error"]["reason"] == "concurrency"
        with pytest.raises(RefusedError) as caught:
            await gate.admit(tenant="acme", prompt_tokens=10**7, max_tokens=1)
        assert (caught.value.status, caught.value.reason) == (400, "context_length")
        assert caught.value.headers["x-should-retry"] == "false"
        assert "retry-after" not in caught.value.headers

    with_gate(go)


def test_nobody_is_served_on_the_budget_of_another() -> None:
    async def go(gate: Gate) -> None:
        for asked in ({"tenant": "nobody"}, {"tenant": "chat"}, {"tenant": "third", "entitlement": "chat"}):
            with pytest.raises(RefusedError) as caught:
                await gate.admit(**asked, **ASK)
            assert (caught.value.status, caught.value.reason) == (403, "unknown_tenant")
        with pytest.raises(RefusedError) as caught:
            await gate.admit(tenant="two", **ASK)
        assert caught.value.reason == "ambiguous_tenant"
        async with gate.admit(tenant="two", service_class="spot", **ASK) as lease:
            assert lease.entitlement == "two-b"
        async with gate.admit(tenant="two", entitlement="two-a", **ASK) as lease:
            assert lease.entitlement == "two-a"
        async with gate.admit(tenant="team-7", **ASK) as lease:
            assert lease.entitlement == "batch"
        with pytest.raises(ValueError, match="ServiceClass"):
            await gate.admit(tenant="two", service_class="golden", **ASK)

    with_gate(go, config(tenants={"team-7": "batch"}))


def test_whoever_is_not_known_may_have_an_entitlement_of_their_own() -> None:
    async def go(gate: Gate) -> None:
        async with gate.admit(tenant="nobody", **ASK) as lease:
            assert lease.entitlement == "filler"

    with_gate(go, config(unknown_tenant="filler"))


@pytest.mark.parametrize(
    "wrong", [{"prompt_tokens": -1}, {"prompt_tokens": 1.5}, {"max_tokens": True}, {"attempt": 0}, {"n": 0}]
)
def test_arguments_that_make_no_sense_reach_no_core(wrong: dict[str, Any]) -> None:
    async def go(gate: Gate) -> None:
        with pytest.raises(ValueError, match="give a whole number"):
            await gate.admit(**{"tenant": "acme", "prompt_tokens": 1, **wrong})

    with_gate(go)


def test_an_eviction_interrupts_the_block_of_its_holder() -> None:
    async def go(gate: Gate) -> None:
        evicted: list[EvictedError] = []

        async def fill() -> None:
            try:
                async with gate.admit(tenant="third", **ASK) as lease:
                    lease.progress(5)
                    await asyncio.sleep(10)
            except EvictedError as error:
                assert lease.is_evicted
                evicted.append(error)
            await asyncio.sleep(0)  # the interruption has gone

        fillers = [asyncio.create_task(fill()) for _ in range(4)]
        await asyncio.sleep(0)
        assert len(gate) == 4
        async with gate.admit(tenant="acme", **ASK):
            await asyncio.sleep(0.01)
            assert [error.status for error in evicted] == [503]
            assert evicted[0].reason == "preempted"
            assert "retry-after" in evicted[0].headers
        for filler in fillers:
            filler.cancel()
        await asyncio.gather(*fillers, return_exceptions=True)

    with_gate(go)


def test_a_lease_outside_of_a_block_hears_of_its_eviction() -> None:
    async def go(gate: Gate) -> None:
        leases = [await gate.admit(tenant="third", **ASK) for _ in range(4)]
        heard: list[str] = []
        for lease in leases:
            lease.on_evict(lambda name=lease.request_id: heard.append(name))  # type: ignore[misc]
        async with gate.admit(tenant="acme", **ASK):
            await asyncio.sleep(0)
            (one,) = (lease for lease in leases if lease.is_evicted)
            assert heard == [one.request_id]
            with pytest.raises(EvictedError):
                one.progress(9)
            with pytest.raises(EvictedError):
                async with one:
                    pass
            one.finish({"completion_tokens": 20})
        for lease in leases:
            lease.cancel()

    with_gate(go)


def test_a_cancellation_is_not_taken_for_an_eviction() -> None:
    async def go(gate: Gate) -> None:
        async def fill() -> None:
            async with gate.admit(tenant="third", **ASK):
                await asyncio.sleep(10)

        fillers = [asyncio.create_task(fill()) for _ in range(4)]
        await asyncio.sleep(0)
        async with gate.admit(tenant="acme", **ASK):
            for filler in fillers:
                filler.cancel()
            outcomes = await asyncio.gather(*fillers, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in outcomes), outcomes

    with_gate(go)


def test_what_is_held_waits_for_its_turn() -> None:
    async def go(gate: Gate) -> None:
        leases = [await gate.admit(tenant="acme", **ASK) for _ in range(4)]
        waiting = asyncio.ensure_future(gate.admit(tenant="acme", **ASK))
        left = asyncio.ensure_future(gate.admit(tenant="acme", **ASK))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert len(gate.core.held) == 2
        left.cancel()
        leases[0].finish({"prompt_tokens": 10, "completion_tokens": 1})
        async with await waiting as lease:
            assert lease.is_open
        with pytest.raises(asyncio.CancelledError):
            await left
        for one in leases:
            one.cancel()

    with_gate(go, config("fair-queue"))


def test_what_is_held_for_too_long_is_refused() -> None:
    async def go(gate: Gate) -> None:
        leases = [await gate.admit(tenant="acme", **ASK) for _ in range(4)]
        with pytest.raises(RefusedError) as caught:
            await gate.admit(tenant="acme", **ASK)
        assert (caught.value.status, caught.value.reason) == (429, "queue_timeout")
        for one in leases:
            one.cancel()

    with_gate(go, config("fair-queue", held_s=0.05))


def test_a_closed_gate_refuses_and_still_settles() -> None:
    async def go(gate: Gate) -> None:
        leases = [await gate.admit(tenant="acme", **ASK) for _ in range(4)]
        waiting = asyncio.ensure_future(gate.admit(tenant="acme", **ASK))
        await asyncio.sleep(0)
        gate.close()
        for asked in (waiting, gate.admit(tenant="acme", **ASK)):
            with pytest.raises(RefusedError) as caught:
                await asked
            assert (caught.value.status, caught.value.reason) == (503, "shutting_down")
        for one in leases:
            one.finish()

    with_gate(go, config("fair-queue"))


def test_a_failed_replica_is_left_for_another_once_each() -> None:
    async def go(gate: Gate) -> None:
        async with gate.admit(tenant="acme", **ASK) as lease:
            first = lease.replica_id
            assert lease.retry()
            assert lease.replica_id == 1 - first
            assert not lease.retry()
            assert not lease.is_open
            assert not lease.is_evicted
        assert len(gate) == 0
        gate.set_ready([1])
        async with gate.admit(tenant="acme", **ASK) as lease:
            assert lease.replica_id == 1
        gate.set_ready([])
        with pytest.raises(RefusedError) as caught:
            await gate.admit(tenant="acme", **ASK)
        assert caught.value.reason == Reason.NO_CAPACITY
        with pytest.raises(ValueError, match="the pool has"):
            gate.set_ready([2])
        gate.report(ReplicaReport(0, 0.0, 1, 0, 0.5))

    with_gate(go, config(pool={"replicas": 2, "on_failure": "retry"}))


def test_a_clock_that_jumps_changes_no_books() -> None:
    clock = Clock()

    async def go(gate: Gate) -> None:
        for jump_s in (0.5, -3600.0, 86400.0, float("nan"), float("inf"), -1e6, 0.25):
            before = gate.core.call_me_at_s
            clock.now_s = clock.now_s + jump_s if jump_s - jump_s == 0 else jump_s
            async with gate.admit(tenant="acme", **ASK) as lease:
                lease.finish({"prompt_tokens": 10, "completion_tokens": 1})
            assert gate.core.call_me_at_s >= before
            if jump_s - jump_s != 0:
                clock.now_s = 1000.0

    with_gate(go, clock=clock)


def test_a_clock_that_is_set_back_goes_on() -> None:
    clock = Clock()
    steady = SteadyClock(clock)
    seen = []
    for now_s in (10.0, 11.0, 3.0, 4.0, float("nan"), 4.5, 100.0):
        clock.now_s = now_s
        seen.append(steady.time())
    assert seen == [10.0, 11.0, 11.0, 12.0, 12.0, 12.5, 108.0]
    clock.now_s = float("nan")
    with pytest.raises(ValueError, match="monotonic"):
        SteadyClock(clock).time()


def test_a_gate_belongs_to_one_loop() -> None:
    gate = Gate(config())

    async def ask() -> None:
        async with gate.admit(tenant="acme", **ASK):
            pass

    asyncio.run(ask())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(ask())


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_recording_gives_the_same_verdicts_again(policy: Any, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    clock = Clock()

    async def go(gate: Gate) -> None:
        async def ask(number: int) -> None:
            asked: dict[str, Any] = {"tenant": ("acme", "third", "other")[number % 3], "prompt_tokens": number % 17}
            try:
                async with gate.admit(**asked, max_tokens=number % 29 or None) as lease:
                    await asyncio.sleep(0)
                    clock.now_s += 0.07
                    lease.progress(number % 5)
                    await asyncio.sleep(0)
                    if number % 4 == 0:
                        raise ZeroDivisionError
                    lease.finish({"completion_tokens": number % 11})
            except (RefusedError, EvictedError, ZeroDivisionError):
                pass

        for first in range(0, 120, 8):
            await asyncio.gather(*(ask(number) for number in range(first, first + 8)))

    with_gate(go, config(policy, recording=str(file)), clock=clock, prefix="r-", seed=3)
    found = parity(file)
    assert found.verdicts["forward"] > 40
    assert found.events > 200


def test_a_configuration_is_refused_with_place_and_fix() -> None:
    for wrong, place in (
        (config(policy="nothing"), "policy"), (config(tenants={"a": "nobody"}), "tenants.a"),
        (config(unknown_tenant="x"), "unknown_tenant"), ({"version": 1}, "pool"), (config(upstreams=[]), "upstreams"),
    ):  # fmt: skip
        with pytest.raises(TokenpoolsError, match=place):
            Gate(wrong)
