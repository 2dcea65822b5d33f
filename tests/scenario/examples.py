"""Scenarios that the tests of this folder start from: the two of docs/design.md, and one that uses every field."""

from __future__ import annotations

import copy
from typing import Any

from sim.scenario.yaml_file import parse_yaml

SHIPPED_PROFILE = """\
version: 1
seed: 7
horizon_s: 90
pool:
  profile: dgx-spark-qwen3-8b-nvfp4        # a shipped profile, a path, or an inline mapping
  replicas: 1
  entitlements:
    - {name: guaranteed-a, service_class: guaranteed, ttft_slo_s: 1.2, baseline: {slots: 6}}
    - {name: spot-b, service_class: spot, limit: {slots: 10}}
workload:
  - {entitlement: guaranteed-a, arrivals: {kind: even, rate_per_s: 0.75}, prompt_tokens: 64, output_tokens: 64}
  - {entitlement: spot-b, arrivals: {kind: trace, file: azure-llm-2023/conv, scale: 0.2},
     client: {kind: retry, max_attempts: 3}}
events:
  - {at_s: 30, capacity: {slots: 8}}
policies: [token-pool, none, {kind: rate-limit, requests_per_min: 60}]
vary: {seed: [1, 2, 3]}
"""

INLINE_PROFILE = """\
version: 1
seed: 7
horizon_s: 90
pool:
  profile:
    step_time: {kind: linear, base_s: 0.006, per_prefill_token_s: 2.0e-5, per_decode_sequence_s: 1.0e-4,
                per_context_token_s: 2.0e-8}
    max_num_seqs: 256
    max_num_batched_tokens: 2048
    kv_blocks: 30000
    block_tokens: 16
    kv_bytes_per_token: 131072
  entitlements:
    - {name: a, service_class: guaranteed}
workload:
  - {entitlement: a, arrivals: {kind: poisson, rate_per_s: 17}, requests: 100000,
     prompt_tokens: {kind: lognormal, mean: 512, cv: 0.8}, output_tokens: {kind: lognormal, mean: 256, cv: 0.9}}
policies: [none]
"""

EVERYTHING = """\
version: 1
title: Everything
description: Uses every field there is.
seed: 20240611
horizon_s: 600
warmup_s: 60.5
replications: 2
timeline_interval_s: null
record_decisions: true
pool:
  profile:
    name: small
    source: made up
    error: none
    step_time: {kind: linear, base_s: 0.006, per_prefill_pair_s: 1.0e-10}
    max_num_seqs: 16
    max_num_batched_tokens: 2048
    kv_blocks: 4000
    block_tokens: 32
    kv_bytes_per_token: 131072
    tokens_per_s: 240
    max_model_tokens: 8192
    scheduling: priority
  replicas: 3
  router: round-robin
  default_max_output_tokens: 128
  scrape_interval_s: 0.5
  entitlements:
    - {name: chat, tenant: acme, service_class: guaranteed, ttft_slo_s: 1.2,
       baseline: {slots: 6, tokens_per_s: 90, kv_gib: 1}, limit: {slots: 8}, from_s: 10, until_s: 500}
    - {name: batch, service_class: elastic, baseline: {slots: 5}}
    - {name: spare, service_class: spot, limit: {slots: 10, kv_bytes: 1e9}}
workload:
  - {name: talk, entitlement: chat, arrivals: {kind: poisson, rate_per_s: 2.5}, prompt_tokens: 64, output_tokens: 32,
     max_output_tokens: {kind: uniform, low: 32, high: 64}, priority: -1, from_s: 10, until_s: 500, requests: 1e3,
     client: {kind: retry, max_attempts: 3}}
  - {entitlement: batch, arrivals: {kind: gamma, rate_per_s: 1, cv: 4},
     prompt_tokens: {kind: lognormal, mean: 512, cv: 0.8},
     output_tokens: {kind: empirical, values: [16, 32], weights: [1, 2.5]},
     ask_max_tokens: false, client: drop}
  - {entitlement: batch, arrivals: {kind: on-off, rate_on_per_s: 3, mean_on_s: 5, mean_off_s: 20},
     prompt_tokens: 5, output_tokens: 6}
  - {entitlement: spare, arrivals: {kind: trace, file: azure-llm-2023/code}}
events:
  - {at_s: 30, capacity: {slots: 8, kv_blocks: 6000}}
  - {at_s: 60, capacity: full}
  - {at_s: 70, fail: 2}
  - {at_s: 80, restore: 2}
policies:
  - token-pool
  - {kind: token-pool, name: frozen, weight_at: admission}
  - none
  - {kind: rate-limit, requests_per_min: 60, tokens_per_min: 10000, per_entitlement: {chat: {requests_per_min: 120}}}
vary:
  pool.replicas: [3, 4]
  policies.frozen.alpha_debt: [0, 4]
phases:
  - {from_s: 30, until_s: 60, label: outage}
"""


def mapping(text: str = EVERYTHING) -> dict[str, Any]:
    """Return a fresh copy of an example as plain values."""
    value: dict[str, Any] = copy.deepcopy(parse_yaml(text, "example.yaml"))
    return value


def changed(path: list[str | int], value: object, text: str = EVERYTHING) -> dict[str, Any]:
    """Return an example with the value at a path replaced."""
    tree = mapping(text)
    node: Any = tree
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return tree
