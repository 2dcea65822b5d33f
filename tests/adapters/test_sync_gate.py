"""The library's gate among threads."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.pools import assert_empty, config, parity, worked
from tokenpools import EvictedError, RefusedError, SyncGate, SyncLease

ASK: dict[str, Any] = {"prompt_tokens": 10, "max_tokens": 20}


@contextmanager
def opened(policy: Any = "token-pool", **more: Any) -> Iterator[SyncGate]:
    with SyncGate(config(policy, **more)) as gate:
        yield gate
        gc.collect()
        until(lambda: not len(gate))
        assert_empty(gate)


def until(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def leave_by(gate: SyncGate, error: type[BaseException]) -> None:
    with gate.admit(tenant="acme", **ASK) as lease:
        lease.progress(1)
        raise error


def test_a_lease_is_settled_however_its_block_is_left() -> None:
    with opened() as gate:
        with gate.admit(tenant="acme", **ASK) as lease:
            lease.first_token()
            lease.progress(3)
            lease.finish({"prompt_tokens": 12, "completion_tokens": 7})
        assert worked(gate, "chat") == 19
        with gate.admit(tenant="acme", **ASK) as lease:
            lease.progress(2)
        assert worked(gate, "chat") == 31
        for error in (ZeroDivisionError, KeyboardInterrupt):
            with pytest.raises(error):
                leave_by(gate, error)
        assert worked(gate, "chat") == 53
        gate.admit(tenant="acme", **ASK).reject()
        gate.admit(tenant="acme", **ASK).fail()
        gate.admit(tenant="acme", **ASK).cancel(sent=False)
        assert worked(gate, "chat") == 53


def test_a_lease_that_is_dropped_is_settled_without_anybody_asking() -> None:
    with opened() as gate:
        lease = gate.admit(tenant="acme", **ASK)
        assert len(gate) == 1
        del lease
        until(lambda: not len(gate))


def test_a_refusal_is_raised() -> None:
    with opened() as gate, gate.admit(tenant="other", **ASK):
        with pytest.raises(RefusedError) as caught:
            gate.admit(tenant="other", **ASK)
        assert (caught.value.status, caught.value.reason) == (429, "concurrency")
        assert "retry-after" in caught.value.headers


def test_what_is_held_waits_in_its_thread() -> None:
    with opened("fair-queue", held_s=5) as gate, ThreadPoolExecutor(1) as pool:
        leases = [gate.admit(tenant="acme", **ASK) for _ in range(4)]
        asked = pool.submit(gate.admit, tenant="acme", **ASK)
        until(lambda: len(gate.core.held) == 1)
        leases[0].finish()
        with asked.result(5) as lease:
            assert lease.is_open
        for one in leases:
            one.cancel()


def test_what_is_held_too_long_or_at_the_end_is_refused() -> None:
    with opened("fair-queue", held_s=0.05) as gate:
        leases = [gate.admit(tenant="acme", **ASK) for _ in range(4)]
        with pytest.raises(RefusedError) as caught:
            gate.admit(tenant="acme", **ASK)
        assert caught.value.reason == "queue_timeout"
        for one in leases:
            one.cancel()
    with pytest.raises(RefusedError) as caught:
        gate.admit(tenant="acme", **ASK)
    assert (caught.value.status, caught.value.reason) == (503, "shutting_down")


def test_an_eviction_reaches_its_holder() -> None:
    with opened() as gate:
        heard: list[SyncLease] = []
        leases = [gate.admit(tenant="third", **ASK) for _ in range(4)]
        for lease in leases:
            # As whoever closes a connection would: what it calls may itself ask the gate.
            lease.on_evict(lambda lease=lease: (lease.finish(), heard.append(lease)))  # type: ignore[misc]
        with gate.admit(tenant="acme", **ASK):
            (one,) = (lease for lease in leases if lease.is_evicted)
            assert heard == [one]
            with pytest.raises(EvictedError):
                one.progress(3)
        for lease in leases:
            lease.on_evict(int)
            lease.cancel()


def test_ticks_come_by_themselves() -> None:
    ticks: list[float] = []
    with SyncGate(
        config({"kind": "token-pool", "tick_s": 0.02}),
        recorders=[lambda now_s, *_: ticks.append(now_s)],
    ) as gate:
        until(lambda: len(ticks) >= 3)
        assert gate.core.call_me_at_s > ticks[-1]
    count = len(ticks)
    time.sleep(0.06)
    assert len(ticks) == count


@pytest.mark.parametrize("policy", ["token-pool", "fair-queue"])
def test_many_threads_leave_nothing_and_their_recording_gives_the_same(policy: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    outcomes: list[str] = []

    def work(worker: int) -> None:
        for number in range(40):
            tenant = ("acme", "third", "other")[(worker + number) % 3]
            try:
                with gate.admit(tenant=tenant, prompt_tokens=number, max_tokens=8) as lease:
                    lease.progress(number % 5)
                    if number % 7 == 0:
                        raise ZeroDivisionError
                    if number % 11 == 0:
                        lease.on_evict(lambda: outcomes.append("heard"))
                    lease.finish({"completion_tokens": number % 8})
                outcomes.append("done")
            except (RefusedError, EvictedError, ZeroDivisionError) as error:
                outcomes.append(type(error).__name__)

    with opened(policy, recording=str(file)) as gate:
        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert outcomes.count("done") > 60
    assert parity(file).verdicts["forward"] > 60
