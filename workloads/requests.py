"""The demand a workload makes: columns of requests, in order of arrival."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Requests of one workload, one element of each array a request, sorted by arrival.

    Attributes
    ----------
    arrival_s : shape (n,), seconds from the start of the run.
    prompt_tokens : shape (n,), at least 1.
    output_tokens : shape (n,), at least 1: the true length, which only replicas see.
    max_output_tokens : shape (n,), what the client asks for; 0 where it names no limit.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    max_output_tokens: Ints

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.arrival_s)
