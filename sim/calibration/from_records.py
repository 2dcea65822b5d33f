"""A profile from per-request records: find the coefficients with which the simulated run is the measured one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.calibration.fitting import Fit, Term, fit
from sim.calibration.measured import MeasuredRun, check_fits, errors, per_request, sampling
from sim.calibration.noise import averaged, perturbed
from sim.calibration.single_replica import Floats, Latencies, replay
from sim.engine.step_fitted import FittedStepTime
from sim.engine.step_table import TableStepTime
from sim.engine.step_time import LinearStepTime
from sim.errors import InputError
from sim.scenario.profile import Calibration, Profile
from sim.scenario.validation_errors import suggestion

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

_MORE = {
    term.name: term
    for term in (
        Term("request_overhead_s", 5e-3, _IDLE),
        Term("request_handling_s", 1e-3, "bursts of requests"),
        Term("per_decode_sequence_s", 5e-5, "a run of large batches with short contexts"),
        Term("per_prefill_pair_s", 1e-10, _LONG),
        Term("per_prefill_iteration_s", 2e-3, "requests sent to an engine that only decodes"),
        Term("lone_prefill_s", 1e-2, _IDLE),
        Term("base_s", 1e-3, _IDLE),
        Term("skew", 0.03, "batches of very different contexts", most=1.0),
        Term("saturating_sequences", 8.0, "batches of very different contexts", most=64.0),
    )
}
"""Terms that are fitted where they are asked for."""


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
    replaying: Callable[[Profile], Latencies] | None = None,
    today: date | None = None,
) -> Calibrated:
    """Fit a profile's step time to the first ``share`` of a run's requests, and score it on the rest.

    Parameters
    ----------
    start : the engine's settings, and a step time to begin from; the terms that are not fitted stay as they are.
    terms : coefficients of the step time, or ``request_overhead_s``; left out, those of `RECORD_TERMS`.
    share : of the requests, by arrival. All are simulated, so that the first part meets the load that it met.
    replaying : simulates the run with a profile; left out, one replica of it.

    Raises
    ------
    InputError : too few requests, or a term that the run does not identify.
    """
    terms = terms_for(start) if terms is None else terms
    start = beginning(start)
    if replaying is None:
        check_fits(start, run)
    replayed = replaying or (lambda profile: replay(profile, run.requests))
    if not terms:
        raise InputError("terms", "nothing to fit", f"name coefficients of a {start.step_time.kind} step time")
    first = np.arange(len(run.requests)) < share * len(run.requests)
    used = first & run.ended
    if not used.any():
        raise InputError(run.name, "no request of the part to fit has ended", "give a greater --share")
    measured = per_request(run.requests, run.latencies)

    def residuals(values: dict[str, float]) -> Floats:
        made = per_request(run.requests, replayed(with_values(start, values)))
        parts = [np.log(made[name][used] / np.maximum(measured[name][used], 1e-6)) for name in measured]
        # Requests of one token have no time per further token.
        return np.asarray(np.nan_to_num(np.concatenate(parts), posinf=0.0, neginf=0.0), float)

    stretches = np.tile(np.arange(used.sum()) * 5 // used.sum(), len(measured))
    found = fit(residuals, terms, place=run.name, robust_at=0.05, folds=stretches)
    simulated = replayed(with_values(start, found.values))
    fitted = with_values(start, found.values)
    part = ~first if share < 1 else used
    held_out = averaged(
        [errors(run.requests, run.latencies, replayed(each), part) for each in perturbed(fitted)]
    )
    held_out["sampling"] = sampling(run.requests, run.latencies, part)
    floors = dict(zip(zip(held_out.metric, held_out.statistic, strict=True), held_out.floor, strict=True))
    profile = fitted.model_copy(
        update={
            "source": f"fitted to {int(used.sum())} requests of {run.name}",
            "error": _sentence(held_out, "the other requests" if share < 1 else "the same requests"),
            "calibration": Calibration(
                method="simulated run fitted to measured latencies, robust least squares",
                date=(today or date.today()).isoformat(),
                measurements=int(used.sum()),
                confidence=found.confidence,
                ranges=_ranges(run, used, start.max_num_batched_tokens),
                held_out_error={f"{m}_{s}": round(error, 4) for (m, s), error in error_by_metric(held_out).items()}
                if share < 1
                else {},
                noise_floor={f"{m}_{s}": round(float(floor), 4) for (m, s), floor in floors.items()},
            ),
        }
    )
    return Calibrated(profile, simulated, found, held_out)


def beginning(start: Profile) -> Profile:
    """Return the profile to fit from: of kernel tables, with what attention of uneven contexts loses by the tables.

    ``skew`` is the profiler's mean over many kinds of batches, and hides how long the one longest context is. What a
    batch waits for is in the tables (`TableStepTime.lone_paces`), too slow by as much as the kernels are, which is what
    a run tells.
    """
    step_time = start.step_time
    if not isinstance(step_time, TableStepTime) or step_time.saturating_sequences:
        return start
    uneven = replace(step_time, skew=0.0, saturating_sequences=round(step_time.lone_paces(), 2))
    return start.model_copy(update={"step_time": uneven})


def error_by_metric(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return relative errors by metric and statistic, of a table that `errors` made."""
    keys = zip(table.metric.tolist(), table.statistic.tolist(), strict=True)
    return dict(zip(keys, table.error.astype(float).tolist(), strict=True))


