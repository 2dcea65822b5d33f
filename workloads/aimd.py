"""Clients that find out how much they may ask for: additive increase, multiplicative decrease."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from workloads.interactive import positive
from workloads.requests import Demand, FollowUp, Ints, Lengths, Streams

_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Aimd:
    """Clients with a window of requests that each may have open, as TCP has one of segments.

    A window begins at ``first`` and grows by ``increase`` over itself with every answer, so by ``increase`` for a
    window full of them; a refusal for good, or whatever broke off, multiplies it by ``decrease``, at most once in
    ``pause_s``, and the next request waits that long. It never falls below 1 and never exceeds ``most``. All work is
    waiting: a client sends as much as its window allows, until the workload's end.

    References
    ----------
    .. [1] D.-M. Chiu, R. Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer
       Networks", 1989.
    """

    kind: Literal["aimd"] = "aimd"
    clients: int = field(metadata={"ge": 1, "le": 100_000, "description": "give the number of clients, e.g. 4"})
    first: int = field(default=1, metadata={"ge": 1, "le": 10_000, "description": "give the first window, e.g. 1"})
    most: int = field(default=64, metadata={"ge": 1, "le": 10_000, "description": "give the largest window, e.g. 64"})
    increase: float = field(
        default=1.0, metadata={"gt": 0, "description": "give what a window full of answers adds, e.g. 1"}
    )
    decrease: float = field(
        default=0.5, metadata={"gt": 0, "lt": 1, "description": "give what a refusal multiplies it by, e.g. 0.5"}
    )
    pause_s: float = field(
        default=1.0, metadata={"gt": 0, "description": "give the seconds until it asks again after a refusal, e.g. 1"}
    )
    start_s: float = field(
        default=1.0, metadata={"ge": 0, "description": "give the mean seconds until a client begins, e.g. 1"}
    )

    def demand(
        self, lengths: Lengths, stream: Streams, name: str, from_s: float, until_s: float, limit: int | None
    ) -> Demand:
        """See `workloads.generate.Interactive`."""
        plan = _Windows(self, lengths, until_s, limit)
        begin_s = from_s + positive(stream(f"{name}/begin"), self.clients, self.start_s, 1.0)
        order = np.argsort(begin_s, kind="stable")
        order = order[begin_s[order] < until_s][:limit]
        plan.clients = order
        prompt, output, asked = plan.lengths(0)
        return Demand(begin_s[order], prompt[order, 0], output[order, 0], asked[order, 0], plan)


class _Windows:
    """The plan: lengths of all requests of all clients, drawn by blocks when the first of them is needed."""

    def __init__(self, law: Aimd, lengths: Lengths, until_s: float, limit: int | None) -> None:
        self._lengths = lengths
        self._blocks: dict[int, tuple[Ints, Ints, Ints]] = {}
        self.law, self.until_s, self.limit = law, until_s, limit
        self.clients: Ints = np.empty(0, dtype=np.int64)

    def lengths(self, block: int) -> tuple[Ints, Ints, Ints]:
        """Return prompts, outputs and what is asked for, shape (clients, requests of the block)."""
        if block not in self._blocks:
            shape = (self.law.clients, _BLOCK)
            prompt, output, asked = self._lengths(self.law.clients * _BLOCK, f"#{block}" if block else "")
            self._blocks[block] = prompt.reshape(shape), output.reshape(shape), asked.reshape(shape)
        return self._blocks[block]

    def begin(self) -> _Run:
        """See `workloads.requests.Plan`."""
        return _Run(self)


class _Window:
    """One client at work."""

    __slots__ = ("asked", "open", "size", "until_s")

    def __init__(self, size: float) -> None:
        self.size = size
        self.open = 1
        self.asked = 1
        self.until_s = 0.0
        """Until when a further refusal is of the same congestion."""


class _Run:
    """All clients of one run."""

    def __init__(self, plan: _Windows) -> None:
        self._plan = plan
        self._windows = [_Window(float(plan.law.first)) for _ in plan.clients]
        self._left = float("inf") if plan.limit is None else plan.limit - len(plan.clients)

    def ended(self, chain: int, step: int, succeeded: bool, now_s: float) -> Sequence[FollowUp]:  # noqa: ARG002
        """See `workloads.requests.Following`."""
        law, window = self._plan.law, self._windows[chain]
        window.open -= 1
        delay_s = 0.0
        if succeeded:
            window.size = min(float(law.most), window.size + law.increase / window.size)
        else:
            delay_s = law.pause_s
            if now_s >= window.until_s:
                window.size = max(1.0, window.size * law.decrease)
                window.until_s = now_s + law.pause_s
        found = []
        while window.open < int(window.size) and self._left > 0 and now_s + delay_s < self._plan.until_s:
            block, within = divmod(window.asked, _BLOCK)
            row = int(self._plan.clients[chain])
            prompt, output, asked = (int(column[row, within]) for column in self._plan.lengths(block))
            window.asked += 1
            window.open += 1
            self._left -= 1
            found.append(FollowUp(window.asked, delay_s, prompt, output, asked))
        return found
