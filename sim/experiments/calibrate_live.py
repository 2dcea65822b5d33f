"""From what a live endpoint was measured at to a profile: the hook that live mode calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from sim.cluster.step_fitted import FittedStepTime
from sim.errors import InputError
from sim.experiments.calibrate_records import calibrate_records
from sim.experiments.calibrate_sweep import SWEEP_TERMS, SweepPoint, calibrate_sweep
from sim.experiments.measured import MeasuredRun
from sim.profiles import Profile


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurements:
    """What a calibration client saw of an endpoint.

    Attributes
    ----------
    run : requests with their arrivals and answers, if it sent some on a schedule.
    sweep : means by concurrency and lengths, if it ran load tests.
    name : what to call the endpoint in the profile's source.
    max_num_seqs, max_num_batched_tokens, kv_blocks, block_tokens : the engine's settings, which no latency tells.
    kv_bytes_per_token : of the model, where it is known.
    async_scheduling, prefix_caching : as in `sim.profiles.Profile`; both are vLLM's defaults.
    """

    run: MeasuredRun | None = None
    sweep: Sequence[SweepPoint] = ()
    name: str = "endpoint"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    kv_blocks: int
    block_tokens: int = 16
    kv_bytes_per_token: float | None = None
    async_scheduling: bool = True
    prefix_caching: bool = True


def calibrate_live(measurements: Measurements, *, today: date | None = None) -> Profile:
    """Return the profile of a measured endpoint, with its source, ranges and held-out error.

    A sweep, where there is one, gives the step time; a run alone gives the terms that a run can pin down.

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
        async_scheduling=measurements.async_scheduling,
        prefix_caching=measurements.prefix_caching,
    )
    if measurements.sweep:
        terms = SWEEP_TERMS
        return calibrate_sweep(start, measurements.sweep, terms=terms, place=measurements.name, today=today).profile
    if measurements.run is not None:
        return calibrate_records(start, measurements.run, today=today).profile
    raise InputError(measurements.name, "nothing was measured", "give a run or a sweep")
