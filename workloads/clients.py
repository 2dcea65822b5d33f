"""What a client does when its request is turned away or broken off. Pure: the world asks, and keeps the time."""

# ruff: noqa: ARG002 - every client is told everything, and may ignore it.

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from workloads.requests import Ints

_ATTEMPTS = {"ge": 1, "le": 1000, "description": "give the attempts in all, the first included, e.g. 3"}
_DELAY = {"ge": 0, "description": "give the seconds to wait without Retry-After, e.g. 1.0, or 0 for at once"}
_LONGEST = {"ge": 0, "description": "give the longest Retry-After worth waiting for in seconds, e.g. 60"}


class Chance(Protocol):
    """A seeded source of uniform numbers in [0, 1); `random.Random` and numpy's Generator both are one."""

    def random(self) -> float:
        """Return the next number."""
        ...


class Client(Protocol):
    """A client's habit. Where arrivals are an open loop, whatever it does moves nobody's first attempts."""

    def next_attempt_s(
        self,
        outcome: str,
        http_status: int,
        retry_after_s: float | None,
        attempt: int,
        now_s: float,
        chance: Chance | None = None,
    ) -> float | None:
        """When the client tries again, in seconds on the caller's clock; None where it gives up.

        Parameters
        ----------
        outcome : how the attempt ended, as in the records: refused, evicted, failed; others need no retry.
        http_status : the status that came with it.
        retry_after_s : the Retry-After of the answer, None where it had none.
        attempt : number of the attempt that ended, the first being 1.
        now_s : when it ended.
        chance : for jitter; None: none.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Gives up at once."""

    kind: Literal["drop"] = "drop"

    def next_attempt_s(
        self,
        outcome: str,
        http_status: int,
        retry_after_s: float | None,
        attempt: int,
        now_s: float,
        chance: Chance | None = None,
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
    max_attempts: int = field(default=3, metadata=_ATTEMPTS)
    honour_retry_after: bool = field(
        default=True, metadata={"description": "true: wait as long as Retry-After says; false: wait delay_s"}
    )
    delay_s: float = field(default=1.0, metadata=_DELAY)
    max_retry_after_s: float = field(default=60.0, metadata=_LONGEST)
    retry_interrupted: bool = field(
        default=True, metadata={"description": "true: also retry what was evicted or failed; false: only refusals"}
    )

    def next_attempt_s(
        self,
        outcome: str,
        http_status: int,
        retry_after_s: float | None,
        attempt: int,
        now_s: float,
        chance: Chance | None = None,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiSdk:
    """Retries as OpenAI's Python library 3.x does when nothing is set.

    A status of 408, 409, 429 or 5xx is tried again twice. A Retry-After (``retry-after-ms``, in the library, goes
    before it) of up to 120 s is waited for, one above means no retry, and without one the wait is 0.5 s, doubled with
    each retry up to 8 s, less up to a quarter by chance. What broke off after it was let in is an answer under way,
    which the library does not ask for again.

    References
    ----------
    openai 3.54.0, ``_base_client.py`` (``_should_retry``, ``_calculate_retry_timeout``) and ``_constants.py``.
    """

    kind: Literal["openai-sdk"] = "openai-sdk"
    max_retries: int = field(
        default=2, metadata={"ge": 0, "le": 1000, "description": "give the retries after the first attempt, e.g. 2"}
    )
    retry_interrupted: bool = field(
        default=False, metadata={"description": "true: also retry what was evicted or failed; false: only refusals"}
    )

    def next_attempt_s(
        self,
        outcome: str,
        http_status: int,
        retry_after_s: float | None,
        attempt: int,
        now_s: float,
        chance: Chance | None = None,
    ) -> float | None:
        """See `Client`."""
        ended = outcome == "refused" or (outcome in ("evicted", "failed") and self.retry_interrupted)
        if attempt > self.max_retries or not ended:
            return None
        if http_status not in (408, 409, 429) and http_status < 500:
            return None
        if retry_after_s is not None and retry_after_s > _SDK_LONGEST_S:
            return None
        if retry_after_s is not None and retry_after_s > 0:
            return now_s + retry_after_s
        wait_s = min(0.5 * 2.0 ** min(attempt - 1, 1000), 8.0)
        return now_s + wait_s * (1 - 0.25 * (0.0 if chance is None else chance.random()))


_SDK_LONGEST_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Impatient:
    """Goes away after ``patience_s``, counted from the first attempt: what runs is cancelled, what waits is dropped.

    Until then it tries again as `Retry` does, honouring Retry-After.
    """

    kind: Literal["impatient"] = "impatient"
    patience_s: float = field(metadata={"gt": 0, "description": "give the seconds a user waits, e.g. 10"})
    waits_for: Literal["first-token", "last-token"] = field(
        default="first-token", metadata={"description": "give what for, e.g. first-token, or last-token for all of it"}
    )
    max_attempts: int = field(default=1, metadata=_ATTEMPTS)

    def next_attempt_s(
        self,
        outcome: str,
        http_status: int,
        retry_after_s: float | None,
        attempt: int,
        now_s: float,
        chance: Chance | None = None,
    ) -> float | None:
        """See `Client`."""
        retry = Retry(max_attempts=self.max_attempts)
        return retry.next_attempt_s(outcome, http_status, retry_after_s, attempt, now_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCooldown:
    """Tries again as `Retry` does, and its whole session keeps still as long as one of its calls was told to.

    A session is a conversation or an agent's task. Until the longest Retry-After that any of its calls was given is
    over (without one, ``delay_s``), none of them comes again, and no next step begins; what runs goes on. Requests
    that stand alone wait for themselves. A load test against a live gateway lets each call wait for itself.
    """

    kind: Literal["shared-cooldown"] = "shared-cooldown"
    max_attempts: int = field(default=3, metadata=_ATTEMPTS)
    delay_s: float = field(default=1.0, metadata=_DELAY)
    max_retry_after_s: float = field(default=60.0, metadata=_LONGEST)

    def next_attempt_s(
        self,
        outcome: str,
        http_status: int,
        retry_after_s: float | None,
        attempt: int,
        now_s: float,
        chance: Chance | None = None,
    ) -> float | None:
        """See `Client`."""
        retry = Retry(
            max_attempts=self.max_attempts, delay_s=self.delay_s, max_retry_after_s=self.max_retry_after_s
        )
        return retry.next_attempt_s(outcome, http_status, retry_after_s, attempt, now_s)

    def cooldown_s(self, outcome: str, retry_after_s: float | None) -> float:
        """Return how long the session keeps still after the end of one of its calls."""
        if outcome not in ("refused", "evicted", "failed"):
            return 0.0
        wait_s = self.delay_s if retry_after_s is None else retry_after_s
        return min(wait_s, self.max_retry_after_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adversarial:
    """Takes what it can: comes back at once whatever it is told, asks for more than it needs, uses several keys.

    ``inflate`` multiplies the max_tokens that it asks for; the outputs stay. Request k goes under key k modulo the
    number of keys, the workload's entitlement being the first, and is tried again under the same.
    """

    kind: Literal["adversarial"] = "adversarial"
    max_attempts: int = field(
        default=20,
        metadata={"ge": 1, "le": 1000, "description": "give the attempts in all, the first included, e.g. 20"},
    )
    delay_s: float = field(
        default=0.1,
        metadata={"ge": 0, "description": "give the seconds before it comes again, e.g. 0.1, or 0: at once"},
    )
    inflate: float = field(
        default=1.0, metadata={"ge": 1, "le": 1e6, "description": "give a factor on the max_tokens asked for, e.g. 4"}
    )
    keys: tuple[str, ...] = field(
        default=(), metadata={"description": "give further entitlements that it also uses, e.g. [free-2, free-3]"}
    )

    def requested_max_tokens(self, max_output_tokens: Ints) -> Ints:
        """Return what it asks for in place of these; 0, no limit named, stays."""
        requested: Ints = np.minimum(np.ceil(max_output_tokens * self.inflate), _MOST_REQUESTED).astype(np.int64)
        return requested

    def next_attempt_s(
        self,
        outcome: str,
        http_status: int,
        retry_after_s: float | None,
        attempt: int,
        now_s: float,
        chance: Chance | None = None,
    ) -> float | None:
        """See `Client`."""
        if attempt >= self.max_attempts or outcome not in ("refused", "evicted", "failed"):
            return None
        never = outcome == "refused" and retry_after_s is None and 400 <= http_status < 500 and http_status != 429
        return None if never else now_s + self.delay_s


_MOST_REQUESTED = 2**31 - 1


def deadline_s(client: Client, first_arrival_s: float) -> float:
    """Return when the client goes away; infinity where it waits for ever."""
    return first_arrival_s + client.patience_s if isinstance(client, Impatient) else math.inf
