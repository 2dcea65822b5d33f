"""The rows of a trace: columns in the order of their times, whatever file they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from workloads.formats.errors import BlockSizesError
from workloads.requests import Floats, Ints

Codes = NDArray[np.int32]
_NO_TIMES: Ints = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """A column of few texts: row i says ``names[codes[i]]``. A name may be listed and not used."""

    codes: Codes
    names: tuple[str, ...]

    def take(self, chosen: slice | NDArray[np.int64] | NDArray[np.bool_]) -> Labels:
        """Return the chosen rows."""
        return Labels(self.codes[chosen], self.names)

    def texts(self) -> list[str]:
        """Return the text of each row."""
        return [self.names[code] for code in self.codes.tolist()]


def labels_of(codes: Codes, names: Iterable[str]) -> Labels:
    """Return a column of the names of a file. Half a character, which JSON can name, becomes its escape."""
    return Labels(codes, tuple(name.encode("utf-8", "backslashreplace").decode() for name in names))


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """The blocks that prompts begin with, named so that equal names mean equal text up to there.

    Row i has ``ids[ends[i - 1] : ends[i]]`` (from 0 for the first). A block holds ``block_tokens`` tokens, the last of
    a prompt perhaps fewer. Where ``unsigned``, ``ids`` are the bits of unsigned numbers of which some
    need the 64th.
    """

    ids: Ints
    ends: Ints
    block_tokens: int
    unsigned: bool = False

    @property
    def starts(self) -> Ints:
        """Where each row's blocks begin in ``ids``."""
        return np.concatenate(([0], self.ends[:-1])).astype(np.int64)

    def take(self, chosen: slice | NDArray[np.int64] | NDArray[np.bool_]) -> Blocks:
        """Return the chosen rows."""
        starts, ends = self.starts[chosen], self.ends[chosen]
        sizes = ends - starts
        stops = np.cumsum(sizes)
        index = np.arange(int(stops[-1]) if len(stops) else 0) + np.repeat(starts - (stops - sizes), sizes)
        return replace(self, ids=self.ids[index], ends=stops)

    def lists(self) -> list[list[int]]:
        """Return the blocks of each row."""
        ids = self.ids.view(np.uint64) if self.unsigned else self.ids
        return [part.tolist() for part in np.split(ids, self.ends[:-1])] if len(self.ends) else []


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Requests of a trace, in order of time; columns that the file does not have are None.

    Attributes
    ----------
    time_ns : shape (n,), nanoseconds, never decreasing; whole numbers, so that copies are exact.
    prompt_tokens, output_tokens : shape (n,), at least 1.
    dated : True where ``time_ns`` counts from 1970-01-01 UTC, False where it counts from the trace's own zero.
    max_output_tokens : what the client asked for, 0 where it named no limit.
    tenant, service : who asked, and what for (a model, a kind of task).
    session, turn : the conversation and the number of the request in it, from 1; 0 where it is not known.
    blocks : what the prompt begins with.
    raised : shape (n,), how many counts of 0 of each row were raised to 1: a replica needs a prompt, and an answer has
        a token. None: of no row.
    dropped_ns : times of the rows that were left out because the format says that they failed, never decreasing. Each
        goes with the rows around it, however these are cut, so that sums over parts are right.
    filled : shape (n,), whether a length of the row was filled in, because a log has no answer to it. None: of no row.
    unread : how many lines of a log begin as an entry does and are none: torn ones. They go with the first row.
    first_unread : the number of the first of them, from 1; 0 where there is none.
    """

    time_ns: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    dated: bool = False
    max_output_tokens: Ints | None = None
    tenant: Labels | None = None
    service: Labels | None = None
    session: Labels | None = None
    turn: Ints | None = None
    blocks: Blocks | None = None
    raised: NDArray[np.int8] | None = None
    dropped_ns: Ints = field(default_factory=lambda: _NO_TIMES)
    filled: NDArray[np.bool_] | None = None
    unread: int = 0
    first_unread: int = 0

    @property
    def unanswered(self) -> int:
        """How many rows have a length that was filled in."""
        return 0 if self.filled is None else int(self.filled.sum())

    @property
    def clipped(self) -> int:
        """How many counts of 0 were raised to 1."""
        return 0 if self.raised is None else int(self.raised.sum())

    @property
    def dropped(self) -> int:
        """How many rows were left out."""
        return len(self.dropped_ns)

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.time_ns)

    def since_s(self, zero_ns: int) -> Floats:
        """Return the times as seconds since ``zero_ns``."""
        return (self.time_ns - zero_ns) / 1e9

    def take(self, chosen: slice | NDArray[np.int64] | NDArray[np.bool_]) -> Rows:
        """Return the chosen rows; an order other than that of time is the caller's doing.

        What was left out between rows goes with a slice of them; with any other choice all of it does.
        """

        def of(column: Ints | None) -> Ints | None:
            return None if column is None else column[chosen]

        later = isinstance(chosen, slice) and bool(chosen.start)
        return replace(
            self,
            time_ns=self.time_ns[chosen],
            prompt_tokens=self.prompt_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            max_output_tokens=of(self.max_output_tokens),
            tenant=self.tenant and self.tenant.take(chosen),
            service=self.service and self.service.take(chosen),
            session=self.session and self.session.take(chosen),
            turn=of(self.turn),
            blocks=self.blocks and self.blocks.take(chosen),
            raised=None if self.raised is None else self.raised[chosen],
            filled=None if self.filled is None else self.filled[chosen],
            dropped_ns=self._dropped_in(chosen) if isinstance(chosen, slice) else self.dropped_ns,
            unread=0 if later else self.unread,
            first_unread=0 if later else self.first_unread,
        )

    def _dropped_in(self, chosen: slice) -> Ints:
        """Return what was left out from the first row of a slice up to the row behind it."""
        first, end, _ = chosen.indices(len(self))
        if first >= end:
            return _NO_TIMES
        low = int(np.searchsorted(self.dropped_ns, self.time_ns[first])) if first else 0
        high = int(np.searchsorted(self.dropped_ns, self.time_ns[end])) if end < len(self) else len(self.dropped_ns)
        return self.dropped_ns[low:high]

    def between(self, zero_ns: int, from_s: float, until_s: float) -> Rows:
        """Return the rows in [from_s, until_s) after ``zero_ns``, and what was left out there; perhaps none."""
        first, end = np.searchsorted(self.since_s(zero_ns), (from_s, until_s))
        low, high = np.searchsorted((self.dropped_ns - zero_ns) / 1e9, (from_s, until_s))
        if end - first == len(self) and high - low == len(self.dropped_ns):
            return self
        return replace(self.take(slice(int(first), int(end))), dropped_ns=self.dropped_ns[low:high])


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several parts, one after another. What only some of them say is empty in the others."""
    if len(parts) == 1:
        return parts[0]

    def numbers(columns: Sequence[Ints | None]) -> Ints | None:
        if all(one is None for one in columns):
            return None
        filled = [
            np.zeros(len(part), dtype=np.int64) if one is None else one
            for part, one in zip(parts, columns, strict=True)
        ]
        return np.concatenate(filled)

    def labels(columns: Sequence[Labels | None]) -> Labels | None:
        if all(one is None for one in columns):
            return None
        silent = [Labels(np.zeros(len(part), dtype=np.int32), ("",)) for part in parts]
        return join_labels([given or empty for given, empty in zip(columns, silent, strict=True)])

    return Rows(
        np.concatenate([part.time_ns for part in parts]),
        np.concatenate([part.prompt_tokens for part in parts]),
        np.concatenate([part.output_tokens for part in parts]),
        dated=parts[0].dated,
        max_output_tokens=numbers([part.max_output_tokens for part in parts]),
        tenant=labels([part.tenant for part in parts]),
        service=labels([part.service for part in parts]),
        session=labels([part.session for part in parts]),
        turn=numbers([part.turn for part in parts]),
        blocks=_join_blocks(parts),
        raised=_join_raised(parts),
        filled=_join_filled(parts),
        dropped_ns=np.sort(np.concatenate([part.dropped_ns for part in parts]), kind="stable"),
        unread=sum(part.unread for part in parts),
        first_unread=next((part.first_unread for part in parts if part.unread), 0),
    )


