"""The step-by-step replica: vLLM's loop written plainly, one iteration at a time, one request at a time.

Slow on purpose. It shares no code with the replica it checks but the step time and the request's attributes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from sim.cluster.engine_settings import EngineSettings

TIE_S = 1e-9


@dataclass(eq=False)
class Block:
    holders: int = 0
    name: Any = None


@dataclass(eq=False)
class Job:
    prefilled = 0
    order = 0
    aborted = False
    stops = False

    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    tag: Any = None
    arrival_s: float = 0.0
    computed: int = 0
    outputs: int = 0
    preemptions: int = 0
    gone: bool = False
    prefix: Any = None
    cached_tokens: int = -1
    held: list[Block] = field(default_factory=list)
    named: int = 0  # of the held blocks
    forgotten: bool = False
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.prompt_tokens  # prompt and output so far


class ReferenceReplica:
    def __init__(self, settings: EngineSettings, *, listener: Any, arm: Callable[[float], None]) -> None:
        self.step, self.listener, self.arm = settings.step_time, listener, arm
        self.slots, self.max_tokens = settings.max_num_seqs, settings.max_num_batched_tokens
        self.total, self.block = settings.kv_blocks, settings.block_tokens
        self.priority, self.shortest = settings.scheduling == "priority", settings.scheduling == "shortest-first"
        self.inbox: list[tuple[float, str, Any]] = []
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.scheduled: dict[Job, int] = {}
        self.busy = False
        self.slowdown = 1.0
        self.submitted = 0
        self.wake_s = float("inf")
        self.log: list[tuple[float, int, int, int]] = []
        self.pipelined, self.caching = settings.async_scheduling, settings.prefix_caching
        self.long, self.shares = settings.long_prefill_token_threshold, settings.long_prefill_token_threshold_adaptive
        self.reserves, self.watermark = settings.scheduler_reserve_full_isl, settings.watermark
        self.started_s = 0.0
        self.launch = getattr(settings.step_time, "launching", None)
        self.plan_s = self.launched_s = -math.inf
        self.untold: list[tuple[Job, bool]] = []
        self.ends_s = math.inf
        self.drafts = 0
        self.gain = Fraction(1)
        speculation = settings.speculation
        if speculation is not None:
            self.drafts = speculation.tokens
            self.gain = Fraction(sum(speculation.acceptance**i for i in range(self.drafts + 1)))
            self.gain = self.gain.limit_denominator(1_000_000)
        self.iteration = 0
        self.decoding: set[Job] = set()
        self.ending: list[Job] = []  # pipelined: among the running, and computed to their ends
        self.held: list[Job] = []  # of these, let go after the aborts that came with their ends
        self.unheard: set[Job] = set()  # of the held, those whose last token an abort comes before: it names no block
        self._wipe()

    # blocks, one by one: the queue of free ones, and which hold what
    def _wipe(self) -> None:
        """All content is forgotten."""
        in_use = {b: None for j in [*self.running, *self.held] for b in j.held}
        for block in in_use:
            block.name = None
        for job in [*self.running, *self.held]:
            job.forgotten = job.prefix is not None or job.preemptions > 0
        self.used = len(in_use)
        self.free = [Block() for _ in range(self.total - self.used)]
        self.missing = max(0, self.used - self.total)
        self.table: dict[Any, list[Block]] = {}

    def _name_of(self, job: Job, i: int) -> Any:
        for line, end in job.prefix or ():
            if (i + 1) * self.block <= end:
                return line, i
        return job, i

    def _unname(self, block: Block) -> None:
        if block.name is not None:
            self.table[block.name].remove(block)
            block.name = None

    def _name(self, job: Job, tokens: int) -> None:
        """Enter the full blocks among the first ``tokens`` into the table."""
        while self.caching and not job.forgotten and job.named < tokens // self.block:
            block = job.held[job.named]
            block.name = self._name_of(job, job.named)
            self.table.setdefault(block.name, []).append(block)
            job.named += 1

    def _give(self, job: Job, *, ended: bool = False, comes_back: bool = False, planned: int = 0) -> None:
        """Free a job's blocks: full ones to the back of the queue, the last first; others to its front.

        ``planned`` tokens are computed in the iteration that is being planned.
        """
        if not job.held:
            return
        tokens = job.computed
        if self.pipelined and not ended and (job in self.decoding or job in self.unheard):
            tokens -= 1  # nobody knows yet what the iteration under way makes
        tokens += planned
        looks = job.prefix is not None or job.preemptions or comes_back
        if looks:
            self._name(job, tokens)
        for i, block in reversed(list(enumerate(job.held))):
            block.holders -= 1
            if block.holders:
                continue
            self.used -= 1
            if self.missing:  # the cache has shrunk below what was in use
                self.missing -= 1
                self._unname(block)
            elif block.name is not None or (not looks and i < tokens // self.block):
                self.free.append(block)
            else:
                self.free.insert(0, block)
        job.held = []
        job.named = 0
        job.forgotten = False

    def _take(self, job: Job, blocks: int) -> None:
        while len(job.held) < blocks:
            block = self.free.pop(0)
            self._unname(block)
            block.holders = 1
            self.used += 1
            job.held.append(block)

    def _find(self, job: Job) -> list[Block]:
        """Return the leading blocks that are there; the last token is left to compute."""
        found: list[Block] = []
        while self.caching and (len(found) + 1) * self.block < job.tokens:
            there = self.table.get(self._name_of(job, len(found)))
            if not there:
                break
            found.append(there[0])
        return found

    # messages
    def submit(self, job: Job, now_s: float) -> None:
        job.arrival_s = now_s
        self.submitted += 1
        job.order = self.submitted
        self._message(now_s, "submit", job)

    def abort(self, job: Job, now_s: float) -> None:
        self._message(now_s, "abort", job)

    def set_slots(self, slots: int, now_s: float) -> None:
        self._message(now_s, "slots", slots)

    def set_kv_blocks(self, blocks: int, now_s: float) -> None:
        self._message(now_s, "kv", blocks)

    def set_slowdown(self, factor: float, now_s: float) -> None:
        self._message(now_s, "slowdown", factor)

    def _message(self, now_s: float, kind: str, arg: Any) -> None:
        if kind == "abort":
            arg.aborted = True
        self.inbox.append((now_s, kind, arg))
        if not self.busy and self.wake_s == float("inf"):
            self.wake_s = now_s
            self.arm(now_s)

    def fail(self, now_s: float) -> list[Job]:
        lost = [
            j
            for j in [*self.running, *self.waiting, *(a for _, k, a in self.inbox if k == "submit")]
            if not j.gone and not j.aborted
        ]
        lost += [j for j, last in self.untold if last and not j.aborted]
        self.untold = []
        for _, kind, arg in self.inbox:
            if kind not in ("submit", "abort"):
                self._apply(kind, arg)
        for job in [*self.running, *self.held]:
            job.held, job.named, job.forgotten = [], 0, False
        self.inbox, self.waiting, self.running, self.scheduled, self.busy = [], [], [], {}, False
        self.ending, self.held, self.unheard, self.decoding = [], [], set(), set()
        self._wipe()
        self.wake_s = float("inf")
        self.arm(self.wake_s)
        return lost

    # one iteration
    def boundary(self, now_s: float) -> None:
        untold, self.untold = self.untold, []
        self._tell(untold, now_s)
        if untold and now_s < self.ends_s:
            self.wake_s = self.ends_s
            self.arm(self.wake_s)
            return
        self.wake_s = float("inf")
        first, done = [], []
        # The host plans after the start of the iteration under way, and after it has launched that one.
        read_until_s = self.plan_s = max(self.started_s, self.launched_s) if self.pipelined and self.busy else now_s
        ended = []
        if self.busy:
            self.busy = False
            gained = self._gained()
            self.iteration += 1
            for job, n in self.scheduled.items():
                if job.gone:
                    continue  # it was computed for nothing
                if job in self.decoding:
                    job.computed += gained
                    job.outputs += gained
                    job.tokens += gained
                else:
                    job.computed += n
                if job.computed == job.tokens or job in self.decoding:  # caught up: a token is sampled
                    if job not in self.decoding:
                        job.outputs += 1
                        job.tokens += 1
                    if job.outputs == 1:
                        first.append(job)
                    if job.outputs >= job.output_tokens and not job.gone:
                        job.gone = True
                        ended.append(job)
                        done.append(job)
        if self.pipelined:
            self.ending = ended
        else:
            self.running = [job for job in self.running if job not in ended]
            unread = [a for _, kind, a in self.inbox if kind == "submit"]
            for at_s, kind, job in self.inbox:
                if ended and kind == "abort" and at_s < now_s - TIE_S and job not in unread:
                    self._abort(job)
            for job in ended:
                self._give(job, ended=True)
        self._read(read_until_s - TIE_S)
        for job in self.held:
            self._give(job, ended=True)
        self.held, self.unheard = [], set()
        decoded = self.decoding
        self._start(now_s)
        self.running = [job for job in self.running if job not in self.ending]
        if self.caching and self.busy and any(k == "abort" and t < now_s - TIE_S for t, k, _ in self.inbox):
            self.held = self.ending
            self.unheard = decoded & set(self.held)
        else:
            for job in self.ending:
                self._give(job, ended=True)
        self.ending = []
        if self.pipelined and not self.busy:
            self.plan_s = now_s
            self.decoding = set()  # all that was under way is known
            self._read(now_s - TIE_S)
            self._start(now_s)
        while not self.busy and self.inbox:
            at = self.inbox[0][0]
            while self.inbox and self.inbox[0][0] == at:
                self._apply(*self.inbox.pop(0)[1:])
            self._start(now_s)
        told = [*((job, False) for job in first if not job.aborted), *((job, True) for job in done if not job.aborted)]
        if told and self.busy and self.launched_s > now_s:  # the next is launched before the host looks at these
            self.untold, self.ends_s = told, self.wake_s
            self.wake_s = min(self.wake_s, self.launched_s)
            self.arm(self.wake_s)
            return
        self._tell(told, now_s)

    def _tell(self, told: list[tuple[Job, bool]], now_s: float) -> None:
        for job, last in told:
            if not job.aborted:
                (self.listener.on_finish if last else self.listener.on_first_token)(job, now_s)

    def _read(self, until_s: float) -> None:
        while self.inbox and self.inbox[0][0] < until_s:
            self._apply(*self.inbox.pop(0)[1:])

    def _apply(self, kind: str, arg: Any) -> None:
        if kind == "submit":
            self.waiting.append(arg)
            self._sort()
        elif kind == "abort":
            self._abort(arg)
        elif kind == "slots":
            self.slots = arg
        elif kind == "kv":
            self.total = arg
            self._wipe()
        else:
            self.slowdown = arg

    def _abort(self, job: Job) -> None:
        for jobs in (self.waiting, self.running, self.ending):
            if job in jobs:
                jobs.remove(job)
        job.gone = True
        self._give(job)

    def _sort(self) -> None:
        if self.priority:
            self.waiting.sort(key=lambda j: (j.priority, j.arrival_s, j.order))
        elif self.shortest:
            self.waiting.sort(key=lambda j: (j.tokens, j.arrival_s, j.order))

    def _blocks(self, tokens: int) -> int:
        return (tokens + self.block - 1) // self.block

    def _start(self, now_s: float) -> None:
        while True:
            scheduled, preempted = self._step()
            if scheduled or not preempted or self.pipelined:
                break
        if not scheduled:
            return
        prefill = prompts = pairs = decodes = context = 0
        self.decoding = set()
        for job, n in scheduled.items():
            if self._decodes(job, n):
                decodes += 1
                context += job.computed + 1
                if not job.gone:
                    self.decoding.add(job)
            else:
                prefill += n
                prompts += 1
                pairs += n * (job.computed + (n + 1) / 2)
        self.scheduled, self.busy, self.started_s = scheduled, True, now_s
        context += len(self.decoding) * float(self.gain * self.iteration % 1)
        if self.decoding:
            deviation = statistics.pstdev(job.tokens for job in self.decoding)
            context += len(self.decoding) * getattr(self.step, "skew", 0.0) * 2 * deviation
            context += self._behind_the_longest()
        duration = self.step.iteration_s(prefill, pairs, decodes, context) * self.slowdown
        self.log.append((now_s, len(self.running), len(self.waiting), self.used))
        self.wake_s = now_s + duration
        self.launched_s = -math.inf
        if self.launch is not None and prompts:
            self.launched_s = self.plan_s + self.launch(prefill, prompts, decodes) * self.slowdown
            self.wake_s = max(self.wake_s, self.launched_s)
        self.arm(self.wake_s)

    def _behind_the_longest(self) -> float:
        """What the longest contexts lack to the longest of all, as many of them as keep the memory busy."""
        if len(self.decoding) < getattr(self.step, "unsplit_batch", 0):
            return 0.0
        contexts = sorted((job.tokens for job in self.decoding), reverse=True)
        left, more = getattr(self.step, "saturating_sequences", 0.0), 0.0
        for tokens in contexts:
            more += min(1.0, left) * (contexts[0] - tokens)
            left = max(0.0, left - 1.0)
        return more

    def _gained(self) -> int:
        """Tokens that each decoding job gets in this iteration: it has the whole part of the mean so far."""
        return math.floor(self.gain * (self.iteration + 1)) - math.floor(self.gain * self.iteration)

    @staticmethod
    def _decodes(job: Job, n: int) -> bool:
        if job.gone:
            return True  # computed once more, for nothing
        return job.outputs > 0 and job.computed == job.tokens - 1 and n == 1 and job.computed >= job.prefilled

    def _cap(self) -> int:
        """Return what one prompt may take of an iteration."""
        present = len(self.running) + len(self.waiting)
        if not self.long or present <= 1:
            return self.max_tokens
        return max(self.long, self.max_tokens // present) if self.shares else self.long

    def _step(self) -> tuple[dict[Job, int], bool]:
        budget = self.max_tokens
        cap = self._cap()
        scheduled: dict[Job, int] = {}
        cost: dict[Job, int] = {}
        preempted = False
        i = 0
        while i < len(self.running) and budget > 0:
            job = self.running[i]
            if job in self.ending and not job.stops:
                i += 1
                continue
            n = 1 if job in self.ending else min(job.tokens - job.computed, budget, cap)
            decodes = self._decodes(job, n)
            while True:
                need = self._blocks(job.computed + (self._gained() if decodes and not job.gone else n)) - len(job.held)
                if self.used + need <= self.total:
                    break
                victim = (
                    max(self.running, key=lambda j: (j.priority, j.arrival_s)) if self.priority else self.running[-1]
                )
                at = self.running.index(victim)
                if at < i:
                    i -= 1
                del self.running[at]
                planned = 0
                if victim in scheduled:
                    budget += cost.pop(victim)
                    planned = scheduled.pop(victim)
                    if self._decodes(victim, planned):
                        planned = 1
                self._give(victim, comes_back=True, planned=planned)
                victim.preemptions += 1
                preempted = True
                if victim in self.ending:
                    self.ending.remove(victim)
                else:
                    victim.computed = 0
                    victim.prefilled = victim.tokens
                    self.waiting.insert(0, victim)
                    self._sort()
                if victim is job:
                    break
            if job not in self.running:
                break
            self._take(job, len(job.held) + need)
            scheduled[job] = n
            cost[job] = 1 + self.drafts if decodes and not job.gone else n
            budget -= cost[job]
            i += 1
        for job, n in scheduled.items():
            if (job.prefix is not None or job.preemptions) and not self._decodes(job, n):
                self._name(job, job.computed + n)
        while not preempted and self.waiting and budget > 0 and len(self.running) < self.slots:
            job = self.waiting[0]
            found = self._find(job)
            shared = sum(block.holders > 0 for block in found)
            n = min(job.tokens - len(found) * self.block, budget, cap)
            whole = self._blocks(job.tokens)
            needed = whole if self.reserves or whole > self.total else self._blocks(len(found) * self.block + n)
            if self.running:
                needed += int(self.watermark * (self.total + 1))
            if self.used + needed - shared > self.total:
                break
            self.waiting.pop(0)
            for block in found:
                if not block.holders:
                    self.free.remove(block)
                    self.used += 1
                block.holders += 1
            job.held, job.named = found, len(found)
            job.computed = len(found) * self.block
            if job.cached_tokens < 0:
                job.cached_tokens = job.computed
            self._take(job, self._blocks(job.computed + n))
            if job.prefix is not None or job.preemptions:
                self._name(job, job.computed + n)
            job.prefilled = job.tokens
            self.running.append(job)
            scheduled[job] = n
            budget -= n
        return scheduled, preempted
