"""The runs of a result one by one: labels, records and the scenario of each, and runs of each tenant alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sim.analysis.metric_rows import Run
from sim.analysis.warm_up import warmup_of
from sim.errors import InputError
from sim.experiments.cells import Done, cell_key, code_hash, run_task, task
from sim.experiments.executors import Executor
from sim.experiments.select import with_policies
from sim.experiments.store import CellStore
from sim.results import horizon_s, read_manifest, read_records
from sim.scenario import Cell, Scenario, expand, parse_scenario, resolved

ALONE = "alone"
"""The folder of a result in which runs of each tenant alone are kept."""


@dataclass(frozen=True, slots=True, eq=False)
class ResultRuns:
    """A result's runs. ``scenario`` is None where its manifest holds none that this version reads."""

    folder: Path
    manifest: Mapping[str, Any]
    scenario: Scenario | None

    @property
    def cells(self) -> list[Mapping[str, Any]]:
        """The manifest's entries of the runs that finished."""
        return [cell for cell in self.manifest["cells"] if not cell.get("error")]

    def check_simulated(self) -> None:
        """Raise InputError for what a real server answered: no simulation repeats that."""
        if self.manifest.get("kind") == "live":
            raise InputError(str(self.folder), "was measured on a real server, which a simulation does not repeat",
                             "name a simulated result; tokenpools explain reads a gateway's recording too")  # fmt: skip

    def planned(self) -> dict[tuple[str, tuple[tuple[str, str], ...], int], Cell]:
        """Return what ran, by policy, variant and replication, as it would run again."""
        if self.scenario is None:
            return {}
        return {_key(cell.policy, cell.variant, cell.replication): cell for cell in expand(self.scenario)}

    def cell(self, entry: Mapping[str, Any]) -> Cell:
        """Return one finished run as it would run again.

        Raises
        ------
        InputError : the manifest's scenario is not one of this version, or the run was no simulation.
        """
        self.check_simulated()
        found = self.planned().get(_key(entry["policy"], entry["variant"], entry["replication"]))
        if found is None:
            raise InputError(str(self.folder), "holds a run that its scenario does not ask for", "run it again")
        return found

    def runs(self, alone: Mapping[tuple[Any, ...], Mapping[str, pa.Table]] | None = None) -> Iterator[Run]:
        """Yield every finished run with its records, which are read one run at a time from a sweep."""
        planned = self.planned()
        whole = None if self.manifest.get("kind") == "sweep" else {
            name: read_records(self.folder, self.manifest, name) for name in ("requests", "timeline")
        }  # fmt: skip
        for entry in self.cells:
            key = _key(entry["policy"], entry["variant"], entry["replication"])
            requests, timeline = self._tables(entry, whole)
            cell = planned.get(key)
            scenario = self.manifest["scenario"] if cell is None else resolved(cell.scenario)
            yield Run(
                labels={"policy": entry["policy"], **entry["variant"]},
                replication=int(entry["replication"]),
                requests=requests,
                timeline=timeline,
                scenario=scenario,
                stats=entry,
                warmup_s=warmup_of(self.manifest, entry),
                end_s=float(entry.get("end_s") or horizon_s(self.manifest)),
                alone=None if alone is None else alone.get(key[1:]),
            )

    def requests(self, entry: Mapping[str, Any]) -> pa.Table:
        """Return the attempts of one run."""
        if self.manifest.get("kind") == "sweep":
            return read_records(self.folder, self.manifest, "requests", [entry["key"]])
        return _part(read_records(self.folder, self.manifest, "requests"), entry)

    def _tables(self, entry: Mapping[str, Any], whole: Mapping[str, pa.Table] | None) -> tuple[pa.Table, pa.Table]:
        if whole is not None:
            return _part(whole["requests"], entry), _part(whole["timeline"], entry)
        keys = [entry["key"]]
        requests, timeline = (read_records(self.folder, self.manifest, name, keys) for name in ("requests", "timeline"))
        return requests, timeline


def result_runs(folder: Path) -> ResultRuns:
    """Return the runs of a result folder.

    Raises
    ------
    InputError : it is no result.
    """
    if not folder.is_dir():
        raise InputError(str(folder), "is not a folder", "name the folder that `tokenpools run` wrote")
    manifest = read_manifest(folder)
    try:
        scenario = parse_scenario(manifest["scenario"], str(folder / "manifest.json"))
    except (InputError, KeyError, TypeError):
        scenario = None
    return ResultRuns(folder, manifest, scenario)


