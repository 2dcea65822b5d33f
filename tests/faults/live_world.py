"""The live gateway on virtual time, with everything that may befall it, drawn from one seed.

Real: the application (ASGI), in-flight table, relay, upstreams' health, driver, core, shared log or leases, the Redis
scripts. In memory: the sockets to the upstreams and to Redis. A world draws an arrangement (one gateway, several that
replicate, several with leases), upstreams that are slow, lie, break off or are gone, a Redis that is paused, killed,
cut off, emptied or whose clock is set, gateways that are killed and begin anew or change over, and clients that are
hostile or leave. Every core has the checker on. At the end all faults are healed: then every request must have ended
once, and every book must be at nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from unittest import mock

from faults.memory_redis import MemoryClient, MemoryRedis
from faults.memory_upstreams import Upstreams
from live.gate import PROFILE, secret
from parity.virtual_loop import VirtualLoop

from policies.invariants import Checker
from sim.live.gateway.authentication import hashed
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.core_from_config import core_of_head, make_core, recorded_head
from sim.live.gateway.service import Service
from sim.live.gateway.settings import StateSecrets
from sim.live.gateway.settings_from_config import make_settings
from sim.live.replicas import upstreams
from sim.live.shared_state.leased import LeasedLog
from sim.live.shared_state.replicated_core import SharedLog

KEY = StateSecrets(key=b"0123456789abcdef0123456789abcdef")
ENTITLEMENTS = (
    {"name": "chat", "tenant": "acme", "service_class": "guaranteed", "baseline": {"slots": 4}},
    {"name": "docs", "tenant": "acme", "service_class": "elastic", "baseline": {"slots": 2}, "limit": {"slots": 6}},
    {"name": "batch", "tenant": "other", "service_class": "spot", "limit": {"slots": 3}},
    {"name": "filler", "tenant": "third", "service_class": "preemptible"},
)
NAMES = tuple(str(each["name"]) for each in ENTITLEMENTS)
POLICIES: tuple[Any, ...] = (
    {"kind": "token-pool", "tick_s": 0.5, "max_request_tokens": 400},
    {"kind": "token-pool", "mode": "robust", "tick_s": 0.5, "max_request_tokens": 400},
    "none", "cap", "vtc", {"kind": "rate-limit", "tokens_per_min": 20_000}, {"kind": "cohort"}, {"kind": "class-slots"},
)  # fmt: skip
LOAD_S, REST_S = 4.0, 8.0
PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/./x", "/sleep",
)  # fmt: skip
FAULTS = ("up down", "up slow", "up back", "blind", "redis", "redis", "clock", "kill", "reload", "slots")


class Chunks:
    """A client's connection as the HTTP protocol gives it to the application: pieces of an answer need no task."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.left: Any = None

    def takes_chunks(self) -> bool:
        return self._client.starts == 1 and not self._client.ended and self._client.world.rng_of_clients.random() < 0.8

    def write_chunk(self, data: bytes) -> None:
        assert data
        assert not self._client.ended, "something comes after the end"

    def abort(self) -> None:
        self._client.leave()


