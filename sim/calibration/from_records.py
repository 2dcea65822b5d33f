"""A profile from per-request records: find the coefficients with which the simulated run is the measured one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.calibration.fitting import Fit, Term, fit
from sim.calibration.measured import MeasuredRun, errors, per_request
from sim.calibration.single_replica import Floats, Latencies, replay
from sim.engine.step_fitted import FittedStepTime
from sim.engine.step_table import TableStepTime
from sim.engine.step_time import LinearStepTime
from sim.errors import InputError
from sim.scenario.profile import Calibration, Profile

_LONG = "a run with prompts of very different lengths"
_BATCHES = "a run whose load rises from one request to a full batch"
_IDLE = "requests sent to an idle engine"

RECORD_TERMS: dict[type, tuple[Term, ...]] = {
    TableStepTime: (
        Term("scale", 1.0, _BATCHES, least=0.5, most=2.0),
        Term("base_s", 1e-3, _IDLE),
        Term("per_prefill_iteration_s", 2e-3, "requests sent to an engine that only decodes"),
    ),
    LinearStepTime: (
        Term("base_s", 1e-2, _IDLE),
        Term("per_prefill_token_s", 3e-5, _LONG),
        Term("per_context_token_s", 1e-7, _BATCHES),
    ),
    FittedStepTime: (
        Term("weights_s", 1e-2, _IDLE),
        Term("per_token_s", 4e-5, _LONG),
        Term("per_context_token_s", 1e-7, _BATCHES),
        Term("per_prefill_iteration_s", 2e-3, "requests sent to an engine that only decodes"),
    ),
}
"""What a run of requests can pin down, by the kind of step time that one starts from."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """A profile found from a run, how it simulates that run, and its errors on the part that was not fitted."""

    profile: Profile
    simulated: Latencies
    fit: Fit
    held_out: pd.DataFrame


def calibrate_records(
    start: Profile,
    run: MeasuredRun,
    *,
    terms: Sequence[Term] | None = None,
    share: float = 0.5,
    today: date | None = None,
) -> Calibrated:
    """Fit a profile's step time to the first ``share`` of a run's requests, and score it on the rest.

    Parameters
    ----------
    start : the engine's settings, and a step time to begin from; the terms that are not fitted stay as they are.
    terms : coefficients of the step time, or ``request_overhead_s``; left out, those of `RECORD_TERMS`.
    share : of the requests, by arrival. All are simulated, so that the first part meets the load that it met.

    Raises
    ------
    InputError : too few requests, or a term that the run does not identify.
    """
    step_time = start.step_time
    if terms is None:
        terms = RECORD_TERMS.get(type(step_time), ())
        if getattr(step_time, "skew", 0.0):  # the tables' is a mean over many kinds of batches
            terms = (*terms, Term("skew", 0.03, "batches of very different contexts", most=1.0))
    if not terms:
        raise InputError("terms", "nothing to fit", f"name coefficients of a {step_time.kind} step time")
    used = np.arange(len(run.requests)) < share * len(run.requests)
    measured = per_request(run.requests, run.latencies)

    def residuals(values: dict[str, float]) -> Floats:
        made = per_request(run.requests, simulate(start, run, values))
        parts = [np.log(made[name][used] / np.maximum(measured[name][used], 1e-6)) for name in measured]
        # Requests of one token have no time per further token.
        return np.asarray(np.nan_to_num(np.concatenate(parts), posinf=0.0, neginf=0.0), float)

    stretches = np.tile(np.arange(used.sum()) * 5 // used.sum(), len(measured))
    found = fit(residuals, terms, place=run.name, robust_at=0.05, folds=stretches)
    simulated = simulate(start, run, found.values)
    held_out = errors(run.requests, run.latencies, simulated, ~used if share < 1 else used)
    profile = _profile(start, found.values).model_copy(
        update={
            "source": f"fitted to {int(used.sum())} requests of {run.name}",
            "error": _sentence(held_out, "the other requests" if share < 1 else "the same requests"),
            "calibration": Calibration(
                method="simulated run fitted to measured latencies, robust least squares",
                date=(today or date.today()).isoformat(),
                measurements=int(used.sum()),
                confidence=found.confidence,
                ranges=_ranges(run, used),
                held_out_error={f"{m}_{s}": round(error, 4) for (m, s), error in error_by_metric(held_out).items()}
                if share < 1
                else {},
            ),
        }
    )
    return Calibrated(profile, simulated, found, held_out)


def error_by_metric(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return relative errors by metric and statistic, of a table that `errors` made."""
    keys = zip(table.metric.tolist(), table.statistic.tolist(), strict=True)
    return dict(zip(keys, table.error.astype(float).tolist(), strict=True))


def simulate(start: Profile, run: MeasuredRun, values: dict[str, float]) -> Latencies:
    """Replay a run with some coefficients of the step time, and of the profile, replaced."""
    return replay(_profile(start, values), run.requests)


def _profile(start: Profile, values: dict[str, float]) -> Profile:
    of_profile = {name: value for name, value in values.items() if name == "request_overhead_s"}
    of_step = {name: value for name, value in values.items() if name not in of_profile}
    return start.model_copy(update={"step_time": replace(start.step_time, **of_step), **of_profile})


def _ranges(run: MeasuredRun, used: NDArray[np.bool_]) -> dict[str, tuple[float, float]]:
    requests = run.requests
    columns = {"prompt_tokens": requests.prompt_tokens[used], "output_tokens": requests.output_tokens[used]}
    return {name: (float(values.min()), float(values.max())) for name, values in columns.items()}


def _sentence(table: pd.DataFrame, where: str) -> str:
    at = error_by_metric(table)
    parts = [
        f"{metric.upper()} mean {100 * at[metric, 'mean']:+.1f} %, P99 {100 * at[metric, 'p99']:+.1f} %"
        for metric in ("ttft", "tpot")
    ]
    return f"on {where}: {'; '.join(parts)}; E2E mean {100 * at['e2e', 'mean']:+.1f} %"
