"""How long an answer will be, guessed before it is known. A reservation is as good as this guess.

What is learnt or known is never above what the request may be answered with at most; a fixed number may be.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from policies.api import InFlight, RequestView

_TAU = 2 * math.pi


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxTokens:
    """As long as the client allows: never too low, often far too high."""

    kind: Literal["max-tokens"] = "max-tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultCap:
    """What the client allows, and a fixed number where it names nothing."""

    kind: Literal["default-cap"] = "default-cap"
    tokens: int = field(default=1024, metadata={"gt": 0, "description": "give output tokens, e.g. 1024"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """The same for every request, prompt included: Kuadrant's reservations take 5000."""

    kind: Literal["flat"] = "flat"
    tokens: int = field(default=5000, metadata={"gt": 0, "description": "give prompt + output tokens, e.g. 5000"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOnly:
    """Nothing: only the prompt counts until the request has ended."""

    kind: Literal["prompt-only"] = "prompt-only"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantMean:
    """The mean of the entitlement's last answers; what the client allows until there is one."""

    kind: Literal["tenant-mean"] = "tenant-mean"
    last: int = field(default=5, metadata={"gt": 0, "description": "give how many answers count, e.g. 5"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """A quantile of the entitlement's answers, followed by small steps; what the client allows until there is one.

    Each answer moves the guess up by ``step`` * q or down by ``step`` * (1 - q) of the moving mean answer, so that the
    share q of answers lies below it.
    """

    kind: Literal["quantile"] = "quantile"
    q: float = field(default=0.9, metadata={"gt": 0, "lt": 1, "description": "give a quantile, e.g. 0.9"})
    step: float = field(default=0.1, metadata={"gt": 0, "le": 1, "description": "give a share, e.g. 0.1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """The true length, times a lognormal error. Only a simulator knows it, and a result that used it says so.

    The error hangs on the request alone, so that every policy meets the same one.
    """

    kind: Literal["oracle"] = "oracle"
    sigma: float = field(default=0.0, metadata={"ge": 0, "description": "give the error's log standard deviation, 0.3"})


Estimate = MaxTokens | DefaultCap | Flat | PromptOnly | TenantMean | Quantile | Oracle
ESTIMATES: dict[str, type] = {
    "max-tokens": MaxTokens, "default-cap": DefaultCap, "flat": Flat, "prompt-only": PromptOnly,
    "tenant-mean": TenantMean, "quantile": Quantile, "oracle": Oracle,
}  # fmt: skip
ESTIMATE = {
    "discriminator": "kind",
    "description": "give how long an answer is taken to be, e.g. max-tokens or {kind: quantile, q: 0.9}",
}
"""Metadata of a field that holds an estimate."""


class Estimator(Protocol):
    """Guesses output tokens."""

    def output_tokens(self, request: RequestView, max_output_tokens: int) -> float:
        """Return the guess for one request. No side effect."""
        ...

    def learn(self, flight: InFlight) -> None:
        """Hear of a request that ended."""
        ...


class _Fixed:
    """What does not learn."""

    def __init__(self, params: MaxTokens | DefaultCap | Flat | PromptOnly) -> None:
        self._params = params

    def output_tokens(self, request: RequestView, max_output_tokens: int) -> float:
        params = self._params
        if isinstance(params, MaxTokens):
            return max_output_tokens
        if isinstance(params, DefaultCap):
            return max_output_tokens if request.max_output_tokens is not None else params.tokens
        if isinstance(params, Flat):
            return max(0, params.tokens - request.prompt_tokens)
        return 0.0

    def learn(self, flight: InFlight) -> None:
        """Nothing to learn."""


class _Mean:
    def __init__(self, params: TenantMean) -> None:
        self._last = params.last
        self._answers: dict[str, deque[int]] = {}

    def output_tokens(self, request: RequestView, max_output_tokens: int) -> float:
        answers = self._answers.get(request.entitlement)
        if not answers:
            return max_output_tokens
        return min(float(max_output_tokens), sum(answers) / len(answers))

    def learn(self, flight: InFlight) -> None:
        name = flight.request.entitlement
        if name not in self._answers:
            self._answers[name] = deque(maxlen=self._last)
        self._answers[name].append(flight.output_tokens)


class _Quantile:
    def __init__(self, params: Quantile) -> None:
        self._q, self._step = params.q, params.step
        self._guess: dict[str, float] = {}
        self._mean: dict[str, float] = {}

    def output_tokens(self, request: RequestView, max_output_tokens: int) -> float:
        return min(float(max_output_tokens), self._guess.get(request.entitlement, max_output_tokens))

    def learn(self, flight: InFlight) -> None:
        name, tokens = flight.request.entitlement, flight.output_tokens
        guess, mean = self._guess.get(name, float(tokens)), self._mean.get(name, float(tokens))
        self._mean[name] = mean = mean + self._step * (tokens - mean)
        self._guess[name] = max(0.0, guess + self._step * mean * (self._q - (tokens <= guess)))


class _Oracle:
    def __init__(self, params: Oracle) -> None:
        self._sigma = params.sigma
        self.length_of: Callable[[str], int] | None = None

    def output_tokens(self, request: RequestView, max_output_tokens: int) -> float:
        if self.length_of is None:
            raise RuntimeError("an oracle was asked before it was told; see policies.api.Clairvoyant")
        error = math.exp(self._sigma * _normal(request.request_id)) if self._sigma else 1.0
        return min(float(max_output_tokens), self.length_of(request.request_id) * error)

    def learn(self, flight: InFlight) -> None:
        """Nothing to learn."""


def _normal(name: str) -> float:
    """Return a standard normal number that hangs on the name alone (Box-Muller)."""
    key = zlib.crc32(name.encode())
    first, second = (_mixed(key), _mixed(key ^ 0x9E3779B9))
    return math.sqrt(-2 * math.log(first)) * math.cos(_TAU * second)


def _mixed(key: int) -> float:
    """Return a number in (0, 1) in which neighbouring keys are far apart: a CRC alone is linear."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        key = ((key ^ (key >> shift)) * factor) & 0xFFFFFFFF
    return ((key ^ (key >> 16)) + 1) / (2**32 + 1)


def estimator(params: Estimate) -> Estimator:
    """Return what guesses as ``params`` say; it has memory and serves one pool."""
    if isinstance(params, TenantMean):
        return _Mean(params)
    if isinstance(params, Quantile):
        return _Quantile(params)
    if isinstance(params, Oracle):
        return _Oracle(params)
    return _Fixed(params)


class Foresight:
    """Mixed into a policy that has an estimate: makes it `policies.api.Clairvoyant`."""

    estimate: Estimator

    @property
    def needs_lengths(self) -> bool:
        """Whether it was set to know output lengths and was not told yet."""
        return isinstance(self.estimate, _Oracle) and self.estimate.length_of is None

    def tell_lengths(self, length_of: Callable[[str], int]) -> None:
        """Take the function that returns the true output tokens of a request that has arrived."""
        if isinstance(self.estimate, _Oracle):
            self.estimate.length_of = length_of
