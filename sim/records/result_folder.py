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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sim.errors import InputError, RunError
from sim.json_text import parse_json
from sim.records.integrity import FILES, SEAL, digest, digests, is_broken, sealed
from sim.records.schema import join_tables, request_schema, timeline_schema
from sim.records.whole_files import remove_abandoned, scratch_folder, whole_file, whole_folder
from sim.scenario.yaml_file import one_line

Cell = str | int | float
SummaryRow = dict[str, Cell]

CELLS = "cells"
_DIGESTED = (
    "requests.parquet", "timeline.parquet", "decisions.parquet", "shadows.parquet", "summary.csv", "cells.csv",
)  # fmt: skip
_GIVE_ANOTHER = "name another folder with --out"
_OURS = ("manifest.json", CELLS, "acceptance.csv", "advice.json")  # what tells a folder of ours from somebody's own


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
        remove_abandoned(place)
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
    try:
        with whole_folder(folder) as partial:
            _write_table(requests, partial / "requests.parquet")
            _write_table(timeline, partial / "timeline.parquet")
            for name, table in (("decisions", decisions), ("shadows", shadows)):
                if table is not None:
                    _write_table(table, partial / f"{name}.parquet")
            write_summary(summary_rows, partial)
            write_manifest(manifest, partial)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error})") from error


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
    with scratch_folder(folder.parent) as scratch:
        made, old = scratch / folder.name, scratch / f"{folder.name}.old"
        yield made
        folder.rename(old)
        try:
            made.rename(folder)
        except OSError:
            old.rename(folder)
            raise


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
        summary=read_summary(folder, manifest),
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
        return read_table(folder / f"{name}.parquet", schema, files=manifest.get(FILES))
    keys = cells if cells is not None else [cell["key"] for cell in manifest["cells"] if not cell["error"]]
    if not keys:
        raise InputError(str(folder), "has no finished cell", "see cells.csv for the errors, and sweep again")
    return join_tables([_cell_table(folder / CELLS / key, name, schema) for key in keys])


def _cell_table(folder: Path, name: str, schema: pa.Schema) -> pa.Table:
    try:
        files = cell_mapping(folder).get(FILES)
    except (OSError, ValueError) as error:
        raise _damaged(folder / "cell.json", error) from error
    return read_table(folder / f"{name}.parquet", schema, files=files)


def cell_mapping(folder: Path) -> dict[str, Any]:
    """Return what ``cell.json`` in a cell's folder says.

    Raises
    ------
    OSError, ValueError : it cannot be read, or is not as it was written.
    """
    found = parse_json((folder / "cell.json").read_bytes())
    if not isinstance(found, dict) or is_broken(found) or not isinstance(found.get(FILES, {}), dict):
        raise ValueError("not as it was written")
    return found


def read_cell(folder: Path, key: str) -> tuple[dict[str, Any], list[SummaryRow]] | None:
    """Return the stats and the measures of a finished cell of a sweep; None where there is none or it is damaged."""
    try:
        found = cell_mapping(folder / CELLS / key)
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
    # Request ids never repeat and times hardly do: a Parquet dictionary for them costs time and saves nothing. Least
    # and greatest values by page help who reads a part of a file: these are read whole, and a quarter of writing them
    # was that.
    few_values = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
    few_values = [name for name in few_values if name != "request_id"]
    pq.write_table(
        table, path, compression="zstd", use_dictionary=few_values, write_page_checksum=True, write_statistics=False
    )


def read_table(
    path: Path, schema: pa.Schema, columns: Sequence[str] | None = None, files: Mapping[str, Any] | None = None
) -> pa.Table:
    """Return a Parquet file that has these columns, or those of ``schema``.

    Parameters
    ----------
    files : digests that the file should have, by the names of files; None, or none of it: only its pages are checked.

    Raises
    ------
    InputError : it cannot be read, is not as it was written, or lacks a column or a type of one.
    """
    check_digest(path, files)
    try:
        table = pq.read_table(
            path, columns=None if columns is None else list(columns), page_checksum_verification=True
        )
        table.validate(full=True)
    # Of a damaged footer pyarrow makes anything: names that are no text, sizes that no memory has.
    except (OSError, pa.ArrowException, ValueError, OverflowError, MemoryError) as error:
        raise _damaged(path, error) from error
    missing = [name for name in columns or schema.names if name not in table.column_names]
    if missing:
        raise InputError(str(path), f"lacks the column {missing[0]}", "run the scenario again")
    for field in schema:
        found = table.schema.field(field.name).type if field.name in table.column_names else field.type
        if not _alike(found, field.type):
            raise InputError(str(path), f"has {field.name} as {found}, not {field.type}", "run the scenario again")
    return table


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Return whether a column can be read as one of another type: text by number or not, whole numbers of any size."""
    if pa.types.is_dictionary(wanted) or pa.types.is_string(wanted):
        return bool(pa.types.is_string(found.value_type if pa.types.is_dictionary(found) else found))
    if pa.types.is_integer(wanted):
        return found in (pa.int32(), pa.int64())
    return bool(found == wanted)


def check_digest(path: Path, files: Mapping[str, Any] | None) -> None:
    """Raise `InputError` unless a file has the digest that is written of it, if one is."""
    expected = None if files is None else files.get(path.name)
    if expected is None:
        return
    try:
        if digest(path) == expected:
            return
    except OSError as error:
        raise _damaged(path, error) from error
    raise InputError(str(path), "is not as it was written (another digest)", "restore it, or run the scenario again")


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
    """Write ``manifest.json`` with the digests of the files that are there by then, and its own."""
    bare = {key: value for key, value in manifest.items() if key not in (FILES, SEAL)}
    whole = sealed(_finite(bare) | {FILES: digests(folder, _DIGESTED)})
    text = json.dumps(whole, indent=2, allow_nan=False, ensure_ascii=False)
    replace_file(folder / "manifest.json", text + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write a text file in one step, over what was there.

    Raises
    ------
    RunError : it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_summary(folder: Path, manifest: Mapping[str, Any]) -> list[SummaryRow]:
    """Return the rows; columns up to ``tenant`` are text, the others numbers, empty ones NaN."""
    path = folder / "summary.csv"
    check_digest(path, manifest.get(FILES))
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or ())
            labels = set(names[: names.index("tenant") + 1] if names else ())
            rows = list(reader)
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row has more or fewer cells than there are columns")
        return [{k: v if k in labels else _number(v) for k, v in row.items()} for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise _damaged(path, error) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return ``manifest.json``."""
    path = folder / "manifest.json"
    try:
        manifest = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(manifest, dict):
        raise InputError(str(path), "is not a mapping", "run the scenario again")
    if is_broken(manifest):
        raise InputError(str(path), "is not as it was written (its seal is broken)", "restore it, or run again")
    from sim.records.manifest_shape import check_manifest  # here, because a run that only writes need not know it

    check_manifest(manifest, path)
    return manifest


def _damaged(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(str(path), "is missing", "name a folder that `tokenpools run` wrote")
    said = one_line(str(error))[:200] or type(error).__name__
    return InputError(str(path), f"cannot be read ({said})", "restore it, or run the scenario again")


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
