"""The scenario that most others are made of: more than its pool serves, from all classes, with lost capacity."""

from __future__ import annotations

import copy
from typing import Any

from sim.scenario.yaml_file import parse_yaml

RICH = """
version: 1
seed: 11
horizon_s: 24
timeline_interval_s: 1
record_decisions: true
pool:
  profile:
    step_time: {kind: linear, base_s: 0.03, per_prefill_token_s: 1.0e-4, per_decode_sequence_s: 2.0e-3,
                per_context_token_s: 1.0e-6, per_prefill_pair_s: 1.0e-8}
    max_num_seqs: 8
    max_num_batched_tokens: 256
    kv_blocks: 120
    kv_bytes_per_token: 1000
    tokens_per_s: 900
    max_model_tokens: 1024
  replicas: 2
  router: {kind: least-outstanding-tokens}
  on_failure: retry
  entitlements:
    - {name: high, tenant: acme, service_class: guaranteed, ttft_slo_s: 0.4,
       baseline: {slots: 5, tokens_per_s: 500, kv_bytes: 4.0e5}}
    - {name: vip, service_class: dedicated, ttft_slo_s: 0.5, baseline: {slots: 2, tokens_per_s: 100}}
    - {name: elastic, service_class: elastic, ttft_slo_s: 2, baseline: {slots: 4, tokens_per_s: 400}}
    - {name: spot, tenant: acme, service_class: spot, ttft_slo_s: 4, limit: {slots: 9}}
    - {name: low, service_class: preemptible, ttft_slo_s: 8, from_s: 2, until_s: 20}
workload:
  - {entitlement: high, arrivals: {kind: poisson, rate_per_s: 3}, prompt_tokens: {kind: lognormal, mean: 90, cv: 0.8},
     output_tokens: {kind: lognormal, mean: 40, cv: 0.8}, max_output_tokens: 100,
     client: {kind: retry, max_attempts: 3}}
  - {entitlement: vip, arrivals: {kind: poisson, rate_per_s: 1}, prompt_tokens: 60, output_tokens: 30, from_s: 6}
  - {entitlement: elastic, arrivals: {kind: gamma, rate_per_s: 4, cv: 3}, prompt_tokens: 80, output_tokens: 50,
     client: {kind: openai-sdk}}
  - {entitlement: spot, arrivals: {kind: poisson, rate_per_s: 4}, prompt_tokens: 120, output_tokens: 60,
     ask_max_tokens: false, client: {kind: retry, max_attempts: 4}}
  - {entitlement: low, arrivals: {kind: poisson, rate_per_s: 2}, prompt_tokens: 40, output_tokens: 120, priority: 1}
events:
  - {at_s: 12, capacity: {slots: 9}}
  - {at_s: 15, capacity: full}
  - {at_s: 17, fail: 1}
  - {at_s: 19, restore: 1}
policies: [token-pool]
"""
"""More than the pool serves, from all classes, with lost capacity and a lost replica."""


def rich(**changes: Any) -> dict[str, Any]:
    """Return the rich scenario; ``changes`` replace values at dotted paths written with ``__``."""
    tree: dict[str, Any] = copy.deepcopy(parse_yaml(RICH, "effects"))
    for path, value in changes.items():
        _set(tree, path.split("__"), value)
    return tree


def _set(tree: Any, path: list[str], value: Any) -> None:
    for step in path[:-1]:
        tree = tree[int(step) if step.isdigit() else step]
    last = path[-1]
    tree[int(last) if last.isdigit() else last] = value
