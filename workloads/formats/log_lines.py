"""What readers of logs share: a request as a log tells of it, lines, and careful numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workloads.formats.careful import MAX_COUNT
from workloads.formats.errors import TraceError
from workloads.formats.lines import line_blocks
from workloads.formats.times import parse_time_ns, shown

BYTES_PER_TOKEN = 4
"""Of a text that nobody counted: what the gateway takes too."""


class Logged(NamedTuple):
    """A request: when it came, and what is known of it.

    ``prompt_tokens`` and ``output_tokens`` are None where the log does not say: of what was refused, there is no
    answer. ``limit_tokens`` is 0 where the client named none.
    """

    time_ns: int
    prompt_tokens: int | None
    output_tokens: int | None
    limit_tokens: int = 0
    tenant: str = ""
    service: str = ""
    session: str = ""


class Torn(NamedTuple):
    """A line that begins as an entry does and is none: a process was killed while it wrote, or two wrote at once."""

    row: int


def is_torn(line: str) -> bool:
    """Return whether a line that is no JSON object was to be one."""
    return line.lstrip().startswith("{")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file, plain or gzip, with their numbers from 1."""
    for block in line_blocks(path):
        for number, line in enumerate(block.data.splitlines(), start=block.first_line):
            yield number, line.decode(errors="replace")


def object_of(line: str) -> dict[str, Any] | None:
    """Return the JSON object that a line is; None where it is none: logs have other lines too, and torn ones."""
    text = line.strip()
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class Fields:
    """The fields of one entry, read with care; ``place`` is how errors name it."""

    def __init__(self, file: str, row: int, values: Mapping[str, Any]) -> None:
        self._file = file
        self._row = row
        self._values = values

    def refused(self, name: str, wanted: str) -> TraceError:
        """Return the error for a field that is not as it should be."""
        return TraceError(self._file, self._row, f"{name} is {shown(str(self._values.get(name)))}", f"give {wanted}")

    def text(self, *names: str) -> str:
        """Return the first of several fields that says something."""
        for name in names:
            value = self._values.get(name)
            if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
                return str(value)
        return ""

    def tokens(self, name: str) -> int | None:
        """Return a number of tokens; None where there is none."""
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if isinstance(value, str) and value.isascii() and value.removesuffix(".0").isdecimal() and len(value) < 20:
            value = int(value.removesuffix(".0"))
        if isinstance(value, float) and value.is_integer():  # pandas writes a column with gaps as 12.0
            value = int(value)
        if type(value) is not int or not 0 <= value <= MAX_COUNT:
            raise self.refused(name, "a whole number of tokens")
        return value

    def seconds(self, name: str) -> float | None:
        """Return a time span in seconds; None where there is none."""
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e8:
            raise self.refused(name, "seconds")
        return float(value)

    def time_ns(self, name: str) -> int:
        """Return a time: ISO with or without a zone (then UTC), or seconds since 1970."""
        value = self._values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 9e9:
            return round(value * 1e9)
        try:
            return parse_time_ns(value if isinstance(value, str) else "")
        except ValueError:
            raise self.refused(name, "a time such as 2026-11-28T20:10:40.123Z") from None

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Return a field that is an object, or its JSON text; empty where it is neither."""
        value = self._values.get(name)
        if isinstance(value, str):
            value = object_of(value)
        return value if isinstance(value, dict) else {}
