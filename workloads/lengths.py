"""How many tokens requests have: laws that turn a random stream into token counts of at least 1."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from workloads.coupling import normal_quantile
from workloads.requests import Floats, Ints

MAX_TOKENS = 10_000_000
"""Largest length a parameter may name: several times the longest context window that is served."""


class LengthLaw(Protocol):
    """A law of token counts."""

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """Return ``n`` independent lengths in tokens, each at least 1; drawing more leaves the first ones unchanged."""
        ...

    def from_uniform(self, u: Floats) -> Ints:
        """Return the lengths at these quantiles, ``u`` in [0, 1]: longer for larger ``u``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """The same length for every request."""

    kind: Literal["constant"] = "constant"
    value: int = field(metadata={"ge": 1, "le": MAX_TOKENS, "description": "give a number of tokens, e.g. 64"})

    def draw(self, rng: np.random.Generator, n: int) -> Ints:  # noqa: ARG002
        """See `LengthLaw`; nothing is drawn."""
        return np.full(n, self.value, dtype=np.int64)

    def from_uniform(self, u: Floats) -> Ints:
        """See `LengthLaw`."""
        return np.full(len(u), self.value, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Every whole number from ``low`` to ``high``, both included, equally likely."""

    kind: Literal["uniform"] = "uniform"
    low: int = field(metadata={"ge": 1, "le": MAX_TOKENS, "description": "give the least number of tokens, e.g. 32"})
    high: int = field(
        metadata={"ge": 1, "le": MAX_TOKENS, "description": "give the greatest number of tokens, e.g. 176"}
    )

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}; swap them")

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """See `LengthLaw`."""
        return rng.integers(self.low, self.high, size=n, endpoint=True, dtype=np.int64)

    def from_uniform(self, u: Floats) -> Ints:
        """See `LengthLaw`."""
        tokens: Ints = np.minimum(self.low + np.floor(u * (self.high - self.low + 1)), self.high).astype(np.int64)
        return tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """A lognormal law with this mean and coefficient of variation, rounded to whole tokens and clipped.

    ``mean`` is the mean of the law itself (not of its logarithm, and not its median). Rounding to the nearest token
    moves the drawn mean by less than half a token, and by nearly nothing where the law is many tokens wide. Clipping
    to ``min`` and ``max`` moves it by the mass that is cut off: a low ``max`` makes it noticeably smaller.
    """

    kind: Literal["lognormal"] = "lognormal"
    mean: float = field(metadata={"ge": 1, "le": MAX_TOKENS, "description": "give the mean number of tokens, e.g. 512"})
    cv: float = field(metadata={"ge": 0, "le": 100, "description": "give standard deviation over mean, e.g. 0.8"})
    min: int = field(
        default=1, metadata={"ge": 1, "le": MAX_TOKENS, "description": "give the least number of tokens, e.g. 1"}
    )
    max: int | None = field(
        default=None,
        metadata={"ge": 1, "le": MAX_TOKENS, "description": "give the greatest number of tokens, e.g. 8192"},
    )

    def __post_init__(self) -> None:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}; raise max or lower min")
        if self.mean < self.min:
            raise ValueError(f"mean {self.mean:g} is below min {self.min}; raise mean or lower min")
        if self.max is not None and self.mean > self.max:
            raise ValueError(f"mean {self.mean:g} is above max {self.max}; raise max or lower mean")

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """See `LengthLaw`."""
        return self._tokens(rng.lognormal(*self._of_logarithm(), n))

    def from_uniform(self, u: Floats) -> Ints:
        """See `LengthLaw`."""
        mean, deviation = self._of_logarithm()
        return self._tokens(np.exp(mean + deviation * normal_quantile(u)))

    def _of_logarithm(self) -> tuple[float, float]:
        """Return mean and standard deviation of the logarithm."""
        variance = math.log1p(self.cv**2)
        return math.log(self.mean) - variance / 2, math.sqrt(variance)

    def _tokens(self, lengths: Floats) -> Ints:
        tokens: Ints = np.clip(np.rint(lengths), self.min, self.max).astype(np.int64)
        return tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Empirical:
    """Lengths drawn with replacement from ``values``, in proportion to ``weights`` or all alike."""

    kind: Literal["empirical"] = "empirical"
    values: tuple[int, ...] = field(metadata={"description": "give a list of numbers of tokens, e.g. [32, 64, 512]"})
    weights: tuple[float, ...] | None = field(
        default=None, metadata={"description": "give one weight for each value, e.g. [0.5, 0.3, 0.2], or none"}
    )

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values is empty; give at least one number of tokens")
        for value in self.values:
            if not 1 <= value <= MAX_TOKENS:
                raise ValueError(f"values holds {value}; give numbers of tokens from 1 to {MAX_TOKENS}")
        if self.weights is None:
            return
        if len(self.weights) != len(self.values):
            raise ValueError(f"{len(self.weights)} weights for {len(self.values)} values; give one for each")
        for weight in self.weights:
            if not 0 <= weight < math.inf:
                raise ValueError(f"weights holds {weight:g}; give finite weights of 0 or more")
        if not 0 < sum(self.weights) < math.inf:
            raise ValueError(f"weights add up to {sum(self.weights):g}; give at least one above 0, and none huge")

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """See `LengthLaw`."""
        values = np.array(self.values, dtype=np.int64)
        if self.weights is None:
            return values[rng.integers(0, len(values), size=n)]
        return self._at(values, np.array(self.weights, dtype=np.float64), rng.random(n))

    def from_uniform(self, u: Floats) -> Ints:
        """See `LengthLaw`."""
        values = np.array(self.values, dtype=np.int64)
        weights = np.ones(len(values)) if self.weights is None else np.array(self.weights, dtype=np.float64)
        order = np.argsort(values, kind="stable")
        return self._at(values[order], weights[order], u)

    @staticmethod
    def _at(values: Ints, weights: Floats, u: Floats) -> Ints:
        share = np.cumsum(weights)
        # side="right" never picks a weight of 0, whose share equals that of the value before it.
        index = np.searchsorted(share / share[-1], np.minimum(u, 1 - 2.0**-53), side="right")
        return values[index]
