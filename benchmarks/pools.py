"""Whether token pools carry a large pool: 100 entitlements on 64 replicas, a million requests.

    python benchmarks/pools.py [--requests 1000000] [--entitlements 100] [--replicas 64] [--load 0.95]

The run alone, in this process: demand, run, records in memory. CPU time and peak memory, and what became of the
requests; the load is a share of the declared tokens/s.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from typing import Any

CLASSES = ("guaranteed", "elastic", "elastic", "spot")
PROFILE = {
    "step_time": {"kind": "linear", "base_s": 0.02, "per_prefill_token_s": 3.0e-5, "per_decode_sequence_s": 3.0e-4},
    "max_num_seqs": 64, "max_num_batched_tokens": 2048, "kv_blocks": 8192, "kv_bytes_per_token": 131072,
    "tokens_per_s": 4000,
}  # fmt: skip
PROMPT_TOKENS = OUTPUT_TOKENS = 128


def scenario(requests: int, entitlements: int, replicas: int, load: float) -> dict[str, Any]:
    """Return a pool whose entitlements, a quarter of them spot, ask for the same each."""
    rate_per_s = load * replicas * 4000 / (PROMPT_TOKENS + OUTPUT_TOKENS) / entitlements
    slots = 0.9 * 64 * replicas / entitlements
    promise = {"slots": slots, "tokens_per_s": 0.9 * 4000 * replicas / entitlements}
    return {
        "version": 1, "seed": 7, "horizon_s": requests / (rate_per_s * entitlements), "timeline_interval_s": 10,
        "pool": {
            "profile": PROFILE, "replicas": replicas, "entitlements": [
                {
                    "name": f"e{i}", "service_class": CLASSES[i % 4], "ttft_slo_s": 1.0,
                    **({"baseline": promise} if CLASSES[i % 4] != "spot" else {}),
                }
                for i in range(entitlements)
            ],
        },
        "workload": [
            {
                "entitlement": f"e{i}", "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
                "prompt_tokens": PROMPT_TOKENS,
                "output_tokens": {"kind": "lognormal", "mean": OUTPUT_TOKENS, "cv": 0.5},
            }
            for i in range(entitlements)
        ],
        "policies": ["token-pool"],
    }  # fmt: skip


def main() -> None:
    """Run it and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--entitlements", type=int, default=100)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--load", type=float, default=0.95)
    options = parser.parse_args()
    from sim.experiments.run import run_scenario
    from sim.scenario.load import parse_scenario

    made = parse_scenario(
        scenario(options.requests, options.entitlements, options.replicas, options.load), "benchmark"
    )
    began_s, cpu_s = time.perf_counter(), time.process_time()
    result = run_scenario(made)
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    unit = 1 if sys.platform == "darwin" else 1024
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    (every,) = [row for row in result.summary if row["tenant"] == "all"]
    print(
        f"{every['offered']:,} requests of {options.entitlements} entitlements on {options.replicas} replicas: "
        f"{cpu_s:.1f} s of CPU, {wall_s:.1f} s by the clock, {memory_gb:.2f} GB at most; "
        f"{float(every['refused']) / float(every['offered']):.1%} refused"
    )


if __name__ == "__main__":
    main()