def carried(parts: Iterable[Rows]) -> Iterator[Rows]:
    """Yield the parts that have rows; what was left out in the others goes with the next, at the end with the last.

    One part is held back for that.
    """
    held: Rows | None = None
    loose: list[Ints] = []
    for part in parts:
        loose.append(part.dropped_ns)
        if not len(part):
            continue
        if held is not None:
            yield held
        held, loose = replace(part, dropped_ns=np.concatenate(loose)), []
    if held is not None:
        yield replace(held, dropped_ns=np.concatenate([held.dropped_ns, *loose]))


def _join_raised(parts: Sequence[Rows]) -> NDArray[np.int8] | None:
    if all(part.raised is None for part in parts):
        return None
    return np.concatenate([np.zeros(len(p), dtype=np.int8) if p.raised is None else p.raised for p in parts])


def _join_filled(parts: Sequence[Rows]) -> NDArray[np.bool_] | None:
    if all(part.filled is None for part in parts):
        return None
    return np.concatenate([np.zeros(len(p), dtype=np.bool_) if p.filled is None else p.filled for p in parts])


def _join_blocks(parts: Sequence[Rows]) -> Blocks | None:
    """Return the blocks of all parts; None where there are none.

    Raises
    ------
    BlockSizesError : they differ in size.
    """
    sizes = {part.blocks.block_tokens for part in parts if part.blocks is not None and len(part.blocks.ids)}
    if len(sizes) > 1:
        raise BlockSizesError(sizes)
    if not sizes:
        return None
    empty = np.empty(0, dtype=np.int64)
    ids = [empty if part.blocks is None else part.blocks.ids for part in parts]
    ends = [np.zeros(len(part), dtype=np.int64) if part.blocks is None else part.blocks.ends for part in parts]
    shifts = np.cumsum([0, *(len(one) for one in ids)])
    shifted = [end + shift for end, shift in zip(ends, shifts[:-1], strict=True)]
    unsigned = any(part.blocks is not None and part.blocks.unsigned for part in parts)
    return Blocks(np.concatenate(ids), np.concatenate(shifted), sizes.pop(), unsigned)


def without_silent(rows: Rows) -> Rows:
    """Return the rows with None for each column that says nothing anywhere."""

    def said(labels: Labels | None) -> Labels | None:
        return labels if labels is not None and any(labels.names) else None

    def given(column: Ints | None) -> Ints | None:
        return column if column is not None and bool(column.any()) else None

    return replace(
        rows,
        max_output_tokens=given(rows.max_output_tokens),
        turn=given(rows.turn),
        tenant=said(rows.tenant),
        service=said(rows.service),
        session=said(rows.session),
        blocks=rows.blocks if rows.blocks is not None and len(rows.blocks.ids) else None,
    )


def join_labels(parts: Sequence[Labels]) -> Labels:
    """Return labels of several parts as one column, names in the order of their first mention."""
    names: dict[str, int] = {}
    codes = []
    for part in parts:
        own = np.array([names.setdefault(name, len(names)) for name in part.names], dtype=np.int32)
        codes.append(own[part.codes] if len(own) else part.codes)
    return Labels(np.concatenate(codes), tuple(names))
