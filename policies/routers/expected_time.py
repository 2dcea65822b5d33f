"""To the replica that would be done first: what it owes over how fast it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import InFlight, ReplicaLedger, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastExpectedTime:
    """The ready replica with the least (tokens owed + this request's) / speed; ties go to the lowest id.

    ``speeds: profile`` takes speeds from the replicas' profiles. ``measured`` takes the moving mean of seconds a token
    of answers took at each replica, waiting there included, so that it also follows replicas that slow down; one that
    has answered nothing yet counts as the fastest seen, and is tried.
    """

    kind: Literal["least-expected-time"] = "least-expected-time"
    speeds: Literal["profile", "measured"] = field(
        default="profile", metadata={"description": "profile, or measured: from answers, as they end"}
    )
    smoothing: float = field(
        default=0.9, metadata={"ge": 0, "lt": 1, "description": "give what an answer leaves of the old mean, e.g. 0.9"}
    )


class LeastExpectedTimeRouter:
    """See `policies.api.Router`."""

    def __init__(self, params: LeastExpectedTime) -> None:
        self._measures = params.speeds == "measured"
        self._fresh_share = 1 - params.smoothing
        self._token_s: dict[int, float] = {}

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:
        """See `policies.api.Router`."""
        own_tokens = request.prompt_tokens + (request.max_output_tokens or 0)
        fastest_s = min(self._token_s.values(), default=1.0)
        best: tuple[float, int] | None = None
        for book in replicas:
            if not book.ready:
                continue
            token_s = self._token_s.get(book.replica_id, fastest_s) if self._measures else 1 / book.speed
            expected = (book.outstanding_tokens + own_tokens) * token_s
            if best is None or (expected, book.replica_id) < best:
                best = expected, book.replica_id
        return None if best is None else best[1]

    def completed(self, flight: InFlight, output_tokens: int, service_s: float) -> None:
        """See `policies.api.CompletionFollowing`."""
        if self._measures and output_tokens > 0:
            token_s = service_s / output_tokens
            mean_s = self._token_s.get(flight.replica_id, token_s)
            self._token_s[flight.replica_id] = mean_s + self._fresh_share * (token_s - mean_s)

    @property
    def token_s(self) -> dict[int, float]:
        """Seconds a token took at each replica that has answered."""
        return dict(self._token_s)
