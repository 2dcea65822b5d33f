"""One replica: vLLM V1's scheduler, jumping from change to change instead of stepping through every token.

Semantics (vLLM 0.32.0, ``v1/core/sched/scheduler.py``), one iteration:

1. Running requests in the order they were admitted: one token for each that decodes, the next chunk for the one whose
   prompt is not yet computed, under ``max_num_batched_tokens``. Where a KV block is missing, the last-admitted running
   request (by priority: the one with the largest (priority, arrival)) is preempted: it loses its blocks, returns to
   the front of the queue and is later recomputed, its output so far included.
2. Unless someone was preempted, waiting requests in order while ``max_num_seqs``, the token budget and free blocks
   allow. A request is admitted only if the whole of its prompt fits (``scheduler_reserve_full_isl``, on by default),
   but takes blocks chunk by chunk.

What makes it fast: as long as nobody joins or leaves, every iteration decodes the same batch, so their total duration
has a closed form, ends are absolute iteration numbers in a heap, and the blocks that growing contexts take are
counted by 16 counters (context length modulo block size). The cost is per request, not per token or batch.

Messages (submit, abort, capacity) take effect at iteration boundaries, as in vLLM's input queue. A message that
arrives less than ``TIE_S`` before a boundary waits for the next one, so that rounding never decides who joins.

With ``async_scheduling`` the engine plans an iteration while the one before it runs, as vLLM does by default: messages,
and the slots and blocks of requests that end, reach the plan one iteration later. With ``prefix_caching`` a preempted
request finds again what is left of its blocks.

This file knows no SimPy: `Replica` asks to be woken by calling ``arm`` and is told so by `boundary`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any, Generic, Literal, Protocol, TypeVar

from sim.cluster.engine_request import DECODE, ENDED, PREFILL, WAITING, EngineRequest
from sim.cluster.kv_cache import KvCache, blocks_of
from sim.cluster.leftovers import Leftovers
from sim.cluster.step_time import StepTime
from sim.cluster.waiting import FcfsQueue, PriorityQueue

TIE_S = 1e-9
NEVER_S = float("inf")

_SUBMIT, _ABORT, _SLOTS, _KV_BLOCKS, _SLOWDOWN = range(5)


R = TypeVar("R", bound=EngineRequest)
R_contra = TypeVar("R_contra", bound=EngineRequest, contravariant=True)


class Listener(Protocol[R_contra]):
    """Who hears what a replica emits; both calls come at the end of the iteration that made the token."""

    def on_first_token(self, request: R_contra, now_s: float) -> None:
        """Hear of a first output token."""
        ...

    def on_finish(self, request: R_contra, now_s: float) -> None:
        """Hear of the last one."""
        ...


class Replica(Generic[R]):
    """A continuous-batching engine on one GPU (or one tensor-parallel group).

    Parameters
    ----------
    arm : called with the time at which `boundary` wants to be called; a later call replaces an earlier one.
    scheduling : "fcfs", or "priority" (lower `EngineRequest.priority` first).
    async_scheduling, prefix_caching : see the top of this file.
    """

    def __init__(
        self,
        *,
        step_time: StepTime,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        kv_blocks: int,
        block_tokens: int,
        listener: Listener[R],
        arm: Callable[[float], None],
        scheduling: Literal["fcfs", "priority"] = "fcfs",
        async_scheduling: bool = False,
        prefix_caching: bool = False,
    ) -> None:
        self._step = step_time
        self._listener = listener
        self._arm = arm
        self._max_batched_tokens = max_num_batched_tokens
        self._by_priority = scheduling == "priority"
        self._block_tokens = block_tokens
        self.max_num_seqs = max_num_seqs
        self.kv = KvCache(kv_blocks, block_tokens)
        self._async = async_scheduling
        self._leftovers = Leftovers(kv_blocks, block_tokens) if prefix_caching else None
        self.slowdown = 1.0
        self.wake_s = NEVER_S
        self.iterations = 0
        self.waiting_count = 0
        self.preemptions = 0
        self._ticket = count()
        self._order = count()
        self._reset()

    def _reset(self) -> None:
        self._inbox: deque[tuple[float, int, Any]] = deque()
        self._waiting: FcfsQueue[R] | PriorityQueue[R] = PriorityQueue() if self._by_priority else FcfsQueue()
        self._running: dict[R, None] = {}
        self._partial: R | None = None
        self._ends: list[tuple[int, int, R]] = []
        self._decoding = 0
        self._context_tokens = 0
        # The iteration, or run of iterations, now under way.
        self._busy = False
        self._run = 0
        self._run_start_s = 0.0
        self._chunks: list[tuple[R, int]] | None = None
        self._paused: list[R] = []
        self._cut = True
        # With async scheduling: what requests that ended still hold until the next plan is made.
        self._lingering_slots = 0
        self._lingering_blocks = 0

    # ---------------------------------------------------------------------------------------------------------- ask

    @property
    def running_count(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    def outputs_at(self, request: R, now_s: float) -> int:
        """Return how many output tokens the request has at ``now_s``."""
        if request.state != DECODE:
            return request.outputs
        return request.outputs + self.iterations + self._run_done(now_s) - request.base_iteration

    def kv_used_blocks_at(self, now_s: float) -> int:
        """Return the blocks in use at ``now_s``, those of the iteration under way included."""
        if not self._busy or self._chunks is not None:
            return self.kv.used_blocks
        return self.kv.used_blocks + self.kv.growth(self.iterations, min(self._run, self._run_done(now_s) + 1))

    def _run_done(self, now_s: float) -> int:
        """Return how many iterations of the present run are complete."""
        if not self._busy or self._chunks is not None:
            return 0
        elapsed_s = (now_s - self._run_start_s) / self.slowdown
        if elapsed_s <= 0:
            return 0
        k = self._step.iterations_until(self._decoding, self._context_tokens + self._decoding, elapsed_s)
        return min(k - 1, self._run)

    # --------------------------------------------------------------------------------------------------------- tell

    def submit(self, request: R, now_s: float) -> None:
        """Hand over a request; ``now_s`` may lie ahead, if what is sent now takes until then to get here."""
        request.submitted_s = now_s
        request.order = next(self._order)
        self.waiting_count += 1
        self._inbox.append((now_s, _SUBMIT, request))
        if not self._busy:
            if self.wake_s == NEVER_S:
                self._wake(now_s)
        # Nobody overtakes first come, first served: while its head is stuck, an arrival changes nothing yet.
        elif not self._cut and (self._by_priority or (not self._waiting and len(self._running) < self.max_num_seqs)):
            self._interrupt(now_s)

    def abort(self, request: R, now_s: float) -> None:
        """Drop a request: it emits nothing more, and its slot and blocks are free at the next boundary."""
        if request.state != ENDED and not request.aborted:
            request.aborted = True
            self._message(now_s, _ABORT, request)

    def set_slots(self, slots: int, now_s: float) -> None:
        """Change the number of sequences that may run; those running go on, as with vLLM's max_num_active_seqs."""
        self._message(now_s, _SLOTS, slots)

    def set_kv_blocks(self, blocks: int, now_s: float) -> None:
        """Change the KV blocks; requests are preempted until what is in use fits."""
        self._message(now_s, _KV_BLOCKS, blocks)

    def set_slowdown(self, factor: float, now_s: float) -> None:
        """Make every iteration take ``factor`` times as long."""
        self._message(now_s, _SLOWDOWN, factor)

    def fail(self, now_s: float) -> list[R]:
        """Crash: everything inside is lost, at once. Returns what was, with its outputs (aborted requests left out)."""
        inbox = [arg for _, kind, arg in self._inbox if kind == _SUBMIT]
        lost = [r for r in [*self._running, *self._waiting, *inbox] if r.state != ENDED and not r.aborted]
        for request in lost:
            request.outputs = self.outputs_at(request, now_s)
        for request in lost:
            request.state = ENDED
        self.kv.clear()
        self._apply_settings()
        self._forget_leftovers()
        self._reset()
        self.waiting_count = 0
        self._wake(NEVER_S)
        return lost

    def _apply_settings(self) -> None:
        for _, kind, arg in self._inbox:
            if kind not in (_SUBMIT, _ABORT):
                self._apply(kind, arg)

    def _message(self, now_s: float, kind: int, arg: Any) -> None:
        self._inbox.append((now_s, kind, arg))
        if not self._busy:
            if self.wake_s == NEVER_S:
                self._wake(now_s)
        elif not self._cut:
            self._interrupt(now_s)

    def _wake(self, at_s: float) -> None:
        self.wake_s = at_s
        self._arm(at_s)

    def _interrupt(self, now_s: float) -> None:
        """End the run where the message takes effect: the first boundary more than TIE_S after it, or the next."""
        decoding = self._decoding
        context_tokens = self._context_tokens + decoding
        elapsed_s = (now_s - self._run_start_s + TIE_S) / self.slowdown
        run = self._step.iterations_until(decoding, context_tokens, elapsed_s) + self._async
        self._cut = True
        if run < self._run:
            self._run = run
            self._wake(self._run_start_s + self._step.decode_run_s(decoding, context_tokens, run) * self.slowdown)

    # ----------------------------------------------------------------------------------------------------- boundary

    def boundary(self, now_s: float) -> None:
        """End the iterations under way, read the inbox, begin the next. To be called at ``wake_s``."""
        self.wake_s = NEVER_S
        read_until_s = self._planned_s() if self._async and self._busy and self._inbox else now_s
        emitted = self._complete() if self._busy else None
        if self._inbox:
            self._read_inbox(read_until_s - TIE_S)
        busy = self._schedule(now_s)
        if self._async:
            if self._lingering_slots:
                self._release()
            if not busy:
                self._read_inbox(now_s - TIE_S)
                busy = self._schedule(now_s)
        while not busy and self._inbox:
            if self._inbox[0][0] > now_s:  # on its way: see `submit`
                self._wake(self._inbox[0][0])
                break
            # An idle engine starts with whatever came first, and what came at that very instant.
            self._read_inbox(self._inbox[0][0], inclusive=True)
            busy = self._schedule(now_s)
        if emitted:
            listener = self._listener
            for request in emitted:
                if request.state == ENDED:
                    if request.outputs == 1:
                        listener.on_first_token(request, now_s)
                    listener.on_finish(request, now_s)
                else:
                    listener.on_first_token(request, now_s)

    def _planned_s(self) -> float:
        """Return when the iteration that comes next was planned: at the start of the one that ends now."""
        if self._run == 1:
            return self._run_start_s
        run_s = self._step.decode_run_s(self._decoding, self._context_tokens + self._decoding, self._run - 1)
        return self._run_start_s + run_s * self.slowdown

    def _release(self) -> None:
        """Free what lingers, now that the iteration it was not free for is planned."""
        self.kv.used_blocks -= self._lingering_blocks
        if self._leftovers is not None:
            self._leftovers.freed(self._lingering_blocks)
        self._lingering_slots = self._lingering_blocks = 0

    def _forget_leftovers(self) -> None:
        if self._leftovers is not None:
            self._leftovers.clear(self.kv.total_blocks - self.kv.used_blocks)

    def _read_inbox(self, until_s: float, *, inclusive: bool = False) -> None:
        inbox = self._inbox
        while inbox and (inbox[0][0] < until_s or (inclusive and inbox[0][0] == until_s)):
            _, kind, arg = inbox.popleft()
            if kind == _SUBMIT:
                self._waiting.push(arg)
            else:
                self._apply(kind, arg)

    def _apply(self, kind: int, arg: Any) -> None:
        if kind == _ABORT:
            self._drop(arg)
        elif kind == _SLOTS:
            self.max_num_seqs = arg
        elif kind == _KV_BLOCKS:
            self.kv.total_blocks = arg
            self._forget_leftovers()
        else:
            self.slowdown = arg

    def _drop(self, request: R) -> None:
        if request.state == WAITING:
            self.waiting_count -= 1  # the queue skips it when it comes to the front
            if self._leftovers is not None:
                self._leftovers.dropped(request)
        elif request.state == ENDED:
            return
        else:
            used_blocks = self.kv.used_blocks
            request.outputs = self._leave(request)
            if self._leftovers is not None:
                self._leftovers.freed(used_blocks - self.kv.used_blocks)
        request.state = ENDED

    def _leave(self, request: R) -> int:
        """Take a running request off the batch and free its blocks; returns its output tokens."""
        del self._running[request]
        if request.state == PREFILL:
            if self._partial is request:
                self._partial = None
            self.kv.used_blocks -= blocks_of(request.computed_tokens, self._block_tokens)
            return request.outputs
        phase = request.base_iteration - request.target_tokens
        computed_tokens = self.iterations - phase
        kv, block_tokens = self.kv, self._block_tokens
        self._decoding -= 1
        self._context_tokens -= computed_tokens
        kv.growing[phase % block_tokens] -= 1
        kv.used_blocks += -computed_tokens // block_tokens  # less its blocks, rounded up
        return request.outputs + self.iterations - request.base_iteration

    def _decode_from_here(self, request: R) -> None:
        """Enter a request into the decoding batch with ``target_tokens`` computed and ``outputs`` made."""
        iterations = self.iterations
        target_tokens = request.target_tokens
        request.state = DECODE
        request.base_iteration = iterations
        request.ticket = ticket = next(self._ticket)
        self._decoding += 1
        self._context_tokens += target_tokens
        self.kv.growing[(iterations - target_tokens) % self._block_tokens] += 1
        heappush(self._ends, (iterations + request.output_tokens - request.outputs, ticket, request))

    def _complete(self) -> list[R]:
        """Account for the iterations that end now; returns who got a first or a last token, and was not aborted."""
        emitted = []
        self._busy = False
        run = self._run
        chunks = self._chunks
        kv = self.kv
        if chunks is None:
            kv.used_blocks += kv.growth(self.iterations, run)
        used_blocks, slots = kv.used_blocks, len(self._running)
        self._context_tokens += self._decoding * run
        self.iterations = iterations = self.iterations + run
        ends = self._ends
        while ends and ends[0][0] <= iterations:
            _, ticket, request = heappop(ends)
            if request.ticket == ticket and request.state == DECODE:
                self._leave(request)
                request.outputs = request.output_tokens
                request.state = ENDED
                if not request.aborted:
                    emitted.append(request)
        if chunks:
            for request, tokens in chunks:
                request.computed_tokens += tokens
                if request.computed_tokens < request.target_tokens:
                    continue
                request.outputs = outputs = request.outputs + 1
                if outputs < request.output_tokens:
                    self._decode_from_here(request)
                else:
                    self._leave(request)
                    request.state = ENDED
                if (outputs == 1 or outputs == request.output_tokens) and not request.aborted:
                    emitted.append(request)
            if self._partial is not None and self._partial.state != PREFILL:
                self._partial = None
        if self._async:
            self._lingering_slots = slots - len(self._running)
            self._lingering_blocks = used_blocks - kv.used_blocks
            kv.used_blocks = used_blocks
        elif self._leftovers is not None:
            self._leftovers.freed(used_blocks - kv.used_blocks)
        if self._paused:
            for request in self._paused:
                self._decode_from_here(request)
            self._paused.clear()
        return emitted

    # ----------------------------------------------------------------------------------------------------- schedule

    def _schedule(self, now_s: float) -> bool:
        """Begin the next iteration, or run of decode iterations; False where there is nothing to run."""
        kv = self.kv
        decoding = self._decoding
        partial = self._partial
        used_blocks = kv.used_blocks + kv.growing[self.iterations % self._block_tokens]
        total_blocks = kv.total_blocks
        budget_tokens = self._max_batched_tokens - decoding
        chunks: list[tuple[R, int]] = []
        if partial is not None:
            tokens = min(partial.target_tokens - partial.computed_tokens, budget_tokens)
            used_blocks += self._chunk_blocks(partial, tokens)
            budget_tokens -= tokens
            chunks.append((partial, tokens))
        if used_blocks > total_blocks and self._running:
            return self._schedule_short_of_blocks(now_s)
        waiting = self._waiting
        if waiting:
            slots = self.max_num_seqs - len(self._running) - self._lingering_slots
            block_tokens = self._block_tokens
            while budget_tokens > 0 and slots > 0:
                request = waiting.head()
                if request is None:
                    break
                tokens = request.target_tokens
                blocks = -(-tokens // block_tokens)
                if used_blocks + blocks > total_blocks:
                    break
                waiting.pop()
                self.waiting_count -= 1
                found_tokens = 0
                if request.preemptions and self._leftovers is not None:
                    found_tokens = block_tokens * self._leftovers.find(request, tokens, total_blocks - used_blocks)
                    tokens -= found_tokens
                if tokens > budget_tokens:
                    tokens = budget_tokens
                    blocks = -(-(found_tokens + tokens) // block_tokens)
                    self._partial = request
                request.state = PREFILL
                request.computed_tokens = found_tokens
                self._running[request] = None
                used_blocks += blocks
                chunks.append((request, tokens))
                budget_tokens -= tokens
                slots -= 1
        if chunks:
            kv.used_blocks = used_blocks
            self._begin_iteration(now_s, chunks)
            return True
        if decoding:
            self._begin_decode_run(now_s)
            return True
        return False

    def _chunk_blocks(self, request: R, tokens: int) -> int:
        """Return the blocks that the next ``tokens`` of a prompt take."""
        block_tokens = self._block_tokens
        return blocks_of(request.computed_tokens + tokens, block_tokens) - blocks_of(
            request.computed_tokens, block_tokens
        )

    def _begin_iteration(self, now_s: float, chunks: list[tuple[R, int]]) -> None:
        """Begin a single iteration whose blocks are already taken."""
        prefill_tokens = 0
        pairs = 0.0
        for request, tokens in chunks:
            prefill_tokens += tokens
            pairs += tokens * (request.computed_tokens + (tokens + 1) / 2)
        decoding = self._decoding
        duration_s = self._step.iteration_s(prefill_tokens, pairs, decoding, self._context_tokens + decoding)
        self._chunks = chunks
        self._run = 1
        self._cut = True
        self._begin(now_s, duration_s)

    def _begin_decode_run(self, now_s: float) -> None:
        """Jump: run until the first request ends, or the blocks run out, or a message comes."""
        ends = self._ends
        while ends[0][2].ticket != ends[0][1] or ends[0][2].state != DECODE:
            heappop(ends)
        decoding = self._decoding
        # Whoever waits may get what lingers, so the next plan must be made right after this iteration.
        soon = self._inbox or (self._lingering_slots and self.waiting_count)
        run = 1 if soon else ends[0][0] - self.iterations
        if run > 1:
            run = self.kv.run_that_fits(self.iterations, run, decoding)
        self._chunks = None
        self._run = run
        self._cut = run == 1
        self._begin(now_s, self._step.decode_run_s(decoding, self._context_tokens + decoding, run))

    def _begin(self, now_s: float, duration_s: float) -> None:
        self._busy = True
        self._run_start_s = now_s
        self.wake_s = wake_s = now_s + duration_s * self.slowdown
        self._arm(wake_s)

    def _schedule_short_of_blocks(self, now_s: float) -> bool:
        """Walk the running requests as vLLM does, preempting until each has its block."""
        kv = self.kv
        order = list(self._running)
        budget_tokens = self._max_batched_tokens
        taken: dict[R, tuple[int, int]] = {}  # tokens and new blocks of what is scheduled
        i = 0
        while i < len(order):
            request = order[i]
            if request.state == DECODE:
                computed_tokens = request.target_tokens + self.iterations - request.base_iteration
                tokens = 1
                blocks = 1 if computed_tokens % self._block_tokens == 0 else 0
            else:
                tokens = min(request.target_tokens - request.computed_tokens, budget_tokens)
                blocks = self._chunk_blocks(request, tokens)
            while kv.used_blocks + blocks > kv.total_blocks:
                victim = max(order, key=lambda r: (r.priority, r.submitted_s)) if self._by_priority else order[-1]
                at = order.index(victim) if self._by_priority else len(order) - 1
                del order[at]
                if at < i:
                    i -= 1
                victim_tokens, victim_blocks = taken.pop(victim, (0, 0))
                budget_tokens += victim_tokens
                self._preempt(victim, victim_blocks)
                if victim is request:
                    break
            if request.state == WAITING:
                break  # it gave way itself: vLLM schedules nobody after it in this iteration
            kv.used_blocks += blocks
            budget_tokens -= tokens
            taken[request] = (tokens, blocks)
            i += 1
        if not taken:
            return self._schedule(now_s)
        chunks = [(r, tokens) for r, (tokens, _) in taken.items() if r.state == PREFILL]
        for request in order[i:]:
            self._pause(request)
        self._begin_iteration(now_s, chunks)
        return True

    def _preempt(self, request: R, blocks_of_this_iteration: int) -> None:
        kv = self.kv
        used_blocks = kv.used_blocks
        computed_tokens = request.computed_tokens
        if request.state == DECODE:
            computed_tokens = request.target_tokens + self.iterations - request.base_iteration
        request.outputs = self._leave(request)
        kv.used_blocks -= blocks_of_this_iteration
        if self._leftovers is not None:
            self._leftovers.preempted(request, computed_tokens, used_blocks - kv.used_blocks)
        request.target_tokens = request.prompt_tokens + request.outputs
        request.computed_tokens = 0
        request.state = WAITING
        request.preemptions += 1
        self.preemptions += 1
        self.waiting_count += 1
        self._waiting.push_front(request)

    def _pause(self, request: R) -> None:
        """Leave a running request out of one iteration; it keeps its blocks and its place in the order."""
        if request.state == PREFILL:
            self._running[request] = self._running.pop(request)
            return
        computed_tokens = request.target_tokens + self.iterations - request.base_iteration
        request.outputs = self._leave(request)
        request.target_tokens = computed_tokens
        request.base_iteration = self.iterations
        request.ticket = -1
        self._running[request] = None
        self.kv.used_blocks += blocks_of(computed_tokens, self._block_tokens)
        self._paused.append(request)
