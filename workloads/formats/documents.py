"""Records that are nested: result files of measuring tools, and logs of OpenAI answers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workloads.formats.careful import json_objects
from workloads.formats.layouts import LAYOUTS, Layout
from workloads.formats.lines import Block
from workloads.formats.rows import TraceError
from workloads.formats.times import shown

Cells = Iterator[tuple[int, Callable[[str], Any]]]
_MAX_BYTES = 4 << 30


def recognised(path: Path) -> Layout:
    """Return the layout of a JSON document."""
    value = _document(path)
    if "benchmarks" in value:
        return LAYOUTS["guidellm"]
    if "input_lens" in value or "total_input_tokens" in value:
        return LAYOUTS["vllm-bench"]
    raise TraceError(str(path), None, f"the keys are {shown(', '.join(value))}", "give a result of vLLM or GuideLLM")


def cells(path: Path, layout: Layout) -> Cells:
    """Return the requests of a document in order of time, numbered from 1 in that order."""
    value = _document(path)
    file = str(path)
    rows = _guidellm(value, file) if layout.name == "guidellm" else _vllm(value, file)
    try:
        rows.sort(key=lambda row: row[layout.time])
    except (KeyError, TypeError):
        raise TraceError(file, None, f"{layout.time} is missing in some requests", "measure again") from None
    return ((number, row.get) for number, row in enumerate(rows, start=1))


def _document(path: Path) -> dict[str, Any]:
    file = str(path)
    try:
        with path.open("rb") as source:
            packed = source.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as source:
            data = source.read(_MAX_BYTES)
        value = json.loads(data)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TraceError(file, None, f"cannot be read ({reason})", "name a readable file") from None
    except EOFError:
        raise TraceError(file, None, "the gzip file ends too early", "fetch or copy it again") from None
    except (ValueError, RecursionError):
        raise TraceError(file, None, "is not JSON", "give a result of vLLM or GuideLLM") from None
    if not isinstance(value, dict):
        raise TraceError(file, None, "is not a JSON object", "give a result of vLLM or GuideLLM")
    return value


def _vllm(value: Mapping[str, Any], file: str) -> list[dict[str, Any]]:
    """Return the requests that were answered; ``errors`` says of the others why not.

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
    if len({len(column) for column in columns if column is not None}) > 1:
        raise TraceError(file, None, f"{', '.join(names)} differ in length", "measure again")
    errors = value.get("errors") or [""] * len(columns[0] or ())
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return [row for row, error in zip(rows, errors, strict=False) if not error]


def _guidellm(value: Mapping[str, Any], file: str) -> list[dict[str, Any]]:
    """Return the successful requests of every benchmark.

    References
    ----------
    GuideLLM 0.8.1, ``guidellm/schemas/base/request_stats.py`` (``request_start_time`` is a Unix time in seconds).
    """
    rows = []
    for number, benchmark in enumerate(value.get("benchmarks") or ()):
        requests = benchmark.get("requests") if isinstance(benchmark, dict) else None
        successful = requests.get("successful") if isinstance(requests, dict) else None
        if not isinstance(successful, list):
            raise TraceError(file, None, f"benchmarks[{number}].requests.successful is missing", "write all requests")
        rows += [{**row, "benchmark": str(number)} for row in successful if isinstance(row, dict)]
    return rows


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
