"""What an API server makes of the schema of a custom resource: its structure, and its rules in CEL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cel
from jsonschema import Draft4Validator  # OpenAPI 3.0, as CRDs have it, has draft 4's exclusiveMinimum

_NOTHING = object()


def faults(schema: Mapping[str, Any], new: Any, old: Any = _NOTHING) -> list[str]:
    """Return why an object cannot be; ``old`` is what stands in its place."""
    structure = Draft4Validator(schema).iter_errors(new)
    found = [f"{'.'.join(map(str, one.absolute_path))}: {one.message}" for one in structure]
    return found or list(_broken(schema, new, old, ""))


def rules_in(schema: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    """Return every rule with its place."""
    for one in schema.get("x-kubernetes-validations", ()):
        yield place, one["rule"]
    for name, inner in schema.get("properties", {}).items():
        yield from rules_in(inner, f"{place}.{name}")


def _broken(schema: Mapping[str, Any], new: Any, old: Any, place: str) -> Iterator[str]:
    for one in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in one["rule"] and old is _NOTHING:
            continue  # a rule about a change is asked at changes alone
        if cel.evaluate(one["rule"], {"self": new, "oldSelf": None if old is _NOTHING else old}) is not True:
            yield f"{place.lstrip('.')}: {one['message']}"
    for name, inner in schema.get("properties", {}).items():
        if isinstance(new, Mapping) and name in new:
            before = old[name] if isinstance(old, Mapping) and name in old else _NOTHING
            yield from _broken(inner, new[name], before, f"{place}.{name}")
