"""Attempts that became columns while the run went on are those that would have become columns at its end."""

from __future__ import annotations

from typing import Any

import pytest

from sim.cluster import arrivals
from sim.experiments.run import run_cell
from sim.records.provenance import COMPILED, form
from sim.scenario.load import expand, parse_scenario

CROWDED: dict[str, Any] = {
    "version": 1, "seed": 3, "horizon_s": 120,
    "pool": {
        "profile": {
            "step_time": {"kind": "linear", "base_s": 0.02, "per_decode_sequence_s": 0.001},
            "max_num_seqs": 16, "max_num_batched_tokens": 256, "kv_blocks": 60, "block_tokens": 16,
        },
        "replicas": 2,
        "entitlements": [{"name": "a", "service_class": "elastic", "ttft_slo_s": 1, "baseline": {"slots": 8}}],
    },
    "workload": [
        {
            "entitlement": "a", "arrivals": {"kind": "poisson", "rate_per_s": 12}, "prompt_tokens": 64,
            "output_tokens": {"kind": "lognormal", "mean": 48, "cv": 1},
            "client": {"kind": "retry"},
        },
    ],
    "policies": [{"kind": "cap", "max_in_flight_per_replica": 12}],
    "events": [{"at_s": 40, "fail": 0}, {"at_s": 60, "restore": 0}],
}  # fmt: skip


@pytest.mark.skipif(form() == COMPILED, reason="a compiled module's constants stay as they are")
def test_the_records_hang_on_no_look_at_the_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = expand(parse_scenario(CROWDED, "crowded"))
    whole = run_cell(cell)
    assert whole.stats["preemptions"] > 50
    assert whole.requests.num_rows > 1500
    assert not all(whole.requests.column("final").to_pylist())
    for chunk in (7, 300):
        monkeypatch.setattr(arrivals, "_CHUNK", chunk)
        parts = run_cell(cell)
        for name in whole.requests.column_names:
            assert repr(parts.requests.column(name).to_pylist()) == repr(whole.requests.column(name).to_pylist()), name
        assert parts.timeline.equals(whole.timeline)


def test_a_run_to_which_nobody_came_has_the_same_columns() -> None:
    (crowded,), (empty,) = (
        expand(parse_scenario(CROWDED | {"horizon_s": horizon_s, "events": []}, "crowded")) for horizon_s in (5, 1e-9)
    )
    found = run_cell(empty).requests
    assert found.num_rows == 0
    assert found.schema.equals(run_cell(crowded).requests.schema)
