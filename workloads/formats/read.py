"""Traces as streams of rows: recognise the format, read block by block, check the order."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workloads.formats import documents, fast
from workloads.formats.careful import Before, Columns, csv_cells, json_cells, read_rows
from workloads.formats.layouts import LAYOUTS, ROLES, SUFFIXES, Container, Layout, recognised
from workloads.formats.lines import Block, line_blocks, line_ends
from workloads.formats.rows import EmptyCutError, Labels, Rows, TraceError, join_rows, without_silent
from workloads.formats.times import Unit, has_zone, shown

DATED_FROM_NS = 10**18
"""Numeric times from here on (2001-09-09) are taken for Unix times."""

_PARQUET_ROWS = 1 << 18


def layout_of(path: Path, name: str | None = None) -> Layout:
    """Return the layout of a file: the named one, or the one that its first line shows.

    Raises
    ------
    TraceError
        If the name is unknown, or the file fits none.
    """
    if name is not None:
        if name not in LAYOUTS:
            raise TraceError(str(path), None, f"unknown format {shown(name)}", f"give one of {', '.join(LAYOUTS)}")
        return LAYOUTS[name]
    if _is_parquet(path):
        return LAYOUTS["plain-parquet"]
    block = next(line_blocks(path, 1 << 16), None)
    if block is None or not block.data.strip():
        raise TraceError(str(path), None, "the file is empty", "give a file with one request per line")
    # The first line may be longer than a block's worth of text, but then it is no header.
    first = block.data.splitlines()[0].decode(errors="replace")
    named = path.name.removesuffix(".gz")
    if named.endswith(SUFFIXES["document"]):
        return documents.recognised(path)
    found = recognised(first)
    if found is None:
        what = "keys" if first.lstrip().startswith("{") else "columns"
        problem = f"the {what} are {shown(first.strip())}"
        raise TraceError(str(path), 1, problem, f"name a format ({', '.join(LAYOUTS)}) or give columns")
    return found


def read_trace(path: Path, layout: Layout, *, in_order: bool = True) -> Iterator[Rows]:
    """Yield the rows of a file, some hundred thousand at a time, in order of time.

    Parameters
    ----------
    in_order : False to take the rows in any order, and leave sorting to the caller.

    Raises
    ------
    TraceError
        With the first bad row: wrong columns, an unreadable time, a count that is missing, negative or not a whole
        number, times out of order, an id that came before. Also for an empty, damaged or unreadable file.
    """
    reader = _Reader(path, layout, before=Before(in_order=in_order))
    if layout.container == "csv":
        yield from reader.csv()
    elif layout.container == "jsonl":
        yield from reader.jsonl()
    elif layout.container == "parquet":
        yield from reader.parquet()
    else:
        yield from reader.document()
    if not reader.count:
        after = " after the header" if layout.container == "csv" else ""
        raise TraceError(str(path), None, f"there is no row{after}", "give at least one request")


def load(
    path: Path, layout: Layout, *, zero_ns: int | None = None, from_s: float = 0.0, until_s: float = math.inf
) -> tuple[Rows, int]:
    """Return the rows in [from_s, until_s) of a file, and the time that counts as 0.

    Reading stops at the end of the cut, so a short cut of a long file is cheap. The last few results are kept.

    Parameters
    ----------
    zero_ns : the time that counts as 0; None: that of the first row.

    Raises
    ------
    TraceError
        As `read_trace`; EmptyCutError if the cut holds no row.
    """
    try:
        state = path.stat()
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise TraceError(str(path), None, problem, "name a readable file") from None
    return _load(_File(path, state.st_mtime_ns, state.st_size), layout, zero_ns, from_s, until_s)


class _File(NamedTuple):
    """A file as it is: another content, another key."""

    path: Path
    mtime_ns: int
    size: int


@lru_cache(maxsize=4)
def _load(file: _File, layout: Layout, zero_ns: int | None, from_s: float, until_s: float) -> tuple[Rows, int]:
    path = file.path
    parts: list[Rows] = []
    last_s = first_s = math.nan
    for rows in read_trace(path, layout):
        if zero_ns is None:
            zero_ns = int(rows.time_ns[0])
        since_s = rows.since_s(zero_ns)
        first_s = float(since_s[0]) if math.isnan(first_s) else first_s
        last_s = float(since_s[-1])
        first, last = np.searchsorted(since_s, (from_s, until_s))
        if last > first:
            parts.append(rows if last - first == len(rows) else rows.take(slice(int(first), int(last))))
        if last_s >= until_s:
            break
    if not parts or zero_ns is None:
        problem = f"no row from {from_s:g} s to {until_s:g} s of trace time"
        raise EmptyCutError(str(path), None, problem, f"its rows span {first_s:g} s to {last_s:g} s: cut inside that")
    return without_silent(join_rows(parts)), zero_ns


@dataclass(slots=True)
class _Reader:
    """One pass over one file."""

    path: Path
    layout: Layout
    count: int = 0
    before: Before = field(default_factory=Before)
    roots: dict[object, object] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return str(self.path)

    def csv(self) -> Iterator[Rows]:
        names: tuple[str, ...] | None = None
        for block in line_blocks(self.path):
            if names is None:
                names, block = self._header(block)
                if names is None:
                    continue
            if self.before.zoned is None and self.layout.unit == "datetime":
                self.before.zoned = self._first_is_zoned(block, names)
            yield from self._accept(
                fast.read_csv(block.data, names, self.layout, zoned=bool(self.before.zoned)),
                partial(csv_cells, block, names, self.file),
            )
        if names is None:
            fix = (
                f"start it with the line {','.join(self.layout.columns)}"
                if self.layout.columns
                else "name the columns in its first line"
            )
            raise TraceError(self.file, None, "the file is empty", fix)

    def _header(self, block: Block) -> tuple[tuple[str, ...] | None, Block]:
        """Return the columns, and the block without its first lines; None while there are only blank lines."""
        if not block.data.strip():
            return None, block
        lines = block.data.splitlines(keepends=True)[: 1 + (b"\r" in block.data[:65536])]
        head = lines[0]
        text = head.decode(errors="replace").rstrip("\r\n")
        names = tuple(name.strip() for name in (next(csv.reader([text])) if '"' in text else text.split(",")))
        columns = self.layout.columns
        wanted = [column for role in self.layout.has if (column := self.layout.role(role)) is not None]
        missing = [column for column in wanted if column not in names]
        if missing or (columns and names != columns and self.layout.name != "trace-v2"):
            fix = f"name them {','.join(columns or sorted(wanted))}"
            raise TraceError(self.file, 1, f"the columns are {shown(text)}", fix)
        if len(set(names)) < len(names):
            raise TraceError(self.file, 1, f"two columns of {shown(text)} share a name", "give each its own")
        return names, Block(block.first_line + line_ends(head), block.data[len(head) :])

    def _first_is_zoned(self, block: Block, names: tuple[str, ...]) -> bool | None:
        first = next(csv_cells(block, names, self.file), None)
        return None if first is None else has_zone(first[1](self.layout.time))

    def jsonl(self) -> Iterator[Rows]:
        for block in line_blocks(self.path):
            if self.layout.name == "openai-log":
                table, cells = None, partial(documents.openai_cells, block, self.file)
            else:
                table = fast.read_jsonl(block.data, self.layout)
                cells = partial(json_cells, block, self.file)
            yield from self._accept(table, cells)

    def parquet(self) -> Iterator[Rows]:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self.path) as source:
                present = source.schema_arrow.names
                wanted = [column for role in self.layout.has if (column := self.layout.role(role)) is not None]
                missing = [column for column in wanted if column not in present]
                if missing:
                    problem = f"there is no column {missing[0]}, but {', '.join(present)}"
                    raise TraceError(self.file, None, problem, "name them with columns")
                if self.layout.blocks is not None and not self.layout.block_tokens:
                    wanted.append("block_tokens")
                row = 1
                for batch in source.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
                    table = pa.Table.from_batches([batch])
                    yield from self._accept(
                        fast.columns_of(table, self.layout),
                        partial(documents.table_cells, table, row),
                    )
                    row += len(table)
        except (pa.ArrowInvalid, OSError) as error:
            text = " ".join(str(error).split())
            raise TraceError(self.file, None, f"cannot be read ({text[:80]})", "give a Parquet file") from None

    def document(self) -> Iterator[Rows]:
        cells = documents.cells(self.path, self.layout)
        yield from self._accept(None, lambda: cells)

    def _accept(
        self, table: Columns | None, cells: Callable[[], Iterator[tuple[int, Callable[[str], Any]]]]
    ) -> Iterator[Rows]:
        """Yield the rows that a block holds; what the fast reader finds odd goes to the careful one."""
        if table is None or not self._fits(table):
            table = read_rows(cells(), self.layout, self.file, self.before)
            if not len(table["time"]):
                return
        else:
            self.before.last_ns = int(table["time"][-1])
        rows = self._rows(table)
        self.count += len(rows)
        if len(rows):
            yield rows

    def _fits(self, table: Columns) -> bool:
        time_ns = table["time"]
        last_ns = self.before.last_ns
        in_order = (last_ns is None or int(time_ns[0]) >= last_ns) and bool(np.all(time_ns[1:] >= time_ns[:-1]))
        return (in_order or not self.before.in_order) and (
            "request_id" not in table or self.before.ids.add_all(table["request_id"])
        )

    def _rows(self, table: Columns) -> Rows:
        prompt, output = table["prompt"], table["output"]
        rows = Rows(
            table["time"],
            np.maximum(prompt, 1),
            np.maximum(output, 1),
            dated=self.layout.unit == "datetime" or int(table["time"][0]) >= DATED_FROM_NS,
            max_output_tokens=table.get("limit"),
            tenant=table.get("tenant"),
            service=table.get("service"),
            session=table.get("session"),
            turn=self._turns(table),
            blocks=table.get("blocks"),
        )
        if "parent" in table:
            rows = replace(rows, session=self._sessions(table))
        if self.layout.failed_have_no_output:
            kept = output > 0
            rows = replace(rows.take(kept), dropped=int(len(kept) - np.count_nonzero(kept)))
            prompt, output = prompt[kept], output[kept]
        return replace(rows, clipped=int(np.count_nonzero(prompt == 0) + np.count_nonzero(output == 0)))

    def _turns(self, table: Columns) -> Any:
        turns = table.get("turn")
        return turns + 1 if turns is not None and self.layout.turns_from_0 else turns

    def _sessions(self, table: Columns) -> Labels:
        """Name each conversation after its first request."""
        names: dict[str, int] = {}
        codes = []
        for own, parent in zip(table["request_id"], table["parent"], strict=True):
            root = self.roots.get(parent, own)
            self.roots[own] = root
            codes.append(names.setdefault(str(root), len(names)))
        return Labels(np.array(codes, dtype=np.int32), tuple(names))


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError as error:
        raise TraceError(str(path), None, f"cannot be read ({error.strerror})", "name a readable file") from None


def own_layout(
    columns: Mapping[str, str], container: Container, *, unit: Unit, block_tokens: int = 16, bin_s: float = 0.0
) -> Layout:
    """Return the layout of a plain table from a map of roles (`workloads.formats.layouts.ROLES`) to columns.

    Raises
    ------
    ValueError
        If a role is unknown, or time, prompt or output is missing.
    """
    for role in columns:
        if role not in ROLES:
            raise ValueError(f"columns names the role {shown(role)}; give some of {', '.join(ROLES)}")
    for role in ("time", "prompt", "output"):
        if role not in columns:
            raise ValueError(f"columns has no {role}; give the column, e.g. {{{role}: name}}")
    roles: dict[str, Any] = dict(columns)
    return Layout(
        name="columns",
        about="a table with a column map",
        container=container,
        unit=unit,
        block_tokens=block_tokens,
        bin_s=bin_s,
        **roles,
    )
