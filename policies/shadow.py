"""Policies that watch without acting: each judges the traffic that another policy serves, in books of its own.

A shadow is a whole `policies.core.GatewayCore` that hears what the acting one hears; what it says is written down and
not done. Its books hold what it would have let in, no more: a request that it refuses is not in them although it runs,
and one that it lets in but the acting policy turns away leaves them, as if its client had gone. So its meters are
charged as they would be in a run of its own, for as long as the traffic would be the same. Where the two differ: work
takes as long as it takes under the acting policy, reports of replicas show the acting policy's load, and clients retry
what the acting policy refuses. What a shadow holds is gone from its books when the real request ends.

The acting core hears exactly what it would hear without shadows, so that its instructions stay the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.api import (
    Arrived,
    Cancelled,
    CapacityChanged,
    Demote,
    Event,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Gauge,
    Hold,
    Instruction,
    PoolLedger,
    Progress,
    Refuse,
    ReplicaReport,
    Tick,
)
from policies.calls import Calls
from policies.core import GatewayCore

_IN = ("forward", "demote")
_Verdict = Forward | Demote | Hold | Refuse | Evict


@dataclass(slots=True, eq=False)
class Opinion:
    """What one shadow said of one attempt, and what became of it under the acting policy.

    Attributes
    ----------
    acting, verdict : forward, demote (forwarded at a lower priority), hold, refuse or evict; the last word of each.
    reason, needed, available, retry_after_s : the shadow's, as in `policies.api.Refuse`.
    decided_s : when the shadow's last word came.
    """

    shadow: str
    t_s: float
    request_id: str
    attempt: int
    tenant: str
    entitlement: str
    acting: str = ""
    acting_reason: str = ""
    verdict: str = ""
    reason: str = ""
    needed: float | None = None
    available: float | None = None
    retry_after_s: float | None = None
    decided_s: float = 0.0


class ShadowedCore:
    """Drives an acting core and its shadows; see `policies.core.GatewayCore` for the methods.

    Parameters
    ----------
    acting : the core whose instructions are carried out.
    shadows : cores by name, each with a policy and a router of its own and no autoscaler.
    on_opinion : told of every shadow's opinion of an attempt when the attempt has ended.
    """

    def __init__(
        self, acting: GatewayCore, shadows: Mapping[str, GatewayCore], on_opinion: Callable[[Opinion], None]
    ) -> None:
        self._acting = acting
        self._names = list(shadows)
        self._shadows = list(shadows.values())
        self._tell = on_opinion
        self._open: dict[str, list[Opinion]] = {}
        self._calls = Calls(1 + len(self._shadows))  # the acting core's, then the shadows'
        self._unheard: list[tuple[Progress, float]] = []
        self.wants_progress = acting.wants_progress or any(core.wants_progress for core in self._shadows)
        self.wants_reports = acting.wants_reports or any(core.wants_reports for core in self._shadows)
        self.wants_prefixes = acting.wants_prefixes or any(core.wants_prefixes for core in self._shadows)
        self.wants_sessions = acting.wants_sessions or any(core.wants_sessions for core in self._shadows)

    @property
    def pool(self) -> PoolLedger:
        """The acting core's books."""
        return self._acting.pool

    @property
    def acting(self) -> GatewayCore:
        """The core whose instructions are carried out."""
        return self._acting

    def shadow(self, name: str) -> GatewayCore | None:
        """Return the core of a shadow; None where there is none of that name."""
        return dict(zip(self._names, self._shadows, strict=True)).get(name)

    def join(self, said: Sequence[Instruction], now_s: float) -> Sequence[Instruction]:
        """Start the shadows of an acting core that runs already and has just said ``said``; return what to do.

        They know nothing of what is in flight, and are asked about what comes from now on.
        """
        kept = self._calls.heard(0, said)
        pool = self._acting.pool
        ready = tuple(book.replica_id for book in pool.replicas if book.ready)
        for index, core in enumerate(self._shadows):
            self._note(index, core.start(now_s), now_s)
            self._note(index, core.handle(CapacityChanged(pool.capacity, ready), now_s), now_s)
        return (*kept, *self._calls.next())

    def gauges(self, now_s: float) -> list[Gauge]:
        """Return the acting core's gauges."""
        return self._acting.gauges(now_s)

    def __getattr__(self, name: str) -> Any:
        """Return anything else that a driver reads from the acting core."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._acting, name)

    def start(self, now_s: float) -> Sequence[Instruction]:
        """Start them all."""
        said = self._calls.heard(0, self._acting.start(now_s))
        for index, core in enumerate(self._shadows):
            self._note(index, core.start(now_s), now_s)
        return (*said, *self._calls.next())

    def handle(self, event: Event, now_s: float) -> Sequence[Instruction]:
        """Hand an event to the acting core, and to the shadows that it concerns."""
        if type(event) is Progress:
            self._progress(event, now_s)
            return ()
        if type(event) is Tick:
            return self._tick(now_s)
        before = self._catch_up()
        if type(event) is Arrived:
            return (*before, *self._arrived(event, now_s), *self._calls.earlier())
        silent = (type(event) is FirstToken and not self._acting.wants_progress) or (
            type(event) is ReplicaReport and not self._acting.wants_reports
        )
        said: Sequence[Instruction] = () if silent else self._calls.heard(0, self._acting.handle(event, now_s))
        if isinstance(event, CapacityChanged | ReplicaReport):
            for index, core in enumerate(self._shadows):
                if type(event) is CapacityChanged or core.wants_reports:
                    self._note(index, core.handle(event, now_s), now_s)
        elif type(event) is FirstToken:
            self._advanced(event, now_s)
        elif isinstance(event, Finished | Failed | Cancelled):
            self._ended(event, said, now_s)
        self._follow(said, now_s)
        return (*before, *said, *self._calls.earlier())

    def close(self) -> None:
        """Tell of the opinions of attempts that have not ended."""
        for opinions in self._open.values():
            for opinion in opinions:
                self._tell(opinion)
        self._open.clear()

    def _arrived(self, event: Arrived, now_s: float) -> Sequence[Instruction]:
        request = event.request
        opinions = [
            Opinion(name, now_s, request.request_id, request.attempt, request.tenant, request.entitlement)
            for name in self._names
        ]
        said = self._calls.heard(0, self._acting.handle(event, now_s))
        self._open[request.request_id] = opinions
        for index, core in enumerate(self._shadows):
            self._note(index, core.handle(event, now_s), now_s)
        self._follow(said, now_s)
        return said

    def _progress(self, event: Progress, now_s: float) -> None:
        """Let shadows know at once, the acting core when its own tick is due or something else happens."""
        if self._acting.wants_progress:
            self._unheard.append((event, now_s))
        self._advanced(event, now_s)

    def _advanced(self, event: FirstToken | Progress, now_s: float) -> None:
        """Let those shadows know that let the request in and want to hear of its progress."""
        for index, opinion in enumerate(self._open.get(event.request_id, ())):
            if opinion.verdict in _IN and self._shadows[index].wants_progress:
                self._note(index, self._shadows[index].handle(event, now_s), now_s)

    def _catch_up(self) -> list[Instruction]:
        said: list[Instruction] = []
        if self._unheard:
            unheard, self._unheard = self._unheard, []
            for event, at_s in unheard:
                said += self._calls.heard(0, self._acting.handle(event, at_s))
        return said

    def _tick(self, now_s: float) -> Sequence[Instruction]:
        said: list[Instruction] = []
        if now_s >= self._calls.due_s[0]:
            said += self._catch_up()
            self._calls.take(0, now_s)
            said += self._calls.heard(0, self._acting.handle(Tick(), now_s))
        else:  # reports for a shadow's tick, which the acting core would not have heard
            self._unheard.clear()
        for index, core in enumerate(self._shadows):
            if self._calls.take(1 + index, now_s):
                self._note(index, core.handle(Tick(), now_s), now_s)
        self._follow(said, now_s)
        return (*said, *self._calls.next())

    def _ended(self, event: Finished | Failed | Cancelled, said: Sequence[Instruction], now_s: float) -> None:
        """Let each shadow know that a request is over, in the way that its books need to hear it."""
        goes_on = any(type(step) is Forward and step.request_id == event.request_id for step in said)
        opinions = self._open.get(event.request_id, ())
        for index, opinion in enumerate(opinions):
            core = self._shadows[index]
            if opinion.verdict in _IN:
                heard = core.handle(event, now_s)
                self._note(index, heard, now_s)
                elsewhere = any(type(step) is Forward and step.request_id == event.request_id for step in heard)
                if elsewhere and not goes_on:
                    self._note(index, core.handle(Cancelled(event.request_id, event.output_tokens), now_s), now_s)
            elif opinion.verdict == "hold" and not goes_on:
                self._note(index, core.handle(Cancelled(event.request_id), now_s), now_s)
        if not goes_on:
            self._forget(event.request_id)

    def _follow(self, said: Sequence[Instruction], now_s: float) -> None:
        """Note the acting core's verdicts, and let shadows know of what it turned away."""
        for step in said:
            if not isinstance(step, _Verdict):
                continue
            opinions = self._open.get(step.request_id)
            if opinions is None:
                continue
            for opinion in opinions:
                opinion.acting = _word(step, opinion.acting)
                opinion.acting_reason = step.reason.value if isinstance(step, Hold | Refuse | Evict) else ""
            if isinstance(step, Refuse | Evict):
                for index, opinion in enumerate(opinions):
                    if opinion.verdict in (*_IN, "hold"):
                        gone = self._shadows[index].handle(Cancelled(step.request_id), now_s)
                        self._note(index, gone, now_s)
                self._forget(step.request_id)

    def _forget(self, request_id: str) -> None:
        for opinion in self._open.pop(request_id, ()):
            self._tell(opinion)

    def _note(self, index: int, instructions: Sequence[Instruction], now_s: float) -> None:
        """Write down what a shadow says."""
        for step in self._calls.heard(1 + index, instructions):
            if isinstance(step, _Verdict):
                opinions = self._open.get(step.request_id)
                if opinions is None:
                    continue
                opinion = opinions[index]
                opinion.verdict, opinion.decided_s = _word(step, opinion.verdict), now_s
                opinion.reason = step.reason.value if isinstance(step, Hold | Refuse | Evict) else ""
                if isinstance(step, Refuse):
                    opinion.needed, opinion.available = step.needed, step.available
                    opinion.retry_after_s = step.retry_after_s


def _word(step: _Verdict, before: str) -> str:
    """Return the verdict in one word; a Forward right after a Demote changes nothing."""
    return before if type(step) is Forward and before == "demote" else type(step).__name__.lower()
