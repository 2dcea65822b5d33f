"""Simulated runs with one tenant and no control: the corners in which a replica is a textbook queue."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from policies.api import EntitlementSpec, ServiceClass
from policies.no_control import NoControlPolicy
from policies.routing import RoundRobinRouter
from sim.cluster.replica import Replica
from sim.cluster.world import World, simulate
from sim.engine.step_time import LinearStepTime
from sim.scenario.profile import Profile
from sim.seeds import stream
from workloads.arrivals import Poisson
from workloads.generate import WorkloadSpec, generate
from workloads.lengths import Constant, LengthLaw
from workloads.requests import Demand

Floats = NDArray[np.float64]
SEED = 20240611
REPLICATIONS = 20


@dataclass(frozen=True)
class Path:
    """What became of every request, in order of arrival; all have finished."""

    arrival_s: Floats
    first_token_s: Floats
    finish_s: Floats
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    def after_warmup(self) -> Path:
        """Leave out the first tenth, which meets an emptier queue than the rest, and the last, which nobody follows."""
        n = len(self.arrival_s) // 10
        return Path(*(getattr(self, each.name)[n:-n] for each in fields(self)))


def profile(
    step_time: LinearStepTime, *, slots: int, batched_tokens: int | None = None, scheduling: str = "fcfs",
    kv_blocks: int = 10**7, block_tokens: int = 16,
) -> Profile:
    return Profile.model_validate({
        "step_time": step_time, "max_num_seqs": slots, "max_num_batched_tokens": batched_tokens or max(slots, 8192),
        "kv_blocks": kv_blocks, "block_tokens": block_tokens, "scheduling": scheduling,
    })  # fmt: skip


def run(demands: Sequence[Demand], of: Profile, *, priorities: Sequence[int] = (0,), replica: type = Replica) -> Path:
    """Play demands, one workload each, through gateway and replica until all have finished."""
    workloads = [
        WorkloadSpec(
            name=f"w{i}", entitlement="all", arrivals=Poisson(rate_per_s=1.0), prompt_tokens=Constant(value=1),
            output_tokens=Constant(value=1), priority=priority,
        )
        for i, priority in enumerate(priorities)
    ]
    entitlements = [EntitlementSpec(name="all", tenant="all", service_class=ServiceClass.ELASTIC)]
    with patch("sim.cluster.node.Replica", replica):
        columns = simulate(World(
            profile=of, replicas=1, entitlements=entitlements, workloads=workloads, demands=demands,
            policy=NoControlPolicy(), router=RoundRobinRouter(), events=[], horizon_s=None,
            default_max_output_tokens=256, timeline_interval_s=None, scrape_interval_s=1.0,
        )).columns  # fmt: skip
    assert len(columns.request_id) == sum(len(demand) for demand in demands)
    return Path(
        *(np.asarray(c, dtype=np.float64) for c in (columns.arrival_s, columns.first_token_s, columns.finish_s)),
        *(np.asarray(c, dtype=np.int64) for c in (columns.prompt_tokens, columns.output_tokens)),
    )


def poisson_path(
    rate_per_s: float, of: Profile, output: LengthLaw, *, replication: int, requests: int,
    prompt: LengthLaw | None = None, replica: type = Replica,
) -> Path:
    """Return a run of Poisson arrivals less its warm-up."""
    spec = WorkloadSpec(
        name="w0", entitlement="all", arrivals=Poisson(rate_per_s=rate_per_s),
        prompt_tokens=prompt or Constant(value=1), output_tokens=output, requests=requests,
    )
    demand = generate(spec, partial(stream, SEED, replication), math.inf, None)
    return run([demand], of, replica=replica).after_warmup()


def demand_of(arrivals_s: Sequence[float], prompts: Sequence[int], outputs: Sequence[int]) -> Demand:
    """Return requests with exactly these numbers."""
    tokens = np.asarray(outputs, dtype=np.int64)
    return Demand(np.asarray(arrivals_s, dtype=np.float64), np.asarray(prompts, dtype=np.int64), tokens, tokens)


@dataclass(frozen=True)
class Interval:
    """A 99 % Student-t interval of a mean over replications."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def interval(measure: Callable[[int], float], replications: int = REPLICATIONS) -> Interval:
    samples = np.array([measure(replication) for replication in range(replications)])
    half = float(stats.t.ppf(0.995, len(samples) - 1) * samples.std(ddof=1) / math.sqrt(len(samples)))
    mean = float(samples.mean())
    return Interval(mean - half, mean + half)


class MissError(AssertionError):
    """The interval does not hold what theory says."""


def check(theory_s: float, measured: Interval, *, share: float, bias_s: float = 0.0) -> None:
    """Assert that the interval holds the theory, and is narrow enough to mean something.

    ``bias_s`` is by how much the model may exceed the theory where that is a limit, which the model only approaches.
    """
    if not measured.low - bias_s < theory_s < measured.high:
        raise MissError(theory_s, measured)
    assert measured.half_width < share * theory_s, (theory_s, measured)
