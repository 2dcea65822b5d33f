import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scenario.examples import mapping

from sim.errors import ScenarioError
from sim.scenario.load import expand, load_scenario, parse_scenario, resolved
from sim.scenario.overrides import located, replaced
from workloads.arrivals import Even


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(mapping()))
    return file


def test_values_are_set_by_key_index_and_name(path):
    scenario = load_scenario(
        path,
        overrides=[
            "horizon_s=1e3",
            "pool.profile.max_num_seqs=32",
            "pool.entitlements.chat.limit.slots=9",
            "workload[0].arrivals={kind: even, rate_per_s: 3}",
            "workload.batch#2.priority=4",
            "policies.frozen.alpha_debt=0",
            "title=null",
            "replications=1",
        ],
    )
    assert scenario.horizon_s == 1000
    assert scenario.pool.profile.max_num_seqs == 32
    assert scenario.pool.entitlements[0].limit.slots == 9
    assert scenario.workload[0].arrivals == Even(rate_per_s=3)
    assert scenario.workload[2].priority == 4
    assert scenario.title is None
    assert {cell.replication for cell in expand(scenario)} == {0}


@pytest.mark.parametrize(
    ("text", "field", "fix"),
    [
        ("horizon_s", "--set", "give path=value, e.g. pool.replicas=2"),
        ("=3", "--set", "give path=value, e.g. pool.replicas=2"),
        ("pol.replicas=2", "pol", "did you mean pool?"),
        ("horizn_s=2", "horizn_s", "did you mean horizon_s?"),
        ("workload.tlak.priority=2", "workload.tlak", "did you mean talk?"),
        ("workload.9.priority=2", "workload.9", "give one of: talk, batch, batch#2, spare"),
        ("horizon_s.x=2", "horizon_s", "set it as a whole"),
        ("version=2", "version", "edit the file instead"),
        ("seed=[1", "--set seed", "check indentation, brackets and quotes"),
        ("horizon_s=90s", "horizon_s", "the field is in seconds, give a plain number: 90"),
    ],
)
def test_what_cannot_be_set_says_why(path, text, field, fix):
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path, overrides=[text])
    assert caught.value.args[0] == str(path)
    assert (caught.value.args[1], caught.value.args[3]) == (field, fix)


def test_what_is_set_is_no_longer_varied(path):
    scenario = load_scenario(path, overrides=["policies.1.alpha_debt=2"])
    assert list(scenario.vary) == ["pool.replicas"]
    assert scenario.policies[1].params.alpha_debt == 2
    assert load_scenario(path, overrides=["policies=[none]"]).vary.keys() == {"pool.replicas"}


def test_a_part_of_what_is_varied_as_a_whole_cannot_be_set(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(mapping() | {"vary": {"workload.talk.client": ["drop", "retry"]}}))
    with pytest.raises(ScenarioError, match=r"vary sets the whole of 'workload\.talk\.client'"):
        load_scenario(file, overrides=["workload.0.client.max_attempts=2"])


def at(tree, path, value):
    return replaced(tree, located(tree, path, "x"), value)


def test_names_may_hold_dots():
    tree = {"policies": [{"kind": "a", "x": 1}, {"name": "a.x", "x": 2}]}
    assert at(tree, "policies.a.x.x", 5)["policies"][1] == {"name": "a.x", "x": 5}
    assert tree["policies"][1]["x"] == 2


def leaves(node, path=()):
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list) and node:
        for index, value in enumerate(node):
            yield from leaves(value, (*path, str(index)))
    else:
        yield path, node


COMPLETE = resolved(parse_scenario(mapping(), "x"))
LEAVES = [(path, value) for path, value in leaves(COMPLETE) if path[0] not in ("version", "vary")]


@settings(deadline=None)
@given(st.sampled_from(LEAVES))
def test_setting_any_leaf_to_what_it_is_changes_nothing(leaf):
    path, value = leaf
    assert at(COMPLETE, ".".join(path), value) == COMPLETE


@settings(deadline=None)
@given(st.sampled_from(LEAVES), st.sampled_from(LEAVES))
def test_overrides_of_different_places_commute(one, other):
    places = [path for path, _ in (one, other)]
    # A new name, kind or entitlement may be what the other path goes by.
    assume(places[0] != places[1] and not {"name", "kind", "entitlement"} & {path[-1] for path in places})
    first, second = (".".join(path) for path in places)
    assert at(at(COMPLETE, first, "A"), second, "B") == at(at(COMPLETE, second, "B"), first, "A")
