"""How the mean latencies of a simulated sweep point go with the coefficients of its step time.

As long as a schedule stays, a latency is a sum of what the engine did meanwhile, so many iterations, tokens, sequences
and KV entries, each times a coefficient. So one simulation that counts the work says how latencies go with all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.calibration.from_sweep import SweepPoint, loop_requests
from sim.calibration.single_replica import Floats, Work, closed_loop
from sim.engine.step_fitted import FittedStepTime
from sim.engine.work import touched_share
from sim.scenario.profile import Profile

STEP_TERMS = (
    "base_s", "weights_s", "experts_s", "per_token_s", "per_decode_sequence_s", "per_context_token_s",
    "per_prefill_pair_s", "per_prefill_iteration_s",
)  # fmt: skip
"""Coefficients of a fitted step time that work is counted for."""
REQUEST_TERMS = ("request_overhead_s", "request_per_running_s")
"""Those of a profile, for what its server does to a request before the engine has it."""


def multipliers(step: FittedStepTime, work: Sequence[Work]) -> Floats:
    """Return by what each coefficient of `STEP_TERMS` enters the duration of each run of iterations, shape (n, terms).

    An iteration either reads or computes, whichever takes longer, and what is shorter counts for nothing.
    """
    _, _, iterations, prefill, pairs, sequences, context = np.array(work, float).reshape(-1, 7).T
    tokens = prefill + sequences
    touched = touched_share(step.expert_share, tokens)
    computes = step.per_token_s * tokens > step.weights_s + step.experts_s * touched
    reads = iterations * ~computes
    entries = iterations * context + sequences * iterations * (iterations - 1) / 2
    columns = [
        iterations, reads, reads * touched, iterations * tokens * computes, iterations * sequences, entries, pairs,
        1.0 * (prefill > 0),
    ]  # fmt: skip
    return np.column_stack(columns)


def point_slopes(profile: Profile, point: SweepPoint, names: Sequence[str]) -> tuple[Floats, Floats]:
    """Return a point's mean time to first token and per further token, and their slopes by coefficient, (2, names).

    Means less slopes times coefficients are what other terms of the profile add. An iteration that is under way when a
    request comes counts by the part that was left of it, as if one came at any time of it alike.
    """
    requests = loop_requests(point)
    work: list[Work] = []
    made = closed_loop(profile, requests, point.concurrency, work=work)
    assert made.arrival_s is not None
    assert made.submitted_s is not None
    assert made.others is not None
    starts_s, ends_s = np.array([(each.start_s, each.end_s) for each in work]).T
    each = multipliers(profile.step_time, work)
    total = np.vstack([np.zeros(each.shape[1]), np.cumsum(each, axis=0)])

    def until(at_s: Floats) -> Floats:
        met = np.minimum(np.searchsorted(ends_s, at_s), len(work) - 1)
        part = np.clip((at_s - starts_s[met]) / (ends_s[met] - starts_s[met]), 0.0, 1.0)
        return np.asarray(total[met] + part[:, None] * each[met])

    further = np.maximum(1, requests.output_tokens - 1)
    at_first = until(made.first_token_s)
    ttft = (at_first - until(made.submitted_s)).mean(axis=0)
    tpot = ((until(made.finish_s) - at_first) / further[:, None]).mean(axis=0)
    by_name = {name: (ttft[i], tpot[i]) for i, name in enumerate(STEP_TERMS)}
    by_name |= {"request_overhead_s": (1.0, 0.0), "request_per_running_s": (made.others.mean(), 0.0)}
    means_s = (made.first_token_s - made.arrival_s).mean(), ((made.finish_s - made.first_token_s) / further).mean()
    return np.array(means_s), np.array([by_name[name] for name in names]).T
