"""One row at a time: slow, and right about which row is wrong and why."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workloads.formats.errors import TraceError
from workloads.formats.ids import Ids
from workloads.formats.layouts import LABELS, Layout
from workloads.formats.lines import Block
from workloads.formats.rows import Blocks, labels_of
from workloads.formats.times import NS_PER, has_zone, is_time, parse_time_ns, shown, to_ns

MAX_COUNT = 2**31 - 1
LATEST_S = 9.2e9
"""Largest number of seconds whose nanoseconds fit 64 bits."""

_COUNT = re.compile(r"-?\d+", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_TIME_FIX = "write it as 2023-11-16 18:17:03.9799600"

Columns = dict[str, Any]
"""A role of `workloads.formats.layouts.ROLES` to an int64 array, Labels, Blocks or (request_id, parent) a list."""


@dataclass(slots=True)
class Before:
    """What the rows above were like, which the next must fit: the last time, zones, ids seen, the size of blocks."""

    in_order: bool = True
    last_ns: int | None = None
    zoned: bool | None = None
    ids: Ids = field(default_factory=Ids)
    block_tokens: int = 0


@dataclass(slots=True)
class _Row:
    """One row being read: ``get`` returns the cell of a column, None where the row has none."""

    layout: Layout
    file: str
    number: int
    get: Callable[[str], Any]

    def refuse(self, problem: str, fix: str) -> TraceError:
        return TraceError(self.file, self.number, problem, fix)

    def time_ns(self, before: Before) -> int:
        column = self.layout.time
        value = self.get(column)
        iso = self.layout.unit == "s" and isinstance(value, str) and is_time(value)  # a date is no number of seconds
        if self.layout.unit == "datetime" or iso:
            text = value if isinstance(value, str) else "" if value is None else str(value)
            try:
                time_ns = parse_time_ns(text, zoned=before.zoned)
            except ValueError as error:
                problem = str(error) if "time" in str(error) else f"time {shown(text)} does not exist"
                fix = "write all with the same" if "zone" in problem else _TIME_FIX
                raise self.refuse(problem, fix) from None
            before.zoned = has_zone(text)
        else:
            time_ns = self._number_ns(column, value)
            text = str(value)
        if before.in_order and before.last_ns is not None and time_ns < before.last_ns:
            problem = f"time {text} is before that of the row above"
            raise self.refuse(problem, f"sort the rows by {column}, or: tokenpools trace convert --sort")
        before.last_ns = time_ns
        return time_ns

    def _number_ns(self, column: str, value: Any) -> int:
        unit = self.layout.unit
        if value is None or value == "":
            raise self.refuse(f"{column} is missing", f"give a time in {unit}, e.g. 12.5")
        if isinstance(value, str) and _NUMBER.fullmatch(value) is None:
            raise self.refuse(f"{column} {shown(value)} is not a number", f"give a time in {unit}, e.g. 12.5")
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self.refuse(f"{column} {shown(str(value))} is not a number", f"give a time in {unit}, e.g. 12.5")
        if unit == "ns":
            if not (isinstance(value, int) or (isinstance(value, str) and _COUNT.fullmatch(value))):
                raise self.refuse(f"{column} {shown(str(value))} is not a whole number", "give nanoseconds")
            whole = int(value) if len(str(value)) < 30 else -1
            if not 0 <= whole <= int(LATEST_S * 1e9):
                raise self.refuse(f"{column} {shown(str(value))} is out of range", "give nanoseconds from 0")
            return whole
        try:
            number = float(value)
        except OverflowError:  # a whole number of some hundred digits
            number = math.inf
        if not 0 <= number <= LATEST_S * NS_PER["s"] / NS_PER[unit]:
            raise self.refuse(f"{column} {shown(str(value))} is out of range", f"give {unit} from 0")
        return int(to_ns(np.array([number]), unit)[0])

    def count(self, column: str, *, optional: bool = False) -> int:
        value = self.get(column)
        if value is None or value == "":
            if optional:
                return 0
            raise self.refuse(f"{column} is missing", "give a number of tokens, e.g. 64")
        text = str(value)
        # The length is checked first: Python refuses to convert thousands of digits.
        if isinstance(value, bool | float) or _COUNT.fullmatch(text) is None or len(text) > 100:
            raise self.refuse(f"{column} {shown(text)} is not a whole number", "give tokens, e.g. 64")
        if not 0 <= int(text) <= MAX_COUNT:
            raise self.refuse(f"{column} {shown(text)} is out of range", f"give 0 to {MAX_COUNT} tokens")
        return int(text)

    def text(self, column: str) -> str:
        value = self.get(column)
        if value is None:
            return ""
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
        raise self.refuse(f"{column} {shown(str(value))} is not text", "give a name")

    def blocks(self, column: str) -> list[int]:
        value = self.get(column)
        if value is None:
            return []
        good = isinstance(value, list) and all(
            isinstance(one, int) and not isinstance(one, bool) and -(2**63) <= one < 2**64 for one in value
        )
        if not good:
            raise self.refuse(
                f"{column} is {shown(str(value))}, not a list of whole numbers", "give [] where there are none"
            )
        assert isinstance(value, list)
        return value

    def block_tokens(self, before: Before) -> None:
        value = self.get("block_tokens")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
            raise self.refuse(f"block_tokens is {shown(str(value))}", "give the tokens of a block, e.g. 16")
        if before.block_tokens not in (0, value):
            problem = f"block_tokens is {value}, and {before.block_tokens} above"
            raise self.refuse(problem, "give blocks of one size")
        before.block_tokens = value

    def identity(self, column: str, before: Before) -> object:
        value = self.get(column)
        if value is None or isinstance(value, list | dict):
            raise self.refuse(f"{column} is missing", "give each request its own")
        if not before.ids.add(value):
            raise self.refuse(f"{column} {shown(str(value))} is that of a row above", "give each request its own")
        return value

    def parent(self, column: str) -> object:
        value = self.get(column)
        if isinstance(value, list | dict):
            raise self.refuse(f"{column} {shown(str(value))} names no request", "give the id of a row above, or -1")
        return value


def read_rows(rows: Iterable[tuple[int, Callable[[str], Any]]], layout: Layout, file: str, before: Before) -> Columns:
    """Return the columns of rows given as (row number, cell of a column), or name the first that is wrong."""
    found: dict[str, list[Any]] = {role: [] for role in layout.has}
    for number, get in rows:
        row = _Row(layout, file, number, get)
        found["time"].append(row.time_ns(before))
        for role in ("prompt", "output"):
            found[role].append(row.count(layout.role(role) or ""))
        for role in ("limit", "turn"):
            if role in found:
                found[role].append(row.count(layout.role(role) or "", optional=True))
        for role in LABELS:
            if role in found:
                found[role].append(row.text(layout.role(role) or ""))
        if layout.blocks is not None:
            found["blocks"].append(row.blocks(layout.blocks))
            if not layout.block_tokens and found["blocks"][-1]:
                row.block_tokens(before)
        if layout.request_id is not None:
            found["request_id"].append(row.identity(layout.request_id, before))
        if layout.parent is not None:
            found["parent"].append(row.parent(layout.parent))
    size = layout.block_tokens or before.block_tokens
    try:
        return {role: _column(role, values, size) for role, values in found.items()}
    except OverflowError:
        problem = f"{layout.blocks} has numbers below 0 beside numbers of 2**63 and more"
        raise TraceError(file, None, problem, "give ids from 0 to 2**64 - 1") from None


def _column(role: str, values: list[Any], block_tokens: int) -> Any:
    if role in LABELS:
        names: dict[str, int] = {}
        codes = np.array([names.setdefault(text, len(names)) for text in values], dtype=np.int32)
        return labels_of(codes, names)
    if role == "blocks":
        ends = np.cumsum([len(one) for one in values], dtype=np.int64)
        ids = [i for one in values for i in one]
        unsigned = max(ids, default=0) >= 2**63
        bits = np.array(ids, dtype=np.uint64 if unsigned else np.int64).view(np.int64)
        return Blocks(bits, ends, block_tokens, unsigned)
    return values if role in ("request_id", "parent") else np.array(values, dtype=np.int64)


def cells_of(text: str, file: str, number: int) -> list[str]:
    """Return the cells of a line of CSV."""
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader([text]))
    except csv.Error as error:
        raise TraceError(file, number, f"{shown(text)} is not CSV ({error})", "give shorter cells") from None


def csv_cells(block: Block, names: tuple[str, ...], file: str) -> Iterator[tuple[int, Callable[[str], Any]]]:
    """Yield the rows of CSV lines; blank lines are passed over."""
    where = {name: index for index, name in enumerate(names)}
    # Of bytes, splitlines breaks at LF, CR and CRLF only, as editors do.
    for number, line in enumerate(block.data.splitlines(), start=block.first_line):
        if not line.strip():
            continue
        text = line.decode(errors="replace")
        cells = cells_of(text, file, number)
        if len(cells) != len(names):
            columns = f"{len(cells)} column{'s' if len(cells) > 1 else ''} instead of {len(names)}"
            raise TraceError(file, number, columns, f"give {','.join(names)}")

        def get(column: str, cells: list[str] = cells) -> str:
            return cells[where[column]].strip(" \t")

        yield number, get


def json_objects(block: Block, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of JSONL; blank lines are passed over."""
    for number, line in enumerate(block.data.splitlines(), start=block.first_line):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise TraceError(
                file, number, f"{shown(line.decode(errors='replace'))} is not JSON", "give one object a line"
            ) from None
        if not isinstance(value, dict):
            raise TraceError(file, number, f"{shown(str(value))} is not a JSON object", "give one object a line")
        yield number, value


def json_cells(block: Block, file: str) -> Iterator[tuple[int, Callable[[str], Any]]]:
    """Yield the rows of JSONL."""
    for number, value in json_objects(block, file):
        yield number, _finite(value)


def _finite(value: dict[str, Any]) -> Callable[[str], Any]:
    def get(column: str) -> Any:
        cell = value.get(column)
        return "NaN" if isinstance(cell, float) and not math.isfinite(cell) else cell

    return get
