"""Where rows come from: a file in any format, a named trace, a folder of ServeGen clients, several on one clock."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from sim.errors import InputError
from sim.seeds import stream
from workloads.catalogue import TRACES, locate
from workloads.formats.errors import TraceError
from workloads.formats.layouts import LAYOUTS, Layout
from workloads.formats.read import layout_of, read_trace
from workloads.formats.rows import Labels, Rows, join_rows
from workloads.servegen import ServeGen, clients_in
from workloads.trace import Columns, container_of
from workloads.transforms import is_rounded, jitter_within_bins

SERVEGEN = "servegen"


@dataclass(frozen=True, slots=True)
class Source:
    """A trace to read. ``rows`` gives it from the start, as often as it is asked for."""

    name: str
    path: Path
    layout: Layout | None
    seed: int = 0
    in_order: bool = True

    @property
    def format(self) -> str:
        """The name of the format."""
        return SERVEGEN if self.layout is None else self.layout.name

    def rows(self) -> Iterator[Rows]:
        """Yield the rows in order of time; of ServeGen clients, one day that is drawn.

        Raises
        ------
        InputError
            If the file is missing or has a bad row.
        """
        try:
            if self.layout is None:
                yield _drawn_day(self.path, self.seed)
            elif self.in_order:
                yield from read_trace(self.path, self.layout)
            else:
                whole = join_rows(list(read_trace(self.path, self.layout, in_order=False)))
                yield whole.take(np.argsort(whole.time_ns, kind="stable"))
        except TraceError as error:
            raise _as_input_error(error) from None


def data_folder() -> Path | None:
    """Return the folder that TOKENPOOLS_DATA names, None if it is not set."""
    named = os.environ.get("TOKENPOOLS_DATA")
    return Path(named) if named else None


def open_source(
    ref: str, format_: str | None = None, columns: Columns | None = None, *, seed: int = 0, in_order: bool = True
) -> Source:
    """Return a trace by path or name.

    Parameters
    ----------
    format_ : its format; None: recognised.
    columns : of a plain table, in place of a format.
    seed : of what is drawn, for ServeGen clients.
    in_order : False to sort the rows, all of them in memory.

    Raises
    ------
    InputError
        If there is no such file, or it fits no format.
    """
    folder = data_folder()
    try:
        if format_ == SERVEGEN or Path(ref).is_dir() or ref == "servegen-deepseek-r1":
            place = locate(ref, folder, want_folder=True)
            clients_in(place)
            return Source(ref, place, None, seed)
        path = locate(ref, folder)
        layout = columns.layout(container_of(path)) if columns is not None else layout_of(path, format_)
        return Source(ref, path, layout, in_order=in_order)
    except TraceError as error:
        raise _as_input_error(error) from None


def _drawn_day(folder: Path, seed: int) -> Rows:
    """Return a day of all clients, each a tenant."""
    parts = []
    for number in clients_in(folder):
        law = ServeGen(folder=str(folder), client=number)
        found = law.requests(partial(stream, seed, 0), "trace", None, 0.0, 86_400.0, None)
        count = len(found.arrival_s)
        who = Labels(np.zeros(count, dtype=np.int32), (f"client-{number}",))
        time_ns = np.rint(found.arrival_s * 1e9).astype(np.int64)
        parts.append(Rows(time_ns, found.prompt_tokens, found.output_tokens, tenant=who))
    whole = join_rows(parts)
    return whole.take(np.argsort(whole.time_ns, kind="stable"))


def spread_out(parts: Iterable[Rows], bin_s: float, seed: int) -> Iterator[Rows]:
    """Yield rows with their rounded times spread over each bin; of the others nothing changes.

    Rows of the bin that a part ends in wait for the next part.
    """
    rng = stream(seed, 0, "trace/spread")
    bin_ns = round(bin_s * 1e9)
    rest: Rows | None = None
    zero_ns: int | None = None
    for part in parts:
        rows = part if rest is None else join_rows([rest, part])
        if zero_ns is None:
            zero_ns = int(rows.time_ns[0])
            if not is_rounded(rows.since_s(zero_ns), bin_s):
                yield rows
                yield from parts
                return
        bins = np.rint((rows.time_ns - zero_ns) / bin_ns)
        cut = int(np.searchsorted(bins, bins[-1]))
        if cut:
            yield _spread(rows.take(slice(0, cut)), zero_ns, bin_s, rng)
        rest = rows.take(slice(cut, len(rows)))
    if rest is not None and zero_ns is not None:
        yield _spread(rest, zero_ns, bin_s, rng)


def _spread(rows: Rows, zero_ns: int, bin_s: float, rng: np.random.Generator) -> Rows:
    since_s = jitter_within_bins(rows.since_s(zero_ns), bin_s, rng)
    return replace(rows, time_ns=zero_ns + np.rint(since_s * 1e9).astype(np.int64))


def merged(sources: Sequence[tuple[str, Iterable[Rows]]], *, same_ids: bool = False) -> Iterator[Rows]:
    """Yield several traces on one clock, each as a service of its name where it says no service of its own.

    No more than a part of each is in memory. Ties go to the trace that is named first. Publishers number blocks and
    sessions anew in each file, so they get names of their own here: block ``b`` of the k-th of n traces becomes
    ``b * m + k``, m the least odd number from n on, modulo 2^64.

    Parameters
    ----------
    same_ids : leave blocks and sessions as they are: what has one id has one text, whichever trace it is in.

    Raises
    ------
    InputError : some have dates and some have not, or their blocks differ in size.
    """
    sizes: dict[int, str] = {}
    iterators = [iter(parts) for _, parts in sources]
    waiting: list[Rows | None] = [None] * len(sources)
    over = [False] * len(sources)

    def pull(i: int) -> None:
        part = next(iterators[i], None)
        if part is None:
            over[i] = True
            return
        named, held = _named(part if same_ids else _apart(part, i, len(sources)), sources[i][0]), waiting[i]
        if part.blocks is not None and len(part.blocks.ids):
            sizes.setdefault(part.blocks.block_tokens, sources[i][0])
            if len(sizes) > 1:
                found = " and ".join(f"{size} tokens ({name})" for size, name in sorted(sizes.items()))
                fix = "merge traces with blocks of one size, or convert one to .csv first, which leaves its blocks out"
                raise InputError(", ".join(name for name, _ in sources), f"blocks have {found}", fix)
        waiting[i] = named if held is None else join_rows([held, named])

    while True:
        for i in range(len(sources)):
            if waiting[i] is None and not over[i]:
                pull(i)
        held = [rows for rows in waiting if rows is not None]
        if not held:
            return
        if len({rows.dated for rows in held}) > 1:
            names = ", ".join(name for name, _ in sources)
            fix = "merge traces that share a clock, or convert them one by one"
            raise InputError(names, "some have dates and some count from their own zero", fix)
        # What is before the last known time of every trace that goes on cannot be overtaken any more.
        ends_ns = {i: int(rows.time_ns[-1]) for i, rows in enumerate(waiting) if rows is not None and not over[i]}
        safe_ns = min(ends_ns.values(), default=None)
        ready = []
        for i, rows in enumerate(waiting):
            if rows is not None:
                cut = len(rows) if safe_ns is None else int(np.searchsorted(rows.time_ns, safe_ns))
                ready.append(rows.take(slice(0, cut)))
                waiting[i] = rows.take(slice(cut, len(rows))) if cut < len(rows) else None
        ready = [rows for rows in ready if len(rows)]
        if ready:
            whole = join_rows(ready)
            yield whole.take(np.argsort(whole.time_ns, kind="stable"))
        for i, end_ns in ends_ns.items():
            if end_ns == safe_ns:
                pull(i)


def _apart(rows: Rows, index: int, count: int) -> Rows:
    """Return the rows of one of several traces with blocks and sessions that no other has."""
    session, blocks = rows.session, rows.blocks
    if session is not None:
        names = tuple(f"{index + 1}/{name}" if name else "" for name in session.names)
        session = replace(session, names=names)
    if blocks is not None:
        # An odd factor has an inverse modulo 2^64, so that ids which differ stay different.
        ids = blocks.ids.view(np.uint64) * np.uint64(count | 1) + np.uint64(index)
        blocks = replace(blocks, ids=ids.view(np.int64), unsigned=bool((ids >> np.uint64(63)).any()))
    return replace(rows, session=session, blocks=blocks)


def _named(rows: Rows, name: str) -> Rows:
    if rows.service is not None and any(rows.service.names):
        return rows
    return replace(rows, service=Labels(np.zeros(len(rows), dtype=np.int32), (name,)))


def _as_input_error(error: TraceError) -> InputError:
    file, row, problem, fix = error.args
    return InputError(f"{file}" if row is None else f"{file}: row {row}", problem, fix)


def known_names() -> list[str]:
    """Return the names and formats that commands take, for their help."""
    return [*TRACES, *LAYOUTS]
