"""Every field that a file may hold: which there are, where one stands in a given file, and what else it might say."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from sim.scenario.model import Policy
from sim.scenario.registered_types import Later, OneOf, params_of
from sim.scenario.yaml_file import parse_yaml

_EXAMPLE = re.compile(r"e\.g\. (.+?)(?:$|;|, or|, and|, null)")
_MOST = 18

_TWICE = ("Limits", "Capacity")

Path = tuple[str | int, ...]


class Place(NamedTuple):
    """A field of an object in a file: its owner's class and name, where it stands, what it says and may say."""

    owner: type
    name: str
    path: Path
    value: Any
    annotation: Any

    @property
    def key(self) -> str:
        """What names the field, wherever its owner stands."""
        return key_of(self.owner, self.name)


def all_fields(*roots: type) -> dict[str, type]:
    """Return every field that can be reached from models, as ``Class.field``, with the class that it belongs to."""
    found: dict[str, type] = {}
    seen: set[type] = set()
    waiting = list(roots)
    while waiting:
        owner = waiting.pop()
        if owner in seen:
            continue
        seen.add(owner)
        for name, annotation in annotations(owner).items():
            if not (issubclass(owner, Policy) and name == "params"):
                found[key_of(owner, name)] = owner
            waiting += _classes(annotation)
    return found


def unvouched(fields: Mapping[str, type], vouched: Collection[str]) -> list[str]:
    """Return the fields that nobody vouches for: neither they nor, of parts, any field of theirs has an effect."""
    bare = []
    for key, owner in fields.items():
        parts = _classes(annotations(owner)[key.rpartition(".")[2]])
        below = {key_of(part, name) for part in parts for name in annotations(part)}
        if key not in vouched and not below & set(vouched):
            bare.append(key)
    return bare


def key_of(owner: type, name: str) -> str:
    """Return what names a field; of two classes of one name, those outside policies have the name of their module."""
    module = owner.__module__.rpartition(".")[2]
    return f"{module}.{owner.__name__}.{name}" if owner.__name__ in _TWICE else f"{owner.__name__}.{name}"


def annotations(owner: type) -> dict[str, Any]:
    """Return what a model or dataclass says of each field that a file may give."""
    hints = get_type_hints(owner, include_extras=True)
    if issubclass(owner, BaseModel):
        names = list(owner.model_fields)
        found = {}
        for name in names:
            metadata = tuple(owner.model_fields[name].metadata)
            hint = hints[name]
            found[name] = Annotated[(hint, *metadata)] if metadata else hint
        return found
    return {one.name: hints[one.name] for one in dataclasses.fields(owner) if one.init and one.name != "kind"}


def _classes(annotation: Any) -> Iterator[type]:
    """Return the models and dataclasses that a value may be."""
    for part in _parts(annotation):
        if isinstance(part, OneOf):
            yield from (params_of(one) for one in part.variants.values())
        elif isinstance(part, type) and (dataclasses.is_dataclass(part) or issubclass(part, BaseModel)):
            yield part


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for each in get_args(annotation) if get_origin(annotation) is not Literal else ():
        yield from _parts(each)
    if get_origin(annotation) is Annotated:
        for each in annotation.__metadata__:
            if isinstance(each, OneOf):
                yield each
            elif isinstance(each, Later):
                yield each.found()


def places(value: Any, path: Path = ()) -> Iterator[Place]:
    """Return every field of an object and of what it holds."""
    if isinstance(value, BaseModel) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        owner = type(value)
        for name, annotation in annotations(owner).items():
            held = getattr(value, name)
            flat = issubclass(owner, Policy) and name == "params"
            here = path if flat else (*path, name)
            if not flat:
                yield Place(owner, name, here, held, annotation)
            yield from places(held, here)
    elif isinstance(value, tuple | list):
        for index, each in enumerate(value):
            yield from places(each, (*path, index))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from places(each, (*path, key))


def description(owner: type, name: str) -> str:
    """Return what an error would give as the fix."""
    if issubclass(owner, BaseModel):
        return str(owner.model_fields[name].description or "")
    (one,) = [each for each in dataclasses.fields(owner) if each.name == name]
    return str(one.metadata.get("description", ""))


