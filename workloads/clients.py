"""What a client does when its request is turned away or broken off. Pure: the world asks, and keeps the time."""

# ruff: noqa: ARG002 - every client is told everything, and may ignore it.

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol


class Client(Protocol):
    """A client's habit. Arrivals are an open loop: whatever it does moves nobody's first attempts."""

    def next_attempt_s(
        self, outcome: str, http_status: int, retry_after_s: float | None, attempt: int, now_s: float
    ) -> float | None:
        """When the client tries again, in seconds on the caller's clock; None where it gives up.

        Parameters
        ----------
        outcome : how the attempt ended, as in the records: refused, evicted, failed; others need no retry.
        http_status : the status that came with it.
        retry_after_s : the Retry-After of the answer, None where it had none.
        attempt : number of the attempt that ended, the first being 1.
        now_s : when it ended.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Gives up at once."""

    kind: Literal["drop"] = "drop"

    def next_attempt_s(
        self, outcome: str, http_status: int, retry_after_s: float | None, attempt: int, now_s: float
    ) -> float | None:
        """See `Client`: always None."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Tries again, up to ``max_attempts`` in all.

    While it honours Retry-After, it waits as long as it is told, and gives up when told more than ``max_retry_after_s``
    or when a refusal with a 4xx status names no time at all, which means "never". In every other case it waits
    ``delay_s``.
    """

    kind: Literal["retry"] = "retry"
    max_attempts: int = field(
        default=3, metadata={"ge": 1, "le": 1000, "description": "give the attempts in all, the first included, e.g. 3"}
    )
    honour_retry_after: bool = field(
        default=True, metadata={"description": "true: wait as long as Retry-After says; false: wait delay_s"}
    )
    delay_s: float = field(
        default=1.0,
        metadata={"ge": 0, "description": "give the seconds to wait without Retry-After, e.g. 1.0, or 0 for at once"},
    )
    max_retry_after_s: float = field(
        default=60.0,
        metadata={"ge": 0, "description": "give the longest Retry-After worth waiting for in seconds, e.g. 60"},
    )
    retry_interrupted: bool = field(
        default=True, metadata={"description": "true: also retry what was evicted or failed; false: only refusals"}
    )

    def next_attempt_s(
        self, outcome: str, http_status: int, retry_after_s: float | None, attempt: int, now_s: float
    ) -> float | None:
        """See `Client`."""
        interrupted = outcome in ("evicted", "failed")
        if attempt >= self.max_attempts or not (outcome == "refused" or (interrupted and self.retry_interrupted)):
            return None
        if not self.honour_retry_after:
            return now_s + self.delay_s
        if retry_after_s is not None:
            return now_s + retry_after_s if retry_after_s <= self.max_retry_after_s else None
        says_never = outcome == "refused" and 400 <= http_status < 500
        return None if says_never else now_s + self.delay_s
