"""Fields of models and dataclasses as a reader wants them: names, types in words, defaults, and what they lead to."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sim.scenario.registered_types import Later, OneOf, params_of

Row = tuple[str, str, str, str]
"""A field's name, type, default and description."""

_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "anything"}
_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def rows(thing: type) -> Iterator[Row]:
    """Yield the fields of a model or dataclass; ``kind`` is known by the heading."""
    for name, annotation, default, about in _fields(thing):
        if name != "kind":
            yield f"`{name}`", in_words(annotation), default, about


def nested(thing: type) -> Iterator[type]:
    """Yield the models and dataclasses that have no ``kind`` and that a field of ``thing`` may hold, at any depth."""
    seen: set[type] = {thing}
    waiting = [thing]
    while waiting:
        for _, annotation, _, _ in _fields(waiting.pop()):
            for one in _within(annotation):
                if one not in seen:
                    seen.add(one)
                    waiting.append(one)
                    if not _has_kind(one):
                        yield one


def in_words(annotation: Any) -> str:
    """Return a type in words."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        registry = next((one for one in inner[1:] if isinstance(one, OneOf)), None)
        if registry is not None:
            return ", ".join(f"`{kind}`" for kind in registry.variants)
        later = next((one for one in inner[1:] if isinstance(one, Later)), None)
        return in_words(inner[0] if later is None else later.found())
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(in_words(one) for one in inner))
    if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return f"mapping of {in_words(inner[0])} to {in_words(inner[1])}"
    if origin in (tuple, list):
        if len(inner) == 2 and inner[1] is ...:
            return f"list of {in_words(inner[0])}"
        return f"[{', '.join(map(in_words, inner))}]"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    if isinstance(annotation, type) and _has_kind(annotation):
        return f"`{_kind(annotation)}`"
    return getattr(annotation, "__name__", str(annotation))


def _fields(thing: Any) -> Iterator[tuple[str, Any, str, str]]:
    if issubclass(thing, BaseModel):
        for name, one in thing.model_fields.items():
            annotation = Annotated[one.annotation, *one.metadata] if one.metadata else one.annotation
            given = one.get_default(call_default_factory=True) if not one.is_required() else PydanticUndefined
            yield name, annotation, _default(given), _about(one.description, {})
        return
    hints = get_type_hints(thing, include_extras=True)
    for field in dataclasses.fields(thing):
        given = field.default
        if field.default_factory is not dataclasses.MISSING:
            given = field.default_factory()
        elif given is dataclasses.MISSING:
            given = PydanticUndefined
        yield field.name, hints[field.name], _default(given), _about(field.metadata.get("description"), field.metadata)


def _within(annotation: Any) -> Iterator[type]:
    """Yield the models and dataclasses that an annotation names."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        yield annotation
    for one in get_args(annotation):
        if isinstance(one, OneOf):
            yield from map(params_of, one.variants.values())
        elif isinstance(one, Later):
            yield one.found()
        else:
            yield from _within(one)


def _has_kind(thing: type) -> bool:
    return dataclasses.is_dataclass(thing) and any(one.name == "kind" for one in dataclasses.fields(thing))


def _kind(thing: Any) -> str:
    return next(str(one.default) for one in dataclasses.fields(thing) if one.name == "kind")


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return f"`{value.model_dump(exclude_defaults=True, mode='json')}`"
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and _has_kind(type(value)):
        return f"`{_kind(type(value))}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`" if value != "" else "none"


def _about(description: Any, bounds: Mapping[str, Any]) -> str:
    limits = ", ".join(f"{_SIGNS[key]} {value:g}" for key, value in bounds.items() if key in _SIGNS)
    text = str(description or "")
    return f"{text} ({limits})" if limits else text
