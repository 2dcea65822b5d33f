"""The GPUs of a replica are said once, by its profile, and whatever counts GPUs goes by that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sim.errors import ScenarioError
from sim.experiments.run import run_scenario
from sim.judging.judge import judge
from sim.scenario.load import parse_scenario
from sim.scenario.profile import load_profile, shipped_profiles

PAIR = {
    "step_time": {"kind": "linear", "base_s": 0.01}, "max_num_seqs": 8, "max_num_batched_tokens": 512,
    "kv_blocks": 1000, "gpus": 2,
}  # fmt: skip


def scenario(**pool: Any) -> dict[str, Any]:
    return {
        "version": 1, "seed": 1, "horizon_s": 20,
        "pool": {"profile": PAIR, "entitlements": [{"name": "a", "service_class": "elastic"}], **pool},
        "workload": [{
            "entitlement": "a", "arrivals": {"kind": "even", "rate_per_s": 1.0}, "prompt_tokens": 100,
            "output_tokens": 50,
        }],
        "policies": ["none"],
    }  # fmt: skip


def gpu_s(tmp_path: Path, **pool: Any) -> float:
    run_scenario(parse_scenario(scenario(**pool), "test"), tmp_path / "r")
    return float(next(row["gpu_s"] for row in judge(tmp_path / "r").rows if row.get("gpu_s") is not None))


@pytest.mark.parametrize("scaler", [{}, {"autoscaler": {"kind": "utilisation", "min_replicas": 1, "max_replicas": 1}}])
def test_gpu_time_is_of_the_gpus_that_the_profile_has(tmp_path: Path, scaler: dict[str, Any]) -> None:
    assert gpu_s(tmp_path, **scaler) == pytest.approx(2 * 20, rel=0.1)


def test_each_kind_of_replica_counts_its_own_gpus(tmp_path: Path) -> None:
    also = [{"profile": PAIR | {"gpus": 5}, "replicas": 1}]
    assert gpu_s(tmp_path, also=also) == pytest.approx((2 + 5) * 20, rel=0.1)


def test_another_number_than_the_profiles_is_refused() -> None:
    assert parse_scenario(scenario(gpus_per_replica=2), "x.yaml").pool.gpus_per_replica == 2
    with pytest.raises(ScenarioError, match=r"pool.gpus_per_replica: 4, and the profile is of 2 \(profile.gpus\)"):
        parse_scenario(scenario(gpus_per_replica=4), "x.yaml")


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_shipped_profile_is_of_the_gpus_that_its_source_names(name: str) -> None:
    profile = load_profile(name)
    said = re.search(r"\bTP ?(\d+)|tp(\d+)$", f"{profile.source} {name}")
    assert profile.gpus == (1 if said is None else int(next(filter(None, said.groups()))))
