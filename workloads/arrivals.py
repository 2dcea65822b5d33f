"""When requests arrive: laws that turn a random stream into sorted arrival times.

Every law starts in its long-run state, so the expected number of arrivals in any window is its rate times the window's
length. Draws are taken one after another: a longer window or a higher limit adds arrivals at the end and moves none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from workloads.points import LEAST_RATE_PER_S, MAX_ARRIVALS, cut, points, refuse_too_many
from workloads.requests import Floats

__all__ = ["MAX_ARRIVALS", "Arrivals", "Even", "Poisson"]

_RATE = {"ge": LEAST_RATE_PER_S, "description": "give requests per second, e.g. 4.0"}


class Arrivals(Protocol):
    """A law of arrival times."""

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """Return sorted arrival times in [from_s, until_s), at most ``limit`` of them, in seconds.

        Raises
        ------
        ValueError
            If the window holds more than `MAX_ARRIVALS`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Even:
    """Evenly spaced arrivals: the first ``phase_s`` after the window opens, then one every 1/rate seconds.

    Without a phase it is drawn, uniform in one spacing. Against a server that is just as regular, a fixed phase decides
    who always comes first, so a result of fixed phases holds for that alignment only.
    """

    kind: Literal["even"] = "even"
    rate_per_s: float = field(metadata=_RATE)
    phase_s: float | None = field(
        default=None,
        metadata={"ge": 0, "description": "give seconds from the start to the first arrival, e.g. 0.5, or null: drawn"},
    )

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """See `Arrivals`."""
        phase_s = rng.random() / self.rate_per_s if self.phase_s is None else self.phase_s
        first_s = from_s + phase_s
        if not first_s < until_s:  # perhaps never: a spacing may be longer than any number
            return np.empty(0)
        expected = (until_s - first_s) * self.rate_per_s
        refuse_too_many(expected if limit is None else min(expected, limit))
        count = max(0, math.ceil(expected) + 1) if limit is None or expected < limit else limit
        return cut(first_s + np.arange(count) / self.rate_per_s, until_s, limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson:
    """Independent arrivals: exponential gaps of mean 1/rate, whose coefficient of variation is 1."""

    kind: Literal["poisson"] = "poisson"
    rate_per_s: float = field(metadata=_RATE)

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """See `Arrivals`."""
        mean_s = 1.0 / self.rate_per_s
        first_s = from_s + rng.exponential(mean_s)
        return cut(points(first_s, lambda n: rng.exponential(mean_s, n), mean_s, until_s, limit), until_s, limit)
