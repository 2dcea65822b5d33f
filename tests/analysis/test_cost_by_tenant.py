"""Who bears the GPUs: by the work that was done, by what was promised."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sim.analysis.metric_rows import promises_of
from sim.experiments.run import run_scenario
from sim.judging.judge import judge
from sim.scenario.load import parse_scenario
from sim.scenario.profile import load_profile

SCENARIO: dict[str, Any] = {
    "version": 1, "seed": 1, "horizon_s": 60,
    "pool": {
        "profile": load_profile("h100-llama-3.1-8b").model_dump(mode="json", exclude_none=True) | {"gpus": 2},
        "entitlements": [
            {"name": "a", "service_class": "elastic", "baseline": {"slots": 30}},
            {"name": "b", "service_class": "elastic", "baseline": {"slots": 10}},
            {"name": "c", "service_class": "spot"},
        ],
    },
    "workload": [
        {"entitlement": name, "arrivals": {"kind": "even", "rate_per_s": rate}, "prompt_tokens": 100,
         "output_tokens": 50} for name, rate in (("a", 1.0), ("b", 2.0), ("c", 1.0))
    ],
    "policies": ["none"],
}  # fmt: skip


def test_gpu_seconds_are_divided_without_a_rest(tmp_path: Path) -> None:
    run_scenario(parse_scenario(SCENARIO, "test"), tmp_path / "r")
    rows = {row["tenant"]: row for row in judge(tmp_path / "r").rows}
    whole = rows["*"] if "*" in rows else next(row for name, row in rows.items() if name not in "abc")
    assert whole["gpu_s"] == pytest.approx(120)
    work = [rows[name]["gpu_s_by_work"] for name in "abc"]
    assert sum(work) == pytest.approx(whole["gpu_s"])
    assert work[1] == pytest.approx(60, rel=0.05)
    assert [rows[name]["gpu_s_by_promise"] for name in "abc"] == pytest.approx([90, 30, 0])


def test_where_nothing_is_promised_nobody_bears_it_by_promise(tmp_path: Path) -> None:
    spot = [{"name": name, "service_class": "spot"} for name in "abc"]
    scenario = SCENARIO | {"pool": SCENARIO["pool"] | {"entitlements": spot}}
    run_scenario(parse_scenario(scenario, "test"), tmp_path / "r")
    assert all(math.isnan(row["gpu_s_by_promise"]) for row in judge(tmp_path / "r").rows)


def test_promises_are_of_one_resource() -> None:
    entitlements = [
        {"name": "a", "tenant": "x", "baseline": {"tokens_per_s": 10.0}},
        {"name": "b", "tenant": "x", "baseline": {"tokens_per_s": 5.0}},
        {"name": "c", "tenant": None, "baseline": None},
    ]
    assert promises_of(["x", "c"], entitlements).tolist() == [15.0, 0.0]
