"""Arrivals by day, and none by night."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tokenpools.workloads import Floats, cut, points


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficeHours:
    """Poisson arrivals in the first part of every period, and none in the rest."""

    kind: Literal["office-hours"] = "office-hours"
    rate_per_s: float = field(default=4.0, metadata={"gt": 0, "description": "give requests per second, e.g. 4.0"})
    period_s: float = field(default=20.0, metadata={"gt": 0, "description": "give the seconds of a day, e.g. 20"})
    open_share: float = field(
        default=0.5, metadata={"gt": 0, "le": 1, "description": "give the part of it that is open, e.g. 0.5"}
    )

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """Return arrival times: those of a Poisson process in open time, each put where the clock has it."""
        open_s = self.period_s * self.open_share
        mean_s = 1 / self.rate_per_s
        end_s = open_s * math.ceil(max(0.0, until_s - from_s) / self.period_s)
        worked_s = points(rng.exponential(mean_s), lambda n: rng.exponential(mean_s, n), mean_s, end_s, limit)
        days = np.floor(worked_s / open_s)
        return cut(from_s + days * self.period_s + (worked_s - days * open_s), until_s, limit)