def simulate(start: Profile, run: MeasuredRun, values: dict[str, float]) -> Latencies:
    """Replay a run with some coefficients of the step time, and of the profile, replaced."""
    return replay(with_values(start, values), run.requests)


def with_values(start: Profile, values: dict[str, float]) -> Profile:
    """Return a profile with values of terms: of the profile (``request_...``), the links, or the step time."""
    of_profile = {name: value for name, value in values.items() if name.startswith("request_")}
    of_links = {name.removeprefix("links."): v for name, v in values.items() if name.startswith("links.")}
    of_step: dict[str, Any] = {n: v for n, v in values.items() if n not in of_profile and not n.startswith("links.")}
    step_time = start.step_time
    if of_links:
        of_step["links"] = replace(step_time.links, **of_links)
    return start.model_copy(update={"step_time": replace(step_time, **of_step), **of_profile})


def terms_for(start: Profile, *, extra: Sequence[str] = (), without: Sequence[str] = ()) -> tuple[Term, ...]:
    """Return the terms that a run is asked for: the usual ones of the step time, and those of links between GPUs.

    Parameters
    ----------
    extra : terms to fit besides, by name: ``request_overhead_s``, or a coefficient of the step time.
    without : terms to leave as they are in ``start``.

    Raises
    ------
    InputError : a name that is no term of such a step time.
    """
    step_time = start.step_time
    terms = {term.name: term for term in RECORD_TERMS.get(type(step_time), ())}
    if start.gpus > 1 and getattr(step_time, "links", None) is not None:
        terms["links.scale"] = Term("links.scale", 1.0, _BATCHES, least=0.05, most=20.0)
    known = {**terms, **{name: term for name, term in _MORE.items() if _has(start, name)}}
    for name in (*extra, *without):
        if name not in known:
            kind = step_time.kind
            raise InputError(f"--term {name}", f"no term of a {kind} step time", suggestion(name, list(known)))
    chosen = [*terms, *(name for name in extra if name not in terms)]
    return tuple(known[name] for name in chosen if name not in without)


def _has(start: Profile, name: str) -> bool:
    return name in Profile.model_fields or hasattr(start.step_time, name)


def _ranges(run: MeasuredRun, used: NDArray[np.bool_], max_num_batched_tokens: int) -> dict[str, tuple[float, float]]:
    requests = run.requests
    prompts, outputs = requests.prompt_tokens[used], requests.output_tokens[used]
    columns = {"prompt_tokens": prompts, "output_tokens": outputs, "context_tokens_each": prompts + outputs}
    found = {name: (float(values.min()), float(values.max())) for name, values in columns.items()}
    begin, end = run.latencies.first_token_s[used], run.latencies.finish_s[used]
    at_once = ((begin <= begin[:, None]) & (begin[:, None] < end)).sum(axis=1)
    chunk = float(min(max_num_batched_tokens, prompts.max()))
    least = float(min(chunk, prompts.min()))
    return found | {"concurrency": (float(at_once.min()), float(at_once.max())), "chunk_tokens": (least, chunk)}


def _sentence(table: pd.DataFrame, where: str) -> str:
    at = error_by_metric(table)
    parts = [
        f"{metric.upper()} mean {100 * at[metric, 'mean']:+.1f} %, P99 {100 * at[metric, 'p99']:+.1f} %"
        for metric in ("ttft", "tpot")
    ]
    floor = f"chance +-{100 * float(table.floor.max()):.1f} %"
    return f"on {where}: {'; '.join(parts)}; E2E mean {100 * at['e2e', 'mean']:+.1f} %; {floor}"
