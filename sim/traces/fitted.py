"""A fit as text: a workload for a scenario, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from sim.errors import InputError
from sim.records.whole_files import whole_file
from sim.traces.convert import cut, rows_of
from sim.traces.fit import fit, report
from sim.traces.sources import Source
from workloads.formats.rows import join_rows

_MOST_ROWS = 5_000_000


def fitted(
    sources: Sequence[Source], *, from_s: float = 0.0, until_s: float | None = None, seed: int = 0
) -> tuple[str, str]:
    """Return the workload that matches a trace, as YAML, and how well its laws do.

    Raises
    ------
    InputError
        If a trace has a bad row, or too few.
    """
    parts = []
    count = 0
    for rows in cut(rows_of(sources, spread=True, seed=seed), from_s, until_s):
        parts.append(rows)
        count += len(rows)
        if count > _MOST_ROWS:
            problem = f"more than {_MOST_ROWS:,} requests to fit"
            raise InputError(sources[0].name, problem, "give a part with --from-s and --until-s")
    name = " and ".join(source.name for source in sources)
    try:
        if not parts:
            raise ValueError("no row is in that part of the trace; give another --from-s and --until-s")
        found = fit(join_rows(parts), seed)
    except ValueError as error:
        problem, _, fix = str(error).partition("; ")
        raise InputError(name, problem, fix) from None
    text = yaml.safe_dump([found.workload("NAME-OF-ENTITLEMENT")], sort_keys=False, default_flow_style=None, width=110)
    head = f"# Fitted to {name}: {count:,} requests in {found.span_s:,.0f} s.\n"
    return head + text, report(found)


def write_text(path: Path, text: str, *, overwrite: bool) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    InputError
        If it is there already, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise InputError(str(path), "is there already", "name another file, or give --overwrite")
    try:
        with whole_file(path) as half:
            half.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            str(path), f"cannot be written ({error.strerror})", "name a file in a folder that exists"
        ) from None
