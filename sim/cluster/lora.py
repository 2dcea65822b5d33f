"""A replica that serves adapters of one base model: a request waits until its adapter is in GPU memory.

Adapters are loaded one at a time, in the order in which requests came for them. One that requests in the engine use
stays; of the others the least recently used gives up its place. A request holds its adapter's place from when it is
handed to the engine, which also queues; vLLM holds one for what runs alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from sim.cluster.engine_group import Arm, Engine, EngineGroup
from sim.cluster.engine_request import ENDED, NEVER_S, EngineRequest
from sim.cluster.replica import Listener
from sim.engine.lora import Lora

R = TypeVar("R", bound=EngineRequest)


class LoraReplica(EngineGroup[R]):
    """Speaks as `sim.cluster.replica.Replica` does.

    Attributes
    ----------
    loads, swaps : adapters that came from cold storage, and from the host's memory.
    """

    def __init__(
        self, lora: Lora, *, make: Callable[[Listener[R], Arm], Engine[R]], listener: Listener[R], arm: Arm
    ) -> None:
        super().__init__(1, listener=listener, arm=arm)
        self._lora = lora
        self._engine = make(_Ends(self), self._armer(0))
        self.engines: Sequence[Engine[Any]] = [self._engine]
        self._slowdown = self._applied = 1.0
        self.loads = self.swaps = 0
        self._forget()

    def _forget(self) -> None:
        self._users: OrderedDict[str, int] = OrderedDict()  # adapters in GPU memory, the least recently used first
        self._host: OrderedDict[str, None] = OrderedDict()
        self._waiting: dict[R, None] = {}
        self._inside: dict[R, None] = {}  # requests in the engine that use an adapter
        self._loading = ""
        self._loaded_s = NEVER_S

    # ---------------------------------------------------------------------------------------------------------- ask

    @property
    def waiting_count(self) -> int:
        """Requests that wait, in the engine or for their adapter."""
        return super().waiting_count + len(self._waiting)

    @property
    def resident(self) -> tuple[str, ...]:
        """The adapters in GPU memory, the least recently used first."""
        return tuple(self._users)

    def outputs_at(self, request: R, now_s: float) -> int:
        """Return how many output tokens the request has at ``now_s``."""
        return request.outputs if request in self._waiting else self._engine.outputs_at(request, now_s)

    def runs(self, request: R) -> bool:
        """Return whether the request holds a slot."""
        return request not in self._waiting and self._engine.runs(request)

    # --------------------------------------------------------------------------------------------------------- tell

    def submit(self, request: R, now_s: float) -> None:
        """Hand over a request; see `Replica.submit`."""
        adapter = request.adapter
        if adapter not in self._lora.adapters:
            self._engine.submit(request, now_s)
        elif adapter in self._users:
            self._use(request, now_s)
        else:
            self._waiting[request] = None
            self._load_next(now_s)
        self._rearm()

    def abort(self, request: R, now_s: float) -> None:
        """Drop a request, wherever it is."""
        if request in self._waiting:
            del self._waiting[request]
            request.aborted, request.state = True, ENDED
        else:
            self._engine.abort(request, now_s)
            self._release(request, now_s)
        self._rearm()

    def fail(self, now_s: float) -> list[R]:
        """Crash; see `Replica.fail`. No adapter is left in memory."""
        lost = [*self._engine.fail(now_s), *self._waiting]
        for request in lost:
            request.state = ENDED
        self._forget()
        self._apply_cost(now_s)
        self._rearm()
        return lost

    def set_slowdown(self, factor: float, now_s: float) -> None:
        """Make every iteration take ``factor`` times as long, besides what adapters cost."""
        self._slowdown = factor
        self._apply_cost(now_s)
        self._rearm()

    def boundary(self, now_s: float) -> None:
        """Do what is due; to be called at ``wake_s``."""
        self.wake_s = NEVER_S
        if self._loaded_s <= now_s:
            adapter, self._loading, self._loaded_s = self._loading, "", NEVER_S
            self._users[adapter] = 0
            for request in [one for one in self._waiting if one.adapter == adapter]:
                del self._waiting[request]
                self._use(request, now_s)
            self._load_next(now_s)
        if self._wakes[0] <= now_s:
            self._wakes[0] = NEVER_S
            self._engine.boundary(now_s)
        self._rearm()

    def _next_s(self) -> float:
        return min(self._wakes[0], self._loaded_s)

    # ----------------------------------------------------------------------------------------------------- adapters

    def _use(self, request: R, now_s: float) -> None:
        """Hand a request whose adapter is here to the engine."""
        self._users[request.adapter] += 1
        self._users.move_to_end(request.adapter)
        self._inside[request] = None
        self._apply_cost(now_s)
        self._engine.submit(request, now_s)

    def _release(self, request: R, now_s: float) -> None:
        """Count a request that left the engine."""
        if request in self._inside:
            del self._inside[request]
            self._users[request.adapter] -= 1
            self._users.move_to_end(request.adapter)
            self._load_next(now_s)
            self._apply_cost(now_s)

    def _load_next(self, now_s: float) -> None:
        """Begin to load what the first that waits needs, if there is a place for it."""
        if self._loading or not self._waiting:
            return
        if len(self._users) >= self._lora.max_loras:
            idle = next((adapter for adapter, users in self._users.items() if not users), None)
            if idle is None:
                return
            del self._users[idle]
        adapter = next(iter(self._waiting)).adapter
        warm = adapter in self._host
        self.loads, self.swaps = self.loads + (not warm), self.swaps + warm
        self._host[adapter] = None
        self._host.move_to_end(adapter)
        if self._lora.max_cpu_loras is not None and len(self._host) > self._lora.max_cpu_loras:
            self._host.popitem(last=False)
        self._loading = adapter
        self._loaded_s = now_s + (self._lora.swap_s if warm else self._lora.load_s)

    def _apply_cost(self, now_s: float) -> None:
        """Tell the engine how much longer iterations take, with the largest rank in use."""
        ranks = [self._lora.adapters[adapter] for adapter, users in self._users.items() if users]
        factor = self._slowdown * (1 + self._lora.rank_cost * max(ranks, default=0))
        if factor != self._applied:
            self._applied = factor
            self._engine.set_slowdown(factor, now_s)

    def ended(self, request: R, now_s: float) -> None:
        """Pass on a last token."""
        self._release(request, now_s)
        self._listener.on_finish(request, now_s)

    def began(self, request: R, now_s: float) -> None:
        """Pass on a first token."""
        self._listener.on_first_token(request, now_s)


class _Ends(Generic[R]):
    def __init__(self, replica: LoraReplica[R]) -> None:
        self._replica = replica

    def on_first_token(self, request: R, now_s: float) -> None:
        """Pass it on."""
        self._replica.began(request, now_s)

    def on_finish(self, request: R, now_s: float) -> None:
        """Pass it on."""
        self._replica.ended(request, now_s)
