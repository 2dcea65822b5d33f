"""Several engines behind a gateway as one replica: the sums of what they hold, and even shares of what is set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from sim.cluster.engine_request import NEVER_S, EngineRequest
from sim.cluster.replica import Listener

R = TypeVar("R", bound=EngineRequest)
R_contra = TypeVar("R_contra", bound=EngineRequest, contravariant=True)
Arm = Callable[[float], None]


class Engine(Protocol[R]):
    """What a group asks of its engines and tells them; see `sim.cluster.replica.Replica`."""

    max_num_seqs: int

    @property
    def running_count(self) -> int: ...  # noqa: D102 - all of these are `Replica`'s

    @property
    def waiting_count(self) -> int: ...  # noqa: D102

    @property
    def iterations(self) -> int: ...  # noqa: D102

    @property
    def preemptions(self) -> int: ...  # noqa: D102

    @property
    def kv_total_blocks(self) -> int: ...  # noqa: D102

    def kv_used_blocks_at(self, now_s: float, /) -> int: ...  # noqa: D102
    def outputs_at(self, request: R, now_s: float, /) -> int: ...  # noqa: D102
    def runs(self, request: R) -> bool: ...  # noqa: D102
    def iteration_end_s(self, now_s: float, /) -> float: ...  # noqa: D102
    def submit(self, request: R, now_s: float) -> None: ...  # noqa: D102
    def abort(self, request: R, now_s: float) -> None: ...  # noqa: D102
    def set_slots(self, slots: int, now_s: float) -> None: ...  # noqa: D102
    def set_kv_blocks(self, blocks: int, now_s: float) -> None: ...  # noqa: D102
    def set_slowdown(self, factor: float, now_s: float) -> None: ...  # noqa: D102
    def fail(self, now_s: float, /) -> list[R]: ...  # noqa: D102
    def boundary(self, now_s: float) -> None: ...  # noqa: D102


def shares(total: int, parts: int) -> list[int]:
    """Split a total evenly; the remainder goes to the first parts."""
    each, rest = divmod(total, parts)
    return [each + (i < rest) for i in range(parts)]


def shares_by(total: int, weights: Sequence[int]) -> list[int]:
    """Split a total in proportion to weights; the remainder goes to the first parts."""
    whole = max(1, sum(weights))
    parts = [total * weight // whole for weight in weights]
    for i in range(total - sum(parts)):
        parts[i] += 1
    return parts


class EngineGroup(ABC, Generic[R]):
    """Speaks as `sim.cluster.replica.Replica` does, for all of its engines.

    Attributes
    ----------
    engines : all of them.
    wake_s : when `boundary` is to be called next.
    """

    engines: Sequence[Engine[Any]]

    def __init__(self, count: int, *, listener: Listener[R], arm: Arm) -> None:
        self._listener = listener
        self._arm = arm
        self._wakes = [NEVER_S] * count
        self.wake_s = NEVER_S

    def _armer(self, index: int) -> Arm:
        """Return what an engine calls to be woken."""

        def arm(at_s: float) -> None:
            self._wakes[index] = at_s

        return arm

    @property
    def _holders(self) -> Sequence[Engine[Any]]:
        """The engines whose slots and blocks are the replica's."""
        return self.engines

    @abstractmethod
    def _next_s(self) -> float:
        """Return when the next engine, or whatever lies between them, is due."""

    def _rearm(self) -> None:
        at_s = self._next_s()
        if at_s != self.wake_s:
            self.wake_s = at_s
            self._arm(at_s)

    @property
    def running_count(self) -> int:
        """Requests that hold a slot of some engine."""
        return sum(engine.running_count for engine in self.engines)

    @property
    def waiting_count(self) -> int:
        """Requests that wait at some engine."""
        return sum(engine.waiting_count for engine in self.engines)

    @property
    def iterations(self) -> int:
        """Iterations of all engines."""
        return sum(engine.iterations for engine in self.engines)

    @property
    def preemptions(self) -> int:
        """Preemptions at all engines."""
        return sum(engine.preemptions for engine in self.engines)

    @property
    def kv_total_blocks(self) -> int:
        """KV blocks of the engines that hold the replica's."""
        return sum(engine.kv_total_blocks for engine in self._holders)

    def kv_used_blocks_at(self, now_s: float) -> int:
        """Return the blocks in use at those engines."""
        return sum(engine.kv_used_blocks_at(now_s) for engine in self._holders)

    def iteration_end_s(self, now_s: float) -> float:
        """Return when the first iteration under way at some engine ends; see `Replica.iteration_end_s`."""
        return min(engine.iteration_end_s(now_s) for engine in self.engines)

    def set_slots(self, slots: int, now_s: float) -> None:
        """Spread a number of slots over those engines."""
        for engine, share in zip(self._holders, shares(slots, len(self._holders)), strict=True):
            engine.set_slots(share, now_s)
        self._rearm()

    def set_kv_blocks(self, blocks: int, now_s: float) -> None:
        """Spread a number of KV blocks over those engines."""
        for engine, share in zip(self._holders, shares(blocks, len(self._holders)), strict=True):
            engine.set_kv_blocks(share, now_s)
        self._rearm()

    def set_slowdown(self, factor: float, now_s: float) -> None:
        """Make every iteration of every engine take ``factor`` times as long."""
        for engine in self.engines:
            engine.set_slowdown(factor, now_s)
        self._rearm()
