"""Why a request was let in, held or turned away: its run again up to that instant, and the core's books there.

A run is a function of its scenario, so the same request meets the same books again. The core is written down right
before it judges (`policies.snapshot`), and questions of the kind "what if" are put to copies of it, one question each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from policies.api import (
    Arrived,
    Event,
    Evict,
    Forward,
    Gauge,
    Hold,
    Instruction,
    Refuse,
    RequestView,
)
from policies.core import GatewayCore
from policies.snapshot import SnapshotError, take
from policies.wire import INSTRUCTIONS
from sim.errors import InputError, RunError
from sim.judging.result_runs import ResultRuns, find_cells, result_runs
from sim.judging.what_if import what_ifs


class _DecidedError(Exception):
    """All is known that was asked for: the run need not go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """The state of the tenant's entitlement and of the pool at one instant, before the event of that instant."""

    entitlement: Mapping[str, Any]
    pool: Mapping[str, Any]
    gauges: Sequence[Gauge]


@dataclass(slots=True)
class Explanation:
    """What one attempt met at the gateway.

    Attributes
    ----------
    said : verdicts on it with their times, the first on arrival.
    books : before the first and before the last of them.
    what_ifs : what would have let it in at its arrival, in sentences; empty where it was let in at once.
    """

    request: RequestView
    arrived_s: float
    max_output_tokens: int
    said: list[tuple[float, Instruction]] = field(default_factory=list)
    books: list[Books] = field(default_factory=list)
    what_ifs: list[str] = field(default_factory=list)

    @property
    def last(self) -> Instruction:
        """The last word."""
        return self.said[-1][1]


class WatchedCore:
    """A core that is watched for one attempt; see `policies.core.GatewayCore` for the methods.

    Parameters
    ----------
    on_decided : called when the attempt was forwarded or refused, and once more if it is evicted.
    """

    def __init__(
        self, core: GatewayCore, request_id: str, attempt: int, on_decided: Callable[[Explanation], None]
    ) -> None:
        self._core = core
        self._request_id = request_id
        self._attempt = attempt
        self._on_decided = on_decided
        self._held = False
        self.found: Explanation | None = None

    def __getattr__(self, name: str) -> Any:
        """Return what else a driver reads from the core."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._core, name)

    def start(self, now_s: float) -> Sequence[Instruction]:
        """Start it."""
        return self._core.start(now_s)

    def handle(self, event: Event, now_s: float) -> Sequence[Instruction]:
        """Hand an event to the core, and look at the books around it where it concerns the attempt."""
        if type(event) is Arrived and self._is_it(event.request):
            return self._arrived(event, now_s)
        if self.found is None:
            return self._core.handle(event, now_s)
        before = books(self._core, self.found.request.entitlement, now_s) if self._held else None
        said = self._core.handle(event, now_s)
        self._take_down(said, before, now_s)
        return said

    def _is_it(self, request: RequestView) -> bool:
        return request.request_id == self._request_id and request.attempt == self._attempt

    def _arrived(self, event: Arrived, now_s: float) -> Sequence[Instruction]:
        request = event.request
        before = books(self._core, request.entitlement, now_s)
        try:
            copy: object = take(self._core)
        except SnapshotError:
            copy = None
        asked = request.max_output_tokens
        found = Explanation(request, now_s, self._core.default_max_output_tokens if asked is None else asked)
        self.found = found
        said = self._core.handle(event, now_s)
        found.books.append(before)
        mine = [step for step in said if getattr(step, "request_id", None) == self._request_id]
        if any(isinstance(step, Hold | Refuse) for step in mine):
            found.what_ifs = (
                ["no what-ifs: the policy's state cannot be copied"] if copy is None
                else list(what_ifs(copy, request, found.max_output_tokens, now_s))
            )  # fmt: skip
        self._take_down(said, before, now_s)
        return said

    def _take_down(self, said: Sequence[Instruction], before: Books | None, now_s: float) -> None:
        found = self.found
        assert found is not None
        for step in said:
            if getattr(step, "request_id", None) != self._request_id:
                continue
            if found.said and before is not None and now_s > found.said[-1][0]:
                found.books.append(before)
            found.said.append((now_s, step))
            self._held = isinstance(step, Hold)
            if isinstance(step, Forward | Refuse | Evict):
                self._on_decided(found)


def books(core: GatewayCore, entitlement: str, now_s: float) -> Books:
    """Return what the core's books hold of an entitlement and of the pool."""
    pool = core.pool
    book = pool.entitlements[entitlement]
    spec = book.spec
    capacity = pool.capacity
    reserved = sum(one.reserved_tokens for one in pool.entitlements.values())
    return Books(
        entitlement={
            "name": entitlement, "service_class": str(spec.service_class), "state": str(book.state),
            "in_flight": book.in_flight, "reserved_tokens": book.reserved_tokens, "admitted": book.admitted,
            "refused": book.refused, "baseline": _amounts(spec.baseline), "limit": _amounts(spec.limit),
        },
        pool={
            "ready_replicas": capacity.ready_replicas, "slots": capacity.slots, "in_flight": len(pool.in_flight),
            "held": len(core._held), "reserved_tokens": reserved, "tokens_per_s": capacity.tokens_per_s,
            "mean_service_s": pool.mean_service_s,
        },
        gauges=[
            gauge for gauge in core._policy.gauges(pool, now_s)
            if gauge.scope == "pool" or (gauge.scope == "entitlement" and gauge.name == entitlement)
        ],
    )  # fmt: skip


