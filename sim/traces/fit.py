"""The generator that matches a trace: candidates are fitted, run, and judged by what they make."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from sim.seeds import stream
from sim.traces.statistics import WINDOWS_S
from workloads.arrivals import Arrivals, Poisson
from workloads.bursts import Gamma, Weibull
from workloads.formats.rows import Rows
from workloads.lengths import Empirical, LengthLaw, Lognormal
from workloads.rates import Mmpp
from workloads.requests import Floats, Ints

_SAMPLE = 20_000
_SHORTEST_GAP_S = 1e-6  # ties in a clock's step would have no likelihood
_GOOD_KS = 0.05
_TABLE = 64
_LAGS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_SHARES_ON = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7)


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate and how what it makes compares with the trace.

    Attributes
    ----------
    ks, p_value : two-sample Kolmogorov-Smirnov test of the gaps (or lengths), on at most 20,000 of each.
    dispersion : index of dispersion of what it makes, by window in seconds; empty for lengths.
    distance : ks plus the mean of |ln(made / trace)| over the indices of dispersion; 0 is a perfect match.
    """

    law: Any
    how: str
    ks: float
    p_value: float
    dispersion: dict[float, float]
    distance: float


@dataclass(frozen=True, slots=True)
class Fit:
    """The best candidates first, for arrivals and both lengths; and how prompts and outputs go together."""

    rate_per_s: float
    span_s: float
    dispersion: dict[float, float]
    arrivals: tuple[Judged, ...]
    prompt: tuple[Judged, ...]
    output: tuple[Judged, ...]
    rank_correlation: float

    def workload(self, entitlement: str) -> dict[str, Any]:
        """Return the workload to put into a scenario."""
        found: dict[str, Any] = {
            "entitlement": entitlement,
            "arrivals": _as_field(self.arrivals[0].law),
            "prompt_tokens": _as_field(self.prompt[0].law),
            "output_tokens": _as_field(self.output[0].law),
        }
        if abs(self.rank_correlation) >= 0.05:
            found["length_correlation"] = round(self.rank_correlation, 3)
        return found


def fit(rows: Rows, seed: int = 0) -> Fit:
    """Return the laws that match a trace best.

    Raises
    ------
    ValueError
        If there are too few requests to say.
    """
    if len(rows) < 100:
        raise ValueError(f"{len(rows)} requests are too few to fit; give a trace of at least 100")
    time_s = rows.since_s(int(rows.time_ns[0]))
    span_s = float(time_s[-1])
    if span_s <= 0:
        raise ValueError("all requests came at once; give a trace that lasts")
    rate = (len(rows) - 1) / span_s
    dispersion = {width: index_of_dispersion(time_s, width, span_s) for width in WINDOWS_S}
    gaps_s = np.diff(time_s)
    arrivals = [
        _judged_arrivals(law, how, gaps_s, dispersion, rate, span_s, seed)
        for how, law in _candidates(time_s, gaps_s, rate, span_s)
    ]
    sample = _some(np.arange(len(rows)), seed)
    correlation = stats.spearmanr(rows.prompt_tokens[sample], rows.output_tokens[sample]).statistic
    return Fit(
        rate_per_s=rate,
        span_s=span_s,
        dispersion=dispersion,
        arrivals=tuple(sorted(arrivals, key=lambda one: one.distance)),
        prompt=_lengths(rows.prompt_tokens, seed),
        output=_lengths(rows.output_tokens, seed),
        rank_correlation=0.0 if math.isnan(correlation) else float(correlation),
    )


def index_of_dispersion(time_s: Floats, width_s: float, span_s: float) -> float:
    """Return variance over mean of the counts in whole windows; NaN where there are fewer than two."""
    windows = int(span_s / width_s)
    if windows < 2:
        return math.nan
    counts = np.bincount((time_s[time_s < windows * width_s] / width_s).astype(np.int64), minlength=windows)
    return float(counts.var() / counts.mean()) if counts.any() else math.nan


