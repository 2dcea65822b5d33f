"""A result's folder: written whole or not at all, and read back.

It holds ``requests.parquet``, ``timeline.parquet``, ``summary.csv``, ``manifest.json`` and, where a run kept them,
``decisions.parquet`` and ``shadows.parquet``. Equal tables give equal bytes. A sweep's folder has the Parquet files of
each of its cells under ``cells`` instead; `read_result` joins them.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sim.errors import InputError, RunError
from sim.records.schema import join_tables, request_schema, timeline_schema

Cell = str | int | float
SummaryRow = dict[str, Cell]

CELLS = "cells"
_GIVE_ANOTHER = "name another folder with --out"
_OURS = ("manifest.json", CELLS, "acceptance.csv")  # what tells a folder of ours from somebody's own


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What one folder holds. ``decisions`` is None where the run kept none."""

    requests: pa.Table
    timeline: pa.Table
    summary: list[SummaryRow]
    manifest: dict[str, Any]
    decisions: pa.Table | None = None


def check_output_folder(folder: Path) -> None:
    """Raise `InputError` unless a result can be written to ``folder``: absent or empty, in a place we may write to.

    Meant for before the run, so that an hour's work does not end in a refusal.
    """
    try:
        if folder.exists():
            if not folder.is_dir():
                raise InputError(str(folder), "is a file", _GIVE_ANOTHER)
            if any(folder.iterdir()):
                raise InputError(str(folder), "is not empty", f"{_GIVE_ANOTHER}, or remove this one")
        # Permissions, read-only mounts and root all answer to one question: does making a folder here work?
        place = next(parent for parent in folder.absolute().parents if parent.exists())
        probe = place / f".{folder.name}.probe-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise InputError(str(folder), f"cannot be written ({error.strerror or error})", _GIVE_ANOTHER) from error


def write_result(
    folder: Path,
    requests: pa.Table,
    timeline: pa.Table,
    summary_rows: Sequence[Mapping[str, Cell]],
    manifest: Mapping[str, Any],
    decisions: pa.Table | None = None,
    shadows: pa.Table | None = None,
) -> None:
    """Write a result folder; after an error or an interrupt there is either the whole of it or nothing.

    Raises
    ------
    InputError
        ``folder`` is not empty or cannot be written.
    RunError
        Writing broke off, for example on a full disk.
    """
    check_output_folder(folder)
    partial = folder.absolute().parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        _write_table(requests, partial / "requests.parquet")
        _write_table(timeline, partial / "timeline.parquet")
        for name, table in (("decisions", decisions), ("shadows", shadows)):
            if table is not None:
                _write_table(table, partial / f"{name}.parquet")
        write_summary(summary_rows, partial)
        write_manifest(manifest, partial)
        partial.rename(folder)  # onto an empty folder, too: POSIX replaces it in one step
    except BaseException as error:  # an interrupt as well must not leave half a result
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunError(f"{folder}: cannot be written ({error.strerror or error})") from error
        raise


def check_replaceable(folder: Path) -> None:
    """Raise `InputError` unless ``folder`` is free, or holds what tokenpools wrote and may be replaced."""
    if not folder.is_dir() or not any(folder.iterdir()):
        check_output_folder(folder)
        return
    if not any((folder / name).exists() for name in _OURS):
        fix = f"{_GIVE_ANOTHER}, or remove this one by hand"
        raise InputError(str(folder), "is no result, so --overwrite leaves it alone", fix)
    check_output_folder(folder.with_name(f"{folder.name}.probe"))  # may its parent be written to?


