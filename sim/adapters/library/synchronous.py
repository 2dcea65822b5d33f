"""A gate among threads: every method may be called from any thread, and one that asks waits until it has its answer."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from policies.api import Event, Instruction, ReplicaReport
from policies.core import GatewayCore
from sim.adapters.admission.clock import LEAST_S, SteadyClock
from sim.adapters.admission.config import GateConfig, gate_config
from sim.adapters.admission.errors import held_long
from sim.adapters.admission.requests import Admissions, Entry
from sim.adapters.admission.shared import on_a_loop
from sim.adapters.library.lease import BaseLease, Usage

LOG = logging.getLogger("tokenpools.gate")


class SyncLease(BaseLease):
    """A place in the pool, as a block or by itself; see `sim.adapters.library.asynchronous.Lease` for what is said.

    A thread cannot be interrupted: an eviction is heard of by `on_evict`, and by the next `first_token` or `progress`.
    """

    __slots__ = ("_gate",)

    def __init__(self, admissions: Admissions, entry: Entry, gate: SyncGate) -> None:
        super().__init__(admissions, entry)
        self._gate = gate

    def first_token(self) -> None:
        """Say that the first token of the answer is there.

        Raises
        ------
        EvictedError : the place was taken back.
        """
        with self._gate._locked():
            self._first_token()

    def progress(self, output_tokens: int) -> None:
        """Say how many tokens have come back so far, all in all.

        Raises
        ------
        EvictedError : the place was taken back.
        ValueError : it is no count.
        """
        with self._gate._locked():
            self._progress(output_tokens)

    def finish(self, usage: Usage = None) -> None:
        """Settle: the request was answered. A second time, and after an eviction, this does nothing."""
        with self._gate._locked():
            self._admissions.finish(self._entry, usage)

    def fail(self) -> None:
        """Settle: the replica did not do it."""
        with self._gate._locked():
            self._admissions.fail(self._entry)

    def retry(self) -> bool:
        """Say that the replica failed and the client has nothing yet: whether another, ``replica_id``, may be asked."""
        with self._gate._locked():
            return self._admissions.retry(self._entry)

    def cancel(self, *, sent: bool = True, output_tokens: int | None = None) -> None:
        """Settle: nobody waits for the answer any more."""
        with self._gate._locked():
            self._admissions.cancel(self._entry, sent=sent, output_tokens=output_tokens)

    def reject(self) -> None:
        """Settle: the replica refused it as its client's fault (400). It costs nothing and was no demand."""
        with self._gate._locked():
            self._admissions.cancel(self._entry, sent=True, refused=True)

    def on_evict(self, call: Callable[[], object]) -> None:
        """Have something called, from any thread, when the place is taken back: to close the connection, say."""
        with self._gate._locked() as after:
            self._entry.on_evict = lambda: self._gate._after.append(call)
            if self.is_evicted:
                after.append(call)

    def __enter__(self) -> SyncLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._gate._locked():
            if self._entry.open:
                self._left(error)

    def __del__(self) -> None:
        if self._entry.open:
            self._gate._drop(self._entry)


class _Timer:
    __slots__ = ("args", "callback")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None


class _ThreadTimers(SteadyClock):
    """Timers that a thread of their own calls, under the gate's lock."""

    __slots__ = ("_numbers", "_timers", "woken")

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = count()
        self.woken: SimpleQueue[None] = SimpleQueue()  # the one queue that may be put to while garbage is collected

    def call_at(self, when: float, callback: Callable[..., object], /, *args: Any) -> _Timer:
        timer = _Timer(callback, args)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        self.woken.put(None)
        return timer

    def run_due(self) -> float | None:
        """Call what is due, and return in how many seconds the next is; None where nothing is left."""
        while self._timers:
            when, _, timer = self._timers[0]
            if timer.callback is None:
                heapq.heappop(self._timers)
            elif when > (now := self.time()):
                return max(LEAST_S, when - now)
            else:
                heapq.heappop(self._timers)
                timer.callback(*timer.args)
        return None


