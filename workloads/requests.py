"""The demand a workload makes: columns of requests, in order of arrival."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Streams = Callable[[str], np.random.Generator]
"""Makes a random generator from a name."""

Prefix = tuple[tuple[int, int], ...]
"""The lines of text that a request's tokens run through: (name, tokens from the start to where it leaves the line).

Requests that run through lines of the same names have the same text up to where the shorter leaves the last of them."""

ENDLESS = 1 << 40
"""Where a line is left that a request's answer goes on with: beyond all lengths."""


class Prefixes(Protocol):
    """What is known of the text of requests."""

    def of(self, index: int) -> Prefix:
        """Return the lines that a request runs through."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """Requests that come with their lengths: seconds from the start of the run, and tokens, shape (n,) each.

    Attributes
    ----------
    max_output_tokens : what each client asked for, 0 where it named no limit; None where that was not recorded.
    failed : requests of the recording that failed, between these, and are left out.
    raised : counts of 0 tokens among these that were raised to 1.
    unanswered : requests among these that nobody answered, whose lengths were filled in.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    prefixes: Prefixes | None = None
    max_output_tokens: Ints | None = None
    failed: int = 0
    raised: int = 0
    unanswered: int = 0


class Lengths(Protocol):
    """Draws lengths of a workload's requests, the same for the same suffix."""

    def __call__(self, count: int, suffix: str = "") -> tuple[Ints, Ints, Ints]:
        """Return prompts, outputs and what the client asks for, 0 where it names no limit."""
        ...


class FollowUp(NamedTuple):
    """A request that comes because others have ended: ``delay_s`` from now, as number ``step`` of its chain.

    ``max_output_tokens`` is 0 where the client names no limit, ``prefix`` None where nothing is known of the text.
    """

    step: int
    delay_s: float
    prompt_tokens: int
    output_tokens: int
    max_output_tokens: int
    prefix: Prefix | None = None


class Following(Protocol):
    """What comes after what, during one run."""

    def ended(self, chain: int, step: int, succeeded: bool, now_s: float) -> Sequence[FollowUp]:
        """Return what follows the end of a request: number ``step`` (from 1) of what request ``chain`` began.

        ``succeeded`` is False for what was refused, broken off or cancelled for good.
        """
        ...


class Plan(Protocol):
    """What comes after the requests of a demand; the same for every run."""

    def begin(self) -> Following:
        """Return the state of a run at its start."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Requests of one workload, one element of each array a request, sorted by arrival.

    Attributes
    ----------
    arrival_s : shape (n,), seconds from the start of the run.
    prompt_tokens : shape (n,), at least 1.
    output_tokens : shape (n,), at least 1: the true length, which only replicas see.
    max_output_tokens : shape (n,), what the client asks for; 0 where it names no limit.
    prefixes : what their prompts have in common; None where that is not known.
    plan : what comes after them, once they have ended; None: nothing, as with an open loop.
    failed, raised, unanswered : as in `Replayed`.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    max_output_tokens: Ints
    plan: Plan | None = None
    prefixes: Prefixes | None = None
    failed: int = 0
    raised: int = 0
    unanswered: int = 0

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.arrival_s)
