"""Parameters that change nothing as the others are set: they are refused, since whoever gave one expects an effect."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def refuse_idle(params: Any, name: str, why: str, fix: str) -> None:
    """Refuse a parameter that was given although nothing would read it; one at its default was not given.

    Raises
    ------
    ValueError : it has another value than its default.
    """
    (default,) = [one.default for one in fields(params) if one.name == name]
    value = getattr(params, name)
    if value != default:
        raise ValueError(f"{name} is {value!r} and changes nothing, since {why}; {fix}, or leave it out")
