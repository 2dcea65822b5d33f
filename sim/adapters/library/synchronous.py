"""A gate among threads: every method may be called from any thread, and one that asks waits until it has its answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from sim.adapters.admission.config import GateConfig, gate_config
from sim.adapters.admission.errors import held_long
from sim.adapters.admission.requests import Admissions, Entry
from sim.adapters.library.base_gate import BaseGate
from sim.adapters.library.lease import BaseLease
from sim.adapters.library.threads import Home, Recorders, home_of

P = ParamSpec("P")
R = TypeVar("R")


class SyncLease(BaseLease):
    """A place in the pool, as a block or by itself.

    A thread cannot be interrupted: an eviction is heard of by `on_evict`, and by the next `first_token` or `progress`.
    """

    __slots__ = ("_home",)

    def __init__(self, entry: Entry, home: Home) -> None:
        super().__init__(home.admissions, entry)
        self._home = home

    def _do(self, call: Callable[P, R], /, *args: P.args, **more: P.kwargs) -> R:
        return self._home.do(call, *args, **more)

    def on_evict(self, call: Callable[[], object]) -> None:
        """Have something called, from any thread, when the place is taken back: to close the connection, say."""

        def hear() -> None:
            self._entry.on_evict = lambda: self._home.soon(call)
            if self.is_evicted:
                self._home.soon(call)

        self._do(hear)

    def __enter__(self) -> SyncLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entry.open:
            self._left(error)

    def __del__(self) -> None:
        if self._entry.open:
            self._home.drop(self._entry)


class SyncGate(BaseGate[SyncLease]):
    """The policy core in front of anybody's own server, for threads.

    Parameters
    ----------
    config : a file, a mapping as one would hold, or a `GateConfig`. With ``state`` or ``admin`` in it a thread runs an
        event loop for them, and opening the gate waits for the shared state, for a while.
    clock : seconds; ``time.monotonic`` if not given. What goes back is taken to stand still.
    seed : of the jitter of Retry-After, in place of the configuration's.
    prefix : begins every request id; random if not given.
    recorders : told of every event with its time and what the core said, where the books are touched.

    Raises
    ------
    TokenpoolsError : the configuration is none.
    """

    def __init__(
        self, config: GateConfig | Mapping[str, Any] | str | Path, *, clock: Callable[[], float] = time.monotonic,
        seed: int | None = None, prefix: str | None = None, recorders: Recorders = (),
    ) -> None:
        found = gate_config(config)
        self._config = found if seed is None else found.model_copy(update={"seed": seed})
        self._home = home_of(self._config, clock, prefix, recorders)

    def _opened(self) -> Admissions:
        return self._home.admissions

    def _do(self, call: Callable[P, R], /, *args: P.args, **more: P.kwargs) -> R:
        return self._home.do(call, *args, **more)

    def _admit(self, asked: dict[str, Any]) -> SyncLease:
        lease, entry, decided = self._do(self._ask, asked)
        if decided is not None:
            self._verdict(entry, decided)
        return lease

    def _ask(self, asked: dict[str, Any]) -> tuple[SyncLease, Entry, threading.Event | None]:
        entry = self._opened().admit(**asked)
        lease = SyncLease(entry, self._home)  # from now on it is settled, whatever happens to who asked
        if entry.replica_id is not None:
            return lease, entry, None
        decided = threading.Event()
        entry.wake = decided.set
        return lease, entry, decided

    def _verdict(self, entry: Entry, decided: threading.Event) -> None:
        try:
            decided.wait(self._config.held_s)
        except BaseException:
            self._do(self._opened().cancel, entry, sent=False)
            raise
        self._do(self._waited, entry)
        if entry.error is not None:
            raise entry.error

    def _waited(self, entry: Entry) -> None:
        entry.wake = None
        if entry.is_held:
            self._opened().cancel(entry, sent=False)
            raise held_long()

    def __len__(self) -> int:
        """How many requests are held or in flight."""
        return len(self._opened())

    def close(self) -> None:
        """Let nobody in any more; what is in flight can still be settled, and is not recorded."""
        self._home.close()

    def __enter__(self) -> SyncGate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