def _amounts(resources: Any) -> dict[str, float]:
    pairs = ((name, getattr(resources, name)) for name in ("slots", "tokens_per_s", "kv_bytes"))
    return {name: value for name, value in pairs if value is not None}


# --------------------------------------------------------------------------------------------------------------------
# Results


@dataclass(frozen=True, slots=True)
class Found:
    """An explanation, the run it is from, and the attempt as the records have it."""

    policy: str
    variant: Mapping[str, str]
    replication: int
    attempts: int
    row: Mapping[str, Any]
    explanation: Explanation | None


def explain(
    folder: Path, request_id: str, *, policy: str | None = None, replication: int | None = None,
    attempt: int | None = None,
) -> Found:  # fmt: skip
    """Return what a request of a result met at the gateway.

    Left out, ``policy`` and ``replication`` are those of the first run that turned the request away, else of the first
    that has it, and ``attempt`` is the last that was turned away, else the last.

    Raises
    ------
    InputError : no such request, or the result cannot run again.
    RunError : the run does not repeat what the result records.
    """
    found = result_runs(folder)
    entry, rows = _entry_of(found, request_id, policy, replication)
    if attempt is None:
        turned_away = [row for row in rows if row["outcome"] in ("refused", "evicted")]
        row = (turned_away or rows)[-1]
    else:
        match = [row for row in rows if row["attempt"] == attempt]
        if not match:
            raise InputError(f"{request_id}", f"has no attempt {attempt}", f"give 1 to {len(rows)}")
        row = match[0]
    explanation = _again(found, entry, row)
    return Found(entry["policy"], entry["variant"], int(entry["replication"]), len(rows), row, explanation)


def _entry_of(
    found: ResultRuns, request_id: str, policy: str | None, replication: int | None
) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    import pyarrow.compute as pc

    first: tuple[Mapping[str, Any], list[dict[str, Any]]] | None = None
    example = ""
    for entry in find_cells(found, policy, replication):
        table = found.requests(entry)
        if not example and table.num_rows:
            example = f", e.g. {table.column('request_id')[0]}"
        rows = table.filter(pc.equal(table.column("request_id"), request_id)).to_pylist()
        rows.sort(key=lambda row: int(row["attempt"]))
        if any(row["outcome"] in ("refused", "evicted") for row in rows):
            return entry, rows
        if rows and first is None:
            first = entry, rows
    if first is None:
        raise InputError(request_id, "no such request in this result",
                         f"take a request_id of its requests.parquet{example}")  # fmt: skip
    return first


