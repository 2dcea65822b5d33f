"""What a sweep costs beside its cells: parallel efficiency, overhead per cell, resume, report.

python benchmarks/sweeps.py [--cells 200] [--requests 10000] [--jobs 2]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from sim.analysis.report import write_report
from sim.analysis.study import Study
from sim.experiments.executors import Executor
from sim.experiments.sweep import sweep
from sim.scenario.load import parse_scenario

PROFILE = {
    "step_time": {"kind": "linear", "base_s": 0.05},
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "kv_blocks": 1000,
}
RATE = "workload.batch.arrivals.rate_per_s"


def scenario(cells: int, requests: int) -> dict[str, Any]:
    """Return a sweep of two policies and five replications over the rate of one of two tenants."""
    return {
        "version": 1,
        "seed": 1,
        "horizon_s": requests / 10,
        "replications": 5,
        "pool": {
            "profile": PROFILE,
            "entitlements": [
                {"name": "chat", "service_class": "guaranteed", "baseline": {"slots": 4}, "ttft_slo_s": 0.5},
                {"name": "batch", "service_class": "spot", "ttft_slo_s": 2},
            ],
        },
        "workload": [
            {"entitlement": name, "arrivals": {"kind": "poisson", "rate_per_s": rate}, "prompt_tokens": 8,
             "output_tokens": {"kind": "lognormal", "mean": 16, "cv": 1}}
            for name, rate in (("chat", 3), ("batch", 7))
        ],
        "policies": ["none", "token-pool"],
        "vary": {"kind": "latin-hypercube", "cells": max(1, cells // 10), "over": {RATE: {"low": 2, "high": 12}}},
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    executor = Executor(jobs=asked.jobs)
    for _ in executor.map(abs, range(4 * asked.jobs)):  # workers start before the clock does
        pass
    with tempfile.TemporaryDirectory() as scratch:
        for requests in (asked.requests, 200):
            folder = Path(scratch) / str(requests)
            loaded = parse_scenario(scenario(asked.cells, requests), "benchmark")
            started_s = time.perf_counter()
            count = sweep(loaded, folder, executor=executor).count
            wall_s = time.perf_counter() - started_s
            cells = json.loads((folder / "manifest.json").read_text())["cells"]
            busy_s = sum(cell["wall_s"] for cell in cells)
            idle_s = wall_s - busy_s / asked.jobs
            attempts = sum(cell["attempts"] for cell in cells)
            print(
                f"{count.total} cells, {attempts:,} attempts: {wall_s:.1f} s with {asked.jobs} jobs, busy "
                f"{busy_s / asked.jobs / wall_s:.0%}, overhead {1000 * idle_s / count.total:.1f} ms a cell"
            )
            started_s = time.perf_counter()
            sweep(loaded, folder, executor=executor)
            print(f"  resumed in {time.perf_counter() - started_s:.2f} s")
            started_s = time.perf_counter()
            page = write_report(Study(folder), folder / "report.html")
            print(f"  report in {time.perf_counter() - started_s:.1f} s, {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
