"""Routers in whole runs: what they find in caches, and where they never send anything."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sim.experiments.run import run_scenario
from sim.scenario.load import load_scenario

SHORT = {"horizon_s": 60, "warmup_s": 10, "timeline_interval_s": "null"}
KINDS: list[dict[str, Any]] = [
    {"kind": "random"}, {"kind": "least-outstanding-tokens"}, {"kind": "scored"}, {"kind": "scored", "index": "exact"},
    {"kind": "prefix-aware"}, {"kind": "prefix-aware", "index": "exact"},
]  # fmt: skip


def run(router: dict[str, Any], **changed: Any) -> pa.Table:
    """Run it with the checker beside it, which ends a run that sends anything to a replica that is not ready."""
    changed = {**SHORT, "pool.router": router, "pool.scrape_interval_s": 0.5, **changed}
    overrides = [f"{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in changed.items()]
    return run_scenario(load_scenario("prefix-routing", overrides=overrides), check_invariants=True).requests


def hit_rate(requests: pa.Table) -> float:
    return float(np.sum(requests["cached_tokens"].to_numpy()) / np.sum(requests["prompt_tokens"].to_numpy()))


@pytest.mark.parametrize("router", KINDS, ids=str)
def test_the_same_seed_gives_the_same_bytes(router: dict[str, Any]) -> None:
    first, second = (run(router, horizon_s=25) for _ in range(2))
    assert first.equals(second)


def test_who_knows_prefixes_finds_more_and_the_oracle_no_less() -> None:
    found = {str(router): hit_rate(run(router)) for router in KINDS}
    random, least, scored, scored_exact, aware, aware_exact = found.values()
    assert max(random, least) < 0.8 < 0.85 < min(scored, aware), found
    assert scored_exact >= scored - 0.005, found
    assert aware_exact >= aware - 0.005, found


def test_nothing_is_sent_to_a_replica_that_is_known_to_be_down_or_draining() -> None:
    events = [{"at_s": 15, "fail": 1}, {"at_s": 20, "fail": 4}, {"at_s": 40, "restore": 1}]
    for router in KINDS:
        requests = run(router, events=events).to_pandas()
        for replica, from_s, until_s in ((1, 15.0, 40.0), (4, 20.0, 60.0)):
            there = requests[requests["replica"] == replica]["forwarded_s"]
            assert not ((there > from_s) & (there < until_s)).any(), router
            assert (there < from_s).any()
            assert until_s == 60.0 or (there > until_s).any(), router


def test_a_pool_that_shrinks_drains_without_newcomers() -> None:
    scaler = {"kind": "utilisation", "min_replicas": 2, "max_replicas": 8}
    requests = run({"kind": "scored"}, **{"pool.autoscaler": scaler, "pool.drain_s": 20}).to_pandas()
    last_s = requests.groupby("replica")["forwarded_s"].max()
    assert last_s[last_s.index >= 0].min() < 50, "none left"
