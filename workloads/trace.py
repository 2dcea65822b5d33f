"""Arrivals and lengths replayed from a recorded trace."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from workloads.azure_csv import TraceError, TraceRows, parse_time_ns, read_azure_csv
from workloads.requests import Floats, Ints

__all__ = ["TRACES", "Replayed", "Trace", "TraceError", "TraceRows", "locate", "read_azure_csv"]

TRACES = {
    "azure-llm-2023/code": "azure-llm-2023/AzureLLMInferenceTrace_code.csv",
    "azure-llm-2023/conv": "azure-llm-2023/AzureLLMInferenceTrace_conv.csv",
}
"""Names a scenario may use, and where each lies in the data folder."""


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """Requests taken from a trace: seconds from the start of the run, and tokens, shape (n,) each."""

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A recorded trace, replayed from the start of the workload's window.

    Trace time counts from the first row, or from ``origin``: give two traces of one clock the same origin, and they
    stay together. The part in [from_trace_s, until_trace_s) is replayed. ``scale`` stretches time: every gap is
    divided by it, so 2 doubles the rate in half the time and keeps the order and each burst's size. ``thin`` keeps
    each request with this probability and leaves the rest where they are, so it lowers the rate but not the duration.
    """

    kind: Literal["trace"] = "trace"
    file: str = field(metadata={"min_length": 1, "description": "give a path, or a name, e.g. azure-llm-2023/conv"})
    scale: float = field(
        default=1.0,
        metadata={
            "gt": 0,
            "description": "give a factor on the rate, e.g. 0.2: a fifth of it, over five times the time",
        },
    )
    thin: float = field(
        default=1.0,
        metadata={"gt": 0, "le": 1, "description": "give the share of requests to keep at random, e.g. 0.5"},
    )
    from_trace_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give the trace time to start at in seconds, e.g. 600"}
    )
    until_trace_s: float | None = field(
        default=None, metadata={"gt": 0, "description": "give the trace time to stop before in seconds, e.g. 1200"}
    )
    origin: str | None = field(
        default=None,
        metadata={"description": 'give the time in the file that counts as 0, quoted, e.g. "2023-11-16 18:17:00"'},
    )

    def __post_init__(self) -> None:
        if self.until_trace_s is not None and self.until_trace_s <= self.from_trace_s:
            raise ValueError(
                f"until_trace_s {self.until_trace_s:g} is not after from_trace_s {self.from_trace_s:g}; raise it"
            )
        if self.origin is not None:
            try:
                parse_time_ns(self.origin)
            except ValueError:
                raise ValueError(f'origin {self.origin!r} is no time; write it as "2023-11-16 18:17:00"') from None

    def replay(
        self, rows: TraceRows, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None
    ) -> Replayed:
        """Return the requests that fall in [from_s, until_s) of the run, at most ``limit`` of them.

        ``rng`` is used only for thinning. A longer window or a higher limit adds requests at the end and moves none.

        Raises
        ------
        TraceError
            If the cut holds no row at all.
        """
        shift_s = 0.0 if self.origin is None else (rows.first_ns - parse_time_ns(self.origin)) / 1e9
        trace_s = rows.time_s + shift_s
        until_trace_s = math.inf if self.until_trace_s is None else self.until_trace_s
        first, last = np.searchsorted(trace_s, (self.from_trace_s, until_trace_s))
        if first == last:
            problem = f"no row from {self.from_trace_s:g} s to {until_trace_s:g} s of trace time"
            span = f"{trace_s[0]:g} s to {trace_s[-1]:g} s"
            raise TraceError(self.file, None, problem, f"its rows span {span}: cut inside that")
        arrival_s = from_s + (trace_s[first:last] - self.from_trace_s) / self.scale
        chosen = np.arange(first, last)
        if self.thin < 1.0:
            kept = rng.random(len(chosen)) < self.thin
            arrival_s, chosen = arrival_s[kept], chosen[kept]
        count = int(np.searchsorted(arrival_s, until_s))
        count = count if limit is None else min(count, limit)
        chosen = chosen[:count]
        return Replayed(arrival_s[:count], rows.prompt_tokens[chosen], rows.output_tokens[chosen])


def locate(file: str, folder: Path | None) -> Path:
    """Return the path of a trace: a name of `TRACES` in the data folder, else a path, else a path in that folder.

    Raises
    ------
    TraceError
        If there is no such file, or a name is given and no folder.
    """
    if file in TRACES:
        if folder is None:
            fix = "set TOKENPOOLS_DATA to the folder that holds it, or give a path"
            raise TraceError(file, None, "the folder of trace data is not known", fix)
        candidates = [folder / TRACES[file]]
    else:
        candidates = [Path(file), *([folder / file] if folder is not None else [])]
    for path in candidates:
        if path.is_file():
            return path
    if file in TRACES:
        raise TraceError(file, None, f"not found as {candidates[0]}", "put the published file there, or give a path")
    close = difflib.get_close_matches(file, TRACES, n=1)
    fix = f"did you mean {close[0]}?" if close else f"give the path of a CSV file or one of {', '.join(TRACES)}"
    raise TraceError(file, None, "no such file", fix)
