"""Policies that watch: the run does not notice them, and each says what it would say in a run of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster.busy_day import busy
from cluster.worlds import POLICIES, cell_of
from experiments.small import scenario
from typer.testing import CliRunner

from sim.analysis.shadows import agreement, by_tenant
from sim.cli import app
from sim.cluster.world import Outcomes, simulate
from sim.errors import ScenarioError
from sim.experiments.run import run_scenario, world_of
from sim.experiments.sweep import sweep
from sim.records.result_folder import read_manifest, read_records
from sim.scenario.load import expand, load_scenario, parse_scenario, resolved
from sim.studies.tournament_policies import names, policy_settings

BUCKET = {"kind": "rate-limit", "name": "bucket", "requests_per_min": 60, "tokens_per_min": 2000}


def play(policy: str, shadows: list[dict[str, Any]]) -> Outcomes:
    tree = busy(policy)
    tree["shadow"] = shadows
    return simulate(world_of(cell_of(tree)), record_decisions=True)


@pytest.mark.parametrize("policy", list(POLICIES))
def test_the_run_does_not_notice_its_shadows(policy: str) -> None:
    alone = play(policy, [])
    # Another tick than the acting policy's, so that the world is asked for progress at other times too.
    odd = {"kind": "token-pool", "name": "odd", "tick_s": 0.7}
    watchers = [BUCKET, odd, {"kind": "token-pool", "mode": "paper"}, {"kind": "none"}]
    watched = play(policy, watchers)
    for field in dataclasses.fields(alone.columns):
        ours, theirs = getattr(alone.columns, field.name), getattr(watched.columns, field.name)
        if field.name != "entitlements":
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=field.name)
    assert alone.timeline[0].metrics.keys() == watched.timeline[0].metrics.keys()
    # Every attempt has one opinion of each shadow.
    attempts = list(zip(alone.columns.request_id, np.asarray(alone.columns.attempt).tolist(), strict=True))
    for shadow in ("bucket", "odd", "token-pool", "none"):
        of_it = [(one.request_id, one.attempt) for one in watched.opinions if one.shadow == shadow]
        assert sorted(of_it) == sorted(attempts)
    assert all(one.verdict and one.acting for one in watched.opinions)


@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_policy_agrees_with_itself(policy: str) -> None:
    tree = busy(policy)
    same = {"name": "same", **POLICIES[policy]}
    tree["events"] = [event for event in tree["events"] if "capacity" not in event]
    tree["shadow"] = [same]
    for one in simulate(world_of(cell_of(tree))).opinions:
        assert (one.verdict, one.reason) == (one.acting, one.acting_reason), one


def test_a_meter_of_arrivals_says_what_it_says_in_a_run_of_its_own() -> None:
    # Nobody comes again, and requests are counted when they are let in: the verdicts hang on the arrivals alone.
    limit = {"kind": "rate-limit", "name": "limit", "requests_per_min": 100}
    own = run_scenario(scenario(policies=[limit]))
    beside = run_scenario(scenario(policies=["none"], shadow=[limit])).shadows
    assert beside is not None
    refused = own.requests.column("outcome").to_pylist()
    wanted = {
        one: ("refuse" if outcome == "refused" else "forward")
        for one, outcome in zip(own.requests.column("request_id").to_pylist(), refused, strict=True)
    }
    found = dict(zip(beside.column("request_id").to_pylist(), beside.column("verdict").to_pylist(), strict=True))
    assert found == wanted
    assert "refuse" in found.values()


def test_tables_of_agreement_add_up(tmp_path: Path) -> None:
    result = run_scenario(scenario(shadow=[BUCKET, "token-pool"], replications=2), tmp_path / "r")
    table = read_records(tmp_path / "r", read_manifest(tmp_path / "r"), "shadows")
    assert table.num_rows == 2 * result.requests.num_rows
    tenants, pairs = by_tenant(table), agreement(table)
    assert sum(int(row["attempts"]) for row in pairs) == table.num_rows
    assert sum(int(row["attempts"]) for row in tenants) == table.num_rows
    for row in tenants:
        differed = int(row["only_shadow_refused"]) + int(row["only_acting_refused"])
        assert int(row["attempts"]) - int(row["agreed"]) == differed
        if row["policy"] == row["shadow"] == "token-pool":
            assert row["agreed"] == row["attempts"]
    shown = CliRunner().invoke(app, ["shadow", str(tmp_path / "r")])
    assert shown.exit_code == 0
    assert "none acted, bucket watched" in shown.output
    as_csv = CliRunner().invoke(app, ["shadow", str(tmp_path / "r"), "--csv"])
    assert as_csv.output.startswith("policy,shadow,tenant,attempts")


def test_a_sweep_keeps_them(tmp_path: Path) -> None:
    sweep(scenario(shadow=["token-pool"]), tmp_path / "s")
    assert read_records(tmp_path / "s", read_manifest(tmp_path / "s"), "shadows").num_rows > 100


def test_what_a_scenario_may_not_say() -> None:
    base = scenario().model_dump(mode="json")
    with pytest.raises(ScenarioError, match="2 are called 'none'"):
        parse_scenario(base | {"shadow": ["none", "none"]}, "x.yaml")
    with pytest.raises(ScenarioError, match="shadow: given beside 2 gateways"):
        parse_scenario(base | {"shadow": ["none"], "pool": base["pool"] | {"gateways": 2}}, "x.yaml")
    with pytest.raises(ScenarioError, match="did you mean none"):
        parse_scenario(base | {"shadow": ["nonee"]}, "x.yaml")


def test_no_shadows_to_show(tmp_path: Path) -> None:
    run_scenario(scenario(), tmp_path / "r")
    shown = CliRunner().invoke(app, ["shadow", str(tmp_path / "r")], standalone_mode=False)
    assert "watched by no policy" in str(shown.exception)


@pytest.mark.parametrize("name", names())
def test_every_policy_agrees_with_itself_and_is_not_disturbed_by_all_others(name: str) -> None:
    tree = resolved(load_scenario("tournament-noisy-neighbour")) | {"horizon_s": 25.0, "warmup_s": 0.0}
    for one in tree["workload"]:
        one["from_s"], one["until_s"] = 0.0, None
    base = parse_scenario(tree | {"events": [{"at_s": 10, "fail": 1}, {"at_s": 15, "restore": 1}]}, "x")
    every = {policy.name: policy for policy in policy_settings(base)}
    acting = every.pop(name)
    every.pop("llm-d-flow-control", None)  # it looks a thousand times a second: 10 CPU-s beside each of the others
    watching = (*every.values(), acting.model_copy(update={"name": "same"}))
    alone = simulate(world_of(expand(base.model_copy(update={"policies": (acting,)}))[0]))
    watched = simulate(world_of(expand(base.model_copy(update={"policies": (acting,), "shadow": watching}))[0]))
    for field in ("outcome", "forwarded_s", "first_token_s", "finish_s", "retry_after_s", "output_tokens"):
        np.testing.assert_array_equal(getattr(alone.columns, field), getattr(watched.columns, field), err_msg=field)
    same = [one for one in watched.opinions if one.shadow == "same"]
    assert len(same) == len(alone.columns.request_id)
    assert [one for one in same if (one.verdict, one.reason) != (one.acting, one.acting_reason)] == []
