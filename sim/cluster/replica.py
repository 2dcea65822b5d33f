"""One replica: vLLM V1's engine, jumping from change to change instead of stepping through every token.

Three layers: `sim.cluster.batch.Batch` keeps the books of who runs, `sim.cluster.scheduler.Scheduler` plans the next
iteration, and this file keeps the time and hears the outside.

Messages (submit, abort, capacity) take effect at iteration boundaries, as in vLLM's input queue. A message that
arrives less than ``TIE_S`` before a boundary waits for the next one, so that rounding never decides who joins.

With ``async_scheduling`` the engine plans an iteration while the one before it runs, as vLLM does by default: messages,
and the slots and blocks of requests that end, reach the plan one iteration later. ``prefix_caching`` is
`sim.cluster.prefix_cache`.

Where the step time knows what launches take (`sim.engine.step_fitted.FittedStepTime.launching`), the host does one
thing after another, as vLLM's engine loop does: it plans and launches an iteration, and only then looks at the tokens
of the one before, which are told that much later.

This file knows no SimPy: `Replica` asks to be woken by calling ``arm`` and is told so by `boundary`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from policies.native import mypyc_attr
from sim.cluster.engine_inbox import ABORT, KV_BLOCKS, SLOTS, SUBMIT
from sim.cluster.engine_request import DECODE, ENDED, NEVER_S, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.scheduler import Scheduler

TIE_S: Final = 1e-9

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


@mypyc_attr(allow_interpreted_subclasses=True)
class Replica(Scheduler[R]):
    """A continuous-batching engine on one GPU (or one tensor-parallel group).

    Parameters
    ----------
    arm : called with the time at which `boundary` wants to be called; a later call replaces an earlier one.
    """

    __slots__ = (
        "_ends_s",
        "_held_back",
        "_listener",
        "_order",
        "_untold",
    )

    def __init__(self, settings: EngineSettings, *, listener: Listener[R], arm: Callable[[float], None]) -> None:
        super().__init__(settings, arm=arm)
        self._listener = listener
        self._order = 0
        self._ends_s = NEVER_S  # of the iteration under way, where tokens are told before

    def _clear(self) -> None:
        super()._clear()
        self._held_back = False
        self._untold: list[R] = []  # who got a first or a last token that nobody was told of

    # ---------------------------------------------------------------------------------------------------------- ask

    def outputs_at(self, request: R, now_s: float) -> int:
        """Return how many output tokens the request has at ``now_s``."""
        if request.state != DECODE:
            return request.outputs
        return request.outputs + self.clock + self._gained(self._run_done(now_s)) - request.base_clock

    @property
    def kv_total_blocks(self) -> int:
        """The KV blocks there are."""
        return self.kv.total_blocks

    def kv_used_blocks_at(self, now_s: float) -> int:
        """Return the blocks in use at ``now_s``, those of the iteration under way included."""
        if not self._busy or self._chunks is not None:
            return self.kv.used_blocks
        done = min(self._run, self._run_done(now_s) + 1)
        return self.kv.used_blocks + self.kv.growth(self.clock, self._gained(done))

    def _gained(self, iterations: int) -> int:
        """Return the tokens that a sequence gets in the next iterations."""
        return iterations if self._speculation is None else self._speculation.gained(self._iteration, iterations)

    def _run_done(self, now_s: float) -> int:
        """Return how many iterations of the present run are complete."""
        if not self._busy or self._chunks is not None:
            return 0
        elapsed_s = (now_s - self._run_start_s) / self.slowdown
        if elapsed_s <= 0:
            return 0
        k = self._step.iterations_until(self._decoding, self._reads(self._decoding), elapsed_s)
        return min(k - 1, self._run)

    def iteration_end_s(self, now_s: float) -> float:
        """Return when the iteration under way at ``now_s`` ends, if no message comes before; infinity where none is."""
        if self._untold:
            return self._ends_s
        if not self._busy or self._chunks is not None or self._run == 1:
            return self.wake_s
        over = self._run_done(now_s) + 1
        if over >= self._run:
            return self.wake_s
        run_s = self._step.decode_run_s(self._decoding, self._reads(self._decoding), over)
        return self._run_start_s + run_s * self.slowdown

    def under_way(self) -> tuple[float, int, int, float, int, float]:
        """Return what is computed now: since when, iterations, prompt tokens and pairs, decodes, and KV entries read.

        A run of several iterations decodes only; the entries are those of its first. No iterations where it is idle.
        """
        prefill_tokens = 0
        pairs = 0.0
        for request, tokens in self._chunks or ():
            prefill_tokens += tokens
            pairs += tokens * (request.computed_tokens + (tokens + 1) / 2)
        run = self._run if self._busy else 0
        return self._run_start_s, run, prefill_tokens, pairs, self._decoding, self._reads(self._decoding)

    # --------------------------------------------------------------------------------------------------------- tell

    def abort(self, request: R, now_s: float) -> None:
        """See `EngineInbox.abort`; of one whose last token nobody was told of yet, nobody is."""
        if self._untold and request.state == ENDED:
            request.aborted = True
        super().abort(request, now_s)

    def submit(self, request: R, now_s: float) -> None:
        """Hand over a request; ``now_s`` may lie ahead, if what is sent now takes until then to get here."""
        request.submitted_s = now_s
        request.order = self._order
        self._order += 1
        self.waiting_count += 1
        self._inbox.append((now_s, SUBMIT, request))
        if not self._busy:
            if self.wake_s == NEVER_S:
                self._wake(now_s)
        elif not self._cut and (self._overtakes or self._finds_a_slot()):
            self._interrupt(now_s)

    def _finds_a_slot(self) -> bool:
        """Return whether an arrival is next. Nobody overtakes: behind a head that is stuck, it changes nothing yet.

        The count is asked, not the queue, which may still hold those that were aborted.
        """
        return self.waiting_count == 1 and len(self._running) < self.max_num_seqs

    def fail(self, now_s: float) -> list[R]:
        """Crash: everything inside is lost, at once. Returns what was, with its outputs (aborted requests left out)."""
        inbox = [arg for _, kind, arg in self._inbox if kind == SUBMIT]
        lost = [r for r in [*self._running, *self._waiting, *inbox] if r.state != ENDED and not r.aborted]
        lost += [r for r in self._untold if r.state == ENDED and not r.aborted]
        done = self._run_done(now_s)
        for request in lost:
            request.outputs = self.outputs_at(request, now_s)
        for request in lost:
            request.state = ENDED
        self.clock += self._gained(done)
        self._iteration += done
        self.kv.clear()
        self._apply_settings()
        if self._cache is not None:
            self._cache.lose_all()
        self._forget_cached()
        self._clear()
        self.waiting_count = 0
        self._wake(NEVER_S)
        return lost

    def _message(self, now_s: float, kind: int, arg: Any) -> None:
        self._inbox.append((now_s, kind, arg))
        if not self._busy:
            if self.wake_s == NEVER_S:
                self._wake(now_s)
        elif not self._cut:
            self._interrupt(now_s)

    def _read_sooner(self, at_s: float) -> None:
        # While it is busy and has not read everything, it looks at each boundary: see `_begin_decode_run`.
        if not self._busy and at_s < self.wake_s:
            self._wake(at_s)

    def _interrupt(self, now_s: float) -> None:
        """End the run where the message takes effect: the first boundary more than TIE_S after it, or the next."""
        decoding = self._decoding
        context_tokens: float = self._context_tokens + decoding if self._even else self._reads(decoding)
        elapsed_s = (now_s - self._run_start_s + TIE_S) / self.slowdown
        run = self._step.iterations_until(decoding, context_tokens, elapsed_s) + self._async
        self._cut = True
        if run < self._run:
            self._run = run
            self._wake(self._run_start_s + self._step.decode_run_s(decoding, context_tokens, run) * self.slowdown)

    # ----------------------------------------------------------------------------------------------------- boundary

    def boundary(self, now_s: float) -> None:
        """End the iterations under way, read the inbox, begin the next. To be called at ``wake_s``."""
        if self._untold:
            untold, self._untold = self._untold, []
            self._tell(untold, now_s)
            if now_s < self._ends_s:
                self._wake(self._ends_s)
                return
        self.wake_s = NEVER_S
        if self._launch is not None:
            self._plan_s = self._planned_s() if self._async and self._busy else now_s
        if self._deferred:
            emitted, busy = self._complete_and_plan(now_s)
        else:
            emitted = self._complete() if self._busy else None
            if self._inbox:
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
            if busy and self._launched_s > now_s:
                self._untold, self._ends_s = emitted, self.wake_s
                if self._launched_s < self._ends_s:
                    self._wake(self._launched_s)
                return
            self._tell(emitted, now_s)

    def _tell(self, emitted: list[R], now_s: float) -> None:
        """Tell the listener of first and last tokens."""
        listener = self._listener
        for request in emitted:
            if request.aborted:
                continue
            if request.state == ENDED:
                if request.outputs == 1:
                    listener.on_first_token(request, now_s)
                listener.on_finish(request, now_s)
            else:
                listener.on_first_token(request, now_s)

    def _complete_and_plan(self, now_s: float) -> tuple[list[R] | None, bool]:
        """Do so where blocks stay taken for a while; returns who got a first or last token, and whether it is busy."""
        read_until_s = self._planned_s() if self._async and self._busy and self._inbox else now_s
        held_back = list(self._lingering) if self._held_back else None
        emitted = self._complete() if self._busy else None
        if self._lingering and not self._async:
            if self._inbox:
                self._carry_out_aborts(now_s - TIE_S)
            self._release()
        if self._inbox:
            self._read_inbox(read_until_s - TIE_S)
        if held_back:
            self._release_those(held_back)
        busy = self._schedule(now_s)
        if self._async:
            if self._lingering:
                # Aborts that came by now are carried out before those that ended are let go: see `_carry_out_aborts`.
                self._held_back = busy and self._cache is not None and self._aborts_by(now_s - TIE_S)
                if self._held_back:
                    self._overrunning = []
                else:
                    self._release()
            if not busy:
                self._plan_s = now_s
                self._unknown = False  # all that was under way is known
                self._read_inbox(now_s - TIE_S)
                busy = self._schedule(now_s)
                self._unknown = True
        return emitted, busy

    def _aborts_by(self, until_s: float) -> bool:
        return any(kind == ABORT and at_s < until_s for at_s, kind, _ in self._inbox)

    def _carry_out_aborts(self, until_s: float) -> None:
        """Carry out aborts before those who ended are let go, as vLLM does: it tells which blocks are free first."""
        unread = {arg for _, kind, arg in self._inbox if kind == SUBMIT}
        for at_s, kind, arg in self._inbox:
            if at_s < until_s and kind == ABORT and arg not in unread:
                self._drop(arg)

    def _planned_s(self) -> float:
        """Return when the iteration that comes next was planned: at the start of the one that ends now."""
        if self._run == 1:
            return max(self._run_start_s, self._launched_s)
        run_s = self._step.decode_run_s(self._decoding, self._reads(self._decoding), self._run - 1)
        return self._run_start_s + run_s * self.slowdown

    def _apply(self, kind: int, arg: Any) -> None:
        if kind == ABORT:
            self._drop(arg)
        elif kind == SLOTS:
            self.max_num_seqs = arg
        elif kind == KV_BLOCKS:
            self.kv.total_blocks = arg
            self._forget_cached()
        else:
            self.slowdown = arg
