"""How full the GPUs were while work was wanted, and how much goodput the offered load leaves room for at all.

*Full*: at instants `STEP_S` apart, those at which a request waits, at the gateway or at a replica that was sent more
than it has slots, or was refused since the instant before (whatever the reason, unless it could never be served). A
ready replica is full by the share of its slots that are taken, and wholly where prompts of a whole iteration, or nine
tenths of its KV cache, stand in the way of another. A replica with one request in 16 slots so counts as a sixteenth,
though its GPU is never idle.

*Ceiling*: the most weighted goodput that any policy could have had that does not know the length of answers. A linear
program over tenants and windows: requests are served in part, at what they cost a replica whose batch is full, in the
window in which they came or as long after it as their objective and their answers last, in no window more than the
replicas that were ready have seconds. What rests on it is what was offered in the run that is looked at: clients that
come again or slow down offer others something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.analysis.standings import CLASS_WEIGHT
from sim.analysis.study import Study
from sim.extras import require
from sim.scenario.load import Scenario

Floats = NDArray[np.float64]

STEP_S = 0.1
WINDOW_S = 10.0
_KV_FULL = 0.9
_DECODES = 2.0
"""An answer may take so many times as long as the mean one of its tenant does in a full batch. [choice]"""
_NEVER = ("too_large", "context_length", "not_bound")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one run used of what there was.

    Attributes
    ----------
    wanted_s : seconds in which work waited or was refused.
    running, full : the mean share of the ready replicas that ran anything in these, and that were full (module); NaN
        where nothing was wanted.
    goodput, ceiling : weighted requests in time a second, and the most that there could have been.
    """

    scenario: str
    load: float
    policy: str
    replication: int
    wanted_s: float
    running: float
    full: float
    goodput: float
    ceiling: float


@dataclass(frozen=True, slots=True)
class BatchCapacity:
    """What a replica's batch holds, and the coefficients of its linear step time by name, in seconds."""

    slots: int
    batched_tokens: int
    kv_tokens: float
    step: Mapping[str, float]


def bounds(
    folder: Path, name: str, scenario: Scenario, load: float, policies: Sequence[str],
    goodput: Mapping[tuple[str, int], float],
) -> list[Bounds]:
    """Return the bounds of one place of a tournament that was run, for some policies.

    Parameters
    ----------
    folder : of the place's sweep.
    scenario : at this load.
    goodput : by policy and replication.

    Raises
    ------
    ValueError : its step time is not linear.
    """
    require("scipy", "the ceiling of a tournament")
    study = Study(folder)
    pool = batch_capacity(scenario)
    found = []
    for cell in study.cells.to_dict("records"):
        policy, replication = str(cell["policy"]), int(cell["replication"])
        if policy not in policies:
            continue
        requests, timeline = study.run(dict(cell)), study.run_timeline(dict(cell))  # type: ignore[arg-type]
        ready = ready_replicas(timeline)
        wanted_s, running, full = _use(requests, ready, pool, scenario)
        found.append(Bounds(
            name, load, policy, replication, wanted_s, running, full, goodput[policy, replication],
            most_goodput(requests, ready, pool, scenario),
        ))  # fmt: skip
    return found


def batch_capacity(scenario: Scenario) -> BatchCapacity:
    """Return what a replica of a scenario holds.

    Raises
    ------
    ValueError : its step time is not linear.
    """
    profile = scenario.pool.profile
    step = profile.step_time
    if getattr(step, "kind", None) != "linear":
        raise ValueError(f"the ceiling is worked out for linear step times, this profile's is {step!r}")
    return BatchCapacity(
        profile.max_num_seqs, profile.max_num_batched_tokens, profile.kv_blocks * profile.block_tokens,
        {"base": step.base_s, "prefill": step.per_prefill_token_s, "sequence": step.per_decode_sequence_s,
         "context": step.per_context_token_s},
    )  # fmt: skip


def ready_replicas(timeline: pd.DataFrame) -> tuple[Floats, Floats]:
    """Return the times of a timeline's samples and how many replicas were ready then."""
    rows = timeline[(timeline["scope"] == "pool") & (timeline["metric"] == "ready_replicas")].sort_values("t_s")
    return rows["t_s"].to_numpy(float), rows["value"].to_numpy(float)


def ready_at(ready: tuple[Floats, Floats], t_s: Floats) -> Floats:
    """Return how many replicas were ready at some times."""
    at = np.clip(np.searchsorted(ready[0], t_s, side="right") - 1, 0, len(ready[0]) - 1)
    return ready[1][at]


def replica_seconds(scenario: Scenario, ready: tuple[Floats, Floats], window_s: float) -> tuple[Floats, Floats]:
    """Return the edges of a run's windows after its warm-up, shape (n + 1,), and the replica-seconds of each, (n,)."""
    from_s, end_s = float(scenario.warmup_s), float(scenario.horizon_s or 0.0)
    edges = np.append(np.arange(from_s, end_s, window_s), end_s)
    middle = np.arange(from_s + STEP_S / 2, end_s, STEP_S)
    return edges, np.histogram(middle, edges, weights=STEP_S * ready_at(ready, middle))[0]


def _open_at(t_s: Floats, from_s: Floats, until_s: Floats, amount: Floats | None = None) -> Floats:
    """Return the sum of what is open at each instant: from its beginning on, until before its end."""
    amount = np.ones(len(from_s)) if amount is None else amount
    sums = []
    for edge_s in (from_s, until_s):
        order = np.argsort(edge_s, kind="stable")
        total = np.concatenate(([0.0], np.cumsum(amount[order])))
        sums.append(total[np.searchsorted(edge_s[order], t_s, side="right")])
    return sums[0] - sums[1]


