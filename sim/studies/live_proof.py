"""Live runs of the paper's experiments: judged by its acceptance table, and beside their simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sim.experiments.run import run_scenario
from sim.experiments.select import with_policies
from sim.judging.parity import Parity, check_parity
from sim.records.result_folder import read_manifest, read_result
from sim.records.schema import join_tables
from sim.scenario.load import Scenario, load_scenario
from sim.studies import paper_acceptance as acceptance
from sim.studies import paper_measures as measures
from sim.studies.live_compare import Compared, Tables, as_table, compare_runs

FIRST, SECOND = "paper-exp1", "paper-exp2"


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """What `prove` found. ``invalid`` names the runs whose requests were sent too late."""

    acceptance: str
    failed: list[str]
    compared: dict[str, list[Compared]]
    parities: dict[str, Parity]
    invalid: list[str]

    @property
    def passed(self) -> bool:
        """Whether no row failed, every run was valid and every verdict the same."""
        return not self.failed and not self.invalid and not any(p.differing for p in self.parities.values())

    @property
    def words(self) -> str:
        """The three tables."""
        parts = ["## The paper's acceptance table, from live runs", self.acceptance]
        for name, rows in self.compared.items():
            parts += [f"## {name}: live beside simulated with the profile calibrated from that server", as_table(rows)]
        parts += ["## Decision parity", *(f"- {name}: {parity.words}" for name, parity in self.parities.items())]
        if self.invalid:
            parts.append(f"Not valid, because requests were sent more than 5 ms late at P99: {', '.join(self.invalid)}")
        return "\n\n".join(parts)


def prove(
    live: Mapping[str, Sequence[Path]], profile: Path, out: Path, recordings: Mapping[str, Path]
) -> Proof:
    """Judge live results, simulate the same requests, and tell the recordings again.

    Parameters
    ----------
    live : result folders by scenario, one a policy and replication.
    profile : calibrated from the server that they ran on; the simulations go to ``out``, one folder a scenario.
    recordings : the events of each gateway, by what to call it.

    Raises
    ------
    InputError : a result or recording cannot be read, or ``out`` holds something already.
    """
    joined = {name: joined_tables(folders) for name, folders in live.items()}
    manifests = {folder: read_manifest(folder) for folders in live.values() for folder in folders}
    one = measured(joined.get(FIRST), FIRST)
    two = measured(joined.get(SECOND), SECOND)
    rows = acceptance.rows(one, two, load_scenario(SECOND))
    compared = {}
    for name, folders in live.items():
        cells = [manifests[folder]["cells"][0] for folder in folders]
        replications = 1 + max(int(cell["replication"]) for cell in cells)
        scenario = simulated_scenario(name, [str(cell["policy"]) for cell in cells], profile, replications)
        result = run_scenario(scenario, out / f"{name}-simulated")
        compared[name] = compare_runs(joined[name], Tables(result.requests, result.timeline))
    return Proof(
        acceptance=acceptance.as_table(rows),
        failed=[row.check for row in rows if row.verdict == acceptance.FAIL],
        compared=compared,
        parities={name: check_parity(path) for name, path in recordings.items()},
        invalid=[str(f) for folders in live.values() for f in folders if not manifests[f]["valid"]],
    )


def simulated_scenario(name: str, policies: Sequence[str], profile: Path, replications: int = 1) -> Scenario:
    """Return the shipped scenario as it was run live: these policies, so many replications, the server's profile."""
    overrides = [f"replications={replications}", f"pool.profile={profile.absolute()}"]
    scenario = load_scenario(name, overrides=overrides)
    return with_policies(scenario, policies)


def joined_tables(folders: Sequence[Path]) -> Tables:
    """Return the tables of several results as those of one."""
    results = [read_result(folder) for folder in folders]
    return Tables(join_tables([r.requests for r in results]), join_tables([r.timeline for r in results]))


def measured(tables: Tables | None, name: str) -> pd.DataFrame | None:
    """Return the measures of an experiment, one row a policy and replication; None of one that did not run."""
    if tables is None:
        return None
    scenario = load_scenario(name)
    measure = measures.experiment1(scenario) if name == FIRST else measures.experiment2(scenario)
    return measures.each_replication(tables.requests, tables.timeline, measure)


def begun_at(pool: dict[str, Any], at_s: float) -> None:
    """Move the windows of a pool's entitlements, as written in a scenario's file, to a run that begins at ``at_s``."""
    for entitlement in pool["entitlements"]:
        entitlement["from_s"] = entitlement.get("from_s", 0.0) + at_s
        if "until_s" in entitlement:
            entitlement["until_s"] += at_s
