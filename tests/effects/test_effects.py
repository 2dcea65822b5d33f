"""Whatever a file may say has an effect that somebody can see, or is refused; a part here, all in `effects.run`."""

from __future__ import annotations

import copy
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
from live.gate import PROFILE
from scenario.examples import INLINE_PROFILE, mapping

from effects.bases import bases
from effects.fields import _classes, all_fields, annotations, key_of, others, places, unvouched, with_value
from effects.observe import attempt
from effects.reasons import REFUSES, SAYS, SERVED
from effects.search import Search, Witness, kept
from effects.serve import Told, configurations, read_names, told
from policies.class_slots import ClassSlots
from sim.errors import ScenarioError
from sim.live.gateway import settings as live_settings
from sim.live.gateway.config_file import ServeConfig, parse_config
from sim.scenario.idle_fields import idle_fields
from sim.scenario.load import expand, parse_scenario
from sim.scenario.model import Scenario

EVERY = 12
"""One of so many changes is made again here."""


def test_the_fields_of_a_scenario_have_a_change_that_shows_or_a_reason() -> None:
    fields = all_fields(Scenario)
    shown = set(kept()) | set(SAYS) | set(REFUSES)
    bare = unvouched(fields, shown)
    assert not bare, f"run PYTHONPATH=tests python -m effects.run --write {' '.join(bare)}"
    assert shown <= fields.keys(), "no such fields"
    assert not set(kept()) & set(SAYS)


def test_a_part_of_the_changes_shows(tmp_path: Path) -> None:
    some = dict(sorted(kept().items())[::EVERY])
    search = Search(tmp_path, sorted({one.base for one in some.values()}))
    idle = [key for key, one in some.items() if not search.changes(one.base, one.steps, one.value)]
    assert not idle


def test_a_field_that_nothing_reads_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassSlots, "__post_init__", lambda _: None)  # as it was
    search = Search(tmp_path, ["policy class-slots"])
    for name in ("queue_requests", "queue_tokens"):
        found = search.witness(f"ClassSlots.{name}", most=4)
        assert not isinstance(found, Witness)
        assert found.same
    assert isinstance(search.witness("ClassSlots.queues"), Witness)


