"""Values set by dotted path: one machinery for ``--set`` and for ``vary``.

A path goes through keys of mappings and through elements of lists; an element is named by its index or by what it
calls itself (its name, else its kind, else its entitlement). Names may contain dots: the longest match counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from sim.errors import ScenarioError
from sim.scenario.validation_errors import suggestion
from sim.scenario.yaml_file import describe, join, parse_yaml, shown

Location = tuple[str | int, ...]

_FIXED = ("version", "vary")


def parse_override(text: str, file: str) -> tuple[str, Any]:
    """Return path and value of ``path=value``; the value is read as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ScenarioError(file, "--set", f"got {shown(text)}", "give path=value, e.g. pool.replicas=2")
    return path.strip(), parse_yaml(value, file, f"--set {join('', path.strip())}")


def located(tree: dict[str, Any], path: str, file: str) -> Location:
    """Return the keys and indices that a path goes through.

    The last one may be a key that is not there yet: whether it may be is for the models to say.

    Raises
    ------
    ScenarioError : the path leads nowhere.
    """
    steps = re.sub(r"\[(\d+)\]", r".\1", path).split(".")
    if steps[0] in _FIXED:
        raise ScenarioError(file, steps[0], "cannot be set", "edit the file instead")
    node: Any = tree
    shown_path = ""
    found: list[str | int] = []
    while steps:
        key, taken = _match(node, steps)
        if key is None:
            if not isinstance(node, dict | list):
                problem = f"is {describe(node)}, which has no {shown(steps[0])}"
                raise ScenarioError(file, shown_path, problem, "set it as a whole")
            if isinstance(node, list) or len(steps) > 1:
                known = list(node) if isinstance(node, dict) else list(_names(node))
                raise ScenarioError(file, join(shown_path, steps[0]), "no such place", suggestion(steps[0], known))
            key, taken = steps[0], 1
        found.append(key)
        shown_path = join(shown_path, key)
        steps = steps[taken:]
        if steps:
            node = node[key]
    return tuple(found)


def replaced(tree: dict[str, Any], location: Location, value: Any) -> dict[str, Any]:
    """Return a copy of ``tree`` with the value at a location replaced; what does not change is shared."""
    changed: dict[str, Any] = _replace(tree, location, value)
    return changed


def overridden(
    tree: dict[str, Any], text: str, file: str, varied: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return a copy of a resolved scenario with ``path=value`` set, and which of the varied paths it leaves varied."""
    path, value = parse_override(text, file)
    place = located(tree, path, file)
    left = []
    for other in varied:
        there = located(tree, other, file)
        if there[: len(place)] == place:
            continue
        if place[: len(there)] == there:
            raise ScenarioError(file, path, f"vary sets the whole of {shown(other)}", "set that, or edit the file")
        left.append(other)
    return replaced(tree, place, value), left


def _replace(node: Any, location: Location, value: Any) -> Any:
    if not location:
        return value
    key, *below = location
    copy: Any = dict(node) if isinstance(node, dict) else list(node)
    copy[key] = _replace(copy[key], tuple(below), value) if below else value
    return copy


def _match(node: Any, steps: Sequence[str]) -> tuple[str | int | None, int]:
    """Return the key that the first steps stand for in ``node``, and how many they are: as many as possible."""
    for taken in range(len(steps), 0, -1):
        key = _key(node, ".".join(steps[:taken]))
        if key is not None:
            return key, taken
    return None, 0


def _key(node: Any, name: str) -> str | int | None:
    """Return the key or index that ``name`` stands for in ``node``, or None."""
    if isinstance(node, dict):
        return name if name in node else None
    if isinstance(node, list):
        for index, element in enumerate(node):
            if _own_name(element) == name:
                return index
        if re.fullmatch(r"[0-9]{1,9}", name) and int(name) < len(node):
            return int(name)
    return None


def _own_name(element: Any) -> str | None:
    if not isinstance(element, dict):
        return element if isinstance(element, str) else None
    return next((element[key] for key in ("name", "kind", "entitlement") if isinstance(element.get(key), str)), None)


def _names(elements: list[Any]) -> Iterator[str]:
    for index, element in enumerate(elements):
        yield _own_name(element) or str(index)


def element_names(elements: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each element of a list with what a path calls it: its own name, or its index where that is taken."""
    seen: set[str] = set()
    for index, element in enumerate(elements):
        name = _own_name(element)
        if name is None or name in seen:
            name = str(index)
        seen.add(name)
        yield name, element


def labels_of(values: Sequence[Any]) -> list[str]:
    """Return a short text for each value: what it calls itself where that tells them apart, else what it is."""
    names = [_own_name(value) for value in values]
    if all(names) and len(set(names)) == len(names):
        return [str(name) for name in names]
    return [value if isinstance(value, str) else _text(value) for value in values]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
