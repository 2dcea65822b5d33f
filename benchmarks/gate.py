"""What an admission costs a server that has the library's gate in it, in CPU seconds.

    python benchmarks/gate.py [--rounds 7] [--admissions 20000] [--most-us 30]

Each round runs every variant once, in turn, so that what else the machine does falls on all of them; the figure is the
median over rounds of CPU seconds (of the process, all threads) per admission. ``admit`` is from asking to the lease,
``life`` an admission with its first token, one progress and its settlement. ``core`` is the same four events told to
the core alone: the rest is the gate's. Target (issue 18): an admission in less than 30 us. Exit code 1 if missed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from policies.api import Arrived, Finished, FirstToken, Progress, RequestView
from sim.adapters.admission.config import gate_config
from tokenpools import Gate, SyncGate

CONFIG: dict[str, Any] = {
    "version": 1, "policy": "token-pool",
    "pool": {
        "profile": {"step_time": {"kind": "linear", "base_s": 0.01}, "max_num_seqs": 256,
                    "max_num_batched_tokens": 8192, "kv_blocks": 100_000, "block_tokens": 16},
        "entitlements": [
            {"name": "chat", "service_class": "guaranteed", "ttft_slo_s": 1.0, "baseline": {"slots": 64}},
            *({"name": f"t{i}", "service_class": "spot"} for i in range(8)),
        ],
    },
}  # fmt: skip
USAGE = {"prompt_tokens": 100, "completion_tokens": 50}


def core(count: int) -> tuple[float, float]:
    """Return the CPU seconds of an arrival, and of a life, told to the core alone."""
    alone = gate_config(CONFIG).core()
    alone.start(0.0)
    spent, begun = 0.0, time.process_time()
    for first in range(0, count, 50):
        now_s, names = first * 1e-4, [f"r{number}" for number in range(first, first + 50)]
        before = time.process_time()
        for name in names:
            alone.handle(Arrived(RequestView(name, "chat", "chat", 100, 200)), now_s)
        spent += time.process_time() - before
        for name in names:
            alone.handle(FirstToken(name), now_s)
            alone.handle(Progress(name, 20), now_s)
            alone.handle(Finished(name, 50, 0, 100), now_s)
    return spent / count, (time.process_time() - begun) / count


def on_a_loop(count: int) -> tuple[float, float]:
    """Return the CPU seconds of an admission, and of a life, at `Gate`."""

    async def go() -> tuple[float, float]:
        async with Gate(CONFIG) as gate:
            begun = time.process_time()
            for _ in range(count):
                async with gate.admit(tenant="chat", prompt_tokens=100, max_tokens=200) as lease:
                    lease.first_token()
                    lease.progress(20)
                    lease.finish(USAGE)
            life = (time.process_time() - begun) / count
            leases = []
            spent = 0.0
            for _ in range(count // 50):
                begun = time.process_time()
                leases = [await gate.admit(tenant="chat", prompt_tokens=100, max_tokens=200) for _ in range(50)]
                spent += time.process_time() - begun
                for lease in leases:
                    lease.finish(USAGE)
            return spent / (count // 50 * 50), life

    return asyncio.run(go())


def among_threads(count: int) -> tuple[float, float]:
    """Return the CPU seconds of an admission, and of a life, at `SyncGate`."""
    with SyncGate(CONFIG) as gate:
        begun = time.process_time()
        for _ in range(count):
            with gate.admit(tenant="chat", prompt_tokens=100, max_tokens=200) as lease:
                lease.first_token()
                lease.progress(20)
                lease.finish(USAGE)
        life = (time.process_time() - begun) / count
        spent = 0.0
        for _ in range(count // 50):
            begun = time.process_time()
            leases = [gate.admit(tenant="chat", prompt_tokens=100, max_tokens=200) for _ in range(50)]
            spent += time.process_time() - begun
            for lease in leases:
                lease.finish(USAGE)
        return spent / (count // 50 * 50), life


VARIANTS: dict[str, Callable[[int], tuple[float, float]]] = {
    "core": core, "Gate": on_a_loop, "SyncGate": among_threads,
}  # fmt: skip


def main() -> int:
    """Measure, print, and compare with the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--admissions", type=int, default=20_000)
    parser.add_argument("--most-us", type=float, default=30.0)
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for _ in range(given.rounds):
        for name, measure in VARIANTS.items():
            found[name].append(measure(given.admissions))
    missed = False
    for name, rounds in found.items():
        admit_us, life_us = (1e6 * statistics.median(one) for one in zip(*rounds, strict=True))
        print(f"{name:9} {admit_us:6.1f} us an admission, {life_us:6.1f} us a life")
        missed |= name != "core" and admit_us > given.most_us
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
