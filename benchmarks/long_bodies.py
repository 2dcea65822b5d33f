"""How long the gateway's loop stands still while it reads long bodies: in a thread, and in the process that reads them.

    python benchmarks/long_bodies.py [--times 3]

Each body has 8 MB: token ids, empty lists, ones, text. The loop looks at its clock each millisecond; the longest time
between two looks is what a stream of another client would wait. Beside it, with no body at all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from live.gate import Gate, gateway  # noqa: E402
from live.stand_in import running  # noqa: E402

from sim.live.gateway import intake  # noqa: E402


def bodies() -> dict[str, bytes]:
    """Return the bodies by name."""
    draw = random.Random(1)
    ids = [draw.randrange(150_000) for _ in range(1_150_000)]
    fields = {"model": "tiny", "max_tokens": 4}
    return {
        "token ids": json.dumps({**fields, "prompt": ids}).encode(),
        "empty lists": json.dumps({**fields, "prompt": "a", "x": [[]] * 2_000_000}).encode(),
        "ones": json.dumps({**fields, "prompt": [1] * 4_000_000}, separators=(",", ":")).encode(),
        "text": json.dumps({**fields, "prompt": "word " * 1_600_000}).encode(),
    }


async def longest_gap_s(stop: asyncio.Event) -> float:
    """Return the longest time between two looks at the clock."""
    longest, before = 0.0, time.perf_counter()
    while not stop.is_set():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    return longest


def measured(gate: Gate, body: bytes | None, times: int) -> list[float]:
    """Return the longest gaps while a body is read, in milliseconds."""
    found = []
    for _ in range(times):
        stop = gate.call(asyncio.Event)
        gap = asyncio.run_coroutine_threadsafe(longest_gap_s(stop), gate.loop)
        if body is None:
            time.sleep(0.5)
        else:
            gate.ask(body, timeout_s=60)
        gate.call(stop.set)
        found.append(1e3 * gap.result(10))
    return sorted(found)


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    apart = intake._APART_BYTES
    with running() as stand_in, gateway(stand_in) as gate:
        gate.ask(b'{"model": "tiny", "prompt": "a", "x": "' + b"a" * apart + b'"}', timeout_s=60)  # begins the process
        print(f"{'nothing':12s} {measured(gate, None, asked.times)[asked.times // 2]:7.1f} ms")
        for name, body in bodies().items():
            there = measured(gate, body, asked.times)
            intake._APART_BYTES = 2**62
            here = measured(gate, body, asked.times)
            intake._APART_BYTES = apart
            print(
                f"{name:12s} {len(body) / 2**20:4.1f} MiB: in a thread {here[len(here) // 2]:7.1f} ms (most "
                f"{here[-1]:.1f}), in the process {there[len(there) // 2]:7.1f} ms (most {there[-1]:.1f})", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
