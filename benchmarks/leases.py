"""What leases cost and how far limits are passed: CPU for a request over 1 to 8 processes, added wait, measured excess.

    python benchmarks/leases.py [--seconds 8] [--rate 600 [--each]] [--processes 1,2,4,8] [--share leases]
    python benchmarks/leases.py --faults

Needs redis-server; it gets one of its own on a socket. The rate is that of all processes together, so that CPU for a
request, summed over processes, shows what more processes cost; with ``--each`` it is that of each, as where gateways
are added for more requests. ``--share none`` is the control: as many gateways that share nothing, which tells what more
processes cost on this machine in any case. Requests take 0.5 s at replicas that are timers. With ``--faults`` four
processes ask twice what limits allow while one is killed, another begins and Redis is paused, and the most that was in
flight at one time, by the machine's clock, is held against the limits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import uvloop  # noqa: E402
from live.shared_state.redis_server import BINARY, RedisServer  # noqa: E402

from policies.api import (  # noqa: E402
    Arrived,
    EntitlementSpec,
    Event,
    Finished,
    FirstToken,
    Forward,
    PoolCapacity,
    Progress,
    Refuse,
    RequestView,
    Resources,
    ServiceClass,
)
from policies.core import GatewayCore  # noqa: E402
from policies.registry import POLICIES, ROUTERS  # noqa: E402
from policies.token_pool.params import TokenPool  # noqa: E402
from sim.live.gateway.core_driver import AsyncGateway, LocalLog  # noqa: E402
from sim.live.gateway.settings import SharedState  # noqa: E402
from sim.live.shared_state.leased import LeasedLog  # noqa: E402
from sim.live.shared_state.replicated_core import SharedLog  # noqa: E402

TTL_S, EVERY_S = 2.0, 0.5
ENTITLEMENTS = 4


def core(slots: int) -> GatewayCore:
    """Return a pool whose entitlements may each have a quarter of its slots in flight."""
    specs = [
        EntitlementSpec(
            name=f"e{number}", tenant="t", service_class=ServiceClass.ELASTIC, limit=Resources(slots=slots // 4)
        )
        for number in range(ENTITLEMENTS)
    ]
    policy = POLICIES["token-pool"].build(
        TokenPool(tick_s=1.0, max_request_tokens=1000), entitlements=specs, kv_bytes_per_token=None,
        chance=random.Random(1),
    )  # fmt: skip
    return GatewayCore(
        entitlements=specs, capacity=PoolCapacity(2, slots, 4e6), replica_ids=[0, 1], policy=policy,
        router=ROUTERS["round-robin"].build(None),
    )


class Timers:
    """Replicas that need half a second, and note when a request came to them and when it ended."""

    def __init__(self) -> None:
        self.came_s: dict[str, float] = {}
        self.changes: list[tuple[float, int]] = []

    def start(self, request: RequestView, forward: Forward, emit: Callable[[Event], None]) -> None:  # noqa: ARG002
        """See `sim.live.gateway.core_driver.Upstream`."""
        name = request.request_id
        self.came_s[name] = time.perf_counter()
        os.write(1, f"+ {time.monotonic():.6f} {request.entitlement}\n".encode())
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, emit, FirstToken(name))

        def end() -> None:
            os.write(1, f"- {time.monotonic():.6f} {request.entitlement}\n".encode())
            emit(Finished(name, 20))

        loop.call_later(0.5, end)

    def abort(self, request_id: str) -> None:
        """Nothing is evicted here."""

    def progress(self) -> Iterable[Progress]:
        """Nothing is reported before the end."""
        return ()


async def work(asked: argparse.Namespace) -> None:
    """Be one gateway process, and say on stdout what it did and cost."""
    loop = asyncio.get_running_loop()
    settings = SharedState(
        url=asked.url, pool="bench", share=asked.share, every_s=EVERY_S, ttl_s=TTL_S, timeout_s=0.25
    )
    made: type[SharedLog | LeasedLog] = LeasedLog if asked.share == "leases" else SharedLog
    log = None if asked.share == "none" else made(settings, loop=loop, config="c", name=asked.name)
    timers = Timers()
    refused: Counter[str] = Counter()
    gateway = AsyncGateway(
        core(asked.slots), timers, loop=loop, log=LocalLog(loop) if log is None else log,
        answer=lambda end: refused.update([end.reason.value if isinstance(end, Refuse) else type(end).__name__]),
    )  # fmt: skip
    gateway.start()
    if log is not None:
        await log.joined(30)
    os.write(1, b"joined\n")
    await asyncio.sleep(max(0.0, asked.at_s - time.monotonic()))
    asked_s: dict[str, float] = {}
    rng, count = random.Random(asked.name), 0
    used = resource.getrusage(resource.RUSAGE_SELF)
    due_s = loop.time()
    until_s = due_s + asked.seconds
    while due_s < until_s:
        due_s += rng.expovariate(asked.rate)
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        count += 1
        name = f"{asked.name}/{count}"
        asked_s[name] = time.perf_counter()
        gateway.send(Arrived(RequestView(name, f"e{count % ENTITLEMENTS}", "t", 50, 50)))
    await asyncio.sleep(0.7)
    after = resource.getrusage(resource.RUSAGE_SELF)
    waits = sorted(1e3 * (at_s - asked_s[name]) for name, at_s in timers.came_s.items())
    cpu_s = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    said = {"cpu_s": cpu_s, "asked": count, "waits_ms": waits, "refused": refused}
    os.write(1, ("= " + json.dumps(said) + "\n").encode())
    if log is not None:
        await log.close()


def begin(folder: Path, name: str, url: str, rate: float, at_s: float, asked: argparse.Namespace) -> Any:
    """Start one gateway process."""
    out = (folder / f"{name}.out").open("wb")
    command = [
        sys.executable, __file__, "--work", "--name", name, "--url", url, "--rate", str(rate), "--seconds",
        str(asked.seconds), "--share", asked.share, "--slots", str(asked.slots), "--at-s", str(at_s),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)


def lines(folder: Path, name: str) -> list[str]:
    """Return what a process said, but for a line that it was killed in."""
    return (folder / f"{name}.out").read_text(errors="replace").split("\n")[:-1]


def wait_joined(folder: Path, names: list[str]) -> None:
    """Wait until all have joined."""
    deadline_s = time.monotonic() + 120
    while not all("joined" in lines(folder, name) for name in names):
        if time.monotonic() > deadline_s:
            sys.exit("error: not all gateways have joined within 120 s")
        time.sleep(0.1)


def measure(url: str, folder: Path, processes: int, asked: argparse.Namespace) -> float:
    """Run so many processes, print what they cost, and return CPU for a request in microseconds."""
    names = [f"n{processes}-{number}" for number in range(processes)]
    at_s = time.monotonic() + 10 + 3 * processes
    rate = asked.rate if asked.each else asked.rate / processes
    made = [begin(folder, name, url, rate, at_s, asked) for name in names]
    for process in made:
        process.wait(300)
    said = [json.loads(line[2:]) for name in names for line in lines(folder, name) if line.startswith("= ")]
    waits = sorted(wait for one in said for wait in one["waits_ms"])
    cpu_us = 1e6 * sum(one["cpu_s"] for one in said) / len(waits)
    refused = sum((Counter(one["refused"]) for one in said), Counter())
    if refused:
        told = ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
        print(f"{asked.share}, {processes} processes: refused {told}", flush=True)
    print(
        f"{asked.share}, {processes} processes: {len(waits)} of {sum(one['asked'] for one in said)} admitted, "
        f"CPU {cpu_us:.0f} us a request, summed; wait for the verdict P50 {waits[len(waits) // 2]:.3f} ms, "
        f"P99 {waits[int(len(waits) * 0.99)]:.3f} ms", flush=True,
    )  # fmt: skip
    return cpu_us


def faults(server: RedisServer, folder: Path, asked: argparse.Namespace) -> None:
    """Print the most that was in flight at one time under a kill, a newcomer and two pauses of Redis."""
    names = [f"f{number}" for number in range(4)]
    at_s = time.monotonic() + 20
    # Twice what the slots serve: each request takes half a second.
    rate = 2 * asked.slots / 0.5 / len(names)
    made = {name: begin(folder, name, server.url, rate, at_s, asked) for name in names}
    wait_joined(folder, names)
    time.sleep(max(0.0, at_s - time.monotonic()) + asked.seconds / 5)
    made["f0"].send_signal(signal.SIGKILL)
    died_s = time.monotonic()
    made["f4"] = begin(folder, "f4", server.url, rate, 0.0, asked)
    time.sleep(asked.seconds / 5)
    for pause_s in (TTL_S / 2, TTL_S * 1.5):
        server.pause()
        time.sleep(pause_s)
        server.resume()
        time.sleep(asked.seconds / 10)
    for process in made.values():
        process.wait(300)
    changes: dict[str, list[tuple[float, int]]] = {"pool": []}
    lost: Counter[str] = Counter()
    for name in made:
        running: Counter[str] = Counter()
        for line in lines(folder, name):
            if line[:2] in ("+ ", "- "):
                sign, at, entitlement = line.split(" ")
                step = (float(at), 1 if sign == "+" else -1)
                running[entitlement] += step[1]
                changes["pool"].append(step)
                changes.setdefault(entitlement, []).append(step)
        if name == "f0":  # its requests ended with it
            lost = running
    for what, steps in sorted(changes.items()):
        steps += [(died_s, -1)] * (lost.total() if what == "pool" else lost[what])
        most = max(accumulate(change for _, change in sorted(steps)), default=0)
        limit = asked.slots if what == "pool" else asked.slots // 4
        print(f"faults: most in flight of {what}: {most}, limit {limit}", flush=True)
        if most > limit:
            print(f"faults: {what} passes its limit by {most - limit}")


def main() -> None:
    """Measure all, or be one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=600.0, help="requests per second, of all processes together")
    parser.add_argument("--each", action="store_true", help="the rate is that of each process, not of all")
    parser.add_argument("--processes", default="1,2,4,8")
    parser.add_argument("--share", choices=("leases", "replicated", "none"), default="leases")
    parser.add_argument("--slots", type=int, default=4000)
    parser.add_argument("--faults", action="store_true")
    for hidden in ("--work", "--name", "--url", "--at-s"):
        parser.add_argument(hidden, help=argparse.SUPPRESS, **({"action": "store_true"} if hidden == "--work" else {}))
    asked = parser.parse_args()
    if asked.work:
        asked.at_s = float(asked.at_s)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work(asked))
        return
    if BINARY is None:
        sys.exit("error: no redis-server here; install it")
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder)).start()
        try:
            if asked.faults:
                faults(server, Path(folder), asked)
            else:
                found = [measure(server.url, Path(folder), int(each), asked) for each in asked.processes.split(",")]
                print(f"most against fewest processes: {100 * (found[-1] / found[0] - 1):+.0f} % CPU a request")
        finally:
            server.kill()


if __name__ == "__main__":
    main()
