"""What an engine's scheduler leaves to choice: who is next, who gives way, and how much prefill an iteration takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol

from sim.cluster.engine_request import EngineRequest
from sim.cluster.waiting import FcfsQueue, HeapQueue


class WaitingQueue(Protocol):
    """Requests that wait for a slot; aborted ones may stay inside until they come to the front."""

    def __len__(self) -> int:
        """Return how many are inside."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Return all that are inside, in any order."""
        ...

    def push(self, request: Any) -> None:
        """Add an arrival."""
        ...

    def push_front(self, request: Any) -> None:
        """Return a preempted request."""
        ...

    def head(self) -> Any | None:
        """Return whose turn it is; None where nobody waits."""
        ...

    def pop(self) -> None:
        """Remove the head."""
        ...


class Discipline(Protocol):
    """In which order requests are served.

    Attributes
    ----------
    overtakes : whether an arrival may come before those that wait already. Where it may not, a replica whose head of
        the queue is stuck need not look at arrivals.
    """

    @property
    def overtakes(self) -> bool:
        """See the class."""
        ...

    def queue(self) -> WaitingQueue:
        """Return an empty queue."""
        ...

    def victim(self, running: Sequence[EngineRequest]) -> int:
        """Return the position of who is preempted among those that run, who come in the order of their admission."""
        ...


class Pressed(Protocol):
    """What a `Batcher` may ask of the batch: how pressed it is, and how fast."""

    slowdown: float

    @property
    def prompt_under_way_tokens(self) -> int:
        """How many tokens are computed of the prompt that is not yet complete."""
        ...

    def token_due_s(self, tpot_slo_s: float) -> float:
        """Return when the next token of the most pressed decoding request is due."""
        ...


class Batcher(Protocol):
    """How many prompt tokens an iteration takes on, where that is less than the token budget leaves."""

    def prefill_tokens(
        self, batch: Pressed, budget_tokens: int, decoding: int, context_tokens: float, now_s: float
    ) -> int:
        """Return the prompt tokens of the iteration that begins at ``now_s``, at most ``budget_tokens``.

        At least 1 where nothing decodes, or the engine would stand still. Asked only while prompts wait or are under
        way, at every iteration then.

        Parameters
        ----------
        batch : the batch that the iteration goes on with.
        budget_tokens : what ``max_num_batched_tokens`` leaves beside the decodes.
        decoding, context_tokens : sequences that decode in it, and the KV entries that they read.
        """
        ...


class Fcfs:
    """First come, first served; the last-admitted request is preempted, and returns to the front."""

    overtakes = False

    def queue(self) -> WaitingQueue:
        """See `Discipline.queue`."""
        return FcfsQueue()

    def victim(self, running: Sequence[EngineRequest]) -> int:
        """See `Discipline.victim`."""
        return len(running) - 1


class ByPriority:
    """Lowest `EngineRequest.priority` first, then by arrival; the largest of both is preempted."""

    overtakes = True

    def queue(self) -> WaitingQueue:
        """See `Discipline.queue`."""
        return HeapQueue(attrgetter("priority"))

    def victim(self, running: Sequence[EngineRequest]) -> int:
        """See `Discipline.victim`."""
        return max(range(len(running)), key=lambda i: (running[i].priority, running[i].submitted_s, -i))


class ShortestFirst(Fcfs):
    """Fewest tokens to compute first; the last-admitted request is preempted."""

    overtakes = True

    def queue(self) -> WaitingQueue:
        """See `Discipline.queue`."""
        return HeapQueue(attrgetter("target_tokens"))


DISCIPLINES: Mapping[str, Discipline] = {"fcfs": Fcfs(), "priority": ByPriority(), "shortest-first": ShortestFirst()}
"""The orders that a profile's ``scheduling`` may name; its deadline schedulers order by themselves."""
