"""What a scenario's run shows, as one digest: its records, verdicts, shadows' opinions, summary and cautions."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from policies.api import Event, Instruction
from policies.core import GatewayCore
from sim.errors import TokenpoolsError
from sim.experiments.caveats import caveats
from sim.experiments.run import run_cell
from sim.experiments.warm_up import summed
from sim.scenario.load import Scenario, expand, parse_scenario

_LABELS = frozenset({"run_id"})
"""Columns that name the file's text, whatever it does."""


def shown(scenario: Scenario) -> str:
    """Run every cell of a scenario; return a digest of all that a reader of its result, or a client, can see."""
    digest = hashlib.sha256()
    handle = GatewayCore.handle

    def heard(core: GatewayCore, event: Event, now_s: float) -> Sequence[Instruction]:
        said = handle(core, event, now_s)
        digest.update(repr(said).encode())  # statuses and times to come again are in no record
        return said

    with patch.object(GatewayCore, "handle", heard):
        _run(scenario, digest)
    return digest.hexdigest()


def _run(scenario: Scenario, digest: Any) -> None:
    cells = expand(scenario)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [run_cell(cell) for cell in cells]
        for result in results:
            for table in (result.requests, result.timeline, result.decisions, result.shadows):
                if table is not None:
                    _take(digest, table)
        rows, _ = summed(cells, [one.requests for one in results], [one.stats for one in results])
        digest.update(repr(rows).encode())
        digest.update(repr(caveats((cells[one.index].scenario.pool.profile, one.requests) for one in results)).encode())
        digest.update(repr([one.stats.get("gpu_s") for one in results]).encode())


def _take(digest: Any, table: pa.Table) -> None:
    for name in table.column_names:
        if name not in _LABELS:
            digest.update(name.encode())
            digest.update(repr(table[name].to_pylist()).encode())


def attempt(tree: Mapping[str, Any]) -> str | None:
    """Return what a mapping's run shows; None where it is refused."""
    try:
        return shown(parse_scenario(tree, "effects"))
    except TokenpoolsError:
        return None
