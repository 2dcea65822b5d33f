"""Gateways that decide alone on leased parts, on virtual time: what is in flight stays within the stated bound."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from faults.memory_redis import MemoryRedis
from faults.shared_pool import KEY, Timers, new_core
from live.gate import config
from parity.virtual_loop import VirtualLoop

from policies.api import Arrived, CapacityChanged, RequestView
from policies.handover import part_of
from policies.invariants import Checker
from policies.limit_leases import POOL
from sim.errors import ScenarioError
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.core_driver import AsyncGateway
from sim.live.gateway.core_from_config import make_core
from sim.live.gateway.settings import SharedState, StateSecrets
from sim.live.shared_state.leased import LeasedLog

SLOTS = {"pool": 12 + 6, "gold": 6, "spot": 8}  # what is promised to gold enters a full pool, as with one gateway
LEASES = "tokenpools:{test}:leases"


class Books:
    def __init__(self, server: MemoryRedis, name: str) -> None:
        self.server, self.name, self.arrives_s = server, name, 0.0

    async def run(self, *arguments: Any) -> list[Any]:
        texts = [str(each) for each in arguments]
        return await self.server.ask(self, lambda: self.server.store.run("leases.lua", [LEASES], texts))  # type: ignore

    async def evicts(self) -> str:
        return ""

    async def disconnect(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Member:
    def __init__(self, group: Group, name: str, **options: Any) -> None:
        self.group, self.name = group, name
        settings = SharedState(url="redis://x", pool="test", share="leases", **{
            "ttl_s": 1.0, "timeout_s": 0.25, "every_s": 0.2, **options,
        })
        self.timers = Timers(group.loop, group.rng)
        self.log = LeasedLog(
            settings, loop=group.loop, config="same", name=name, secret=StateSecrets(key=KEY),
            books=Books(group.server, name), core_of=lambda _head, _leaving: new_core(),
        )
        self.checker = Checker(every_events=20)
        self.told: list[Any] = []
        self.asked = 0
        self.gateway = AsyncGateway(
            new_core(), self.timers, loop=group.loop, log=self.log, answer=self.told.append, record=self.check
        )
        self.gateway.start()

    def check(self, now_s: float, event: Any, said: Any) -> None:
        self.checker.peers = self.log.peers
        self.checker.after(self.gateway.core, event, now_s, said)

    def ask(self, entitlement: str) -> None:
        self.asked += 1
        self.gateway.send(Arrived(RequestView(f"{self.name}/{self.asked}", entitlement, "t", 10, 20)))

    def running(self, entitlement: str | None = None) -> int:
        requests = [self.gateway.requests[one] for one in self.timers.running if one in self.gateway.requests]
        return sum(entitlement in (None, one.entitlement) for one in requests)


class Group:
    def __init__(self, seed: int = 1) -> None:
        random.seed(seed)
        self.loop, self.rng = VirtualLoop(), random.Random(seed)
        self.server = MemoryRedis(self.loop, self.rng)
        self.members: list[Member] = []
        self.most = dict.fromkeys(SLOTS, 0)
        self.admitted = 0

    def join(self, name: str, **options: Any) -> Member:
        self.loop.within(lambda: self.members.append(Member(self, name, **options)))
        return self.members[-1]

    def look(self) -> None:
        for what in SLOTS:
            now = sum(member.running(None if what == "pool" else what) for member in self.members)
            self.most[what] = max(self.most[what], now)

    def run(self, seconds: float, rate_per_s: float = 40.0, who: Any = None) -> None:
        until_s = self.loop.time() + seconds

        def ask(member: Member) -> None:
            if self.loop.time() < until_s and member in self.members:
                member.ask(self.rng.choice(("gold", "spot")))
                self.look()
                self.loop.call_later(self.rng.expovariate(rate_per_s), ask, member)

        for member in self.members if who is None else who:
            if rate_per_s:
                self.loop.call_later(self.rng.expovariate(rate_per_s), ask, member)
        self.loop.run(until_s)
        self.loop.pass_to(until_s)

    def within(self, **more: int) -> None:
        for what, slots in SLOTS.items():
            assert self.most[what] <= slots + more.get(what, 0), (what, self.most)

    def emptied(self) -> None:
        self.run(1.0, 0.0)
        for member in self.members:
            pool = member.gateway.core.pool
            assert not pool.in_flight
            own, replicas = member.log.peers.own()  # type: ignore[union-attr]
            assert all(told[:2] == (0, 0) for told in (*own.values(), *replicas.values()))
            member.checker.peers = member.log.peers
            member.checker.check_all(member.gateway.core, member.gateway.now_s())

    def leave(self) -> None:
        async def close() -> None:
            for member in self.members:
                await member.log.close()

        self.server.start()
        self.server.resume()
        self.loop.within(lambda: self.loop.create_task(close()))
        self.loop.run(self.loop.time() + 5)


@pytest.fixture
def group() -> Iterator[Group]:
    one = Group()
    for name in "abc":
        one.join(name)
    one.run(2.0, 0.0)
    yield one

    one.leave()


def test_nothing_is_dealt_out_before_whoever_may_hold_a_part_is_heard(group: Group) -> None:
    newcomer = group.join("d")
    assert not newcomer.log.has_joined
    newcomer.ask("gold")
    assert newcomer.told[-1].reason == "state_unavailable"
    group.run(1.5, 0.0)
    assert newcomer.log.has_joined
    assert newcomer.log.status().gateways == 4
    fresh = Group()
    fresh.join("a")
    fresh.run(0.9, 0.0)
    assert not fresh.members[0].log.has_joined  # another may hold parts of a Redis that was emptied
    fresh.run(0.5, 0.0)
    assert fresh.members[0].log.has_joined
    fresh.loop.within(lambda: fresh.loop.create_task(fresh.members[0].log.close()))
    fresh.run(1.0, 0.0)


def test_limits_hold_over_all_gateways_and_parts_follow_demand(group: Group) -> None:
    group.run(3.0)
    group.run(3.0, 120.0, group.members[:1])
    busy, idle = group.members[0].log.parts[POOL], group.members[1].log.parts[POOL]
    assert busy >= 8 > idle
    group.run(3.0)
    group.within()
    assert sum(member.timers.started for member in group.members) > 100
    group.emptied()


@pytest.mark.parametrize("fault", ["killed", "paused", "slow", "cut off", "emptied", "garbage", "set back", "clock"])
def test_a_fault_of_redis_passes_no_limit_by_more_than_the_lost_ones_hold(group: Group, fault: str) -> None:
    server, more = group.server, {}
    group.run(1.5)
    if fault == "killed":
        server.kill()
        group.run(3.0)
        server.start()
    elif fault == "paused":
        server.pause()
        group.run(0.8)
        server.resume()
        group.run(0.5)
        server.pause()
        group.run(2.0)
        server.resume()
    elif fault == "slow":
        server.slow_s = 0.1
        group.run(4.0)
        server.slow_s = 0.0005
        more = {"gold": 6, "spot": 8, "pool": 14}  # renewals come too late now and then, and parts run out
    elif fault == "cut off":  # the others have its part after the ttl; it has its even part of gold's baseline
        server.cut_off.add("a")
        group.run(4.0)
        more = {"gold": 6 // 3 + 6, "spot": 8, "pool": 8 + 8}
        server.cut_off.clear()
    elif fault == "emptied":
        server.store.keys.clear()
    elif fault == "garbage":
        server.store.keys[LEASES] = {"version": "x", "data": "{", "mac": "-"}
    elif fault == "set back":
        kept = dict(server.store.keys[LEASES])
        group.run(2.0)
        server.store.keys[LEASES] = kept
    elif fault == "clock":
        server.clock_off_us -= 3_600_000_000
        group.run(2.0)
        server.clock_off_us += 3_600_000_000
        # Set forward by more than the ttl, all parts run out at once in Redis, and not at who holds them.
        more = {"gold": 6, "spot": 8, "pool": 18}
    group.run(3.0)
    group.within(**more)
    before = [member.timers.started for member in group.members]
    group.run(2.0)
    assert all(member.timers.started > count for member, count in zip(group.members, before, strict=True))
    group.emptied()


def test_a_killed_gateways_part_returns_after_the_ttl(group: Group) -> None:
    group.run(2.0)
    victim = group.members.pop(0)
    victim.log._task.cancel()  # type: ignore[union-attr]
    for name in list(victim.timers.running):
        victim.timers.abort(name)
    group.run(1.5)
    group.within()
    assert {member.log.status().gateways for member in group.members} == {2}
    group.run(1.0)
    assert sum(member.log.parts[POOL] for member in group.members) == 12
    victim.log._expiry.cancel()  # type: ignore[union-attr]
    group.emptied()


def test_what_is_closed_while_redis_is_away_is_refused_and_what_is_open_has_its_even_part(group: Group) -> None:
    group.server.kill()
    group.run(1.5, 0.0)
    member = group.members[0]
    assert not member.log.status().reachable
    for _ in range(4):
        member.ask("gold")
    member.ask("spot")
    assert member.running("gold") == 2
    assert member.told[-1].reason == "state_unavailable"
    group.server.start()
    group.run(2.5, 0.0)
    assert member.log.status().reachable
    group.emptied()


def test_a_capacity_that_changes_leaves_the_parts_what_they_are(group: Group) -> None:
    for member in group.members:
        member.gateway.send(CapacityChanged(part_of(new_core().pool.capacity, 1), (0,)))
    group.run(2.0)
    group.most = dict.fromkeys(SLOTS, 0)
    group.run(2.0)
    assert group.most["pool"] <= 6 + 6
    for member in group.members:
        member.gateway.send(CapacityChanged(part_of(new_core().pool.capacity, 2), (0, 1)))
    group.run(3.0)
    group.within()
    group.emptied()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"policy": {"kind": "window", "tokens_per_min": 100}}, "rates that cannot be parted"),
        ({"policy": {"kind": "rate-limit", "tokens_per_min": 100, "window": "sliding"}}, "windows, which cannot"),
        ({"pool": {"autoscaler": "capacity"}}, "leases have no autoscaler"),
    ],
)
def test_what_leases_cannot_do_is_refused(changed: dict[str, Any], message: str) -> None:
    written = config([], state={"url": "redis://x", "share": "leases"}, **changed)
    written["upstreams"] = [{"name": "u", "base_url": "http://127.0.0.1:1"}]
    with pytest.raises(ScenarioError, match=message):
        make_core(parse_config(written, "serve.yaml"))


# --------------------------------------------------------------------------------------------------------------------
# Looks: rounds in which nothing is to be changed


def calls(member: Member) -> list[str]:
    """Note the commands that a gateway sends from now on."""
    found: list[str] = []
    run = member.log._books.run

    async def noted(*arguments: Any) -> list[Any]:
        found.append(arguments[0])
        return await run(*arguments)

    member.log._books.run = noted  # type: ignore[method-assign]
    return found


def test_who_has_enough_looks_three_times_of_four(group: Group) -> None:
    group.run(2.0, 0.0)
    found = calls(group.members[0])
    group.run(4.0, 0.0)
    assert found.count("look") / found.count("write") == pytest.approx(3, rel=0.2)
    assert found.count("read") == pytest.approx(found.count("write"), abs=3)
    assert not group.members[0].log.status().times_away
    group.emptied()


def test_who_lacks_something_gets_it_although_the_others_only_look(group: Group) -> None:
    group.run(3.0, 0.0)
    first = group.members[0]
    before = first.log.parts[POOL]
    group.run(1.2, 60.0, [first])  # every_s is 0.2
    assert first.log.parts[POOL] >= before + 3, first.log.parts
    group.within()
    group.emptied()


def test_who_is_in_each_others_way_loses_no_part() -> None:
    """Twelve gateways that all lack something, and a Redis so slow that most writes find another's before them."""
    crowd = Group()
    crowd.server.slow_s = 0.08
    for number in range(12):
        crowd.join(f"n{number}", ttl_s=2.0, every_s=0.5)
    crowd.run(12.0, 0.0)
    lost = []
    for member in crowd.members:
        write = member.log._write

        async def noted(*arguments: Any, write: Any = write, **more: Any) -> bool:
            written: bool = await write(*arguments, **more)
            lost.append(not written)
            return written

        member.log._write = noted  # type: ignore[method-assign]
    crowd.run(20.0, 20.0)
    assert sum(lost) > len(lost) / 2
    assert sum(member.log.status().times_away for member in crowd.members) == 0
    crowd.within()
    crowd.server.slow_s = 0.0005
    crowd.leave()


