"""The engine's waiting queues. Aborted requests are skipped at the front."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from sim.cluster.engine_request import WAITING, EngineRequest

R = TypeVar("R", bound=EngineRequest)


class FcfsQueue(Generic[R]):
    """First come, first served; a preempted request goes back to the front."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: deque[R] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[R]:
        return iter(self._queue)

    def push(self, request: R) -> None:
        """Add an arrival."""
        self._queue.append(request)

    def push_front(self, request: R) -> None:
        """Return a preempted request."""
        self._queue.appendleft(request)

    def head(self) -> R | None:
        """Return whose turn it is."""
        queue = self._queue
        while queue:
            if queue[0].state == WAITING:
                return queue[0]
            queue.popleft()
        return None

    def pop(self) -> None:
        """Remove the head."""
        self._queue.popleft()


class TransferQueue(FcfsQueue[R]):
    """First come, first served, for an engine that only decodes: who was computed elsewhere is asked for apart."""

    __slots__ = ()

    def head(self) -> R | None:
        """Return whose turn it is, if it has a prompt to compute."""
        request = super().head()
        return None if request is None or request.transferred else request

    def arrived(self) -> R | None:
        """Return whose turn it is, if its KV cache came over."""
        request = super().head()
        return request if request is not None and request.transferred else None


class HeapQueue(Generic[R]):
    """Least ``first_by`` first, then by arrival; preempted requests take the place that this gives them."""

    __slots__ = ("_first_by", "_heap")

    def __init__(self, first_by: Callable[[R], float]) -> None:
        self._first_by = first_by
        self._heap: list[tuple[float, float, int, R]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[R]:
        return (entry[3] for entry in self._heap)

    def push(self, request: R) -> None:
        """Add an arrival, or a preempted request."""
        heapq.heappush(self._heap, (self._first_by(request), request.submitted_s, request.order, request))

    def push_front(self, request: R) -> None:
        """Return a preempted request, to the place that its score gives it."""
        self.push(request)

    def head(self) -> R | None:
        """Return whose turn it is."""
        heap = self._heap
        while heap:
            if heap[0][3].state == WAITING:
                return heap[0][3]
            heapq.heappop(heap)
        return None

    def pop(self) -> None:
        """Remove the head."""
        heapq.heappop(self._heap)