def _again(found: ResultRuns, entry: Mapping[str, Any], row: Mapping[str, Any]) -> Explanation:
    from sim.cluster.world import simulate
    from sim.experiments.run import world_of

    world = replace(world_of(found.cell(entry)), timeline_interval_s=None, shadows={})
    request_id, attempt = str(row["request_id"]), int(row["attempt"])
    watched: list[WatchedCore] = []
    until_evicted = row["outcome"] == "evicted"

    def decided(explanation: Explanation) -> None:
        if isinstance(explanation.last, Refuse | Evict) or not until_evicted:
            raise _DecidedError

    def through(core: GatewayCore) -> GatewayCore:
        watched.append(WatchedCore(core, request_id, attempt, decided))
        return watched[-1]  # type: ignore[return-value]

    with contextlib.suppress(_DecidedError):
        simulate(world, through=through)
    explanation = next((one.found for one in watched if one.found is not None), None)
    if explanation is None or not _agrees(explanation, row):
        got = "nothing" if explanation is None or not explanation.said else type(explanation.last).__name__.lower()
        raise RunError(
            f"{request_id}: the run does not repeat what the result records ({row['outcome']} then, {got} now); "
            "run the scenario again with this code and explain that result"
        )
    return explanation


def _agrees(explanation: Explanation, row: Mapping[str, Any]) -> bool:
    if abs(explanation.arrived_s - row["arrival_s"]) > 1e-9:
        return False
    if not explanation.said or isinstance(explanation.last, Hold):
        return row["outcome"] in ("waiting", "cancelled")
    if isinstance(explanation.last, Refuse):
        return bool(row["outcome"] == "refused" and row["reason"] == explanation.last.reason.value)
    return bool(row["outcome"] != "refused")


def explain_recording(file: Path, request_id: str, *, attempt: int | None = None) -> Found:
    """Return what a request met at a live gateway, from the events that it recorded.

    Raises
    ------
    InputError : it is no recording, or has no such request.
    RunError : the core no longer decides as it did.
    """
    from sim.judging.parity import read_recording, tell
    from sim.live.gateway.core_from_config import core_of_head

    head, rows = read_recording(file)
    events = list(rows)
    arrived = [event.request for _, _, event, _ in events if type(event) is Arrived]
    tries = [request.attempt for request in arrived if request.request_id == request_id]
    if not tries:
        raise InputError(request_id, "no such request in this recording", "take the x-request-id of an answer")
    wanted = attempt if attempt is not None else _last_turned_away(events, request_id) or tries[-1]
    if wanted not in tries:
        raise InputError(request_id, f"has no attempt {wanted}", f"give one of {tries}")
    said: list[Explanation] = []
    core = WatchedCore(core_of_head(head, str(file)), request_id, wanted, said.append)
    core.start(float(head["started_s"]))
    for number, at_s, event, recorded in events:
        told = [step[0] for step in recorded if step[1:2] == [request_id]]
        answers = tell(core, event, at_s, file, number)
        ours = [_WIRE[type(step)] for step in answers if getattr(step, "request_id", None) == request_id]
        if told != ours:
            problem = f"{file}: line {number}: recorded {told}, now {ours}"
            raise RunError(f"{problem}; explain it with the code that recorded it")
        if said and isinstance(said[-1].last, Refuse | Evict):
            break
    policy = head["policy"].get("name") or head["policy"].get("kind")
    return Found(str(policy), {}, 0, len(tries), {}, core.found)


def _last_turned_away(events: Sequence[Any], request_id: str) -> int | None:
    """Return the attempt that was last refused or evicted, if one was."""
    current, found = None, None
    for _, _, event, recorded in events:
        if type(event) is Arrived and event.request.request_id == request_id:
            current = event.request.attempt
        if any(step[0] in ("refuse", "evict") and step[1] == request_id for step in recorded):
            found = current
    return found


_WIRE = {kind: name for name, kind in INSTRUCTIONS.items()}
