"""LiteLLM's spend logs: the table LiteLLM_SpendLogs as CSV, as JSON (an array, or an object a line).

Columns as in LiteLLM 1.108.7, ``litellm/proxy/schema.prisma``. Times are UTC, with or without a zone. A failure has
``status`` "failure" and, in ``metadata``, ``error_information.error_code``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from workloads.formats.documents import whole_text
from workloads.formats.errors import TraceError
from workloads.formats.lines import LONGEST_LINE_BYTES, opened
from workloads.formats.log_lines import Fields, Logged, Torn, numbered_lines, object_of
from workloads.formats.times import shown

_WANTED = frozenset(("request_id", "startTime", "prompt_tokens", "completion_tokens"))
_NEVER_SERVED = frozenset(("400", "401", "403", "404", "405", "413", "415", "422"))


def read(path: Path) -> Iterator[Logged | Torn | None]:
    """Yield every request: see `workloads.formats.logs`.

    The tenant is the team, where there is none the user, else the (hashed) key. Left out are answers from LiteLLM's
    own cache, which reach no engine, calls without tokens that succeeded, and what was refused for good. A last line
    that is torn is told; what is wrong anywhere else is refused, since exports are made whole.
    """
    for number, row in _rows(path):
        yield Torn(number) if row is None else _logged(Fields(str(path), number, row))


def _logged(fields: Fields) -> Logged | None:
    prompt, output = fields.tokens("prompt_tokens") or 0, fields.tokens("completion_tokens") or 0
    failed = fields.text("status") == "failure"
    if fields.text("cache_hit").lower() == "true" or not (failed or prompt or output):
        return None
    if failed and _error_code(fields) in _NEVER_SERVED:
        return None
    return Logged(
        fields.time_ns("startTime"),
        prompt or None,
        None if failed else output,
        _limit(fields),
        fields.text("team_id", "user", "api_key"),
        fields.text("model_group", "model"),
        fields.text("session_id"),
    )


def _error_code(fields: Fields) -> str:
    said = fields.mapping("metadata").get("error_information")
    return str(said.get("error_code")) if isinstance(said, dict) else ""


def _limit(fields: Fields) -> int:
    """Return the limit that the client named, where LiteLLM was told to store what clients ask; 0 for none."""
    asked = fields.mapping("proxy_server_request")
    body = asked.get("body")
    for source in (asked, body if isinstance(body, dict) else {}):
        for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
            value = source.get(name)
            if type(value) is int and 0 < value < 2**31:
                return value
    return 0


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Yield the rows with their numbers: lines, or records of an array; None for a last one that is torn."""
    with opened(path) as raw:
        start = raw.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"[":
        yield from _array(path)
    elif start == b"{":
        torn = None
        for number, line in numbered_lines(path):
            if torn is not None:
                raise TraceError(str(path), torn[0], f"{shown(torn[1])} is not a JSON object", "give one object a line")
            value = object_of(line)
            if value is not None:
                yield number, value
            elif line.strip():
                torn = number, line
        if torn is not None:
            yield torn[0], None
    else:
        yield from _table(path)


def _array(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        listed = json.loads(whole_text(path))
    except (ValueError, RecursionError):
        raise TraceError(str(path), None, "is not JSON", "give what LiteLLM's /spend/logs answers") from None
    for number, value in enumerate(listed, start=1):
        if not isinstance(value, dict):
            raise TraceError(str(path), number, f"{shown(str(value))} is not an object", "give rows of spend logs")
        yield number, value


def _table(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Yield rows of CSV, whose cells of JSON may have commas, quotes and ends of lines; None for a torn last one."""
    before = csv.field_size_limit(LONGEST_LINE_BYTES)
    try:
        with (
            opened(path) as raw,
            io.TextIOWrapper(cast("Any", raw), encoding="utf-8-sig", errors="replace", newline="") as text,
        ):
            reader = csv.DictReader(text)
            missing = sorted(_WANTED - set(reader.fieldnames or ()))
            if missing:
                problem = f"there is no column {missing[0]}"
                raise TraceError(str(path), 1, problem, "export LiteLLM_SpendLogs with its header")
            odd = 0
            for row in reader:
                if odd or None in row:
                    problem, fix = "has another number of columns than the header", "export it as CSV, commas quoted"
                    raise TraceError(str(path), odd or reader.line_num, problem, fix)
                if None in row.values():
                    odd = reader.line_num
                else:
                    yield reader.line_num, row
            if odd:
                yield odd, None
    except csv.Error as error:
        raise TraceError(str(path), None, f"is not CSV ({error})", "export LiteLLM_SpendLogs as CSV") from None
    except (OSError, EOFError) as error:
        raise TraceError(str(path), None, f"cannot be read ({error})", "name a readable file") from None
    finally:
        csv.field_size_limit(before)
