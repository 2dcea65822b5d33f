"""Small scenarios that between them hold every kind there is, each under a load that makes its fields matter."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from parity.examples import EXAMPLES

from effects.bases_demand_and_engine import profile_bases, workload_bases
from effects.bases_routing import routing_bases
from effects.fields import plain
from effects.rich import rich


def bases(folder: Path) -> dict[str, dict[str, Any]]:
    """Return all of them by name; ``folder`` is for the files that some replay."""
    found = {"rich": rich(), **_policies(), **workload_bases(folder), **profile_bases(), **_pools(),
             **routing_bases()}  # fmt: skip
    return {name: json.loads(json.dumps(tree)) for name, tree in found.items()}


def _policies() -> dict[str, dict[str, Any]]:
    found = {}
    for name, params in EXAMPLES.items():
        found[f"policy {name}"] = rich(policies=[plain(params)])
    for name, params in EXAMPLES.items():
        if hasattr(params, "timeout_s") and "," not in name:
            shorter = plain(params) | {"timeout_s": 0.6, "queue_requests": 12}
            if name == "class-slots":
                shorter = plain(params) | {"timeouts_s": [0.6] * 4}
            found[f"policy {name}, impatient"] = rich(policies=[shorter])
    more: dict[str, dict[str, Any]] = {
        "reserve, demotes": {"kind": "reserve", "tokens_per_min": 1500, "over": "demote"},
        "ptu, demotes": {"kind": "ptu", "tokens_per_min": 1500, "over": "demote"},
        "ptu, spills": {"kind": "ptu", "tokens_per_min": 1500, "over": "spill"},
        "window, spills": {"kind": "window", "tokens_per_min": 1500, "over": "spill"},
        "reserve, spills": {"kind": "reserve", "tokens_per_min": 1500, "over": "spill"},
        "adaptive, sinks": {"kind": "adaptive", "limit": "aimd", "initial": 8, "least": 2, "most": 12, "slow_s": 0.05},
        "dagor, rises": {"kind": "dagor", "threshold_s": 0.3, "alpha": 0.5, "beta": 0.2, "period_s": 0.5},
        "vtc, full": {"kind": "vtc", "queue_requests": 3}, "las, full": {"kind": "las", "queue_requests": 3},
        "bands, full": {"kind": "bands", "queue_requests": 3, "saturation": {"kind": "ledger"},
                        "tick_s": 0.5},
        "bands, turns": {"kind": "bands", "saturation": {"kind": "ledger"}, "order": {"kind": "drr", "quantum": 20},
                         "tick_s": 0.5, "priorities": {"high": 1, "elastic": 1, "spot": 1, "low": 1, "vip": 1}},
        "drr, predicted": {"kind": "drr", "charge": "predicted", "estimate": {"kind": "flat", "tokens": 40}},
        "las, predicted": {"kind": "las", "charge": "predicted", "estimate": {"kind": "flat", "tokens": 40}},
        "cohort, decays": {"kind": "cohort", "period_s": 2.0, "decay": 0.9, "shares": {"spot": 2.0}},
        "predictive-pool, declared": {"kind": "predictive-pool", "capacity": "declared", "parents": {"spot": "low"}},
        "rate-limit, bursts": {"kind": "rate-limit",
                               "per_entitlement": {"spot": {"tokens_per_min": 3000, "burst_s": 5}}},
        "prio-reserve, light": {"kind": "prio-reserve", "tokens_per_min": 6000, "weights": {"high": 0.5},
                                "default_weight": 0.1},
        "token-pool, even": {"kind": "token-pool", "equalise": 0.5, "tick_s": 1.0},
        "token-pool, paper": {"kind": "token-pool", "mode": "paper", "max_request_tokens": 300, "tick_s": 1.0},
        "window, shared": {"kind": "window", "tokens_per_min": 3000,
                           "per_entitlement": {"spot": {"tokens_per_min": 900}}},
        "reserve, spill": {"kind": "reserve", "tokens_per_min": 3000, "over": "spill", "spill_replicas": 1},
        "ptu, demote": {"kind": "ptu", "tokens_per_min": 3000, "over": "demote"},
        "class-slots, preempts": {"kind": "class-slots", "can_preempt": [True, True, False, False]},
    }
    for name, params in more.items():
        found[f"policy {name}"] = rich(policies=[params])
        if "demote" in name:
            found[f"policy {name}"]["pool"]["profile"]["scheduling"] = "priority"
        if "spill" in name:
            found[f"policy {name}"]["pool"]["replicas"] = 3
    orders = {"las": {"kind": "las", "half_life_s": 5}, "vtc": {"kind": "vtc", "half_life_s": 5}}
    for name, order in orders.items():
        params = {"kind": "fair-queue", "order": order, "queue_requests": 20}
        found[f"policy fair-queue by {name}"] = rich(policies=[params])
    found["policy reserve by oracle"] = rich(policies=[
        {"kind": "reserve", "tokens_per_min": 3000, "estimate": {"kind": "oracle", "sigma": 0.3}},
    ])
    priority = rich(policies=[{"kind": "window", "tokens_per_min": 1500, "over": "demote"}])
    priority["pool"]["profile"]["scheduling"] = "priority"
    found["policy demotes"] = priority
    slower = rich(policies=[plain(EXAMPLES["slo-feasible, relegate"])])
    slower["pool"]["profile"]["scheduling"] = "priority"
    found["policy relegates"] = slower
    cached = rich(policies=["predictive-pool"])
    cached["pool"]["profile"]["prefix_caching"] = True
    cached["workload"][0]["arrivals"] = {
        "kind": "sessions", "rate_per_s": 2, "mean_turns": 3, "mean_think_s": 1, "system_tokens": 64,
    }
    found["policy predictive-pool, cached"] = cached
    tree = rich(policies=[{"kind": "predictive-pool"}])
    tree["pool"]["entitlements"] += [{"name": "spot-2", "tenant": "acme", "service_class": "spot"},
                                     {"name": "spot-3", "tenant": "third", "service_class": "spot"}]
    tree["workload"] += [
        {"entitlement": name, "arrivals": {"kind": "poisson", "rate_per_s": 4}, "prompt_tokens": 60,
         "output_tokens": 50}
        for name in ("spot-2", "spot-3")
    ]
    for one in tree["pool"]["entitlements"][3:]:
        one.pop("ttft_slo_s", None)
    found["policy predictive-pool, tree"] = tree
    tree = rich(policies=[{"kind": "predictive-pool", "timeout_s": 1.0}])
    for one in tree["pool"]["entitlements"]:
        one.pop("ttft_slo_s", None)
    found["policy predictive-pool, no objectives"] = tree
    tree = rich(policies=[{"kind": "predictive-pool"}])
    tree["pool"]["profile"] |= {"kv_blocks": 2000, "max_model_tokens": None, "max_num_batched_tokens": 64}
    for index in (0, 2, 3):
        tree["workload"][index]["prompt_tokens"] = 500
    found["policy predictive-pool, long prompts"] = tree
    for name in ("vtc", "reserve", "window", "ptu", "fair-queue", "drr", "las", "envoy-ai-gateway"):
        tree = copy.deepcopy(cached)
        tree["policies"] = [plain(EXAMPLES[name])]
        found[f"policy {name}, cached"] = tree
    return found


def _pools() -> dict[str, dict[str, Any]]:
    found = {}
    scalers: dict[str, dict[str, Any]] = {
        "capacity": {"kind": "capacity", "min_replicas": 1, "max_replicas": 4, "headroom": 0.7},
        "utilisation": {"kind": "utilisation", "min_replicas": 1, "max_replicas": 4},
        "saturation": {"kind": "saturation", "min_replicas": 1, "max_replicas": 4, "queue_most": 4.0,
                       "queue_spare": 1.0},
        "sla": {"kind": "sla", "min_replicas": 1, "max_replicas": 4, "ttft_s": 0.2},
    }
    for name, scaler in scalers.items():
        tree = rich(policies=["token-pool"] if name == "capacity" else ["none"], horizon_s=70)
        tree["events"] = [{"at_s": 12, "fail": 1}, {"at_s": 14, "restore": 1}]
        tree["pool"] |= {"autoscaler": scaler | {"every_s": 2.0, "down_after_s": 4.0, "tolerance": 0.2},
                         "start_up_s": 3, "drain_s": 0.5, "replicas": 3, "on_failure": "fail"}
        tree["pool"]["entitlements"][1]["from_s"] = 40
        for index, until_s in ((0, 10), (2, 11), (3, 9), (4, 12)):
            tree["workload"][index] |= {"until_s": until_s}
        tree["workload"][1] |= {"from_s": 40, "until_s": 50}
        for workload in tree["workload"]:
            workload["arrivals"]["rate_per_s"] *= 1.5 if name == "capacity" else 0.3
        if name == "capacity":
            tree["pool"]["entitlements"][2]["baseline"] = {"slots": 9}
        found[f"scaler {name}"] = tree
    for share in ("totals", "leases"):
        tree = rich()
        tree["pool"] |= {"gateways": 3, "share_every_s": 1.0, "share": share}
        found[f"gateways {share}"] = tree
    tree = rich(policies=["none"])
    tree["pool"]["router"] = {"kind": "round-robin"}
    found["router round-robin"] = tree
    late = rich()
    late["pool"] |= {"notice_s": 2.0, "scrape_interval_s": 3.0}
    found["pool late"] = late
    seen = rich(policies=[plain(EXAMPLES["bands, reports"])])
    seen["pool"] |= {"notice_s": 2.0, "scrape_interval_s": 3.0}
    found["pool scraped"] = seen
    tight = rich()
    tight["pool"]["oversubscribed"] = True
    tight["pool"]["entitlements"][0]["baseline"]["slots"] = 30
    found["pool oversubscribed"] = tight
    slow = rich(events=[{"at_s": 5, "slow": 0, "factor": 4}, {"at_s": 8, "capacity": {"kv_blocks": 90, "slots": 9}}])
    found["events slow"] = slow
    organised = rich()
    organised["pool"] |= {
        "calendar": {"starts": "2026-11-28T23:59:50Z", "utc_offset_h": 0},
        "prices": [
            {"prompt_per_million": 0.2, "output_per_million": 0.6, "cached_per_million": 0.1},
            {"model": "large", "prompt_per_million": 2, "output_per_million": 6, "cached_per_million": 1},
        ],
        "groups": [
            {"name": "top", "limit": {"slots": 9}},
            {"name": "acme", "parent": "top", "limit": {"slots": 6, "tokens_per_s": 600, "kv_bytes": 6e5},
             "budgets": [{"unit": "money", "per": "day", "limit": 0.003, "carry_over": "both", "carry_most": 0.001}]},
            {"name": "globex", "parent": "top", "service_class": "guaranteed", "baseline": {"slots": 8},
             "budgets": [{"per": "month", "limit": 30000, "carry_over": "none"}]},
        ],
        "keys": [
            {"name": "ci", "entitlement": "spot", "limit": {"slots": 2},
             "budgets": [{"per": "day", "limit": 900, "carry_over": "unused", "carry_most": 100}]},
        ],
    }  # fmt: skip
    for index, parent in ((0, "acme"), (3, "acme"), (2, "globex"), (4, "globex")):
        organised["pool"]["entitlements"][index]["parent"] = parent
    organised["pool"]["entitlements"][3]["limit"] = {"slots": 5}
    organised["pool"]["entitlements"][3]["budgets"] = [{"per": "day", "limit": 2500}]
    organised["pool"]["entitlements"][0]["baseline"] = {"slots": 3}
    organised["workload"].append(
        {"name": "ci", "entitlement": "spot", "key": "ci", "model": "large",
         "arrivals": {"kind": "poisson", "rate_per_s": 2}, "prompt_tokens": 40, "output_tokens": 30}
    )  # fmt: skip
    found["pool organised"] = organised
    carries = rich(policies=["none"])
    carries["pool"]["calendar"] = {"starts": "2026-11-28T23:59:50Z"}
    carries["pool"]["entitlements"][2]["budgets"] = [{"per": "day", "limit": 6000, "carry_over": "unused"}]
    found["pool carries"] = carries
    priced = rich(policies=["none"])
    priced["pool"] |= {
        "profile": priced["pool"]["profile"] | {"prefix_caching": True, "kv_blocks": 400},
        "prices": [{"prompt_per_million": 1, "output_per_million": 1, "cached_per_million": 0},
                   {"model": "large", "prompt_per_million": 9, "output_per_million": 9, "cached_per_million": 5}],
    }  # fmt: skip
    priced["workload"][2] = {
        "entitlement": "elastic", "prompt_tokens": 60, "output_tokens": 40, "model": "large",
        "arrivals": {"kind": "sessions", "rate_per_s": 2, "mean_turns": 4, "mean_think_s": 0.5, "system_tokens": 64},
    }  # fmt: skip
    priced["pool"]["entitlements"][2]["budgets"] = [{"unit": "money", "per": "day", "limit": 0.03}]
    found["pool priced"] = priced
    crowded = rich(policies=["none"])
    crowded["pool"]["profile"] |= {"max_num_batched_tokens": 64, "kv_blocks": 66}
    for index in (0, 2, 3):
        crowded["workload"][index]["prompt_tokens"] = 400
    found["profile full"] = crowded
    bounded = rich()
    bounded["pool"]["entitlements"][2]["limit"] = {"kv_bytes": 3e5, "tokens_per_s": 500, "slots": 6}
    found["pool bounded"] = bounded
    thin = rich(policies=[{"kind": "token-pool", "mode": "paper", "max_request_tokens": 300}])
    thin["pool"]["entitlements"][1]["baseline"]["tokens_per_s"] = 15
    found["pool thin"] = thin
    elastics = rich(policies=[{"kind": "token-pool", "equalise": 0.5, "tick_s": 1.0}])
    elastics["pool"]["entitlements"].append(
        {"name": "elastic-2", "service_class": "elastic", "ttft_slo_s": 3,
         "baseline": {"slots": 3, "tokens_per_s": 300}}
    )
    elastics["workload"].append(
        {"entitlement": "elastic-2", "arrivals": {"kind": "poisson", "rate_per_s": 1}, "prompt_tokens": 60,
         "output_tokens": 90}
    )  # fmt: skip
    found["pool two elastics"] = elastics
    paper = {"kind": "token-pool", "mode": "paper", "tick_s": 1.0}
    found["pool oversubscribed, paper"] = copy.deepcopy(tight) | {"policies": [paper]}
    found["pool bounded, paper"] = copy.deepcopy(bounded) | {"policies": [paper]}
    shadowed = rich()
    shadowed |= {"shadow": [{"kind": "cap", "name": "watcher", "max_in_flight_per_replica": 4}], "warmup_s": 5,
                 "replications": 2, "phases": [{"from_s": 1, "until_s": 2, "label": "x"}], "scored": ["acme"]}
    found["all shadowed"] = shadowed
    own = rich(policies=[{"kind": "none", "autoscaler": {"kind": "utilisation", "max_replicas": 4, "every_s": 2.0}}])
    own["events"] = own["events"][2:]
    found["policy scales"] = own
    ends = rich()
    ends["workload"][0] |= {"requests": 20, "until_s": 18, "length_correlation": 0.5,
                            "prompt_tokens": {"kind": "uniform", "low": 20, "high": 150}}  # fmt: skip
    found["workload ends"] = ends
    return found
