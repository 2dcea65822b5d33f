"""Lengths with a heavy tail, as reasoning models have them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from workloads.coupling import normal_cdf
from workloads.lengths import MAX_TOKENS, Lognormal
from workloads.requests import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Pareto:
    """A heavy tail: a length above x has the probability (min/x)^alpha, cut at ``max``.

    The smaller ``alpha``, the heavier: at 2 and below the variance, at 1 and below the mean is that of ``max`` alone.
    """

    kind: Literal["pareto"] = "pareto"
    alpha: float = field(metadata={"gt": 0, "le": 100, "description": "give the exponent of the tail, e.g. 1.5"})
    min: int = field(metadata={"ge": 1, "le": MAX_TOKENS, "description": "give the least number of tokens, e.g. 200"})
    max: int = field(
        metadata={"ge": 1, "le": MAX_TOKENS, "description": "give the greatest number of tokens, e.g. 32768"}
    )

    def __post_init__(self) -> None:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}; raise max or lower min")

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """See `workloads.lengths.LengthLaw`."""
        return self.from_uniform(rng.random(n))

    def from_uniform(self, u: Floats) -> Ints:
        """See `workloads.lengths.LengthLaw`: what is beyond ``max`` is drawn again, so to speak, not piled up there."""
        above_max = (self.min / (self.max + 1)) ** self.alpha
        survival = 1 - u * (1 - above_max)
        tokens: Ints = np.clip(np.floor(self.min * survival ** (-1 / self.alpha)), self.min, self.max).astype(np.int64)
        return tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """Answers of a reasoning model: a lognormal body, and a share that thinks at length, with a Pareto tail."""

    kind: Literal["reasoning"] = "reasoning"
    mean: float = field(metadata={"ge": 1, "le": MAX_TOKENS, "description": "give the mean of the body, e.g. 600"})
    cv: float = field(metadata={"ge": 0, "le": 100, "description": "give the body's deviation over mean, e.g. 1.0"})
    long_share: float = field(
        metadata={"ge": 0, "le": 1, "description": "give the share that thinks at length, e.g. 0.2"}
    )
    long_from: int = field(
        metadata={"ge": 1, "le": MAX_TOKENS, "description": "give the tokens that the tail starts at, e.g. 2000"}
    )
    alpha: float = field(metadata={"gt": 0, "le": 100, "description": "give the exponent of the tail, e.g. 1.5"})
    max: int = field(
        default=131_072,
        metadata={"ge": 1, "le": MAX_TOKENS, "description": "give the greatest number of tokens, e.g. 32768"},
    )

    def __post_init__(self) -> None:
        if self.max < max(self.long_from, self.mean):
            raise ValueError(f"max {self.max} is below long_from or mean; raise max")

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """See `workloads.lengths.LengthLaw`."""
        of_body, of_tail, of_kind = rng.spawn(3)
        body = Lognormal(mean=self.mean, cv=self.cv, max=self.max).draw(of_body, n)
        tail = Pareto(alpha=self.alpha, min=self.long_from, max=self.max).draw(of_tail, n)
        return np.where(of_kind.random(n) < self.long_share, tail, body)

    def from_uniform(self, u: Floats) -> Ints:
        """See `workloads.lengths.LengthLaw`: by halving, since a mixture's quantiles have no closed form."""
        body = Lognormal(mean=self.mean, cv=self.cv, max=self.max)
        mean, deviation = body._of_logarithm()
        low, high = np.zeros(len(u)), np.full(len(u), float(self.max))
        above_max = (self.long_from / (self.max + 1)) ** self.alpha
        for _ in range(40):
            middle = (low + high) / 2
            z = (np.log(middle + 0.5) - mean) / deviation if deviation else np.where(middle >= self.mean, 40.0, -40.0)
            cut = np.floor(middle) + 1
            tail = (1 - (self.long_from / np.maximum(cut, self.long_from)) ** self.alpha) / (1 - above_max)
            below = (1 - self.long_share) * normal_cdf(z) + self.long_share * tail
            low, high = np.where(below < u, middle, low), np.where(below < u, high, middle)
        tokens: Ints = np.clip(np.rint(high), 1, self.max).astype(np.int64)
        return tokens
