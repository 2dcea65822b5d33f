"""JSON as a client wrote it: read once, in linear time, and changed without writing anew what stays.

A body that is parsed and written again is another text: ``1e999`` comes out as ``Infinity``, an escaped half character
as bytes that are no UTF-8. So a change cuts out the one value, or adds a field behind the last, and nothing else moves.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NoReturn

Json = dict[str, Any]
Span = tuple[int, int]


class Raw(str):
    """A value that is JSON already."""


_SPACE = " \t\n\r"
_DECODER = json.JSONDecoder()


def read_object(text: str) -> Json:
    """Return the object that a text holds.

    Raises
    ------
    ValueError : it holds none, a field twice, or a number that JSON has not.
    RecursionError : it is nested too deeply.
    """
    value = _STRICT.decode(text)
    if type(value) is not dict:
        raise ValueError(f"it is {describe(value)}, an object is expected")
    return value


def spans(text: str, names: Collection[str]) -> dict[str, Span]:
    """Return where the values of these fields of an object stand in its text; the text was read before."""
    found: dict[str, Span] = {}
    at = _skip(text, 0) + 1
    while len(found) < len(names):
        at = _skip(text, at)
        if text[at] == "}":
            break
        name, at = scanstring(text, at + 1, True)
        at = _skip(text, _skip(text, at) + 1)
        begin = at
        _, at = _DECODER.raw_decode(text, at)
        if name in names:
            found[name] = begin, at
        at = _skip(text, at)
        if text[at] == ",":
            at += 1
    return found


def changed(body: bytes, where: Mapping[str, Span], changes: Mapping[str, Any]) -> bytes:
    """Return an object's text with other values; what it does not have yet comes behind its last field.

    Parameters
    ----------
    where : `spans` of the fields that it has, of those in ``changes``.
    """
    if not changes:
        return body
    more = {name: value for name, value in changes.items() if name not in where}
    places = sorted((where[name], _written(value)) for name, value in changes.items() if name in where)
    if places:
        text, parts, last = body.decode(), [], 0
        for (begin, end), value in places:
            parts += [text[last:begin], value]
            last = end
        body = "".join([*parts, text[last:]]).encode()
    if not more:
        return body
    head = body.rstrip()[:-1]
    comma = b"" if head.rstrip().endswith(b"{") else b","
    added = ", ".join(f"{json.dumps(name)}: {_written(value)}" for name, value in more.items())
    return head + comma + added.encode() + b"}"


def _written(value: Any) -> str:
    return value if isinstance(value, Raw) else json.dumps(value)


def describe(value: object) -> str:
    """Return a phrase for a value, without what a client wrote: errors go to logs."""
    if value is None:
        return "missing"
    if isinstance(value, bool | int | float):
        text = repr(value)
        return text if len(text) < 40 else "a very long number"
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _object(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):  # servers differ in which of the two they take
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the field {name[:100]!r} stands there twice")
            seen.add(name)
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
