"""What an order over flows hears and says; `policies.parts.orders` has the names."""

from __future__ import annotations

from collections.abc import Mapping

from policies.api import PoolLedger
from policies.parts.heaps import KeyedHeap
from policies.parts.lines import Line, Waiting


class Order:
    """Whose turn it is. What a kind need not know, it does not hear: the methods do nothing here."""

    def enter(self, line: Line, item: Waiting, now_s: float) -> None:
        """Put one into its flow's line, and hear of it where that matters."""
        line.push(item)
        if line.length == 1:
            self.joined(item.flow, item, now_s)
        elif line.head() is item:
            self.advanced(item.flow, item)

    def leave(self, line: Line, item: Waiting) -> None:
        """Take one out of its flow's line, and hear of it where that matters."""
        was_head = line.head() is item
        line.drop(item)
        if not line.length:
            self.left(item.flow)
        elif was_head:
            self.advanced(item.flow, line.head())

    def joined(self, flow: str, head: Waiting, now_s: float) -> None:
        """Hear that a flow begins to wait."""
        raise NotImplementedError

    def advanced(self, flow: str, head: Waiting) -> None:
        """Hear that a flow that waits has another head."""

    def left(self, flow: str) -> None:
        """Hear that a flow waits no longer."""
        raise NotImplementedError

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:
        """Return whose turn it is among those who wait. Asked again, it is the same one's."""
        raise NotImplementedError

    def served(self, flow: str) -> None:
        """Hear that one of a flow's requests that waited was started."""

    def charge(self, flow: str, cost: float, now_s: float) -> None:
        """Count what a flow used; below 0 where it was charged too much before."""

    def hold(self, flow: str, slots: int, tokens: int, pool: PoolLedger) -> None:
        """Hear that a flow has so many more sequences and reserved tokens in flight."""

    def tick(self, pool: PoolLedger, now_s: float) -> None:
        """Hear that time passes, or that the pool's capacity is another."""


class ByKey(Order):
    """The least key first; a kind gives those who wait their keys."""

    def __init__(self) -> None:
        self._heap = KeyedHeap()

    def left(self, flow: str) -> None:
        """See `Order`."""
        self._heap.remove(flow)

    def pick(self, lines: Mapping[str, Line], now_s: float) -> str:  # noqa: ARG002
        """See `Order`."""
        return self._heap.least()[1]