def alone_runs(
    found: ResultRuns, executor: Executor | None = None
) -> dict[tuple[Any, ...], dict[str, pa.Table]]:
    """Return the attempts of every tenant in a run without the others and without admission control.

    By variant and replication; the same draws, pool and events as in the result. Runs are kept in the result's folder
    ``alone``, so that asking again costs nothing.

    Raises
    ------
    InputError : the result has no scenario to run again, or its folder cannot be written.
    """
    if found.scenario is None:
        raise InputError(str(found.folder), "holds no scenario that can run again", "give a simulated result")
    found.check_simulated()
    first: dict[tuple[Any, ...], Cell] = {}
    for (_, *rest), cell in found.planned().items():
        first.setdefault(tuple(rest), cell)
    planned = [(key, tenant, alone) for key, cell in first.items() for tenant, alone in _alone_cells(cell)]
    store = CellStore(found.folder / ALONE)
    store.check()
    code = code_hash()
    keys = [cell_key(cell, code) for _, _, cell in planned]
    missing = [i for i, key in enumerate(keys) if store.read(key) is None]
    for position, answer in (executor or Executor()).map(run_task, [task(planned[i][2], keys[i]) for i in missing]):
        if not isinstance(answer, Done):
            raise InputError(str(found.folder), f"alone-run of {planned[missing[position]][1]} failed: {answer}", "")
        store.write(answer)
    sweep = {"kind": "sweep", "cells": []}
    tables: dict[tuple[Any, ...], dict[str, pa.Table]] = {}
    for (key, tenant, _), stored in zip(planned, keys, strict=True):
        tables.setdefault(key, {})[tenant] = read_records(store.folder, sweep, "requests", [stored])
    return tables


def _alone_cells(cell: Cell) -> Iterator[tuple[str, Cell]]:
    """Yield, for each tenant, the run with its workloads only; streams are named after workloads, so draws stay."""
    scenario = cell.scenario
    tenant_of = {one.name: one.tenant for one in scenario.pool.entitlements}
    uncontrolled = with_policies(scenario, ["none"]).policies
    bare: dict[str, Any] = {"warmup_s": 0.0, "shadow": (), "record_decisions": False, "timeline_interval_s": None}
    for tenant in dict.fromkeys(tenant_of[one.entitlement] for one in scenario.workload):
        own = tuple(one for one in scenario.workload if tenant_of[one.entitlement] == tenant)
        alone = scenario.model_copy(update={"workload": own, "policies": uncontrolled} | bare)
        yield tenant, replace(cell, policy=f"{ALONE}: {tenant}", scenario=alone)


def _key(policy: str, variant: Mapping[str, str], replication: int) -> tuple[str, tuple[tuple[str, str], ...], int]:
    return (policy, tuple(sorted(variant.items())), int(replication))


def _part(table: pa.Table, entry: Mapping[str, Any]) -> pa.Table:
    """Return the rows of one run of a table that holds several."""
    chosen = pc.equal(table.column("replication"), int(entry["replication"]))
    for name, value in {"policy": entry["policy"], **entry["variant"]}.items():
        chosen = pc.and_(chosen, pc.equal(table.column(name), value))
    return table.filter(chosen)


def find_cells(found: ResultRuns, policy: str | None, replication: int | None) -> Sequence[Mapping[str, Any]]:
    """Return the manifest's entries that match; all of what is not given.

    Raises
    ------
    InputError : none does.
    """
    cells = [
        one for one in found.cells
        if (policy is None or one["policy"] == policy) and (replication is None or one["replication"] == replication)
    ]  # fmt: skip
    if not cells:
        asked = [f"policy {policy}"] if policy is not None else []
        asked += [f"replication {replication}"] if replication is not None else []
        names = ", ".join(dict.fromkeys(str(one["policy"]) for one in found.cells))
        last = max((int(one["replication"]) for one in found.cells), default=0)
        raise InputError(str(found.folder), f"holds no run of {', '.join(asked)}",
                         f"its policies are {names}, its replications {f'0 to {last}' if last else '0'}")  # fmt: skip
    return cells