class SyncGate:
    """The policy core in front of anybody's own server, for threads.

    Parameters
    ----------
    config : a file, a mapping as one would hold, or a `GateConfig`.
    clock : seconds; ``time.monotonic`` if not given. What goes back is taken to stand still.
    seed : of the jitter of Retry-After, in place of the configuration's.
    prefix : begins every request id; random if not given.
    recorders : told of every event with its time and what the core said, under the gate's lock.

    Raises
    ------
    TokenpoolsError : the configuration is none.
    """

    def __init__(
        self, config: GateConfig | Mapping[str, Any] | str | Path, *, clock: Callable[[], float] = time.monotonic,
        seed: int | None = None, prefix: str | None = None,
        recorders: Sequence[Callable[[float, Event, Sequence[Instruction]], None]] = (),
    ) -> None:
        found = on_a_loop(gate_config(config))
        self._config = found if seed is None else found.model_copy(update={"seed": seed})
        self._lock = threading.RLock()
        self._after: list[Callable[[], object]] = []
        self._timers = _ThreadTimers(clock)
        self._closed = False
        with self._lock:
            self._admissions = Admissions(self._config, self._timers, prefix=prefix, recorders=recorders)
        self._ticker = threading.Thread(target=self._tick, name="tokenpools-gate", daemon=True)
        self._ticker.start()

    def admit(
        self, *, tenant: str, prompt_tokens: int, max_tokens: int | None = None, entitlement: str | None = None,
        service_class: str | None = None, attempt: int = 1, priority: int = 0, n: int = 1,
    ) -> SyncLease:
        """Ask for a place, and wait while the request is held: ``with gate.admit(...) as lease``.

        Parameters are those of `sim.adapters.library.asynchronous.Gate.admit`.

        Raises
        ------
        RefusedError : it is not let in: with status, headers and reason.
        EvictedError : the place was taken back at once.
        ValueError : an argument is out of range.
        """
        decided: threading.Event | None = None
        with self._locked():
            entry = self._admissions.admit(
                tenant=tenant, prompt_tokens=prompt_tokens, max_tokens=max_tokens, entitlement=entitlement,
                service_class=service_class, attempt=attempt, priority=priority, sequences=n,
            )
            lease = SyncLease(self._admissions, entry, self)
            if entry.replica_id is None:
                decided = threading.Event()
                entry.wake = decided.set
        if decided is not None:
            self._verdict(entry, decided)
        return lease

    def _verdict(self, entry: Entry, decided: threading.Event) -> None:
        try:
            decided.wait(self._config.held_s)
        except BaseException:
            with self._locked():
                self._admissions.cancel(entry, sent=False)
            raise
        with self._locked():
            entry.wake = None
            if entry.is_held:
                self._admissions.cancel(entry, sent=False)
                raise held_long()
        if entry.error is not None:
            raise entry.error

    def set_ready(self, replica_ids: Sequence[int]) -> None:
        """Say which replicas take requests; all of them at first.

        Raises
        ------
        ValueError : the pool has no such replica.
        """
        with self._locked():
            self._admissions.set_ready(replica_ids)

    def report(self, report: ReplicaReport) -> None:
        """Say what a replica says of itself, for policies that want to know (``gate.core.wants_reports``)."""
        with self._locked():
            self._admissions.report(report)

    @property
    def core(self) -> GatewayCore:
        """The pool's state, to look at."""
        return self._admissions.core

    def __len__(self) -> int:
        """How many requests are held or in flight."""
        return len(self._admissions)

    def close(self) -> None:
        """Let nobody in any more; what is in flight can still be settled, and is not recorded."""
        with self._locked():
            self._admissions.close()
            self._closed = True
        self._timers.woken.put(None)
        if threading.current_thread() is not self._ticker:
            self._ticker.join()

    def __enter__(self) -> SyncGate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _locked(self) -> Iterator[list[Callable[[], object]]]:
        """Hold the lock; what is to be called about evictions is called once it is free."""
        try:
            with self._lock:
                yield self._after
        finally:
            if self._after:
                self._call_after()

    def _call_after(self) -> None:
        while True:
            with self._lock:
                if not self._after:
                    return
                call = self._after.pop(0)
            try:
                call()
            except Exception:  # of whoever holds another lease
                LOG.exception("a function that hears of an eviction failed")

    def _tick(self) -> None:
        while True:
            with self._locked():
                if self._closed:
                    return
                self._admissions.catch_up()
                due_s = self._timers.run_due()
            try:
                while True:
                    self._timers.woken.get(timeout=due_s)
                    due_s = 0  # whatever else woke it is answered by the same look
            except Empty:
                pass

    def _drop(self, entry: Entry) -> None:
        """Settle later what its holder has dropped: whoever collects garbage may be anywhere, even in the core."""
        self._admissions.dropped.append(entry)
        self._timers.woken.put(None)
