"""From what a live endpoint was measured at to a profile."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from statistics import median

import numpy as np

from sim.calibration.fitting import Term, UnidentifiedError
from sim.calibration.from_records import calibrate_records
from sim.calibration.from_steps import (
    LINEAR_TERMS,
    STEP_TERMS,
    MeasuredStep,
    StepsCalibrated,
    calibrate_steps,
)
from sim.calibration.from_sweep import SWEEP_TERMS, SweepPoint, calibrate_sweep
from sim.calibration.measured import MeasuredRun
from sim.calibration.noise import T_OF_RUNS
from sim.calibration.single_replica import Floats
from sim.engine.step_fitted import FittedStepTime
from sim.engine.step_time import LinearStepTime, StepTime
from sim.errors import InputError
from sim.live.loadgen.iteration_timing import Seen
from sim.scenario.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurements:
    """What a calibration client saw of an endpoint.

    Attributes
    ----------
    steps : iterations that were watched, if any were; the best evidence there is.
    run : requests with their arrivals and answers, if it sent some on a schedule.
    sweep : means by concurrency and lengths, if it ran load tests.
    name : what to call the endpoint in the profile's source.
    max_num_seqs, max_num_batched_tokens, kv_blocks, block_tokens : the engine's settings, which no latency tells.
    kv_bytes_per_token, max_model_tokens : of the model, where they are known.
    async_scheduling, prefix_caching : as in `sim.profiles.Profile`; both are vLLM's defaults.
    """

    steps: Seen | None = None
    run: MeasuredRun | None = None
    sweep: Sequence[SweepPoint] = ()
    name: str = "endpoint"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    kv_blocks: int
    block_tokens: int = 16
    kv_bytes_per_token: float | None = None
    max_model_tokens: int | None = None
    async_scheduling: bool = True
    prefix_caching: bool = True


def calibrate_live(measurements: Measurements, *, today: date | None = None) -> Profile:
    """Return the profile of a measured endpoint, with its source, ranges and held-out error.

    Iterations give the step time where there are some, else a sweep does; a run alone gives the terms that a run can
    pin down.

    Raises
    ------
    InputError : nothing was measured, too little, or nothing that identifies a term.
    """
    start = Profile(
        name=measurements.name,
        step_time=FittedStepTime(weights_s=1e-2, per_token_s=4e-5),
        max_num_seqs=measurements.max_num_seqs,
        max_num_batched_tokens=measurements.max_num_batched_tokens,
        kv_blocks=measurements.kv_blocks,
        block_tokens=measurements.block_tokens,
        kv_bytes_per_token=measurements.kv_bytes_per_token,
        max_model_tokens=measurements.max_model_tokens,
        async_scheduling=measurements.async_scheduling,
        prefix_caching=measurements.prefix_caching,
    )
    if measurements.steps is not None:
        return _from_steps(start, measurements.steps, today)
    if measurements.sweep:
        terms = SWEEP_TERMS
        return calibrate_sweep(start, measurements.sweep, terms=terms, place=measurements.name, today=today).profile
    if measurements.run is not None:
        return calibrate_records(start, measurements.run, today=today).profile
    raise InputError(measurements.name, "nothing was measured", "give a run or a sweep")


_BEST_MEASURED = 0.003  # relative: no iteration is measured better than this from outside
_ROBUST_AT = 0.05
_CLEARLY_BETTER = 0.8  # of the error of the simpler step time, to be preferred to it


def _from_steps(start: Profile, seen: Seen, today: date | None) -> Profile:
    """Fit both kinds of step time to the iterations and keep the linear one unless the other is clearly better.

    The other bends where weights cease to be what takes longest; iterations that do not show a bend cannot tell its
    terms apart, which says nothing against the straight one.
    """
    steps = [MeasuredStep(0, 0.0, d.sequences, d.context_tokens, d.duration_s) for d in seen.decodes]
    for prompt in seen.prompts:
        tokens = prompt.prompt_tokens
        steps.append(MeasuredStep(tokens, tokens * (tokens + 1) / 2, 1, prompt.context_tokens, prompt.duration_s))
    if not steps:
        raise InputError(start.name, "no iteration was seen", "measure at more lengths and concurrencies")
    usual_s = min(step.duration_s for step in steps)
    linear = _fitted(start, LinearStepTime(base_s=usual_s), _from(usual_s, LINEAR_TERMS), steps, today, alike=True)
    best = linear
    with contextlib.suppress(UnidentifiedError):
        bent = _fitted(start, FittedStepTime(weights_s=usual_s), _from(usual_s, STEP_TERMS), steps, today)
        if _clearly_better(bent, linear):
            best = bent
    overhead_s = _overhead_s(best.profile, seen)
    return best.profile.model_copy(update={"request_overhead_s": overhead_s})


def _fitted(
    start: Profile, step_time: StepTime, terms: Sequence[Term], steps: Sequence[MeasuredStep], today: date | None,
    *, alike: bool = False,
) -> StepsCalibrated:
    """Fit, leaving out the terms that these iterations do not identify; they stay 0.

    With ``alike``, of terms that cannot be told apart the last goes too.

    Fitted a second time, errors far beyond the usual one count little: a machine that was busy for a while makes some
    measurements ten times as wrong as the others.
    """
    begin = start.model_copy(update={"step_time": step_time})
    left = list(terms)
    while True:
        try:
            first = calibrate_steps(begin, steps, terms=left, place=start.name, today=today)
            usual = 3 * float(np.median(np.abs(first.error)))
            robust_at = min(max(usual, _BEST_MEASURED), _ROBUST_AT)
            return calibrate_steps(
                begin, steps, terms=left, robust_at=robust_at, place=start.name, today=today
            )
        except UnidentifiedError as error:
            if len(left) == 1 or (len(error.terms) > 1 and not alike):
                raise
            gone = error.terms[-1] if len(error.terms) > 1 else error.terms[0]
            left = [term for term in left if term.name != gone]


def _from(usual_s: float, terms: Sequence[Term]) -> list[Term]:
    """Return the terms, the first of which is nearly all of a short iteration."""
    return [replace(terms[0], start=usual_s), *terms[1:]]


def _clearly_better(one: StepsCalibrated, other: StepsCalibrated) -> bool:
    """Whether one fit predicts the iterations that neither was fitted to better than the other, and not by chance.

    Chance is which iterations are left out. An error that a fit does not count in full counts no more here: what a busy
    machine made twice as long is as wrong under either, and would drown what tells them apart.
    """
    both = [
        (_bounded(mine), _bounded(theirs)) for mine, theirs in zip(one.scored, other.scored, strict=True)
        if mine is not None and theirs is not None
    ]  # fmt: skip
    gains = [theirs - mine for mine, theirs in both]
    chance = T_OF_RUNS * float(np.std(gains, ddof=1)) if len(gains) > 1 else 0.0
    mine, theirs = both[0]
    return mine < _CLEARLY_BETTER * theirs and float(np.mean(gains)) > chance


def _bounded(errors: Floats) -> float:
    return float(np.minimum(np.abs(errors), _ROBUST_AT).mean())


def _overhead_s(profile: Profile, seen: Seen) -> float:
    """Return what first tokens took beyond their iteration on an idle server: least of each length, at the median."""
    least_s: dict[int, float] = {}
    for one in seen.idle:
        tokens = one.prompt_tokens
        beyond_s = one.ttft_s - profile.step_time.iteration_s(tokens, tokens * (tokens + 1) / 2, 0, 0)
        least_s[tokens] = min(beyond_s, least_s.get(tokens, beyond_s))
    return max(0.0, median(least_s.values())) if least_s else 0.0
