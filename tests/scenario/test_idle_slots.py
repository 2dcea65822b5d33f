"""A policy that by its own default uses fewer slots than there are says so, wherever it is checked or run."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from live.gate import config
from scenario.examples import INLINE_PROFILE, mapping
from typer.testing import CliRunner

from sim.cli.app import app
from sim.experiments.run import run_scenario
from sim.scenario.idle_slots import idle_slots
from sim.scenario.load import parse_scenario


def scenario(*policies: Any, slots: int = 1000) -> dict[str, Any]:
    tree = copy.deepcopy(mapping(INLINE_PROFILE))
    tree["pool"]["profile"] |= {"max_num_seqs": slots, "max_num_batched_tokens": 2048}
    tree["workload"][0] |= {"requests": 3}
    return tree | {"policies": list(policies)}


def said(*policies: Any, slots: int = 1000) -> list[str]:
    loaded = parse_scenario(scenario(*policies, slots=slots), "x.yaml")
    return idle_slots(loaded.pool, loaded.policies)


def test_the_default_of_cap_is_named_beside_replicas_of_more_slots() -> None:
    (words,) = said("cap")
    assert words == (
        "cap by default lets 100 requests into each replica, which has 1000 slots: 900 of them stay empty; "
        "give max_in_flight_per_replica: 1000, or null for what fits"
    )
    assert said("cap", slots=100) == said("cap", slots=64) == []


@pytest.mark.parametrize("policy", [
    {"kind": "cap", "max_in_flight_per_replica": 50}, {"kind": "cap", "max_in_flight_per_replica": None},
    "none", "token-pool", "llm-d", "bands",
    {"kind": "bands", "saturation": {"kind": "in-flight", "requests_per_replica": None}},
])  # fmt: skip
def test_what_somebody_chose_is_taken_to_be_meant(policy: Any) -> None:
    assert said(policy) == []


def test_other_policies_with_such_a_default_say_so_too() -> None:
    (words,) = said({"kind": "bands", "saturation": {"kind": "in-flight"}})
    assert "lets 100 requests" in words
    assert "give saturation.requests_per_replica: 1000" in words
    (words,) = said({"kind": "llm-d", "detector": "concurrency"})
    assert "900 of them stay empty; choose a detector" in words


def test_validate_run_and_check_say_it(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(scenario("cap", "none")))
    shown = CliRunner().invoke(app, ["validate", str(file)])
    assert shown.exit_code == 0
    assert shown.output.count("warning: cap by default lets 100 requests") == 1
    result = run_scenario(parse_scenario(scenario("cap"), "x.yaml"))
    assert [words for words in result.manifest["caveats"] if words.startswith("cap by default")]
    served = config([SimpleNamespace(base_url="http://127.0.0.1:1")], policy="cap")  # type: ignore[list-item]
    served["pool"]["profile"] = served["pool"]["profile"] | {"max_num_seqs": 1000}
    file.write_text(yaml.safe_dump(served))
    shown = CliRunner().invoke(app, ["serve", "--check", str(file)])
    assert shown.exit_code == 0, shown.output
    assert "cap by default lets 100 requests into each replica, which has 1000 slots" in shown.output