def _candidates(time_s: Floats, gaps_s: Floats, rate: float, span_s: float) -> Iterator[tuple[str, Arrivals]]:
    """Yield laws with the trace's rate."""
    yield "its rate", Poisson(rate_per_s=rate)
    cv = float(np.clip(gaps_s.std() / gaps_s.mean(), 0.01, 100))
    yield "moments of the gaps", Gamma(rate_per_s=rate, cv=cv)
    yield "moments of the gaps", Weibull(rate_per_s=rate, cv=cv)
    positive = np.maximum(gaps_s, _SHORTEST_GAP_S)
    yield "likelihood of the gaps", Gamma(rate_per_s=rate, cv=float(np.clip(_gamma_shape(positive) ** -0.5, 0.01, 100)))
    shape = _weibull_likeliest(positive)
    law = stats.weibull_min(shape)
    yield "likelihood of the gaps", Weibull(rate_per_s=rate, cv=float(np.clip(law.std() / law.mean(), 0.01, 100)))
    yield from (("dispersion of the counts", law) for law in _modulated(time_s, rate, span_s))


def _gamma_shape(gaps_s: Floats) -> float:
    """Return the likeliest shape: ln k - digamma(k) = ln mean - mean ln."""
    off = math.log(gaps_s.mean()) - float(np.log(gaps_s).mean())
    low, high = 1e-4, 1e6
    return float(optimize.brentq(lambda k: math.log(k) - special.digamma(k) - off, low, high)) if off > 1e-6 else high


def _weibull_likeliest(gaps_s: Floats) -> float:
    """Return the likeliest shape of a Weibull law."""
    logs = np.log(gaps_s)
    scaled = logs - logs.max()

    def slope(k: float) -> float:
        weight = np.exp(k * scaled)
        return float((weight @ logs) / weight.sum() - 1 / k - logs.mean())

    return float(optimize.brentq(slope, 0.02, 200.0))


def _modulated(time_s: Floats, rate: float, span_s: float) -> Iterator[Mmpp]:
    """Yield two-state MMPPs whose counts vary as the trace's, one for each share of time in the busier state.

    The index of dispersion in windows of t is 1 + a * (1 - (1 - exp(-s t)) / (s t)) with s = 1/mean_on + 1/mean_off
    and a = 2 (on - off)^2 p (1 - p) / (rate * s) (Fischer and Meier-Hellstern, 1993).
    """
    lags = [t for t in _LAGS_S if span_s / t >= 20]
    seen = np.array([index_of_dispersion(time_s, t, span_s) for t in lags])
    if len(lags) < 3 or not np.all(seen > 0) or seen.max() <= 1.2:
        return

    def model(t: Floats, log_a: float, log_s: float) -> Floats:
        st = math.exp(log_s) * t
        return np.asarray(np.log1p(math.exp(log_a) * (1 - (1 - np.exp(-st)) / st)))

    try:
        start = (math.log(seen.max()), math.log(1 / 5))
        (log_a, log_s), _ = optimize.curve_fit(model, np.array(lags), np.log(np.maximum(seen, 1.001)), p0=start)
    except RuntimeError:  # no convergence: then there is no such candidate
        return
    a, s = math.exp(min(log_a, 50.0)), math.exp(float(np.clip(log_s, -12, 6)))
    for share in _SHARES_ON:
        step = math.sqrt(a * rate * s / (2 * share * (1 - share)))
        off = rate - share * step
        if off < 0:  # the least share that leaves a rate of 0 between the bursts
            share = rate / (rate + a * s / 2)
            off, step = 0.0, rate / share
        means_s = (1 / (s * (1 - share)), 1 / (s * share))
        yield Mmpp(rates_per_s=(off + step, off), means_s=means_s)
        if not off:
            return


def _judged_arrivals(
    law: Arrivals, how: str, gaps_s: Floats, dispersion: dict[float, float], rate: float, span_s: float, seed: int
) -> Judged:
    # Long enough to see rare states, whatever the trace's length, and not for ever.
    run_s = min(max(span_s, 3600.0), 400_000 / rate)
    made_s = law.times_s(stream(seed, 0, "fit/arrivals"), 0.0, run_s, None)
    made_gaps_s = np.diff(made_s)
    test = stats.ks_2samp(_some(gaps_s, seed), _some(made_gaps_s, seed), method="asymp")
    made = {width: index_of_dispersion(made_s, width, run_s) for width in dispersion}
    ratios = [abs(math.log(made[w] / dispersion[w])) for w in made if made[w] > 0 and dispersion[w] > 0]
    distance = float(test.statistic) + (sum(ratios) / len(ratios) if ratios else 0.0)
    return Judged(law, how, float(test.statistic), float(test.pvalue), made, distance)


