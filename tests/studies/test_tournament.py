"""A small tournament, how its policies are set, and how it is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from policies.registry import POLICIES
from sim.analysis.plots_ranking import heat_map
from sim.analysis.ranking import Score, judge, standing
from sim.analysis.summary import Row
from sim.cli import app
from sim.errors import ScenarioError
from sim.scenario.load import load_scenario, parse_scenario, resolved, shipped_scenarios
from sim.studies.tournament import PREFIX, scenarios_of, tournament
from sim.studies.tournament_policies import HEADROOM, LEFT_OUT, RULES, names, numbers, policy_settings

SHIPPED = [name for name in shipped_scenarios() if name.startswith(PREFIX)]


def row(policy: str, replication: int, tenant: str, attainment: float, p99_s: float = 1.0) -> Row:
    return {
        "policy": policy, "replication": replication, "tenant": tenant, "offered": 100, "admitted": 90, "refused": 10,
        "slo_attainment": attainment, "ttft_p99_s": p99_s,
    }  # fmt: skip


def test_judged_by_hand() -> None:
    rows = []
    for r in range(5):
        jitter = 0.01 * (r % 2)
        for policy, a, b, everybody, p99_s in (
            ("none", 0.5, 0.9, 0.7, 10.0),
            ("sheds", 0.6, 0.9, 0.4, 1.0),  # quicker for those let in, fewer in time over all
            ("serves", 0.9, 0.8, 0.85, 1.0),
            ("as-good", 0.8, 0.9, 0.85, 2.0),
        ):
            rows += [row(policy, r, "a", a + jitter), row(policy, r, "b", b + jitter), row(policy, r, "c", 0.01)]
            rows.append(row(policy, r, "all", everybody + jitter, p99_s + jitter))
    scores = {one.policy: one for one in judge("s", rows, ["a", "b"])}
    assert scores["serves"].score == pytest.approx(0.804)
    assert scores["serves"].worst == "b"
    ranks = {policy: one.rank for policy, one in scores.items()}
    assert ranks == {"none": 4, "sheds": 3, "serves": 1.5, "as-good": 1.5}
    assert scores["serves"].level
    assert scores["as-good"].level
    assert not scores["sheds"].level
    assert [one.policy for one in scores.values() if one.shedding] == ["sheds"]
    assert scores["none"].low < scores["none"].score < scores["none"].high
    every = {one.policy: one for one in judge("s", rows, [])}  # all tenants count
    assert every["serves"].score == pytest.approx(0.01)
    order = standing([*scores.values()])
    assert [one[0] for one in order] == ["as-good", "serves", "sheds", "none"]


def test_rates_follow_from_the_entitlements() -> None:
    found = numbers(load_scenario("tournament-many-keys"))
    assert sum(found.rates.values()) == pytest.approx(HEADROOM * found.tokens_per_s)
    assert found.rates["chat"] == pytest.approx(HEADROOM * 1500)  # promised, and others have no baseline
    assert found.rates["solo"] == pytest.approx(found.rates["key-3"])
    full = numbers(load_scenario("tournament-noisy-neighbour"))
    assert full.rates["docs"] == pytest.approx(full.rates["noise"])
    assert full.weights["docs"] == 1
    assert full.slots == 64
    assert set(RULES) <= set(POLICIES)
    assert set(POLICIES) >= LEFT_OUT


def test_rates_need_a_capacity() -> None:
    tree = resolved(load_scenario("tournament-noisy-neighbour"))
    tree["pool"]["profile"]["tokens_per_s"] = None
    with pytest.raises(ValueError, match="no tokens_per_s"):
        numbers(parse_scenario(tree, "x"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_scenario_is_scored_and_takes_every_policy(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.scored
    assert scenario.title
    policies = policy_settings(scenario)
    assert [policy.name for policy in policies] == names()
    assert {policy.params.kind for policy in policies} == set(POLICIES) - LEFT_OUT
    # Whoever is scored asks for no more than it was promised: a policy may not be blamed for what nobody promised.
    promised = {one.tenant for one in scenario.pool.entitlements if one.spec().baseline.tokens_per_s}
    assert set(scenario.scored) <= promised or name in ("tournament-many-keys", "tournament-starvation")


def test_a_small_tournament(tmp_path: Path) -> None:
    files = []
    for name, more in (("noisy-neighbour", {}), ("retry-storm", {})):
        tree: dict[str, Any] = resolved(load_scenario(f"{PREFIX}{name}")) | {"horizon_s": 40.0, "warmup_s": 5.0} | more
        for one in tree["workload"]:
            one["from_s"] /= 10
            one["until_s"] = None if one["until_s"] is None else one["until_s"] / 10
        path = tmp_path / f"{name}-short.yaml"
        path.write_text(yaml.safe_dump(tree))
        files.append(str(path))
    kinds = ["none", "cap", "token-pool"]
    first = tournament(tmp_path / "t", scenarios=files, policies=kinds, replications=2)
    assert [(one.scenario, one.policy) for one in first.scores] == [
        (f"{name}-short", kind) for name in ("noisy-neighbour", "retry-storm") for kind in kinds
    ]
    assert {one.offered for one in first.scores if one.scenario == "noisy-neighbour-short"} == {first.scores[0].offered}
    by_policy = {one.policy: one for one in first.scores if one.scenario == "noisy-neighbour-short"}
    assert by_policy["token-pool"].score > by_policy["none"].score
    for file in ("tournament.md", "tournament.csv", "heat-map.png", "heat-map.svg"):
        assert (tmp_path / "t" / file).stat().st_size > 100
    # Run again, everything is kept.
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*.parquet")}
    again = tournament(tmp_path / "t", scenarios=files, policies=kinds, replications=2)
    assert again.scores == first.scores
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*.parquet")}


def test_the_heat_map_shows_what_is_missing() -> None:
    def score(scenario: str, policy: str, value: float) -> Score:
        return Score(
            scenario=scenario, policy=policy, score=value, low=value, high=value, rank=1, level=True, worst="a",
            offered=1, admitted=1, refused=0, attainment=value, ttft_p99_s=1, shedding=policy == "b",
        )  # fmt: skip

    figure = heat_map([score("s", "a", 0.2), score("s", "b", 0.9), score("t", "a", 0.5)], replications=5)
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"20", "90*", "50", "–"}


def test_what_the_command_refuses() -> None:
    def said(*args: str) -> str:
        return str(CliRunner().invoke(app, ["run", "tournament", *args], standalone_mode=False).exception)

    assert "takes no --set" in said("--set", "seed=1")
    assert "did you mean token-pool" in said("--policy", "token-pol")
    with pytest.raises(ScenarioError, match="no such file or shipped scenario"):
        scenarios_of(["nothing"])
