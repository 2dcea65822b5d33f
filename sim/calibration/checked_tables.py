"""Tables that people give: what is no number, or none that could be, is named by its row before anybody uses it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.errors import InputError
from sim.scenario.validation_errors import suggestion
from sim.scenario.yaml_file import one_line

MOST_TOKENS = 10**8
"""Tokens of a prompt, an answer or a batch; far beyond any model."""

_TOKEN_S = (1e-4, 2.0)
"""Seconds between two tokens of an answer, in the median: slower and faster engines mean another unit. [choice]"""
IDLE_S = 2.0
"""Seconds that a server may take for a request besides its tokens. [choice]"""


_MEANS = (
    ("Run Info,", "GuideLLM", "give its JSON (--output kind=json,path=FILE) to calibrate records"),
    ("Metric,avg,min,", "aiperf", "give profile_export.jsonl, which lies beside it, to calibrate records"),
)
"""How the tables of load generators begin that hold means, whose tool that is, and what to give instead."""

_UNPACKED = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ": lzma.decompress}


def bytes_of(file: Path, fix: str = "name a readable file") -> bytes:
    """Return what a file holds, unpacked where it is packed (gzip, bzip2, xz).

    Raises
    ------
    InputError : unreadable, or torn.
    """
    try:
        data = file.read_bytes()
        unpack = next((by for begin, by in _UNPACKED.items() if data.startswith(begin)), None)
        if unpack is None and file.suffix == ".gz":
            raise OSError("no gzip file")
        return data if unpack is None else unpack(data)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        word = getattr(error, "strerror", None) or str(error)
        raise InputError(str(file), f"cannot be read ({word})", fix) from None


def text_of(file: Path, data: bytes) -> str:
    """Return the text of a file, which is UTF-8 with or without a mark in front.

    Raises
    ------
    InputError : it is not.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(str(file), "is UTF-16", "save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"cannot be read (byte {error.start + 1} is no UTF-8)"
        raise InputError(str(file), problem, "save it as UTF-8, or name the file that holds the measurements") from None


def marked(table: pd.DataFrame, form: str, notes: Sequence[str] = ()) -> pd.DataFrame:
    """Return a run's rows with what a reader must know: of which form they are, and that times count from arrivals."""
    table.attrs = {"format": form, "ttft_from": "arrival", "notes": tuple(notes)}
    return table


def read_csv(file: Path, wanted: Sequence[str], fix: str = "", *, text: str | None = None) -> pd.DataFrame:
    """Return a CSV table as it is written; of ``text`` where that has been read.

    Raises
    ------
    InputError : unreadable, empty, without one of the columns that are wanted, or with rows longer than the header.
    """
    readable, fix = fix or "name a readable file", fix or f"give a CSV file with the columns {', '.join(wanted)}"
    text = text_of(file, bytes_of(file, readable)) if text is None else text
    if text.lstrip()[:1] in ("{", "["):
        raise InputError(str(file), "is JSON, and no CSV table", fix)
    for begin, what, instead in _MEANS:
        if text.startswith(begin):
            raise InputError(str(file), f"is {what}'s CSV, whose columns are its own", instead)
    try:
        table = pd.read_csv(io.StringIO(text))
    except pd.errors.EmptyDataError:
        raise InputError(str(file), "is empty", fix) from None
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(str(file), f"is no CSV table ({str(error).splitlines()[0]})", fix) from None
    twice = next((name for name in table.columns if f"{name}.1" in table and not str(name).startswith("Unnamed")), None)
    if twice is not None:
        raise InputError(str(file), f"has two columns {one_line(str(twice)[:40])}", "leave one of them out")
    if not isinstance(table.index, pd.RangeIndex):  # as pandas takes the cells that are too many
        raise InputError(str(file), "has rows of more cells than its header", "give each row as many")
    need_columns(file, table, wanted)
    if table.empty:
        raise InputError(str(file), "has no row after the header", fix)
    return table


def need_columns(file: Path, table: pd.DataFrame, wanted: Sequence[str]) -> None:
    """Refuse a table without one of its columns, or with one twice, and name the nearest that it has instead."""
    twice = [name for name in wanted if list(table.columns).count(name) > 1 or f"{name}.1" in table]  # as pandas says
    if twice:
        raise InputError(str(file), f"has two columns {twice[0]}", "leave one of them out")
    missing = [name for name in wanted if name not in table]
    if not missing:
        return
    others = [str(name) for name in table.columns if name not in wanted]
    has = f" (it has {one_line(', '.join(map(str, table.columns)))})" if len(table.columns) else ""
    near = suggestion(missing[0], others) if others else ""
    hint = f"{near} " if near.startswith("did you mean") else ""
    problem = f"has no column {', '.join(missing)}{has}"
    if len(table.columns) == 1 and any(mark in str(table.columns[0]) for mark in ";\t|"):
        hint = "separate its cells by commas, and "
    raise InputError(str(file), problem, f"{hint}give {', '.join(wanted)}, times in seconds")


def numbers(
    file: Path, table: pd.DataFrame, name: str, *, least: float = -np.inf, above: float = -np.inf,
    most: float = np.inf, whole: bool = False, gaps: bool = False, fix: str = "", rows: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Return a column as floats; every one is finite, and in bounds.

    Parameters
    ----------
    least, above, most : what it may be at least, must be above, and may be at most.
    whole : refuse fractions.
    gaps : let empty cells through as NaN.
    rows : what to call each row, where the table is not in the order of the file.

    Raises
    ------
    InputError : with the row of the first that is not, the header being row 1 of a CSV file, and why.
    """
    column = table[name]
    try:
        values = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)
    except OverflowError:  # an integer of hundreds of digits
        values = np.array([_as_float(cell) for cell in column])
    empty = column.isna().to_numpy(bool)
    if pd.api.types.is_bool_dtype(column):
        values = np.full(len(column), np.nan)
    with np.errstate(invalid="ignore"):
        faults = (
            ("is missing", empty & (not gaps)),
            ("is no number", ~empty & np.isnan(values)),
            ("is not finite", np.isinf(values)),
            ("is no whole number", np.isfinite(values) & (values != np.round(values)) & whole),
            (f"is below {least:g}", values < least),
            (f"is not above {above:g}", values <= above),
            (f"is more than {most:g}", values > most),
        )
    wrong = np.logical_or.reduce([where for _, where in faults])
    if not wrong.any():
        return np.asarray(values, float)
    at = int(np.flatnonzero(wrong)[0])
    what = next(words for words, where in faults if where[at])
    found = "" if empty[at] else f" '{one_line(str(column.iloc[at])[:40])}'"
    row = row_of(file, at) if rows is None else list(rows)[at]
    raise InputError(str(file), f"row {row}: {name}{found} {what}", fix or "correct the row")


def _as_float(cell: object) -> float:
    """Return a cell as a number: NaN for what is none, infinity for more than there are."""
    try:
        return float(str(cell))
    except ValueError:
        return np.nan


def row_of(file: Path, at: int) -> int:
    """Return the row to name for the row ``at`` of a table: the line of a CSV file, else the position from 1 on."""
    return at + (1 if file.suffix in (".json", ".jsonl", ".parquet") else 2)


def refuse_repeats(file: Path, table: pd.DataFrame, keys: Sequence[str]) -> None:
    """Refuse two rows of one place in a table of measurements.

    Raises
    ------
    InputError : with the row that repeats another.
    """
    again = table.duplicated(list(keys)).to_numpy(bool)
    if again.any():
        at = int(np.flatnonzero(again)[0])
        place = ", ".join(f"{key} {table[key].iloc[at]}" for key in keys)
        raise InputError(str(file), f"row {row_of(file, at)}: measured before ({place})", "give each place once")


def check_token_time(file: Path, tpot_s: NDArray[np.float64]) -> None:
    """Refuse times that are in other units than seconds, by what tokens of an answer take in the median.

    Raises
    ------
    InputError : no engine is so slow, or so fast.
    """
    known = tpot_s[np.isfinite(tpot_s)]
    if not len(known):
        return
    median_s = float(np.median(known))
    if not _TOKEN_S[0] <= median_s <= _TOKEN_S[1]:
        problem = f"has {median_s:.3g} s between two tokens in the median: times in another unit than seconds"
        raise InputError(str(file), problem, "give all times in seconds")
