"""Which replica takes a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from policies.api import ReplicaLedger, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """Each ready replica in turn."""

    kind: Literal["round-robin"] = "round-robin"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastOutstandingTokens:
    """The ready replica that owes the fewest tokens: prompt + max_output_tokens of what is in flight there."""

    kind: Literal["least-outstanding-tokens"] = "least-outstanding-tokens"


class RoundRobinRouter:
    """Goes round the replicas in the order of the books, and skips those that are not ready."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:  # noqa: ARG002
        """See `policies.api.Router`."""
        position = self._next
        for _ in replicas:
            if position >= len(replicas):
                position = 0
            replica = replicas[position]
            position += 1
            if replica.ready:
                self._next = position
                return replica.replica_id
        return None


class LeastOutstandingTokensRouter:
    """Takes the least loaded replica; ties go to the lowest id."""

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:  # noqa: ARG002
        """See `policies.api.Router`."""
        best: ReplicaLedger | None = None
        least_tokens = 0
        for replica in replicas:  # a plain loop: half the cost of min() with a key
            if not replica.ready:
                continue
            tokens = replica.outstanding_tokens
            fewer = best is None or tokens < least_tokens
            if fewer or (tokens == least_tokens and best is not None and replica.replica_id < best.replica_id):
                best, least_tokens = replica, tokens
        return None if best is None else best.replica_id