def _lengths(tokens: Ints, seed: int) -> tuple[Judged, ...]:
    """Return laws of lengths: a lognormal if it fits well, else a table of quantiles first."""
    logs = np.log(tokens)
    most = int(tokens.max())
    variance = float(logs.var())
    mean = float(np.clip(math.exp(logs.mean() + variance / 2), 1, most))
    candidates: list[tuple[str, LengthLaw]] = [
        ("likelihood", Lognormal(mean=mean, cv=min(100.0, math.sqrt(math.expm1(min(variance, 9.0)))), max=most)),
        ("moments", Lognormal(mean=float(tokens.mean()), cv=float(tokens.std() / tokens.mean()), max=most)),
        (f"{_TABLE} quantiles", _table(tokens)),
    ]
    judged = []
    for how, law in candidates:
        made = law.draw(stream(seed, 0, f"fit/{how}"), _SAMPLE)
        test = stats.ks_2samp(_some(tokens, seed), made, method="asymp")
        judged.append(Judged(law, how, float(test.statistic), float(test.pvalue), {}, float(test.statistic)))
    # A law of three numbers is worth a little distance; a table is always near.
    return tuple(sorted(judged, key=lambda one: (one.how[0].isdigit() and judged[0].ks < _GOOD_KS, one.distance)))


def _table(tokens: Ints) -> Empirical:
    values = np.quantile(tokens, (np.arange(_TABLE) + 0.5) / _TABLE, method="inverted_cdf")
    return Empirical(values=tuple(int(one) for one in values))


def _some(values: Any, seed: int) -> Any:
    if len(values) <= _SAMPLE:
        return values
    chosen = stream(seed, 0, "fit/sample").choice(len(values), _SAMPLE, replace=False)
    return values[np.sort(chosen)]


def _as_field(law: Any) -> dict[str, Any]:
    """Return a law as a scenario writes it, numbers to five digits."""
    return {name: _rounded(value) for name, value in asdict(law).items() if value is not None}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [_rounded(one) for one in value] if isinstance(value, tuple | list) else value


def report(found: Fit) -> str:
    """Return a table of how well every candidate does."""
    lines = [
        f"{'arrivals':<34}{'fitted by':<26}{'KS':>7}{'p':>10}" + "".join(f"{f'IoD {w:g} s':>12}" for w in WINDOWS_S)
    ]
    lines.append(f"{'the trace':<67}{'':>10}" + "".join(f"{found.dispersion[w]:>12.3g}" for w in WINDOWS_S))
    for one in found.arrivals:
        dispersion = "".join(f"{one.dispersion[w]:>12.3g}" for w in WINDOWS_S)
        lines.append(f"{_name(one.law):<34}{one.how:<26}{one.ks:>7.3f}{one.p_value:>10.2g}{dispersion}")
    for name, judged in (("prompt", found.prompt), ("output", found.output)):
        lines.append("")
        lines.append(f"{name:<34}{'fitted by':<26}{'KS':>7}{'p':>10}")
        lines += [f"{_name(one.law):<34}{one.how:<26}{one.ks:>7.3f}{one.p_value:>10.2g}" for one in judged]
    lines.append("")
    lines.append(f"rank correlation of prompt and output: {found.rank_correlation:.3f}")
    return "\n".join(lines)


def _name(law: Any) -> str:
    if isinstance(law, Mmpp):
        return f"mmpp {_states(law.rates_per_s)} req/s"
    shown = {"cv": getattr(law, "cv", None), "mean": getattr(law, "mean", None)}
    return f"{law.kind} " + " ".join(f"{key} {value:.3g}" for key, value in shown.items() if value is not None)


def _states(rates: Sequence[float]) -> str:
    return "/".join(f"{rate:.3g}" for rate in rates)
