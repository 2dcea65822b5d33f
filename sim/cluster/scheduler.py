"""What a replica computes in its next iteration: vLLM V1's scheduler.

One iteration (vLLM 0.32.0, ``v1/core/sched/scheduler.py``):

1. Running requests in the order they were admitted: one token for each that decodes, the next chunk for those whose
   prompt is not yet computed, under ``max_num_batched_tokens``. Where a KV block is missing, a running request is
   preempted (first come, first served: the last-admitted one): it loses its blocks, returns to the queue and is later
   recomputed, its output so far included.
2. Unless someone was preempted, waiting requests in order while ``max_num_seqs``, the token budget and free blocks
   allow. A request is admitted only if the whole of its prompt fits (``scheduler_reserve_full_isl``, on by default),
   but takes blocks chunk by chunk. Off, it is admitted with its first chunk, unless the cache as a whole is too small
   for it: vLLM refuses such requests and its cache never shrinks; here capacity may be lost.

Only ``long_prefill_token_threshold`` lets several prompts be under way at a time, and makes their order matter. Then,
and where blocks are missing, requests are walked one by one (`Scheduler._walk`); else their sums are enough.

With async scheduling the plan is made before the tokens of the iteration under way are known. A request that ends with
it keeps its slot and blocks, and may even be preempted; one that ends by a stop token (``EngineRequest.stops``), which
nobody foresees, is computed once more, for nothing.

Who waits in which order and who is preempted is the `sim.cluster.discipline.Discipline`'s to say; how many prompt
tokens an iteration may take, the `Batcher`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop
from typing import Final, TypeVar

from policies.native import mypyc_attr
from sim.cluster.batch import TICKET_BITS, TICKETS, Batch
from sim.cluster.discipline import WaitingQueue
from sim.cluster.engine_inbox import SUBMIT
from sim.cluster.engine_request import ENDED, NEVER_S, PREFILL, WAITING, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.kv_cache import blocks_of
from sim.cluster.waiting import FcfsQueue
from sim.engine.linear_times import LinearTimes
from sim.engine.step_time import StepTime, answering

R = TypeVar("R", bound=EngineRequest)
# As in `sim.cluster.agenda`.
_heappop: Final = heappop


@mypyc_attr(allow_interpreted_subclasses=True)
class Scheduler(Batch[R]):
    """Plans one iteration, or a run of iterations in which nothing but decoding happens."""

    __slots__ = (
        "_batcher",
        "_cut",
        "_gives_way_in_turn",
        "_launch",
        "_launched_s",
        "_long_prefill_tokens",
        "_max_batched_tokens",
        "_overtakes",
        "_plan_s",
        "_reserves_prompts",
        "_run_start_s",
        "_shares_budget",
        "_step",
        "_watermark",
        "slowdown",
    )

    # Compiled, the class that is named first is called without a look-up.
    _step: LinearTimes | StepTime
    _launch: Callable[[int, int, int], float] | None

    def __init__(self, settings: EngineSettings, *, arm: Callable[[float], None]) -> None:
        self._step = answering(settings.step_time)
        self._launch = getattr(settings.step_time, "launching", None)
        self._plan_s = 0.0  # when the host began with the iteration that is planned
        self._launched_s = -NEVER_S  # and when it was done with the one under way
        self._arm = arm
        self._max_batched_tokens = settings.max_num_batched_tokens
        self._batcher = settings.batcher
        self._long_prefill_tokens = settings.long_prefill_token_threshold
        self._shares_budget = settings.long_prefill_token_threshold_adaptive
        self._reserves_prompts = settings.scheduler_reserve_full_isl
        self._watermark = settings.watermark
        self.slowdown = 1.0
        self.wake_s = NEVER_S
        super().__init__(settings)
        # Whether who comes may change what happens to a queue whose head is stuck: it may be put before the head, or,
        # where all share the budget and the head needs blocks for its next chunk alone, make that chunk fit.
        smaller = self._long_prefill_tokens > 0 and self._shares_budget and not self._reserves_prompts
        self._overtakes = self._discipline.overtakes or smaller
        # Whether the last admitted is preempted, and nothing but decodes and the prompt under way takes blocks.
        self._gives_way_in_turn = (
            settings.scheduling in ("fcfs", "shortest-first")
            and not (self._deferred or self._long_prefill_tokens)
            and settings.speculation is None
        )

    def _clear(self) -> None:
        super()._clear()
        self._inbox = []
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
        most_tokens = 0
        if self._long_prefill_tokens:
            most_tokens = self._most_tokens()
            if any(request.state == PREFILL for request in self._running):
                return self._walk(now_s)
        if self._overrunning:
            budget_tokens -= len(self._overrunning)
            used_blocks += sum(not tokens % self._block_tokens for _, _, tokens in self._overruns())
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
        if used_blocks > total_blocks and (self._running or self._overrunning):
            return self._walk(now_s)
        if self._overrunning:
            self._overrun()
        if self.waiting_count:
            used_blocks = self._admit(chunks, budget_tokens, most_tokens, used_blocks)
        if chunks or self._overrunning:
            kv.used_blocks = used_blocks
            self._begin_iteration(now_s, chunks)
            return True
        if decoding:
            self._begin_decode_run(now_s)
            return True
        return False

    def _admit(self, chunks: list[tuple[R, int]], budget_tokens: int, most_tokens: int, used_blocks: int) -> int:
        """Let waiting requests in as far as slots, tokens and blocks go, and add their chunks; returns the blocks used.

        ``most_tokens`` is what one prompt may take of an iteration; 0 for all.
        """
        waiting: FcfsQueue[R] | WaitingQueue = self._waiting
        running, cache = self._running, self._cache
        total_blocks = self.kv.total_blocks
        block_tokens = self._block_tokens
        slots = self.max_num_seqs - len(running) - len(self._lingering)
        while budget_tokens > 0 and slots > 0:
            request: R | None = waiting.head()
            if request is None:
                break
            tokens = request.target_tokens
            found = shared = found_tokens = 0
            looks = cache is not None and (request.prefix is not None or request.preemptions)
            if looks:
                cache.sync(total_blocks - used_blocks)  # type: ignore[union-attr]
                found, shared = cache.look(request, tokens)  # type: ignore[union-attr]
                found_tokens = found * block_tokens
                tokens -= found_tokens
            blocks = needed = -(-request.target_tokens // block_tokens)
            if tokens > budget_tokens or 0 < most_tokens < tokens:
                tokens = min(budget_tokens, most_tokens or budget_tokens)
                blocks = -(-(found_tokens + tokens) // block_tokens)
                # What the whole cache cannot hold, which vLLM refuses, would be begun again for ever.
                if not self._reserves_prompts and needed <= total_blocks:
                    needed = blocks
            if self._watermark and (running or self._lingering):
                needed += int(self._watermark * (total_blocks + 1))  # vLLM counts a block that it leaves empty
            if used_blocks + needed - shared > total_blocks:
                break
            if looks:
                cache.hold(request, found)  # type: ignore[union-attr]
            waiting.pop()
            self.waiting_count -= 1
            if found_tokens + tokens < request.target_tokens:
                self._partial = request
            request.state = PREFILL
            request.computed_tokens = found_tokens
            if self._deferred:
                self._note_admission(request, found_tokens, tokens)
            running[request] = None
            used_blocks += blocks - shared
            chunks.append((request, tokens))
            budget_tokens -= tokens
            slots -= 1
        return used_blocks

    def _note_admission(self, request: R, found_tokens: int, tokens: int) -> None:
        """Note the place of an admitted request and what it found, and let others find what it computes."""
        self._take_place(request)
        if self._cache is not None:
            if request.cached_tokens < 0:
                request.cached_tokens = found_tokens
            self._cache.name(request, found_tokens + tokens)

    def _most_tokens(self) -> int:
        """Return how many tokens of one prompt an iteration takes: nobody's is cut where nobody else is there."""
        unread = sum(1 for _, kind, arg in self._inbox if kind == SUBMIT and arg.state == WAITING)
        present: int = len(self._running) + len(self._lingering) + self.waiting_count - unread
        if present <= 1:
            return 0
        if self._shares_budget:
            return max(self._long_prefill_tokens, self._max_batched_tokens // present)
        return self._long_prefill_tokens

    def _overruns(self) -> list[tuple[R, int, int]]:
        """Return what lingers and goes on for an iteration: the requests, their blocks and computed tokens."""
        return [entry for entry in self._lingering if entry[0] in self._overrunning]

    def _overrun(self) -> None:
        """Give those that go on for an iteration the block that this takes, where it takes one."""
        block_tokens = self._block_tokens
        for i, (request, blocks, tokens) in enumerate(self._lingering):
            if request in self._overrunning and not tokens % block_tokens:
                self._lingering[i] = (request, blocks + 1, tokens)

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
        if self._launch is not None:
            self._await_launch(chunks)

    def _await_launch(self, chunks: list[tuple[R, int]]) -> None:
        """Let the iteration that began end no sooner than the host has launched it."""
        assert self._launch is not None
        prefill_tokens = 0
        for _, tokens in chunks:
            prefill_tokens += tokens
        decoding = self._decoding + len(self._overrunning)
        launch_s = self._launch(prefill_tokens, len(chunks), decoding) * self.slowdown
        self._launched_s = launched_s = self._plan_s + launch_s
        if launched_s > self.wake_s:
            self._wake(launched_s)

    def _iteration_s(self, chunks: list[tuple[R, int]]) -> float:
        """Return how long an iteration of these chunks takes, with what decodes beside them."""
        prefill_tokens = 0
        pairs = 0.0
        for request, tokens in chunks:
            prefill_tokens += tokens
            pairs += tokens * (request.computed_tokens + (tokens + 1) / 2)
        decoding = self._decoding
        context_tokens: float = self._context_tokens + decoding if self._even else self._reads(decoding)
        if self._overrunning:
            decoding += len(self._overrunning)
            context_tokens += sum(tokens + 1 for _, _, tokens in self._overruns())
        return self._step.iteration_s(prefill_tokens, pairs, decoding, context_tokens)

    def _begin_decode_run(self, now_s: float) -> None:
        """Jump: run until the first request ends, or the blocks run out, or a message comes."""
        ends, ending = self._ends, self._ending
        while ends[0] & TICKETS not in ending:
            _heappop(ends)
        end = ends[0] >> TICKET_BITS
        decoding = self._decoding
        speculation = self._speculation
        if (
            self._inbox
            # Whoever waits may get what lingers, so the next plan must be made right after this iteration.
            or (self._lingering and self.waiting_count)
            # A batcher may take prompts on any time.
            or (self._batcher is not None and (self.waiting_count or self._partial is not None))
        ):
            run = 1
        elif speculation is None:
            run = end - self.clock
            if run > 1:
                run = self.kv.run_that_fits(self.clock, run, decoding)
        else:
            run = speculation.until(self._iteration, end - self.clock)
            gained = speculation.gained(self._iteration, run)
            fits = self.kv.run_that_fits(self.clock, gained, decoding)
            if fits < gained and run > 1:
                run = speculation.within(self._iteration, fits)
        self._chunks = None
        self._launched_s = -NEVER_S
        self._run = run
        self._cut = run == 1
        context_tokens: float = self._context_tokens + decoding if self._even else self._reads(decoding)
        self._begin(now_s, self._step.decode_run_s(decoding, context_tokens, run))

    def _begin(self, now_s: float, duration_s: float) -> None:
        self._busy = True
        self._run_start_s = now_s
        self.wake_s = wake_s = now_s + duration_s * self.slowdown
        self._arm(wake_s)

    def _walk(self, now_s: float) -> bool:
        """Plan an iteration as vLLM does, request by request, preempting until each has its block."""
        if self._gives_way_in_turn and self._decoding < self._max_batched_tokens:
            partial = self._partial
            if partial is None or next(reversed(self._running)) is partial:
                return self._make_room(now_s)
        kv = self.kv
        most_tokens = self._most_tokens() if self._long_prefill_tokens else 0
        order = list(self._running)
        if self._lingering:
            order = sorted([*order, *(request for request, _, _ in self._lingering)], key=lambda r: r.place)
        budget_tokens = self._max_batched_tokens
        taken: dict[R, tuple[int, int]] = {}  # tokens and new blocks of what is scheduled
        preempted = False
        i = 0
        while i < len(order) and budget_tokens > 0:
            request = order[i]
            if request.state == ENDED and request not in self._overrunning:
                i += 1  # it is sure to end with the iteration under way
                continue
            tokens, blocks = self._next_of(request, budget_tokens, most_tokens)
            gave_way = False
            while kv.used_blocks + blocks > kv.total_blocks and not gave_way:
                at = self._discipline.victim(order)
                victim = order.pop(at)
                if at < i:
                    i -= 1
                victim_tokens, victim_blocks = taken.pop(victim, (0, 0))
                budget_tokens += victim_tokens
                self._preempt(victim, victim_blocks, victim_tokens)
                preempted = True
                gave_way = victim is request
            if gave_way:
                break  # vLLM schedules nobody after it in this iteration
            kv.used_blocks += blocks
            budget_tokens -= tokens
            taken[request] = (tokens, blocks)
            i += 1
        if not taken:
            # With async scheduling the next plan waits for the iteration under way; see `Replica.boundary`.
            return False if self._async else self._schedule(now_s)
        chunks = [(r, tokens) for r, (tokens, _) in taken.items() if r.state == PREFILL]
        if self._cache is not None:
            for request, tokens in chunks:
                self._cache.name(request, request.computed_tokens + tokens)
        self._overrunning = [request for request in self._overrunning if request in taken]
        if self._overrunning:
            self._overrun()
        for request in order[i:]:
            if request.state != ENDED:
                self._pause(request)
        if not preempted and self.waiting_count:
            kv.used_blocks = self._admit(chunks, budget_tokens, most_tokens, kv.used_blocks)
        self._begin_iteration(now_s, chunks)
        return True

    def _make_room(self, now_s: float) -> bool:
        """Plan as `_walk`, from sums: those admitted last give way until what is left of the batch has its blocks."""
        kv, running = self.kv, self._running
        while running:
            blocks = kv.growing[self.clock % self._block_tokens]
            partial, tokens = self._partial, 0
            if partial is not None:
                unread_tokens = partial.target_tokens - partial.computed_tokens
                tokens = min(unread_tokens, self._max_batched_tokens - self._decoding)
                blocks += self._chunk_blocks(partial, tokens)
            if kv.used_blocks + blocks <= kv.total_blocks:
                kv.used_blocks += blocks
                self._begin_iteration(now_s, [] if partial is None else [(partial, tokens)])
                return True
            self._preempt(next(reversed(running)), 0, 0)
        return self._schedule(now_s)

    def _next_of(self, request: R, budget_tokens: int, most_tokens: int) -> tuple[int, int]:
        """Return the tokens and new blocks of a running request in the iteration being planned."""
        if request.state == PREFILL:
            tokens = min(request.target_tokens - request.computed_tokens, budget_tokens, most_tokens or budget_tokens)
            return tokens, self._chunk_blocks(request, tokens)
        tokens = gained = 1
        if request.state == ENDED:
            (computed_tokens,) = (tokens for other, _, tokens in self._lingering if other is request)
        else:
            computed_tokens = request.target_tokens + self.clock - request.base_clock
        if self._speculation is not None and request.state != ENDED:
            tokens += self._speculation.tokens
            gained = self._speculation.gained(self._iteration, 1)
        block_tokens = self._block_tokens
        return tokens, blocks_of(computed_tokens + gained, block_tokens) - blocks_of(computed_tokens, block_tokens)
