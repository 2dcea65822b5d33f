"""Logs of servers as traces: what was refused is demand too, and lines are written when requests end.

A log is read whole and sorted by arrival. Requests that nobody answered stand in it without a length (a refusal has no
answer, a proxy counts no prompt that it sent nowhere): each gets the lengths of an answered request of the same tenant,
drawn, or of any tenant where that has none; a limit that the client named cuts its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workloads.formats import envoy_log, gateway_log, litellm_log, vllm_log
from workloads.formats.errors import TraceError
from workloads.formats.layouts import Layout
from workloads.formats.log_lines import Logged, Torn
from workloads.formats.rows import Labels, Rows, labels_of
from workloads.requests import Ints

_SEED = 20_240_611
"""Of the drawn lengths: a log is the same demand whoever reads it."""
_UNKNOWN = -1

READERS: Mapping[str, Callable[[Path], Iterator[Logged | Torn | None]]] = {
    "envoy-access-log": envoy_log.read,
    "gateway-log": gateway_log.read,
    "litellm-spend-log": litellm_log.read,
    "vllm-log": vllm_log.read,
}
"""Each yields what a line says of a request, None where it tells of one that is left out, and torn lines."""


class _Columns(NamedTuple):
    time_ns: Ints
    prompt: Ints
    output: Ints
    limit: Ints
    labels: tuple[Labels, Labels, Labels]


def read(path: Path, layout: Layout) -> Rows:
    """Return the requests of a log in order of arrival.

    Raises
    ------
    TraceError : it cannot be read, tells of no request, or of none that tells the lengths.
    """
    found: list[Logged] = []
    left_out: list[int] = []
    torn: list[int] = []
    last_ns = 0
    for entry in READERS[layout.name](path):
        if entry is None:
            left_out.append(last_ns)
            continue
        if isinstance(entry, Torn):
            torn.append(entry.row)
            continue
        last_ns = entry.time_ns
        found.append(entry)
    if not found:
        problem = f"no line of it tells of a request ({layout.about})"
        raise TraceError(str(path), None, problem, "give the log of a server that logs requests, or name its --format")
    if left_out and left_out[0] == 0:  # before the first that counts
        left_out = [at_ns or found[0].time_ns for at_ns in left_out]
    columns = _sorted(found)
    filled = (columns.prompt == _UNKNOWN) | (columns.output == _UNKNOWN)
    prompt, output = _filled(columns, layout, str(path))
    raised = (prompt == 0).astype(np.int8) + (output == 0)
    tenant, service, session = columns.labels
    return Rows(
        columns.time_ns, np.maximum(prompt, 1), np.maximum(output, 1), dated=layout.unit == "datetime",
        max_output_tokens=columns.limit, tenant=tenant, service=service, session=session,
        raised=raised if raised.any() else None, filled=filled if filled.any() else None,
        dropped_ns=np.sort(np.array(left_out, dtype=np.int64)), unread=len(torn), first_unread=torn[0] if torn else 0,
    )  # fmt: skip


def _sorted(found: list[Logged]) -> _Columns:
    order = sorted(range(len(found)), key=lambda i: found[i].time_ns)  # stable: ties as in the file
    entries = [found[i] for i in order]

    def numbers(values: Iterator[int | None]) -> Ints:
        return np.array([_UNKNOWN if value is None else value for value in values], dtype=np.int64)

    def labels(texts: Iterator[str]) -> Labels:
        names: dict[str, int] = {}
        codes = np.array([names.setdefault(text, len(names)) for text in texts], dtype=np.int32)
        return labels_of(codes, names)

    return _Columns(
        numbers(e.time_ns for e in entries), numbers(e.prompt_tokens for e in entries),
        numbers(e.output_tokens for e in entries), numbers(e.limit_tokens for e in entries),
        (labels(e.tenant for e in entries), labels(e.service for e in entries), labels(e.session for e in entries)),
    )  # fmt: skip


def _filled(columns: _Columns, layout: Layout, file: str) -> tuple[Ints, Ints]:
    """Return prompts and outputs with the unknown ones filled in."""
    rng = np.random.default_rng(_SEED)
    tenant = columns.labels[0].codes
    prompt, output = columns.prompt.copy(), columns.output.copy()
    for values, stated, what in (
        (prompt, layout.unanswered_prompt_tokens, "prompt"), (output, layout.unanswered_output_tokens, "output"),
    ):  # fmt: skip
        unknown = values == _UNKNOWN
        if not unknown.any():
            continue
        if stated:
            values[unknown] = stated
            continue
        if unknown.all():
            of = "answered" if what == "output" else "of a counted prompt"
            problem = f"none of its {len(values)} requests is {of}, so nothing tells how long they are"
            fix = f"give arrivals.unanswered_{what}_tokens, e.g. 200, or a log that has answers"
            raise TraceError(file, None, problem, fix)
        known = ~unknown
        for who in np.unique(tenant[unknown]).tolist():
            mine = unknown & (tenant == who)
            pool = values[known & (tenant == who)]
            pool = pool if len(pool) else values[known]
            values[mine] = rng.choice(pool, int(mine.sum()))
    limited = (columns.limit > 0) & (columns.output == _UNKNOWN)
    output[limited] = np.minimum(output[limited], columns.limit[limited])
    return prompt, output
