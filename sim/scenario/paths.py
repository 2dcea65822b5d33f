"""The dotted paths that `--set` takes, from the schema and from a scenario: what a shell completes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim.scenario.overrides import element_names

_FIXED = ("version", "vary")
_DEEPEST = 8
_UNKNOWN = object()  # no scenario says what stands here: the schema alone speaks. Nothing (null) holds no paths.


def set_paths(tree: Mapping[str, Any], schema: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (path, what to give) for each single value that can be set.

    Parameters
    ----------
    tree : a resolved scenario; empty for what the schema alone allows.
    schema : as `sim.scenario.load.json_schema` gives it.
    """
    found = _walk(tree or _UNKNOWN, schema, schema.get("$defs", {}), "", 0)
    return sorted({path: text for path, text in found if path.split(".")[0] not in _FIXED}.items())


def choices(path: str, tree: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Return the words that may be set at a path, if there are few; else nothing."""
    definitions = schema.get("$defs", {})
    node: Any = tree or _UNKNOWN
    part: Mapping[str, Any] = schema
    steps = path.split(".")
    while steps:
        held = _children(node, part, definitions)
        key = next((name for name in held if steps[: name.count(".") + 1] == name.split(".")), None)
        if key is None:
            return []
        node, part = held[key]
        steps = steps[key.count(".") + 1 :]
    words = []
    for one in _variants(part, definitions):
        words += [str(word) for word in one.get("enum", [one["const"]] if "const" in one else [])]
        words += ["true", "false"] if one.get("type") == "boolean" else []
    return words


def _walk(
    node: Any, schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str, depth: int
) -> Iterator[tuple[str, str]]:
    held = _children(node, schema, definitions) if depth < _DEEPEST else {}
    if not held:
        if prefix:
            yield prefix, str(schema.get("description", ""))
        return
    for key, (value, part) in held.items():
        yield from _walk(value, part, definitions, f"{prefix}.{key}" if prefix else key, depth + 1)


def _children(node: Any, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what a place holds: of lists the elements by the names that `--set` takes, of mappings the keys."""
    variants = list(_variants(schema, definitions))
    if isinstance(node, list):
        items: Any = next((one["items"] for one in variants if isinstance(one.get("items"), Mapping)), {})
        return {name: (value, items) for name, value in element_names(node)}
    kind = node.get("kind") if isinstance(node, Mapping) else None
    properties: dict[str, Any] = {}
    for one in variants:
        own = one.get("properties", {})
        if kind is None or own.get("kind", {}).get("const", kind) == kind:
            properties |= {name: part for name, part in own.items() if name not in properties}
    if isinstance(node, Mapping):
        return {str(name): (node.get(name), properties.get(name, {})) for name in dict.fromkeys([*node, *properties])}
    if node is _UNKNOWN and len([one for one in variants if "properties" in one]) == 1:
        return {name: (_UNKNOWN, part) for name, part in properties.items()}
    return {}


def _variants(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in schema:
        yield from _variants(definitions.get(str(schema["$ref"]).rpartition("/")[2], {}), definitions)
        return
    nested = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    if not nested:
        yield schema
    for one in nested:
        yield from _variants(one, definitions)
