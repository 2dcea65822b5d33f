"""The scenarios of `effects.bases` whose workloads, traces and replicas are special."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from effects.rich import rich


def workload_bases(folder: Path) -> dict[str, dict[str, Any]]:
    arrivals: dict[str, dict[str, Any]] = {
        "even": {"kind": "even", "rate_per_s": 4, "phase_s": 0.1},
        "weibull": {"kind": "weibull", "rate_per_s": 4, "cv": 2},
        "on-off": {"kind": "on-off", "rate_on_per_s": 8, "rate_off_per_s": 1, "mean_on_s": 3, "mean_off_s": 3},
        "mmpp": {"kind": "mmpp", "rates_per_s": [1, 9], "means_s": [3, 2]},
        "diurnal": {"kind": "diurnal", "rate_per_s": 4, "amplitude": 0.8, "period_s": 12, "peak_s": 5},
        "spike": {"kind": "spike", "rate_per_s": 2, "spike_rate_per_s": 12, "at_s": 5, "lasts_s": 4, "rise_s": 2},
        "ramp": {"kind": "ramp", "from_rate_per_s": 1, "to_rate_per_s": 8, "over_s": 15},
        "closed-loop": {"kind": "closed-loop", "users": 8, "mean_think_s": 1, "think_cv": 0.5},
        "sessions": {"kind": "sessions", "rate_per_s": 1.5, "cv": 2, "mean_turns": 4, "mean_think_s": 1,
                     "system_tokens": 40, "max_context_tokens": 400},
        "agents": {"kind": "agents", "rate_per_s": 1, "cv": 2, "mean_steps": 4, "fan_out": 3, "fan_out_share": 0.4,
                   "mean_tool_s": 0.5, "system_tokens": 40, "max_context_tokens": 400},
        "aimd": {"kind": "aimd", "clients": 3, "first": 2, "most": 8, "start_s": 2},
    }
    found = {}
    for name, law in arrivals.items():
        tree = rich()
        tree["workload"][2] |= {"arrivals": law, "client": {"kind": "drop"}}
        found[f"arrivals {name}"] = tree
    clients: dict[str, dict[str, Any]] = {
        "impatient": {"kind": "impatient", "patience_s": 3, "waits_for": "last-token", "max_attempts": 2},
        "adversarial": {"kind": "adversarial", "max_attempts": 3, "keys": ["low"], "inflate": 2},
        "retries on its own clock": {"kind": "retry", "max_attempts": 4, "honour_retry_after": False, "delay_s": 0.7,
                                     "retry_interrupted": True},
        "sdk": {"kind": "openai-sdk", "max_retries": 3, "retry_interrupted": True},
    }
    for name, client in clients.items():
        tree = rich()
        tree["pool"]["on_failure"] = "fail"
        tree["workload"][3] |= {"client": client, "ask_max_tokens": True}
        found[f"client {name}"] = tree
    laws: dict[str, dict[str, Any]] = {
        "constant": {"kind": "constant", "value": 40},
        "uniform": {"kind": "uniform", "low": 10, "high": 90},
        "lognormal": {"kind": "lognormal", "mean": 60, "cv": 1.5, "min": 8, "max": 300},
        "empirical": {"kind": "empirical", "values": [10, 40, 90], "weights": [3, 2, 1]},
        "pareto": {"kind": "pareto", "alpha": 1.3, "min": 10, "max": 300},
        "reasoning": {"kind": "reasoning", "mean": 40, "cv": 1, "long_share": 0.3, "long_from": 80, "alpha": 1.5,
                      "max": 300},
    }
    for name, law in laws.items():
        tree = rich()
        tree["workload"][2] |= {"output_tokens": law, "prompt_tokens": {"kind": "uniform", "low": 20, "high": 150}}
        found[f"lengths {name}"] = tree
    found |= _traces(folder)
    return found


def _traces(folder: Path) -> dict[str, dict[str, Any]]:
    rows = ["at,in,out,who,svc,talk,step,late,other,svc2,talk2,most,id"]
    rows += [
        f"{n * 0.2 // 1:.1f},{20 + n * 7 % 90},{10 + n * 11 % 60},t{n % 3},s{n % 2},c{n % 7},{n // 7},{n * 0.21:.2f},"
        f"t{n % 2},s{n % 3 % 2},c{n % 5},{90 - n % 40},r{n}"
        for n in range(120)
    ]
    table = folder / "table.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    lines = [
        json.dumps({"timestamp": index * 200, "input_length": 64, "output_length": 20,
                    "hash_ids": [index % 5, 100 + index % 9]})
        for index in range(100)
    ]  # fmt: skip
    mooncake = folder / "mooncake.jsonl"
    mooncake.write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = {"time": "at", "prompt": "in", "output": "out"}
    shapes: dict[str, dict[str, Any]] = {
        "table": {"columns": columns},
        "table by tenant": {"columns": columns | {"tenant": "who"}, "tenant": "t1"},
        "table by service": {"columns": columns | {"service": "svc"}, "service": "s1"},
        "table in groups": {"columns": columns, "groups": 3, "group": 1, "skew": 1},
        "table by session": {"columns": columns | {"session": "talk"}, "groups": 3, "group": 1, "group_by": "session"},
        "table redrawn": {"columns": columns, "bootstrap_block_s": 3},
        "table, bounded": {"columns": columns | {"limit": "most", "request_id": "id"}},
    }
    found = {}
    for name, shape in shapes.items():
        tree = rich()
        tree["workload"][2] = {
            "entitlement": "elastic", "arrivals": {"kind": "trace", "file": str(table), **shape},
        }
        found[f"trace {name}"] = tree
    shared = {"groups": 2, "group": 1, "group_by": "prefix"}
    for name, shape in (("mooncake", {}), ("mooncake in groups", shared)):
        tree = rich()
        tree["pool"]["profile"] |= {"prefix_caching": True}
        law = {"kind": "trace", "file": str(mooncake), "format": "mooncake", **shape}
        tree["workload"][2] = {"entitlement": "elastic", "arrivals": law}
        found[f"trace {name}"] = tree
    clients = folder / "clients"
    clients.mkdir(exist_ok=True)
    for number, rates in ((0, (3.0, 5.0)), (3, (2.0, 1.0))):
        windows = [f"{600 * index},{rate},1.5,Gamma,1,1" for index, rate in enumerate(rates)]
        (clients / f"chunk-{number}-trace.csv").write_text("\n".join(windows), encoding="utf-8")
        lengths = {"input_tokens": "{10: 0.25, 90: 0.75}", "output_tokens": "{5: 0.5, 60: 0.5}",
                   "reason_ratio": "{0.0: 1.0}"}  # fmt: skip
        (clients / f"chunk-{number}-dataset.json").write_text(json.dumps({"0": lengths}), encoding="utf-8")
    tree = rich()
    tree["workload"][2] = {
        "entitlement": "elastic", "arrivals": {"kind": "servegen", "folder": str(clients), "rank_correlation": 0.3},
    }
    found["servegen"] = tree
    return found


def profile_bases() -> dict[str, dict[str, Any]]:
    links = {"ranks": 2, "bytes_per_token": 8192, "all_reduces": 8, "all_to_alls": 4, "latency_s": 1e-4,
             "bytes_per_s": 1e9}  # fmt: skip
    measured = {"ranks": 2, "bytes_per_token": 8192, "all_reduces": 8, "all_to_alls": 4,
                "message_bytes": [8192, 819200], "all_reduce_s": [1e-4, 1e-3], "all_to_all_s": [1e-4, 2e-3]}
    work = {"parameters": 1e8, "bytes_per_parameter": 2, "kv_bytes_per_token": 1000, "flops_per_pair": 1e4,
            "expert_parameters": 1e7, "experts": 8, "experts_per_token": 2}  # fmt: skip
    hardware = {"flops_per_s": 1e12, "bytes_per_s": 1e10}
    plain_table = {
        "kind": "table", "dense_tokens": [1, 16, 512], "dense_s": [0.02, 0.022, 0.05], "sequences": [1, 64],
        "sequence_s": [0.001, 0.004], "decode_batch": [1, 32], "decode_context": [16, 512],
        "decode_s": [[0.001, 0.002], [0.004, 0.02]], "prefill_tokens": [1, 512], "prefill_context": [0, 512],
        "prefill_s": [[0.001, 0.002], [0.01, 0.02]],
    }  # fmt: skip
    table = plain_table | {
        "beside_batch": [1, 16], "beside_context": [16, 256], "beside_s": [[0.001, 0.002], [0.003, 0.03]],
        "mixed_tokens": [8, 128], "mixed_before": [0, 128], "mixed_batch": [1, 16], "mixed_context": [16, 256],
        "mixed_ratio": [[[[1.1, 1.2], [1.3, 1.4]], [[1.1, 1.3], [1.2, 1.5]]],
                        [[[1.4, 1.2], [1.5, 1.4]], [[1.6, 1.3], [1.7, 1.5]]]],
    }  # fmt: skip
    experts = {"count": 8, "per_token": 2, "ranks": 2, "busiest": 1.2, "tokens": [1, 512], "touched": [1, 8],
               "seconds": [[0.001, 0.004], [0.01, 0.02]]}  # fmt: skip
    fitted = {
        "kind": "fitted", "base_s": 0.02, "weights_s": 0.01, "per_token_s": 1e-4, "per_decode_sequence_s": 1e-3,
        "per_context_token_s": 1e-6, "per_context_token_beside_prompts_s": 2e-6,
        "per_decode_sequence_beside_prompts_s": 1e-3, "per_prefill_pair_s": 1e-8,
        "per_prefill_iteration_s": 1e-3, "lone_prefill_s": 1e-3, "captured_tokens": 64, "uncaptured_s": 0.2,
    }  # fmt: skip
    roofline = {"kind": "roofline", "work": work, "hardware": hardware, "compute_efficiency": 0.5,
                "memory_efficiency": 0.6, "base_s": 0.02, "per_decode_sequence_s": 1e-3}  # fmt: skip
    two = {"data_parallel": 2, "expert_parallel": True, "max_num_seqs": 4, "kv_blocks": 70}
    shapes: dict[str, dict[str, Any]] = {
        "fitted": {"step_time": fitted},
        "fitted, experts": {"step_time": fitted | {"experts_s": 0.02, "expert_share": 0.25}},
        "fitted, links": {"step_time": fitted | {"links": links}, **two},
        "roofline": {"step_time": roofline},
        "roofline, links": {"step_time": roofline | {"links": links}, **two},
        "table": {"step_time": table},
        "table, unsplit": {"step_time": table | {"saturating_sequences": 3.0, "unsplit_batch": 4}},
        "table, links": {"step_time": table | {"links": links}, **two},
        "table, measured links": {"step_time": table | {"links": measured}, **two},
        "table, experts": {"step_time": table | {"experts": experts}, **two},
        "tensor parallel": {"step_time": fitted | {"links": {k: v for k, v in links.items() if k != "all_to_alls"}},
                            "tensor_parallel": 2},
        "table, experts of one": {"step_time": table | {"experts": experts | {"ranks": 1}}},
        "priority": {"scheduling": "priority"},
        "fair-batching": {"scheduling": "fair-batching", "tpot_slo_s": 0.08},
        "flow-prefill": {"scheduling": "flow-prefill", "operator_s": 0.01},
        "disaggregated": {"disaggregated": {"prefill_engines": 1, "decode_engines": 2, "kv_bytes_per_s": 1e6,
                                            "latency_s": 0.01}},
        "pipeline": {"pipeline_parallel": 2, "pipeline_transfer_s": 0.002},
        "data parallel": {"data_parallel": 2, "max_num_seqs": 4, "kv_blocks": 70},
        "expert parallel": {"data_parallel": 2, "max_num_seqs": 4, "kv_blocks": 70, "expert_parallel": True},
        "async": {"async_scheduling": True},
        "threshold": {"long_prefill_token_threshold": 32, "long_prefill_token_threshold_adaptive": True},
        "optimistic": {"scheduler_reserve_full_isl": False, "watermark": 0.1},
        "speculation": {"speculation": {"tokens": 3, "acceptance": 0.7, "per_draft_token_s": 1e-4, "draft_s": 1e-3}},
        "overheads": {"request_overhead_s": 0.01, "request_handling_s": 0.01, "request_per_running_s": 0.002},
        "shared overheads": {"request_handling_s": 0.05, "request_handling_shared": True,
                             "request_per_prompt_token_s": 1e-4},
        "launches": {"step_time": {"kind": "fitted", "weights_s": 0.02, "per_token_s": 1e-4, "prompt_launch_s": 0.05}},
        "physics": {"physics": {"work": work, "hardware": hardware | {"flops_per_s": 1e14, "bytes_per_s": 1e13}}},
        "calibrated": {"calibration": {"method": "by hand", "date": "2026-11-23", "ranges": {"concurrency": [1, 2]}}},
    }  # fmt: skip
    found = {}
    for name, shape in shapes.items():
        tree = rich(policies=["none"] if "fair" in name else ["token-pool"])
        tree["pool"]["profile"] |= shape
        if name == "calibrated":
            tree["policies"] = ["none"]
        if name == "fair-batching":
            tree["pool"]["profile"] |= {
                "max_num_batched_tokens": 2048, "kv_blocks": 400,
                "step_time": tree["pool"]["profile"]["step_time"] | {"per_prefill_token_s": 2e-3},
            }  # fmt: skip
        found[f"profile {name}"] = tree
    loaded = rich(policies=["none"])
    loaded["pool"]["profile"] |= {"long_prefill_token_threshold": 32, "scheduler_reserve_full_isl": False}
    found["profile crowded"] = loaded
    return found
