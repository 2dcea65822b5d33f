"""The fewest fields that say the same."""

from __future__ import annotations

from typing import Any

from sim.scenario.shortest import Tree, shortest

DEFAULTS: Tree = {"a": 1, "b": {"kind": "x", "c": 2}, "items": []}


def meaning(tree: Any) -> Any:
    """Read a tree as settings are read: with defaults, and a kind's name for a mapping of it."""
    b = tree.get("b", {})
    b = {"kind": b} if isinstance(b, str) else b
    items = [{"size": 3, "note": None} | one for one in tree.get("items", [])]
    return DEFAULTS | tree | {"b": DEFAULTS["b"] | b, "items": items}


def short(tree: Tree) -> Tree:
    whole = meaning(tree)
    found = shortest(whole, lambda one: bool(meaning(one) == whole))
    assert meaning(found) == whole
    return found


def test_what_is_a_default_is_left_out() -> None:
    assert short({"a": 1}) == {}
    assert short({"a": 2, "b": {"kind": "x", "c": 5}}) == {"a": 2, "b": {"c": 5}}


def test_a_kind_alone_is_its_name() -> None:
    assert short({"b": {"kind": "y", "c": 2}}) == {"b": "y"}


def test_members_of_a_list_stay_alike_but_for_what_holds_nothing() -> None:
    assert short({"items": [{"size": 3}, {"size": 4, "note": "n"}]}) == {
        "items": [{"size": 3}, {"size": 4, "note": "n"}]
    }
    assert short({"items": [{"size": 3}, {"size": 3}]}) == {"items": [{}, {}]}


def test_what_cannot_be_read_is_not_the_same() -> None:
    def same(tree: Tree) -> bool:
        return {"version", "name"} <= set(tree)

    assert shortest({"version": 1, "name": "n", "more": {"x": 1}}, same) == {"version": 1, "name": "n"}
