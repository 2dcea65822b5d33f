"""Many streams that open at one instant: each is served or told when to come back, and none ends by a timeout.

    python benchmarks/streams_at_once.py [--streams 10000] [--tokens 20] [--gap-ms 100]

The real gateway process stands before the upstream of benchmarks/gateway_load; every client connects, asks and reads to
the end, all at once, from this process. Twice: under ``none``, which lets in whom the gateway has descriptors for, and
under ``cap`` with a pool of 2,000 slots and a queue of 100, which sends the rest away. Counts what became of each, the
longest wait for a first byte, CPU and memory of the gateway. Raises the limit of open files where it may. Exits 1 if a
stream got neither, or if fewer were served than the pool has slots.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import psutil  # noqa: E402
import uvloop  # noqa: E402
import yaml  # noqa: E402
from live.gate import PROFILE, config, free_port, secret  # noqa: E402

from benchmarks.gateway_load.client import request  # noqa: E402

LIMIT_S = 300.0
SLOTS = 2000
# By itself ``cap`` lets in 100 for each replica, however many slots it has, and lets 100 wait.
POLICIES: dict[str, Any] = {"none": "none", "cap": {"kind": "cap", "max_in_flight_per_replica": None}}


async def one(number: int, port: int, asked: bytes, waits_s: list[float]) -> str:
    """Be one client, and return what became of it."""
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT_S):
            address = (f"127.0.0.{2 + number % 4}", 0)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=address)
            try:
                writer.write(asked)
                head = await reader.readuntil(b"\r\n\r\n")
                waits_s.append(time.monotonic() - began_s)
                status = int(head[9:12])
                if status == 200:
                    return "served" if (await reader.readuntil(b"data: [DONE]\n\n")) else "cut off"
                told = b"retry-after" in head.lower()
                what = f"{status} {(await code_of(reader))}".strip()
                return f"told when to come back ({what})" if told and status in (429, 503) else f"answered {what}"
            finally:
                writer.close()
    except TimeoutError:
        return "timed out"
    except (OSError, asyncio.IncompleteReadError) as error:
        return f"cut off ({type(error).__name__})"


async def code_of(reader: asyncio.StreamReader) -> str:
    """Return the code of the error that is still to come; empty where there is none."""
    found = re.search(rb'"code": ?"(\w+)"', await reader.read(4096))
    return found[1].decode() if found else ""


async def all_at_once(port: int, asked: argparse.Namespace) -> tuple[Counter[str], list[float]]:
    """Open all streams and wait for their ends."""
    sent = request(port, secret("chat"), tokens=asked.tokens, gap_ms=asked.gap_ms, stream=True)
    waits_s: list[float] = []
    streams = (one(number, port, sent, waits_s) for number in range(asked.streams))
    return Counter(await asyncio.gather(*streams)), waits_s


def until_ready(port: int) -> None:
    """Wait for the gateway."""
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return
        time.sleep(0.1)
    sys.exit("error: the gateway did not become ready")


def measure(policy: str, asked: argparse.Namespace, folder: Path) -> bool:
    """Run once, print what became of the streams, and return whether all got what they should."""
    up, port = free_port(), free_port()
    profile = {**PROFILE, "max_num_seqs": SLOTS, "kv_blocks": 400_000}
    written: dict[str, Any] = config(
        [], policy=POLICIES[policy], listen={"port": port}, pool={"profile": profile},
        limits=dict.fromkeys(("connections", "connections_per_address", "requests_per_key"), 2 * asked.streams),
        entitlements=[{"name": "chat", "tenant": "t", "service_class": "spot"}],
    )  # fmt: skip
    written["upstreams"] = [{"name": "up0", "base_url": f"http://127.0.0.1:{up}"}]
    file = folder / f"{policy}.yaml"
    file.write_text(yaml.safe_dump(written))
    with (folder / f"{policy}.log").open("wb") as log:
        upstream = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gateway_load.upstream", str(up)], cwd=ROOT, stdout=log, stderr=log
        )
        gateway = subprocess.Popen([sys.executable, "-m", "tokenpools", "serve", str(file)], cwd=ROOT, stdout=log,
                                   stderr=log)  # fmt: skip
        try:
            until_ready(port)
            process = psutil.Process(gateway.pid)
            before = process.cpu_times()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                found, waits_s = runner.run(all_at_once(port, asked))
            after = process.cpu_times()
            cpu_s = after.user + after.system - before.user - before.system
            print(f"{policy}: " + ", ".join(f"{count} {what}" for what, count in found.most_common()), flush=True)
            print(f"{policy}: longest wait for a first byte {max(waits_s, default=0.0):.1f} s; gateway: {cpu_s:.1f} "
                  f"CPU-s, {process.memory_info().rss / 2**20:.0f} MiB", flush=True)  # fmt: skip
        finally:
            for each in (gateway, upstream):
                each.send_signal(signal.SIGTERM)
                each.wait(60)
    enough = min(SLOTS, asked.streams)
    if found["served"] < enough:
        print(f"{policy}: {found['served']} were served, and there are slots for {enough}", flush=True)
        return False
    return all(what == "served" or what.startswith("told") for what in found)


def main() -> None:
    """Run under both policies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--gap-ms", type=int, default=100)
    asked = parser.parse_args()
    wanted = asked.streams + 1000
    with contextlib.suppress(ValueError, OSError):
        hard = max(3 * wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed < wanted:
        sys.exit(f"error: {allowed} open files are allowed, {wanted} are needed; raise ulimit -n, or ask for fewer")
    with tempfile.TemporaryDirectory() as name:
        good = [measure(policy, asked, Path(name)) for policy in POLICIES]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
