"""An asyncio loop whose clock jumps to the next timer; timers of one instant run in the order they were set."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any


class VirtualLoop(asyncio.AbstractEventLoop):
    def __init__(self) -> None:
        self._now_s = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._set = 0

    def time(self) -> float:
        return self._now_s

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise context.get("exception") or RuntimeError(context["message"])

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._set += 1
        heapq.heappush(self._timers, (when, self._set, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # run() skips it

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **kwargs)

    def within(self, what: Callable[[], object]) -> None:
        """Run something as if on the loop, which is the running one meanwhile."""
        asyncio._set_running_loop(self)
        try:
            what()
        finally:
            asyncio._set_running_loop(None)

    def forget(self) -> None:
        """Cancel all tasks and let each come to its end: nothing of this loop goes on after it."""
        for _ in range(20):
            left = [task for task in asyncio.all_tasks(self) if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            self.run(self._now_s + 1.0)
        self._timers.clear()

    def pass_to(self, now_s: float) -> None:
        """Let time pass, at which nothing is due."""
        self._now_s = max(self._now_s, now_s)

    def run(self, until_s: float = float("inf")) -> None:
        """Run whatever is due until ``until_s``, or until nothing is left to do."""
        asyncio._set_running_loop(self)
        try:
            while True:
                while self._ready:
                    handle = self._ready.popleft()
                    if not handle.cancelled():
                        # Not handle._run(), which would report an exception instead of letting it fail the test.
                        handle._context.run(handle._callback, *handle._args)
                if not self._timers or self._timers[0][0] > until_s:
                    return
                when_s, _, timer = heapq.heappop(self._timers)
                if not timer.cancelled():
                    self._now_s = max(self._now_s, when_s)
                    self._ready.append(timer)
        finally:
            asyncio._set_running_loop(None)
