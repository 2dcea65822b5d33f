"""Where the books of a gate among threads are touched: under a lock, or on the loop of a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, Protocol, TypeVar

from policies.api import Event, Instruction
from sim.adapters.admission.clock import LEAST_S, LoopTimers, SteadyClock
from sim.adapters.admission.config import GateConfig
from sim.adapters.admission.door import Door
from sim.adapters.admission.requests import Admissions, Entry

LOG = logging.getLogger("tokenpools.gate")

P = ParamSpec("P")
R = TypeVar("R")
Recorders = Sequence[Callable[[float, Event, Sequence[Instruction]], None]]


class Home(Protocol):
    """Where the books are touched."""

    admissions: Admissions

    def do(self, call: Callable[P, R], /, *args: P.args, **more: P.kwargs) -> R:
        """Call where nothing else touches the books, from any thread."""
        ...

    def soon(self, call: Callable[[], object]) -> None:
        """Have something of a caller's called, from any thread, where no books are held up by it."""
        ...

    def drop(self, entry: Entry) -> None:
        """Settle later what its holder has dropped: whoever collects garbage may be anywhere, even in the core."""
        ...

    def close(self) -> None:
        """Let nobody in any more."""
        ...


def home_of(config: GateConfig, clock: Callable[[], float], prefix: str | None, recorders: Recorders) -> Home:
    """Return a lock, or where shared state or pages need a loop a thread that runs one."""
    if config.state is None and config.admin is None:
        return LockHome(config, clock, prefix, recorders)
    return LoopHome(config, clock, prefix, recorders)


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


class LockHome:
    """Books under a lock, and a thread that calls what is due."""

    def __init__(
        self, config: GateConfig, clock: Callable[[], float], prefix: str | None, recorders: Recorders
    ) -> None:
        self._lock = threading.RLock()
        self._after: list[Callable[[], object]] = []
        self._timers = _ThreadTimers(clock)
        self._closed = False
        with self._lock:
            self.admissions = Admissions(config, self._timers, prefix=prefix, recorders=recorders)
        self._ticker = threading.Thread(target=self._tick, name="tokenpools-gate", daemon=True)
        self._ticker.start()

    def do(self, call: Callable[P, R], /, *args: P.args, **more: P.kwargs) -> R:
        """See `Home`."""
        try:
            with self._lock:
                return call(*args, **more)
        finally:
            if self._after:
                self._call_after()

    def soon(self, call: Callable[[], object]) -> None:
        """See `Home`. It is called once the lock is free, by whoever held it."""
        self._after.append(call)

    def drop(self, entry: Entry) -> None:
        """See `Home`."""
        self.admissions.dropped.append(entry)
        self._timers.woken.put(None)

    def close(self) -> None:
        """See `Home`."""
        self.do(self._close)
        self._timers.woken.put(None)
        if threading.current_thread() is not self._ticker:
            self._ticker.join()

    def _close(self) -> None:
        self.admissions.close()
        self._closed = True

    def _call_after(self) -> None:
        while True:
            with self._lock:
                if not self._after:
                    return
                call = self._after.pop(0)
            called(call)

    def _tick(self) -> None:
        while not self._closed:
            due_s = self.do(self._run_due)
            try:
                while True:
                    self._timers.woken.get(timeout=due_s)
                    due_s = 0  # whatever else woke it is answered by the same look
            except Empty:
                pass

    def _run_due(self) -> float | None:
        if self._closed:
            return 0.0
        self.admissions.catch_up()
        return self._timers.run_due()


class LoopHome:
    """Books on the loop of a thread, for what speaks to Redis or serves pages; a call there and back costs more."""

    def __init__(
        self, config: GateConfig, clock: Callable[[], float], prefix: str | None, recorders: Recorders
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tokenpools-gate", daemon=True)
        self._callers = ThreadPoolExecutor(1, "tokenpools-evict")
        self._ending = threading.Lock()
        self._closed = False
        self._thread.start()
        own = None if clock is time.monotonic else LoopTimers(self._loop, clock)

        async def opened() -> Door:
            door = Door(config, timers=own, prefix=prefix, recorders=recorders)
            await door.ready()
            return door

        try:
            self._door = self._await(opened())
        except BaseException:
            self._end()
            raise
        self.admissions = self._door.admissions

    def do(self, call: Callable[P, R], /, *args: P.args, **more: P.kwargs) -> R:
        """See `Home`."""
        done: Future[R] = Future()

        def run() -> None:
            try:
                done.set_result(call(*args, **more))
            except BaseException as error:
                done.set_exception(error)

        with self._ending:
            if self._closed:  # what was in flight may still be settled
                return call(*args, **more)
            self._loop.call_soon_threadsafe(run)
        return done.result()

    def soon(self, call: Callable[[], object]) -> None:
        """See `Home`. A thread of its own calls it."""
        self._callers.submit(called, call)

    def drop(self, entry: Entry) -> None:
        """See `Home`."""
        self.admissions.dropped.append(entry)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to serve
            self._loop.call_soon_threadsafe(self.admissions.catch_up)

    def close(self) -> None:
        """See `Home`."""
        with self._ending:
            if self._closed:
                return
            self._closed = True
        self._await(self._door.close())
        self._end()

    def _await(self, work: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._callers.shutdown(wait=False)


def called(call: Callable[[], object]) -> None:
    """Call what hears of an eviction; whatever goes wrong there is the holder's of another lease."""
    try:
        call()
    except Exception:
        LOG.exception("a function that hears of an eviction failed")
