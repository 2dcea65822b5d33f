"""Many rows at a time, by pyarrow; None where anything is unusual: then `workloads.formats.careful` decides."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.formats.careful import LATEST_S, MAX_COUNT, Columns
from workloads.formats.layouts import LABELS, Layout
from workloads.formats.rows import Blocks, Labels
from workloads.formats.times import NS_PER, to_ns

_PLAIN = b"0123456789-: .,\r\n"
_ZONED = r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$"


def read_csv(data: bytes, names: tuple[str, ...], layout: Layout, *, zoned: bool) -> Columns | None:
    """Return the columns of CSV lines without their header."""
    # Imported here: most scenarios have no trace, and pyarrow takes longer to import than they take to validate.
    import pyarrow as pa
    from pyarrow import csv

    texts = [column for role in LABELS if (column := layout.role(role)) is not None]
    if layout.request_id is not None:
        texts.append(layout.request_id)
    if not texts and not zoned:
        # pyarrow reads more than these formats hold (hexadecimal counts, quotes).
        if data.translate(None, _PLAIN + b"eE+"):
            return None
    elif b"0x" in data or b"0X" in data:
        return None
    types: dict[str, Any] = {}
    for role in layout.has:
        column = layout.role(role)
        if column not in names:
            return None
        types[column] = pa.int64()
    types[layout.time] = {"datetime": pa.string(), "ns": pa.int64()}.get(layout.unit, pa.float64())
    types.update(dict.fromkeys(texts, pa.dictionary(pa.int32(), pa.string())))
    if layout.request_id is not None:
        types[layout.request_id] = pa.string()
    try:
        table = csv.read_csv(
            io.BytesIO(data),
            read_options=csv.ReadOptions(column_names=names, block_size=max(1 << 20, len(data) // 4 + 1)),
            parse_options=csv.ParseOptions(quote_char='"' if b'"' in data else False),
            convert_options=csv.ConvertOptions(
                include_columns=list(types), column_types=types, null_values=[""], strings_can_be_null=False
            ),
        )
        return _columns(table, layout, zoned)
    except (pa.ArrowInvalid, pa.ArrowKeyError):
        return None


def read_jsonl(data: bytes, layout: Layout, *, unsigned: bool = False) -> Columns | None:
    """Return the columns of JSONL; ``unsigned``: its block ids are such numbers."""
    import pyarrow as pa
    from pyarrow import json

    kinds: dict[str, Any] = {role: pa.int64() for role in layout.has}
    kinds["time"] = {"datetime": pa.string(), "ns": pa.int64()}.get(layout.unit, pa.float64())
    kinds |= {role: pa.string() for role in LABELS if role in layout.has}
    if layout.blocks is not None:
        kinds["blocks"] = pa.list_(pa.uint64() if unsigned else pa.int64())
    if layout.request_id is not None and layout.parent is None:
        kinds["request_id"] = pa.string()
    fields = [(layout.role(role), kind) for role, kind in kinds.items()]
    if layout.blocks is not None and not layout.block_tokens:
        fields.append(("block_tokens", pa.int64()))
    try:
        table = json.read_json(
            io.BytesIO(data),
            read_options=json.ReadOptions(block_size=len(data) + 1),
            parse_options=json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"),
        )
        return _columns(table, layout, zoned=False)
    except pa.ArrowInvalid:
        again = layout.blocks is not None and not unsigned
        return read_jsonl(data, layout, unsigned=True) if again else None


def columns_of(batch: Any, layout: Layout) -> Columns | None:
    """Return the columns of a pyarrow table whose types may differ from what they mean, as Parquet's may."""
    import pyarrow as pa

    try:
        fields = []
        for role in layout.has:
            name = layout.role(role)
            column = batch.column(name)
            if role == "time" and pa.types.is_timestamp(column.type):
                column = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64())
            elif role == "time" and layout.unit != "datetime":
                column = column.cast(pa.int64() if layout.unit == "ns" else pa.float64())
            elif role in LABELS:
                column = column.cast(pa.string())
            elif role == "blocks":
                inner = column.type.value_type if pa.types.is_list(column.type) else None
                column = column if inner == pa.uint64() else column.cast(pa.list_(pa.int64()))
            elif role != "time":
                column = column.cast(pa.int64()) if role != "request_id" else column.cast(pa.string())
            fields.append((name, column))
        if layout.blocks is not None and not layout.block_tokens:
            fields.append(("block_tokens", batch.column("block_tokens")))
        return _columns(pa.table(dict(fields)), layout, zoned=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError):
        return None


