"""The demands of a scenario, drawn: the same for every policy of a replication, simulated or live."""

from __future__ import annotations

import math
import os
import random
from functools import lru_cache, partial
from pathlib import Path

from sim.errors import InputError
from sim.scenario.load import Scenario
from sim.seeds import stream
from workloads.generate import WorkloadSpec, generate
from workloads.requests import Demand
from workloads.trace import TraceError


def demands(scenario: Scenario, replication: int) -> list[Demand]:
    """Return the requests of every workload. No policy is in a stream's name, so all policies meet the same."""
    horizon_s = math.inf if scenario.horizon_s is None else scenario.horizon_s
    data = os.environ.get("TOKENPOOLS_DATA")
    return [_demand(w.spec(), scenario.seed, replication, horizon_s, data) for w in scenario.workload]


def client_chances(scenario: Scenario, replication: int) -> list[random.Random | None]:
    """Return, of each workload, what its clients' jitter is drawn from."""
    return [named_chance(scenario.seed, replication, f"{w.name}/client") for w in scenario.workload]


def named_chance(seed: int, replication: int, name: str) -> random.Random:
    """Return the stream of a name for code that may not import numpy, as policies."""
    return random.Random(int(stream(seed, replication, name).integers(2**63)))


@lru_cache(maxsize=8)
def _demand(spec: WorkloadSpec, seed: int, replication: int, horizon_s: float, data: str | None) -> Demand:
    try:
        return generate(spec, partial(stream, seed, replication), horizon_s, Path(data) if data else None)
    except (TraceError, ValueError) as error:
        raise InputError(f"workload {spec.name}", str(error), "") from error