def _use(
    rows: pd.DataFrame, ready: tuple[Floats, Floats], pool: BatchCapacity, scenario: Scenario
) -> tuple[float, float, float]:
    """Return the seconds in which work was wanted, and how much of the ready replicas ran, and was full, in these."""
    end_s = float(scenario.horizon_s or 0.0)
    t_s = np.arange(float(scenario.warmup_s) + STEP_S, end_s, STEP_S)
    column = {name: rows[name].to_numpy(float) for name in ("arrival_s", "forwarded_s", "first_token_s", "finish_s")}
    ended = np.where(np.isnan(column["finish_s"]), end_s, column["finish_s"])
    left = np.where(np.isnan(column["forwarded_s"]), ended, column["forwarded_s"])
    refused = ((rows["outcome"] == "refused") & ~rows["reason"].isin(_NEVER)).to_numpy()
    at = np.sort(ended[refused])
    new = np.searchsorted(at, t_s, side="right") > np.searchsorted(at, t_s - STEP_S, side="right")
    wanted = (_open_at(t_s, column["arrival_s"], left) > 0) | new
    there = ready_at(ready, t_s)
    running, full = np.zeros(len(t_s)), np.zeros(len(t_s))
    sent = rows[~np.isnan(column["forwarded_s"])].index.to_numpy()
    replica = rows["replica"].to_numpy(float)
    prompt, output = rows["prompt_tokens"].to_numpy(float), rows["output_tokens"].fillna(0).to_numpy(float)
    cached = rows["cached_tokens"].fillna(0).to_numpy(float)
    first = np.where(np.isnan(column["first_token_s"]), ended, column["first_token_s"])
    position = pd.Series(range(len(rows)), index=rows.index)
    chosen = position[sent].to_numpy(int)
    for number in np.unique(replica[chosen]):
        mine = chosen[replica[chosen] == number]
        begun, over = column["forwarded_s"][mine], ended[mine]
        active = _open_at(t_s, begun, over)
        waiting = _open_at(t_s, begun, first[mine], prompt[mine] - cached[mine])
        held = _open_at(t_s, begun, over, prompt[mine] + output[mine] / 2)
        blocked = (waiting >= pool.batched_tokens) | (held >= _KV_FULL * pool.kv_tokens)
        wanted |= active > pool.slots
        running += active > 0
        full += np.where(blocked, 1.0, np.minimum(1.0, active / pool.slots))
    wanted &= there > 0
    if not wanted.any():
        return 0.0, math.nan, math.nan
    share = np.minimum(1.0, np.stack([running, full])[:, wanted] / there[wanted])
    return STEP_S * float(wanted.sum()), float(share[0].mean()), float(share[1].mean())


def most_goodput(rows: pd.DataFrame, ready: tuple[Floats, Floats], pool: BatchCapacity, scenario: Scenario) -> float:
    """Return the most weighted goodput of what was offered (module)."""
    from scipy.optimize import linprog

    edges, seconds = replica_seconds(scenario, ready, WINDOW_S)
    from_s, end_s = float(edges[0]), float(edges[-1])
    offered = rows[rows["final"] & (rows["first_arrival_s"] >= from_s)]
    weight = {one.tenant: CLASS_WEIGHT[one.spec().service_class] for one in scenario.pool.entitlements}
    gain: list[float] = []
    limits: list[tuple[int, int, float]] = []  # group, window, replica-seconds of one request
    counts: list[int] = []
    for tenant, own in offered.groupby("tenant", observed=True):
        cost_s, lasts_s = request_cost_s(own, pool)
        slo_s = float(own["ttft_slo_s"].max()) if own["ttft_slo_s"].notna().any() else end_s
        windows = math.ceil((slo_s + _DECODES * lasts_s) / WINDOW_S)
        came = np.histogram(own["first_arrival_s"], edges)[0]
        for number in (int(one) for one in np.flatnonzero(came)):
            counts.append(int(came[number]))
            for window in range(number, min(len(seconds), number + windows + 1)):
                limits.append((len(counts) - 1, window, cost_s))
                gain.append(weight[str(tenant)])
    if not gain:
        return 0.0
    n = len(counts)
    table = np.zeros((n + len(seconds), len(gain)))
    for column, (group, window, cost_s) in enumerate(limits):
        table[group, column] = 1.0
        table[n + window, column] = cost_s
    solved = linprog(-np.array(gain), A_ub=table, b_ub=np.concatenate((counts, seconds)), method="highs")
    return -float(solved.fun or 0.0) / (end_s - from_s)


def request_cost_s(rows: pd.DataFrame, pool: BatchCapacity) -> tuple[float, float]:
    """Return what a tenant's mean request costs a replica whose batch is full, and how long its answer then takes."""
    done = rows[rows["outcome"] == "finished"]
    if not len(done):
        return 0.0, 0.0
    output, prompt = done["output_tokens"].to_numpy(float), done["prompt_tokens"].to_numpy(float)
    step, context = pool.step, prompt + output / 2
    computed = prompt - done["cached_tokens"].fillna(0).to_numpy(float)
    token_s = step["base"] / pool.slots + step["sequence"] + step["context"] * context
    whole_s = step["base"] + pool.slots * (step["sequence"] + step["context"] * context)
    return float((computed * step["prefill"] + output * token_s).mean()), float((output * whole_s).mean())
