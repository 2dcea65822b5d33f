"""How long until a first token: prompts that are ahead, at the rate at which replicas were seen to take them in."""

from __future__ import annotations

from policies.api import InFlight

FIRST_TOKENS_PER_S = 8500.0
"""Prefill rate of a replica until one was seen: Niyama's (arXiv 2503.22562)."""
FRESH_SHARE = 0.005
"""Its moving average's: Niyama takes 0.995 of the old."""


class PrefillClock:
    """The prompt tokens that wait for their first token, by replica, and how fast a replica works them off.

    A rate is seen at a first token: the prompt tokens that were ahead when it was sent, its own included, over the time
    it took. A replica that makes prompts wait for slots seems slow, as it is for who comes next.
    """

    __slots__ = ("_ahead", "_fresh_share", "_outstanding", "outstanding_tokens", "tokens_per_s")

    def __init__(self, tokens_per_s: float = FIRST_TOKENS_PER_S, fresh_share: float = FRESH_SHARE) -> None:
        self.tokens_per_s = tokens_per_s
        self.outstanding_tokens = 0
        self._fresh_share = fresh_share
        self._outstanding: dict[int, int] = {}
        self._ahead: dict[str, tuple[int, int, int]] = {}

    def wait_s(self, prompt_tokens: float, ahead_tokens: float, ready_replicas: int) -> float:
        """Return the time to a first token, with so much ahead of it at the gateway, spread evenly over replicas."""
        ahead = (self.outstanding_tokens + ahead_tokens) / max(1, ready_replicas)
        return (ahead + prompt_tokens) / self.tokens_per_s

    def admitted(self, flight: InFlight) -> None:
        """Count a prompt that was sent to a replica."""
        if flight.prompt_credited:
            return
        prompt_tokens, replica_id = flight.request.prompt_tokens, flight.replica_id
        ahead = self._outstanding.get(replica_id, 0) + prompt_tokens
        self._outstanding[replica_id] = ahead
        self.outstanding_tokens += prompt_tokens
        self._ahead[flight.request.request_id] = ahead, replica_id, prompt_tokens

    def first_token(self, flight: InFlight, now_s: float) -> None:
        """Learn from a first token."""
        found = self._ahead.get(flight.request.request_id)
        self.ended(flight)
        took_s = now_s - flight.forwarded_s
        if found is not None and took_s > 0:
            self.tokens_per_s += self._fresh_share * (found[0] / took_s - self.tokens_per_s)

    def ended(self, flight: InFlight) -> None:
        """Forget a prompt that no longer waits."""
        found = self._ahead.pop(flight.request.request_id, None)
        if found is not None:
            _, replica_id, prompt_tokens = found  # not the request's: the upstream may have counted another number
            self._outstanding[replica_id] -= prompt_tokens
            self.outstanding_tokens -= prompt_tokens
