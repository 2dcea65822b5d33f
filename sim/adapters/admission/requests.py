"""Requests of a gate from admission to settlement, around the core and its driver; no threads and no tasks in here.

`Admissions` is the upstream of an `AsyncGateway`: the core's verdicts end up in `Entry`s, which the doors wait on. All
methods are called from one thread at a time, and what wakes or cuts somebody is called from within them.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

from policies.api import (
    Arrived,
    Cancelled,
    CapacityChanged,
    Event,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Instruction,
    Progress,
    Reason,
    Refuse,
    ReplicaReport,
    RequestView,
    Tick,
)
from policies.core import GatewayCore
from policies.invariants import Checker, Violation, stop
from sim.adapters.admission.config import GateConfig
from sim.adapters.admission.errors import (
    AdmissionError,
    RefusedError,
    closing,
    evicted,
    refused,
    replica_failed,
)
from sim.adapters.admission.tenants import Tenants
from sim.adapters.admission.usage import usage_from
from sim.live.gateway.core_driver import AsyncGateway, EventLog, Timers
from sim.live.gateway.prompt_text import Prefix, session_name
from sim.live.observability.recording import Recording

LOG = logging.getLogger("tokenpools.gate")


class Entry:
    """One request. ``open`` until it is settled; what comes after that is not counted twice.

    Attributes
    ----------
    replica_id : where to send it; None as long as it is held.
    max_output_tokens : what to ask the replica for.
    priority : what to tell the engine; lower goes first.
    error : why it was refused, or ended by the core; None as long as it was not.
    wake : called when a held request gets its verdict.
    on_evict : called when the core wants its place.
    """

    __slots__ = (
        "entitlement", "error", "first_seen", "max_output_tokens", "most_output_tokens", "on_evict", "open",
        "output_tokens", "priority", "prompt_tokens", "replica_id", "reported_tokens", "request_id", "sequences",
        "wake",
    )  # fmt: skip

    def __init__(self, view: RequestView, most_output_tokens: int) -> None:
        self.request_id = view.request_id
        self.entitlement = view.entitlement
        self.prompt_tokens = view.prompt_tokens
        self.sequences = view.sequences
        self.priority = view.priority
        self.most_output_tokens = most_output_tokens
        self.max_output_tokens = self.output_tokens = self.reported_tokens = 0
        self.replica_id: int | None = None
        self.error: AdmissionError | None = None
        self.open = True
        self.first_seen = False
        self.wake: Callable[[], object] | None = None
        self.on_evict: Callable[[], object] | None = None

    @property
    def is_held(self) -> bool:
        """Whether it waits for its verdict."""
        return self.open and self.replica_id is None


class Admissions:
    """A pool's core, and the requests that it was asked about.

    Parameters
    ----------
    timers : the clock, and what calls when a tick is due.
    prefix : begins every request id; random if not given.
    recorders : told of every event, with its time and what the core said.
    log : of the state that several processes share; None: this one has the pool for itself.

    Attributes
    ----------
    dropped : requests whose holder is gone; anybody may append, at any time, from any thread.
    prefix : begins the name of every request of this process.
    """

    def __init__(
        self, config: GateConfig, timers: Timers, *, prefix: str | None = None,
        recorders: Sequence[Callable[[float, Event, Sequence[Instruction]], None]] = (), log: EventLog | None = None,
    ) -> None:
        core: GatewayCore = config.core()
        self._wall_clock: Callable[[], float] = time.time
        self._pool = config.pool
        self.prefix = f"req-{secrets.token_hex(4)}-" if prefix is None else prefix
        self._ready = tuple(range(config.pool.replicas))
        self._slots: int | None = None
        self._numbers = count(1)
        self._entries: dict[str, Entry] = {}
        self._closed = False
        self.dropped: deque[Entry] = deque()
        self.tenants = Tenants(
            [one.spec() for one in config.pool.entitlements], config.tenants, config.unknown_tenant
        )
        self._recording = None if config.recording is None else Recording(config.recording, core, config.head())
        told = [*recorders]
        if self._recording is not None:
            told.append(self._recording)
        if config.check_invariants is not None:
            how = config.check_invariants
            checker = Checker(stop if how.on_violation == "stop" else _logged, every_events=how.every_events)
            told.append(lambda now_s, event, said: checker.after(self.core, event, now_s, said))
        self._shared = log is not None
        self._gateway = AsyncGateway(
            core, self, loop=timers, answer=self._ended, record=_all_of(told), origin_s=timers.time(), log=log
        )
        self._send = self._gateway.send
        self._gateway.start()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def core(self) -> GatewayCore:
        """The pool's state; one that is shared may put another in its place."""
        return self._gateway.core

    # ----------------------------------------------------------------------------------------------------------------
    # What doors call

    def admit(
        self, *, tenant: str, prompt_tokens: int, max_tokens: int | None, entitlement: str | None,
        service_class: str | None, attempt: int, priority: int, sequences: int, context_tokens: int | None = None,
        prefix: Prefix = (), session: str = "",
    ) -> Entry:
        """Ask the core about a request: it is forwarded, or held, and then its ``wake`` is called.

        Parameters
        ----------
        context_tokens : what one sequence needs of the context for certain; left out, prompt and limit as given.
        prefix : what is known of the prompt's text (`sim.live.gateway.prompt_text.prefix_of`).
        session : what the client calls its conversation or agent.

        Raises
        ------
        RefusedError : it is not let in.
        ValueError : an argument is out of range.
        """
        for name, value, least in (
            ("prompt_tokens", prompt_tokens, 0), ("max_tokens", max_tokens, 0), ("attempt", attempt, 1),
            ("sequences", sequences, 1),
        ):  # fmt: skip
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")
        if self._closed:
            raise closing()
        spec = self.tenants.find(tenant, entitlement, service_class)
        self.catch_up()
        if context_tokens is None:
            context_tokens = prompt_tokens + (-(-max_tokens // sequences) if max_tokens is not None else 0)
        if max_tokens is None and sequences > 1:
            max_tokens = self.core.default_max_output_tokens * sequences
        view = RequestView(
            f"{self.prefix}{next(self._numbers):x}", spec.name, spec.tenant, prompt_tokens, max_tokens, attempt,
            priority, sequences, context_tokens, prefix=prefix,
            session=session_name(session, spec.tenant) if self.core.wants_sessions else "",
        )
        if self.core.hierarchy is not None:
            view = view._replace(wall_s=self._wall_clock())
        most = max_tokens
        if most is None:
            most = self.core.max_context_tokens or self.core.default_max_output_tokens
        entry = Entry(view, most)
        self._entries[view.request_id] = entry
        self._send(Arrived(view))
        if entry.error is not None:
            raise entry.error
        return entry

    def catch_up(self) -> None:
        """Do what is due: a tick whose timer is late, and what nobody holds any more."""
        while self.dropped:
            self.cancel(self.dropped.popleft(), sent=True)
        if not self._shared and self.core.call_me_at_s <= self._gateway.now_s():
            self._send(Tick())

    def first_token(self, entry: Entry) -> None:
        """Take note that the first token of the answer is there."""
        if entry.open and not entry.first_seen:
            entry.first_seen = True
            self._send(FirstToken(entry.request_id))

    def progress_to(self, entry: Entry, output_tokens: int) -> None:
        """Take note of how many tokens have come back so far; the core hears of it when it wants to."""
        if type(output_tokens) is not int or output_tokens < 0:
            raise ValueError(f"output_tokens is {output_tokens!r}; give how many have come back so far")
        if output_tokens > entry.output_tokens:
            entry.output_tokens = min(output_tokens, entry.most_output_tokens)
            if not entry.first_seen:
                self.first_token(entry)

    def finish(self, entry: Entry, given: Any = None) -> None:
        """Settle a request that was answered in full.

        Without a usage it pays for what was seen of its output, and for all that it reserved where nothing was.
        Nobody pays for more than could be asked for, whatever an upstream says.
        """
        if not self._settle(entry):
            return
        usage = usage_from(given)
        output_tokens = usage.output_tokens
        if output_tokens is None:
            output_tokens = entry.output_tokens or entry.max_output_tokens
        prompt_tokens, context = usage.prompt_tokens, self.core.max_context_tokens
        if prompt_tokens is not None and context is not None:
            prompt_tokens = min(prompt_tokens, max(context * entry.sequences, entry.prompt_tokens))
        cached_tokens = min(usage.cached_tokens, entry.prompt_tokens if prompt_tokens is None else prompt_tokens)
        output_tokens = min(output_tokens, entry.most_output_tokens)
        self._send(Finished(entry.request_id, output_tokens, cached_tokens, prompt_tokens))

    def fail(self, entry: Entry) -> None:
        """Settle a request that its replica did not do."""
        if self._settle(entry):
            self._send(Failed(entry.request_id, entry.output_tokens, final=True))

    def retry(self, entry: Entry) -> bool:
        """Say that a replica failed before its client got anything; whether another may be asked, ``replica_id``."""
        if not entry.open:
            return False
        before = entry.replica_id
        self._send(Failed(entry.request_id, entry.output_tokens))
        return entry.open and entry.replica_id != before

    def cancel(
        self, entry: Entry, *, sent: bool, output_tokens: int | None = None, refused: bool = False
    ) -> None:
        """Settle a request that nobody waits for any more.

        Parameters
        ----------
        sent : whether a replica may have it, so that its prompt is paid for.
        output_tokens : that were made of it; left out, those that were seen.
        refused : whether the replica turned it away as its client's fault: it never was any demand.
        """
        held = entry.is_held
        if not self._settle(entry):
            return
        made = entry.output_tokens if output_tokens is None else max(entry.output_tokens, output_tokens)
        made = 0 if refused else min(made, entry.most_output_tokens)
        begun = sent and not held and not refused
        self._send(Cancelled(entry.request_id, made, prompt_begun=begun, refused=refused and not held))

    def set_ready(self, replica_ids: Sequence[int]) -> None:
        """Take note of which replicas are ready to take requests."""
        ready = tuple(sorted({*replica_ids}))
        known = range(self._pool.replicas)
        if not all(one in known for one in ready):
            raise ValueError(f"replicas {list(ready)}; the pool has {list(known)}")
        self._ready = ready
        self._tell_capacity()

    def set_slots(self, slots: int | None) -> None:
        """Take the pool to have at most so many slots, whatever its replicas provide; None for what they provide."""
        self._slots = slots
        self._tell_capacity()

    def _tell_capacity(self) -> None:
        capacity = self._pool.capacity(len(self._ready)).limited_to(self._slots)
        self._send(CapacityChanged(capacity, self._ready))

    def report(self, report: ReplicaReport) -> None:
        """Take note of what a replica says of itself."""
        self._send(report)

    def now_s(self) -> float:
        """Return the core's time, in seconds since the gate was opened."""
        return self._gateway.now_s()

    def close(self) -> None:
        """Let nobody in any more and stop the clock; what is in flight can still be settled."""
        if self._closed:
            return
        self._closed = True
        while self.dropped:
            self.cancel(self.dropped.popleft(), sent=True)
        for entry in [one for one in self._entries.values() if one.is_held]:
            entry.error = closing()
            self.cancel(entry, sent=False)
            if entry.wake is not None:
                entry.wake()
        self._gateway.stop()
        if self._recording is not None:
            self._recording.close()

    def _settle(self, entry: Entry) -> bool:
        """Whether a request is still to be settled; from now on it is not."""
        if not entry.open:
            return False
        entry.open = False
        self._entries.pop(entry.request_id, None)
        return True

    # ----------------------------------------------------------------------------------------------------------------
    # What the driver calls

    def start(self, request: RequestView, forward: Forward, emit: Callable[[Event], None]) -> None:  # noqa: ARG002
        """See `sim.live.gateway.core_driver.Upstream`."""
        entry = self._entries.get(request.request_id)
        if entry is not None:
            entry.priority = request.priority
            entry.replica_id = forward.replica_id
            entry.max_output_tokens = forward.max_output_tokens
            if entry.wake is not None:
                entry.wake()

    def abort(self, request_id: str) -> None:
        """Do nothing: of an eviction `_ended` hears too, and whoever cancels stops by itself."""

    def progress(self) -> Iterable[Progress]:
        """Return how many tokens have come back of the requests of which more have come than was said."""
        seen = []
        for entry in self._entries.values():
            if entry.output_tokens > entry.reported_tokens:
                entry.reported_tokens = entry.output_tokens
                seen.append(Progress(entry.request_id, entry.output_tokens))
        return seen

    def _ended(self, end: Refuse | Evict | Failed) -> None:
        entry = self._entries.pop(end.request_id, None)
        if entry is None:
            return
        entry.open = False
        if isinstance(end, Evict):
            entry.error = evicted(end.reason)
            if entry.on_evict is not None:
                entry.on_evict()
            return
        if isinstance(end, Refuse):
            entry.error = refused(end, self.core.allowance(entry.entitlement, self.now_s()))
        else:
            entry.error = replica_failed()
        if entry.wake is not None:
            entry.wake()


def _logged(violation: Violation) -> None:
    LOG.error("%s", violation)


def _all_of(
    recorders: Sequence[Callable[[float, Event, Sequence[Instruction]], None]],
) -> Callable[[float, Event, Sequence[Instruction]], None] | None:
    if len(recorders) < 2:
        return recorders[0] if recorders else None

    def record(now_s: float, event: Event, said: Sequence[Instruction]) -> None:
        for one in recorders:
            one(now_s, event, said)

    return record


__all__ = ["Admissions", "Entry", "Reason", "RefusedError"]
