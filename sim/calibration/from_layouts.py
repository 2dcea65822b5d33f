"""Profiles of all measured layouts of a model from their sweeps at once: fitted, simulated, and fitted again.

A law of means cannot say how long a request waits for others, so each pass simulates every point as its clients made
it, and counts what the engine did until a request's first token and from there to its last (`work_slopes`). Robust
least squares find better coefficients for these sums, with which the next pass simulates again.

Layouts share what is known of the model on that GPU: coefficients go by a power of the GPUs that share a layer, and
each layout's own are drawn towards those where it has few points. One without points has the family's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from sim.calibration.from_records import with_values
from sim.calibration.from_sweep import SweepPoint, check_points
from sim.calibration.single_replica import Floats
from sim.calibration.work_slopes import REQUEST_TERMS, point_slopes
from sim.engine.step_fitted import FittedStepTime
from sim.errors import InputError
from sim.scenario.profile import Profile
from sim.scenario.validation_errors import suggestion

PASSES = 4
_USUAL = {
    "base_s": 2e-3, "weights_s": 4e-3, "experts_s": 4e-3, "per_token_s": 2e-5, "per_decode_sequence_s": 2e-5,
    "per_context_token_s": 1e-8, "per_prefill_pair_s": 1e-12, "per_prefill_iteration_s": 2e-3,
    "request_overhead_s": 2e-2, "request_per_running_s": 2e-4,
}  # fmt: skip
"""Coefficients of usual size, of four GPUs, from which a search begins."""
_SHARED = {
    "weights_s": -0.7, "experts_s": -0.7, "per_token_s": -0.9, "per_context_token_s": -0.7, "per_prefill_pair_s": -0.9,
}  # fmt: skip
"""The power of the GPUs by which coefficients are taken to go at first: work that is shared, links that are not."""
_OF_GPUS = 4
_ROBUST_AT = 0.1  # of a logarithm: what is further off counts less
_TOWARDS_USUAL, _TOWARDS_POWER, _TOWARDS_FAMILY = 0.02, 0.3, 0.1  # beside a relative error of one point
_LEAST_S = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class LayoutSweep:
    """The sweep of one layout.

    Attributes
    ----------
    profile : the engine's settings, and a fitted step time of which the coefficients are found; ``expert_share`` stays.
    gpus : that share a layer.
    points : what was measured; may be none, where a layout is only predicted.
    """

    profile: Profile
    gpus: int
    points: Sequence[SweepPoint]


@dataclass(frozen=True, slots=True, eq=False)
class _Counted:
    """Of the points' mean latencies, first tokens and further ones in turn: slopes, shape (2 n, terms), and a rest."""

    slopes: Floats
    rest_s: Floats
    measured_s: Floats

    def errors(self, logs: Floats) -> Floats:
        """Return by how much coefficients miss what was measured; ``logs`` are of one layout, or a row for each."""
        made_s = np.sum(self.slopes * np.exp(logs), axis=-1) + self.rest_s
        return np.asarray(np.log(np.maximum(made_s, _LEAST_S) / self.measured_s))


def fit_layouts(
    sweeps: Sequence[LayoutSweep], *, without: Sequence[str] = (), passes: int = PASSES, place: str = "sweep"
) -> list[Profile]:
    """Return the profile of each layout of one model on one kind of GPU.

    Parameters
    ----------
    without : terms to leave as they are in each layout's profile.

    Raises
    ------
    InputError : no layout has a point, a point cannot be simulated, a layout is none that work can be counted of, or
        ``without`` names no term.
    """
    names = _terms(sweeps, without, place)
    usual = np.log([_USUAL[name] for name in names])
    power = np.array([_SHARED.get(name, 0.0) for name in names])
    sizes = [float(np.log(sweep.gpus / _OF_GPUS)) for sweep in sweeps]
    found = [usual + power * size for size in sizes]
    for number in range(passes):
        counted = [
            _count(_with(sweep.profile, names, logs), sweep.points, names)
            for sweep, logs in zip(sweeps, found, strict=True)
        ]
        shared, by_gpus = _family(counted, sizes, usual, power)
        found = [shared + by_gpus * size for size in sizes]
        if number:  # at first schedules are still those of other coefficients
            found = [_own(each, logs) for each, logs in zip(counted, found, strict=True)]
    return [_with(sweep.profile, names, logs) for sweep, logs in zip(sweeps, found, strict=True)]


