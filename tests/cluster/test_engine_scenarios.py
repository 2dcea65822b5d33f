"""The shipped scenarios of engine schedulers, at small size: what each paper claims shows on our replica."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sim.errors import ScenarioError
from sim.experiments.run import run_scenario
from sim.scenario.load import load_scenario


def rows(name: str, *changes: str) -> list[dict[str, Any]]:
    return run_scenario(load_scenario(name, overrides=changes)).summary


def test_fair_batching_serves_prompts_sooner_than_the_chunk_that_keeps_its_deadlines() -> None:
    big, safe, small, fair = [row for row in rows("engine-fair-batching", "horizon_s=240") if row["tenant"] == "chat"]
    assert big["tpot_p99_s"] > 0.06  # large chunks break the objective of 0.05 s ...
    assert fair["tpot_p99_s"] < 0.056
    assert big["tpot_p95_s"] > 0.05 > fair["tpot_p95_s"]
    assert fair["ttft_p99_s"] < 0.8 * safe["ttft_p99_s"] < 0.5 * small["ttft_p99_s"]  # ... and small ones cost prompts


def test_flow_prefill_lets_questions_past_documents() -> None:
    found = rows("engine-flow-prefill", "horizon_s=240")
    fcfs, shortest, small, flow = [row for row in found if row["tenant"] == "questions"]
    assert fcfs["slo_attainment"] < shortest["slo_attainment"] < 0.7
    assert small["slo_attainment"] < 0.7
    assert flow["slo_attainment"] > 0.98
    documents = [row["slo_attainment"] for row in found if row["tenant"] == "documents"]
    assert documents[3] < documents[0]  # somebody pays for it


def test_engines_that_only_decode_are_not_held_up_and_a_slow_link_is_a_bottleneck() -> None:
    together, halves, three, slow = [
        row for row in rows("engine-disaggregated", "horizon_s=200") if row["tenant"] == "chat"
    ]
    assert halves["tpot_p99_s"] < 0.65 * together["tpot_p99_s"]
    assert three["tpot_p99_s"] < 0.85 * together["tpot_p99_s"]
    assert abs(three["ttft_p99_s"] / together["ttft_p99_s"] - 1) < 0.25
    assert slow["tpot_p50_s"] > 5 * halves["tpot_p50_s"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["pool.profile.scheduling=fair-batching", "pool.profile.tpot_slo_s=null"], "tpot_slo_s: missing"),
        (["pool.profile.scheduling=flow-prefill", "pool.profile.async_scheduling=true"], "async_scheduling: set"),
        (["pool.profile.scheduling=flow-prefil"], "should be 'fcfs'.*'flow-prefill'"),
        (
            ["pool.profile.disaggregated={prefill_engines: 1, decode_engines: 0, kv_bytes_per_s: 1.0e9}"],
            "decode_engines: input should be greater than 0",
        ),
        (
            [
                "pool.profile.disaggregated={prefill_engines: 1, decode_engines: 1, kv_bytes_per_s: 1.0e9}",
                "pool.profile.kv_bytes_per_token=null",
            ],
            "kv_bytes_per_token: missing",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: list[str], said: str) -> None:
    with pytest.raises(ScenarioError, match=re.compile(said)):
        load_scenario("paper-exp1", overrides=changes)

