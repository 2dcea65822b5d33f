"""How fast replicas make tokens, and how many an event carries: what prices work that nobody saw.

A client that hangs up has not seen all that was generated for it. What a replica made meanwhile is estimated by the
fastest of its last answers, so that leaving early never is cheaper than staying; where nothing is known, it is what was
reserved.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_LAST = 32
_ENOUGH = 4
"""Answers after which what was measured stands for what the profile says. [choice]"""
_LEAST_TOKENS = 8
_LEAST_S = 0.05


@dataclass(slots=True, eq=False)
class _Replica:
    tokens_per_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST))
    tokens_per_event: float = 1.0


class TokenPace:
    """What was seen of each replica; ``decode_s`` is what a token takes at best, None where nobody says."""

    def __init__(self, decode_s: float | None) -> None:
        self._prior = None if decode_s is None else 1 / decode_s
        self._replicas: dict[int, _Replica] = {}

    def learn(self, replica_id: int, *, tokens: int, events: int, elapsed_s: float, answers: int) -> None:
        """Take note of an answer that ended: its tokens, the events that carried them, and how long they took."""
        if tokens < _LEAST_TOKENS * answers:
            return
        replica = self._replicas.setdefault(replica_id, _Replica())
        if elapsed_s >= _LEAST_S:
            replica.tokens_per_s.append(tokens / answers / elapsed_s)
        if events:
            replica.tokens_per_event = tokens / events

    def tokens_per_event(self, replica_id: int) -> float:
        """Return how many tokens an event of this replica carries, 1 where nothing is known."""
        replica = self._replicas.get(replica_id)
        return 1.0 if replica is None else max(1.0, replica.tokens_per_event)

    def tokens_per_s(self, replica_id: int) -> float | None:
        """Return how many tokens of one sequence a replica makes a second at most; None where nothing is known."""
        replica = self._replicas.get(replica_id)
        seen = () if replica is None else replica.tokens_per_s
        if len(seen) >= _ENOUGH or (seen and self._prior is None):
            return max(seen)
        if seen and self._prior is not None:
            return max(self._prior, *seen)
        return self._prior
