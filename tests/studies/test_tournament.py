"""A small tournament, how its policies are set, and how it is judged."""

from __future__ import annotations

import math
from dataclasses import replace
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
from sim.errors import InputError, ScenarioError
from sim.scenario.load import load_scenario, parse_scenario, resolved, shipped_scenarios
from sim.studies.tournament import CELLS, PREFIX, scenarios_of, tournament
from sim.studies.tournament_bounds import bounds
from sim.studies.tournament_loads import at_load
from sim.studies.tournament_policies import HEADROOM, LEFT_OUT, RULES, names, numbers, policy_settings
from sim.studies.tournament_spaces import SPACES
from sim.studies.tournament_tuning import judged, read, tune, with_setting, write
from sim.studies.tournament_verify import chosen, published, verify

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


def test_who_was_asked_nothing_ranks_last() -> None:
    rows = [row(policy, 0, tenant, value) for policy, value in (("none", 0.5), ("silent", math.nan))
            for tenant in ("a", "all")]
    assert {one.policy: one.rank for one in judge("s", rows, ["a"])} == {"none": 1, "silent": 2}


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


def test_what_is_told_to_those_with_words_of_their_own() -> None:
    """By hand: noisy-neighbour's four replicas of 1,500 tokens/s, of which 90 % are rates."""
    scenario = load_scenario("tournament-noisy-neighbour")
    found = numbers(scenario)
    named = {name: RULES[name](found) for name in ("datarobot", "fairserve", "polyserve", "llm-d-flow-control")}
    assert named["datarobot"]["capacity"] == pytest.approx(60 * HEADROOM * found.tokens_per_s)
    assert set(named["datarobot"]["reserved"]) == {name for name, promised in found.promised.items() if promised}
    assert sum(named["datarobot"]["reserved"].values()) <= 1
    # Requests of 1,024 + 256 tokens.
    chat = named["fairserve"]["app_per_min_by"]["chat"]
    assert chat == pytest.approx(found.per_min("chat") / 1280, abs=1e-3)
    assert named["polyserve"]["base_s"] == scenario.pool.profile.step_time.base_s
    assert named["polyserve"]["per_prompt_token_s"] == scenario.pool.profile.step_time.per_prefill_token_s
    assert named["llm-d-flow-control"] == {"stale_s": 4.0}


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
    first = tournament(tmp_path / "t", scenarios=files, policies=kinds, loads=[1.0], replications=2)
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
    again = tournament(tmp_path / "t", scenarios=files, policies=kinds, loads=[1.0], replications=2)
    assert again.scores == first.scores
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*.parquet")}


def test_a_published_tournament_comes_out_again_to_the_last_bit(tmp_path: Path) -> None:
    """Of one short scenario at two loads; a cell whose number is changed in its last bit is found."""
    scenario = str(_short(tmp_path, "stale-metrics"))
    kinds = ["none", "dagor"]
    found = tournament(tmp_path / "t", scenarios=[scenario], policies=kinds, loads=[0.8, 1.3], replications=1)
    assert [(one.load, one.policy) for one in found.cells] == [(load, name) for load in (0.8, 1.3) for name in kinds]
    assert found.cells[0].digest != found.cells[2].digest
    cells = [replace(one, scenario=scenario) for one in published(tmp_path / "t" / CELLS)]
    assert [replace(one, scenario=found.cells[0].scenario) for one in cells] == found.cells
    assert verify(cells) == []
    wrong = replace(cells[1], goodput=math.nextafter(cells[1].goodput, 9e9))
    (difference,) = verify([cells[0], wrong])
    assert difference.published == wrong
    assert difference.again == replace(cells[1], scenario=scenario)
    assert [one.replication for one in chosen(cells, 2)] == [0, 0]
    assert chosen(cells, 2) == chosen(cells, 2)


def test_policies_are_tuned_by_one_budget_and_never_end_below_where_they_began(tmp_path: Path) -> None:
    train, test = str(_short(tmp_path, "stale-metrics")), str(_short(tmp_path, "noisy-neighbour"))
    kinds = ["none", "rate-limit"]
    tuned = tune(4, policies=kinds, train=[train])
    assert [(one.policy, one.trials) for one in tuned] == [("none", 1), ("rate-limit", 4)]
    assert all(one.after >= one.before for one in tuned)
    assert tune(4, policies=kinds, train=[train]) == tuned
    better = replace(tuned[1], setting={"rates": 0.5, "burst_s": 2.0})
    cells = judged([tuned[0], better], replications=1, loads=[1.0], test=[test])
    assert [one.policy for one in cells] == ["none", "none+tuned", "rate-limit", "rate-limit+tuned"]
    assert cells[0].digest == cells[1].digest
    assert cells[2].digest != cells[3].digest
    # What is known is not run again, and whoever hears of each place can go on from there.
    heard: list[int] = []
    marked = [replace(one, digest=f"known {one.policy}") for one in (cells[0], cells[3])]
    again = judged(
        [tuned[0], better], replications=1, loads=[1.0], test=[test], known=marked,
        on_cells=lambda all_of_it: heard.append(len(all_of_it)),
    )
    assert [one.digest for one in again] == ["known none", "known none", cells[2].digest, "known rate-limit+tuned"]
    assert heard == [4]
    write(tmp_path, tuned, cells)
    assert read(tmp_path / "tournament-tuning.json") == tuned
    assert "rate-limit" in (tmp_path / "tournament-tuning.md").read_text()


