"""The better of two replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenpools.policies import ReplicaLedger, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoChoices:
    """Looks at two ready replicas in turn and takes the one with fewer tokens outstanding."""

    kind: Literal["two-choices"] = "two-choices"

    def build(self) -> TwoChoicesRouter:
        """Return the working router of one pool."""
        return TwoChoicesRouter()


class TwoChoicesRouter:
    """The working router; it remembers where it looked last."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:
        """Return the replica; None where none is ready."""
        ready = [book for book in replicas if book.ready]
        if not ready:
            return None
        two = [ready[(self._next + step) % len(ready)] for step in (0, 1)]
        self._next = (self._next + 2) % len(ready)
        return min(two, key=lambda book: book.outstanding_tokens).replica_id
