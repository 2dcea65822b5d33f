"""What a trace is like, measured in one pass and little memory: rate, burstiness, lengths, tenants, prefix reuse."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workloads.formats.rows import Blocks, Labels, Rows
from workloads.requests import Floats, Ints

WINDOWS_S = (1.0, 10.0, 60.0)
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.95, 0.99)
SERIES_BINS = 4096
_LONGEST = 1 << 21  # tokens that are told apart; longer ones count as this


@dataclass(slots=True)
class Moments:
    """Count, mean and variance of numbers that come in parts (Chan, Golub and LeVeque, 1979)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Floats) -> None:
        """Take more numbers."""
        if not len(values):
            return
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        total = self.n + len(values)
        off = mean - self.mean
        self.squares += squares + off * off * self.n * len(values) / total
        self.mean += off * len(values) / total
        self.n = total

    @property
    def cv(self) -> float:
        """Standard deviation over mean; NaN below two numbers."""
        return math.sqrt(self.squares / self.n) / self.mean if self.n > 1 and self.mean > 0 else math.nan


@dataclass(slots=True)
class WindowCounts:
    """Arrivals in whole windows from the first arrival on; the last, begun and not over, is left out."""

    width_ns: int
    start_ns: int
    counts: Moments = field(default_factory=Moments)
    most: int = 0
    _window: int = 0
    _open: int = 0

    def add(self, time_ns: Ints) -> None:
        """Take more arrivals, later ones."""
        window = (time_ns - self.start_ns) // self.width_ns
        last = int(window[-1])
        if last > self._window:
            at = int(np.searchsorted(window, last))
            numbers, counts = np.unique(window[:at], return_counts=True)
            if len(numbers) and int(numbers[0]) == self._window:
                counts[0] += self._open
            elif self._open or self._window < last:
                numbers, counts = np.concatenate(([self._window], numbers)), np.concatenate(([self._open], counts))
            self._take(counts, last - self._window)
            self._window, self._open = last, len(window) - at
        else:
            self._open += len(window)

    def _take(self, counts: Ints, windows: int) -> None:
        """Note counts of that many windows, those that are not among them empty."""
        self.counts.add(counts.astype(np.float64))
        empty = windows - len(counts)
        if empty > 0:  # as `Moments.add` of that many zeros would
            total = self.counts.n + empty
            self.counts.squares += self.counts.mean**2 * self.counts.n * empty / total
            self.counts.mean *= self.counts.n / total
            self.counts.n = total
        self.most = max(self.most, int(counts.max(initial=0)))

    @property
    def dispersion(self) -> float:
        """Variance over mean of the counts: 1 for Poisson arrivals."""
        one = self.counts
        return one.squares / one.n / one.mean if one.n > 1 and one.mean > 0 else math.nan

    @property
    def peak_to_mean(self) -> float:
        """The fullest window over the mean one."""
        return self.most / self.counts.mean if self.counts.mean > 0 else math.nan


@dataclass(slots=True)
class Lengths:
    """How many requests have each length."""

    counts: Ints = field(default_factory=lambda: np.zeros(1024, dtype=np.int64))
    moments: Moments = field(default_factory=Moments)
    most: int = 0

    def add(self, tokens: Ints) -> None:
        """Take more lengths."""
        self.moments.add(tokens.astype(np.float64))
        self.most = max(self.most, int(tokens.max()))
        counts = np.bincount(np.minimum(tokens, _LONGEST))
        if len(counts) > len(self.counts):
            self.counts = np.concatenate([self.counts, np.zeros(len(counts) - len(self.counts), dtype=np.int64)])
        self.counts[: len(counts)] += counts

    def quantile(self, q: float) -> int:
        """Return the least length that at least this share of requests does not exceed."""
        below = np.cumsum(self.counts)
        return int(np.searchsorted(below, q * below[-1] * (1 - 1e-12)))