class Client:
    """One request to one gateway, and what came back; it may leave at any time."""

    def __init__(self, world: World, gateway: Gateway) -> None:
        rng = world.rng
        self.ended = 0
        self.starts = 0
        self.world = world
        self._left = world.loop.create_future()
        path = rng.choice(PATHS) if rng.random() < 0.3 else "/v1/completions"
        name = rng.choice(NAMES)
        body: Any = {"model": "tiny", "prompt": "a " * rng.randint(1, 60), "max_tokens": rng.choice((1, 20, 60))}
        body["stream"] = rng.random() < 0.6
        odd = rng.random() if rng.random() < 0.25 else 1.0
        if odd < 0.2:
            body["max_tokens"] = rng.choice((2**31, -1, 1e300, "many", None, True))
        elif odd < 0.35:
            body["n"] = rng.choice((3, 100, -1, "x"))
        elif odd < 0.45:
            body["prompt"] = rng.choice(([], [[1, 2], [3]], "x" * 20_000, {"a": 1}, None))
        data = json.dumps(body).encode()
        if 0.45 <= odd < 0.6:
            data = rng.choice((b"", b"{", b"[" * 3000, b'{"model":"tiny","model":"x"}', b"\xff\xfe", data[:-3]))
        key = secret(name) if odd > 0.05 else "tp-wrong"
        self._body = [data] if rng.random() < 0.9 else [data[:10], data[10:]]
        self._slow = rng.random() < 0.05
        headers = [(b"host", b"x"), (b"authorization", b"Bearer " + key.encode())]
        headers.append((b"content-type", b"application/json"))
        self.scope = {
            "type": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "method": "POST",
            "http_version": "1.1", "scheme": "http", "root_path": "", "client": ("10.0.0.1", 1), "server": ("x", 80),
            "headers": headers, "extensions": {},
        }  # fmt: skip
        self._chunks = None
        if world.rng_of_clients.random() < 0.5:
            self._chunks = self.scope["extensions"]["tokenpools"] = Chunks(self)  # type: ignore[index]
        if path == "/v1/models":
            self.scope["method"], self._body = "GET", [b""]
        self.task = world.loop.create_task(self._ask(gateway))
        if rng.random() < 0.25:
            world.loop.call_later(rng.choice((0.0, 0.001, 0.02, 0.3, 1.0)), self.leave)

    def leave(self) -> None:
        if not self._left.done():
            self._left.set_result(None)
            if self._chunks is not None and self._chunks.left is not None:
                self._chunks.left()

    async def _ask(self, gateway: Gateway) -> None:
        await gateway.service.app(self.scope, self._receive, self._send)  # type: ignore[arg-type]

    async def _receive(self) -> dict[str, Any]:
        if self._slow:
            await asyncio.sleep(0.5)
        if self._body and not self._left.done():
            data = self._body.pop(0)
            return {"type": "http.request", "body": data, "more_body": bool(self._body)}
        await asyncio.shield(self._left)
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await asyncio.sleep(0)
        if message["type"] == "http.response.start":
            self.starts += 1
            assert self.starts == 1, "an answer begins twice"
            assert 200 <= message["status"] < 600
        elif not message.get("more_body"):
            self.ended += 1
            assert self.ended == 1, "an answer ends twice"


class Gateway:
    """One gateway process."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.service: Service = None  # type: ignore[assignment]
        self.log: Any = None
        self.checker = Checker(every_events=40)
        self.clients: list[Client] = []

    async def open(self) -> Gateway:
        world = self.world
        settings, read = world.settings, world.config
        loop: Any = world.loop
        if settings.state is not None:
            client = MemoryClient(world.redis, settings.state, self.name)
            given: dict[str, Any] = {
                "core_of": lambda head, leaving: core_of_head(head, "x", leaving), "secret": KEY, "loop": loop,
                "config": f"c{world.version}", "name": self.name,
            }  # fmt: skip
            if settings.state.share == "leases":
                self.log = LeasedLog(settings.state, books=client, **given)
            else:
                self.log = SharedLog(settings.state, client=client, head=recorded_head(read), **given)
        _CLIENT.set(world.upstreams.client(self.name))
        self.service = await Service.open(settings, make_core(read), log=self.log, recorders=[self.check])
        return self

    def check(self, now_s: float, event: Any, said: Any) -> None:
        if self.service is not None:
            self.checker.peers = getattr(self.log, "peers", None)
            self.checker.after(self.service.gateway.core, event, now_s, said)

    def kill(self) -> None:
        """Be gone at once: no word to anybody."""
        self.service.gateway.stop()
        self.service.in_flight.end()
        for task in self.service.upstreams._tasks.values():
            task.cancel()
        for name in ("_task", "_saving", "_looking"):
            task = getattr(self.log, name, None)
            if task is not None:
                task.cancel()
        if getattr(self.log, "_expiry", None) is not None:
            self.log._expiry.cancel()
        for client in self.clients:
            client.task.cancel()
        self.world.redis.cut_off.add(self.name)

    def change_over(self) -> None:
        """Reload: another policy or other entitlements' numbers."""
        world = self.world
        world.written = {**world.written, "policy": world.rng.choice(world.policies)}
        world.config = parse_config(world.written, "x")
        head = recorded_head(world.config)
        gateway = self.service.gateway
        if self.log is None:
            from sim.live.gateway.changeover import changeover

            gateway.core, said = changeover(
                lambda head, leaving: core_of_head(head, "x", leaving), head, gateway.core, gateway.now_s()
            )
            gateway.carry_out(said)
        else:
            world.version += 1
            world.later(self.log.configure(f"c{world.version}", head))


