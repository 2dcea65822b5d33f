"""Whatever it is given, the loader returns a scenario or raises its own error, in one line."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from scenario.examples import EVERYTHING, SHIPPED_PROFILE, mapping

from sim.errors import ScenarioError
from sim.scenario.load import load_scenario, parse_scenario, resolved

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["", "5s", "10 ms", "1e5", "none", "full", "token-pool", "a\nb", "\ud800", "\u2028", "kind", "params"]
    ),
)
STRUCTURES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("version", "seed", "pool", "workload", "policies", "vary", "events", "kind", "name", "params", "profile")


def answer(load):
    """Return the scenario or None, having checked the manner of the refusal."""
    try:
        return load()
    except ScenarioError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        assert message.isprintable(), message
        _, _, problem, fix = error.args
        assert problem, message
        assert fix, message
        return None


def load_bytes(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_bytes(content)
        return answer(lambda: load_scenario(path))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(content):
    assert load_bytes(content) is None


@settings(deadline=None)
@given(st.text(alphabet=":-[]{}&*!|>'\"#%@,? \n\tabc019.e~", max_size=60))
def test_any_text_that_looks_like_yaml(text):
    assert load_bytes(text.encode()) is None


@settings(deadline=None)
@given(STRUCTURES | st.dictionaries(st.sampled_from(FIELDS), STRUCTURES))
def test_any_structure(value):
    assert answer(lambda: parse_scenario(value, "x.yaml")) is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_scenario_with_a_piece_of_its_text_replaced(data):
    text = SHIPPED_PROFILE
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 12)))
    load_bytes((text[:start] + data.draw(st.text(max_size=4)) + text[end:]).encode(errors="replace"))


def nodes(node, path=()):
    yield path
    if isinstance(node, dict | list):
        for step in node if isinstance(node, dict) else range(len(node)):
            yield from nodes(node[step], (*path, step))


PATHS = [path for path in nodes(mapping(EVERYTHING)) if path]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_scenario_with_keys_deleted_renamed_or_replaced(data):
    tree = mapping(EVERYTHING)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(PATHS))
        parent = tree
        try:
            for step in path[:-1]:
                parent = parent[step]
            value = parent[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
        if not isinstance(parent, dict | list):
            continue
        match data.draw(st.sampled_from(["delete", "rename", "replace"])):
            case "delete":
                del parent[path[-1]]
            case "rename" if isinstance(parent, dict):
                del parent[path[-1]]
                parent[data.draw(st.text(max_size=6) | st.sampled_from(FIELDS))] = value
            case _:
                parent[path[-1]] = data.draw(STRUCTURES)
    scenario = answer(lambda: parse_scenario(tree, "x.yaml"))
    if scenario is not None:
        assert parse_scenario(resolved(scenario), "x.yaml") == scenario
