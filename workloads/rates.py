"""Poisson arrivals whose rate changes: by chance, with the hour, in a spike or along a ramp."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from workloads.points import LEAST_RATE_PER_S, cut, points, stretched, unit_points
from workloads.requests import Floats, Ints

_RATE = {"ge": LEAST_RATE_PER_S, "description": "give requests per second, e.g. 4.0"}
_SECONDS = {"ge": 0, "description": "give seconds, e.g. 30"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mmpp:
    """Markov-modulated Poisson arrivals: the rate jumps between states that last exponential times.

    From each state every other one is equally likely next, so the share of time in a state is its mean length over the
    sum of all, and the mean rate is the sum of rate times length over that sum. The window opens in the long run.

    References
    ----------
    W. Fischer and K. Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook", Performance Evaluation
    18(2), 1993.
    """

    kind: Literal["mmpp"] = "mmpp"
    rates_per_s: tuple[float, ...] = field(
        metadata={"description": "give each state's requests per second, e.g. [1, 4, 20]"}
    )
    means_s: tuple[float, ...] = field(
        metadata={"description": "give each state's mean length in seconds, e.g. [60, 20, 5]"}
    )

    def __post_init__(self) -> None:
        if len(self.rates_per_s) < 2 or len(self.rates_per_s) != len(self.means_s):
            found = f"{len(self.rates_per_s)} rates and {len(self.means_s)} means"
            raise ValueError(f"{found}; give two or more states, a rate and a mean for each")
        for rate in self.rates_per_s:
            if not 0 <= rate < math.inf:
                raise ValueError(f"rates_per_s holds {rate:g}; give requests per second from 0 on")
        for mean_s in self.means_s:
            if not 0 < mean_s < math.inf:
                raise ValueError(f"means_s holds {mean_s:g}; give seconds above 0")
        if not any(self.rates_per_s):
            raise ValueError("all rates are 0; give at least one above 0")

    @property
    def rate_per_s(self) -> float:
        """The mean rate."""
        lasting = sum(rate * mean for rate, mean in zip(self.rates_per_s, self.means_s, strict=True))
        return lasting / sum(self.means_s)

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """See `workloads.arrivals.Arrivals`. States, their lengths and the points have a stream each."""
        of_states, of_lengths, of_points = rng.spawn(3)
        if from_s >= until_s:
            return np.empty(0)
        means_s = np.array(self.means_s)
        share = np.cumsum(means_s) / means_s.sum()
        state = int(np.searchsorted(share, of_states.random(), side="right"))
        others = len(means_s)
        states: list[Ints] = []

        def lengths_s(n: int) -> Floats:
            nonlocal state
            first = not states
            steps = 1 + np.floor(of_states.random(n - first) * (others - 1)).astype(np.int64)  # to any other state
            walk = (state + np.cumsum(np.concatenate(([0], steps)) if first else steps)) % others
            states.append(walk)
            state = int(walk[-1])
            lengths: Floats = of_lengths.standard_exponential(n) * means_s[walk]
            return lengths

        # A limit ends the arrivals of an endless window, and only as many periods as they need are made.
        horizon_s = until_s if limit is None else min(until_s, from_s + self._enough_s(limit))
        ends_s = points(from_s, lengths_s, float(means_s.mean()), horizon_s, None)[1:]
        opens_s = np.concatenate(([from_s], ends_s[:-1]))
        walk = np.concatenate(states)
        return stretched(of_points, opens_s, ends_s, np.array(self.rates_per_s)[walk], until_s, limit)

    def _enough_s(self, limit: int) -> float:
        """Return a time in which ``limit`` arrivals are as good as certain."""
        return 2 * limit / self.rate_per_s + 100 * sum(self.means_s) * (1 + max(self.rates_per_s) / self.rate_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diurnal:
    """Poisson arrivals whose rate follows the time of day: mean * (1 + amplitude * cos(2 pi (t - peak) / period))."""

    kind: Literal["diurnal"] = "diurnal"
    rate_per_s: float = field(metadata=_RATE)
    amplitude: float = field(
        metadata={"ge": 0, "le": 1, "description": "give how far the rate swings, e.g. 0.6: from 0.4 to 1.6 times"}
    )
    period_s: float = field(
        default=86_400.0, metadata={"gt": 0, "description": "give the length of a day in seconds, e.g. 86400"}
    )
    peak_s: float = field(
        default=43_200.0, metadata={"ge": 0, "description": "give the second of the run with the peak, e.g. 43200"}
    )

    def expected(self, t_s: Floats) -> Floats:
        """Return the expected number of arrivals up to seconds of the run."""
        turn = 2 * math.pi / self.period_s
        swing = np.sin(turn * (t_s - self.peak_s)) + math.sin(turn * self.peak_s)
        return np.asarray(self.rate_per_s * (t_s + self.amplitude / turn * swing), dtype=np.float64)

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """See `workloads.arrivals.Arrivals`."""
        if from_s >= until_s:
            return np.empty(0)
        before = float(self.expected(np.array([from_s]))[0])
        total = math.inf if until_s == math.inf else float(self.expected(np.array([until_s]))[0]) - before
        wanted = before + unit_points(rng, total, limit)
        # The swing shifts the expected number by at most this: the time lies between, and is found by halving.
        slack_s = self.amplitude * self.period_s / math.pi
        low, high = wanted / self.rate_per_s - slack_s, wanted / self.rate_per_s + slack_s
        for _ in range(60):
            middle = (low + high) / 2
            late = self.expected(middle) > wanted
            low, high = np.where(late, low, middle), np.where(late, middle, high)
        return cut(np.maximum.accumulate(np.maximum(high, from_s)), until_s, limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """Poisson arrivals at a steady rate, and for a while at another, reached and left along a straight line."""

    kind: Literal["spike"] = "spike"
    rate_per_s: float = field(metadata=_RATE)
    spike_rate_per_s: float = field(metadata=_RATE | {"description": "give requests per second in the spike, e.g. 40"})
    at_s: float = field(metadata=_SECONDS | {"description": "give the seconds until it begins to rise, e.g. 60"})
    lasts_s: float = field(metadata={"gt": 0, "description": "give the seconds it stays at its height, e.g. 20"})
    rise_s: float = field(
        default=0.0, metadata=_SECONDS | {"description": "give the seconds it takes to rise, and to fall, e.g. 5"}
    )

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """See `workloads.arrivals.Arrivals`; ``at_s`` counts from the start of the window."""
        low, high = self.rate_per_s, self.spike_rate_per_s
        lines = [(self.at_s, low, low), (self.rise_s, low, high), (self.lasts_s, high, high), (self.rise_s, high, low)]
        return _along(rng, [*lines, (math.inf, low, low)], from_s, until_s, limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """Poisson arrivals whose rate goes from one value to another along a straight line, and stays there."""

    kind: Literal["ramp"] = "ramp"
    from_rate_per_s: float = field(metadata={"ge": 0, "description": "give requests per second at first, e.g. 1"})
    to_rate_per_s: float = field(metadata={"ge": 0, "description": "give requests per second in the end, e.g. 20"})
    over_s: float = field(metadata={"gt": 0, "description": "give the seconds it takes, e.g. 300"})

    def __post_init__(self) -> None:
        if not self.from_rate_per_s and not self.to_rate_per_s:
            raise ValueError("both rates are 0; give at least one above 0")

    def times_s(self, rng: np.random.Generator, from_s: float, until_s: float, limit: int | None) -> Floats:
        """See `workloads.arrivals.Arrivals`."""
        first, last = self.from_rate_per_s, self.to_rate_per_s
        return _along(rng, [(self.over_s, first, last), (math.inf, last, last)], from_s, until_s, limit)


def _along(
    rng: np.random.Generator, lines: list[tuple[float, float, float]], from_s: float, until_s: float, limit: int | None
) -> Floats:
    """Return a Poisson process whose rate follows straight lines (duration, rate at its start, rate at its end).

    On a line the expected number is a parabola, so the time at which it reaches a value has a closed form.
    """
    opens_s, first, slope, most = [], [], [], []
    open_s = from_s
    for duration_s, start, end in lines:
        lasts_s = min(duration_s, until_s - open_s)
        if lasts_s <= 0:
            continue
        gradient = 0.0 if math.isinf(duration_s) else (end - start) / duration_s
        opens_s.append(open_s)
        first.append(start)
        slope.append(gradient)
        flat = start if not gradient else start + gradient * lasts_s / 2
        most.append(flat * lasts_s if flat else 0.0)
        open_s += lasts_s
    if not opens_s:
        return np.empty(0)
    before = np.concatenate(([0.0], np.cumsum(most[:-1])))
    units = unit_points(rng, float(before[-1] + most[-1]), limit)
    line = np.searchsorted(before, units, side="right") - 1
    rest, rate, gradient_of = units - before[line], np.array(first)[line], np.array(slope)[line]
    root = np.sqrt(np.maximum(rate**2 + 2 * gradient_of * rest, 0.0))
    times_s = np.array(opens_s)[line] + 2 * rest / (rate + root)
    return cut(np.maximum.accumulate(times_s), until_s, limit)
