"""What sharing the state costs: time from an arrival to its verdict, alone and through Redis, and the work per event.

    python benchmarks/shared_state.py [--seconds 10] [--rate 200] [--gateways 2]

Needs redis-server; it gets one of its own on a socket. Requests arrive at random at each gateway and take 0.5 s at
replicas that are timers. All gateways run in this process, so on one core each event is paid for once per gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import uvloop  # noqa: E402
from live.redis_server import BINARY, RedisServer  # noqa: E402

from policies import snapshot  # noqa: E402
from policies.api import (  # noqa: E402
    Arrived,
    EntitlementSpec,
    Event,
    Finished,
    FirstToken,
    Forward,
    PoolCapacity,
    Progress,
    RequestView,
    Resources,
    ServiceClass,
)
from policies.core import GatewayCore  # noqa: E402
from policies.registry import POLICIES, ROUTERS  # noqa: E402
from policies.token_pool.params import TokenPool  # noqa: E402
from sim.live.gateway.core_driver import AsyncGateway  # noqa: E402
from sim.live.gateway.settings import SharedState  # noqa: E402
from sim.live.shared_state.replicated_core import SharedLog  # noqa: E402

SPECS = [
    EntitlementSpec(
        name=f"e{number}", tenant="t", service_class=ServiceClass.ELASTIC, baseline=Resources(1e6, slots=10_000)
    )
    for number in range(4)
]


def core() -> GatewayCore:
    """Return a pool that lets everything in."""
    policy = POLICIES["token-pool"].build(
        TokenPool(tick_s=1.0, max_request_tokens=1000), entitlements=SPECS, kv_bytes_per_token=None,
        chance=random.Random(1),
    )  # fmt: skip
    return GatewayCore(
        entitlements=SPECS, capacity=PoolCapacity(2, 40_000, 4e6), replica_ids=[0, 1], policy=policy,
        router=ROUTERS["round-robin"].build(None),
    )


class Timers:
    """Replicas that need 0.5 s, and note when a request came to them."""

    def __init__(self) -> None:
        self.came_s: dict[str, float] = {}

    def start(self, request: RequestView, forward: Forward, emit: Callable[[Event], None]) -> None:  # noqa: ARG002
        """See `sim.live.gateway.core_driver.Upstream`."""
        name = request.request_id
        self.came_s[name] = time.perf_counter()
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, emit, FirstToken(name))
        loop.call_later(0.5, emit, Finished(name, 20))

    def abort(self, request_id: str) -> None:
        """Nothing is evicted here."""

    def progress(self) -> Iterable[Progress]:
        """Nothing is reported before the end."""
        return ()


async def run(url: str | None, gateways: int, rate_per_s: float, seconds: float) -> None:
    """Measure one arrangement and print it."""
    loop, made = asyncio.get_running_loop(), []
    logs = []
    for number in range(gateways):
        log = None if url is None else SharedLog(
            SharedState(url=url, pool=f"bench{gateways}"), loop=loop, config="c", name=f"g{number}"
        )
        timers = Timers()
        gateway = AsyncGateway(core(), timers, loop=loop, log=log)
        gateway.start()
        if log is not None:
            await log.joined(5)
            logs.append(log)
        made.append((gateway, timers))
    asked_s: dict[str, float] = {}

    async def ask(number: int) -> None:
        gateway, rng, count = made[number][0], random.Random(number), 0
        due_s = loop.time()
        while due_s < begun_s + seconds:
            due_s += rng.expovariate(rate_per_s)
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            count += 1
            name = f"g{number}/{count}"
            asked_s[name] = time.perf_counter()
            gateway.send(Arrived(RequestView(name, f"e{count % 4}", "t", 50, 50)))

    begun_s, cpu_s = loop.time(), time.process_time()
    await asyncio.gather(*(ask(number) for number in range(gateways)))
    await asyncio.sleep(0.8)
    cpu_s = time.process_time() - cpu_s
    waits_ms = sorted(
        1e3 * (at_s - asked_s[name]) for _, timers in made for name, at_s in timers.came_s.items()
    )
    label = "alone" if url is None else f"Redis, {gateways} gateways"
    events = 3 * len(asked_s)
    print(
        f"{label:20} {len(waits_ms)} requests, P50 {waits_ms[len(waits_ms) // 2]:.3f} ms, "
        f"P99 {waits_ms[int(len(waits_ms) * 0.99)]:.3f} ms, "
        f"CPU {1e6 * cpu_s / events / gateways:.0f} us per event and gateway"
    )
    for log in logs:
        await log.close()


def size_and_time_of_a_snapshot(in_flight: int) -> None:
    """Print what leaving a snapshot costs."""
    one = core()
    one.start(0.0)
    for number in range(in_flight):
        one.handle(Arrived(RequestView(f"req-0123abcd-{number:x}", f"e{number % 4}", "t", 50, 50)), 0.0)
    begun_s = time.process_time()
    text = json.dumps(snapshot.take(one))
    cpu_ms = 1e3 * (time.process_time() - begun_s)
    print(f"snapshot, {in_flight:6} in flight: {cpu_ms:6.1f} ms, {len(text) / 1e3:7.0f} kB")


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second at each gateway")
    parser.add_argument("--gateways", type=int, default=2)
    asked = parser.parse_args()
    for in_flight in (0, 100, 1000, 10_000):
        size_and_time_of_a_snapshot(in_flight)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(None, 1, asked.rate, asked.seconds))
        if BINARY is None:
            sys.exit("no redis-server here")
        with tempfile.TemporaryDirectory() as folder:
            server = RedisServer(Path(folder)).start()
            try:
                for gateways in sorted({1, asked.gateways}):
                    runner.run(run(server.url, gateways, asked.rate, asked.seconds))
            finally:
                server.kill()


if __name__ == "__main__":
    main()
