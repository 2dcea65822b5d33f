"""A gateway process that shares its state: random requests, replicas that are timers, a line on stdout for each thing.

    python shared_worker.py URL NAME POLICY OPTIONS-AS-JSON

On SIGTERM it stops asking, waits for what runs, prints a digest of its copy of the state, and leaves.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from parity.tiny_world import make_core

from policies import snapshot
from policies.api import (
    Arrived,
    Cancelled,
    EntitlementSpec,
    Event,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Progress,
    Refuse,
    RequestView,
    Resources,
    ServiceClass,
)
from policies.core import GatewayCore
from policies.rate_limit import RateLimit
from policies.token_pool.params import TokenPool
from policies.wire import to_plain
from sim.errors import RunError
from sim.live.gateway.core_driver import AsyncGateway
from sim.live.gateway.settings import SharedState
from sim.live.shared_state.replicated_core import SharedLog

SLOTS = 12
SPECS = [
    EntitlementSpec(name="gold", tenant="a", service_class=ServiceClass.GUARANTEED, baseline=Resources(slots=6)),
    EntitlementSpec(
        name="mixed", tenant="b", service_class=ServiceClass.ELASTIC, ttft_slo_s=5.0, baseline=Resources(80.0, slots=3)
    ),
    EntitlementSpec(name="spot", tenant="c", service_class=ServiceClass.SPOT, limit=Resources(slots=8)),
    EntitlementSpec(name="filler", tenant="d", service_class=ServiceClass.PREEMPTIBLE),
]
POLICIES = {
    "token-pool": TokenPool(tick_s=0.5, max_request_tokens=300),
    "rate-limit": RateLimit(requests_per_min=600, tokens_per_min=30_000),
}


def core_of(policy: str) -> GatewayCore:
    return make_core(
        POLICIES[policy], SPECS, slots=SLOTS, replicas=2, router="least-outstanding-tokens", tokens_per_s=2000.0,
    )  # fmt: skip


def say(**what: Any) -> None:
    os.write(1, (json.dumps({"t": time.monotonic(), **what}) + "\n").encode())


class Timers:
    """Replicas that answer after a while."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: random.Random) -> None:
        self._loop, self._rng = loop, rng
        self._running: dict[str, list[asyncio.TimerHandle]] = {}
        self.begun: dict[str, float] = {}

    def start(self, request: RequestView, forward: Forward, emit: Callable[[Event], None]) -> None:
        name = request.request_id
        say(what="start", id=name, entitlement=request.entitlement, replica=forward.replica_id)
        self.begun[name] = self._loop.time()
        whole_s = self._rng.uniform(0.05, 0.6)
        ends: Event = Failed(name, 3) if self._rng.random() < 0.1 else Finished(name, int(whole_s * 100))
        self._running[name] = [
            self._loop.call_later(0.04, emit, FirstToken(name)), self._loop.call_later(whole_s, self._end, ends, emit),
        ]

    def _end(self, event: Finished | Failed, emit: Callable[[Event], None]) -> None:
        self._forget(event.request_id)
        emit(event)

    def _forget(self, name: str) -> None:
        if name in self._running:
            for timer in self._running.pop(name):
                timer.cancel()
            say(what="end", id=name)

    def abort(self, request_id: str) -> None:
        self._forget(request_id)

    def progress(self) -> Iterable[Progress]:
        now_s = self._loop.time()
        return [Progress(name, int((now_s - self.begun[name]) * 100)) for name in self._running]


async def work(url: str, name: str, policy: str, options: dict[str, Any]) -> None:
    loop, rng = asyncio.get_running_loop(), random.Random(name)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, where)
    log = SharedLog(
        SharedState(url=url, pool="test", ttl_s=options.get("ttl_s", 1.0), timeout_s=options.get("timeout_s", 0.3),
                    snapshot_every=options.get("snapshot_every", 10**6)),
        loop=loop, config=options.get("config", "same"), name=name,
    )  # fmt: skip

    def answer(end: Refuse | Evict | Failed) -> None:
        say(what="told", id=end.request_id, how=to_plain(end))

    gateway = AsyncGateway(core_of(policy), Timers(loop, rng), loop=loop, answer=answer, log=log)
    gateway.start()
    try:
        await log.joined(30)
        assert log.has_joined, "not joined within 30 s"
    except RunError as error:
        say(what="refused", why=str(error))
        await log.close()
        return
    say(what="joined", gateways=log.status().gateways)
    number = 0
    while not stop.is_set():
        number += 1
        request = RequestView(
            f"{name}/{number}", rng.choice(SPECS).name, "t", rng.randint(1, 80), rng.choice([None, 20, 60, 500])
        )
        gateway.send(Arrived(request))
        if rng.random() < 0.08:
            loop.call_later(rng.choice([0.0, 0.001, 0.1]), leave, gateway, request.request_id)
        if rng.random() < options.get("rest", 0.9):
            await asyncio.sleep(rng.expovariate(options.get("rate_per_s", 60.0)))
    for _ in range(100):
        if not gateway.requests and log.status().reachable and not log.status().waiting:
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    state = snapshot.take(gateway.core)
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    status = log.status()
    say(what="state", seq=status.applied, digest=digest, requests=len(gateway.requests), away=status.times_away,
        reachable=status.reachable, waiting=status.waiting, running=len(gateway.running))  # fmt: skip
    await log.close()


def where() -> None:
    """Say what every task waits for."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)
    sys.stderr.flush()


def leave(gateway: AsyncGateway, request_id: str) -> None:
    if request_id in gateway.requests:
        gateway.send(Cancelled(request_id))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    asyncio.run(work(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])))
