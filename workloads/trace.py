"""Arrivals and lengths replayed from a recorded trace."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workloads import transforms
from workloads.arrivals import MAX_ARRIVALS
from workloads.catalogue import TRACES, locate
from workloads.formats.careful import LATEST_S
from workloads.formats.errors import EmptyCutError, TraceError
from workloads.formats.layouts import ROLES, SUFFIXES, Container, Layout
from workloads.formats.read import layout_of, load, own_layout
from workloads.formats.rows import Rows
from workloads.formats.times import Unit, parse_time_ns
from workloads.lengths import MAX_TOKENS
from workloads.prefixes import BlockPrefixes, name_space
from workloads.requests import Replayed, Streams

__all__ = ["TRACES", "Columns", "Replayed", "Trace", "TraceError", "TraceWindow", "locate"]

_FACTOR = {"gt": 0, "le": 1000}


def _column(description: str) -> Any:
    return field(default=None, metadata={"min_length": 1, "description": description})


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column of a plain CSV, JSONL or Parquet file says what; what is left out, the file does not have."""

    time: str = field(metadata={"min_length": 1, "description": "give the column of arrival times, e.g. arrived_at"})
    prompt: str = field(metadata={"min_length": 1, "description": "give the column of prompt tokens, e.g. tokens_in"})
    output: str = field(metadata={"min_length": 1, "description": "give the column of output tokens, e.g. tokens_out"})
    limit: str | None = _column("give the column of max_tokens, e.g. max_tokens")
    tenant: str | None = _column("give the column of tenants, e.g. customer")
    service: str | None = _column("give the column of services or models, e.g. model")
    session: str | None = _column("give the column of conversations, e.g. chat")
    turn: str | None = _column("give the column of turns in a conversation, e.g. turn")
    request_id: str | None = _column("give the column of ids that must differ, e.g. id")
    time_unit: Unit = field(
        default="s", metadata={"description": "give the unit of the times, e.g. ms, or datetime for dates"}
    )

    def layout(self, container: Container) -> Layout:
        """Return the layout of such a file."""
        roles = {role: name for role in ROLES if (name := getattr(self, role, None)) is not None}
        return own_layout(roles, container, unit=self.time_unit)


