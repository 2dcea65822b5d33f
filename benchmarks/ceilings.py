"""The most goodput that the tournament's load leaves room for, reckoned in three ways, over token pools'.

    python benchmarks/ceilings.py [SCENARIO ...] [--replications 2]

*Published* is `sim.studies.tournament_bounds`: ten-second windows, service until the objective and twice an answer are
over. *Close* has windows of two seconds: a request begins within its objective, takes its part of a replica for as long
as its tenant's answers last in a full batch, and counts only where it can be over before the run is. *By prompts* is
the same for a policy that may choose by the length of prompts, which a gateway knows: each tenant's quarters by length
are served apart. The runs are predictive pools' at the published seeds; token pools' goodput is the published one.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from sim.analysis.standings import CLASS_WEIGHT
from sim.analysis.study import Study
from sim.scenario.load import Scenario
from sim.studies.tournament import measured, scenarios_of
from sim.studies.tournament_bounds import (
    BatchCapacity,
    Floats,
    batch_capacity,
    most_goodput,
    ready_replicas,
    replica_seconds,
    request_cost_s,
)
from sim.studies.tournament_loads import LOADS, at_load

WINDOW_S = 2.0
CELLS = Path(__file__).parents[1] / "docs" / "tournament-cells.csv"
POLICY, OTHER = "predictive-pool", "token-pool"


def ceiling(
    rows: pd.DataFrame, ready: tuple[Floats, Floats], pool: BatchCapacity, scenario: Scenario, parts: int
) -> float:
    """Return the most weighted goodput of what was offered (module), each tenant's requests in so many parts."""
    edges, seconds = replica_seconds(scenario, ready, WINDOW_S)
    from_s, end_s = float(edges[0]), float(edges[-1])
    offered = rows[rows["final"] & (rows["first_arrival_s"] >= from_s)]
    weight = {one.tenant: CLASS_WEIGHT[one.spec().service_class] for one in scenario.pool.entitlements}
    gain: list[float] = []
    counts: list[int] = []
    group: list[int] = []  # of each column
    used: list[tuple[int, int, float]] = []  # window, column, replica-seconds
    for tenant, own in offered.groupby("tenant", observed=True):
        part = np.arange(len(own)) * 0
        if parts > 1 and len(own) > 50:
            part = pd.qcut(own["prompt_tokens"].rank(method="first"), parts, labels=False).to_numpy()
        for number in np.unique(part):
            mine = own[part == number]
            cost_s, lasts_s = request_cost_s(mine, pool)
            if not cost_s:
                cost_s, lasts_s = request_cost_s(own, pool)
            slo_s = float(mine["ttft_slo_s"].max()) if mine["ttft_slo_s"].notna().any() else end_s
            windows = max(1, math.ceil(lasts_s / WINDOW_S))
            came = np.histogram(mine["first_arrival_s"], edges)[0]
            for window in (int(one) for one in np.flatnonzero(came)):
                counts.append(int(came[window]))
                for start in range(window, min(len(seconds), window + math.ceil(min(slo_s, end_s) / WINDOW_S) + 1)):
                    if edges[start] + lasts_s / 2 > end_s:  # shorter ones may just be over in time
                        break
                    used += [(one, len(gain), cost_s / windows)
                             for one in range(start, min(len(seconds), start + windows))]
                    group.append(len(counts) - 1)
                    gain.append(weight[str(tenant)])
    n = len(counts)
    place = np.array([*group, *(n + window for window, _, _ in used)])
    column = np.array([*range(len(gain)), *(one for _, one, _ in used)])
    value = np.array([*(1.0 for _ in gain), *(cost for _, _, cost in used)])
    table = coo_matrix((value, (place, column)), shape=(n + len(seconds), len(gain))).tocsr()
    limits = np.concatenate((counts, seconds))
    solved: Any = linprog(-np.array(gain), A_ub=table, b_ub=limits, method="highs")  # type: ignore[call-overload]
    return -float(solved.fun) / (end_s - from_s)


def main() -> None:
    """Print a row for each scenario: over all loads, in multiples of token pools' goodput."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*")
    parser.add_argument("--replications", type=int, default=2)
    options = parser.parse_args()
    cells = pd.read_csv(CELLS)
    print(f"{'scenario':<24}{'published':>10}{'close':>8}{'by prompts':>12}{POLICY:>17}{'of close, %':>13}")
    above = np.zeros(3, int)
    for name, scenario in scenarios_of(options.scenarios).items():
        sums = np.zeros(5)
        for load in LOADS:
            with tempfile.TemporaryDirectory() as scratch:
                measured(Path(scratch), name, scenario, load, [POLICY], options.replications)
                asked, study = at_load(scenario, load), Study(Path(scratch) / f"{name}@{load:g}")
                for cell in study.cells.to_dict("records"):
                    rows = study.run(dict(cell))  # type: ignore[arg-type]
                    ready, pool = ready_replicas(study.run_timeline(dict(cell))), batch_capacity(asked)  # type: ignore[arg-type]
                    at = (cells["scenario"] == name) & (cells["load"] == load)
                    goodput = cells[at & (cells["replication"] == cell["replication"])].set_index("policy")["goodput"]
                    sums += [
                        most_goodput(rows, ready, pool, asked), ceiling(rows, ready, pool, asked, 1),
                        ceiling(rows, ready, pool, asked, 4), goodput[POLICY], goodput[OTHER],
                    ]  # fmt: skip
        most, got = sums[:3] / sums[4], sums[3] / sums[4]
        above += most >= 1.15
        print(
            f"{name:<24}{most[0]:>10.3f}{most[1]:>8.3f}{most[2]:>12.3f}{got:>17.3f}{100 * got / most[1]:>13.1f}",
            flush=True,
        )
    print(f"{'15 % above token pools':<24}{above[0]:>10}{above[1]:>8}{above[2]:>12}")


if __name__ == "__main__":
    main()
