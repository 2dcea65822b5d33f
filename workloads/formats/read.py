"""Traces as streams of rows: recognise the format, read block by block, check the order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workloads.formats import documents, fast, logs
from workloads.formats.careful import Before, Columns, cells_of, csv_cells, json_cells, read_rows
from workloads.formats.errors import EmptyCutError, TraceError
from workloads.formats.layouts import LAYOUTS, ROLES, SUFFIXES, Container, Layout, recognised
from workloads.formats.lines import Block, first_line, line_blocks, line_ends
from workloads.formats.rows import Blocks, Labels, Rows, carried, join_rows, labels_of, without_silent
from workloads.formats.times import Unit, has_zone, shown, to_ns

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
    if path.name.removesuffix(".gz").endswith(SUFFIXES["document"]):
        return documents.recognised(path)
    first = first_line(path).decode(errors="replace")
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
    if layout.container == "log":
        yield logs.read(path, layout)
        return
    reader = _Reader(path, layout, before=Before(in_order=in_order))
    readers = {"csv": reader.csv, "jsonl": reader.jsonl, "parquet": reader.parquet, "document": reader.document}
    yield from carried(readers[layout.container]())
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
    if zero_ns is None and from_s <= 0:  # what failed before the first row that did not is of the whole too
        from_s = -math.inf
    last_s = first_s = math.nan
    for rows in read_trace(path, layout):
        if zero_ns is None:
            zero_ns = int(rows.time_ns[0])
        since_s = rows.since_s(zero_ns)
        first_s = float(since_s[0]) if math.isnan(first_s) else first_s
        last_s = float(since_s[-1])
        parts.append(rows.between(zero_ns, from_s, until_s))
        if last_s >= until_s:
            break
    parts = list(carried(parts))
    if not parts or zero_ns is None:
        problem = f"no row from {max(0.0, from_s):g} s to {until_s:g} s of trace time"
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
    earliest_ns: int = 2**63
    latest_ns: int = -(2**63)
    unsigned: bool = False
    negative: bool = False

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
        names = tuple(name.strip() for name in cells_of(text, self.file, 1))
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
            with parquet.ParquetFile(self.path, page_checksum_verification=True) as source:
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
        # Beside what pyarrow says: numbers that numpy cannot hold, text that is none.
        except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
            text = "".join(c if c.isprintable() else " " for c in " ".join(str(error).split()))
            raise TraceError(self.file, None, f"cannot be read ({text[:80]})", "give a Parquet file") from None

    def document(self) -> Iterator[Rows]:
        cells, failed = documents.cells(self.path, self.layout)
        dropped_ns = to_ns(np.array(failed, dtype=np.float64), self.layout.unit)
        for rows in self._accept(None, lambda: cells):
            yield replace(rows, dropped_ns=dropped_ns)

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
        yield rows

    def _fits(self, table: Columns) -> bool:
        time_ns = table["time"]
        last_ns = self.before.last_ns
        in_order = (last_ns is None or int(time_ns[0]) >= last_ns) and bool(np.all(time_ns[1:] >= time_ns[:-1]))
        if not in_order and self.before.in_order:
            return False
        size = 0 if "blocks" not in table or self.layout.block_tokens else table["blocks"].block_tokens
        if size and self.before.block_tokens not in (0, size):
            return False
        if "request_id" in table and not self.before.ids.add_all(table["request_id"]):
            return False
        self.before.block_tokens = self.before.block_tokens or size
        return True

    def _rows(self, table: Columns) -> Rows:
        prompt, output = table["prompt"], table["output"]
        self._check_span(table["time"])
        self._check_ids(table.get("blocks"))
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
        raised = (prompt == 0).astype(np.int8) + (output == 0)
        if raised.any():
            rows = replace(rows, raised=raised)
        if self.layout.failed_have_no_output:
            kept = output > 0
            # Sorted, as whoever takes rows in any order sorts what is kept.
            rows = replace(rows.take(kept), dropped_ns=np.sort(table["time"][~kept]))
        return rows

    def _check_span(self, time_ns: Any) -> None:
        """Refuse times whose differences do not fit 64 bits."""
        low, high = int(time_ns.min()), int(time_ns.max())
        self.earliest_ns, self.latest_ns = min(low, self.earliest_ns), max(high, self.latest_ns)
        if self.latest_ns - self.earliest_ns >= 2**62:
            raise TraceError(self.file, None, "its rows span more than 146 years", "give the times of one run")

    def _check_ids(self, blocks: Blocks | None) -> None:
        """Refuse block ids of which some are below 0 and some need the 64th bit: they cannot be told apart."""
        if blocks is None or not len(blocks.ids):
            return
        self.unsigned = self.unsigned or blocks.unsigned
        self.negative = self.negative or (not blocks.unsigned and int(blocks.ids.min()) < 0)
        if self.unsigned and self.negative:
            problem = f"{self.layout.blocks} has numbers below 0 beside numbers of 2**63 and more"
            raise TraceError(self.file, None, problem, "give ids from 0 to 2**64 - 1")

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
        return labels_of(np.array(codes, dtype=np.int32), names)


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
