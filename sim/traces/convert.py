"""From any trace format to any other, as a stream: nothing is half-written, and what gets lost is said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.errors import InputError
from sim.records.whole_files import whole_file
from sim.traces.sources import Source, merged, spread_out
from workloads.formats.layouts import LAYOUTS, SUFFIXES, Layout
from workloads.formats.rows import Rows, carried
from workloads.formats.write import lost, write_trace

_TRACE_V2_HEADER = """\
trace_version: 2
time_unit: us
mode: generated
warm_up_requests: 0
"""


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written: how many rows, and what the format had no place for.

    Attributes
    ----------
    dropped, clipped, unanswered : requests that failed and were left out, counts of 0 that were raised to 1, and
        requests whose lengths were filled in.
    """

    rows: int
    lost: tuple[str, ...]
    files: tuple[Path, ...]
    dropped: int = 0
    clipped: int = 0
    unanswered: int = 0


def convert(
    sources: Sequence[Source],
    out: Path,
    layout: Layout,
    *,
    from_s: float = 0.0,
    until_s: float | None = None,
    spread: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    same_ids: bool = False,
) -> Converted:
    """Write traces, merged on one clock if they are several, to one file.

    Parameters
    ----------
    from_s, until_s : the part to keep, in seconds since the first row.
    spread : spread times that a publisher rounded over their bins.
    same_ids : blocks and sessions have one numbering in all of them, see `sim.traces.sources.merged`.

    Raises
    ------
    InputError
        If a trace has a bad row, or ``out`` is there already or cannot be written.
    """
    if out.exists() and not overwrite:
        raise InputError(str(out), "is there already", "name another file, or give --overwrite")
    parts = rows_of(sources, spread=spread, seed=seed, same_ids=same_ids)
    parts = cut(parts, from_s, until_s)
    gone: dict[str, None] = {}
    dropped = clipped = unanswered = 0

    def noted() -> Iterator[Rows]:
        nonlocal dropped, clipped, unanswered
        for rows in parts:
            gone.update(dict.fromkeys(lost(rows, layout)))
            dropped += rows.dropped
            clipped += rows.clipped
            unanswered += rows.unanswered
            yield rows

    try:
        with whole_file(out) as half:
            count = write_trace(noted(), half, layout)
            if not count:
                raise InputError(str(out), "no row is in that part of the trace", "give another --from-s and --until-s")
    except ValueError as error:
        problem, _, fix = str(error).partition("; ")
        raise InputError(str(out), problem, fix) from None
    except OSError as error:
        raise InputError(
            str(out), f"cannot be written ({error.strerror})", "name a file in a folder that exists"
        ) from None
    files = [out]
    if layout.name == "trace-v2":
        header = out.with_suffix(".yaml")
        header.write_text(_TRACE_V2_HEADER, encoding="utf-8")
        files.append(header)
    return Converted(count, tuple(gone), tuple(files), dropped, clipped, unanswered)


def rows_of(
    sources: Sequence[Source], *, spread: bool, seed: int = 0, same_ids: bool = False
) -> Iterator[Rows]:
    """Yield the rows of one trace, or of several on one clock."""

    def one(source: Source) -> Iterable[Rows]:
        bin_s = source.layout.bin_s if source.layout is not None else 0.0
        return spread_out(source.rows(), bin_s, seed) if spread and bin_s else source.rows()

    if len(sources) == 1:
        yield from one(sources[0])
    else:
        yield from merged([(source.name, one(source)) for source in sources], same_ids=same_ids)


def layout_for(out: Path, name: str | None) -> Layout:
    """Return the layout to write: the named one, or tokenpools' own by the file's ending.

    Raises
    ------
    InputError
        If neither says.
    """
    if name is not None:
        if name not in LAYOUTS:
            raise InputError("--to", f"unknown format {name!r}", f"give one of {', '.join(LAYOUTS)}")
        return LAYOUTS[name]
    bare = out.name.removesuffix(".gz")
    for container in ("csv", "jsonl", "parquet"):
        if bare.endswith(SUFFIXES[container]):
            return LAYOUTS[f"plain-{container}"]
    raise InputError(str(out), "its ending says no format", f"give --to with one of {', '.join(LAYOUTS)}")


def cut(parts: Iterable[Rows], from_s: float, until_s: float | None) -> Iterator[Rows]:
    """Yield the rows in [from_s, until_s), seconds since the first."""
    return carried(_cut(parts, from_s, until_s))


def _cut(parts: Iterable[Rows], from_s: float, until_s: float | None) -> Iterator[Rows]:
    zero_ns: int | None = None
    from_s = from_s if from_s > 0 else -math.inf  # what failed before the first row that did not is of the whole too
    for rows in parts:
        if zero_ns is None:
            zero_ns = int(rows.time_ns[0])
        yield rows.between(zero_ns, from_s, math.inf if until_s is None else until_s)
        if until_s is not None and float(rows.since_s(zero_ns)[-1]) >= until_s:
            return
