"""The books of one replica's batch: who runs, what each has computed, which blocks that takes, and when each ends.

What makes a replica fast is here: as long as nobody joins or leaves, every iteration decodes the same batch, so ends
are times of one clock in a heap, and the blocks that growing contexts take are counted by 16 counters (context length
modulo block size). Joining and leaving cost the same whatever a request's length or the batch's size.

The clock counts the tokens of a sequence that decoded all along: one an iteration, or as many as
`sim.engine.speculation` says.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final, TypeVar

from policies.native import mypyc_attr
from sim.cluster.discipline import DISCIPLINES
from sim.cluster.engine_inbox import EngineInbox
from sim.cluster.engine_request import DECODE, ENDED, NEVER_S, PREFILL, WAITING, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.kv_cache import KvCache, blocks_of
from sim.cluster.prefix_cache import PrefixCache
from sim.cluster.uneven_contexts import uneven_contexts

R = TypeVar("R", bound=EngineRequest)
TICKET_BITS: Final = 32
TICKETS: Final = (1 << TICKET_BITS) - 1
"""An end is one number, the clock above and the ticket below: pairs of numbers take four times as long to compare."""
# As in `sim.cluster.agenda`.
_heappop: Final = heappop
_heappush: Final = heappush


@mypyc_attr(allow_interpreted_subclasses=True)
class Batch(EngineInbox[R]):
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
        "_deferred",
        "_discipline",
        "_ending",
        "_ends",
        "_even",
        "_iteration",
        "_leaving",
        "_lingering",
        "_overrunning",
        "_partial",
        "_paused",
        "_places",
        "_run",
        "_running",
        "_speculation",
        "_ticket",
        "_uneven",
        "_unknown",
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
        # Whether the blocks of who leaves stay taken until `_let_go`, and places in the order of admission are kept.
        self._deferred = self._async or self._cache is not None
        self._speculation = settings.speculation
        self.clock = 0
        self._iteration = 0
        self.waiting_count = 0
        self.preemptions = 0
        self._ticket = 0
        self._places = 0
        self._uneven = uneven_contexts(settings.step_time)
        self._clear()
        # Whether decodes read their contexts and no more: asked before `_reads`, which costs a call.
        self._even = self._uneven is None and settings.speculation is None

    def _clear(self) -> None:
        """Start with nobody inside."""
        self._waiting = self._discipline.queue()
        self._running: dict[R, None] = {}
        self._partial: R | None = None
        self._ends: list[int] = []
        self._ending: dict[int, R] = {}
        if self._uneven is not None:
            self._uneven.clear()
        self._decoding = 0
        self._context_tokens = 0
        # The iteration, or run of iterations, now under way.
        self._busy = False
        self._run = 0
        self._chunks: list[tuple[R, int]] | None = None
        self._paused: list[R] = []
        # Who leaves, with its blocks and computed tokens, until these are let go.
        self._leaving: list[tuple[R, int, int]] = []
        # The same of those that ended: with async scheduling they hold slots and blocks until the next plan is made.
        self._lingering: list[tuple[R, int, int]] = []
        # Those of them that go on for an iteration, because nobody foresaw their end.
        self._overrunning: list[R] = []
        # Whether a plan is being made, or aborts read, while nobody knows the tokens of the iteration under way.
        self._unknown = self._async

    @property
    def iterations(self) -> int:
        """Iterations so far."""
        return self.clock if self._speculation is None else self._iteration

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """The cache of prefixes; None where none are kept."""
        return self._cache

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

        Where letting go is deferred, the blocks stay taken until `_let_go`.
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
        del self._ending[request.ticket]
        if self._uneven is not None:
            self._uneven.remove(phase)
        if self._deferred:
            self._free(request, computed_tokens)
        else:
            self.kv.used_blocks += -computed_tokens // self._block_tokens  # less its blocks, rounded up
        return request.outputs + self.clock - request.base_clock

    def _free(self, request: R, computed_tokens: int) -> None:
        blocks = blocks_of(computed_tokens, self._block_tokens)
        if self._deferred:
            self._leaving.append((request, blocks, computed_tokens))
        else:
            self.kv.used_blocks -= blocks

    def _let_go(self, *, comes_back: bool = False) -> None:
        """Free the blocks of those who leave, in order of admission."""
        kv, cache = self.kv, self._cache
        if len(self._leaving) > 1:
            self._leaving.sort(key=_place)
        for request, blocks, computed_tokens in self._leaving:
            if cache is None:
                kv.used_blocks -= blocks
            else:
                cache.sync(kv.total_blocks - kv.used_blocks)
                kv.used_blocks -= cache.let_go(request, blocks, computed_tokens, comes_back=comes_back)
        self._leaving.clear()

    def _give_up(self, request: R, *, more_blocks: int = 0, more_tokens: int = 0, comes_back: bool = False) -> None:
        """Free the blocks of one who leaves before its time, with those and the tokens of an iteration planned already.

        With async scheduling the token of the iteration under way is not known yet, so neither is its block's content.
        """
        if not self._deferred:
            self.kv.used_blocks -= more_blocks
            return
        ((_, blocks, tokens),) = self._leaving
        if self._unknown and request.state != PREFILL:
            tokens = max(request.target_tokens, tokens - 1)
        self._leaving[0] = (request, blocks + more_blocks, tokens + more_tokens)
        self._let_go(comes_back=comes_back)

    def _reads(self, decoding: int) -> float:
        """Return the KV entries that the decodes of an iteration read."""
        context_tokens = float(self._context_tokens + decoding)
        if self._speculation is not None:
            # With the part of a token that each has beyond its whole ones, so that contexts grow evenly.
            context_tokens += decoding * self._speculation.pending(self._iteration)
        if self._uneven is not None and decoding:
            context_tokens += self._uneven.more_tokens(self.clock, self._context_tokens)
        return context_tokens

    def _decode_from_here(self, request: R) -> None:
        """Enter a request into the decoding batch with ``target_tokens`` computed and ``outputs`` made."""
        clock = self.clock
        target_tokens = request.target_tokens
        request.state = DECODE
        request.base_clock = clock
        request.ticket = ticket = self._ticket
        self._ticket = ticket + 1
        self._decoding += 1
        self._context_tokens += target_tokens
        self.kv.growing[(clock - target_tokens) % self._block_tokens] += 1
        if self._uneven is not None:
            self._uneven.add(clock - target_tokens)
        self._ending[ticket] = request
        _heappush(self._ends, (clock + request.output_tokens - request.outputs << TICKET_BITS) + ticket)

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
        self._context_tokens += self._decoding * gained
        self.clock = clock = self.clock + gained
        ends, ending = self._ends, self._ending
        while ends and ends[0] >> TICKET_BITS <= clock:
            request = ending.get(_heappop(ends) & TICKETS)
            if request is not None:  # else it left before
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
        if self._leaving:
            if self._async:
                self._overrunning = [request for request, _, _ in self._leaving if request.stops]
            self._lingering += self._leaving
            self._leaving = []
        if self._paused:
            for request in self._paused:
                self._decode_from_here(request)
            self._paused.clear()
        return emitted

    def _release(self) -> None:
        """Free what lingers, now that the iteration it was not free for is planned."""
        self._leaving, self._lingering = self._lingering, []
        self._overrunning = []
        self._let_go()

    def _release_those(self, entries: list[tuple[R, int, int]]) -> None:
        """Free those of some entries that still linger."""
        self._leaving = [entry for entry in self._lingering if entry in entries]
        self._lingering = [entry for entry in self._lingering if entry not in entries]
        self._let_go()

    def _release_one(self, request: R, *, more_blocks: int = 0, more_tokens: int = 0) -> None:
        """Free what one that ended still holds, if it does, before its end is known."""
        for entry in self._lingering:
            if entry[0] is request:
                self._lingering.remove(entry)
                if request in self._overrunning:
                    self._overrunning.remove(request)
                self._leaving.append(entry)
                self._give_up(request, more_blocks=more_blocks, more_tokens=more_tokens)
                return

    def _forget_cached(self) -> None:
        if self._cache is not None:
            self._cache.clear(self.kv.total_blocks - self.kv.used_blocks)

    def _drop(self, request: R) -> None:
        if request.state == WAITING:
            self.waiting_count -= 1  # the queue skips it when it comes to the front
        elif request.state == ENDED:
            if self._lingering:
                self._release_one(request)
            return
        else:
            request.outputs = self._leave(request)
            self._give_up(request)
        request.state = ENDED

    def _preempt(self, request: R, blocks: int, tokens: int) -> None:
        """Take a running request's blocks, and send it back to the queue.

        ``blocks`` and ``tokens`` are those of the iteration now being planned, if it was in that already.
        """
        if request.state == ENDED:  # its last token is not known yet, so vLLM takes it for one that runs
            self._release_one(request, more_blocks=blocks, more_tokens=tokens)
            request.preemptions += 1
            self.preemptions += 1
            return
        if request.state == DECODE and tokens:
            tokens = 1  # of those that it computes, drafts are not kept
        request.outputs = self._leave(request)
        self._give_up(request, more_blocks=blocks, more_tokens=tokens, comes_back=True)
        request.target_tokens = request.prompt_tokens + request.outputs
        request.computed_tokens = 0
        request.state = WAITING
        request.preemptions += 1
        self.preemptions += 1
        self.waiting_count += 1
        self._waiting.push_front(request)

    def _take_place(self, request: R) -> None:
        """Put a request last in the order of admission."""
        request.place = self._places
        self._places += 1

    def _pause(self, request: R) -> None:
        """Leave a running request out of one iteration; it keeps its blocks and its place in the order."""
        self._take_place(request)
        if request.state == PREFILL:
            self._running[request] = self._running.pop(request)
            return
        computed_tokens = request.target_tokens + self.clock - request.base_clock
        request.outputs = self._leave(request)
        request.target_tokens = computed_tokens
        request.base_clock = self.clock
        request.ticket = -1
        self._running[request] = None
        if not self._deferred:
            self.kv.used_blocks += blocks_of(computed_tokens, self._block_tokens)
        self._leaving.clear()
        self._paused.append(request)


def _place(leaving: tuple[EngineRequest, int, int]) -> int:
    return leaving[0].place