def _columns(table: Any, layout: Layout, zoned: bool) -> Columns | None:
    if not table.num_rows:
        return None
    time_ns = _time_ns(table.column(layout.time), layout, zoned)
    if time_ns is None:
        return None
    found: Columns = {"time": time_ns}
    for role in ("prompt", "output", "limit", "turn"):
        if role in layout.has:
            column = table.column(layout.role(role))
            if column.null_count:
                if role in ("prompt", "output"):
                    return None
                column = column.fill_null(0)
            values = column.to_numpy()
            if int(values.min()) < 0 or int(values.max()) > MAX_COUNT:
                return None
            found[role] = values
    for role in LABELS:
        if role in layout.has:
            found[role] = _labels(table.column(layout.role(role)))
    if layout.blocks is not None:
        blocks = _blocks(table, layout)
        if blocks is None:
            return None
        found["blocks"] = blocks
    for role in ("request_id", "parent"):
        if role in layout.has:
            column = table.column(layout.role(role))
            if role == "request_id" and column.null_count:
                return None
            found[role] = column.to_pylist()
    return found


def _time_ns(column: Any, layout: Layout, zoned: bool) -> NDArray[np.int64] | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        return None
    if layout.unit == "datetime":
        if pa.types.is_integer(column.type):  # a Parquet timestamp
            return np.asarray(column.to_numpy(), dtype=np.int64)
        if pc.min(pc.binary_length(column)).as_py() < len("2023-11-16 18:17:03"):
            return None  # pyarrow would take a date alone for midnight
        if zoned and not pc.all(pc.match_substring_regex(column, _ZONED)).as_py():
            return None
        stamps = column.cast(pa.timestamp("ns", "UTC") if zoned else pa.timestamp("ns"))
        return np.asarray(stamps.cast(pa.int64()).to_numpy(), dtype=np.int64)
    values = column.to_numpy()
    most = LATEST_S * NS_PER["s"] / NS_PER[layout.unit]
    if not bool(np.all((values >= 0) & (values <= most))):  # NaN fails both
        return None
    return np.asarray(values, dtype=np.int64) if layout.unit == "ns" else to_ns(values, layout.unit)


def _labels(column: Any) -> Labels:
    import pyarrow as pa

    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    if not pa.types.is_dictionary(column.type):
        column = column.fill_null("").dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # combining gives one chunk, or none
        column = column.chunk(0)
    codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    names = tuple(column.dictionary.to_pylist())
    if len(codes) and codes.min() < 0:
        codes = np.where(codes < 0, np.int32(len(names)), codes).astype(np.int32)
        names = (*names, "")
    return Labels(codes, names)


def _blocks(table: Any, layout: Layout) -> Blocks | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(layout.blocks).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    ids = column.flatten()
    if ids.null_count:
        return None
    sizes = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(sizes, dtype=np.int64)
    size = layout.block_tokens
    if not size:
        stated = table.column("block_tokens").combine_chunks().filter(pc.greater(pc.list_value_length(column), 0))
        if stated.null_count or len(pc.unique(stated)) > 1:
            return None
        size = int(stated[0].as_py()) if len(stated) else 0
        if len(ids) and not 1 <= size <= MAX_COUNT:
            return None
    numbers = ids.to_numpy(zero_copy_only=False)
    unsigned = numbers.dtype == np.uint64
    bits = numbers.view(np.int64) if unsigned else numbers.astype(np.int64)
    # Without the 64th bit in use they are what signed ones would be.
    return Blocks(bits, ends, size, unsigned and bool((bits < 0).any()))
