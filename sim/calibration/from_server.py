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
from sim.engine.ranks import captured_tokens
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
_FLOOR_SHOWS = 0.1  # relative: what prompts beyond captured graphs must take more, to be taken for launched
_OF_EACH, _SHOWS = 2, 0.5  # lengths of lone prompts on both sides of a floor, and the share of errors that it leaves
_CLEARLY_BETTER = 0.8  # of the error of the simpler step time, to be preferred to it


def _from_steps(start: Profile, seen: Seen, today: date | None) -> Profile:
    """Fit both kinds of step time to the iterations and keep the linear one unless the other is clearly better.

    The other bends where weights cease to be what takes longest; iterations that do not show a bend cannot tell its
    terms apart, which says nothing against the straight one. Where prompts just beyond captured graphs take clearly
    more than either says, they are launched kernel by kernel, which takes them that much at least.
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
    captured = captured_tokens(start.max_num_seqs)
    if _beyond(captured, best.profile.step_time, steps) > _FLOOR_SHOWS:
        terms = _from(usual_s, (*STEP_TERMS, Term("uncaptured_s", 2 * usual_s, "prompts beyond captured graphs")))
        with contextlib.suppress(UnidentifiedError):
            launched = FittedStepTime(weights_s=usual_s, captured_tokens=captured)
            floored = _fitted(start, launched, terms, steps, today)
            if abs(_beyond(captured, floored.profile.step_time, steps)) < _FLOOR_SHOWS / 2:
                best = floored
    overhead_s, lone_s = _from_idle(best.profile.step_time, seen)
    found = best.profile.model_copy(update={"request_overhead_s": overhead_s})
    if lone_s is None:
        return found
    return found.model_copy(update={"step_time": replace(found.step_time, lone_prefill_s=lone_s)})


def _beyond(captured: int, step_time: StepTime, steps: Sequence[MeasuredStep]) -> float:
    """Return by what share the shortest prompts beyond captured graphs take longer than a step time says, median."""
    prompts = [step for step in steps if step.prefill_tokens + step.decode_sequences > captured and step.prefill_tokens]
    shortest = min((step.prefill_tokens for step in prompts), default=0)
    made = [
        step.duration_s / step_time.iteration_s(
            step.prefill_tokens, step.prefill_pairs, step.decode_sequences, step.context_tokens
        ) - 1
        for step in prompts if step.prefill_tokens == shortest
    ]  # fmt: skip
    return median(made) if made else 0.0


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


def _from_idle(step_time: StepTime, seen: Seen) -> tuple[float, float | None]:
    """Return what a server adds to a request, and what a lone prompt takes at least; None where nothing shows it.

    First tokens on an idle server are the former and an iteration, which prompts that are launched in pieces cannot go
    below: then those of short prompts are alike, and of longer ones, but for the overhead, as their iterations.
    """
    least_s: dict[int, float] = {}
    for one in seen.idle:
        least_s[one.prompt_tokens] = min(one.ttft_s, least_s.get(one.prompt_tokens, one.ttft_s))
    if not least_s:
        return 0.0, None
    first_s = np.array([least_s[n] for n in sorted(least_s)])
    alone_s = np.array([step_time.iteration_s(n, n * (n + 1) / 2, 0, 0) for n in sorted(least_s)])
    overhead_s = max(0.0, float(np.median(first_s - alone_s)))
    if not isinstance(step_time, FittedStepTime):
        return overhead_s, None
    off_s, found = float(np.abs(first_s - alone_s - overhead_s).mean()), None
    for short in range(_OF_EACH, len(first_s) - _OF_EACH + 1):
        beyond_s = max(0.0, float(np.median((first_s - alone_s)[short:])))
        floor_s = float(np.median(first_s[:short])) - beyond_s
        made_s = beyond_s + np.maximum(alone_s, floor_s)
        missed_s = float(np.abs(first_s - made_s).mean())
        if floor_s > alone_s[short - 1] and missed_s < _SHOWS * off_s and floor_s - alone_s[0] > missed_s:
            off_s, overhead_s, found = missed_s / _SHOWS, beyond_s, floor_s
    return overhead_s, found