def _terms(sweeps: Sequence[LayoutSweep], without: Sequence[str], place: str) -> list[str]:
    """Return what is fitted: experts only where a layout has some."""
    if not any(sweep.points for sweep in sweeps):
        raise InputError(place, "holds no point", "give what was measured at some concurrency")
    for sweep in sweeps:
        profile = sweep.profile
        if not isinstance(profile.step_time, FittedStepTime):
            problem = f"a layout's step time is of kind {profile.step_time.kind}"
            raise InputError(place, problem, "begin from one of kind fitted")
        for name in ("speculation", "disaggregated", "lora", "data_parallel", "pipeline_parallel"):
            if getattr(profile, name) not in (None, 1):
                raise InputError(place, f"a layout has {name}, whose work is not counted", f"leave {name} out")
        check_points(sweep.points, profile, place)
    with_experts = any(sweep.profile.step_time.expert_share for sweep in sweeps)
    names = [name for name in _USUAL if name != "experts_s" or with_experts]
    for name in without:
        if name not in names:
            raise InputError(f"--without {name}", "no term of this fit", suggestion(name, names))
    return [name for name in names if name not in without]


def _with(profile: Profile, names: Sequence[str], logs: Floats) -> Profile:
    values = dict(zip(names, np.exp(logs).tolist(), strict=True))
    if not profile.step_time.expert_share:
        values.pop("experts_s", None)
    return with_values(profile, values)


def _count(profile: Profile, points: Sequence[SweepPoint], names: Sequence[str]) -> _Counted:
    """Simulate points, each kind of them once."""
    values = [getattr(profile if name in REQUEST_TERMS else profile.step_time, name) for name in names]
    slopes, rest_s, measured_s = np.empty((2 * len(points), len(names))), np.empty(2 * len(points)), []
    seen: dict[tuple[int, int, int], tuple[Floats, Floats]] = {}
    for i, point in enumerate(points):
        kind = (point.concurrency, point.prompt_tokens, point.output_tokens)
        if kind not in seen:
            seen[kind] = point_slopes(profile, point, names)
        made_s, there = seen[kind]
        slopes[2 * i : 2 * i + 2] = there
        rest_s[2 * i : 2 * i + 2] = made_s - there @ np.array(values)
        measured_s += [point.ttft_s, point.tpot_s]
    return _Counted(slopes, rest_s, np.array(measured_s))


def _family(counted: Sequence[_Counted], sizes: Sequence[float], usual: Floats, power: Floats) -> tuple[Floats, Floats]:
    """Return logarithms of the coefficients of four GPUs, and the powers of GPUs by which they go."""
    terms = len(usual)
    together = _Counted(
        np.concatenate([each.slopes for each in counted]),
        np.concatenate([each.rest_s for each in counted]),
        np.concatenate([each.measured_s for each in counted]),
    )
    of_size = np.repeat(sizes, [len(each.rest_s) for each in counted])

    def residuals(x: Floats) -> Floats:
        pulls = [_TOWARDS_USUAL * (x[:terms] - usual), _TOWARDS_POWER * (x[terms:] - power)]
        return np.concatenate([together.errors(x[:terms] + np.outer(of_size, x[terms:])), *pulls])

    found = _least(residuals, np.concatenate([usual, power]))
    return found[:terms], found[terms:]


def _own(counted: _Counted, shared: Floats) -> Floats:
    """Return a layout's own coefficients, near to those that it has from its family."""
    if not len(counted.rest_s):
        return shared

    def residuals(logs: Floats) -> Floats:
        return np.concatenate([counted.errors(logs), _TOWARDS_FAMILY * (logs - shared)])

    return _least(residuals, shared)


def _least(residuals: Callable[[Floats], Floats], start: Floats) -> Floats:
    return np.asarray(least_squares(residuals, start, loss="soft_l1", f_scale=_ROBUST_AT, max_nfev=100).x)
