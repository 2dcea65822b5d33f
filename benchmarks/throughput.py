"""How many simulated requests a CPU-second carries, whole process: start-up, demand, run, records.

    python benchmarks/throughput.py [--requests 100000] [--repeats 3] [--cases one-replica,sixteen-replicas,...]

Each case runs `tokenpools run` in a process of its own and charges it all its CPU time, user and system. The load is
Poisson at 80 % of what the pool delivers when it is never idle, which is measured first. Other programs on the machine
disturb CPU times too (shared caches, sibling threads), so every case runs several times and the best and the median
are both shown.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

PROFILE = {
    "step_time": {
        "kind": "linear",
        "base_s": 0.006,
        "per_prefill_token_s": 2.0e-5,
        "per_decode_sequence_s": 1.0e-4,
        "per_context_token_s": 2.0e-8,
    },
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "kv_blocks": 30000,
    "block_tokens": 16,
    "kv_bytes_per_token": 131072,
}
CASES: dict[str, dict[str, Any]] = {
    "one-replica": {"policy": "none", "target": 40_000},
    "sixteen-replicas": {"policy": "none", "replicas": 16, "target": 25_000},
    "token-pool": {"policy": {"kind": "token-pool", "mode": "paper"}, "target": 20_000},
    "output-64": {"policy": "none", "output_tokens": 64},
    "output-256": {"policy": "none", "output_tokens": 256},
    "output-1024": {"policy": "none", "output_tokens": 1024},
}


def scenario(case: dict[str, Any], requests: int, rate_per_s: float) -> dict[str, Any]:
    """Return the scenario of a case at a rate."""
    return {
        "version": 1,
        "seed": 7,
        "pool": {
            "profile": PROFILE,
            "replicas": case.get("replicas", 1),
            "entitlements": [
                {
                    "name": "a",
                    "service_class": "elastic",
                    "ttft_slo_s": 1.0,
                    "baseline": {"slots": 100, "tokens_per_s": 5000},
                }
            ],
        },
        "workload": [
            {
                "entitlement": "a",
                "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
                "requests": requests,
                "prompt_tokens": {"kind": "lognormal", "mean": 512, "cv": 0.8},
                "output_tokens": {"kind": "lognormal", "mean": case.get("output_tokens", 256), "cv": 0.9},
            }
        ],
        "policies": [case["policy"]],
    }


def measure(description: dict[str, Any]) -> dict[str, float]:
    """Run a scenario in its own process; returns its costs."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "scenario.yaml", Path(folder) / "out"
        path.write_text(yaml.safe_dump(description))
        command = [sys.executable, "-m", "sim", "run", str(path), "--out", str(out), "--no-progress"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)} failed")
        cell = json.loads((out / "manifest.json").read_text())["cells"][0]
    cpu_s = usage.ru_utime + usage.ru_stime
    unit = 1024 if sys.platform != "darwin" else 1
    return {
        "cpu_s": cpu_s,
        "requests_per_cpu_s": cell["attempts"] / cpu_s,
        "events_per_request": cell["simulated_events"] / cell["attempts"],
        "iterations_per_request": cell["iterations"] / cell["attempts"],
        "run_cpu_s": cell["cpu_s"],
        "simulated_s": cell["end_s"],
        "rss_gb": usage.ru_maxrss * unit / 1e9,
    }


def saturated_rate_per_s(case: dict[str, Any]) -> float:
    """Return the requests per second that the pool finishes when it always has work: its capacity."""
    requests = 4_000 * case.get("replicas", 1)
    flood = measure(scenario(case | {"policy": "none"}, requests, 1e4 * case.get("replicas", 1)))
    return requests / flood["simulated_s"]


def where_the_time_goes(description: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the share of the run's own time by module, from cProfile (which taxes small functions most)."""
    from sim.experiments.run import run_cell
    from sim.scenario.load import expand, parse_scenario

    profiler = cProfile.Profile()
    cell = expand(parse_scenario(description, "benchmark"))[0]
    profiler.runcall(run_cell, cell)
    time_s: Counter[str] = Counter()
    for (file, _, name), (_, _, own_s, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        parts = Path(file).parts
        here = [
            i for i, part in enumerate(parts) if part in ("sim", "policies", "workloads", "simpy", "numpy", "pyarrow")
        ]
        time_s["/".join(parts[here[-1] :]) if here else f"built in: {name}" if file == "~" else "other"] += own_s
    total_s = sum(time_s.values())
    return [(name, own_s / total_s) for name, own_s in time_s.most_common(12)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--no-profile", action="store_true")
    options = parser.parse_args()
    print(f"{options.requests:,} requests, best and median of {options.repeats}, CPU seconds of the whole process")
    head = ("case", "load/s", "best req/CPU-s", "median", "target", "CPU s", "events/req", "iterations/req", "RSS GB")
    print("".join(f"{cell:>16}" for cell in head))
    for name in options.cases.split(","):
        case = CASES[name]
        rate_per_s = 0.8 * saturated_rate_per_s(case)
        description = scenario(case, options.requests, rate_per_s)
        runs = [measure(description) for _ in range(options.repeats)]
        best = max(runs, key=lambda run: run["requests_per_cpu_s"])
        median = statistics.median(run["requests_per_cpu_s"] for run in runs)
        cells = (
            name,
            f"{rate_per_s:.1f}",
            f"{best['requests_per_cpu_s']:,.0f}",
            f"{median:,.0f}",
            f"{case['target']:,}" if "target" in case else "-",
            f"{best['cpu_s']:.2f}",
            f"{best['events_per_request']:.2f}",
            f"{best['iterations_per_request']:.1f}",
            f"{best['rss_gb']:.2f}",
        )
        print("".join(f"{cell:>16}" for cell in cells), flush=True)
    if not options.no_profile:
        case = CASES["one-replica"]
        print("\nwhere the time of a run goes (one replica, by module, cProfile):")
        description = scenario(case, min(options.requests, 30_000), 0.8 * saturated_rate_per_s(case))
        for name, share in where_the_time_goes(description):
            print(f"{share:7.1%}  {name}")
    own = resource.getrusage(resource.RUSAGE_SELF)
    print(f"\nbenchmark's own CPU: {own.ru_utime + own.ru_stime:.1f} s")


if __name__ == "__main__":
    main()
