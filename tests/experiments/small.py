"""A scenario of two tenants that takes milliseconds, and what a result folder holds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sim.scenario.load import Scenario, parse_scenario

RATE = "workload.batch.arrivals.rate_per_s"
TREE: dict[str, Any] = {
    "version": 1,
    "title": "Two tenants",
    "description": "Does a token pool keep chat quick while batch floods it?",
    "seed": 3,
    "horizon_s": 60,
    "pool": {
        "profile": {
            "step_time": {"kind": "linear", "base_s": 0.05},
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "kv_blocks": 1000,
        },
        "entitlements": [
            {"name": "chat", "service_class": "guaranteed", "baseline": {"slots": 4}, "ttft_slo_s": 0.5},
            {"name": "batch", "service_class": "spot", "ttft_slo_s": 2},
        ],
    },
    "workload": [
        {
            "entitlement": "chat",
            "arrivals": {"kind": "poisson", "rate_per_s": 3},
            "prompt_tokens": 8,
            "output_tokens": 16,
        },
        {
            "entitlement": "batch",
            "arrivals": {"kind": "poisson", "rate_per_s": 7},
            "prompt_tokens": 8,
            "output_tokens": {"kind": "lognormal", "mean": 16, "cv": 1},
        },
    ],
    "policies": ["none", "token-pool"],
}


def scenario(**changes: Any) -> Scenario:
    return parse_scenario(TREE | changes, "small.yaml")


def digest(folder: Path) -> str:
    """Everything but the manifest, which holds times."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("cells/*/*.parquet")):
        found.update(f"{path.parent.name}/{path.name}".encode() + path.read_bytes())
    found.update((folder / "summary.csv").read_bytes())
    return found.hexdigest()
