"""Where the warm-up of a result ends: where the scenario says, or where MSER-5 finds it.

One cut holds for all policies and replications of a variant: a cut of its own for each run would compare different
requests. It is the latest of the policies' own cuts, and each of those comes from the mean of the replications, which
is steadier than any one of them.

References
----------
K. P. White, M. J. Cobb, S. C. Spratt, "A comparison of five steady-state truncation heuristics for simulation", Winter
Simulation Conference, 2000.
K. Hoad, S. Robinson, R. Davies, "Automating warm-up length estimation", Journal of the Operational Research Society 61,
2010: MSER-5 on the mean of replications.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sim.records import metrics
from sim.records.arrow_columns import flags, floats

Floats = NDArray[np.float64]

RULE = "mser-5"
"""What ``warmup_s`` says where the data shall decide."""

FEWEST = 100
"""Requests with a first token that a run must have for a cut to be looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Times to first token of one run in the order of arrival; those that got none are left out."""

    arrival_s: Floats
    ttft_s: Floats


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Where the warm-up of one variant ends.

    Attributes
    ----------
    by_policy : each policy's own cut in seconds; NaN where it found none.
    """

    by_policy: dict[str, float]

    @property
    def warmup_s(self) -> float:
        """The latest of the policies' cuts; 0 where none found one."""
        return max((cut for cut in self.by_policy.values() if not math.isnan(cut)), default=0.0)

    @property
    def unsettled(self) -> tuple[str, ...]:
        """The policies under which no steady state was found, or whose runs are too short to tell."""
        return tuple(policy for policy, cut in self.by_policy.items() if math.isnan(cut))


SERIES_COLUMNS = ("final", "first_arrival_s", "first_token_s")


def series_of(requests: pa.Table) -> Series:
    """Return the series of one run's attempts."""
    arrival_s, first_s = floats(requests, "first_arrival_s"), floats(requests, "first_token_s")
    rows = np.flatnonzero(flags(requests, "final") & ~np.isnan(first_s))
    rows = rows[np.argsort(arrival_s[rows], kind="stable")]
    return Series(arrival_s[rows], metrics.ttft_s(first_s[rows], arrival_s[rows]))


def settled_s(replications: Sequence[Series]) -> float:
    """Return when the mean of the replications settles by MSER-5; NaN for never, or for too few requests to tell.

    The mean is over the k-th requests of all replications, and so is the time that the cut stands for.
    """
    from sim.analysis.statistics import mser5  # here, because a single run must not pay for importing scipy

    n = min((len(one.ttft_s) for one in replications), default=0)
    if n < FEWEST:
        return math.nan
    index = mser5(np.mean([one.ttft_s[:n] for one in replications], axis=0))
    if index is None:
        return math.nan
    return float(np.mean([one.arrival_s[index] for one in replications])) if index else 0.0


def warm_up_of(by_policy: Mapping[str, Sequence[Series]]) -> WarmUp:
    """Return the cut of a variant from the series of its policies' replications."""
    return WarmUp({policy: settled_s(replications) for policy, replications in by_policy.items()})


def warmup_of(manifest: Mapping[str, Any], cell: Mapping[str, Any]) -> float:
    """Return the seconds that were left out of a run's summary; ``cell`` is its element of the manifest's cells."""
    stated = cell.get("warmup_s", manifest["scenario"].get("warmup_s", 0.0))
    return 0.0 if isinstance(stated, str) else float(stated)


def in_words(manifest: Mapping[str, Any]) -> str:
    """Return where the warm-up of a result ends, and by what rule."""
    cuts = [float(one["warmup_s"]) for one in manifest.get("warm_up", {}).get("cuts", ())]
    if not cuts:
        stated = manifest["scenario"].get("warmup_s", 0.0)
        return "nothing (no run finished)" if isinstance(stated, str) else f"{float(stated):g} s"
    if all(at_s is None for one in manifest["warm_up"]["cuts"] for at_s in one["by_policy"].values()):
        return "nothing (MSER-5 found no steady state)"
    least, most = f"{min(cuts):.3g}", f"{max(cuts):.3g}"
    return f"{least} s (MSER-5)" if least == most else f"{least} to {most} s (MSER-5, by variant)"
