"""A replica whose prompts are computed on some engines and whose outputs are decoded on others.

A request is prefilled on the engine that owes the fewest prompt tokens and gets its first token there. Its KV cache
then crosses a link, and it decodes on the engine that has the fewest requests. So prompts delay nobody's decoding, at
the price of the transfer and of GPUs that do one thing only (DistServe, Splitwise).

Each prefill engine sends one KV cache at a time: ``latency_s`` plus its bytes over ``kv_bytes_per_s``. Its blocks there
are free when the first token is out. What has crossed waits at its decode engine for a slot and blocks like any other
request, and is computed again there if it is preempted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any, Generic, TypeVar

from sim.cluster.engine_group import Arm, Engine, EngineGroup
from sim.cluster.engine_request import DECODE, ENDED, NEVER_S, PREFILL, WAITING, EngineRequest
from sim.cluster.kv_cache import blocks_of
from sim.cluster.replica import Listener, Replica
from sim.cluster.waiting import TransferQueue
from sim.engine.disaggregation import Disaggregated

R = TypeVar("R", bound=EngineRequest)


class Prefill(EngineRequest, Generic[R]):
    """The first part of a request: its prompt and one output token."""

    __slots__ = ("request",)

    def __init__(self, request: R) -> None:
        super().__init__(request.prompt_tokens, 1, request.priority)
        self.due_s = request.due_s
        self.prefix = request.prefix
        self.request = request


class DecodeReplica(Replica[R]):
    """An engine that takes on requests whose prompts were computed elsewhere."""

    def _clear(self) -> None:
        super()._clear()
        self._waiting = self._arriving = TransferQueue[R]()

    def _schedule(self, now_s: float) -> bool:
        """Let those join whose KV cache is here, then go on as every engine does."""
        queue = self._arriving
        kv, block_tokens = self.kv, self._block_tokens
        while (request := queue.arrived()) is not None:
            # It decodes in this very iteration, and may take a block more for that.
            needed = kv.used_blocks + kv.growing[self.clock % block_tokens]
            needed += blocks_of(request.target_tokens + 1, block_tokens)
            if len(self._running) + len(self._lingering) >= self.max_num_seqs or needed > kv.total_blocks:
                break
            queue.pop()
            self.waiting_count -= 1
            request.transferred = False
            self._running[request] = None
            self._take_place(request)
            kv.used_blocks += blocks_of(request.target_tokens, block_tokens)
            self._decode_from_here(request)
        return super()._schedule(now_s)


class DisaggregatedReplica(EngineGroup[R]):
    """Speaks as `sim.cluster.replica.Replica` does; the slots and blocks it tells of are those of its decode engines.

    Parameters
    ----------
    make_prefill, make_decode : return an engine, given who listens and what to call to be woken.
    kv_bytes_per_token : what crosses the link for each token of a prompt.

    Attributes
    ----------
    engines : all of them, those that prefill first.
    """

    def __init__(
        self,
        layout: Disaggregated,
        *,
        make_prefill: Callable[[Listener[Prefill[R]], Arm], Replica[Prefill[R]]],
        make_decode: Callable[[Listener[R], Arm], Replica[R]],
        kv_bytes_per_token: float,
        listener: Listener[R],
        arm: Arm,
    ) -> None:
        super().__init__(layout.prefill_engines + layout.decode_engines, listener=listener, arm=arm)
        self._layout = layout
        self._s_per_token = kv_bytes_per_token / layout.kv_bytes_per_s
        self._prefill = [make_prefill(_PrefillListener(self, i), self._armer(i)) for i in range(layout.prefill_engines)]
        self._decode = [
            make_decode(_DecodeListener(self), self._armer(layout.prefill_engines + i))
            for i in range(layout.decode_engines)
        ]
        self.engines: Sequence[Replica[Any]] = [*self._prefill, *self._decode]
        self._ticket = count()
        self._forget()

    def _forget(self) -> None:
        self._parts: dict[R, tuple[int, Prefill[R]]] = {}
        self._owed_tokens = [0] * len(self._prefill)
        self._link_free_s = [0.0] * len(self._prefill)
        self._crossing: dict[R, None] = {}
        self._arrivals: list[tuple[float, int, R]] = []
        self._at: dict[R, int] = {}

    @property
    def _holders(self) -> Sequence[Engine[Any]]:
        return self._decode

    # ---------------------------------------------------------------------------------------------------------- ask

    @property
    def running_count(self) -> int:
        """Requests that hold a slot, or are crossing."""
        return super().running_count + len(self._crossing)

    def outputs_at(self, request: R, now_s: float) -> int:
        """Return how many output tokens the request has at ``now_s``."""
        at = self._at.get(request)
        return request.outputs if at is None else self._decode[at].outputs_at(request, now_s)

    def runs(self, request: R) -> bool:
        """Return whether the request is at work somewhere, or crossing."""
        if request in self._parts:
            return self._parts[request][1].state in (PREFILL, DECODE)
        return request in self._crossing or request.state in (PREFILL, DECODE)

    # --------------------------------------------------------------------------------------------------------- tell

    def submit(self, request: R, now_s: float) -> None:
        """Hand over a request; see `Replica.submit`."""
        index = min(range(len(self._prefill)), key=lambda i: (self._owed_tokens[i], i))
        part = Prefill(request)
        self._parts[request] = (index, part)
        self._owed_tokens[index] += request.prompt_tokens
        self._prefill[index].submit(part, now_s)
        self._rearm()

    def abort(self, request: R, now_s: float) -> None:
        """Drop a request, wherever it is."""
        if request in self._parts:
            index, part = self._parts.pop(request)
            self._owed_tokens[index] -= request.prompt_tokens
            self._prefill[index].abort(part, now_s)
            request.aborted, request.state = True, ENDED
        elif request in self._crossing:
            del self._crossing[request]  # what arrives of it is thrown away
            request.aborted, request.state = True, ENDED
        elif request in self._at:
            self._decode[self._at.pop(request)].abort(request, now_s)
        self._rearm()

    def fail(self, now_s: float) -> list[R]:
        """Crash as a whole; see `Replica.fail`."""
        lost = [part.request for engine in self._prefill for part in engine.fail(now_s)]
        lost += self._crossing
        for engine in self._decode:
            lost += engine.fail(now_s)
        for request in lost:
            request.state = ENDED
        self._forget()
        self._rearm()
        return lost

    # ----------------------------------------------------------------------------------------------------- boundary

    def boundary(self, now_s: float) -> None:
        """Do what is due; to be called at ``wake_s``."""
        self.wake_s = NEVER_S
        self._turn(self._prefill, 0, now_s)
        while self._arrivals and self._arrivals[0][0] <= now_s:
            _, _, request = heappop(self._arrivals)
            if request in self._crossing:
                del self._crossing[request]
                self._settle(request, now_s)
        self._turn(self._decode, len(self._prefill), now_s)
        self._rearm()

    def _turn(self, engines: Sequence[Replica[Any]], first: int, now_s: float) -> None:
        for index, engine in enumerate(engines, first):
            if self._wakes[index] <= now_s:
                self._wakes[index] = NEVER_S
                engine.boundary(now_s)

    def _settle(self, request: R, now_s: float) -> None:
        """Let a request whose KV cache has crossed wait for its decode engine."""
        def load(index: int) -> tuple[bool, int, int]:
            engine = self._decode[index]
            return (engine.max_num_seqs == 0, engine.running_count + engine.waiting_count, index)

        index = min(range(len(self._decode)), key=load)
        self._at[request] = index
        request.state = WAITING
        request.transferred = True
        self._decode[index].submit(request, now_s)

    def _next_s(self) -> float:
        at_s = min(self._wakes)
        return min(at_s, self._arrivals[0][0]) if self._arrivals else at_s

    # ---------------------------------------------------------------------------------------- what the engines tell

    def prefilled(self, part: Prefill[R], index: int, now_s: float) -> None:
        """Pass on a first token, and send the KV cache on its way."""
        request = part.request
        del self._parts[request]
        self._owed_tokens[index] -= request.prompt_tokens
        request.outputs = 1
        request.preemptions += part.preemptions
        request.cached_tokens = part.cached_tokens
        if request.output_tokens == 1:
            request.state = ENDED
            self._listener.on_first_token(request, now_s)
            self._listener.on_finish(request, now_s)
            return
        start_s = max(now_s, self._link_free_s[index])
        there_s = start_s + self._layout.latency_s + self._s_per_token * request.prompt_tokens
        self._link_free_s[index] = there_s
        self._crossing[request] = None
        heappush(self._arrivals, (there_s, next(self._ticket), request))
        self._listener.on_first_token(request, now_s)

    def finished(self, request: R, now_s: float) -> None:
        """Pass on a last token."""
        del self._at[request]
        self._listener.on_finish(request, now_s)


class _PrefillListener(Generic[R]):
    def __init__(self, replica: DisaggregatedReplica[R], index: int) -> None:
        self._replica, self._index = replica, index

    def on_first_token(self, request: Prefill[R], now_s: float) -> None:
        """Wait for `on_finish`, which comes at the same instant."""

    def on_finish(self, request: Prefill[R], now_s: float) -> None:
        """Send the KV cache on its way."""
        self._replica.prefilled(request, self._index, now_s)


class _DecodeListener(Generic[R]):
    def __init__(self, replica: DisaggregatedReplica[R]) -> None:
        self._replica = replica

    def on_first_token(self, request: R, now_s: float) -> None:
        """Hear nothing new: it came from a prefill engine."""

    def on_finish(self, request: R, now_s: float) -> None:
        """Pass it on."""
        self._replica.finished(request, now_s)
