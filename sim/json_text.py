"""JSON as its standard has it: no NaN, no number beyond a double, no name twice, and never an exception but one."""

from __future__ import annotations

import json
import math
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON text.

    Raises
    ------
    ValueError : it is none, in one short line.
    """
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None


def is_text(value: str) -> bool:
    """Return whether a text can be written: JSON may hold half a character (a lone surrogate), UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number that a double holds")
    return number


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _whole(text: str) -> int:
    if len(text) > 1000:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:40]!r} appears twice")
    return found


_DECODER = json.JSONDecoder(
    object_pairs_hook=_mapping, parse_float=_finite, parse_int=_whole, parse_constant=_no_number
)