class World:
    """One seed."""

    def __init__(self, seed: int) -> None:
        random.seed(seed)
        self.rng = rng = random.Random(seed)
        self.rng_of_clients = random.Random(-1 - seed)
        self.loop = VirtualLoop()
        self.redis = MemoryRedis(self.loop, rng)
        self.upstreams = Upstreams(self.loop, rng, rng.randint(1, 3))
        self.upstreams.lies = rng.choice((0.0, 0.2, 0.6))
        self.kind = rng.choice(("alone", "replicated", "leases"))
        self.policies = POLICIES
        state = None
        if self.kind != "alone":
            share = self.kind
            state = {"url": "redis://x", "pool": "t", "ttl_s": 1.0, "timeout_s": 0.25, "share": share, "every_s": 0.3,
                     "snapshot_every": rng.choice((50, 20_000))}  # fmt: skip
        self.written: dict[str, Any] = {
            "version": 1,
            "pool": {
                "profile": PROFILE, "entitlements": list(ENTITLEMENTS), "on_failure": rng.choice(("fail", "retry")),
            },
            "policy": rng.choice(POLICIES),
            "upstreams": [
                {"name": f"u{n}", "base_url": f"http://127.0.0.1:{9000 + n}"} for n in range(self.upstreams.number)
            ],
            "keys": [
                {"name": f"key-{name}", "entitlement": name, "sha256": hashed(secret(name)).hex()} for name in NAMES
            ],
            "timeouts": {"first_byte_s": 2.0, "idle_s": 1.0, "total_s": 6.0, "held_s": 1.5, "body_s": 1.0,
                         "client_stall_s": 1.0, "health_every_s": 0.5, "health_s": 0.5},
            **({} if state is None else {"state": state}),
        }  # fmt: skip
        self.config = parse_config(self.written, "x")
        self.settings = make_settings(self.config)
        self.gateways: list[Gateway] = []
        self.tasks: list[Any] = []
        self.started = self.version = 0
        self.dead_events = 0

    def later(self, what: Any) -> None:
        async def guarded() -> None:
            try:
                await what
            except Exception as error:  # a configuration that Redis is too far away for
                if type(error).__name__ != "RunError":
                    raise

        self.tasks.append(self.loop.create_task(guarded()))

    def begin(self) -> None:
        async def opened() -> None:
            self.started += 1
            self.gateways.append(await Gateway(self, f"g{self.started}").open())

        self.tasks.append(self.loop.create_task(opened()))

    def arrive(self) -> None:
        if self.loop.time() > LOAD_S:
            return
        if self.gateways:
            gateway = self.rng.choice(self.gateways)
            gateway.clients.append(Client(self, gateway))
        self.loop.call_later(self.rng.expovariate(self.rate_per_s), self.arrive)

    def fault(self) -> None:
        """Let something happen."""
        rng, redis, up = self.rng, self.redis, self.upstreams
        if self.loop.time() > LOAD_S:
            return
        what = rng.choice(FAULTS)
        which = rng.randrange(up.number)
        if what == "up down":
            up.down.add(which)
        elif what == "up slow":
            up.slow.add(which)
        elif what == "up back":
            up.down.clear()
            up.slow.clear()
        elif what == "blind" and self.gateways:
            up.blind.add((rng.choice(self.gateways).name, which))
        elif what == "redis":
            self._redis_fault(rng.choice(("pause", "kill", "cut", "flush", "resume", "slow", "drop")))
        elif what == "clock":
            redis.clock_off_us += rng.choice((-3_600_000_000, -1000, 1000, 500_000, 10_000_000))
        elif what == "kill" and len(self.gateways) > 1:
            gateway = self.gateways.pop(rng.randrange(len(self.gateways)))
            gateway.kill()
            self.dead_events += gateway.checker.events
            self.begin()
        elif what == "reload" and self.gateways:
            rng.choice(self.gateways).change_over()
        elif what == "slots" and self.gateways:
            rng.choice(self.gateways).service.upstreams.set_slots(rng.choice((None, 1, 5, 8)))
        self.loop.call_later(rng.expovariate(3.0), self.fault)

    def _redis_fault(self, what: str) -> None:
        rng, redis = self.rng, self.redis
        if what == "pause":
            redis.pause()
            self.loop.call_later(rng.uniform(0.05, 2.0), redis.resume)
        elif what == "kill":
            redis.kill()
            self.loop.call_later(rng.uniform(0.0, 2.0), redis.start)
        elif what == "cut" and self.gateways:
            name = rng.choice(self.gateways).name
            redis.cut_off.add(name)
            self.loop.call_later(rng.uniform(0.1, 3.0), redis.cut_off.discard, name)
        elif what == "flush":
            redis.store.keys.clear()
        elif what == "resume":
            redis.resume()
        elif what == "slow":
            redis.slow_s = rng.choice((0.0005, 0.02, 0.1))
        elif what == "drop" and redis.store.keys:
            redis.store.keys.pop(rng.choice(sorted(redis.store.keys)))

    def heal(self) -> None:
        self.upstreams.down.clear()
        self.upstreams.slow.clear()
        self.upstreams.blind.clear()
        self.redis.start()
        self.redis.resume()
        self.redis.cut_off = {name for name in self.redis.cut_off if name not in {one.name for one in self.gateways}}
        self.redis.slow_s = 0.0005
        for gateway in self.gateways:
            gateway.service.upstreams.set_slots(None)
        # A reload that Redis was too far away for is sent again, to all.
        self.loop.call_later(2.5, self._reload_all)

    def _reload_all(self) -> None:
        for gateway in self.gateways:
            if gateway.log is not None:
                self.later(gateway.log.configure(f"c{self.version}", recorded_head(self.config)))

    def run(self) -> int:
        """Live through it, and check what is left; return how many events were checked."""
        self.rate_per_s = self.rng.choice((10.0, 30.0))
        for _ in range(1 if self.kind == "alone" else self.rng.randint(2, 3)):
            self.begin()
        self.loop.call_later(0.1, self.arrive)
        self.loop.call_later(0.5, self.fault)
        self.loop.run(LOAD_S + 0.1)
        self.loop.within(self.heal)
        self.loop.run(LOAD_S + REST_S)
        self.check()
        return self.dead_events + sum(gateway.checker.events for gateway in self.gateways)

    def check(self) -> None:
        for task in self.tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                raise task.exception()
        for gateway in self.gateways:
            for client in gateway.clients:
                assert client.task.done(), f"a request of {gateway.name} has no end"
                if not client.task.cancelled() and client.task.exception() is not None:
                    raise client.task.exception()  # type: ignore[misc]
            service, core = gateway.service, gateway.service.gateway.core
            assert not len(service.in_flight)
            assert not service.gateway.requests, service.gateway.requests
            if gateway.log is not None:
                assert gateway.log.status().reachable, gateway.log.status()
            gateway.checker.peers = getattr(gateway.log, "peers", None)
            gateway.checker.check_all(core, service.gateway.now_s())
            assert not core.pool.in_flight, (self.kind, list(core.pool.in_flight))
            assert not core.held, list(core.held)


_CLIENT: ContextVar[Any] = ContextVar("client")
"""What the gateway that a task opens talks to its upstreams through."""


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what goes wrong on purpose is logged, and gateways talk to upstreams in memory.

    That holds for a world's whole life: a task that is killed while it opens a gateway would never take a patch back.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with mock.patch.object(upstreams, "HttpClient", side_effect=lambda *_, **__: _CLIENT.get()):
            yield
    finally:
        logging.disable(before)


def run_live(seed: int) -> int:
    """Run one world and return how many events were checked.

    Raises
    ------
    Exception : whatever broke; the seed is all that is needed to see it again.
    """
    chance = random.Random(-seed)

    def token_hex(size: int = 8) -> str:
        return f"{chance.getrandbits(8 * size):0{2 * size}x}"

    with quiet(), mock.patch.object(secrets, "token_hex", token_hex):
        world = World(seed)
        try:
            return world.run()
        finally:
            world.loop.forget()
