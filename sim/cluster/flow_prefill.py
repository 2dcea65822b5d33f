"""Prefill that gives way: prompts by slack, and an urgent one interrupts what is being computed.

After FlowPrefill (arXiv 2602.16603). Prompts are computed in the order of their slack, the time that is left until the
first token is due less the time that the rest of the prompt takes; those that are late already come after those that
can still be on time. When a more urgent prompt arrives, the iteration under way stops at the next operator, at most
``operator_s`` later, and what it computed is kept. So a long prompt holds up a short one for milliseconds, without
the cost of small chunks.

What an interrupted iteration has done is counted in whole tokens of each of its prompts, in the share of its time that
had passed. Iterations in which sequences decode are not interrupted: the scheduler is made for engines that only
prefill (`sim.cluster.disaggregated`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Generic, TypeVar, cast

from sim.cluster.engine_request import NEVER_S, PREFILL, WAITING, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.kv_cache import blocks_of
from sim.cluster.replica import Listener, Replica

R = TypeVar("R", bound=EngineRequest)

Urgency = tuple[bool, float, bool, float, int]


class SlackQueue(Generic[R]):
    """Prompts that wait: those that can still be on time by their latest start, then those that are late."""

    def __init__(self, latest_start_s: Callable[[R], float]) -> None:
        self._latest_start_s = latest_start_s
        self._heaps: tuple[list[tuple[float, float, int, R]], list[tuple[float, float, int, R]]] = ([], [])
        self._turn = 0

    def __len__(self) -> int:
        return sum(map(len, self._heaps))

    def __iter__(self) -> Iterator[R]:
        return (entry[3] for heap in self._heaps for entry in heap)

    def push(self, request: R) -> None:
        """Add an arrival, or a preempted request."""
        heappush(self._heaps[0], (self._latest_start_s(request), request.submitted_s, request.order, request))

    def push_front(self, request: R) -> None:
        """Return a preempted request, to the place that its slack gives it."""
        self.push(request)

    def most_urgent(self, now_s: float) -> R | None:
        """Return whose turn it is, and remember it for `pop`."""
        on_time, late = self._heaps
        while on_time and on_time[0][0] < now_s:
            heappush(late, heappop(on_time))
        for turn, heap in enumerate(self._heaps):
            while heap and heap[0][3].state != WAITING:
                heappop(heap)
            if heap:
                self._turn = turn
                return heap[0][3]
        return None

    def head(self) -> R | None:
        """See `sim.cluster.discipline.WaitingQueue`; whether somebody is late is not asked."""
        return self.most_urgent(-NEVER_S)

    def pop(self) -> None:
        """Remove who was most urgent."""
        heappop(self._heaps[self._turn])


class FlowReplica(Replica[R]):
    """An engine that prefills by slack; everything else is as in `Replica`.

    Parameters
    ----------
    operator_s : the longest operator, the time that passes at most until an interruption takes effect.
    settings : without async scheduling and prefix caching.
    """

    def __init__(
        self, settings: EngineSettings, *, operator_s: float, listener: Listener[R], arm: Callable[[float], None]
    ) -> None:
        self._operator_s = operator_s
        super().__init__(settings, listener=listener, arm=arm)
        self._gives_way_in_turn = False  # several prompts may be under way

    def _clear(self) -> None:
        super()._clear()
        self._unfinished: list[R] = []
        self._slack: SlackQueue[R] = SlackQueue(self._latest_start_s)
        self._waiting = self._slack

    def _latest_start_s(self, request: R) -> float:
        """Return when the rest of a prompt must begin for its first token to be on time."""
        return NEVER_S if request.due_s == NEVER_S else request.due_s - self._rest_s(request)

    def _rest_s(self, request: R) -> float:
        """Return how long the rest of a prompt takes alone."""
        done = request.computed_tokens
        tokens = request.target_tokens - done
        return self._step.iteration_s(tokens, tokens * (done + (tokens + 1) / 2), 0, 0) * self.slowdown

    def _urgency(self, request: R, now_s: float) -> Urgency:
        """Return what the most urgent has least of; at equal slack what is under way goes on, then first come."""
        latest_start_s = self._latest_start_s(request)
        return (latest_start_s < now_s, latest_start_s, request.state != PREFILL, request.submitted_s, request.order)

    # --------------------------------------------------------------------------------------------------- interruption

    def submit(self, request: R, now_s: float) -> None:
        """See `Replica.submit`; stops the iteration under way if this is more urgent than all that it computes."""
        super().submit(request, now_s)
        chunks = self._chunks
        if not self._busy or not chunks or self._decoding or len(self._running) >= self.max_num_seqs:
            return
        if self.kv.used_blocks + blocks_of(request.target_tokens, self._block_tokens) > self.kv.total_blocks:
            return
        if self._urgency(request, now_s) < min(self._urgency(r, now_s) for r, _ in chunks):
            self._stop(now_s)

    def _stop(self, now_s: float) -> None:
        """End the iteration at the first operator boundary after ``now_s``, with what it has done by then."""
        operator_s = self._operator_s * self.slowdown
        operators = math.floor(max(0.0, now_s - self._run_start_s) / operator_s) + 1
        at_s = self._run_start_s + operators * operator_s
        if at_s >= self.wake_s:
            return
        share = (at_s - self._run_start_s) / (self.wake_s - self._run_start_s)
        done: list[tuple[R, int]] = []
        for request, tokens in self._chunks or ():
            kept = int(tokens * share)
            self.kv.used_blocks -= self._chunk_blocks(request, tokens) - self._chunk_blocks(request, kept)
            done.append((request, kept))
        self._chunks = done
        self._wake(at_s)

    # ------------------------------------------------------------------------------------------------------- schedule

    def _complete(self) -> list[R]:
        emitted = super()._complete()
        self._unfinished = [request for request in self._running if request.state == PREFILL]
        return emitted

    def _leave(self, request: R) -> int:
        self._unfinished = [other for other in self._unfinished if other is not request]
        return super()._leave(request)

    def _schedule(self, now_s: float) -> bool:
        """See `Scheduler._schedule`."""
        kv = self.kv
        decoding = self._decoding
        used_blocks = kv.used_blocks + kv.growing[self.clock % self._block_tokens]
        if used_blocks > kv.total_blocks and self._running:
            return self._walk(now_s)
        budget_tokens = self._max_batched_tokens - decoding
        chunks: list[tuple[R, int]] = []
        unfinished = sorted(self._unfinished, key=lambda r: self._urgency(r, now_s))
        head = self._slack.most_urgent(now_s)
        due_s = NEVER_S  # the first deadline in the batch that can be met
        while budget_tokens > 0 and (unfinished or head is not None):
            goes_on = bool(unfinished) and (
                head is None or self._urgency(unfinished[0], now_s) < self._urgency(head, now_s)
            )
            request = unfinished[0] if goes_on else cast("R", head)
            tokens = min(request.target_tokens - request.computed_tokens, budget_tokens)
            if due_s < NEVER_S and now_s + self._iteration_s([*chunks, (request, tokens)]) * self.slowdown > due_s:
                break  # the batch is filled up only as far as nobody in it is late for that
            blocks = self._chunk_blocks(request, tokens)
            if goes_on:
                if used_blocks + blocks > kv.total_blocks:
                    if not chunks:
                        return self._walk(now_s)
                    break
                unfinished.pop(0)
            else:
                whole_blocks = blocks_of(request.target_tokens, self._block_tokens)
                if len(self._running) >= self.max_num_seqs or used_blocks + whole_blocks > kv.total_blocks:
                    head = None  # nobody overtakes it, but what is under way goes on
                    continue
                self._let_in(request)
                head = self._slack.most_urgent(now_s)
            if self._latest_start_s(request) >= now_s:
                due_s = min(due_s, request.due_s)
            used_blocks += blocks
            budget_tokens -= tokens
            chunks.append((request, tokens))
        if chunks:
            kv.used_blocks = used_blocks
            self._begin_iteration(now_s, chunks)
            return True
        if decoding:
            self._begin_decode_run(now_s)
            return True
        return False

    def _let_in(self, request: R) -> None:
        self._slack.pop()
        self.waiting_count -= 1
        request.state = PREFILL
        request.computed_tokens = 0
        self._running[request] = None
