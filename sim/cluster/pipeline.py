"""An engine of several pipeline stages: as many batches under way as stages, as vLLM V1's batch queue has them.

vLLM 0.32.0, ``v1/engine/core.py: step_with_batch_queue``: while fewer batches are under way than there are stages, the
next is planned at once, without the tokens of those before it; else the engine waits for the oldest. A request whose
token is under way has nothing to compute and is left out, while a prompt's next chunk may follow the one before it. So
requests that are planned together stay together: only prompts longer than ``max_num_batched_tokens``, and arrivals
while the queue is not full, fill the other stages. An empty plan takes a place in the queue as well: then whoever comes
waits until the oldest batch has ended.

Who is preempted while its token is under way still gets that token, and is not planned again before. Plans are made
request by request, so such an engine costs more to simulate than `sim.cluster.replica.Replica`, which it equals where
there is one stage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, TypeVar

from sim.cluster.discipline import DISCIPLINES
from sim.cluster.engine_inbox import ABORT, KV_BLOCKS, SLOTS, SUBMIT, EngineInbox
from sim.cluster.engine_request import DECODE, ENDED, NEVER_S, PREFILL, WAITING, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.kv_cache import blocks_of
from sim.cluster.replica import TIE_S, Listener
from sim.cluster.uneven_contexts import uneven_contexts
from sim.engine.pipeline import Stages

R = TypeVar("R", bound=EngineRequest)


@dataclass(slots=True)
class Row(Generic[R]):
    """What a batch computes of a request; ``life`` counts the preemptions before it, ``samples`` says a token comes."""

    request: R
    tokens: int
    samples: bool
    life: int


@dataclass(slots=True)
class PlannedBatch(Generic[R]):
    """A batch under way, and when it leaves the last stage."""

    rows: list[Row[R]]
    ends_s: float


class PipelinedReplica(EngineInbox[R]):
    """Speaks as `sim.cluster.replica.Replica` does; without async scheduling, cached prefixes and speculation.

    ``EngineRequest.computed_tokens`` counts what is planned, ``target_tokens`` the prompt and the outputs known so far.
    """

    def __init__(
        self, settings: EngineSettings, stages: Stages, *, listener: Listener[R], arm: Callable[[float], None]
    ) -> None:
        self._settings = settings
        self._stages = stages
        self._listener = listener
        self._arm = arm
        self._discipline = DISCIPLINES[settings.scheduling]
        self._block_tokens = settings.block_tokens
        self.max_num_seqs = settings.max_num_seqs
        self.kv_total_blocks = settings.kv_blocks
        self.slowdown = 1.0
        self.iterations = 0
        self.preemptions = 0
        self.wake_s = NEVER_S
        self._order = count()
        self._clear()

    def _clear(self) -> None:
        self._waiting = self._discipline.queue()
        self._inbox = []
        self._running: list[R] = []
        self._batches: deque[PlannedBatch[R]] = deque()
        self._under_way: dict[R, int] = {}  # batches under way that a request is in
        self._free_s = [0.0] * self._stages.count
        self._used_blocks = 0
        self.waiting_count = 0

    # ---------------------------------------------------------------------------------------------------------- ask

    @property
    def running_count(self) -> int:
        """How many requests hold a slot."""
        return len(self._running)

    def kv_used_blocks_at(self, _: float) -> int:
        """Return the blocks in use, those of the batches under way included."""
        return self._used_blocks

    def outputs_at(self, request: R, _: float) -> int:
        """Return how many output tokens the request has."""
        return request.outputs

    def iteration_end_s(self, _: float) -> float:
        """Return when the oldest batch under way ends; infinity where there is none."""
        return self.wake_s

    # --------------------------------------------------------------------------------------------------------- tell

    def submit(self, request: R, now_s: float) -> None:
        """Hand over a request; see `Replica.submit`."""
        request.submitted_s = now_s
        request.order = next(self._order)
        self.waiting_count += 1
        self._message(now_s, SUBMIT, request)

    def fail(self, _: float) -> list[R]:
        """Crash; see `Replica.fail`."""
        inbox = [arg for _, kind, arg in self._inbox if kind == SUBMIT]
        lost = [r for r in [*self._running, *self._waiting, *inbox] if r.state != ENDED and not r.aborted]
        for request in lost:
            request.state = ENDED
        self._apply_settings()
        self._clear()
        self._wake(NEVER_S)
        return lost

    def _message(self, now_s: float, kind: int, arg: Any) -> None:
        self._inbox.append((now_s, kind, arg))
        if not self._batches and self.wake_s == NEVER_S:
            self._wake(now_s)

    # ----------------------------------------------------------------------------------------------------- boundary

    def boundary(self, now_s: float) -> None:
        """End the oldest batch, read the inbox, plan what is next. To be called at ``wake_s``."""
        self.wake_s = NEVER_S
        emitted: list[R] = []
        if self._batches:
            self._carry_out_aborts(now_s - TIE_S)
            self._take_in(self._batches.popleft(), emitted)
            self.iterations += 1
        while True:
            self._read_inbox(now_s - TIE_S)
            self._fill(now_s)
            if any(batch.rows for batch in self._batches):
                if self._batches[0].rows:
                    self._wake(self._batches[0].ends_s)
                    break
                self._batches.popleft()
                continue
            self._batches.clear()  # nobody can be planned before something happens
            if not self._inbox:
                break
            if self._inbox[0][0] > now_s:  # on its way: see `Replica.submit`
                self._wake(self._inbox[0][0])
                break
            # An idle engine starts with whatever came first, and what came at that very instant.
            self._read_inbox(self._inbox[0][0], inclusive=True)
            self._fill(now_s)
        self._tell(emitted, now_s)

    def _fill(self, now_s: float) -> None:
        """Plan batches until the queue is full, or nobody is there."""
        batches = self._batches
        while len(batches) < self._stages.count and (self._running or self._waiting.head() is not None):
            # Where all were preempted, the next plan lets in whoever fits now.
            while self._plan(now_s) and not any(batch.rows for batch in batches):
                batches.pop()

    def _tell(self, emitted: list[R], now_s: float) -> None:
        for request in emitted:
            if request.outputs == 1:
                self._listener.on_first_token(request, now_s)
            if request.state == ENDED:
                self._listener.on_finish(request, now_s)

    def _take_in(self, batch: PlannedBatch[R], emitted: list[R]) -> None:
        """Account for a batch that ended; adds who got a first or a last token."""
        for row in batch.rows:
            request = row.request
            self._under_way[request] -= 1
            if not self._under_way[request]:
                del self._under_way[request]
            if request.state == ENDED or not row.samples:
                continue
            request.outputs += 1
            request.target_tokens += 1
            ended = request.outputs >= request.output_tokens
            if ended:
                self._end(request)
            elif row.life == request.preemptions:
                request.state = DECODE
            if (ended or request.outputs == 1) and not request.aborted:
                emitted.append(request)

    def _end(self, request: R) -> None:
        """Take off a request that is over, wherever it is."""
        if request.state == WAITING:
            self.waiting_count -= 1  # the queue skips it when it comes to the front
        else:
            self._running.remove(request)
            self._used_blocks -= blocks_of(request.computed_tokens, self._block_tokens)
        request.state = ENDED

    def _carry_out_aborts(self, until_s: float) -> None:
        """Carry out aborts before the tokens that came with them are taken in, as vLLM does."""
        unread = {arg for _, kind, arg in self._inbox if kind == SUBMIT}
        for at_s, kind, arg in self._inbox:
            if at_s < until_s and kind == ABORT and arg not in unread and arg.state != ENDED:
                self._end(arg)

    def _apply(self, kind: int, arg: Any) -> None:
        if kind == ABORT:
            if arg.state != ENDED:
                self._end(arg)
        elif kind == SLOTS:
            self.max_num_seqs = arg
        elif kind == KV_BLOCKS:
            self.kv_total_blocks = arg
        else:
            self.slowdown = arg

    # ----------------------------------------------------------------------------------------------------- planning

    def _plan(self, now_s: float) -> bool:
        """Plan a batch, which may be empty, and send it on its way; returns whether anybody was preempted."""
        most_tokens = self._most_tokens()
        budget_tokens = self._settings.max_num_batched_tokens
        taken: dict[R, int] = {}
        budget_tokens, preempted = self._plan_running(taken, budget_tokens, most_tokens)
        if not preempted:
            self._admit(taken, budget_tokens, most_tokens)
        lasts_s = self._iteration_s(taken) * self.slowdown if taken else 0.0
        rows = []
        for request, tokens in taken.items():
            self._under_way[request] = self._under_way.get(request, 0) + 1
            samples = request.computed_tokens == request.target_tokens
            rows.append(Row(request, tokens, samples, request.preemptions))
        ends_s = now_s
        if rows:
            ends_s = self._stages.leaves_s(now_s, lasts_s, self._free_s)
        self._batches.append(PlannedBatch(rows, ends_s))
        return preempted

    def _plan_running(self, taken: dict[R, int], budget_tokens: int, most_tokens: int) -> tuple[int, bool]:
        """Plan those that run, in order of admission; returns the tokens left and whether anybody was preempted."""
        running = self._running
        preempted = False
        i = 0
        while i < len(running) and budget_tokens > 0:
            request = running[i]
            tokens = min(request.target_tokens - request.computed_tokens, budget_tokens, most_tokens or budget_tokens)
            if not tokens:
                i += 1  # its token is under way
                continue
            blocks = self._more_blocks(request, tokens)
            while self._used_blocks + blocks > self.kv_total_blocks:
                at = self._discipline.victim(running)
                victim = running.pop(at)
                i -= at < i
                budget_tokens += taken.pop(victim, 0)
                self._preempt(victim)
                preempted = True
                if victim is request:
                    return budget_tokens, preempted  # vLLM schedules nobody after it in this iteration
            self._take(taken, request, tokens, blocks)
            budget_tokens -= tokens
            i += 1
        return budget_tokens, preempted

    def _admit(self, taken: dict[R, int], budget_tokens: int, most_tokens: int) -> None:
        """Let waiting requests in as far as slots, tokens and blocks go; see `Scheduler`."""
        skipped = []
        while budget_tokens > 0 and len(self._running) < self.max_num_seqs:
            request = self._waiting.head()
            if request is None:
                break
            if request in self._under_way:  # it was preempted, and a token of it is still to come
                self._waiting.pop()
                skipped.append(request)
                continue
            tokens = min(request.target_tokens, budget_tokens, most_tokens or budget_tokens)
            blocks = blocks_of(tokens, self._block_tokens)
            needed = blocks_of(request.target_tokens, self._block_tokens)
            if not self._settings.scheduler_reserve_full_isl and needed <= self.kv_total_blocks:
                needed = blocks
            if self._settings.watermark and self._running:
                needed += int(self._settings.watermark * (self.kv_total_blocks + 1))
            if self._used_blocks + needed > self.kv_total_blocks:
                break
            self._waiting.pop()
            self.waiting_count -= 1
            request.state = PREFILL
            request.computed_tokens = 0
            self._running.append(request)
            self._take(taken, request, tokens, blocks)
            budget_tokens -= tokens
        for request in reversed(skipped):
            self._waiting.push_front(request)

    def _take(self, taken: dict[R, int], request: R, tokens: int, blocks: int) -> None:
        taken[request] = tokens
        request.computed_tokens += tokens
        self._used_blocks += blocks

    def _more_blocks(self, request: R, tokens: int) -> int:
        computed_tokens = request.computed_tokens
        return blocks_of(computed_tokens + tokens, self._block_tokens) - blocks_of(computed_tokens, self._block_tokens)

    def _most_tokens(self) -> int:
        """Return how many tokens of one prompt an iteration takes, 0 for all; see `Scheduler`."""
        threshold = self._settings.long_prefill_token_threshold
        if not threshold:
            return 0
        unread = sum(1 for _, kind, arg in self._inbox if kind == SUBMIT and arg.state == WAITING)
        present = len(self._running) + self.waiting_count - unread
        if present <= 1:
            return 0
        if self._settings.long_prefill_token_threshold_adaptive:
            return max(threshold, self._settings.max_num_batched_tokens // present)
        return threshold

    def _preempt(self, request: R) -> None:
        """Free the blocks of one that was taken off the running, and send it back to the queue."""
        self._used_blocks -= blocks_of(request.computed_tokens, self._block_tokens)
        request.computed_tokens = 0
        request.state = WAITING
        request.preemptions += 1
        self.preemptions += 1
        self.waiting_count += 1
        self._waiting.push_front(request)

    def _iteration_s(self, taken: dict[R, int]) -> float:
        """Return how long the batch takes on all layers."""
        prefill_tokens = decoding = context_tokens = 0
        pairs = 0.0
        uneven = uneven_contexts(self._settings.step_time)
        for request, tokens in taken.items():
            computed_tokens = request.computed_tokens
            if request.state == DECODE:
                decoding += 1
                context_tokens += computed_tokens
                if uneven is not None:
                    uneven.add(-computed_tokens)
            else:
                prefill_tokens += tokens
                pairs += tokens * (computed_tokens - tokens + (tokens + 1) / 2)
        reads = float(context_tokens) if uneven is None else context_tokens + uneven.more_tokens(0, context_tokens)
        return self._settings.step_time.iteration_s(prefill_tokens, pairs, decoding, reads)