@contextmanager
def replacing(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield where to write a result: ``folder`` itself, or a place beside it that replaces it when all went well.

    Raises
    ------
    InputError : ``folder`` holds something that is no result.
    """
    if not overwrite:
        yield folder
        return
    check_replaceable(folder)
    if not folder.exists():
        yield folder
        return
    made = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        yield made
        folder.rename(old)
        made.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (made, old):
            shutil.rmtree(leftover, ignore_errors=True)


def read_result(folder: Path) -> Result:
    """Return what `write_result` wrote.

    Raises
    ------
    InputError
        ``folder`` is not a result, or a file of it is missing or damaged.
    """
    if not folder.is_dir():
        raise InputError(str(folder), "is not a folder", "name the folder that `tokenpools run` wrote")
    manifest = read_manifest(folder)
    return Result(
        requests=read_records(folder, manifest, "requests"),
        timeline=read_records(folder, manifest, "timeline"),
        summary=read_summary(folder),
        manifest=manifest,
        decisions=read_records(folder, manifest, "decisions") if has_decisions(folder, manifest) else None,
    )


def read_records(folder: Path, manifest: Mapping[str, Any], name: str, cells: Sequence[str] | None = None) -> pa.Table:
    """Return one table of a result: ``requests``, ``timeline`` or ``decisions``.

    Parameters
    ----------
    cells : keys of the cells of a sweep to read; None: all that finished. A run that is no sweep has one table.
    """
    schema = {"requests": request_schema, "timeline": timeline_schema}.get(name, lambda: pa.schema([]))()
    if not is_sweep(manifest):
        return read_table(folder / f"{name}.parquet", schema)
    keys = cells if cells is not None else [cell["key"] for cell in manifest["cells"] if not cell["error"]]
    if not keys:
        raise InputError(str(folder), "has no finished cell", "see cells.csv for the errors, and sweep again")
    return join_tables([read_table(folder / CELLS / key / f"{name}.parquet", schema) for key in keys])


def read_cell(folder: Path, key: str) -> tuple[dict[str, Any], list[SummaryRow]] | None:
    """Return the stats and the measures of a finished cell of a sweep; None where there is none or it is damaged."""
    try:
        found = json.loads((folder / CELLS / key / "cell.json").read_text(encoding="utf-8"))
        measures = [{k: math.nan if v is None else v for k, v in row.items()} for row in found["measures"]]
        return dict(found["stats"]), measures
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def part_of(table: pa.Table, cell: Mapping[str, Any]) -> pa.Table:
    """Return the rows of one run, an element of the manifest's cells, of a table that holds several."""
    import pyarrow.compute as pc  # here, because a plain run must not pay for importing it

    mine = pc.equal(table.column("replication"), cell["replication"])
    for name, label in {"policy": cell["policy"], **cell["variant"]}.items():
        mine = pc.and_(mine, pc.equal(table.column(name).cast(pa.string()), label))
    return table.filter(mine)


def horizon_s(manifest: Mapping[str, Any]) -> float:
    """Return when a result's runs ended: the horizon, or the last end."""
    stated = manifest["scenario"].get("horizon_s")
    return float(stated) if stated is not None else max(float(cell.get("end_s", 0.0)) for cell in manifest["cells"])


def has_decisions(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Return whether a result has ``decisions.parquet``."""
    if is_sweep(manifest):
        return bool(manifest["scenario"].get("record_decisions"))
    return (folder / "decisions.parquet").exists()


def is_sweep(manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest is of a sweep, whose cells have folders of their own."""
    return manifest.get("kind") == "sweep"


def table_bytes(table: pa.Table) -> bytes:
    """Return the Parquet file of one table; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    _write_table(table, sink)
    return bytes(sink.getvalue())


def _write_table(table: pa.Table, path: Path | pa.BufferOutputStream) -> None:
    # Request ids never repeat and times hardly do: a Parquet dictionary for them costs time and saves nothing.
    few_values = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
    few_values = [name for name in few_values if name != "request_id"]
    pq.write_table(table, path, compression="zstd", use_dictionary=few_values)


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file that has these columns, or those of ``schema``.

    Raises
    ------
    InputError : it cannot be read, or lacks a column.
    """
    try:
        table = pq.read_table(path, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    missing = [name for name in columns or schema.names if name not in table.column_names]
    if missing:
        raise InputError(str(path), f"lacks the column {missing[0]}", "run the scenario again")
    return table


def write_summary(rows: Sequence[Mapping[str, Cell]], folder: Path) -> None:
    """Write ``summary.csv``."""
    replace_file(folder / "summary.csv", rows_csv(rows))


def rows_csv(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Return rows as CSV with every column that any of them has; empty where one has none, or NaN."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if _is_nan(value) else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def write_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Write ``manifest.json``."""
    text = json.dumps(_finite(manifest), indent=2, allow_nan=False, ensure_ascii=False)
    replace_file(folder / "manifest.json", text + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write a text file in one step, over what was there.

    Raises
    ------
    RunError : it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_summary(folder: Path) -> list[SummaryRow]:
    """Return the rows; columns up to ``tenant`` are text, the others numbers, empty ones NaN."""
    path = folder / "summary.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or ())
            labels = set(names[: names.index("tenant") + 1] if names else ())
            return [{k: v if k in labels else _number(v) for k, v in row.items()} for row in reader]
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return ``manifest.json``."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(manifest, dict):
        raise InputError(str(path), "is not a mapping", "run the scenario again")
    return manifest


def _damaged(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(str(path), "is missing", "name a folder that `tokenpools run` wrote")
    return InputError(str(path), f"cannot be read ({str(error).splitlines()[0]})", "run the scenario again")


def _number(text: str) -> int | float:
    if not text:
        return math.nan
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def _is_nan(value: Cell) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _finite(value: Any) -> Any:
    """Replace numbers that JSON has no word for (an end that never comes) by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
