"""The runs of a result one by one: labels, records and the scenario of each, and runs of each tenant alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from sim.analysis.metric_rows import Run
from sim.analysis.warm_up import warmup_of
from sim.errors import InputError
from sim.experiments.cells import Done, cell_key, code_hash, run_task, task
from sim.experiments.executors import Executor
from sim.experiments.select import with_policies
from sim.experiments.store import CellStore
from sim.records.result_folder import horizon_s, part_of, read_manifest, read_records
from sim.scenario.load import Cell, Scenario, expand, parse_scenario, resolved

ALONE = "alone"
"""The folder of a result in which runs of each tenant alone are kept."""


RunKey = tuple[str, tuple[tuple[str, str], ...], int]
"""What tells a result's runs apart: policy, variant and replication."""


@dataclass(frozen=True, eq=False)
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

    @cached_property
    def planned(self) -> Mapping[RunKey, Cell]:
        """What ran, as it would run again."""
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
        found = self.planned.get(run_key(entry))
        if found is None:
            raise InputError(str(self.folder), "holds a run that its scenario does not ask for", "run it again")
        return found

    def runs(self, alone: Mapping[tuple[Any, ...], Mapping[str, pa.Table]] | None = None) -> Iterator[Run]:
        """Yield every finished run with its records, which are read one run at a time from a sweep."""
        for entry in self.cells:
            key = run_key(entry)
            cell = self.planned.get(key)
            scenario = self.manifest["scenario"] if cell is None else resolved(cell.scenario)
            yield Run(
                labels={"policy": entry["policy"], **entry["variant"]},
                replication=int(entry["replication"]),
                requests=self.requests(entry),
                timeline=self._records(entry, "timeline"),
                scenario=scenario,
                stats=entry,
                warmup_s=warmup_of(self.manifest, entry),
                end_s=float(entry.get("end_s") or horizon_s(self.manifest)),
                alone=None if alone is None else alone.get(key[1:]),
            )

    def requests(self, entry: Mapping[str, Any]) -> pa.Table:
        """Return the attempts of one run."""
        return self._records(entry, "requests")

    def _records(self, entry: Mapping[str, Any], name: str) -> pa.Table:
        if self.manifest.get("kind") == "sweep":
            return read_records(self.folder, self.manifest, name, [entry["key"]])
        if name not in self._whole:
            self._whole[name] = read_records(self.folder, self.manifest, name)
        return part_of(self._whole[name], entry)

    @cached_property
    def _whole(self) -> dict[str, pa.Table]:
        """The tables of a result that is no sweep, each read when first asked for."""
        return {}


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
    for (_, *rest), cell in found.planned.items():
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
    store.tidy()
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


def run_key(entry: Mapping[str, Any]) -> RunKey:
    """Return what tells the run of a manifest's entry from the others."""
    return _key(entry["policy"], entry["variant"], entry["replication"])


def _key(policy: str, variant: Mapping[str, str], replication: int) -> RunKey:
    return (policy, tuple(sorted(variant.items())), int(replication))


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
