"""The demands of a scenario, drawn: the same for every policy of a replication, simulated or live."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

from sim.errors import InputError
from sim.scenario.load import Cell, Scenario
from sim.seeds import stream
from workloads.catalogue import TRACES
from workloads.formats.errors import TraceError
from workloads.generate import Recorded, WorkloadSpec, generate
from workloads.requests import Demand


def demands(scenario: Scenario, replication: int) -> list[Demand]:
    """Return the requests of every workload. No policy is in a stream's name, so all policies meet the same."""
    horizon_s = math.inf if scenario.horizon_s is None else scenario.horizon_s
    data = os.environ.get("TOKENPOOLS_DATA")
    return [_demand(w.spec(), scenario.seed, replication, horizon_s, data) for w in scenario.workload]


def unread_traces(cells: Sequence[Cell]) -> list[str]:
    """Read what recordings the runs replay, as the runs would; return what is said of published ones not fetched yet.

    Raises
    ------
    InputError : a run would refuse one: it is not there, has a bad row, or nothing in the part that is asked for.
    """
    missing: dict[str, None] = {}
    seen = set()
    for cell in cells:
        for workload in cell.scenario.workload:
            spec = workload.spec()
            key = (spec, cell.scenario.seed, cell.scenario.horizon_s)
            if not isinstance(spec.arrivals, Recorded) or key in seen:
                continue
            seen.add(key)
            try:
                demands(cell.scenario.model_copy(update={"workload": (workload,)}), cell.replication)
            except InputError as error:
                if getattr(spec.arrivals, "file", None) not in TRACES or " not f" not in str(error):
                    raise
                missing[str(error)] = None
    return list(missing)


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
