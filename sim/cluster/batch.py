"""The books of one replica's batch: who runs, what each has computed, which blocks that takes, and when each ends.

What makes a replica fast is here: as long as nobody joins or leaves, every iteration decodes the same batch, so ends
are times of one clock in a heap, and the blocks that growing contexts take are counted by 16 counters (context length
modulo block size). Joining and leaving cost the same whatever a request's length or the batch's size.

The clock counts the tokens of a sequence that decoded all along: one an iteration, or as many as
`sim.engine.speculation` says.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

from sim.cluster.discipline import DISCIPLINES
from sim.cluster.engine_request import DECODE, ENDED, NEVER_S, PREFILL, WAITING, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.kv_cache import KvCache, blocks_of
from sim.cluster.prefix_cache import PrefixCache

LONG_DEVIATIONS = 2.0
"""How many standard deviations the longest contexts of a batch lie above its mean: the longest sixteenth of a normal
law does so by 1.97. A sixteenth is the least share of long contexts for which the profiler of LLMServingSim measures
what they cost."""

R = TypeVar("R", bound=EngineRequest)


class Batch(Generic[R]):
    """The requests that hold a slot, and those that wait for one.

    The layers above, `sim.cluster.scheduler.Scheduler` and `sim.cluster.replica.Replica`, decide who joins and when an
    iteration ends; they inherit these books, because a replica is asked for them several times an event.
    """

    # More than 30 attributes in a dict are slower to read (CPython's limit for shared keys).
    __slots__ = (
        "_async",
        "_block_tokens",
        "_busy",
        "_cache",
        "_chunks",
        "_context_tokens",
        "_decoding",
        "_discipline",
        "_ends",
        "_even",
        "_iteration",
        "_leaving",
        "_lingering",
        "_lingering_blocks",
        "_lingering_slots",
        "_partial",
        "_paused",
        "_places",
        "_run",
        "_running",
        "_skew",
        "_speculation",
        "_squares",
        "_ticket",
        "_waiting",
        "clock",
        "kv",
        "max_num_seqs",
        "preemptions",
        "waiting_count",
    )

    def __init__(self, settings: EngineSettings) -> None:
        self._discipline = DISCIPLINES[settings.scheduling]
        self._block_tokens = settings.block_tokens
        self.max_num_seqs = settings.max_num_seqs
        self.kv = KvCache(settings.kv_blocks, settings.block_tokens)
        self._async = settings.async_scheduling
        self._cache = PrefixCache(settings.kv_blocks, settings.block_tokens) if settings.prefix_caching else None
        self._speculation = settings.speculation
        self.clock = 0
        self._iteration = 0
        self.waiting_count = 0
        self.preemptions = 0
        self._ticket = count()
        self._places = count()
        self._skew: float = getattr(settings.step_time, "skew", 0.0)
        # Whether decodes read their contexts and no more: asked before `_reads`, which costs a call.
        self._even = not self._skew and settings.speculation is None
        self._clear()

    def _clear(self) -> None:
        """Start with nobody inside."""
        self._waiting = self._discipline.queue()
        self._running: dict[R, None] = {}
        self._partial: R | None = None
        self._ends: list[tuple[int, int, R]] = []
        self._squares = 0  # of how far the clock is ahead of each that decodes, where uneven contexts matter
        self._decoding = 0
        self._context_tokens = 0
        # The iteration, or run of iterations, now under way.
        self._busy = False
        self._run = 0
        self._chunks: list[tuple[R, int]] | None = None
        self._paused: list[R] = []
        # With async scheduling: what requests that ended still hold until the next plan is made.
        self._lingering_slots = 0
        self._lingering_blocks = 0
        # Where prefixes are cached: who leaves, with its blocks and computed tokens, until these are let go.
        self._leaving: list[tuple[R, int, int]] = []
        self._lingering: list[tuple[R, int, int]] = []

    @property
    def iterations(self) -> int:
        """Iterations so far."""
        return self.clock if self._speculation is None else self._iteration

    @property
    def running_count(self) -> int:
        """How many requests hold a slot."""
        return len(self._running)

    @property
    def prompt_under_way_tokens(self) -> int:
        """How many tokens are computed of the prompt that is not yet complete."""
        return 0 if self._partial is None else self._partial.computed_tokens

    def token_due_s(self, tpot_slo_s: float) -> float:
        """Return when the next token of the most pressed decoding request is due; infinity where none has an objective.

        A request's tokens are due every ``tpot_slo_s`` from ``EngineRequest.due_s`` on.
        """
        clock = self.clock
        return min(
            (r.due_s + tpot_slo_s * (r.outputs + clock - r.base_clock) for r in self._running if r.state == DECODE),
            default=NEVER_S,
        )

    def _leave(self, request: R) -> int:
        """Take a running request off the batch and free its blocks; returns its output tokens.

        Where prefixes are cached, the blocks stay taken until `_let_go`.
        """
        del self._running[request]
        if request.state == PREFILL:
            if self._partial is request:
                self._partial = None
            self._free(request, request.computed_tokens)
            return request.outputs
        phase = request.base_clock - request.target_tokens
        computed_tokens = self.clock - phase
        self._decoding -= 1
        self._context_tokens -= computed_tokens
        self.kv.growing[phase % self._block_tokens] -= 1
        if self._skew:
            self._squares -= phase * phase
        if self._cache is None:
            self.kv.used_blocks += -computed_tokens // self._block_tokens  # less its blocks, rounded up
        else:
            self._free(request, computed_tokens)
        return request.outputs + self.clock - request.base_clock

    def _free(self, request: R, computed_tokens: int) -> None:
        blocks = blocks_of(computed_tokens, self._block_tokens)
        if self._cache is None:
            self.kv.used_blocks -= blocks
        else:
            self._leaving.append((request, blocks, computed_tokens))

    def _let_go(self, *, more_blocks: int = 0, comes_back: bool = False) -> None:
        """Hand the blocks of those who leave, and ``more_blocks`` of theirs, to the cache, in order of admission."""
        kv, cache = self.kv, self._cache
        assert cache is not None
        if len(self._leaving) > 1:
            self._leaving.sort(key=_place)
        for request, blocks, computed_tokens in self._leaving:
            cache.sync(kv.total_blocks - kv.used_blocks)
            kv.used_blocks -= cache.let_go(request, blocks + more_blocks, computed_tokens, comes_back=comes_back)
        self._leaving.clear()

    def _reads(self, decoding: int) -> float:
        """Return the KV entries that the decodes of an iteration read."""
        context_tokens: float = self._context_tokens + decoding
        if self._speculation is not None:
            # With the part of a token that each has beyond its whole ones, so that contexts grow evenly.
            context_tokens += decoding * self._speculation.pending(self._iteration)
        if self._skew and decoding:
            # A batch of uneven contexts takes longer than an even one: as if all were somewhat nearer to the longest.
            ahead = decoding * self.clock - self._context_tokens
            spread = math.sqrt(max(0, decoding * self._squares - ahead * ahead))  # sequences times the deviation
            context_tokens += self._skew * LONG_DEVIATIONS * spread
        return context_tokens

    def _decode_from_here(self, request: R) -> None:
        """Enter a request into the decoding batch with ``target_tokens`` computed and ``outputs`` made."""
        clock = self.clock
        target_tokens = request.target_tokens
        request.state = DECODE
        request.base_clock = clock
        request.ticket = ticket = next(self._ticket)
        self._decoding += 1
        self._context_tokens += target_tokens
        self.kv.growing[(clock - target_tokens) % self._block_tokens] += 1
        if self._skew:
            self._squares += (clock - target_tokens) ** 2
        heappush(self._ends, (clock + request.output_tokens - request.outputs, ticket, request))

    def _complete(self) -> list[R]:
        """Account for the iterations that end now; returns who got a first or a last token, and was not aborted."""
        emitted = []
        self._busy = False
        gained = self._run
        if self._speculation is not None:
            gained = self._speculation.gained(self._iteration, gained)
            self._iteration += self._run
        chunks = self._chunks
        kv = self.kv
        if chunks is None:
            kv.used_blocks += kv.growth(self.clock, gained)
        used_blocks, slots = kv.used_blocks, len(self._running)
        self._context_tokens += self._decoding * gained
        self.clock = clock = self.clock + gained
        ends = self._ends
        while ends and ends[0][0] <= clock:
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
            self._lingering = self._leaving
            self._leaving = []
        elif self._leaving:
            self._let_go()
        if self._paused:
            for request in self._paused:
                self._decode_from_here(request)
            self._paused.clear()
        return emitted

    def _release(self) -> None:
        """Free what lingers, now that the iteration it was not free for is planned."""
        self.kv.used_blocks -= self._lingering_blocks
        self._lingering_slots = self._lingering_blocks = 0
        if self._lingering:
            self._leaving, self._lingering = self._lingering, []
            self._let_go()

    def _forget_cached(self) -> None:
        if self._cache is not None:
            self._cache.clear(self.kv.total_blocks - self.kv.used_blocks)

    def _drop(self, request: R) -> None:
        if request.state == WAITING:
            self.waiting_count -= 1  # the queue skips it when it comes to the front
        elif request.state == ENDED:
            return
        else:
            request.outputs = self._leave(request)
            if self._leaving:
                self._let_go()
        request.state = ENDED

    def _preempt(self, request: R, blocks_of_this_iteration: int) -> None:
        request.outputs = self._leave(request)
        if self._cache is None:
            self.kv.used_blocks -= blocks_of_this_iteration
        else:
            self._let_go(more_blocks=blocks_of_this_iteration, comes_back=True)
        request.target_tokens = request.prompt_tokens + request.outputs
        request.computed_tokens = 0
        request.state = WAITING
        request.preemptions += 1
        self.preemptions += 1
        self.waiting_count += 1
        self._waiting.push_front(request)

    def _pause(self, request: R) -> None:
        """Leave a running request out of one iteration; it keeps its blocks and its place in the order."""
        request.place = next(self._places)
        if request.state == PREFILL:
            self._running[request] = self._running.pop(request)
            return
        computed_tokens = request.target_tokens + self.clock - request.base_clock
        request.outputs = self._leave(request)
        request.target_tokens = computed_tokens
        request.base_clock = self.clock
        request.ticket = -1
        self._running[request] = None
        if self._cache is None:
            self.kv.used_blocks += blocks_of(computed_tokens, self._block_tokens)
        self._leaving.clear()
        self._paused.append(request)


def _place(leaving: tuple[EngineRequest, int, int]) -> int:
    return leaving[0].place
