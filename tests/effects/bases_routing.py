"""The scenarios of `effects.bases` in which it matters who goes where: routers, caches, adapters, kinds of replicas."""

from __future__ import annotations

import copy
from typing import Any

from effects.rich import rich

_CACHED: dict[str, dict[str, Any]] = {
    "router scored": {"kind": "scored", "memory_s": 2.0, "blocks_per_replica": 8},
    "router scored, forgetful": {"kind": "scored", "memory_s": 0.5, "queue_weight": 0.1, "kv_weight": 0.1},
    "router scored, alike": {"kind": "scored", "queue_weight": 0, "kv_weight": 0, "prefix_weight": 0},
    "router prefix-aware": {"kind": "prefix-aware", "memory_s": 2.0, "slack_tokens": 300, "blocks_per_replica": 8},
    "router prefix-aware, forgetful": {"kind": "prefix-aware", "memory_s": 0.5, "slack_tokens": 2000},
    "router random": {"kind": "random"},
    "router least-expected-time": {"kind": "least-expected-time", "speeds": "measured", "smoothing": 0.5},
    "router slo-tier": {
        "kind": "slo-tier",
        "tiers": [{"entitlements": ["high", "vip"], "replicas": 1, "most_in_flight": 6},
                  {"entitlements": ["elastic", "spot", "low"], "replicas": 2, "most_in_flight": 4}],
    },
}  # fmt: skip


def sessions(**changes: Any) -> dict[str, Any]:
    """Return a scenario of conversations with long beginnings in common, before three replicas with caches."""
    tree = rich(**{"policies": ["none"], **changes})
    tree["pool"] |= {"replicas": 3, "scrape_interval_s": 0.5}
    tree["pool"]["profile"] |= {"prefix_caching": True, "kv_blocks": 160}
    for index, system_tokens in ((0, 192), (2, 256), (3, 128)):
        tree["workload"][index]["arrivals"] = {
            "kind": "sessions", "rate_per_s": 1.5, "mean_turns": 4, "mean_think_s": 0.6, "system_tokens": system_tokens,
            "max_context_tokens": 700,
        }  # fmt: skip
    return tree


def routing_bases() -> dict[str, dict[str, Any]]:
    found = {}
    for name, router in _CACHED.items():
        tree = sessions()
        tree["pool"]["router"] = router
        found[name] = tree
    lora = sessions()
    adapters = {"one": 8, "two": 16, "three": 64, "four": 32}
    lora["pool"]["profile"]["lora"] = {
        "max_loras": 2, "load_s": 0.5, "swap_s": 0.1, "max_cpu_loras": 3, "rank_cost": 0.01, "adapters": adapters,
    }
    for index, model in ((0, "one"), (2, "two"), (3, "three"), (4, "four")):
        lora["workload"][index]["model"] = model
    found["profile lora"] = lora
    calm = copy.deepcopy(lora)  # adapters fall idle, so that others take their places and they come back
    calm["pool"] |= {"replicas": 2}
    for index, model in ((0, "one"), (1, "two"), (2, "three"), (3, "four")):
        calm["workload"][index] |= {
            "arrivals": {"kind": "even", "rate_per_s": 0.8, "phase_s": 0.3 * index}, "output_tokens": 3, "model": model,
        }
    del calm["workload"][4]
    found["profile lora, calm"] = calm
    aware = copy.deepcopy(lora)
    aware["pool"]["router"] = {"kind": "adapter-aware", "slack_tokens": 300, "adapters": 2}
    found["router adapter-aware"] = aware
    mixed = sessions()
    other = {name: value for name, value in mixed["pool"]["profile"].items() if name != "step_time"}
    other |= {"step_time": {"kind": "linear", "base_s": 0.06, "per_decode_sequence_s": 4.0e-3}, "max_num_seqs": 4}
    mixed["pool"] |= {"replicas": 1, "also": [{"replicas": 2, "profile": other}],
                      "router": {"kind": "least-expected-time"}}  # fmt: skip
    found["pool of two kinds"] = mixed
    measured = copy.deepcopy(mixed)
    measured["pool"]["router"] = {"kind": "least-expected-time", "speeds": "measured", "smoothing": 0.5}
    found["pool of two kinds, measured"] = measured
    cool = rich(policies=[{"kind": "rate-limit", "requests_per_min": 60}])
    cool["workload"][3] |= {
        "arrivals": {"kind": "agents", "rate_per_s": 1, "mean_steps": 4, "fan_out": 3, "fan_out_share": 0.5,
                     "mean_tool_s": 0.5, "system_tokens": 40, "max_context_tokens": 400},
        "client": {"kind": "shared-cooldown", "max_attempts": 4},
    }  # fmt: skip
    found["client shared-cooldown"] = cool
    told = copy.deepcopy(cool)
    told["policies"] = [{"kind": "cap", "max_in_flight_per_replica": 2}]
    told["workload"][3]["client"] = {"kind": "shared-cooldown", "max_attempts": 4, "delay_s": 0.4}
    told["pool"]["on_failure"] = "fail"  # which says nothing of when to come again
    told["events"] = [{"at_s": at_s, "fail": 1} for at_s in (4, 9, 14)] + [
        {"at_s": at_s, "restore": 1} for at_s in (5, 10, 15)
    ]
    found["client shared-cooldown, never told"] = told
    policies: dict[str, dict[str, Any]] = {
        "dlpm, sessions": {"kind": "dlpm", "quantum": 400, "memory_s": 1.0, "blocks_per_replica": 8},
        "concur, sessions": {"kind": "concur", "agents": 2, "idle_s": 1.0, "full_above": 0.1, "hits_below": 0.9},
        "concur, gone": {"kind": "concur", "agents": 3, "idle_s": 0.3, "room_below": 0.0, "full_above": 1.0},
        "fairserve, crowded": {"kind": "fairserve", "user_per_min": 60, "overloaded_running": 4,
                               "user_per_min_by": {"spot": 20}},
        "llm-d-flow-control, deadlines": {
            "kind": "llm-d-flow-control", "staleness": "ignore", "tick_s": 0.05, "detector": "utilisation",
            "priorities": {"high": 1, "vip": 1, "elastic": 1, "spot": 1, "low": 1}, "fairness": "global-strict",
        },
        "llm-d-flow-control, alike": {
            "kind": "llm-d-flow-control", "staleness": "ignore", "tick_s": 0.05, "detector": "concurrency",
            "priorities": {"high": 1, "vip": 1, "elastic": 1, "spot": 1, "low": 1}, "fairness": "program-aware",
        },
    }  # fmt: skip
    for name, params in policies.items():
        found[f"policy {name}"] = sessions(policies=[params])
    return found
