"""What a replica computes in its next iteration: vLLM V1's scheduler.

One iteration (vLLM 0.32.0, ``v1/core/sched/scheduler.py``):

1. Running requests in the order they were admitted: one token for each that decodes, the next chunk for the one whose
   prompt is not yet computed, under ``max_num_batched_tokens``. Where a KV block is missing, a running request is
   preempted (first come, first served: the last-admitted one): it loses its blocks, returns to the queue and is later
   recomputed, its output so far included.
2. Unless someone was preempted, waiting requests in order while ``max_num_seqs``, the token budget and free blocks
   allow. A request is admitted only if the whole of its prompt fits (``scheduler_reserve_full_isl``, on by default),
   but takes blocks chunk by chunk.

Who waits in which order and who is preempted is the `sim.cluster.discipline.Discipline`'s to say; how many prompt
tokens an iteration may take, the `Batcher`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop
from typing import Any, TypeVar

from sim.cluster.batch import Batch
from sim.cluster.engine_request import DECODE, NEVER_S, PREFILL, WAITING, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.kv_cache import blocks_of

R = TypeVar("R", bound=EngineRequest)


class Scheduler(Batch[R]):
    """Plans one iteration, or a run of iterations in which nothing but decoding happens."""

    __slots__ = (
        "_arm",
        "_batcher",
        "_cut",
        "_inbox",
        "_max_batched_tokens",
        "_overtakes",
        "_run_start_s",
        "_step",
        "slowdown",
        "wake_s",
    )

    def __init__(self, settings: EngineSettings, *, arm: Callable[[float], None]) -> None:
        self._step = settings.step_time
        self._arm = arm
        self._max_batched_tokens = settings.max_num_batched_tokens
        self._batcher = settings.batcher
        self.slowdown = 1.0
        self.wake_s = NEVER_S
        super().__init__(settings)
        self._overtakes = self._discipline.overtakes

    def _clear(self) -> None:
        super()._clear()
        self._inbox: deque[tuple[float, int, Any]] = deque()
        self._run_start_s = 0.0
        self._cut = True

    def _schedule(self, now_s: float) -> bool:
        """Begin the next iteration, or run of decode iterations; False where there is nothing to run."""
        kv = self.kv
        cache = self._cache
        decoding = self._decoding
        partial = self._partial
        used_blocks = kv.used_blocks + kv.growing[self.clock % self._block_tokens]
        total_blocks = kv.total_blocks
        budget_tokens = self._max_batched_tokens - decoding
        if self._speculation is not None:
            budget_tokens -= decoding * self._speculation.tokens
            # Its first token's blocks are counted above.
            gained = self._speculation.gained(self._iteration, 1)
            used_blocks += kv.growth(self.clock + 1, gained - 1) if gained > 1 else 0
        chunks: list[tuple[R, int]] = []
        if self._batcher is not None and self.waiting_count + (partial is not None):
            context_tokens = self._reads(decoding)
            budget_tokens = self._batcher.prefill_tokens(self, budget_tokens, decoding, context_tokens, now_s)
        if partial is not None and budget_tokens > 0:
            tokens = min(partial.target_tokens - partial.computed_tokens, budget_tokens)
            used_blocks += self._chunk_blocks(partial, tokens)
            budget_tokens -= tokens
            chunks.append((partial, tokens))
            if cache is not None and used_blocks <= total_blocks:
                cache.name(partial, partial.computed_tokens + tokens)
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
                found_tokens = 0
                if cache is not None and (request.prefix is not None or request.preemptions):
                    cache.sync(total_blocks - used_blocks)
                    found, shared = cache.look(request, tokens)
                    if used_blocks + blocks - shared > total_blocks:
                        break
                    cache.hold(request, found)
                    found_tokens = found * block_tokens
                    used_blocks -= shared
                    tokens -= found_tokens
                elif used_blocks + blocks > total_blocks:
                    break
                waiting.pop()
                self.waiting_count -= 1
                if tokens > budget_tokens:
                    tokens = budget_tokens
                    blocks = -(-(found_tokens + tokens) // block_tokens)
                    self._partial = request
                request.state = PREFILL
                request.computed_tokens = found_tokens
                if cache is not None:
                    self._note_cached(request, found_tokens, tokens)
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

    def _note_cached(self, request: R, found_tokens: int, tokens: int) -> None:
        """Note, where prefixes are cached, what an admitted request found, and let others find what it computes."""
        request.place = next(self._places)
        if request.cached_tokens < 0:
            request.cached_tokens = found_tokens
        self._cache.name(request, found_tokens + tokens)  # type: ignore[union-attr]

    def _chunk_blocks(self, request: R, tokens: int) -> int:
        """Return the blocks that the next ``tokens`` of a prompt take."""
        block_tokens = self._block_tokens
        return blocks_of(request.computed_tokens + tokens, block_tokens) - blocks_of(
            request.computed_tokens, block_tokens
        )

    def _begin_iteration(self, now_s: float, chunks: list[tuple[R, int]]) -> None:
        """Begin a single iteration whose blocks are already taken."""
        self._chunks = chunks
        self._run = 1
        self._cut = True
        self._begin(now_s, self._iteration_s(chunks))

    def _iteration_s(self, chunks: list[tuple[R, int]]) -> float:
        """Return how long an iteration of these chunks takes, with what decodes beside them."""
        prefill_tokens = 0
        pairs = 0.0
        for request, tokens in chunks:
            prefill_tokens += tokens
            pairs += tokens * (request.computed_tokens + (tokens + 1) / 2)
        decoding = self._decoding
        context_tokens = self._context_tokens + decoding if self._even else self._reads(decoding)
        return self._step.iteration_s(prefill_tokens, pairs, decoding, context_tokens)

    def _begin_decode_run(self, now_s: float) -> None:
        """Jump: run until the first request ends, or the blocks run out, or a message comes."""
        ends = self._ends
        while ends[0][2].ticket != ends[0][1] or ends[0][2].state != DECODE:
            heappop(ends)
        decoding = self._decoding
        speculation = self._speculation
        if (
            self._inbox
            # Whoever waits may get what lingers, so the next plan must be made right after this iteration.
            or (self._lingering_slots and self.waiting_count)
            # A batcher may take prompts on any time.
            or (self._batcher is not None and (self.waiting_count or self._partial is not None))
        ):
            run = 1
        elif speculation is None:
            run = ends[0][0] - self.clock
            if run > 1:
                run = self.kv.run_that_fits(self.clock, run, decoding)
        else:
            run = speculation.until(self._iteration, ends[0][0] - self.clock)
            gained = speculation.gained(self._iteration, run)
            fits = self.kv.run_that_fits(self.clock, gained, decoding)
            if fits < gained and run > 1:
                run = speculation.within(self._iteration, fits)
        self._chunks = None
        self._run = run
        self._cut = run == 1
        context_tokens = self._context_tokens + decoding if self._even else self._reads(decoding)
        self._begin(now_s, self._step.decode_run_s(decoding, context_tokens, run))

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
                computed_tokens = request.target_tokens + self.clock - request.base_clock
                tokens = blocks = 1
                if self._speculation is not None:
                    tokens += self._speculation.tokens
                    blocks = self._speculation.gained(self._iteration, 1)
                blocks = blocks_of(computed_tokens + blocks, self._block_tokens) - blocks_of(
                    computed_tokens, self._block_tokens
                )
            else:
                tokens = min(request.target_tokens - request.computed_tokens, budget_tokens)
                blocks = self._chunk_blocks(request, tokens)
            while kv.used_blocks + blocks > kv.total_blocks:
                at = self._discipline.victim(order)
                victim = order.pop(at)
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
        if self._cache is not None:
            for request, tokens in chunks:
                self._cache.name(request, request.computed_tokens + tokens)
        for request in order[i:]:
            self._pause(request)
        self._begin_iteration(now_s, chunks)
        return True
