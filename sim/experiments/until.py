"""Replications added until an interval is as narrow as asked."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from sim.analysis.statistics import mean_interval, replications_needed
from sim.analysis.study import METRICS, Study
from sim.errors import InputError
from sim.experiments.executors import Executor
from sim.experiments.sweep import OnCell, SweepResult, sweep
from sim.extras import require
from sim.scenario.load import Scenario
from sim.scenario.validation_errors import suggestion

FIRST = 10
"""Replications before the first look: a rule that stops when the interval happens to be narrow needs a fair start."""

_TARGET = re.compile(r"(?:(?P<tenant>.+)/)?(?P<metric>[a-z0-9_]+)\s*:\s*(?P<number>[0-9.eE+-]+)\s*(?P<percent>%?)")


@dataclass(frozen=True, slots=True)
class Target:
    """Half the width that the 95 % interval of a metric's mean may have.

    Attributes
    ----------
    tenant : whose metric; "all" for everybody's.
    half_width : in the metric's unit, or as a share of the mean where ``relative``.
    """

    tenant: str
    metric: str
    half_width: float
    relative: bool

    def allowed(self, mean: float) -> float:
        """Return the half-width allowed around a mean."""
        return self.half_width * abs(mean) if self.relative else self.half_width


@dataclass(frozen=True, slots=True)
class Reached:
    """How a sequence of sweeps ended.

    Attributes
    ----------
    replications : how many there are.
    widest : the largest half-width over cases, as a share of what was allowed; at most 1 where the target is met.
    """

    result: SweepResult
    replications: int
    widest: float

    @property
    def met(self) -> bool:
        """Whether every case is as narrow as asked."""
        return self.widest <= 1


def parse_target(text: str) -> Target:
    """Return the target of ``[tenant/]metric:5%`` or ``[tenant/]metric:0.05`` (in the metric's unit).

    Raises
    ------
    InputError : it is neither, or there is no such metric.
    """
    match = _TARGET.fullmatch(text.strip())
    try:
        number = float(match["number"]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or not number > 0:
        raise InputError(f"--until {text!r}", "is no target", 'give a metric and a width, e.g. "ttft_p99_s:5%"')
    if match["metric"] not in METRICS:
        raise InputError(f"--until {text!r}", f"unknown metric {match['metric']}", suggestion(match["metric"], METRICS))
    relative = bool(match["percent"])
    return Target(match["tenant"] or "all", match["metric"], number / 100 if relative else number, relative)


def sweep_until(
    scenario: Scenario,
    folder: Path,
    targets: Sequence[Target],
    *,
    most: int = 200,
    executor: Executor | None = None,
    on_cell: OnCell | None = None,
) -> Reached:
    """Add replications until the interval of every target is narrow enough in every case, or ``most`` are done.

    Each look asks how many replications the variance so far calls for, and runs as many, doubling at most. All
    replications count: none is thrown away because the interval was wide.
    """
    require("scipy", "--until")  # how many replications it takes may lie beyond the tabulated quantiles
    n = min(most, max(FIRST, scenario.replications))
    while True:
        wanted = scenario.model_copy(update={"replications": n})
        result = sweep(wanted, folder, executor=executor, on_cell=on_cell)
        needed, widest = _look(Study(folder), targets)
        if widest <= 1 or n >= most or result.count.failed:
            return Reached(result, n, widest)
        n = next_count(n, needed, most)


def next_count(n: int, needed: int, most: int) -> int:
    """Return how many replications to have at the next look: what the variance calls for, doubling at most."""
    return min(most, max(n + 1, min(needed, 2 * n)))


def look(values: ArrayLike, target: Target) -> tuple[int, float]:
    """Return how many replications one case needs, and its half-width as a share of what is allowed.

    Both are 0 where nothing varies. Where too little was measured for an interval, or none is narrow enough, twice as
    many are wanted, and the half-width is infinite.
    """
    found = mean_interval(values)
    allowed = target.allowed(found.estimate)
    if found.half_width == 0:
        return 0, 0.0
    if math.isnan(found.half_width) or not allowed:
        return 2 * len(np.asarray(values)), math.inf
    return replications_needed(values, allowed), found.half_width / allowed


def _look(study: Study, targets: Sequence[Target]) -> tuple[int, float]:
    """Return how many replications are needed, and the widest half-width as a share of what is allowed."""
    needed, widest = 0, 0.0 if study.cases else math.inf
    for target in targets:
        if target.tenant != "all" and target.tenant not in study.tenants:
            known = [*study.tenants, "all"]
            raise InputError(
                f"--until {target.tenant}", "no such tenant in the result", suggestion(target.tenant, known)
            )
        for case in study.cases:
            asked, width = look(study.values(case, target.tenant, target.metric).to_numpy(), target)
            needed, widest = max(needed, asked), max(widest, width)
    return needed, widest
