"""What the scenarios on real traffic say under "Expect", held against a run: a comment is a figure somebody trusts."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import scenarios
from sim.experiments.run import run_scenario
from sim.scenario.load import load_scenario

# What is said, of whom, which share or seconds, and the value as it is rounded there.
CLAIMS: dict[str, list[tuple[str, str, str, str, float]]] = {
    "azure-two-services": [
        ("45 % of conv's first tokens come within 1 s", "none", "conv", "slo_attainment", 0.45),
        ("18 % of code's", "none", "code", "slo_attainment", 0.18),
        ("40 % of code refused", "rate-limit", "code", "refused", 0.40),
        ("conv meets its objective in 97.5 %", "rate-limit", "conv", "slo_attainment", 0.975),
        ("54 % of code refused", "token-pool", "code", "refused", 0.54),
        ("conv meets its objective in 98.4 %", "token-pool", "conv", "slo_attainment", 0.984),
        ("36 % of code refused", "predictive-pool", "code", "refused", 0.36),
        ("conv meets its objective in 99.7 %", "predictive-pool", "conv", "slo_attainment", 0.997),
    ],
    "arena-27": [
        ("46.8 s / 45.8 s", "none", "all", "ttft_mean_s", 45.8),
        ("21 % / 23 % within 5 s", "none", "all", "slo_attainment", 0.22),
        ("342 / 341 refused", "rate-limit-20", "all", "refused", 341 / 1500),
        ("919 / 919 refused", "rate-limit-5", "all", "refused", 919 / 1500),
        ("- / 263 refused", "token-pool", "all", "refused", 263 / 1500),
        ("- / 401 refused", "robust", "all", "refused", 401 / 1500),
        ("73 % within 5 s", "robust", "all", "slo_attainment", 0.733),
    ],
    "mooncake-kv-pressure": [
        ("4 % of first tokens come within 10 s", "none", "all", "slo_attainment", 0.04),
        ("8 % refused, 59 % within 10 s", "rate-limit", "all", "slo_attainment", 0.59),
        ("two thirds of large refused", "token-pool", "large", "refused", 0.64),
        ("55 % within 10 s", "token-pool", "all", "slo_attainment", 0.55),
        ("14 % refused, 85 % within 10 s", "robust", "all", "refused", 0.14),
        ("14 % refused, 85 % within 10 s", "robust", "all", "slo_attainment", 0.85),
    ],
    "servegen-73-clients": [
        ("0.4 % of first tokens within 2 s", "none", "all", "slo_attainment", 0.004),
        ("23 % refused", "rate-limit", "all", "refused", 0.23),
        ("13 % within 2 s", "rate-limit", "all", "slo_attainment", 0.13),
        ("28 % refused", "robust", "all", "refused", 0.28),
        ("71 % within 2 s", "robust", "all", "slo_attainment", 0.71),
        ("P99 2.1 s", "robust", "all", "ttft_p99_s", 2.1),
    ],
    "agents-vs-chat": [
        ("49 % of chat's first tokens within 1 s", "none", "chat", "slo_attainment", 0.49),
        ("42 % of chat's within 1 s", "rate-limit", "chat", "slo_attainment", 0.42),
        ("62 % of the flood refused", "token-pool", "free", "refused", 0.62),
        ("59 % of chat within 1 s", "robust", "chat", "slo_attainment", 0.587),
        ("agents 98 % within 10 s", "robust", "agents", "slo_attainment", 0.984),
    ],
}  # fmt: skip
FOLDER = {
    "azure-two-services": "azure-llm-2023", "arena-27": "lmsys-arena-vtc", "mooncake-kv-pressure": "mooncake-fast25",
    "servegen-73-clients": "servegen-deepseek-r1",
}  # fmt: skip


@cache
def rows(name: str) -> dict[tuple[Any, Any], dict[str, Any]]:
    result = run_scenario(load_scenario(name, overrides=["timeline_interval_s=null"]))
    return {(row["policy"], row["tenant"]): row for row in result.summary}


@pytest.mark.xdist_group("expectations")
@pytest.mark.parametrize(
    ("name", "said", "policy", "tenant", "measure", "value"),
    [(name, *claim) for name, claims in CLAIMS.items() for claim in claims],
)
def test_a_scenario_shows_what_it_says(
    name: str, said: str, policy: str, tenant: str, measure: str, value: float
) -> None:
    text = (Path(scenarios.__file__).parent / f"{name}.yaml").read_text()
    assert said in " ".join(text.replace("#", " ").split())
    data = os.environ.get("TOKENPOOLS_DATA")
    if name in FOLDER and not (data and (Path(data) / FOLDER[name]).is_dir()):
        pytest.skip(f"needs {FOLDER[name]} in TOKENPOOLS_DATA")
    row = rows(name)[policy, tenant]
    measured = row["refused"] / row["offered"] if measure == "refused" else row[measure]
    assert measured == pytest.approx(value, rel=0.02, abs=0.0101 if value <= 1 else 0.0)
