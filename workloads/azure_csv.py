"""The CSV format of the Azure LLM inference traces of 2023, as published.

Three columns, ``TIMESTAMP,ContextTokens,GeneratedTokens``, a row a request, times such as
``2023-11-16 18:17:03.9799600`` in order, CRLF or LF.

References
----------
P. Patel et al., "Splitwise: Efficient generative LLM inference using phase splitting", ISCA 2024; the files are in
Azure/AzurePublicDataset, CC-BY-4.0.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from workloads.requests import Floats, Ints

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MAX_TOKENS = 2**31 - 1
_PLAIN = b"0123456789-: .,\r\n"
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?", re.ASCII)
_COUNT = re.compile(r"-?\d+", re.ASCII)
_EPOCH = datetime(1970, 1, 1)
_TIME_FIX = "write it as 2023-11-16 18:17:03.9799600"
_BOM = b"\xef\xbb\xbf"


class TraceError(Exception):
    """A trace that cannot be used: ``file: row 12: problem; fix``.

    Arguments are positional, so that it survives pickling. ``row`` is the line as a text editor numbers it (the header
    is line 1), or None where the whole file is meant.
    """

    def __init__(self, file: str, row: int | None, problem: str, fix: str) -> None:
        super().__init__(file, row, problem, fix)

    def __str__(self) -> str:
        """Return the one line that is shown."""
        file, row, problem, fix = self.args
        place = file if row is None else f"{file}: row {row}"
        return f"{place}: {problem}; {fix}"


@dataclass(frozen=True, slots=True, eq=False)
class TraceRows:
    """The requests of a trace, in its order.

    Attributes
    ----------
    first_ns : time of the first row, nanoseconds since 1970-01-01 on the trace's clock.
    time_s : shape (n,), seconds since the first row, never decreasing.
    prompt_tokens, output_tokens : shape (n,), at least 1.
    clipped : how many counts of 0 were raised to 1. The files of 2023 have none; a replica needs a prompt, and a
        request that ends has produced a token.
    """

    first_ns: int
    time_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    clipped: int

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.time_s)


def read_azure_csv(path: Path) -> TraceRows:
    """Read a trace file.

    Raises
    ------
    TraceError
        With the first bad row: wrong columns, an unreadable time, a count that is missing, negative or not a whole
        number, times out of order. Also for an empty or unreadable file. Blank lines are passed over.
    """
    try:
        data = path.read_bytes().removeprefix(_BOM)
    except OSError as error:
        raise TraceError(str(path), None, f"cannot be read ({error.strerror})", "name a readable file") from None
    columns = _read_fast(data)
    if columns is None:
        columns = _read_carefully(data, str(path))
    time_ns, prompt, output = columns
    return TraceRows(
        first_ns=int(time_ns[0]),
        time_s=(time_ns - time_ns[0]) / 1e9,
        prompt_tokens=np.maximum(prompt, 1),
        output_tokens=np.maximum(output, 1),
        clipped=int(np.count_nonzero(prompt == 0) + np.count_nonzero(output == 0)),
    )


def parse_time_ns(text: str) -> int:
    """Return nanoseconds since 1970-01-01 of a time as the trace writes it; up to nine digits after the point.

    Raises
    ------
    ValueError
        If it is no such time, or not between 1678 and 2261, which nanoseconds in 64 bits cannot hold.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"time {_shown(text)} is not readable")
    whole = datetime.fromisoformat(match[1])
    if not 1678 <= whole.year <= 2261:
        raise ValueError(f"time {_shown(text)} is out of range")
    return (whole - _EPOCH) // timedelta(microseconds=1) * 1000 + int((match[2] or "").ljust(9, "0"))


def _read_fast(data: bytes) -> tuple[Ints, Ints, Ints] | None:
    """Return the three columns, or None where anything is unusual: the careful reader then has the last word.

    Only plain characters get here, because pyarrow reads more than this format holds (hexadecimal counts, quotes).
    """
    # Imported here: most scenarios have no trace, and pyarrow takes longer to import than they take to validate.
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    header, _, body = data.partition(b"\n")
    if header.rstrip(b"\r") != ",".join(COLUMNS).encode() or body.translate(None, _PLAIN):
        return None
    try:
        table = csv.read_csv(
            io.BytesIO(body),
            read_options=csv.ReadOptions(column_names=COLUMNS),
            parse_options=csv.ParseOptions(quote_char=False),
            convert_options=csv.ConvertOptions(
                column_types={COLUMNS[0]: pa.string(), COLUMNS[1]: pa.int64(), COLUMNS[2]: pa.int64()}
            ),
        )
        if not table.num_rows or any(column.null_count for column in table.columns):
            return None
        if pc.min(pc.binary_length(table[0])).as_py() < len("2023-11-16 18:17:03"):
            return None  # pyarrow would take a date alone for midnight
        time_ns = table[0].cast(pa.timestamp("ns")).cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    prompt, output = table[1].to_numpy(), table[2].to_numpy()
    in_range = all(int(column.min()) >= 0 and int(column.max()) <= _MAX_TOKENS for column in (prompt, output))
    return (time_ns, prompt, output) if in_range and bool(np.all(np.diff(time_ns) >= 0)) else None


def _read_carefully(data: bytes, file: str) -> tuple[Ints, Ints, Ints]:
    """Return the three columns, row by row, or name the first row that is wrong."""
    lines = data.splitlines()  # of bytes: breaks at LF, CR and CRLF only, as editors do
    if not any(line.strip() for line in lines):
        raise TraceError(file, None, "the file is empty", f"start it with the line {','.join(COLUMNS)}")
    names = tuple(name.strip() for name in lines[0].decode(errors="replace").split(","))
    if names != COLUMNS:
        found = _shown(lines[0].decode(errors="replace"))
        raise TraceError(file, 1, f"the columns are {found}", f"name them {','.join(COLUMNS)}")
    rows: list[tuple[int, int, int]] = []
    last_ns: int | None = None
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = [cell.strip(" \t") for cell in line.decode(errors="replace").split(",")]
        if len(cells) != len(COLUMNS):
            raise TraceError(file, number, f"{len(cells)} columns instead of 3", f"give {','.join(COLUMNS)}")
        try:
            time_ns = parse_time_ns(cells[0])
        except ValueError as error:
            problem = str(error) if "time" in str(error) else f"time {_shown(cells[0])} does not exist"
            raise TraceError(file, number, problem, _TIME_FIX) from None
        prompt, output = (_count(cells[i], COLUMNS[i], number, file) for i in (1, 2))
        if last_ns is not None and time_ns < last_ns:
            problem = f"time {cells[0]} is before that of the row above"
            raise TraceError(file, number, problem, "sort the rows by TIMESTAMP")
        last_ns = time_ns
        rows.append((time_ns, prompt, output))
    if not rows:
        raise TraceError(file, None, "there is no row after the header", "give at least one request")
    table = np.array(rows, dtype=np.int64)
    return table[:, 0], table[:, 1], table[:, 2]


def _count(text: str, column: str, number: int, file: str) -> int:
    if not text:
        raise TraceError(file, number, f"{column} is missing", "give a number of tokens, e.g. 64")
    # The length is checked first: Python refuses to convert thousands of digits.
    if _COUNT.fullmatch(text) is None or len(text) > 100:
        raise TraceError(file, number, f"{column} {_shown(text)} is not a whole number", "give tokens, e.g. 64")
    count = int(text)
    if not 0 <= count <= _MAX_TOKENS:
        raise TraceError(file, number, f"{column} {_shown(text)} is out of range", f"give 0 to {_MAX_TOKENS} tokens")
    return count


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