@dataclass(frozen=True, slots=True, eq=False)
class TraceWindow:
    """A part of a file: the time that counts as 0, and the seconds to spread rounded times over."""

    rows: Rows
    zero_ns: int
    spread_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A recorded trace, replayed from the start of the workload's window.

    Trace time counts from the first row, or from ``origin``: give two traces of one clock the same origin, and they
    stay together. What is done to it, in this order:

    1. The rows in [from_trace_s, until_trace_s) are read; times that the publisher rounded are spread out.
    2. One tenant's are chosen: by column (``tenant``, ``service``) or as one of ``groups`` groups.
    3. ``bootstrap_block_s`` puts blocks of this length, drawn with replacement, in place of the recorded order, for as
       long as the workload lasts.
    4. The rate: ``superpose`` lays copies over each other, each rotated by a random time, which smooths bursts as more
       users do; ``scale`` stretches time, every gap divided by it, which keeps each burst's size; ``thin`` keeps each
       request with this probability and leaves the rest where they are. Only ``scale`` changes how long it lasts.
    5. Lengths are multiplied and cut.
    """

    kind: Literal["trace"] = "trace"
    file: str = field(metadata={"min_length": 1, "description": "give a path, or a name, e.g. azure-llm-2023/conv"})
    format: str | None = field(
        default=None, metadata={"description": "give the file's format, e.g. mooncake; left out, it is recognised"}
    )
    columns: Columns | None = field(
        default=None,
        metadata={"description": "give the columns of a plain table, e.g. {time: at, prompt: in, output: out}"},
    )
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
    superpose: int = field(
        default=1, metadata={"ge": 1, "le": 1000, "description": "give the copies to lay over each other, e.g. 3"}
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
    spread_s: float | None = field(
        default=None,
        metadata={
            "ge": 0,
            "description": "give the seconds to spread rounded times over, e.g. 3, or 0 for as published",
        },
    )
    tenant: str | None = field(
        default=None, metadata={"description": "give a name of the trace's tenant column, e.g. arena-model-07"}
    )
    service: str | None = field(
        default=None, metadata={"description": "give a name of the trace's service (or model) column, e.g. ChatGPT"}
    )
    groups: int | None = field(
        default=None, metadata={"ge": 1, "le": 100_000, "description": "give the tenants to divide it among, e.g. 8"}
    )
    group: int | None = field(
        default=None, metadata={"ge": 0, "description": "give which of the groups this is, e.g. 0 for the first"}
    )
    group_by: Literal["skew", "prefix", "session"] = field(
        default="skew",
        metadata={"description": "give skew, prefix or session, e.g. prefix: who shares one, shares a group"},
    )
    skew: float = field(
        default=0.0,
        metadata={"ge": 0, "le": 10, "description": "give the exponent of group sizes, e.g. 0 for equal, 1 for Zipf"},
    )
    bootstrap_block_s: float | None = field(
        default=None, metadata={"gt": 0, "description": "give the length of the blocks to redraw in seconds, e.g. 60"}
    )
    prompt_factor: float = field(
        default=1.0, metadata=_FACTOR | {"description": "give a factor on prompt lengths, e.g. 0.5"}
    )
    output_factor: float = field(
        default=1.0, metadata=_FACTOR | {"description": "give a factor on output lengths, e.g. 0.5"}
    )
    prompt_at_most_tokens: int | None = field(
        default=None, metadata={"ge": 1, "le": MAX_TOKENS, "description": "give where to cut prompts, e.g. 8192 tokens"}
    )
    output_at_most_tokens: int | None = field(
        default=None, metadata={"ge": 1, "le": MAX_TOKENS, "description": "give where to cut outputs, e.g. 1024 tokens"}
    )

    unanswered_prompt_tokens: int | None = field(
        default=None,
        metadata={
            "ge": 1, "le": MAX_TOKENS, "description": "give the prompt of requests of which a log tells none, e.g. 500",
        },
    )
    unanswered_output_tokens: int | None = field(
        default=None,
        metadata={
            "ge": 1, "le": MAX_TOKENS, "description": "give the answer to requests that nobody answered, e.g. 200",
        },
    )

    def __post_init__(self) -> None:
        if self.until_trace_s is not None and self.until_trace_s <= self.from_trace_s:
            raise ValueError(
                f"until_trace_s {self.until_trace_s:g} is not after from_trace_s {self.from_trace_s:g}; raise it"
            )
        if self.origin is not None:
            try:
                _origin_ns(self.origin)
            except ValueError:
                raise ValueError(f'origin {self.origin!r} is no time; write it as "2023-11-16 18:17:00"') from None
        if (self.group is None) != (self.groups is None):
            raise ValueError("group and groups go together; give both, e.g. groups: 8 and group: 0")
        if self.group is not None and self.groups is not None and self.group >= self.groups:
            raise ValueError(f"group {self.group} is not among {self.groups}; they are numbered from 0")
        self._check_effects()
        if self.columns is not None and self.format is not None:
            raise ValueError("format is given beside columns; leave one of them out")

    def _check_effects(self) -> None:
        """Refuse what would be read and then not be used."""
        if self.group is None and (self.group_by != "skew" or self.skew):
            raise ValueError("group_by and skew divide groups; give groups and group too, or leave them out")
        if self.columns is None:
            return
        if self.unanswered_prompt_tokens is not None or self.unanswered_output_tokens is not None:
            raise ValueError("unanswered_..._tokens is given beside columns, which tell all lengths; leave it out")
        session = "session" if self.group_by == "session" else None
        for role, by, fix in (
            ("tenant", self.tenant, "give its tenant too"), ("turn", None, "a replay has no use for it"),
            ("service", self.service, "give its service too"), ("session", session, "give group_by: session"),
        ):  # fmt: skip
            if getattr(self.columns, role) is not None and by is None:
                raise ValueError(f"columns names {role}, which nothing here reads; leave it out ({fix})")

    def requests(
        self, stream: Streams, name: str, folder: Path | None, from_s: float, until_s: float, limit: int | None
    ) -> Replayed:
        """See `workloads.generate.Recorded`."""
        cut = self.read(folder, max(0.0, until_s - from_s))
        return self.replay(cut, stream(f"{name}/arrivals"), from_s, until_s, limit, stream(self.stream_name))

    @property
    def stream_name(self) -> str:
        """The random stream that all workloads on this file share, so that its groups divide it."""
        return f"trace/{self.file}"

    def layout(self, path: Path) -> Layout:
        """Return the layout of the file at ``path``."""
        if self.columns is not None:
            return self.columns.layout(container_of(path))
        found = layout_of(path, self.format)
        prompt, output = self.unanswered_prompt_tokens or 0, self.unanswered_output_tokens or 0
        if not prompt and not output:
            return found
        if found.container != "log":
            problem = f"unanswered_..._tokens is given, and {found.name} tells the lengths of all requests"
            raise TraceError(str(path), None, problem, "leave it out")
        return replace(found, unanswered_prompt_tokens=prompt, unanswered_output_tokens=output)

    def read(self, folder: Path | None, duration_s: float = math.inf) -> TraceWindow:
        """Return the part of the file that a workload of this duration needs.

        Raises
        ------
        TraceError
            If the file is not there, has a bad row, or the cut holds none.
        """
        path = locate(self.file, folder)
        layout = self.layout(path)
        zero_ns = None if self.origin is None else _origin_ns(self.origin)
        wanted_s = math.inf if self.until_trace_s is None else self.until_trace_s
        until_s = wanted_s
        if self.superpose == 1 and self.bootstrap_block_s is None:  # else all of the cut is needed
            # A little more: what it rounds to, and what spreading brings in, replay cuts off exactly.
            until_s = min(wanted_s, self.from_trace_s + duration_s * self.scale * (1 + 1e-9) + layout.bin_s + 1e-6)
        early_s = max(0.0, self.from_trace_s - layout.bin_s)
        try:
            rows, zero_ns = load(path, layout, zero_ns=zero_ns, from_s=early_s, until_s=until_s)
        except EmptyCutError:
            if until_s == wanted_s:
                raise
            rows, zero_ns = load(path, layout, zero_ns=zero_ns, from_s=early_s, until_s=wanted_s)
        # Of a format that rounds, a file may still have been spread already.
        rounded = layout.bin_s > 0 and transforms.is_rounded(rows.since_s(zero_ns), layout.bin_s)
        spread_s = self.spread_s if self.spread_s is not None else layout.bin_s if rounded else 0.0
        return TraceWindow(rows, zero_ns, spread_s)

    def replay(
        self,
        cut: TraceWindow,
        rng: np.random.Generator,
        from_s: float,
        until_s: float,
        limit: int | None,
        shared: np.random.Generator,
    ) -> Replayed:
        """Return the requests that fall in [from_s, until_s) of the run, at most ``limit`` of them.

        A longer window or a higher limit adds requests at the end and moves none.

        Parameters
        ----------
        cut : as `read` returns it.
        rng : for thinning, redrawing and rotating.
        shared : for spreading and for who belongs to which group, the same for all workloads on this file.

        Raises
        ------
        TraceError
            If the cut holds no row at all, or the tenant none, or there are too many.
        """
        rows = cut.rows
        time_s = rows.since_s(cut.zero_ns)
        until_trace_s = math.inf if self.until_trace_s is None else self.until_trace_s
        of_spread, of_groups = shared.spawn(2)
        if cut.spread_s:
            time_s = transforms.jitter_within_bins(time_s, cut.spread_s, of_spread)
        first, last = (int(i) for i in np.searchsorted(time_s, (self.from_trace_s, until_trace_s)))
        if first == last:
            problem = f"no row from {self.from_trace_s:g} s to {until_trace_s:g} s of trace time"
            span = f"{time_s[0]:g} s to {time_s[-1]:g} s"
            raise EmptyCutError(self.file, None, problem, f"its rows span {span}: cut inside that")
        mine = self._mine(rows, of_groups)[first:last]
        chosen = np.arange(first, last)[mine]
        trace_s = time_s[first:last][mine] - self.from_trace_s
        span_s = min(until_trace_s, float(time_s[-1])) - self.from_trace_s
        of_thinning, of_blocks, of_copies = rng, *rng.spawn(2)
        duration_s = (until_s - from_s) * self.scale
        if self.bootstrap_block_s is not None:
            if not duration_s < math.inf:
                duration_s = span_s
            picked = transforms.redrawn(trace_s, span_s, self.bootstrap_block_s, duration_s, of_blocks, MAX_ARRIVALS)
            trace_s, chosen, span_s = picked[0], chosen[picked[1]], duration_s
        copy = np.zeros(len(chosen), dtype=np.int64)
        if self.superpose > 1:
            trace_s, order, copy = transforms.superposed(trace_s, span_s, self.superpose, of_copies)
            chosen = chosen[order]
        arrival_s = from_s + trace_s / self.scale
        if self.thin < 1.0:
            kept = of_thinning.random(len(chosen)) < self.thin
            arrival_s, chosen, copy = arrival_s[kept], chosen[kept], copy[kept]
        count = int(np.searchsorted(arrival_s, until_s))
        chosen = chosen[: count if limit is None else min(count, limit)]
        prompt = transforms.resized(rows.prompt_tokens[chosen], self.prompt_factor, self.prompt_at_most_tokens)
        output = transforms.resized(rows.output_tokens[chosen], self.output_factor, self.output_at_most_tokens)
        asked = None
        if rows.max_output_tokens is not None:  # a client that gets twice the tokens has asked for twice as many
            recorded = rows.max_output_tokens[chosen]
            scaled = transforms.resized(recorded, self.output_factor, self.output_at_most_tokens)
            asked = np.where(recorded > 0, scaled, 0)
        failed = rows.take(slice(first, int(chosen.max()) + 1)).dropped if len(chosen) else 0
        prefixes = None
        if rows.blocks is not None:
            names = name_space(f"trace {self.file}")
            prefixes = BlockPrefixes(names, rows.blocks.take(chosen), copy, prompt, self.prompt_factor)
        raised = 0 if rows.raised is None else int(rows.raised[chosen].sum())
        unanswered = 0 if rows.filled is None else int(rows.filled[chosen].sum())
        return Replayed(
            arrival_s[: len(chosen)], prompt, output, prefixes, asked, failed=failed, raised=raised,
            unanswered=unanswered,
        )  # fmt: skip

    def _mine(self, rows: Rows, rng: np.random.Generator) -> transforms.Flags:
        """Return which rows belong to the tenant that is asked for."""
        mine = np.ones(len(rows), dtype=np.bool_)
        for column, name in (("tenant", self.tenant), ("service", self.service)):
            if name is not None:
                labels = getattr(rows, column)
                if labels is None:
                    raise TraceError(self.file, None, f"it has no {column} column", "use groups instead")
                if name not in labels.names:
                    known = ", ".join(sorted(labels.names)[:30])
                    raise TraceError(self.file, None, f"no row is {column} {name!r}", f"give one of {known}")
                mine &= labels.codes == labels.names.index(name)
        if self.group is not None and self.groups is not None:
            try:
                group = transforms.groups_of(rows, self.group_by, self.groups, self.skew, rng)
            except ValueError as error:
                raise TraceError(self.file, None, *str(error).split("; ", 1)) from None
            mine &= group == self.group
        return mine


def _origin_ns(text: str) -> int:
    """Return a date as nanoseconds, or a number of seconds for traces that have no dates."""
    try:
        seconds = float(text)
    except ValueError:
        return parse_time_ns(text)
    if not abs(seconds) <= LATEST_S:
        raise ValueError(f"{text} s is out of range")
    return round(seconds * 1e9)


def container_of(path: Path) -> Container:
    """Return what kind of plain table a file is, by its name."""
    name = path.name.removesuffix(".gz")
    containers: tuple[Container, ...] = ("jsonl", "parquet")
    return next((one for one in containers if name.endswith(SUFFIXES[one])), "csv")