def others(place: Place, names: tuple[str, ...] = ("spot", "high", "elastic")) -> list[Any]:
    """Return other values that a field might have, those that are more likely to be taken first.

    Parameters
    ----------
    names : of entitlements, for what a field holds for each of some.
    """
    said = plain(place.value)
    kinds = list(_parts(place.annotation))
    found: list[Any] = []
    for example in _examples(place):
        found.append(example)
        if isinstance(example, dict) and isinstance(place.value, Mapping):
            found += [dict.fromkeys(names[:count], next(iter(example.values()))) for count in (1, 2)]
    for part in kinds:
        if get_origin(part) is Literal:
            found += get_args(part)
        elif isinstance(part, OneOf):
            found += [{"kind": kind} for kind in part.variants]
        elif isinstance(part, type) and dataclasses.is_dataclass(part):
            found += [{"kind": one.default} for one in dataclasses.fields(part) if one.name == "kind"]
        elif isinstance(part, type) and issubclass(part, Enum):
            found += [one.value for one in part]
    value = place.value
    if isinstance(value, bool) or (bool in kinds and not isinstance(value, tuple | dict)):
        found += [True, False]
    elif isinstance(value, int | float) or ((int in kinds or float in kinds) and value is None):
        base = value if isinstance(value, int | float) else 1
        numbers = [base * 2, base / 2, base * 10, base / 10, base + 1, base - 1, 0, 1, 2, 3, 0.5, 0.1, 0.9]
        found += [int(one) for one in numbers] if int in kinds and float not in kinds else numbers
    elif isinstance(value, tuple | Mapping):
        found += [_scaled(said, by, only_last=last) for last in (False, True) for by in (2, 0.5)]
        if isinstance(said, list):
            found += [said[1:], [*said, *said[-1:]], said[::-1]]
        else:
            found.append(dict(list(said.items())[1:]))
    elif isinstance(value, str) and not isinstance(value, Enum) and str in kinds:
        found += [f"{value}-other" if value else "other"]
    if type(None) in kinds:
        found.append(None)
    kept: list[Any] = []
    for one in found:
        if one != said and not any(one == each and type(one) is type(each) for each in kept):
            kept.append(one)
    return kept[:_MOST]


def _examples(place: Place) -> list[Any]:
    found = []
    for text in _EXAMPLE.findall(description(place.owner, place.name)):
        for cut in (text, text.split(": ", 1)[0], text.rsplit(",", 1)[0], text.split(" ", 1)[0].rstrip(",;:")):
            try:
                found.append(parse_yaml(f"x: {cut}", "effects")["x"])
                break
            except Exception:
                continue
    return found


def _scaled(value: Any, by: float, *, only_last: bool = False) -> Any:
    """Return nested numbers times a factor; whole ones stay whole."""
    if isinstance(value, list):
        if only_last:
            return [*value[:-1], _scaled(value[-1], by, only_last=True)] if value else value
        return [_scaled(one, by) for one in value]
    if isinstance(value, dict):
        return {key: _scaled(one, by) for key, one in value.items()}
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return int(value * by)
    return value * by if isinstance(value, float) else value


def plain(value: Any) -> Any:
    """Return a value as a file would hold it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return value.value if isinstance(value, Enum) else value


def with_value(tree: Mapping[str, Any], root: Any, path: Path, value: Any) -> dict[str, Any]:
    """Return a file's mapping with another value at a path; what it left to defaults on the way there is written out.

    Parameters
    ----------
    root : the object that the mapping was read as.
    """
    changed = copy.deepcopy(dict(tree))
    node: Any = changed
    held = root
    for step in path[:-1]:
        held = _held(held, step)
        below = node[step] if isinstance(step, int) else node.get(step)
        if below is None or isinstance(below, str):
            kind = getattr(held.params if isinstance(held, Policy) else held, "kind", None)
            below = {} if kind is None else {"kind": kind}
        elif not isinstance(below, dict | list):
            below = plain(held)
        node[step] = below
        node = below
    node[path[-1]] = value
    return changed


def _held(value: Any, step: str | int) -> Any:
    if isinstance(step, int):
        return value[step]
    if isinstance(value, Mapping):
        return value[step]
    if isinstance(value, Policy) and not hasattr(value, step):
        value = value.params
    return getattr(value, step)


__all__ = ["Place", "all_fields", "annotations", "description", "others", "places", "plain", "with_value"]
