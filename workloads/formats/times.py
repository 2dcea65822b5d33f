"""Times as traces write them, in nanoseconds."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Literal

import numpy as np

from workloads.requests import Floats, Ints

Unit = Literal["datetime", "s", "ms", "us", "ns"]
NS_PER = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
LATEST_NS = 2**63 - 1

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d{1,9}))?(Z|[+-]\d\d(?::?\d\d)?)?", re.ASCII)
_ZONE = re.compile(r"([+-])(\d\d):?(\d\d)?")
_EPOCH = datetime(1970, 1, 1)


def parse_time_ns(text: str, *, zoned: bool | None = None) -> int:
    """Return nanoseconds since 1970-01-01 UTC of a time such as ``2023-11-16 18:17:03.9799600``.

    Up to nine digits after the point; a zone (``Z``, ``+02:00`` or ``+02``) is taken off, a time without one is taken
    as UTC.

    Parameters
    ----------
    zoned : whether there must be a zone; None: either.

    Raises
    ------
    ValueError
        If it is no such time, or not between 1678 and 2261, which nanoseconds in 64 bits cannot hold.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"time {shown(text)} is not readable")
    day, clock, fraction, zone = match.groups()
    if zoned is not None and (zone is not None) != zoned:
        raise ValueError(f"time {shown(text)} has {'no' if zoned else 'a'} time zone, unlike the first row")
    whole = datetime.fromisoformat(f"{day} {clock}")
    if not 1678 <= whole.year <= 2261:
        raise ValueError(f"time {shown(text)} is out of range")
    if zone is not None and (offset := _ZONE.fullmatch(zone)) is not None:
        sign, hours, minutes = offset.groups()
        minutes = minutes or "0"  # PostgreSQL writes +00
        if int(hours) > 23 or int(minutes) > 59:
            raise ValueError(f"time {shown(text)} has no such time zone")
        whole -= (1 if sign == "+" else -1) * timedelta(hours=int(hours), minutes=int(minutes))
    return (whole - _EPOCH) // timedelta(microseconds=1) * 1000 + int((fraction or "").ljust(9, "0"))


def is_time(text: str) -> bool:
    """Return whether a text is written as a date with a time."""
    return _TIME.fullmatch(text) is not None


def has_zone(text: str) -> bool:
    """Return whether a readable time names its zone."""
    match = _TIME.fullmatch(text)
    return match is not None and match[4] is not None


def format_time(time_ns: int, *, digits: int = 7) -> str:
    """Return a dated time as text, with this many digits after the point and all nine where they are needed."""
    whole, fraction = divmod(time_ns, NS_PER["s"])
    text = str(_EPOCH + timedelta(seconds=whole))
    if fraction % 10 ** (9 - digits):
        digits = 9
    return f"{text}.{fraction // 10 ** (9 - digits):0{digits}d}"


def format_seconds(time_ns: int) -> str:
    """Return seconds as an exact decimal, without needless zeros."""
    whole, fraction = divmod(time_ns, NS_PER["s"])
    return f"{whole}.{fraction:09d}".rstrip("0").rstrip(".")


def to_ns(values: Floats, unit: str) -> Ints:
    """Return times in a unit as nanoseconds, to the nearest: a double keeps a Unix time to about 0.2 microseconds."""
    whole = np.floor(values)
    return (whole.astype(np.int64) * NS_PER[unit] + np.rint((values - whole) * NS_PER[unit]).astype(np.int64)).astype(
        np.int64
    )


def told(name: str) -> str:
    """Return a name of somebody's file for a line of text: as it is, unless it is long or would do something there."""
    return name if name.isprintable() and len(name) <= 60 else shown(name)


def shown(text: str) -> str:
    """Return a value as errors show it: on one line, and short."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