@pytest.mark.parametrize(("policy", "said"), [
    ({"kind": "class-slots", "queue_requests": 3}, "queue_requests is 3 and changes nothing, since each class has its"),
    ({"kind": "class-slots", "timeout_s": 3}, "timeout_s"),
    ({"kind": "bands", "queue_tokens": 9}, "queue_tokens is 9 and changes nothing, since each band has a queue"),
    ({"kind": "window", "tokens_per_min": 9, "demoted_priority": 3}, "since over is refuse; give over: demote"),
    ({"kind": "reserve", "tokens_per_min": 9, "over": "demote", "spill_replicas": 2}, "give over: spill"),
    ({"kind": "slo-feasible", "demoted_priority": 3}, "give infeasible: relegate"),
    ({"kind": "predictive-pool", "share_by": "entitlement", "parents": {"a": "x"}}, "give share_by: tree"),
    ({"kind": "concur", "occupancy": 0.5}, "occupancy is 0.5 and changes nothing, since the number of agents"),
    ({"kind": "polyserve", "occupancy": 0.5}, "since objectives alone decide how full a replica gets"),
    ({"kind": "vtc", "estimate": {"kind": "flat", "tokens": 9}}, "give charge: predicted"),
    ({"kind": "none", "autoscaler": {"kind": "saturation", "queue_most": 2}}, "queue_spare is 3, more than queue_most"),
])  # fmt: skip
def test_what_changes_nothing_beside_the_others_is_refused(policy: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse_scenario(mapping(INLINE_PROFILE) | {"policies": [policy]}, "x.yaml")
    assert said in str(error.value)


def scenario(**changed: Any) -> dict[str, Any]:
    tree = copy.deepcopy(mapping(INLINE_PROFILE))
    tree["pool"]["profile"] |= changed.pop("profile", {})
    tree["pool"] |= changed.pop("pool", {})
    tree["workload"][0] |= changed.pop("workload", {})
    return tree | changed


@pytest.mark.parametrize(("changed", "said"), [
    ({"profile": {"tpot_slo_s": 0.05}}, "pool.profile.tpot_slo_s"),
    ({"profile": {"operator_s": 0.1}}, "pool.profile.operator_s"),
    ({"profile": {"data_parallel_score": "waiting"}}, "pool.profile.data_parallel_score"),
    ({"workload": {"priority": 2}}, "workload.priority"),
    ({"policies": [{"kind": "window", "tokens_per_min": 9, "over": "demote"}]}, "over: demote"),
    ({"policies": [{"kind": "bands", "occupancy": 0.5}]}, "occupancy of bands"),
    ({"pool": {"start_up_s": 3}}, "pool.start_up_s"), ({"pool": {"drain_s": 3}}, "pool.drain_s"),
    ({"pool": {"on_failure": "retry"}}, "pool.on_failure"),
])  # fmt: skip
def test_what_no_run_of_a_scenario_reads_is_said(changed: dict[str, Any], said: str) -> None:
    def words(**more: Any) -> list[str]:
        loaded = parse_scenario(scenario(**changed, **more), "x.yaml")
        return idle_fields([cell.scenario for cell in expand(loaded)])

    assert len(words()) == 1
    assert words()[0].startswith(said)
    assert "changes nothing" in words()[0]
    if "profile" in changed or "workload" in changed or "policies" in changed:
        kinds = ["fcfs", "priority", "fair-batching", "flow-prefill"]
        if "workload" in changed or "demote" in str(changed):
            assert not words(vary={"pool.profile.scheduling": kinds[:2]})
    elif "on_failure" in said:
        assert not words(events=[{"at_s": 1, "fail": 0}])
    else:
        assert parse_scenario(scenario(**changed), "x.yaml").pool.autoscaler.kind == "none"


def test_nothing_is_said_of_the_scenarios_that_hold_every_kind(tmp_path: Path) -> None:
    for name, tree in bases(tmp_path).items():
        if name in ("profile data parallel", "rich", "scaler sla", "profile flow-prefill"):
            said = idle_fields([cell.scenario for cell in expand(parse_scenario(tree, name))])
            assert all(words.startswith("workload.priority") for words in said)


# --------------------------------------------------------------------------------------------------------------------
# A gateway's configuration


@pytest.fixture
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKENPOOLS_TEST_PASSWORD", "TOKENPOOLS_TEST_KEY", "TOKENPOOLS_TEST_STATE_KEY"):
        monkeypatch.setenv(name, "0123456789abcdef0123456789abcdef")


def of_the_gateway() -> dict[str, type]:
    """Return the fields that a scenario has not, and those of pool and entitlements."""
    scenario = all_fields(Scenario)
    return {
        key: owner for key, owner in all_fields(ServeConfig).items()
        if key not in scenario or owner.__name__ in ("Pool", "Entitlement")
    }  # fmt: skip


@pytest.mark.usefixtures("_secrets")
def test_every_field_of_a_gateway_s_configuration_shows_in_what_the_server_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTHER_VARIABLE", "another value that is long enough")
    fields, trees = of_the_gateway(), configurations()
    roots = {name: parse_config(tree, name) for name, tree in trees.items()}
    before = {name: Told(tree) for name, tree in trees.items()}
    idle: dict[str, tuple[int, int]] = {}
    shown: set[str] = set()
    for name, root in roots.items():
        for place in places(root):
            if place.key in shown or place.key not in fields:
                continue
            refused = same = 0
            values = ["OTHER_VARIABLE"] if place.name.endswith("_env") else _values(place)
            for value in values:
                try:
                    found = told(with_value(trees[name], root, place.path, value))
                except (KeyError, AttributeError, TypeError, IndexError):
                    continue
                shows = found is not None and found.differs(before[name])
                refused, same = refused + (found is None), same + (found is not None and not shows)
                if shows:
                    shown.add(place.key)
                    idle.pop(place.key, None)
                    break
            else:
                idle[place.key] = (refused, same)
    for key in set(idle) | set(fields):  # what is made of other models shows by these
        parts = _classes(annotations(fields[key])[key.rpartition(".")[2]])
        if {key_of(part, name) for part in parts for name in annotations(part)} & shown:
            shown.add(key)
    taken = sorted(key for key, counts in idle.items() if key not in shown and (counts[1] or not counts[0]))
    assert not set(taken) - set(SERVED)
    assert not set(fields) - shown - set(idle)


_INSTEAD: dict[str, list[Any]] = {
    "ServeConfig.policy": ["none"], "Pool.profile": [PROFILE | {"max_num_seqs": 8}], "Entitlement.parent": ["globex"],
}


def _values(place: Any) -> list[Any]:
    found = others(place)
    if isinstance(place.value, str) and place.name in ("sha256", "token_sha256"):
        found = ["c" * 64]
    if place.name == "base_url":
        found = ["http://127.0.0.1:3"]
    if place.key in _INSTEAD:
        found = _INSTEAD[place.key]
    if place.name == "url":
        found = ["redis://127.0.0.1:6380/0"]
    return found


def test_whatever_the_server_is_told_something_reads() -> None:
    read = read_names()
    own = [one for one in vars(live_settings).values() if getattr(one, "__module__", "") == live_settings.__name__]
    kinds = [one for one in own if isinstance(one, type) and is_dataclass(one)]
    secrets = {"key_env", "password_env"}  # read where settings are made, and shown there
    unread = [
        f"{kind.__name__}.{one.name}" for kind in kinds for one in fields_of(kind)
        if one.name not in read | secrets and one.name != "kind" and kind is not live_settings.FallbackSettings
    ]  # fmt: skip
    assert not unread


@pytest.mark.parametrize(("pool", "said"), [
    ({"start_up_s": 3.0}, "pool.start_up_s: is for simulations"), ({"drain_s": 3.0}, "give timeouts: {drain_s"),
    ({"gpus_per_replica": 2}, "the profile is of 1 (profile.gpus)"), ({"notice_s": 1.0}, "health_every_s"),
    ({"calendar": {"starts": "2026-01-01T00:00:00Z"}}, "days are the real ones"),
])  # fmt: skip
def test_what_only_a_simulated_pool_has_is_refused(pool: dict[str, Any], said: str) -> None:
    tree = configurations()["watched"]
    tree["pool"] = tree["pool"] | pool
    with pytest.raises(ScenarioError) as error:
        parse_config(tree, "serve.yaml")
    assert said in str(error.value)


def test_a_gateway_may_stand_before_replicas_of_several_gpus() -> None:
    tree = configurations()["watched"]
    tree["pool"] = tree["pool"] | {"profile": tree["pool"]["profile"] | {"gpus": 2}}
    assert parse_config(tree, "serve.yaml").pool.gpus_per_replica == 2


def test_an_attempt_tells_what_is_refused_from_what_shows_nothing() -> None:
    tree = scenario(workload={"requests": 3})
    assert attempt(tree) == attempt(tree | {"title": "another"})
    assert attempt(tree | {"version": 2}) is None
