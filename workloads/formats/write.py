"""Rows as files in a publisher's format, written as they come."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from workloads.formats.layouts import LABELS, Layout
from workloads.formats.rows import Labels, Rows, without_silent
from workloads.formats.times import NS_PER, format_seconds, format_time, to_ns
from workloads.requests import Ints

_FIELDS = {
    "limit": "max_output_tokens",
    "tenant": "tenant",
    "service": "service",
    "session": "session",
    "turn": "turn",
    "blocks": "blocks",
}


def lost(rows: Rows, layout: Layout) -> list[str]:
    """Return what the rows have and the format has no place for, in words."""
    rows = without_silent(rows)
    gone = [role for role, name in _FIELDS.items() if getattr(rows, name) is not None and layout.role(role) is None]
    if layout.parent is not None and "session" in gone:
        gone.remove("session")
    step_ns = 1000 if layout.unit == "us" else 10**6 if layout.unit == "ms" else 0
    if layout.unit == "s" and bool(np.any(to_ns(rows.time_ns / 1e9, "s") != rows.time_ns)):
        gone.append("times below 1 us")
    if step_ns and bool(np.any(rows.time_ns % step_ns)):
        gone.append(f"times below 1 {layout.unit}")
    if layout.unit == "datetime" and not rows.dated:
        gone.append("the clock: times are dated from 1970-01-01")
    return gone


def write_trace(parts: Iterable[Rows], path: Path, layout: Layout) -> int:
    """Write rows in a format, and return how many; a path ending in .gz is packed.

    The caller sees to it that a half-written file is not taken for a whole one.

    Raises
    ------
    ValueError
        If the rows lack what the format cannot do without.
    """
    if layout.container == "log":
        raise ValueError(f"{layout.name} is a server's log, which is only read; choose another format")
    if layout.container == "parquet":
        return _write_parquet(parts, path)
    if layout.container == "document":
        return _write_document(parts, path, layout)
    with _opened(path) as out:
        write = _csv_writer(out, layout) if layout.container == "csv" else _jsonl_writer(out, layout)
        count = 0
        for rows in parts:
            if layout.blocks is not None and rows.blocks is None and layout.name != "plain-jsonl":
                raise ValueError(f"{layout.name} needs prefix blocks, and the trace has none; choose another format")
            write(rows, count)
            count += len(rows)
    return count


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    # Without a name and a time in the header, the same rows give the same bytes.
    if path.name.endswith(".gz"):
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            text = io.TextIOWrapper(cast("io.BufferedWriter", packed), encoding="utf-8", newline="")
            yield text
            text.flush()
    else:
        with path.open("w", encoding="utf-8", newline="") as out:
            yield out


def _csv_writer(out: TextIO, layout: Layout) -> Callable[[Rows, int], None]:
    columns = layout.columns or tuple(column for role in _CSV_ORDER if (column := layout.role(role)) is not None)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    fill = dict(layout.fill)

    def write(rows: Rows, before: int) -> None:
        cells: dict[str, Sequence[object]] = dict(_cells(rows, layout, before))
        if "Total tokens" in columns:
            cells["Total tokens"] = (rows.prompt_tokens + rows.output_tokens).tolist()
        if "text_tokens" in columns:
            cells["text_tokens"] = cells["input_tokens"]
        empty = [""] * len(rows)
        ready = [cells.get(column) or ([fill[column]] * len(rows) if column in fill else empty) for column in columns]
        writer.writerows(zip(*ready, strict=True))

    return write


_CSV_ORDER = ("request_id", "time", "tenant", "service", "session", "turn", "prompt", "output", "limit")


def _jsonl_writer(out: TextIO, layout: Layout) -> Callable[[Rows, int], None]:
    last: dict[str, int] = {}
    turns: dict[str, int] = {}

    def write(rows: Rows, before: int) -> None:
        if layout.name == "openai-log":
            lines = _openai_objects(rows, before)
        else:
            cells = dict(_cells(rows, layout, before))
            if layout.parent is not None:
                cells |= _conversation(rows, layout, before, last, turns)
            if layout.blocks is not None and rows.blocks is not None and not layout.block_tokens:
                cells["block_tokens"] = [rows.blocks.block_tokens] * len(rows)
            order = [name for name in (*layout.columns, *cells) if name in cells]
            names = tuple(dict.fromkeys(order))
            lines = (dict(zip(names, row, strict=True)) for row in zip(*(cells[name] for name in names), strict=True))
        out.writelines(json.dumps(line) + "\n" for line in lines)

    return write


def _cells(rows: Rows, layout: Layout, before: int) -> Iterator[tuple[str, Sequence[object]]]:
    """Yield the columns of a format that rows fill."""
    yield layout.time, _times(rows, layout)
    yield layout.prompt, rows.prompt_tokens.tolist()
    yield layout.output, rows.output_tokens.tolist()
    for role in LABELS:
        labels: Labels | None = getattr(rows, _FIELDS[role])
        if (column := layout.role(role)) is not None and labels is not None:
            yield column, labels.texts()
    if layout.limit is not None and rows.max_output_tokens is not None:
        yield layout.limit, rows.max_output_tokens.tolist()
    if layout.turn is not None:
        turn = rows.turn
        if turn is not None:
            yield layout.turn, (np.maximum(turn - 1, 0) if layout.turns_from_0 else turn).tolist()
        elif layout.turns_from_0:
            yield layout.turn, ["0"] * len(rows)
    if layout.blocks is not None and rows.blocks is not None:
        yield layout.blocks, rows.blocks.lists()
    if layout.request_id is not None and layout.parent is None:
        yield (
            layout.request_id,
            [str(i) if layout.container == "jsonl" else i for i in range(before, before + len(rows))],
        )


def _times(rows: Rows, layout: Layout) -> Sequence[object]:
    time_ns = rows.time_ns.tolist()
    if layout.unit == "datetime":
        return [format_time(one) for one in time_ns]
    if layout.unit == "s":
        texts = [format_seconds(one) for one in time_ns]
        return texts if layout.container == "csv" else [float(text) for text in texts]
    step_ns = NS_PER[layout.unit]
    nearest: Ints = (rows.time_ns + step_ns // 2) // step_ns
    return cast("list[object]", nearest.tolist())


def _conversation(
    rows: Rows, layout: Layout, before: int, last: dict[str, int], turns: dict[str, int]
) -> dict[str, Sequence[object]]:
    """Return ids, each request's predecessor in its session (-1 for none), and turns."""
    ids = list(range(before, before + len(rows)))
    sessions = rows.session.texts() if rows.session is not None else [""] * len(rows)
    parents, numbers = [], []
    for own, session in zip(ids, sessions, strict=True):
        parents.append(last.get(session, -1) if session else -1)
        numbers.append(turns.get(session, 0) + 1 if session else 1)
        if session:
            last[session], turns[session] = own, numbers[-1]
    found: dict[str, Sequence[object]] = {str(layout.request_id): ids, str(layout.parent): parents}
    if rows.turn is None:
        found[str(layout.turn)] = numbers
    if rows.service is None:
        found[str(layout.service)] = ["text"] * len(rows)
    return found