def test_a_rate_knob_multiplies_every_rate_and_nothing_else() -> None:
    scenario = load_scenario(f"{PREFIX}noisy-neighbour")
    (policy,) = policy_settings(scenario, ("rate-limit",))
    half = with_setting(policy, {"rates": 0.5, "burst_s": 7.0}, scenario, "half")
    assert half.name == "half"
    assert {half.params.burst_s, *(one.burst_s for one in half.params.per_entitlement.values())} == {7.0}
    for name, limits in policy.params.per_entitlement.items():
        assert half.params.per_entitlement[name].tokens_per_min == pytest.approx(limits.tokens_per_min / 2)


@pytest.mark.parametrize("name", [*SPACES])
def test_every_space_names_fields_of_its_policy(name: str) -> None:
    scenario = load_scenario(f"{PREFIX}noisy-neighbour")
    (policy,) = policy_settings(scenario, (name,))
    for path in SPACES[name]:
        assert path == "rates" or hasattr(policy.params, path), path


def test_no_run_has_more_goodput_than_its_ceiling_and_full_gpus_are_told_from_idle_ones(tmp_path: Path) -> None:
    path = str(_short(tmp_path, "noisy-neighbour"))
    kinds = ["predictive-pool", "dedicated"]
    found = tournament(tmp_path / "t", scenarios=[path], policies=kinds, loads=[1.3], replications=1)
    scenario = at_load(next(iter(scenarios_of([path]).values())), 1.3)
    goodput = {(one.policy, 0): one.goodput for one in found.cells}
    pool, dealt = bounds(tmp_path / "t" / "noisy-neighbour-short@1.3", "n", scenario, 1.3, kinds, goodput)
    assert pool.goodput <= pool.ceiling
    assert dealt.goodput <= dealt.ceiling
    assert pool.wanted_s > 1
    assert 0.9 < pool.full <= pool.running <= 1.0
    assert dealt.full < 0.9  # what one tenant leaves idle no other may use


def test_what_is_no_published_tournament_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cells of a tournament"):
        published(tmp_path / "missing.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"its columns are \['a', 'b'\]"):
        published(tmp_path / "other.csv")


def test_a_load_multiplies_what_comes_and_leaves_what_is_promised() -> None:
    scenario = load_scenario(f"{PREFIX}aimd-clients")
    more = at_load(scenario, 1.5)
    assert more.workload[0].arrivals.rate_per_s == pytest.approx(7.5)
    assert more.workload[1].arrivals.clients == 6
    assert more.pool == scenario.pool
    assert at_load(scenario, 1.0) is scenario
    burst = at_load(load_scenario(f"{PREFIX}stale-metrics"), 0.5).workload[2].arrivals
    assert (burst.rate_on_per_s, burst.rate_off_per_s, burst.mean_on_s) == (15.0, 0.25, 4.0)


def test_a_policy_from_outside_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "visitor.py").write_text(
        "from dataclasses import dataclass\nfrom typing import Literal\n"
        "from tokenpools.policies import PolicyBase\n\n\n"
        "@dataclass(frozen=True)\nclass Visitor:\n    kind: Literal['visitor'] = 'visitor'\n\n"
        "    def build(self, *, entitlements, kv_bytes_per_token, chance):\n        return PolicyBase()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    scenario = str(_short(tmp_path, "stale-metrics"))
    found = tournament(
        tmp_path / "t", scenarios=[scenario], policies=["none", "visitor:Visitor"], loads=[1.0], replications=1
    )
    none, visitor = found.cells
    assert visitor.attainment == none.attainment  # it lets everything in


def _short(folder: Path, name: str) -> Path:
    tree: dict[str, Any] = resolved(load_scenario(f"{PREFIX}{name}")) | {"horizon_s": 25.0, "warmup_s": 5.0}
    path = folder / f"{name}-short.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


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
