"""A profile from iterations that were measured one by one: prompts of a batch, and single decode steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.calibration.fitting import Fit, Term, fit
from sim.calibration.noise import RUNS, T_OF_RUNS
from sim.calibration.single_replica import Floats
from sim.errors import InputError
from sim.scenario.profile import Calibration, Profile

STEP_TERMS = (
    Term("weights_s", 1e-2, "decode steps of one sequence"),
    Term("per_token_s", 4e-5, "prompts of a thousand tokens and more"),
    Term("per_decode_sequence_s", 5e-5, "decode steps of large batches"),
    Term("per_context_token_s", 3e-8, "decode steps at short and long context"),
    Term("per_prefill_iteration_s", 1e-2, "prompts of a hundred tokens beside decode steps"),
    Term("per_prefill_pair_s", 1e-10, "single prompts of very different lengths"),
)
"""What measured iterations can pin down of a fitted step time."""

LINEAR_TERMS = (
    Term("base_s", 1e-2, "decode steps of one sequence"),
    Term("per_prefill_token_s", 4e-5, "prompts of very different lengths"),
    Term("per_decode_sequence_s", 5e-5, "decode steps of large batches"),
    Term("per_context_token_s", 3e-8, "decode steps at short and long context"),
    Term("per_prefill_pair_s", 1e-10, "prompts of a thousand tokens and more"),
)
"""What they can pin down of a linear one."""


class MeasuredStep(NamedTuple):
    """One iteration: its make-up, as `StepTime.iteration_s` takes it, and its duration in seconds."""

    prefill_tokens: int
    prefill_pairs: float
    decode_sequences: int
    context_tokens: int
    duration_s: float


@dataclass(frozen=True, slots=True, eq=False)
class StepsCalibrated:
    """A profile found from iterations, and the relative error of each; ``used`` says which were fitted.

    ``scored`` has the relative errors on what was left out, by draw of what that is: the first is that of the profile.
    None where what a draw leaves does not identify a term.
    """

    profile: Profile
    fit: Fit
    error: Floats
    used: NDArray[np.bool_]
    scored: tuple[Floats | None, ...] = ()


def prompts(batch: int, prompt_tokens: int, duration_s: float) -> MeasuredStep:
    """Return the step that computes ``batch`` prompts at once."""
    pairs = batch * prompt_tokens * (prompt_tokens + 1) / 2
    return MeasuredStep(batch * prompt_tokens, pairs, 0, 0, duration_s)


def decodes(batch: int, context_tokens: int, duration_s: float) -> MeasuredStep:
    """Return the step that makes one token for each of ``batch`` sequences of ``context_tokens``."""
    return MeasuredStep(0, 0.0, batch, batch * context_tokens, duration_s)


def calibrate_steps(
    start: Profile,
    steps: Sequence[MeasuredStep],
    *,
    terms: Sequence[Term] = STEP_TERMS,
    held_out: float = 0.33,
    seed: int = 0,
    robust_at: float = 0.05,
    place: str = "steps",
    today: date | None = None,
) -> StepsCalibrated:
    """Fit a step time to measured iterations, leaving out a random share to score it on.

    Relative errors beyond ``robust_at`` count linearly instead of squared.

    How much of that score is chance is what it varies by where other shares are left out: the noise floor.

    Raises
    ------
    InputError : too few steps, or a term that they do not identify.
    """
    measured_s = np.array([step.duration_s for step in steps])

    def error(values: dict[str, float]) -> Floats:
        step_time = replace(start.step_time, **values)
        return np.asarray(np.array([step_time.iteration_s(*step[:4]) for step in steps]) / measured_s - 1)

    def fitted(draw: int) -> tuple[Fit, Floats, NDArray[np.bool_], Floats]:
        """Fit what a draw leaves; returns the fit, all errors, who was used and the errors of whom it is scored on."""
        used = np.random.default_rng(draw).permutation(len(steps)) >= int(held_out * len(steps))
        found = fit(lambda values: np.log1p(error(values)[used]), terms, place=place, robust_at=robust_at)
        relative = error(found.values)
        return found, relative, used, relative[~used] if held_out else relative

    found, relative, used, scored = fitted(seed)
    mean, worst = float(np.abs(scored).mean()), float(np.abs(scored).max())
    by_draw = (scored, *_other_draws(fitted, seed)) if held_out else (scored,)
    floor = _chance(by_draw)
    words = f"on {len(scored)} other iterations: mean {100 * mean:.1f} %, worst {100 * worst:.0f} %"
    words += "" if floor is None else f"; chance +-{100 * floor:.1f} %"
    profile = start.model_copy(
        update={
            "step_time": replace(start.step_time, **found.values),
            "source": f"fitted to {int(used.sum())} iterations of {place}",
            "error": words,
            "calibration": Calibration(
                method="coefficients fitted to measured iterations, robust",
                date=(today or date.today()).isoformat(),
                measurements=int(used.sum()),
                confidence=found.confidence,
                ranges={
                    "prefill_tokens": _range([s.prefill_tokens for s in steps]),
                    "decode_sequences": _range([s.decode_sequences for s in steps]),
                    "context_tokens": _range([s.context_tokens for s in steps]),
                },
                held_out_error={"mean_abs": round(mean, 4), "worst_abs": round(worst, 4)} if held_out else {},
                noise_floor={} if floor is None else {"mean_abs": round(floor, 4)},
            ),
        }
    )
    return StepsCalibrated(profile, found, relative, used, by_draw)


def _other_draws(
    fitted: Callable[[int], tuple[Any, Any, Any, Floats]], seed: int
) -> Iterator[Floats | None]:
    """Yield the errors on what other draws leave out, of fits to the rest; None where that does not identify a term."""
    for draw in range(seed + 1, seed + RUNS):
        try:
            yield fitted(draw)[3]
        except InputError:
            yield None


def _chance(by_draw: Sequence[Floats | None]) -> float | None:
    """Return half a 95 % interval of the mean error over draws; None where too few of them can be fitted."""
    means = [float(np.abs(one).mean()) for one in by_draw if one is not None]
    return float(T_OF_RUNS * np.std(means, ddof=1)) if len(means) > RUNS // 2 else None


def _range(values: Sequence[int]) -> tuple[float, float]:
    return float(min(values)), float(max(values))
