"""A measured run against a scenario: its replicas, router and engine settings, with the measured requests as demand.

What the scenario's own workloads, events and other policies say does not matter: every request of the run arrives when
it did, and goes where the scenario's pool sends it, under the first of its policies.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.calibration.measured import MeasuredRun, errors, sampling
from sim.calibration.noise import RUNS, averaged, perturbed
from sim.calibration.single_replica import Latencies
from sim.errors import InputError
from sim.experiments.run import run_scenario
from sim.scenario.load import Scenario, parse_scenario, resolved
from sim.scenario.profile import Profile


def replay_on(
    scenario: Scenario, run: MeasuredRun, *, seed: int | None = None, profile: Profile | None = None
) -> Latencies:
    """Return the latencies that a scenario's pool gives a run's requests; NaN for those it refuses.

    Raises
    ------
    InputError : the run says what prompts found in caches, which a scenario finds for itself.
    """
    if run.requests.cached_tokens is not None:
        problem = "says what each prompt found in its cache, and a scenario finds that for itself"
        raise InputError(run.name, problem, "give hash_ids instead of cached_tokens, or validate a profile")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.csv"
        asked = run.requests
        table = {"at": asked.arrival_s, "prompt": asked.prompt_tokens, "output": asked.output_tokens}
        pd.DataFrame(table).to_csv(file, index=False)
        made = run_scenario(_with_demand(scenario, file, seed, profile)).requests.to_pandas()
    refused = set(made.request_id[made.outcome == "refused"])  # those that came back later too: nobody there did
    made = made[made["final"] & ~made.request_id.isin(refused)]
    # Requests of a workload are numbered in order of arrival, as those of the run are.
    order = made.request_id.str.rsplit("-", n=1).str[-1].astype(int).to_numpy()
    first_s, finish_s = (np.full(len(asked), np.nan) for _ in range(2))
    first_s[order], finish_s[order] = made.first_token_s.to_numpy(float), made.finish_s.to_numpy(float)
    return Latencies(first_s, finish_s, int(made.preemptions.sum()))


def validate_scenario(
    scenario: Scenario, run: MeasuredRun, profile: Profile | None = None
) -> tuple[pd.DataFrame, Latencies]:
    """Return the errors of a scenario against a run, means over seeds and next to equal profiles, and latencies.

    ``profile`` is used instead of the scenario's.
    """
    profiles = perturbed(profile or scenario.pool.profile, RUNS)
    made = [replay_on(scenario, run, seed=scenario.seed + i, profile=each) for i, each in enumerate(profiles)]
    refused = ~np.isfinite(made[0].finish_s)
    if (refused & run.ended).any():
        count = int((refused & run.ended).sum())
        problem = f"refuses {count} of {len(run.requests)} requests that the measured run served"
        raise InputError("SCENARIO", problem, "give it the policy none, or the limits that were there")
    table = averaged([errors(run.requests, run.latencies, each) for each in made])
    table["sampling"] = sampling(run.requests, run.latencies)
    table["published"] = np.nan
    return table, made[0]


def _with_demand(scenario: Scenario, file: Path, seed: int | None, profile: Profile | None) -> Scenario:
    tree: dict[str, Any] = resolved(scenario)
    columns = {"time": "at", "prompt": "prompt", "output": "output"}
    entitlement = tree["pool"]["entitlements"][0]["name"]
    if profile is not None:
        tree["pool"]["profile"] = profile.model_dump(mode="json")
    arrivals = {"kind": "trace", "file": str(file), "columns": columns, "origin": "0"}
    tree["workload"] = [{"entitlement": entitlement, "arrivals": arrivals}]
    tree["policies"] = tree["policies"][:1]
    tree |= {"horizon_s": None, "vary": {}, "replications": 1, "warmup_s": 0}
    tree |= {"seed": scenario.seed if seed is None else seed}
    for name in ("events", "phases", "shadow"):
        tree.pop(name, None)
    return parse_scenario(tree, "SCENARIO")