def lua(group: Group, *arguments: Any) -> list[Any]:
    found: list[Any] = group.server.store.run("leases.lua", [LEASES], [str(each) for each in arguments])
    return found


def test_nobody_is_left_out_who_has_said_meanwhile_that_it_is_there(group: Group) -> None:
    group.run(1.0, 0.0)
    for member in group.members:
        member.log._task.cancel()  # type: ignore[union-attr]
    _, version, data, mac, short, *until = lua(group, "read", 0)
    assert dict(zip(until[::2], until[1::2], strict=True)).keys() == {"a", "b", "c"}
    write = ("write", 4000, version, version + 1, data, mac, "b", 1_000_000, 0)
    assert lua(group, *write, "a")[1] == 0  # a is good still
    group.server.clock_off_us += 2_000_000
    assert lua(group, "look", 4000, "a", 1_000_000)[1:] == [version, 0, short]  # it comes too late to look
    assert lua(group, *write, "a")[1] == 1
    assert "a" not in lua(group, "read", 0)[5::2]
    assert lua(group, "look", 4000, "a", 1_000_000)[2] == 0
    assert lua(group, "look", 4000, "b", 1_000_000)[2] == 1
    group.members.clear()


@pytest.mark.parametrize("said", ["x", "-5", "9" * 40, "1e9", ""])
def test_a_time_that_is_none_prolongs_nothing(group: Group, said: str) -> None:
    group.run(1.0, 0.0)
    group.server.store.keys[LEASES]["until:a"] = said
    group.run(2.0)
    group.within()
    assert all(member.log.status().reachable for member in group.members)
    group.emptied()
