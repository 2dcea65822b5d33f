"""How fast the replicas really are: seconds to a first token, and how soon a line moves on. All of it is learnt.

A first token comes after the prompts ahead of it at its replica were taken in: a line over their tokens, whose slope is
the seconds a prompt token costs and which begins at what an iteration takes however short the prompt is.
"""

from __future__ import annotations

from collections import deque

from policies.api import InFlight
from policies.native import mypyc_attr
from policies.parts.prefill import FIRST_TOKENS_PER_S
from policies.parts.trend import Trend

_KEPT = 0.99
_FRESH = 0.2
_PATIENCE = 3.0
_LEAST_PATIENCE_S = 2.0
_AHEAD_MOST_TOKENS = 2048
"""So many prompt tokens may always wait at a replica: one iteration's, or it would idle between two. [choice]"""


@mypyc_attr(allow_interpreted_subclasses=True)
class Prefill:
    """The prompt tokens that wait for their first token, by replica, and how long they take.

    Tokens are those that must be computed: what is likely in a replica's cache does not count. A first token that does
    not come (of an answer in one piece nobody hears) is waited for `_PATIENCE` times as long as was predicted.
    """

    __slots__ = ("_ahead", "_due", "_trend", "_waiting", "base_s", "per_token_s", "waiting_tokens")

    def __init__(self) -> None:
        self._trend = Trend(_KEPT)
        self._waiting: dict[int, float] = {}
        self._ahead: dict[str, tuple[float, int, float]] = {}
        self._due: deque[tuple[float, str]] = deque()
        self.waiting_tokens = 0.0
        self.base_s = 0.0
        self.per_token_s = 1.0 / FIRST_TOKENS_PER_S

    def ttft_s(self, tokens: float, ready_replicas: int) -> float:
        """Return the time to a first token of a prompt that is sent now."""
        ahead = self.waiting_tokens / ready_replicas if ready_replicas else 0.0
        return self.base_s + self.per_token_s * (ahead + tokens)

    def is_full(self, most_s: float, ready_replicas: int) -> bool:
        """Whether as much waits at the replicas as ``most_s`` take in."""
        waiting = self.waiting_tokens
        if waiting < _AHEAD_MOST_TOKENS * ready_replicas:
            return False
        return self.per_token_s > 0 and waiting >= most_s / self.per_token_s * ready_replicas

    def admitted(self, flight: InFlight, tokens: float) -> None:
        """Count a prompt that was sent to a replica."""
        if flight.prompt_credited:
            return
        ahead = self._waiting.get(flight.replica_id, 0.0) + tokens
        self._waiting[flight.replica_id] = ahead
        self.waiting_tokens += tokens
        request_id = flight.request.request_id
        self._ahead[request_id] = ahead, flight.replica_id, tokens
        patience_s = _PATIENCE * (self.base_s + self.per_token_s * ahead)
        if patience_s < _LEAST_PATIENCE_S:
            patience_s = _LEAST_PATIENCE_S
        self._due.append((flight.forwarded_s + patience_s, request_id))

    def ticked(self, now_s: float) -> None:
        """Stop waiting for first tokens that are long overdue; one that comes after all is still learnt from."""
        due, ahead = self._due, self._ahead
        while due and (due[0][0] <= now_s or due[0][1] not in ahead):
            request_id = due.popleft()[1]
            found = ahead.get(request_id)
            if found is not None and found[2]:
                self._release(found)
                ahead[request_id] = found[0], found[1], 0.0

    def first_token(self, flight: InFlight, now_s: float) -> None:
        """Learn from a first token."""
        found = self._ahead.get(flight.request.request_id)
        if found is None:
            return
        self.ended(flight)
        took_s = now_s - flight.forwarded_s
        if took_s > 0 and not flight.failed_at:
            self._trend.learn(found[0], took_s)
            line = self._trend.line()
            if line is not None and line[1] > 0:
                self.base_s, self.per_token_s = line
            elif line is not None:
                self.base_s = max(0.0, line[0] - self.per_token_s * found[0])

    def ended(self, flight: InFlight) -> None:
        """Forget a prompt that no longer waits."""
        found = self._ahead.pop(flight.request.request_id, None)
        if found is None:
            return
        self._release(found)
        if not self._ahead:  # exactly nothing: sums of parts would leave a rest
            self._waiting.clear()
            self._due.clear()
            self.waiting_tokens = 0.0

    def _release(self, found: tuple[float, int, float]) -> None:
        _, replica_id, tokens = found
        self._waiting[replica_id] -= tokens
        self.waiting_tokens -= tokens


@mypyc_attr(allow_interpreted_subclasses=True)
class Drain:
    """How long one line takes to move on by one, while somebody waits in it."""

    __slots__ = ("_interval_s", "_moved_s")

    def __init__(self) -> None:
        self._interval_s: float | None = None
        self._moved_s = 0.0

    def began(self, now_s: float) -> None:
        """Hear that somebody waits where nobody did."""
        self._moved_s = now_s

    def moved(self, now_s: float) -> None:
        """Hear that the first in line was let in."""
        took_s = now_s - self._moved_s
        before_s = self._interval_s
        self._interval_s = took_s if before_s is None else before_s + _FRESH * (took_s - before_s)
        self._moved_s = now_s

    def wait_s(self, length: int, now_s: float, guess_s: float) -> float:
        """Return how long who comes now will wait behind ``length`` others; ``guess_s`` till it was seen."""
        interval_s = guess_s if self._interval_s is None else self._interval_s
        since_s = now_s - self._moved_s
        if length and since_s > interval_s:  # it stands still
            interval_s += _FRESH * (since_s - interval_s)
        return interval_s * (length + 1)
