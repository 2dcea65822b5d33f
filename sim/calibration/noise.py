"""How much of an error is chance: the same run simulated with coefficients that differ by next to nothing.

Where the KV cache is short or iterations are long, which request slips into which iteration is decided by
microseconds, and single latencies jump. Coefficients that differ by a ten-thousandth are as good as the given ones, so
what statistics differ by between such runs is no property of the profile: a floor under any verdict about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd

from sim.scenario.profile import Profile

RUNS = 8
_RELATIVE = 1e-4
_NO_COEFFICIENTS = ("skew", "expert_share", "compute_efficiency", "memory_efficiency")
T_OF_RUNS = 2.36
"""Student's t for 95 % and seven degrees of freedom."""


def perturbed(profile: Profile, runs: int = RUNS) -> list[Profile]:
    """Return the profile, and copies whose step-time coefficients differ from it by some 0.01 %."""
    rng = np.random.default_rng(15)
    return [profile, *(_copy(profile, rng) for _ in range(runs - 1))]


def _copy(profile: Profile, rng: np.random.Generator) -> Profile:
    step_time = profile.step_time
    changes: dict[str, Any] = {}
    for each in fields(step_time):
        value = getattr(step_time, each.name)
        if isinstance(value, float) and value and each.name not in _NO_COEFFICIENTS:
            changes[each.name] = value * (1 + _RELATIVE * float(rng.standard_normal()))
    for name in ("compute_efficiency", "memory_efficiency"):  # at most 1
        if hasattr(step_time, name):
            changes[name] = getattr(step_time, name) * (1 - _RELATIVE * abs(float(rng.standard_normal())))
    return profile.model_copy(update={"step_time": replace(step_time, **changes)})


def averaged(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the mean of error tables of one run, with the floor under each error.

    Columns are those of `sim.calibration.measured.errors`, and ``floor``: half the width of a 95 % interval for the
    error of a single simulation, relative to what was measured.
    """
    found = tables[0].copy()
    simulated = np.array([table.simulated_s.to_numpy(float) for table in tables])
    found["simulated_s"] = simulated.mean(axis=0)
    found["error"] = found.simulated_s / found.measured_s - 1
    spread = simulated.std(axis=0, ddof=1) if len(tables) > 1 else np.zeros(simulated.shape[1])
    found["floor"] = T_OF_RUNS * spread / found.measured_s
    return found


def verdict(error: float, floor: float, at_most: float) -> bool | None:
    """Return whether an error is at most so much, all relative; None where chance would decide."""
    if not np.isfinite(error):
        return False
    mean_floor = floor / np.sqrt(RUNS)  # the error is a mean over runs
    if abs(error) + mean_floor <= at_most:
        return True
    return False if abs(error) - mean_floor > at_most else None
