"""Events and instructions as plain lists that JSON can hold, and back, exactly.

A value becomes a list of its name and its fields in order: ``["finished", "r7", 120, 0]``. Numbers keep type and
value: JSON written by Python's ``json`` gives every finite float back bit for bit, and infinities are the strings
"inf" and "-inf". Reading is strict: unknown names, missing or extra fields and wrong types are refused, since what is
read may come from a file or from another process.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar, cast

from policies.api import (
    Adopted,
    Arrived,
    CallMeAt,
    Cancelled,
    CapacityChanged,
    Demote,
    Event,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Hold,
    Instruction,
    Progress,
    Refuse,
    ReplicaReport,
    RequestView,
    Scale,
    Tick,
)

Plain = str | int | float | None | list["Plain"]
"""What `to_plain` returns: JSON without objects."""

EVENTS: Mapping[str, type] = types.MappingProxyType({
    "arrived": Arrived, "first_token": FirstToken, "progress": Progress, "finished": Finished, "failed": Failed,
    "cancelled": Cancelled, "replica_report": ReplicaReport, "capacity_changed": CapacityChanged,
    "adopted": Adopted, "tick": Tick,
})  # fmt: skip
INSTRUCTIONS: Mapping[str, type] = types.MappingProxyType({
    "forward": Forward, "demote": Demote, "hold": Hold, "refuse": Refuse, "evict": Evict, "scale": Scale,
    "call_me_at": CallMeAt,
})  # fmt: skip

_ADDED = frozenset(
    ("sequences", "context_tokens", "prompt_begun", "refused", "key", "model", "wall_s", "prefix", "session")
)
"""Fields that recordings of earlier versions do not have; they stand last, and have defaults."""
_NAMES = {kind: name for name, kind in (*EVENTS.items(), *INSTRUCTIONS.items())}
_INFINITIES = {"inf": math.inf, "-inf": -math.inf}

Read = Callable[[object], Any]
Small = TypeVar("Small", bound=StrEnum)


class WireError(ValueError):
    """What was read is no event or instruction. The text says where, what was found and what was expected."""


def to_plain(value: Event | Instruction | RequestView) -> list[Plain]:
    """Return an event or instruction as a list of its name and its fields; a request view as its fields.

    Raises
    ------
    WireError : a field is not a number (NaN), which JSON cannot hold.
    """
    name = _NAMES.get(type(value))
    fields = _fields(value)
    return fields if name is None else [name, *fields]


def event_from(data: object) -> Event:
    """Return the event that `to_plain` made ``data`` of.

    Raises
    ------
    WireError : it is none.
    """
    return cast("Event", _named(data, "event", _EVENT_READERS))


def instruction_from(data: object) -> Instruction:
    """Return the instruction that `to_plain` made ``data`` of.

    Raises
    ------
    WireError : it is none.
    """
    return cast("Instruction", _named(data, "instruction", _INSTRUCTION_READERS))


# --------------------------------------------------------------------------------------------------------------------
# Writing


def _fields(value: Any) -> list[Plain]:
    """Return the fields; those that were added later only where they say something."""
    kept = len(value)
    names, defaults = value._fields, value._field_defaults
    while kept and names[kept - 1] in _ADDED and value[kept - 1] == defaults[names[kept - 1]]:
        kept -= 1
    return [_plain(each) for each in value[:kept]]


def _plain(value: Any) -> Plain:
    if isinstance(value, StrEnum):
        return value.value
    if hasattr(value, "_fields"):
        return _fields(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            raise WireError("a field is NaN, which compares equal to nothing; expected a number")
        return "inf" if value > 0 else "-inf"
    return cast("Plain", value)


# --------------------------------------------------------------------------------------------------------------------
# Reading: one reader for each annotation of the types in `policies.api`


def _named(data: object, what: str, readers: Mapping[str, Read]) -> Any:
    if not isinstance(data, list) or not data or not isinstance(data[0], str):
        raise WireError(f"{what}: found {_shown(data)}; expected a list that begins with one of {list(readers)}")
    read = readers.get(data[0])
    if read is None:
        raise WireError(f"{what}: unknown name {_shown(data[0])}; expected one of {list(readers)}")
    return read(data[1:])


def _reader_of_tuple(kind: Any, name: str) -> Read:
    """Return what reads a NamedTuple from a list of its fields."""
    hints = typing.get_type_hints(kind)
    fields = [(field, _reader(hints[field])) for field in kind._fields]
    make = cast("Callable[[type, list[Any]], Any]", tuple.__new__)
    least = sum(field not in _ADDED for field, _ in fields)
    left_out = [kind._field_defaults[field] for field, _ in fields[least:]]

    def read(data: object) -> Any:
        if not isinstance(data, list) or not least <= len(data) <= len(fields):
            found = f"{len(data)} fields" if isinstance(data, list) else _shown(data)
            wanted = str(least) if least == len(fields) else f"{least} to {len(fields)}"
            raise WireError(f"{name}: found {found}; expected {wanted}: {[field for field, _ in fields]}")
        values = []
        for (field, read_field), value in zip(fields, data, strict=False):
            try:
                values.append(read_field(value))
            except WireError as error:
                raise WireError(f"{name}.{field}: {error}") from None
        return make(kind, values + left_out[len(data) - least :])

    return read


def _reader(hint: Any) -> Read:
    if hint in (str, int, float, bool):
        return {str: _text, int: _whole, float: _number, bool: _flag}[hint]
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _one_of(hint)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and arguments[1:] == (...,):
        return _several(_reader(arguments[0]))
    if typing.get_origin(hint) is tuple:
        return _each(tuple(_reader(each) for each in arguments))
    if type(None) in arguments and len(arguments) == 2:
        return _optional(_reader(next(each for each in arguments if each is not type(None))))
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        return _reader_of_tuple(hint, hint.__name__)
    raise TypeError(f"policies.wire cannot read a field of type {hint}; teach it, or use a type that it knows")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise WireError(f"found {_shown(value)}; expected text")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise WireError(f"found {_shown(value)}; expected true or false")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise WireError(f"found {_shown(value)}; expected a whole number")
    return value


def _number(value: object) -> float:
    if isinstance(value, str) and value in _INFINITIES:
        return _INFINITIES[value]
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise WireError(f"found {_shown(value)}; expected a number, or the text 'inf' or '-inf'")
    return value


def _one_of(kind: type[Small]) -> Read:
    known = {each.value: each for each in kind}

    def read(value: object) -> Small:
        if not isinstance(value, str) or value not in known:
            raise WireError(f"found {_shown(value)}; expected one of {list(known)}")
        return known[value]

    return read


def _several(read_one: Read) -> Read:
    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise WireError(f"found {_shown(value)}; expected a list")
        return tuple(read_one(each) for each in value)

    return read


def _each(readers: tuple[Read, ...]) -> Read:
    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(readers):
            raise WireError(f"found {_shown(value)}; expected a list of {len(readers)}")
        return tuple(read_one(each) for read_one, each in zip(readers, value, strict=True))

    return read


def _optional(read_one: Read) -> Read:
    return lambda value: None if value is None else read_one(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_EVENT_READERS = {name: _reader_of_tuple(kind, name) for name, kind in EVENTS.items()}
_INSTRUCTION_READERS = {name: _reader_of_tuple(kind, name) for name, kind in INSTRUCTIONS.items()}
