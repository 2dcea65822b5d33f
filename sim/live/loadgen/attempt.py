"""One attempt of a request, as the load generator keeps it: what becomes a row of the records."""

from __future__ import annotations

from dataclasses import dataclass

from sim.live.observability.observer import NEVER_S
from sim.records.schema import Outcome
from workloads.requests import Prefix


@dataclass(slots=True, eq=False)
class LiveAttempt:
    """An attempt; times in seconds from the start of the run, NaN until reached.

    See `sim.records.attempt_table.Recordable`.

    Attributes
    ----------
    arrival_s : when it was due. Latencies count from here, so that a late generator flatters nobody.
    output_tokens : how many it is to get, which the server is told by other means than ``asked_tokens``.
    forwarded_s : when it was due, for those that were let in: a client cannot see more.
    lag_s : how long after ``arrival_s`` the request was written, less the time that a new connection took.
    connect_s : that time; 0 where a connection was open.
    prefix : the lines of text that its prompt runs through, where something is known of it.
    token_s : when each event with output came, where somebody wants to know.
    events : events with output that have come; a server may put several tokens in one.
    usage_tokens : output tokens by the server's usage; -1 where it has said nothing.
    """

    request_id: str
    number: int
    workload: int
    priority: int
    arrival_s: float
    first_arrival_s: float
    prompt_tokens: int
    output_tokens: int
    asked_tokens: int
    final: bool = True
    delivered_tokens: int = 0
    cached_tokens: int = -1
    forwarded_s: float = NEVER_S
    first_token_s: float = NEVER_S
    finish_s: float = NEVER_S
    retry_after_s: float = NEVER_S
    replica: int = -1
    outcome: Outcome = Outcome.WAITING
    reason: str = ""
    http_status: int = 0
    preemptions: int = 0
    lag_s: float = NEVER_S
    connect_s: float = 0.0
    error: str = ""
    prefix: Prefix | None = None
    token_s: list[float] | None = None
    events: int = 0
    usage_tokens: int = -1
