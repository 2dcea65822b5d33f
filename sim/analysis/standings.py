"""Standings of a tournament: mean ranks by load and by metric, with paired bootstrap intervals, and how orders differ.

A cell is one policy in one scenario at one load with one seed. Three metrics are read of it, and no fourth is made of
them: an order by one is another order by the next.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.api import EntitlementSpec, ServiceClass
from sim.analysis.summary import ALL, Row

Floats = NDArray[np.float64]

METRICS = ("attainment", "goodput", "violation")
"""What policies are ranked by: the first two the more the better, the last the less."""
CLASS_WEIGHT: Mapping[ServiceClass, float] = {
    ServiceClass.DEDICATED: 3.0, ServiceClass.GUARANTEED: 3.0, ServiceClass.ELASTIC: 2.0, ServiceClass.SPOT: 1.0,
    ServiceClass.PREEMPTIBLE: 1.0,
}  # fmt: skip
"""What a good request of each class counts. [choice]"""
RESAMPLES = 1000
_ALIKE = 1e-6


@dataclass(frozen=True, slots=True)
class Cell:
    """What one run gave.

    Attributes
    ----------
    attainment : SLO attainment of offered of the worst off of the scored tenants.
    goodput : finished requests a second that met their objective or have none, each times its class's weight.
    violation : entitlement violation over all promises; NaN where no tokens/s were promised.
    digest : of all that was measured, to tell whether a run was the same to the bit.
    """

    scenario: str
    load: float
    policy: str
    replication: int
    attainment: float
    goodput: float
    violation: float
    digest: str


def cells_of(
    scenario: str, load: float, measures: Sequence[Row], scored: Sequence[str], entitlements: Sequence[EntitlementSpec]
) -> list[Cell]:
    """Return the cells of one scenario at one load.

    Parameters
    ----------
    measures : rows as in ``summary.csv`` for each replication and tenant, with the ``replication``.
    scored : tenants whose worst counts; empty: all that have an objective.
    """
    weight: dict[str, float] = {}
    for spec in entitlements:
        weight[spec.tenant] = max(weight.get(spec.tenant, 0.0), CLASS_WEIGHT[spec.service_class])
    runs: dict[tuple[str, int], dict[str, Row]] = {}
    for row in measures:
        runs.setdefault((str(row["policy"]), int(row["replication"])), {})[str(row["tenant"])] = row
    found = []
    for (policy, replication), rows in runs.items():
        met = {name: float(row["slo_attainment"]) for name, row in rows.items() if name != ALL}
        counted = [met[name] for name in scored] if scored else [one for one in met.values() if not math.isnan(one)]
        found.append(Cell(
            scenario, load, policy, replication, min(counted),
            math.fsum(weight.get(name, 1.0) * float(row["goodput_per_s"]) for name, row in rows.items() if name != ALL),
            float(rows[ALL].get("violation", math.nan)), _digest(rows),
        ))  # fmt: skip
    return found


def _digest(rows: Mapping[str, Row]) -> str:
    """Return a digest of all numbers, to the last bit, without what only labels them."""
    plain = {
        tenant: {
            name: _plain(value) for name, value in sorted(row.items())
            if not isinstance(value, str) and name not in ("replication", "replications")
        }
        for tenant, row in sorted(rows.items())
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> str:
    return repr(float(value))


@dataclass(frozen=True, slots=True)
class Standing:
    """One policy's mean rank at one load (None: at all) by one metric, with its 95 % bootstrap interval."""

    policy: str
    metric: str
    load: float | None
    rank: float
    low: float
    high: float


class Table:
    """Cells as arrays: for each metric one of (scenario and load, policy, replication), the more the better."""

    def __init__(self, cells: Sequence[Cell], seed: int = 0) -> None:
        self.policies = list(dict.fromkeys(cell.policy for cell in cells))
        self.places = list(dict.fromkeys((cell.scenario, cell.load) for cell in cells))
        self.replications = sorted({cell.replication for cell in cells})
        self.loads = sorted({load for _, load in self.places})
        shape = (len(self.places), len(self.policies), len(self.replications))
        self.values = {metric: np.full(shape, np.nan) for metric in METRICS}
        at = (
            {place: i for i, place in enumerate(self.places)}, {name: i for i, name in enumerate(self.policies)},
            {number: i for i, number in enumerate(self.replications)},
        )  # fmt: skip
        for cell in cells:
            where = at[0][cell.scenario, cell.load], at[1][cell.policy], at[2][cell.replication]
            for metric in METRICS:
                value = getattr(cell, metric)
                self.values[metric][where] = -value if metric == "violation" else value
        # Seeds are drawn again, the same for every policy and scenario: what is compared stays paired.
        draw = np.random.default_rng(seed).integers(0, len(self.replications), (RESAMPLES, len(self.replications)))
        counts = np.stack([(draw == i).sum(axis=1) for i in range(len(self.replications))], axis=1)
        self._shares = counts / len(self.replications)

    def _rows(self, load: float | None) -> list[int]:
        return [i for i, (_, at) in enumerate(self.places) if load is None or at == load]

    def standings(self, metric: str, load: float | None = None) -> list[Standing]:
        """Return all policies, the least mean rank first."""
        values = self.values[metric][self._rows(load)]
        values = values[~np.isnan(values).any(axis=(1, 2))]  # promises without tokens/s have no violation
        if not len(values):
            return []
        means = ranks(values.mean(axis=2)).mean(axis=0)
        drawn = np.stack([ranks(values @ share).mean(axis=0) for share in self._shares])
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        found = [
            Standing(name, metric, load, float(means[i]), float(low[i]), float(high[i]))
            for i, name in enumerate(self.policies)
        ]
        return sorted(found, key=lambda one: (one.rank, one.policy))

    def level_with_best(self, metric: str, place: int) -> tuple[int, list[int]]:
        """Return the best policy at a scenario and load, and all that a paired bootstrap cannot tell from it."""
        values = self.values[metric][place]
        best = int(np.argmax(values.mean(axis=1)))
        gaps = (values[best] - values) @ self._shares.T
        level = np.flatnonzero(np.quantile(gaps, 0.025, axis=1) <= _ALIKE)
        return best, [int(i) for i in level]

    def moved(self, orders: Sequence[Sequence[Standing]]) -> float:
        """Return the share of policies whose place is not the same in all of these orders."""
        places = [{one.policy: i for i, one in enumerate(order)} for order in orders if order]
        names = [name for name in self.policies if all(name in place for place in places)]
        return sum(len({place[name] for place in places}) > 1 for name in names) / max(1, len(names))


def ranks(values: Floats) -> Floats:
    """Return ranks along the last axis, 1 for the most; values alike to a millionth share the mean of their ranks."""
    one, other = values[..., :, None], values[..., None, :]
    above = (other > one + _ALIKE).sum(axis=-1)
    alike = (np.abs(other - one) <= _ALIKE).sum(axis=-1)
    return np.asarray(1.0 + above + (alike - 1) / 2.0)
