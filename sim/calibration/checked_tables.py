"""Tables that people give: what is no number, or none that could be, is named by its row before anybody uses it."""

from __future__ import annotations

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


def read_csv(file: Path, wanted: Sequence[str], fix: str = "") -> pd.DataFrame:
    """Return a CSV table as it is written.

    Raises
    ------
    InputError : unreadable, empty, without one of the columns that are wanted, or with rows longer than the header.
    """
    readable, fix = fix or "name a readable file", fix or f"give a CSV file with the columns {', '.join(wanted)}"
    try:
        table = pd.read_csv(file)
    except (OSError, EOFError, zlib.error) as error:
        word = getattr(error, "strerror", None) or str(error)
        raise InputError(str(file), f"cannot be read ({word})", readable) from None
    except pd.errors.EmptyDataError:
        raise InputError(str(file), "is empty", fix) from None
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(str(file), f"is no CSV table ({str(error).splitlines()[0]})", fix) from None
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
