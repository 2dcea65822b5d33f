"""A replica of several data-parallel ranks: each an engine of its own, behind one router, in step or not.

Ranks of a dense model know nothing of each other. Those of a mixture of experts share the experts of every layer
(expert parallelism), so no rank can go on before all have come as far: every iteration lasts as long as that of the
busiest rank. Captured graphs are padded to its batch by the others, and so bring as many tokens to the experts; beyond
them each brings what it has (``vllm/v1/worker/dp_utils.py``). A rank with nothing to do computes an empty batch beside
them, and whoever comes to it waits for its end.

Behind a gateway this is one replica, whose slots and KV blocks are the sums of the ranks'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from sim.cluster.engine_group import Arm, Engine, EngineGroup
from sim.cluster.engine_request import ENDED, NEVER_S, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.replica import Listener, Replica
from sim.engine.ranks import SNAPSHOT_S, RankLoad, Ranks, choose_rank

R = TypeVar("R", bound=EngineRequest)


class RankInStep(Replica[R]):
    """An engine whose iterations end when others' do: it plans single iterations, and is told when they are over.

    ``due_in_s`` is how long the iteration takes that it has planned; 0 where it has none.
    """

    __slots__ = ("due_in_s",)

    def __init__(self, settings: EngineSettings, *, listener: Listener[R], arm: Arm) -> None:
        self.due_in_s = 0.0
        super().__init__(settings, listener=listener, arm=arm)

    @property
    def busy(self) -> bool:
        """Whether it computes something."""
        return self._busy

    @property
    def planned_tokens(self) -> int:
        """The tokens of the iteration that it has planned."""
        _, _, prefill_tokens, _, decode_sequences, _ = self.under_way()
        return prefill_tokens + decode_sequences

    def _begin(self, now_s: float, duration_s: float) -> None:
        self._busy = True
        self._run_start_s = now_s
        self.due_in_s = duration_s * self.slowdown

    def _begin_decode_run(self, now_s: float) -> None:
        """Begin one iteration: how long the next ones take depends on the others."""
        decoding = self._decoding
        self._chunks = None
        self._run = 1
        self._cut = True
        self._begin(now_s, self._step.iteration_s(0, 0.0, decoding, self._reads(decoding)))

    def _run_done(self, _: float) -> int:
        """See `Replica`: none, for the iteration under way ends with the slowest rank."""
        return 0


class MakeRank(Protocol[R]):
    """Makes the engine of a rank."""

    def __call__(self, *, listener: Listener[R], arm: Arm) -> Engine[R]:
        """Return an engine, given who listens and what to call to be woken."""
        ...


class RankedReplica(EngineGroup[R]):
    """Speaks as `sim.cluster.replica.Replica` does, for all of its ranks.

    Parameters
    ----------
    make : returns the engine of a rank; a `RankInStep` where the layout says so.

    Attributes
    ----------
    engines : the ranks.
    """

    def __init__(self, layout: Ranks, *, make: MakeRank[R], listener: Listener[R], arm: Arm) -> None:
        super().__init__(layout.count, listener=listener, arm=arm)
        self._layout = layout
        self.engines: Sequence[Engine[R]] = [make(listener=self, arm=self._armer(i)) for i in range(layout.count)]
        self._in_boundary = False
        self._forget()

    def _forget(self) -> None:
        self._at: dict[R, int] = {}
        self._loads = [RankLoad() for _ in self.engines]
        self._reported_s = -NEVER_S
        self._first = 0
        self._ends_s = NEVER_S  # in step: when the iteration under way ends

    # ---------------------------------------------------------------------------------------------------------- ask

    def outputs_at(self, request: R, now_s: float) -> int:
        """Return how many output tokens the request has at ``now_s``."""
        at = self._at.get(request)
        return request.outputs if at is None else self.engines[at].outputs_at(request, now_s)

    def runs(self, request: R) -> bool:
        """Return whether the request holds a slot."""
        return self.engines[0].runs(request)

    def iteration_end_s(self, now_s: float) -> float:
        """Return when the first iteration under way at some rank ends; see `Replica.iteration_end_s`."""
        return self.wake_s if self._layout.in_step else super().iteration_end_s(now_s)

    def rank_of(self, request: R) -> int | None:
        """Return the rank that a request inside was sent to."""
        return self._at.get(request)

    # --------------------------------------------------------------------------------------------------------- tell

    def submit(self, request: R, now_s: float) -> None:
        """Hand over a request, to the rank that the router takes for the least loaded; see `Replica.submit`."""
        self._report(now_s)
        rank = choose_rank(self._loads, self._layout.score, self._first)
        self._first = (self._first + 1) % len(self.engines) if self._layout.score == "in-flight" else 0
        self._loads[rank].in_flight += 1
        self._loads[rank].waiting += 1
        self._at[request] = rank
        self.engines[rank].submit(request, now_s)
        self._rearm()

    def _report(self, now_s: float) -> None:
        """Let the ranks report who waits and runs, if their last report is old enough."""
        if now_s < self._reported_s + SNAPSHOT_S:
            return
        self._reported_s = now_s
        for load, engine in zip(self._loads, self.engines, strict=True):
            load.waiting, load.running = engine.waiting_count, engine.running_count
            total = engine.kv_total_blocks
            load.kv_usage = engine.kv_used_blocks_at(now_s) / total if total else 1.0

    def abort(self, request: R, now_s: float) -> None:
        """Drop a request, wherever it is."""
        rank = self._at.pop(request, None)
        if rank is not None:
            self._loads[rank].in_flight -= 1
            self.engines[rank].abort(request, now_s)
            self._rearm()

    def fail(self, now_s: float) -> list[R]:
        """Crash as a whole; see `Replica.fail`."""
        lost = [request for engine in self.engines for request in engine.fail(now_s)]
        self._forget()
        self._rearm()
        return lost

    # ----------------------------------------------------------------------------------------------------- boundary

    def boundary(self, now_s: float) -> None:
        """Do what is due; to be called at ``wake_s``."""
        self.wake_s = NEVER_S
        self._in_boundary = True
        over = self._ends_s <= now_s
        for index, engine in enumerate(self.engines):
            if self._wakes[index] <= now_s or (over and isinstance(engine, RankInStep) and engine.busy):
                self._wakes[index] = NEVER_S
                engine.boundary(now_s)
        self._in_boundary = False
        if self._layout.in_step:
            self._begin_together(now_s)
        self._rearm()

    def _begin_together(self, now_s: float) -> None:
        """Let the iterations that the ranks have planned last as long as the longest."""
        busy = [engine for engine in self.engines if isinstance(engine, RankInStep) and engine.busy]
        longest_s = max((engine.due_in_s for engine in busy), default=NEVER_S)
        experts_s = self._layout.experts_s
        if experts_s is not None and busy:  # what they planned took all ranks to have as many tokens as they
            tokens = [engine.planned_tokens for engine in busy]
            most = max(tokens)
            each = float(most) if most <= self._layout.captured_tokens else sum(tokens) / len(self.engines)
            theirs_s = experts_s(each)
            longest_s = max(
                engine.due_in_s + engine.slowdown * (theirs_s - experts_s(n))
                for engine, n in zip(busy, tokens, strict=True)
            )
        self._ends_s = now_s + longest_s

    def _next_s(self) -> float:
        # Whoever comes to an idle rank waits for the others.
        return self._ends_s if self._ends_s < NEVER_S else min(self._wakes)

    def _rearm(self) -> None:
        if not self._in_boundary:
            super()._rearm()

    # ------------------------------------------------------------------------------------------ what the ranks tell

    def on_first_token(self, request: R, now_s: float) -> None:
        """Pass on a first token."""
        self._listener.on_first_token(request, now_s)

    def on_finish(self, request: R, now_s: float) -> None:
        """Pass on a last token."""
        rank = self._at.pop(request)
        self._loads[rank].in_flight -= 1
        assert request.state == ENDED
        self._listener.on_finish(request, now_s)
