"""The cells of a sweep on disk: a folder for each, named by its key, whole or absent.

``cells/KEY`` holds ``requests.parquet``, ``timeline.parquet``, ``decisions.parquet`` where a run kept them, and
``cell.json``. `sim.records.result_folder.read_result` joins them when somebody asks for the records of a whole sweep.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sim.analysis.summary import Row
from sim.errors import InputError, RunError
from sim.experiments.cells import Done
from sim.records.integrity import FILES, digests, sealed
from sim.records.result_folder import CELLS, cell_mapping, check_output_folder, read_cell, read_table, replace_file
from sim.records.schema import request_schema
from sim.records.whole_files import remove_abandoned, whole_folder


@dataclass(frozen=True, slots=True)
class Stored:
    """What ``cell.json`` says: fields as in `Done`."""

    key: str
    stats: dict[str, Any]
    measures: list[Row]


class CellStore:
    """The finished cells under one result folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cells = folder / CELLS

    def check(self) -> None:
        """Raise `InputError` unless the folder is free or holds cells already."""
        if not self._cells.is_dir():
            check_output_folder(self.folder)
            return
        if not os.access(self._cells, os.W_OK):
            raise InputError(str(self._cells), "cannot be written", "name another folder with --out")

    def read(self, key: str) -> Stored | None:
        """Return a finished cell, or None where there is none or it is damaged."""
        found = read_cell(self.folder, key)
        return None if found is None else Stored(key, *found)

    def write(self, done: Done) -> Stored:
        """Keep a finished cell; a folder of that name appears when all of it is there.

        Raises
        ------
        RunError : the disk is full or the folder cannot be written.
        """
        place = self._cells / done.key
        try:
            with whole_folder(place, among_many=True) as partial:
                for name, content in done.files.items():
                    (partial / f"{name}.parquet").write_bytes(content)
                files = digests(partial, [f"{name}.parquet" for name in done.files])
                (partial / "cell.json").write_text(_text(done.stats, done.measures, files), encoding="utf-8")
                if place.exists():  # damaged: it would have been read
                    shutil.rmtree(place)
        except OSError as error:
            raise RunError(f"{place}: cannot be written ({error.strerror or error})") from error
        return Stored(done.key, done.stats, done.measures)

    def requests(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the attempts of a finished cell, or these columns of them."""
        files = self._files(key)
        return read_table(self._cells / key / "requests.parquet", request_schema(), columns, files)

    def rewrite(self, one: Stored) -> None:
        """Keep other measures of a finished cell; its records stay as they are."""
        text = _text(one.stats, one.measures, self._files(one.key))
        replace_file(self._cells / one.key / "cell.json", text)

    def _files(self, key: str) -> Mapping[str, str]:
        try:
            return dict(cell_mapping(self._cells / key).get(FILES, {}))
        except (OSError, ValueError):
            return {}

    def tidy(self) -> None:
        """Remove what a killed sweep left half-written."""
        remove_abandoned(self.folder)
        remove_abandoned(self._cells)


def _text(stats: dict[str, Any], measures: list[Row], files: Mapping[str, str]) -> str:
    rows = [{k: _finite(v) for k, v in row.items()} for row in measures]
    # What is sealed is what will be read: keys that are text, tuples that are lists.
    plain = json.loads(json.dumps({"stats": stats, "measures": rows, FILES: files}, allow_nan=False))
    return json.dumps(sealed(plain), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
