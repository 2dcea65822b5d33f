"""Whoever knows output lengths says so in its result."""

from __future__ import annotations

from typing import Any

from sim.experiments.run import run_scenario
from sim.scenario.load import parse_scenario


def result(policy: dict[str, Any]) -> Any:
    return run_scenario(parse_scenario({
        "version": 1, "seed": 5, "horizon_s": 20,
        "pool": {
            "profile": {
                "step_time": {"kind": "linear", "base_s": 0.02, "per_decode_sequence_s": 0.001},
                "max_num_seqs": 4, "max_num_batched_tokens": 256, "kv_blocks": 100,
            },
            "replicas": 1, "entitlements": [{"name": "a", "service_class": "spot"}],
        },
        "workload": [{
            "entitlement": "a", "arrivals": {"kind": "poisson", "rate_per_s": 4.0}, "prompt_tokens": 20,
            "output_tokens": {"kind": "uniform", "low": 5, "high": 60}, "max_output_tokens": 300,
        }],
        "policies": [policy],
    }, "oracle.yaml"))  # fmt: skip


def test_an_oracle_is_flagged_and_what_does_not_use_one_is_not() -> None:
    knows = result({"kind": "reserve", "tokens_per_min": 3000, "estimate": {"kind": "oracle", "sigma": 0.3}})
    guesses = result({"kind": "reserve", "tokens_per_min": 3000, "estimate": "tenant-mean"})
    assert [cell.get("oracle") for cell in knows.manifest["cells"]] == [True]
    assert [cell.get("oracle") for cell in guesses.manifest["cells"]] == [None]
    assert "oracle" in str(knows.manifest["scenario"]["policies"])


def test_an_exact_oracle_lets_in_more_than_max_tokens_does() -> None:
    def admitted(estimate: Any) -> int:
        summary = result({"kind": "reserve", "tokens_per_min": 3000, "estimate": estimate}).summary
        return next(row["admitted"] for row in summary if row["tenant"] == "all")

    assert admitted({"kind": "oracle"}) > admitted("max-tokens")
