"""The engine's waiting queues: first come, first served, or by priority. Aborted requests are skipped at the front."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
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


class PriorityQueue(Generic[R]):
    """Lowest (priority, arrival, order) first; a preempted request takes the place that its key gives it."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, R]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[R]:
        return (entry[3] for entry in self._heap)

    def push(self, request: R) -> None:
        """Add an arrival."""
        heapq.heappush(self._heap, (request.priority, request.submitted_s, request.order, request))

    push_front = push

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
