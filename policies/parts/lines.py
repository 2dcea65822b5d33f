"""Who waits at the gateway, and in which order inside a queue."""

from __future__ import annotations

import heapq
import math
from typing import Literal

from policies.api import RequestView
from policies.native import mypyc_attr

Within = Literal["fcfs", "edf", "shortest"]
"""By arrival, by deadline, or by size."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Waiting:
    """A request that waits."""

    __slots__ = (
        "cost", "flow", "gone", "late", "max_output_tokens", "need_tokens", "request", "since_s", "urgency",
    )  # fmt: skip

    def __init__(
        self, request: RequestView, max_output_tokens: int, flow: str, since_s: float, urgency: float, cost: float
    ) -> None:
        self.request = request
        self.max_output_tokens = max_output_tokens
        self.need_tokens = request.prompt_tokens + max_output_tokens
        self.flow = flow
        self.since_s = since_s
        self.urgency = urgency
        self.cost = cost
        self.gone = False
        self.late = False


@mypyc_attr(allow_interpreted_subclasses=True)
class Line:
    """The requests of one flow, the most urgent first and, among equals, the first come.

    Those who gave up are passed over when they come to the head, so that the head never is one of them.
    """

    __slots__ = ("_heap", "_pushed", "length")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waiting]] = []
        self._pushed = 0
        self.length = 0

    def push(self, item: Waiting) -> None:
        """Let one more wait."""
        self._pushed += 1
        heapq.heappush(self._heap, (item.urgency, self._pushed, item))
        self.length += 1

    def head(self) -> Waiting:
        """Return who is next; there must be one."""
        return self._heap[0][2]

    def last(self) -> Waiting:
        """Return who is last, of equals the last come; there must be one. Looks at all."""
        return max((entry for entry in self._heap if not entry[2].gone), key=_place)[2]

    def pop(self) -> Waiting:
        """Take the head out and return it; it may go into another line."""
        item = heapq.heappop(self._heap)[2]
        self.length -= 1
        self._pass_over()
        return item

    def drop(self, item: Waiting) -> None:
        """Take one out; what is not the head is passed over later."""
        item.gone = True
        self.length -= 1
        heap = self._heap
        if heap[0][2] is item:
            heapq.heappop(heap)
            if heap and heap[0][2].gone:
                self._pass_over()
        elif len(heap) > 2 * self.length + 64:  # those who gave up
            self._heap = heap = [entry for entry in heap if not entry[2].gone]
            heapq.heapify(heap)

    def _pass_over(self) -> None:
        heap = self._heap
        while heap and heap[0][2].gone:
            heapq.heappop(heap)


def _place(entry: tuple[float, int, Waiting]) -> tuple[float, int]:
    return entry[:2]


def place(within: Within, request: RequestView, max_output_tokens: int, slo_s: float | None, now_s: float) -> float:
    """Return the place of a request in its queue: by arrival, by deadline (none: last), or by size."""
    if within == "edf":
        return now_s + slo_s if slo_s is not None else math.inf
    if within == "shortest":
        return request.prompt_tokens + max_output_tokens
    return 0.0
