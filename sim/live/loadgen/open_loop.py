"""The load generator: a scenario's demand against a real server, as an open loop that does not slow down with it.

Each request is sent when it is due, whatever became of those before. How late it was written is measured for each
one; a generator that cannot keep up would otherwise make the server look better than it is.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from sim.live.loadgen.attempt import LiveAttempt
from sim.live.loadgen.completions_client import Completions, PromptKind
from sim.records.schema import Outcome
from workloads.clients import Chance, Impatient, deadline_s
from workloads.generate import WorkloadSpec
from workloads.requests import Demand, Following

_AHEAD = 64  # requests made ready while there is time
_IDLE_S = 0.005  # so long before the next request is due nothing else is begun


class Send(Protocol):
    """Sends an attempt and returns when its outcome is known; `Completions.ask` is one."""

    def __call__(self, attempt: LiveAttempt, body: bytes, key: str | None) -> Coroutine[Any, Any, None]:
        """Send it."""
        ...


class LoadGenerator:
    """Clients of several workloads on one loop.

    Parameters
    ----------
    workloads, demands : who asks for what, and when; one demand a workload.
    chances : of each workload, what its clients' jitter is drawn from.
    keys : the API key of each entitlement; one that is missing is asked for without.
    horizon_s : when the run ends and what is open is dropped; None: when every request has ended.

    Attributes
    ----------
    attempts : all of them, in the order in which they were due.
    """

    def __init__(
        self, workloads: Sequence[WorkloadSpec], demands: Sequence[Demand], *, send: Send, prompts: PromptKind,
        chances: Sequence[Chance | None] = (), keys: Mapping[str, str] | None = None, horizon_s: float | None = None,
    ) -> None:
        self.attempts: list[LiveAttempt] = []
        self._workloads = workloads
        self._send = send
        self._prompts = prompts
        self._chances: Sequence[Chance | None] = chances or [None] * len(workloads)
        known = keys or {}
        self._keys = [known.get(w.entitlement) for w in workloads]
        self._horizon_s = math.inf if horizon_s is None else horizon_s
        self._following: list[Following | None] = [None if d.plan is None else d.plan.begin() for d in demands]
        self._rows = self._in_order(demands)
        self._ready: deque[tuple[LiveAttempt, bytes]] = deque()
        self._left = sum(len(d) for d in demands)
        self._due = 0  # retries and requests that follow others, on their way
        self._tasks: dict[asyncio.Task[None], LiveAttempt] = {}
        self._coming_again: dict[str, LiveAttempt] = {}
        self._patience: dict[str, asyncio.TimerHandle] = {}
        self._closed = False
        self._problem: BaseException | None = None

    async def run(self, origin_s: float) -> float:
        """Send everything; ``origin_s`` is the loop's time at which the run begins. Returns when it ended, in seconds.

        Raises
        ------
        Exception : what a client met that no server's answer explains.
        """
        self._loop = asyncio.get_running_loop()
        self._origin_s = origin_s
        self._done = self._loop.create_future()
        for _ in range(_AHEAD):
            self._prepare_one()
        self._next()
        end = None if math.isinf(self._horizon_s) else self._at(self._horizon_s, self._finish)
        self._check()
        try:
            await self._done
        finally:
            if end is not None:
                end.cancel()
            end_s = min(self.now_s(), self._horizon_s)
            await self._close()
        if self._problem is not None:
            raise self._problem
        return end_s

    def now_s(self) -> float:
        """Return the time of the run."""
        return self._loop.time() - self._origin_s

    def _at(self, at_s: float, call: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        return self._loop.call_at(self._origin_s + at_s, call, *args)

    # ----------------------------------------------------------------------------------------------- first attempts

    def _prepare_one(self) -> bool:
        """Make the next request ready; returns whether there was one."""
        attempt = next(self._rows, None)
        if attempt is not None:
            self._ready.append((attempt, self._prompts.body(attempt)))
        return attempt is not None

    def _prepare(self) -> None:
        """Make further requests ready while nothing is due soon, one a turn of the loop: making one takes time too."""
        soon = bool(self._ready) and self._ready[0][0].arrival_s - self.now_s() < _IDLE_S
        if not self._closed and not soon and len(self._ready) < _AHEAD and self._prepare_one():
            self._loop.call_soon(self._prepare)

    def _next(self) -> None:
        if self._left and not self._ready:
            self._prepare_one()
        if self._ready:
            self._at(self._ready[0][0].arrival_s, self._arrive)

    def _arrive(self) -> None:
        attempt, body = self._ready.popleft()
        self._left -= 1
        if not self._closed:
            self._start(attempt, body)
            self._next()
            if len(self._ready) < _AHEAD // 2:
                self._loop.call_soon(self._prepare)

    def _in_order(self, demands: Sequence[Demand]) -> Iterator[LiveAttempt]:
        """Yield first attempts by time; ties in the order of the workloads, as in the simulated world."""

        def of(w: int, demand: Demand) -> Iterator[tuple[float, int, int, int, int, int]]:
            columns = (demand.arrival_s, demand.prompt_tokens, demand.output_tokens, demand.max_output_tokens)
            for n, (at_s, prompt, output, asked) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
                yield at_s, w, n, prompt, output, asked

        for at_s, w, n, prompt, output, asked in heapq.merge(*(of(w, demand) for w, demand in enumerate(demands))):
            workload = self._workloads[w]
            prefixes = demands[w].prefixes
            yield LiveAttempt(
                f"{workload.name}-{n}", 1, w, workload.priority, at_s, at_s, prompt, output, asked,
                prefix=None if prefixes is None else prefixes.of(n),
            )  # fmt: skip

    # -------------------------------------------------------------------------------------------------- an attempt

    def _start(self, attempt: LiveAttempt, body: bytes) -> None:
        self.attempts.append(attempt)
        client = self._workloads[attempt.workload].client
        if isinstance(client, Impatient) and attempt.number == 1:
            until_s = deadline_s(client, attempt.arrival_s)
            self._patience[attempt.request_id] = self._at(until_s, self._lose_patience, attempt.request_id)
        task = self._loop.create_task(self._send(attempt, body, self._keys[attempt.workload]))
        self._tasks[task] = attempt
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        attempt = self._tasks.pop(task)
        if self._closed:
            return
        if not task.cancelled() and (error := task.exception()) is not None:
            self._problem = error
            self._finish()
            return
        if attempt.outcome is not Outcome.FINISHED and self._comes_again(attempt):
            return
        timer = self._patience.pop(attempt.request_id, None)
        if timer is not None:
            timer.cancel()
        self._follow(attempt)
        self._check()

    def _comes_again(self, attempt: LiveAttempt) -> bool:
        """Ask the client, and see to its next attempt."""
        now_s, workload = self.now_s(), attempt.workload
        client = self._workloads[workload].client
        wait_s = None if math.isnan(attempt.retry_after_s) else attempt.retry_after_s
        again_s = client.next_attempt_s(
            attempt.outcome.name.lower(), attempt.http_status, wait_s, attempt.number, now_s, self._chances[workload]
        )
        if again_s is None or again_s >= deadline_s(client, attempt.first_arrival_s):
            return False
        attempt.final = False
        self._coming_again[attempt.request_id] = attempt
        again = LiveAttempt(
            attempt.request_id, attempt.number + 1, workload, attempt.priority, again_s, attempt.first_arrival_s,
            attempt.prompt_tokens, attempt.output_tokens, attempt.asked_tokens, prefix=attempt.prefix,
        )  # fmt: skip
        self._later(again)
        return True

    def _later(self, attempt: LiveAttempt) -> None:
        self._due += 1
        self._at(attempt.arrival_s, self._come, attempt, self._prompts.body(attempt))

    def _come(self, attempt: LiveAttempt, body: bytes) -> None:
        self._due -= 1
        if not self._closed:
            self._coming_again.pop(attempt.request_id, None)
            self._start(attempt, body)

    def _lose_patience(self, request_id: str) -> None:
        """Cancel what a client waits for no longer."""
        self._patience.pop(request_id, None)
        for task, attempt in self._tasks.items():
            if attempt.request_id != request_id:
                continue
            client = self._workloads[attempt.workload].client
            if isinstance(client, Impatient) and client.waits_for == "first-token" and attempt.first_token_s > 0:
                return
            attempt.outcome, attempt.http_status, attempt.finish_s = Outcome.CANCELLED, 499, self.now_s()
            task.cancel()
            return

    def _follow(self, attempt: LiveAttempt) -> None:
        """Let what waits for the end of a request come, each in its time."""
        following = self._following[attempt.workload]
        if following is None:
            return
        # Request chat-7 begins chain 7 of workload chat, and chat-7.3 is the third of it.
        name, now_s = self._workloads[attempt.workload].name, self.now_s()
        chain, _, step = attempt.request_id[len(name) + 1 :].partition(".")
        for one in following.ended(int(chain), int(step or 1), attempt.outcome is Outcome.FINISHED, now_s):
            at_s = now_s + one.delay_s
            self._later(LiveAttempt(
                f"{name}-{chain}.{one.step}", 1, attempt.workload, attempt.priority, at_s, at_s,
                one.prompt_tokens, one.output_tokens, one.max_output_tokens, prefix=one.prefix,
            ))  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ the end

    def _check(self) -> None:
        """End the run without a horizon once nothing is left to happen."""
        if math.isinf(self._horizon_s) and not (self._left or self._due or self._tasks):
            self._finish()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    async def _close(self) -> None:
        """Drop what is open and note how it stood."""
        self._closed = True
        for timer in self._patience.values():
            timer.cancel()
        for attempt in self._tasks.values():
            running = attempt.outcome is Outcome.WAITING and not math.isnan(attempt.forwarded_s)
            if running:
                attempt.outcome = Outcome.RUNNING
        open_tasks = list(self._tasks)
        stood = [(attempt, attempt.outcome) for attempt in self._tasks.values()]
        for task in open_tasks:
            task.cancel()
        await asyncio.gather(*open_tasks, return_exceptions=True)
        for attempt, outcome in stood:  # an answer that came between has come too late
            attempt.outcome = outcome
            attempt.finish_s = math.nan if outcome in (Outcome.RUNNING, Outcome.WAITING) else attempt.finish_s
        for attempt in self._coming_again.values():  # whoever would have come again has made its last attempt
            attempt.final = True


def sender(completions: Completions) -> Send:
    """Return the client as what a load generator sends with."""
    return partial(completions.ask)
