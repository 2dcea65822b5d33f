"""The book of leases as text, and back. What was read may be anything: it is a book, or it is none."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from policies.limit_leases import Book, Need, Share
from policies.sharing import Told


def text_of(book: Book) -> str:
    """Return a book as JSON."""
    shares = {name: _plain(share) for name, share in book.shares.items()}
    return json.dumps({"dealt_from_us": book.dealt_from_us, "shares": shares}, separators=(",", ":"), allow_nan=False)


def book_from(text: str) -> Book | None:
    """Return the book that a text holds; None where it holds none."""
    try:
        data = json.loads(text)
        return Book(int(data["dealt_from_us"]), {str(name): _share(each) for name, each in data["shares"].items()})
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def prolonged(book: Book, until: Mapping[Any, Any]) -> Book:
    """Return a book with what gateways said by looking; unsigned, so that it can only make parts good for longer."""
    shares = {}
    for name, share in book.shares.items():
        said = until.get(name, "")
        later_us = int(said) if isinstance(said, str) and said.isdecimal() and len(said) < 20 else 0
        shares[name] = share if later_us <= share.until_us else replace(share, until_us=later_us)
    return replace(book, shares=shares)


def _plain(share: Share) -> list[Any]:
    return [
        share.until_us, dict(share.parts), {limit: list(need) for limit, need in share.needs.items()},
        {name: list(told) for name, told in share.entitlements.items()},
        {str(replica_id): list(told) for replica_id, told in share.replicas.items()},
    ]  # fmt: skip


def _share(data: Any) -> Share:
    until_us, parts, needs, entitlements, replicas = data
    return Share(
        int(until_us), {str(limit): _number(part) for limit, part in parts.items()},
        {str(limit): Need(*map(_number, need)) for limit, need in needs.items()},
        {str(name): _told(told) for name, told in entitlements.items()},
        {int(replica_id): _told(told) for replica_id, told in replicas.items()},
    )  # fmt: skip


def _told(data: Any) -> Told:
    return Told(*(int(_number(each)) for each in data))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no amount")
    return value


