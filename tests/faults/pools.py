"""Random small pools on the bare core, the checker on: one world a seed, two milliseconds each.

A world draws a policy, entitlements, replicas and limits, then hostile traffic: requests that arrive twice, end twice
or never began, ends with more tokens than were asked for, time that stands still, replicas that go and come, reports
that lie, adoptions, a changeover to another policy, a snapshot and back. At the end everything is ended, and nothing
may be left.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import count
from typing import Any

from parity.examples import EXAMPLES

from policies import snapshot
from policies.api import (
    Adopted,
    Arrived,
    Cancelled,
    CapacityChanged,
    EntitlementSpec,
    Event,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Hold,
    PoolCapacity,
    Progress,
    Refuse,
    ReplicaReport,
    RequestView,
    Resources,
    ServiceClass,
    Tick,
)
from policies.core import GatewayCore
from policies.handover import hand_over
from policies.invariants import Checker
from policies.registry import POLICIES, ROUTERS

CLASSES = tuple(ServiceClass)
NAMES = tuple(each.value for each in CLASSES)
PARAMS = tuple(EXAMPLES.values())
_ROUTERS = tuple(ROUTERS.values())


def some_specs(rng: random.Random) -> list[EntitlementSpec]:
    """Return five entitlements, one of each class: examples name them so."""
    specs = []
    for number, service_class in enumerate(CLASSES):
        baseline = Resources(
            rng.choice((None, 5.0, 50.0)), rng.choice((None, None, 3000.0)), rng.choice((None, 0, 1, 2, 4))
        ) if number < 3 else Resources()
        limit = Resources(
            rng.choice((None, 100.0)), rng.choice((None, 6000.0)), rng.choice((None, 1, 3, 8))
        ) if rng.random() < 0.5 else Resources()
        specs.append(EntitlementSpec(
            name=service_class.value, tenant=f"t{number % 2}", service_class=service_class,
            ttft_slo_s=rng.choice((None, 0.5, 5.0)), baseline=baseline, limit=limit,
            from_s=rng.choice((0.0, 0.0, 0.0, 2.0)), until_s=rng.choice((float("inf"), float("inf"), 6.0)),
        ))  # fmt: skip
    return specs


class World:
    """One pool, its checker, and a world that knows what it sent."""

    def __init__(self, seed: int, every_events: int = 25) -> None:
        self.rng = rng = random.Random(seed)
        self.now_s = 0.0
        self.numbers = count()
        self.flying: dict[str, int] = {}
        self.held: set[str] = set()
        self.gone: list[str] = []
        self.specs = some_specs(rng)
        self.checker = Checker(every_events=every_events)
        self.core = self._core(rng.choice(PARAMS))
        self._obey(self.core.start(0.0))
        self.checker.begin(self.core, 0.0)

    def _core(self, params: Any) -> GatewayCore:
        rng = self.rng
        self.replicas = rng.randint(1, 3)
        self.slots = rng.randint(1, 8)
        known_kv = rng.random() < 0.5
        self.kv_bytes = 20_000.0 if known_kv else None
        per_token = 16.0 if known_kv else None
        policy = POLICIES[params.kind].build(
            params, entitlements=self.specs, kv_bytes_per_token=per_token, chance=random.Random(1)
        )
        router = rng.choice(_ROUTERS)
        return GatewayCore(
            entitlements=self.specs, capacity=self._capacity(self.replicas), replica_ids=range(self.replicas),
            policy=policy, router=router.build(router.params()), retry_failed=rng.random() < 0.5,
            max_context_tokens=rng.choice((None, 500)), default_max_output_tokens=rng.choice((16, 256)),
        )  # fmt: skip

    def _capacity(self, ready: int) -> PoolCapacity:
        return PoolCapacity(ready, self.slots * ready, 100.0, self.kv_bytes and self.kv_bytes * ready)

    def run(self, events: int) -> None:
        """Live through so many events, then end everything."""
        for _ in range(events):
            self.step()
        for name in (*self.flying, *self.held):
            self._send(Cancelled(name, self.rng.randint(0, 9)))
        self.checker.check_all(self.core, self.now_s)
        pool = self.core.pool
        left = [book.in_flight + book.reserved_tokens for book in pool.entitlements.values()]
        left += [book.in_flight + book.outstanding_tokens for book in pool.replicas]
        assert not any(left), left
        assert not pool.in_flight
        assert not self.core.held

    def step(self) -> None:
        rng = self.rng
        what = rng.random()
        if what < 0.40:
            self._arrive()
        elif what < 0.80 and (self.flying or self.held):
            name = rng.choice((*self.flying, *self.held))
            self._about(name, rng.random())
        elif what < 0.90:
            self.now_s += rng.choice((0.0, 0.01, 0.3, 2.0))
            self._send(Tick())
        elif what < 0.93:
            ready = tuple(each for each in range(self.replicas) if rng.random() < 0.7)
            self._send(CapacityChanged(self._capacity(len(ready)), ready))
        elif what < 0.96:
            self._send(ReplicaReport(
                rng.randint(0, 4), self.now_s - rng.random(), rng.randint(0, 9), rng.randint(0, 9), rng.random()
            ))  # fmt: skip
        elif what < 0.98 and self.gone:  # what has ended, ends again
            name = rng.choice(self.gone)
            late = (Finished(name, 9), Failed(name), Cancelled(name), FirstToken(name), Progress(name, 9))
            if name not in self.flying and name not in self.held:
                self._send(rng.choice(late))
        elif what < 0.99:
            self._adopt()
        elif rng.random() < 0.5:
            self.core = snapshot.restore(snapshot.take(self.core), chance=random.Random)
        else:
            self._change_over()

    def _arrive(self) -> None:
        rng = self.rng
        name = f"r{next(self.numbers)}" if rng.random() < 0.97 or not self.flying else rng.choice((*self.flying,))
        tokens = rng.choice((None, 1, 20, 100, 2**31))
        request = RequestView(name, rng.choice(NAMES), "t", rng.randint(0, 120), tokens, rng.choice((1, 1, 2)))
        if name in self.flying:
            try:
                self.core.handle(Arrived(request), self.now_s)
            except ValueError:
                return
            raise AssertionError(f"{name} was let in twice")
        self._send(Arrived(request))

    def _about(self, name: str, what: float) -> None:
        seen = self.flying.get(name, 0)
        seen += int(self.rng.random() * 40)
        if what < 0.2:
            self._send(FirstToken(name))
        elif what < 0.4:
            self._send(Progress(name, seen))
            if name in self.flying:
                self.flying[name] = seen
        elif what < 0.7:
            counted = self.rng.choice((None, self.rng.randint(0, 200)))
            self._send(Finished(name, seen, self.rng.randint(0, 9), counted))
        elif what < 0.85:
            self._send(Failed(name, seen, self.rng.random() < 0.5))
        else:
            self._send(Cancelled(name, seen))

    def _adopt(self) -> None:
        rng = self.rng
        name = rng.choice((*self.held,)) if self.held and rng.random() < 0.5 else f"r{next(self.numbers)}"
        request = RequestView(name, rng.choice(NAMES), "t", rng.randint(1, 90), None)
        self._send(Adopted(request, rng.randint(0, self.replicas), 50, self.now_s, rng.random() < 0.5, 3))
        self.held.discard(name)
        self.flying[name] = 3

    def _change_over(self) -> None:
        new = self._core(self.rng.choice(PARAMS))
        said = hand_over(self.core, new, self._capacity(self.replicas), self.now_s)
        self.core = new
        self.checker.begin(new, self.now_s)
        self._obey(said)

    def _send(self, event: Event) -> None:
        core = self.core
        said = core.handle(event, self.now_s)
        self.checker.after(core, event, self.now_s, said)
        if type(event) in (Finished, Failed, Cancelled):
            name = event.request_id  # type: ignore[union-attr]
            if name not in core.pool.in_flight:
                self.flying.pop(name, None)
            if type(event) is Cancelled:
                self.held.discard(name)
            self.gone.append(name)
        self._obey(said)

    def _obey(self, said: Iterable[Any]) -> None:
        for step in said:
            kind = type(step)
            if kind is Forward:
                self.held.discard(step.request_id)
                self.flying.setdefault(step.request_id, 0)
            elif kind is Hold:
                self.held.add(step.request_id)
            elif kind is Refuse:
                self.held.discard(step.request_id)
            elif kind is Evict:
                self.flying.pop(step.request_id, None)


def run_pool(seed: int, events: int = 60) -> int:
    """Run one world and return how many events were checked.

    Raises
    ------
    Exception : whatever broke; the seed is all that is needed to see it again.
    """
    world = World(seed)
    world.run(events)
    return world.checker.events
