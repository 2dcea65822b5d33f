"""Runs end: what can never be served waits, and is not begun again and again."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import yaml

from cluster.test_conformance import LOADS
from sim.cluster.replica import Replica
from sim.cluster.world import simulate
from sim.experiments.run import world_of
from sim.scenario.load import expand, parse_scenario
from sim.studies.conformance import Asked, settings_of

FEATURES = ("priority", "async", "caching", "stops", "long_prefill", "watermark")


class Silent:
    def on_first_token(self, request: Any, now_s: float) -> None: ...

    def on_finish(self, request: Any, now_s: float) -> None: ...


def boundaries(case: Any, lost_s: float, kv_blocks: int) -> int:
    """Play a load whose engine loses KV blocks for good, and return its boundaries."""
    wake = [math.inf]
    replica = Replica(settings_of(case["setting"]), listener=Silent(), arm=lambda at_s: wake.__setitem__(0, at_s))
    played = 0
    script = [*case["script"], {"at_s": lost_s, "what": "lose"}, {"at_s": 1e9, "what": "end"}]
    for entry in sorted(script, key=lambda entry: entry["at_s"]):
        while wake[0] < entry["at_s"]:
            now_s, wake[0] = wake[0], math.inf
            replica.boundary(now_s)
            played += 1
            assert played < 5000, f"seed {case['seed']} goes on for ever"
        if entry["what"] == "submit":
            replica.submit(Asked(str(entry["id"]), entry), entry["at_s"])
        elif entry["what"] == "lose":
            replica.set_kv_blocks(kv_blocks, lost_s)
    return played


@pytest.mark.parametrize("reserves", [True, False])
def test_an_engine_whose_cache_has_become_too_small_comes_to_rest(reserves: bool) -> None:
    for seed in range(300):
        rng = random.Random(seed)
        chosen = [name for name in FEATURES if rng.random() < 0.4] + ([] if reserves else ["no_reserve"])
        case = LOADS.load(seed, chosen)
        boundaries(case, 1.5 * rng.random(), rng.randint(0, case["setting"]["kv_blocks"] // 2))


SCENARIO = """
version: 1
seed: 1
pool:
  profile:
    step_time: {{kind: linear, base_s: 0.02, per_prefill_token_s: 3.0e-5, per_decode_sequence_s: 3.0e-4}}
    max_num_seqs: 16
    max_num_batched_tokens: 256
    kv_blocks: 256
    tokens_per_s: 1000
    scheduler_reserve_full_isl: {reserves}
    {more}
  entitlements:
    - {{name: chat, service_class: elastic, baseline: {{slots: 8, tokens_per_s: 500}}}}
workload:
  - {{entitlement: chat, arrivals: {{kind: poisson, rate_per_s: 4}}, requests: 100,
      prompt_tokens: {{kind: lognormal, mean: 500, cv: 1}}, output_tokens: 40}}
events:
  - {{at_s: 10, capacity: {{kv_blocks: 40}}}}
policies: [none]
"""


@pytest.mark.parametrize("more", ["", "data_parallel: 2", "async_scheduling: true"])
@pytest.mark.parametrize("reserves", ["true", "false"])
def test_a_run_whose_prompts_no_longer_fit_ends(reserves: str, more: str) -> None:
    scenario = parse_scenario(yaml.safe_load(SCENARIO.format(reserves=reserves, more=more)), "test")
    (cell,) = expand(scenario)
    run = simulate(world_of(cell))
    assert 0 < np.isfinite(run.columns.finish_s).sum() < 100


@pytest.mark.parametrize("policy", ["dynamo", "cap", "token-pool", "fair-queue"])
@pytest.mark.parametrize("event", [{"fail": 0}, {"capacity": {"slots": 0}}, {"capacity": {"kv_blocks": 0}}])
def test_a_run_ends_whose_policy_holds_requests_for_a_pool_that_never_returns(policy: str, event: Any) -> None:
    given = yaml.safe_load(SCENARIO.format(reserves="true", more=""))
    (cell,) = expand(parse_scenario(given | {"events": [{"at_s": 10} | event], "policies": [policy]}, "test"))
    run = simulate(world_of(cell))
    assert len(run.columns.finish_s) >= 100