@dataclass(slots=True)
class Series:
    """Arrivals over time in at most `SERIES_BINS` bins, which double in width as the trace goes on."""

    start_ns: int
    width_ns: int = 1_000_000_000
    counts: Ints = field(default_factory=lambda: np.zeros(SERIES_BINS, dtype=np.int64))

    def add(self, time_ns: Ints) -> None:
        """Take more arrivals."""
        while int(time_ns[-1]) - self.start_ns >= self.width_ns * SERIES_BINS:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(SERIES_BINS - len(pairs), dtype=np.int64)])
            self.width_ns *= 2
        self.counts += np.bincount((time_ns - self.start_ns) // self.width_ns, minlength=SERIES_BINS)


@dataclass(slots=True)
class Reuse:
    """Prompt tokens that some earlier prompt began with: what a prefix cache without limit would find."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    distinct: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def add(self, rows: Rows, blocks: Blocks) -> None:
        """Take more requests. Equal names mean equal text up to there, so a known block makes all before it known."""
        self.prompt_tokens += int(rows.prompt_tokens.sum())
        row = np.repeat(np.arange(len(rows)), np.diff(blocks.ends, prepend=0))
        if not len(row):
            return
        names, first, which = np.unique(blocks.ids, return_index=True, return_inverse=True)
        known = np.isin(names, self.distinct, assume_unique=True)
        hit = known[which] | (row[first][which] < row)
        tokens = np.bincount(row, weights=hit, minlength=len(rows)) * blocks.block_tokens
        self.reused_tokens += int(np.minimum(tokens, rows.prompt_tokens).sum())
        self.distinct = np.union1d(self.distinct, names)


@dataclass(slots=True)
class TraceStatistics:
    """One trace measured. Attributes hold sums while rows come in; the properties are the figures.

    Attributes
    ----------
    gaps_s : moments of the times between arrivals.
    gap_counts : arrivals by the logarithm of the gap before them, ten bins a decade from 1 ns.
    windows : by width in seconds.
    tenants, services : requests and tokens of each.
    products : sums for the correlation of the logarithms of prompts and outputs.
    """

    count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    dated: bool = False
    clipped: int = 0
    dropped: int = 0
    unanswered: int = 0
    unread: int = 0
    first_unread: int = 0
    gaps_s: Moments = field(default_factory=Moments)
    gap_counts: Ints = field(default_factory=lambda: np.zeros(181, dtype=np.int64))
    windows: dict[float, WindowCounts] = field(default_factory=dict)
    prompt: Lengths = field(default_factory=Lengths)
    output: Lengths = field(default_factory=Lengths)
    tenants: Counter[str] = field(default_factory=Counter)
    tenant_tokens: Counter[str] = field(default_factory=Counter)
    services: Counter[str] = field(default_factory=Counter)
    sessions: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    reuse: Reuse | None = None
    series: Series | None = None
    products: NDArray[np.float64] = field(default_factory=lambda: np.zeros(5))

    def add(self, rows: Rows) -> None:
        """Take more rows, later ones."""
        if not len(rows):
            return
        time_ns = rows.time_ns
        if self.series is None:
            self.first_ns = self.last_ns = int(time_ns[0])
            self.dated = rows.dated
            self.series = Series(self.first_ns)
            self.windows = {width: WindowCounts(round(width * 1e9), self.first_ns) for width in WINDOWS_S}
            gaps_ns = np.diff(time_ns)
        else:
            gaps_ns = np.diff(time_ns, prepend=self.last_ns)
        self.gaps_s.add(gaps_ns / 1e9)
        bins = np.floor(10 * np.log10(np.maximum(gaps_ns, 1))).astype(np.int64)
        self.gap_counts += np.bincount(bins.clip(max=180), minlength=181)
        for window in self.windows.values():
            window.add(time_ns)
        self.series.add(time_ns)
        self.last_ns = int(time_ns[-1])
        self.count += len(rows)
        self.clipped += rows.clipped
        self.dropped += rows.dropped
        self.unanswered += rows.unanswered
        self.unread += rows.unread
        self.first_unread = self.first_unread or rows.first_unread
        self.prompt.add(rows.prompt_tokens)
        self.output.add(rows.output_tokens)
        x, y = np.log(rows.prompt_tokens), np.log(rows.output_tokens)
        self.products += (x.sum(), y.sum(), x @ x, y @ y, x @ y)
        if rows.tenant is not None:
            tokens = (rows.prompt_tokens + rows.output_tokens).astype(np.float64)
            _count(self.tenants, rows.tenant)
            _count(self.tenant_tokens, rows.tenant, tokens)
        if rows.service is not None:
            _count(self.services, rows.service)
        if rows.session is not None:
            own = np.array([hash(name) for name in rows.session.names if name], dtype=np.int64)
            self.sessions = np.union1d(self.sessions, own)
        if rows.blocks is not None and len(rows.blocks.ids):
            self.reuse = self.reuse or Reuse()
            self.reuse.add(rows, rows.blocks)

    @property
    def span_s(self) -> float:
        """From the first arrival to the last."""
        return (self.last_ns - self.first_ns) / 1e9

    @property
    def rate_per_s(self) -> float:
        """Arrivals after the first over the span."""
        return (self.count - 1) / self.span_s if self.span_s > 0 else math.nan

    @property
    def log_correlation(self) -> float:
        """Correlation of the logarithms of prompt and output lengths."""
        x, y, xx, yy, xy = self.products / max(1, self.count)
        spread = (xx - x * x) * (yy - y * y)
        return float((xy - x * y) / math.sqrt(spread)) if spread > 1e-18 else math.nan


def measure(parts: Iterable[Rows]) -> TraceStatistics:
    """Return the statistics of rows that come in order of time."""
    found = TraceStatistics()
    for rows in parts:
        found.add(rows)
    return found


def _count(counter: Counter[str], labels: Labels, weights: Floats | None = None) -> None:
    sums = np.bincount(labels.codes, weights=weights, minlength=len(labels.names))
    for name, total in zip(labels.names, sums.tolist(), strict=True):
        if total:
            counter[name] += int(total)
