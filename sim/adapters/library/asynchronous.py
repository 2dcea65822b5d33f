"""A gate on an asyncio loop.

gate = Gate("gate.yaml")

async with gate.admit(tenant="acme", prompt_tokens=120, max_tokens=256) as lease:
async for chunk in ask(replicas[lease.replica_id], max_tokens=lease.max_output_tokens):
lease.progress(chunk.tokens_so_far)
lease.finish(chunk.usage)
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from policies.api import Event, Instruction
from sim.adapters.admission.clock import LoopTimers
from sim.adapters.admission.config import GateConfig, gate_config
from sim.adapters.admission.door import Door
from sim.adapters.admission.requests import Admissions, Entry
from sim.adapters.admission.waiting import verdict
from sim.adapters.library.base_gate import BaseGate
from sim.adapters.library.lease import BaseLease


class Lease(BaseLease):
    """A place in the pool; all methods are called from the gate's loop.

    As a block it is settled when the block ends: finished at its end, failed by an exception, cancelled with its task;
    on eviction the task that runs the block is interrupted, and the block raises `EvictedError`.
    """

    __slots__ = ("_cancelling", "_drop", "_interrupted", "_task")

    def __init__(self, admissions: Admissions, entry: Entry, drop: Callable[[Entry], None]) -> None:
        super().__init__(admissions, entry)
        self._drop = drop
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._interrupted = False

    def on_evict(self, call: Callable[[], object]) -> None:
        """Have something called when the place is taken back: for a lease that is held outside of a block."""
        loop = asyncio.get_running_loop()
        self._entry.on_evict = partial(loop.call_soon, call)
        if self.is_evicted:
            loop.call_soon(call)

    async def __aenter__(self) -> Lease:
        self._check()
        task = asyncio.current_task()
        if task is not None:
            self._task, self._cancelling = task, task.cancelling()
            # Weak, so that a block that nobody runs any more can be collected and its place returns.
            self._entry.on_evict = partial(_interrupt_soon, weakref.ref(self))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._entry.open:
            self._left(error)
        elif self._interrupted and task is not None:
            self._interrupted = False
            if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                assert self._entry.error is not None
                raise self._entry.error from None

    def _interrupt(self) -> None:
        if self._task is not None:
            self._interrupted = True
            self._task.cancel()

    def __del__(self) -> None:
        if self._entry.open:
            self._drop(self._entry)


def _interrupt_soon(lease: weakref.ref[Lease]) -> None:
    asyncio.get_running_loop().call_soon(_interrupt, lease)


def _interrupt(lease: weakref.ref[Lease]) -> None:
    found = lease()
    if found is not None:
        found._interrupt()


class _Admission:
    """What `Gate.admit` returns: awaited, a lease; as a block, one that is settled at its end."""

    __slots__ = ("_asked", "_gate", "_lease")

    def __init__(self, gate: Gate, asked: dict[str, Any]) -> None:
        self._gate = gate
        self._asked = asked

    def __await__(self) -> Generator[Any, None, Lease]:
        return self._gate._acquire(self._asked).__await__()

    async def __aenter__(self) -> Lease:
        self._lease = await self._gate._acquire(self._asked)
        return await self._lease.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lease.__aexit__(kind, error, trace)


class Gate(BaseGate[_Admission]):
    """The policy core in front of anybody's own server, on one asyncio loop.

    It belongs to the loop that runs when it is first used.

    Parameters
    ----------
    config : a file, a mapping as one would hold, or a `GateConfig`.
    clock : seconds that never stand for long; the loop's if not given. What goes back is taken to stand still.
    seed : of the jitter of Retry-After, in place of the configuration's.
    prefix : begins every request id; random if not given, so that several gates can be told apart.
    recorders : told of every event with its time and what the core said.

    Raises
    ------
    TokenpoolsError : the configuration is none.
    """

    def __init__(
        self, config: GateConfig | Mapping[str, Any] | str | Path, *, clock: Callable[[], float] | None = None,
        seed: int | None = None, prefix: str | None = None,
        recorders: Sequence[Callable[[float, Event, Sequence[Instruction]], None]] = (),
    ) -> None:
        found = gate_config(config)
        self._config = found if seed is None else found.model_copy(update={"seed": seed})
        self._clock = clock
        self._prefix = prefix
        self._recorders = recorders
        self._loop: asyncio.AbstractEventLoop | None = None
        self._door: Door | None = None

    def _admit(self, asked: dict[str, Any]) -> _Admission:
        return _Admission(self, asked)

    async def _acquire(self, asked: dict[str, Any]) -> Lease:
        entry = self._opened().admit(**asked)
        if entry.replica_id is None:
            await verdict(self._opened(), entry, self._config.held_s)
        return Lease(self._opened(), entry, self._drop)

    def __len__(self) -> int:
        """How many requests are held or in flight."""
        return 0 if self._door is None else len(self._door.admissions)

    def close(self) -> None:
        """Let nobody in any more; what is in flight can still be settled, and is not recorded."""
        self._opened().close()

    async def __aenter__(self) -> Gate:
        await self._opened_door().ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened_door().close()

    def _opened(self) -> Admissions:
        return self._opened_door().admissions

    def _opened_door(self) -> Door:
        loop = asyncio.get_running_loop()
        if self._door is None:
            self._loop = loop
            timers = loop if self._clock is None else LoopTimers(loop, self._clock)
            self._door = Door(self._config, timers=timers, prefix=self._prefix, recorders=self._recorders)
        elif loop is not self._loop:
            raise RuntimeError("this Gate belongs to another event loop; make one for each loop, or take a SyncGate")
        return self._door

    def _drop(self, entry: Entry) -> None:
        """Settle later what its holder has dropped: whoever collects garbage may be anywhere, even in the core."""
        if self._door is not None and self._loop is not None:
            self._door.admissions.dropped.append(entry)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to serve
                self._loop.call_soon_threadsafe(self._door.admissions.catch_up)