def _openai_objects(rows: Rows, before: int) -> Iterator[dict[str, Any]]:
    """Yield one answer a row; ``timestamp`` says what ``created``, in whole seconds, cannot."""
    tenant = rows.tenant.texts() if rows.tenant is not None else None
    service = rows.service.texts() if rows.service is not None else None
    limits = rows.max_output_tokens.tolist() if rows.max_output_tokens is not None else None
    columns = (rows.time_ns.tolist(), rows.prompt_tokens.tolist(), rows.output_tokens.tolist())
    for i, (time_ns, prompt, output) in enumerate(zip(*columns, strict=True)):
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        line: dict[str, Any] = {"id": f"request-{before + i}", "object": "chat.completion"}
        line |= {"created": time_ns // NS_PER["s"], "timestamp": float(format_seconds(time_ns)), "usage": usage}
        if tenant is not None:
            line["user"] = tenant[i]
        if service is not None:
            line["model"] = service[i]
        if limits is not None and limits[i]:
            line["max_tokens"] = limits[i]
        yield line


def _write_document(parts: Iterable[Rows], path: Path, layout: Layout) -> int:
    """Write a result file of a measuring tool, as far as rows can fill it: nothing was measured."""
    found = list(parts)
    seconds = [float(format_seconds(one)) for rows in found for one in rows.time_ns.tolist()]
    prompt = [one for rows in found for one in rows.prompt_tokens.tolist()]
    output = [one for rows in found for one in rows.output_tokens.tolist()]
    value: dict[str, Any]
    if layout.name == "guidellm":
        names = [one for rows in found for one in (rows.service.texts() if rows.service else ["0"] * len(rows))]
        benchmarks: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for i, name in enumerate(names):
            row = {"request_id": str(i), "request_start_time": seconds[i]}
            benchmarks[name].append({**row, "prompt_tokens": prompt[i], "output_tokens": output[i]})
        value = {"benchmarks": [{"requests": {"successful": rows}} for rows in benchmarks.values()]}
    else:
        value = {"completed": len(seconds), "total_input_tokens": sum(prompt), "total_output_tokens": sum(output)}
        value |= {"start_times": seconds, "input_lens": prompt, "output_lens": output}
    with _opened(path) as out:
        json.dump(value, out)
    return len(seconds)


def _write_parquet(parts: Iterable[Rows], path: Path) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    writer = None
    count = 0
    ids = pa.int64()
    try:
        for rows in parts:
            if rows.blocks is not None and rows.blocks.unsigned and ids == pa.int64():
                if writer is not None:
                    raise ValueError("block ids of 2**63 and more come after smaller ones; write .jsonl instead")
                ids = pa.uint64()
            columns: dict[str, Any] = {"time_ns": pa.array(rows.time_ns)}
            columns |= {"prompt_tokens": pa.array(rows.prompt_tokens), "output_tokens": pa.array(rows.output_tokens)}
            numbers = {"max_output_tokens": rows.max_output_tokens, "turn": rows.turn}
            zero = np.zeros(len(rows), dtype=np.int64)
            columns |= {name: pa.array(zero if one is None else one) for name, one in numbers.items()}
            for role in LABELS:
                labels = getattr(rows, role)
                columns[role] = pa.array([""] * len(rows) if labels is None else labels.texts(), pa.string())
            blocks = rows.blocks
            columns["blocks"] = pa.array([[]] * len(rows) if blocks is None else blocks.lists(), pa.list_(ids))
            columns["block_tokens"] = pa.array(zero + (0 if blocks is None else blocks.block_tokens))
            table = pa.table(columns)
            writer = writer or parquet.ParquetWriter(path, table.schema, write_page_checksum=True)
            writer.write_table(table)
            count += len(rows)
    finally:
        if writer is not None:
            writer.close()
    return count
