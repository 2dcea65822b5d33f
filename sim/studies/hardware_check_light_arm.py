"""Arms of a GPU that was not swept, predicted after one of them that had little load.

The operators of a GPU say nothing of the host beside it. Who moves an engine there can measure one client: an arm of a
request a second shows what a first token takes, alone and beside another, and what an iteration of one sequence takes.
Two numbers are taken of it, by what all that the host does and all that the GPU does are multiplied; the busy arms of
the same engine are then predicted, of which nothing was seen. Beside the blind prediction these are rows of their own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from sim.calibration.single_replica import Floats
from sim.scenario.profile import Profile
from sim.studies.hardware_check_tenants import (
    GATEWAY_S,
    WARM_UP_S,
    Arm,
    MeasuredArm,
    engine_profile,
    given,
    other_gpu,
)

_LIGHT_PER_S = 2.0  # requests, of which most come to an engine that has nobody else or one
_OF_GPU = (
    "weights_s", "batched_s", "per_token_s", "per_decode_sequence_s", "per_context_token_s", "per_prefill_pair_s",
    "per_decode_sequence_beside_prompts_s",
)  # fmt: skip
_OF_HOST = ("lone_prefill_s", "uncaptured_s", "prompt_launch_s")
_OF_SERVER = ("request_overhead_s", "request_handling_s", "request_per_prompt_token_s", "request_per_running_s")


def check_after_light_arms(folder: Path | None = None, profile: Profile | None = None) -> list[Arm]:
    """Predict the busy arms of GPUs that were not swept again, with an arm of few requests there to go by.

    Of that arm two numbers are taken: what the host's times and what the GPU's are multiplied by (`light_factors`). An
    engine without one is left out.

    Parameters
    ----------
    folder, profile : as `check_tenants` takes them.

    Raises
    ------
    InputError : the data are not there.
    """
    arms, profile, chance = given(folder, profile)
    on_others = [each for each in arms if other_gpu(each.engine) and not each.v0_engine]
    found = []
    for light in (each for each in on_others if each.per_s <= _LIGHT_PER_S):
        engine = engine_profile(profile, light.engine)
        host, gpu = light_factors(light, engine)
        after = on_other_host(engine, host, gpu)
        for busy in on_others:
            if busy.per_s > _LIGHT_PER_S and busy.engine == light.engine:
                arm = busy.predicted(after, chance, gateway_s=host * GATEWAY_S)
                found.append(replace(arm, name=f"{arm.name}, after {light.name}"))
    return found


def light_factors(light: MeasuredArm, profile: Profile) -> tuple[float, float]:
    """Return by what a host's times and a GPU's have to be multiplied for what one light arm shows.

    Compared are the mean of E2E, and medians of the first token of who came alone and of who came beside others.
    """
    came_s = light.rows.start_s.to_numpy(float)
    left_s = came_s + light.rows.e2e_s.to_numpy(float)
    rows = light.predicted(profile, None).requests
    warm = ((rows.start_s >= WARM_UP_S) & (rows.measured_status == "ok") & (rows.status == "ok")).to_numpy()
    exact = warm & rows.exact.to_numpy()
    alone = np.array([not ((came_s < at_s) & (left_s > at_s)).any() for at_s in came_s])

    def statistics(ttft_s: pd.Series[float], e2e_s: pd.Series[float]) -> Floats:
        first_s = ttft_s.to_numpy(float)
        medians_s = [np.median(first_s[exact & alone]), np.median(first_s[exact & ~alone])]
        return np.log([np.mean(e2e_s.to_numpy(float)[warm]), *medians_s])

    there = statistics(rows.measured_ttft_s, rows.measured_e2e_s)

    def residuals(x: Floats) -> Floats:
        host, gpu = x.tolist()
        made = light.predicted(on_other_host(profile, host, gpu), None, gateway_s=host * GATEWAY_S).requests
        return statistics(made.ttft_s, made.e2e_s) - there

    found = least_squares(residuals, np.ones(2), diff_step=[0.02, 0.02], bounds=(0.2, 5.0), max_nfev=12)
    host, gpu = found.x.tolist()
    return host, gpu


def on_other_host(profile: Profile, host: float, gpu: float) -> Profile:
    """Return a profile on a host and a GPU whose times are multiplied by so much."""
    step_time = profile.step_time
    changes = {name: getattr(step_time, name) * gpu for name in _OF_GPU}
    changes |= {name: getattr(step_time, name) * host for name in _OF_HOST}
    server = {name: getattr(profile, name) * host for name in _OF_SERVER}
    return profile.model_copy(update={"step_time": replace(step_time, **changes), **server})
