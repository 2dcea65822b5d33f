"""Records that are nested: result files of measuring tools, and logs of OpenAI answers."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workloads.formats.careful import LATEST_S, json_objects
from workloads.formats.errors import TraceError
from workloads.formats.layouts import LAYOUTS, Layout
from workloads.formats.lines import Block
from workloads.formats.times import shown

Cells = Iterator[tuple[int, Callable[[str], Any]]]
_MAX_BYTES = 512 << 20
"""JSON takes several times its size in memory, and a small gzip can hold any amount of it."""


def recognised(path: Path) -> Layout:
    """Return the layout of a JSON document."""
    if whole_text(path)[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return LAYOUTS["litellm-spend-log"]  # the one array there is; its reader says what it lacks
    value = _document(path)
    if "benchmarks" in value:
        return LAYOUTS["guidellm"]
    if "input_lens" in value or "total_input_tokens" in value:
        return LAYOUTS["vllm-bench"]
    raise TraceError(str(path), None, f"the keys are {shown(', '.join(value))}", "give a result of vLLM or GuideLLM")


def cells(path: Path, layout: Layout) -> tuple[Cells, list[float]]:
    """Return the requests of a document in order of time, numbered from 1 in that order, and when others failed.

    The times of failures are in the unit of the layout, sorted, 0 where the document does not say.
    """
    value = _document(path)
    file = str(path)
    rows, failed = _guidellm(value, file) if layout.name == "guidellm" else _vllm(value, file)
    try:
        rows.sort(key=lambda row: row[layout.time])
    except (KeyError, TypeError):
        raise TraceError(file, None, f"{layout.time} is missing in some requests", "measure again") from None
    times = [row.get(layout.time) for row in failed]
    known = [one if isinstance(one, int | float) and 0 <= one <= LATEST_S else 0.0 for one in times]
    return ((number, row.get) for number, row in enumerate(rows, start=1)), sorted(known)


_Rows = list[dict[str, Any]]


def whole_text(path: Path) -> bytes:
    """Return all of a file, plain or gzip.

    Raises
    ------
    TraceError
        If it is not there, damaged, or larger than JSON is read here.
    """
    file = str(path)
    try:
        with path.open("rb") as source:
            packed = source.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as source:
            data = source.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            problem = f"it holds more than {_MAX_BYTES >> 20} MiB"
            raise TraceError(file, None, problem, "give one result, or convert it to JSONL")
    except OSError as error:
        reason = error.strerror or str(error)
        raise TraceError(file, None, f"cannot be read ({reason})", "name a readable file") from None
    except (EOFError, zlib.error):
        raise TraceError(file, None, "the gzip file is damaged or ends too early", "fetch or copy it again") from None
    return data


def _document(path: Path) -> dict[str, Any]:
    file = str(path)
    try:
        value = json.loads(whole_text(path))
    except (ValueError, RecursionError):
        raise TraceError(file, None, "is not JSON", "give a result of vLLM or GuideLLM") from None
    if not isinstance(value, dict):
        raise TraceError(file, None, "is not a JSON object", "give a result of vLLM or GuideLLM")
    return value


def _vllm(value: Mapping[str, Any], file: str) -> tuple[_Rows, _Rows]:
    """Return the requests that were answered and those that failed: ``errors`` says why.

    References
    ----------
    vLLM, ``vllm/benchmarks/serve.py``: the result that ``--save-result --save-detailed`` writes.
    """
    names = ("start_times", "input_lens", "output_lens")
    columns = [value.get(name) for name in names]
    for name, column in zip(names, columns, strict=True):
        if not isinstance(column, list):
            fix = "measure with --save-result --save-detailed, on a vLLM that writes start_times"
            raise TraceError(file, None, f"there is no {name}", fix)
    errors = value.get("errors") or [""] * len(columns[0] or ())
    if not isinstance(errors, list):
        raise TraceError(file, None, "errors is not a list", "measure again")
    if len({len(column) for column in (*columns, errors) if column is not None}) > 1:
        raise TraceError(file, None, f"{', '.join(names)} or errors differ in length", "measure again")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    good = [row for row, error in zip(rows, errors, strict=True) if not error]
    return good, [row for row, error in zip(rows, errors, strict=True) if error]


def _guidellm(value: Mapping[str, Any], file: str) -> tuple[_Rows, _Rows]:
    """Return the successful requests of every benchmark, and those that failed or were not finished.

    References
    ----------
    GuideLLM 0.8.1, ``guidellm/schemas/base/request_stats.py`` (``request_start_time`` is a Unix time in seconds).
    """
    good: _Rows = []
    failed: _Rows = []
    benchmarks = value.get("benchmarks")
    if not isinstance(benchmarks, list):
        raise TraceError(file, None, "benchmarks is not a list", "give the file that GuideLLM wrote")
    for number, benchmark in enumerate(benchmarks):
        requests = benchmark.get("requests") if isinstance(benchmark, dict) else None
        if not isinstance(requests, dict) or not isinstance(requests.get("successful"), list):
            raise TraceError(file, None, f"benchmarks[{number}].requests.successful is missing", "write all requests")
        for kind, found in (("successful", good), ("errored", failed), ("incomplete", failed)):
            rows = requests.get(kind) or []
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                place = f"benchmarks[{number}].requests.{kind}"
                raise TraceError(file, None, f"{place} is not a list of requests", "write all requests")
            found += [{**row, "benchmark": str(number)} for row in rows]
    return good, failed


_ANSWERS = ("response", "body", "response_body")
_ASKS = ("request", "request_body", "kwargs")


def openai_cells(block: Block, file: str) -> Cells:
    """Yield the rows of a log of OpenAI answers: the answer itself, or ``{request, response}``, or a batch's line."""
    for number, value in json_objects(block, file):
        parts = [value]
        for name in (*_ANSWERS, *_ASKS):
            part = value.get(name)
            if isinstance(part, dict):
                parts += [part, *(inner for inner in [part.get("body")] if isinstance(inner, dict))]
        usage: Mapping[str, Any] = next((part["usage"] for part in parts if isinstance(part.get("usage"), dict)), {})
        yield number, _openai_cell(parts, usage, number)


_USAGE = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
_ALIASES = {
    "created": ("timestamp", "start_time", "created_at", "created"),
    "max_tokens": ("max_completion_tokens", "max_output_tokens", "max_tokens"),
    "user": ("tenant", "user", "safety_identifier"),
    "id": ("id", "request_id", "custom_id"),
}


def _openai_cell(parts: list[dict[str, Any]], usage: Mapping[str, Any], number: int) -> Callable[[str], Any]:
    def get(column: str) -> Any:
        if column.startswith("usage."):
            name = column.removeprefix("usage.")
            return usage.get(name, usage.get(_USAGE[name]))
        for name in _ALIASES.get(column, (column,)):
            for part in parts:
                if part.get(name) is not None:
                    return part[name]
        return f"line {number}" if column == "id" else None

    return get


def table_cells(table: Any, first_row: int) -> Cells:
    """Yield the rows of a pyarrow table."""
    for offset, row in enumerate(table.to_pylist()):
        yield first_row + offset, row.get
