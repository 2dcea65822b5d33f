"""The tables of `make live`, from simulated runs that stand for live ones."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from policies.api import Arrived, RequestView
from sim.calibration.profile_file import write_profile
from sim.experiments.run import run_scenario
from sim.live.gateway.core_from_config import core_of
from sim.live.observability.recording import Recording
from sim.records.result_folder import read_manifest, write_manifest
from sim.scenario.load import load_scenario
from sim.scenario.profile import load_profile
from sim.studies.live_compare import Compared, Tables, as_table, compare_runs
from sim.studies.live_proof import FIRST, SECOND, prove, simulated_scenario


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "mine.yaml"
    write_profile(load_profile("dgx-spark-qwen3-8b-nvfp4"), path)
    return path


def as_if_live(name: str, policy: str, profile: Path, out: Path, *, valid: bool = True) -> Path:
    """Write a simulated run as a live one."""
    run_scenario(simulated_scenario(name, [policy], profile), out)
    manifest = read_manifest(out)
    write_manifest({**manifest, "kind": "live", "valid": valid}, out)
    return out


def recording(path: Path, *, changed: bool = False) -> Path:
    scenario = load_scenario(FIRST)
    core = core_of(scenario.pool, scenario.policies[0], 0)
    core.start(0.0)
    head = {"pool": scenario.pool.model_dump(mode="json"), "policy": scenario.policies[0].model_dump(mode="json")}
    written = Recording(path, core, head)
    for number in range(20):
        event = Arrived(RequestView(f"r{number}", "spot-b", "spot-b", 64, 64))
        written(0.1 * number, event, core.handle(event, 0.1 * number))
    written.close()
    if changed:
        path.write_text(path.read_text().replace('"forward"', '"hold"', 1))
    return path


def test_a_simulation_of_what_was_run_agrees_with_it_in_everything(profile: Path, tmp_path: Path) -> None:
    live = {
        FIRST: [as_if_live(FIRST, policy, profile, tmp_path / policy) for policy in ("none", "token-pool")],
        SECOND: [as_if_live(SECOND, "token-pool", profile, tmp_path / "second")],
    }
    proof = prove(live, profile, tmp_path / "out", {"first": recording(tmp_path / "events.jsonl")})
    for rows in proof.compared.values():
        assert rows
        for row in rows:
            assert math.isnan(row.live) == math.isnan(row.simulated)
            assert math.isnan(row.live) or row.error == pytest.approx(0, abs=1e-12)
    quantities = {row.quantity for row in proof.compared[SECOND]}
    assert quantities >= {"refused", "TTFT P50", "TTFT P99", "in flight of the slots, mean", "debt, peak"}
    assert any(row.quantity.startswith("queue") for row in proof.compared[FIRST])
    assert "exp. 1, no control: peak queue" in proof.acceptance
    assert "exp. 2: successes of synth" in proof.acceptance
    assert "rate limit" not in proof.acceptance
    assert "20 events, 20 verdicts (10 forward, 10 refuse): all the same" in proof.words
    assert proof.passed == (not proof.failed)


def test_late_requests_and_other_verdicts_are_no_proof(profile: Path, tmp_path: Path) -> None:
    live = {FIRST: [as_if_live(FIRST, "token-pool", profile, tmp_path / "late", valid=False)]}
    proof = prove(live, profile, tmp_path / "out", {"a": recording(tmp_path / "events.jsonl", changed=True)})
    assert not proof.passed
    assert proof.parities["a"].differing == 1
    assert "Not valid" in proof.words
    assert "exp. 2" not in proof.acceptance


def test_draws_are_compared_one_by_one(profile: Path) -> None:
    two = run_scenario(simulated_scenario(FIRST, ["token-pool"], profile, 2))
    rows = compare_runs(Tables(two.requests, two.timeline), Tables(two.requests, two.timeline))
    assert {row.policy for row in rows} == {"token-pool", "token-pool, draw 1"}
    assert not [row for row in rows if row.error and not math.isnan(row.error)]


def test_errors_are_relative_for_times_and_in_points_for_shares() -> None:
    assert Compared("p", "t", "TTFT P99", 2.0, 1.5, "s").error_words == "-25.0 %"
    assert Compared("p", "t", "refused", 40.0, 43.5, "%").error_words == "+3.5 points"
    assert Compared("p", "t", "debt, peak", 0.5, 0.25).error_words == "-0.25"
    assert Compared("p", "t", "TTFT P50", math.nan, math.nan, "s").error_words == "-"
    table = as_table([Compared("p", "t", "TTFT P99", 2.0, math.nan, "s")])
    assert "2.00 s" in table


def test_only_what_both_ran_is_compared(profile: Path) -> None:
    both, one = (
        run_scenario(simulated_scenario(FIRST, names, profile)) for names in (["none", "token-pool"], ["none"])
    )
    rows = compare_runs(Tables(both.requests, both.timeline), Tables(one.requests, one.timeline))
    assert {row.policy for row in rows} == {"none"}
    finals = pd.DataFrame(both.requests.to_pandas()).query("final and policy == 'none'")
    offered = {row.tenant: row.live for row in rows if row.quantity == "offered"}
    assert offered == finals.groupby("tenant", observed=True).size().to_dict()
