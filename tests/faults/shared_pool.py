"""Several gateways on virtual time that share a pool through a Redis in memory: real log, script, driver and core."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any

from faults.memory_redis import MemoryClient, MemoryRedis
from parity.tiny_world import make_core
from parity.virtual_loop import VirtualLoop

from policies import snapshot
from policies.api import (
    Arrived,
    CapacityChanged,
    EntitlementSpec,
    Event,
    Finished,
    FirstToken,
    Forward,
    Progress,
    RequestView,
    Resources,
    ServiceClass,
)
from policies.core import GatewayCore
from policies.handover import part_of
from policies.invariants import Checker
from policies.token_pool.params import TokenPool
from sim.live.gateway.core_driver import AsyncGateway
from sim.live.gateway.settings import SharedState, StateSecrets
from sim.live.shared_state.replicated_core import SharedLog

KEY = b"0123456789abcdef0123456789abcdef"
SPECS = [
    EntitlementSpec(name="gold", tenant="a", service_class=ServiceClass.GUARANTEED, baseline=Resources(slots=6)),
    EntitlementSpec(name="spot", tenant="c", service_class=ServiceClass.SPOT, limit=Resources(slots=8)),
]


def new_core() -> GatewayCore:
    return make_core(TokenPool(tick_s=0.5, max_request_tokens=300), SPECS, slots=12, replicas=2, tokens_per_s=2000.0)


class Timers:
    """Replicas that answer after a while."""

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        self._loop, self._rng = loop, rng
        self.running: dict[str, list[asyncio.TimerHandle]] = {}
        self.started = 0

    def start(self, request: RequestView, forward: Forward, emit: Callable[[Event], None]) -> None:
        name, whole_s = request.request_id, self._rng.uniform(0.05, 0.6)
        self.started += 1

        def end() -> None:
            if self.running.pop(name, None) is not None:
                emit(Finished(name, 9))

        self.running[name] = [self._loop.call_later(0.04, emit, FirstToken(name)), self._loop.call_later(whole_s, end)]

    def abort(self, request_id: str) -> None:
        for timer in self.running.pop(request_id, ()):
            timer.cancel()

    def progress(self) -> Iterable[Progress]:
        return ()


class Member:
    """One gateway."""

    def __init__(
        self, pool: SharedPool, name: str, key: bytes | None = KEY, config: str = "same", head: Any = None,
        **options: Any,
    ) -> None:
        settings = SharedState(url="redis://memory", pool="test", **{"ttl_s": 1.0, "timeout_s": 0.25, **options})
        self.name, self.pool = name, pool
        self.client = MemoryClient(pool.server, settings, name)
        self.timers = Timers(pool.loop, pool.rng)
        self.told: list[Any] = []
        self.checker = Checker(every_events=50)
        self.log = SharedLog(
            settings, loop=pool.loop, config=config, name=name, secret=StateSecrets(key=key), client=self.client,
            head=head, core_of=lambda _head, _leaving: new_core(),
        )  # type: ignore[arg-type]
        self.gateway = AsyncGateway(
            new_core(), self.timers, loop=pool.loop, log=self.log, answer=self.told.append,
            record=lambda now_s, event, said: self.checker.after(self.gateway.core, event, now_s, said),
        )
        self.gateway.start()
        self._asked = 0

    def ask(self, entitlement: str = "spot") -> str:
        self._asked += 1
        name = f"{self.name}/{self._asked}"
        self.gateway.send(Arrived(RequestView(name, entitlement, "t", 10, 20)))
        return name

    def sees(self, *ready: int, slots: int | None = None) -> None:
        capacity = part_of(new_core().pool.capacity, len(ready), slots)
        self.gateway.send(CapacityChanged(capacity, ready))

    def kill(self) -> None:
        """Be gone at once: no word to anybody."""
        self.pool.members.remove(self)
        self.pool.server.cut_off.add(self.name)
        self.gateway.stop()
        for task in (self.log._task, self.log._saving):
            if task is not None:
                task.cancel()

    @property
    def core(self) -> GatewayCore:
        return self.gateway.core

    @property
    def ready(self) -> list[int]:
        return [book.replica_id for book in self.core.pool.replicas if book.ready]

    def digest(self) -> Any:
        return snapshot.take(self.core)


class SharedPool:
    """A Redis and its gateways."""

    def __init__(self, seed: int = 1) -> None:
        random.seed(seed)  # what the log draws by itself: pauses between tries
        self.loop = VirtualLoop()
        self.rng = random.Random(seed)
        self.server = MemoryRedis(self.loop, self.rng)
        self.members: list[Member] = []

    def join(self, name: str, **options: Any) -> Member:
        self.loop.within(lambda: self.members.append(Member(self, name, **options)))
        return self.members[-1]

    def run(self, seconds: float, *, rate_per_s: float = 0.0) -> None:
        """Let time pass, with requests at every gateway."""
        until_s = self.loop.time() + seconds

        def ask(member: Member) -> None:
            if self.loop.time() < until_s and member in self.members:
                member.ask(self.rng.choice(("gold", "spot")))
                self.loop.call_later(self.rng.expovariate(rate_per_s), ask, member)

        if rate_per_s:
            for member in self.members:
                self.loop.call_later(self.rng.expovariate(rate_per_s), ask, member)
        self.loop.run(until_s)
        self.loop.pass_to(until_s)

    def settled(self) -> None:
        """Check that all have the same books, and that nothing is left in them."""
        self.run(1.5)
        for _ in range(5):  # a tick may be under way just now
            if any(member.log.status().waiting for member in self.members):
                self.run(0.13)
        first = self.members[0]
        for member in self.members:
            status = member.log.status()
            assert status.reachable, status
            assert status.waiting == 0
            assert not member.gateway.requests
            assert not member.timers.running
            member.checker.check_all(member.core, member.gateway.now_s())
            assert member.digest() == first.digest()
        assert not first.core.pool.in_flight
        assert not first.core.held
        for book in first.core.pool.entitlements.values():
            assert (book.in_flight, book.reserved_tokens) == (0, 0)

    def serves(self) -> None:
        """Check that every gateway serves requests."""
        before = [member.timers.started for member in self.members]
        self.run(1.0, rate_per_s=8.0)
        assert all(member.timers.started > count for member, count in zip(self.members, before, strict=True))

    def close(self) -> None:
        async def leave() -> None:
            await asyncio.gather(*(member.log.close() for member in self.members))

        self.loop.within(lambda: self.loop.create_task(leave()))
        self.loop.run(self.loop.time() + 5)
