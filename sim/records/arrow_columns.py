"""Arrow columns from numpy and back, by their buffers.

``pyarrow.array`` and ``to_numpy`` look whether their argument is a pandas object and import pandas for it, which costs
a third of a second of CPU: more than ten thousand simulated requests. A run reads and writes plain columns only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CATEGORY = pa.dictionary(pa.int32(), pa.string())
_DTYPES: dict[pa.DataType, type[np.generic]] = {
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.float64(): np.float64,
}


def numbers(values: Any, kind: pa.DataType, missing: NDArray[np.bool_] | None = None) -> pa.Array:
    """Return an Arrow array of ``kind`` (int32, int64, float64 or bool), null where ``missing``."""
    if kind == pa.bool_():
        data = np.packbits(np.asarray(values, dtype=np.bool_), bitorder="little")
    else:
        data = np.ascontiguousarray(values, dtype=_DTYPES[kind])
    validity = None
    if missing is not None and missing.any():
        validity = pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [validity, pa.py_buffer(data)])


_AT_A_TIME = 65536


def texts(values: Sequence[str] | NDArray[Any]) -> pa.Array:
    """Return an Arrow array of strings."""
    ends = np.zeros(len(values) + 1, dtype=np.int64)
    parts: list[bytes] = []
    for start in range(0, len(values), _AT_A_TIME):  # so that no more are Python's strings at once
        part = list(values[start : start + _AT_A_TIME])  # of numpy's, each look makes the strings anew
        joined = "".join(part)
        data = joined.encode()
        # In ASCII a string has as many bytes as characters, so that nothing need be encoded one by one.
        sizes = map(len, part) if len(data) == len(joined) else (len(value.encode()) for value in part)
        sized = np.fromiter(sizes, dtype=np.int64, count=len(part))
        ends[start + 1 : start + 1 + len(part)] = ends[start] + np.cumsum(sized)
        parts.append(data)
    if ends[-1] >= 2**31:
        raise ValueError(f"{ends[-1]} bytes of text do not fit one column; split the run into replications")
    return pa.StringArray.from_buffers(
        len(values), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(parts))
    )


def categories(codes: NDArray[np.int32], names: Sequence[str]) -> pa.Array:
    """Return a text column of few values: ``names[code]`` for each code, null for negative ones."""
    return pa.DictionaryArray.from_arrays(numbers(codes, pa.int32(), codes < 0), texts(names))


def constant(value: str, n: int) -> pa.Array:
    """Return one text ``n`` times."""
    return constants([value], n)[0]


def constants(values: Sequence[str], n: int) -> list[pa.Array]:
    """Return columns of one text each, ``n`` times; their codes, all 0, are the same memory."""
    codes = numbers(np.zeros(n, dtype=np.int32), pa.int32())
    return [pa.DictionaryArray.from_arrays(codes, texts([value])) for value in values]


def floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return a numeric column as floats, NaN for null."""
    parts = [np.empty(0)]
    for chunk in table.column(name).chunks:
        values = _data(chunk).astype(np.float64)
        values[_missing(chunk)] = np.nan
        parts.append(values)
    return np.concatenate(parts)


def flags(table: pa.Table, name: str) -> NDArray[np.bool_]:
    """Return a Boolean column, False for null."""
    empty = np.empty(0, dtype=np.bool_)
    return np.concatenate([empty, *(_bits(chunk, 1) & ~_missing(chunk) for chunk in table.column(name).chunks)])


def codes_of(table: pa.Table, name: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return a text column as codes and categories; null is the last category, the empty text."""
    column = table.column(name)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    names: dict[str, int] = {}
    parts = [np.empty(0, dtype=np.int64)]
    for chunk in column.chunks:
        own = [names.setdefault(text, len(names)) for text in chunk.dictionary.to_pylist()]
        codes = _data(chunk.indices).astype(np.int64)
        missing = _missing(chunk.indices)
        codes[missing] = len(own)
        codes = np.asarray([*own, -1], dtype=np.int64)[codes]
        parts.append(codes)
    codes = np.concatenate(parts)
    codes[codes < 0] = len(names)
    return codes, [*names, ""]


def _data(array: pa.Array) -> NDArray[Any]:
    dtype = _DTYPES[array.type]
    if not len(array):
        return np.empty(0, dtype=dtype)
    return np.frombuffer(array.buffers()[1], dtype=dtype, count=array.offset + len(array))[array.offset :]


def _missing(array: pa.Array) -> NDArray[np.bool_]:
    if array.null_count == 0:
        return np.zeros(len(array), dtype=np.bool_)
    return ~_bits(array, 0)


def _bits(array: pa.Array, buffer: int) -> NDArray[np.bool_]:
    if not len(array):
        return np.empty(0, dtype=np.bool_)
    packed = np.frombuffer(array.buffers()[buffer], dtype=np.uint8)
    end = array.offset + len(array)
    return np.unpackbits(packed, count=end, bitorder="little")[array.offset :].astype(np.bool_)
