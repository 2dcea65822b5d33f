"""What each cell of a result measured by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from sim.analysis.summary import summarise, with_violations
from sim.analysis.warm_up import warmup_of
from sim.records.result_folder import SummaryRow, horizon_s, is_sweep, part_of, read_cell, read_records


def read_measures(folder: Path, manifest: Mapping[str, Any]) -> list[SummaryRow]:
    """Return rows as in ``summary.csv`` for each cell of a result by itself, with the ``replication`` of each."""
    rows: list[SummaryRow] = []
    if not is_sweep(manifest):
        requests = read_records(folder, manifest, "requests")
        for one in manifest["cells"]:
            rows += [{**row, "replication": one["replication"]} for row in _measured(requests, manifest, one)]
        return rows
    for one in manifest["cells"]:
        found = None if one["error"] else read_cell(folder, one["key"])
        if found is not None:
            rows += [{**row, "replication": one["replication"]} for row in found[1]]
    return rows


def _measured(requests: pa.Table, manifest: Mapping[str, Any], cell: Mapping[str, Any]) -> list[SummaryRow]:
    """Return what one run of a joined table measured: rows as the run itself had them."""
    scenario = manifest["scenario"]
    end_s = scenario.get("horizon_s") or cell.get("end_s") or horizon_s(manifest)
    named = {one["name"]: one.get("tenant", one["name"]) for one in scenario["pool"]["entitlements"]}
    tenants = [named[one["entitlement"]] for one in scenario["workload"]]
    part = part_of(requests, cell)
    rows = summarise(part, horizon_s=float(end_s), warmup_s=warmup_of(manifest, cell), tenants=tenants)
    return with_violations(rows, cell)
