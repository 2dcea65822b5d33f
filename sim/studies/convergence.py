"""How token pools come to a new balance after a change: how fast, how far over, how steadily, and how fair.

The controller's output is each elastic entitlement's part of all their weights; what it is for is that all get the same
share of what they were promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from policies.api import ServiceClass
from sim.experiments.run import ScenarioResult, run_scenario
from sim.records.arrow_columns import codes_of, floats
from sim.scenario.load import Scenario, load_scenario

Floats = NDArray[np.float64]

POLICY = "token-pool"
_SMOOTHING_S = 20.0
_BAND = 0.2
_NOISE = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What one setting did between two moments, the second half of which counts as its steady state.

    Attributes
    ----------
    unfairness : largest less smallest share of their promises that entitlements got, in the steady state.
    settled_s : seconds until every part of the weights stays, smoothed over 20 s, within a fifth of the way (or 0.04)
        of its steady mean; NaN where it does not before the end.
    overshoot : how far a part went beyond its steady mean, smoothed, over the way it had to go; the largest.
    wobble : standard deviation of the parts in the steady state, the largest.
    shares : share of its promise that each entitlement got.
    """

    unfairness: float
    settled_s: float
    overshoot: float
    wobble: float
    shares: Mapping[str, float]


def settings(**values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination of values of fields of the policy."""
    for row in product(*values.values()):
        yield dict(zip(values, row, strict=True))


def measure(
    name: str, setting: Mapping[str, Any], changed_s: float, until_s: float, *, seed: int | None = None
) -> Balance:
    """Run a scenario with one policy called token-pool under a setting of it, and look at one stretch of time."""
    changes = [f"policies.{POLICY}.{key}={value}" for key, value in setting.items()]
    scenario = load_scenario(name, overrides=changes if seed is None else [*changes, f"seed={seed}"])
    return balance(run_scenario(scenario), scenario, changed_s, until_s)


def fairness(result: ScenarioResult, scenario: Scenario, policy: str, changed_s: float, until_s: float) -> float:
    """Return largest less smallest share of their promises that elastic entitlements got, in the steady state."""
    promised = _promised(scenario)
    t_s, served = _series(result, "tokens_per_s", list(promised), policy)
    steady = (t_s > (changed_s + until_s) / 2) & (t_s <= until_s)
    shares = served[:, steady].mean(axis=1) / np.asarray(list(promised.values()))
    return float(shares.max() - shares.min())


def balance(result: ScenarioResult, scenario: Scenario, changed_s: float, until_s: float) -> Balance:
    """Look at how the elastic entitlements of a run came to a balance after ``changed_s``."""
    promised = _promised(scenario)
    t_s, served = _series(result, "tokens_per_s", list(promised))
    _, weights = _series(result, "weight", list(promised))
    parts = weights / weights.sum(axis=0)
    steady = (t_s > (changed_s + until_s) / 2) & (t_s <= until_s)
    shares = served[:, steady].mean(axis=1) / np.asarray(list(promised.values()))
    width = max(1, round(_SMOOTHING_S / float(t_s[1] - t_s[0])))
    smooth = np.stack([np.convolve(row, np.ones(width) / width, mode="full")[: len(row)] for row in parts])
    after = (t_s >= changed_s + _SMOOTHING_S) & (t_s <= until_s)
    before = parts[:, t_s <= changed_s][:, -width:].mean(axis=1)
    final = parts[:, steady].mean(axis=1)
    way = np.abs(final - before)
    off = np.abs(smooth[:, after] - final[:, None]) > np.maximum(_BAND * way, _NOISE)[:, None]
    late = np.flatnonzero(off.any(axis=0))
    times_s = t_s[after]
    settled_s = 0.0 if not len(late) else float(times_s[late[-1]] - changed_s)
    beyond = (smooth[:, after] - final[:, None]) * np.sign(final - before)[:, None]
    moved = way > _NOISE
    overshoot = float((beyond.max(axis=1)[moved] / way[moved]).max()) if moved.any() else 0.0
    return Balance(
        unfairness=float(shares.max() - shares.min()),
        settled_s=settled_s if settled_s < times_s[-1] - changed_s - _SMOOTHING_S else float("nan"),
        overshoot=max(0.0, overshoot),
        wobble=float(parts[:, steady].std(axis=1).max()),
        shares=dict(zip(promised, shares.tolist(), strict=True)),
    )


def _promised(scenario: Scenario) -> dict[str, float]:
    specs = [one.spec() for one in scenario.pool.entitlements]
    elastic = [spec for spec in specs if spec.service_class is ServiceClass.ELASTIC]
    return {spec.name: spec.baseline.tokens_per_s or 0.0 for spec in elastic}


def _series(
    result: ScenarioResult, metric: str, names: Sequence[str], policy: str | None = None
) -> tuple[Floats, Floats]:
    """Return the times, and one row for each entitlement, of a metric of the timeline."""
    table = result.timeline
    if policy is not None:
        table = table.filter(pc.equal(table["policy"].cast("string"), policy))
    metrics, known_metrics = codes_of(table, "metric")
    scopes, known_scopes = codes_of(table, "scope")
    of, known = codes_of(table, "name")
    t_s, values = floats(table, "t_s"), floats(table, "value")
    chosen = (metrics == known_metrics.index(metric)) & (scopes == known_scopes.index("entitlement"))
    rows = [np.flatnonzero(chosen & (of == known.index(name))) for name in names]
    return t_s[rows[0]], np.stack([values[row] for row in rows])
