"""One scenario in which everything happens."""

from __future__ import annotations

from typing import Any

from cluster.worlds import POLICIES, Mapped


def busy(policy: str, horizon_s: float | None = 40.0) -> Mapped:
    """Return a scenario in which every verdict that the policy knows occurs, and every fate of a request."""

    def tenant(name: str, service_class: str, slo_s: float | None, **more: Any) -> Mapped:
        return {"name": name, "service_class": service_class, "ttft_slo_s": slo_s, **more}

    def work(i: int, rate_per_s: float, prompt: tuple[int, int], output: tuple[int, int], **more: Any) -> Mapped:
        low_high = [{"kind": "uniform", "low": low, "high": high} for low, high in (prompt, output)]
        return {
            "entitlement": f"t{i}", "arrivals": {"kind": "gamma", "rate_per_s": rate_per_s, "cv": 2.0},
            "prompt_tokens": low_high[0], "output_tokens": low_high[1], "until_s": 40.0, **more,
        }  # fmt: skip

    retry = {"kind": "retry", "max_attempts": 3}
    profile = {
        "step_time": {
            "kind": "linear", "base_s": 0.05, "per_decode_sequence_s": 0.004, "per_prefill_token_s": 0.001,
            "per_context_token_s": 0.0001,
        },
        "max_num_seqs": 5, "max_num_batched_tokens": 40, "kv_blocks": 40, "block_tokens": 4,
        "kv_bytes_per_token": 1000.0, "tokens_per_s": 150.0, "max_model_tokens": 100, "scheduling": "priority",
    }  # fmt: skip
    return {
        "version": 1, "seed": 11, "horizon_s": horizon_s, "timeline_interval_s": 0.5, "record_decisions": True,
        "pool": {
            "profile": profile, "replicas": 2, "default_max_output_tokens": 40,
            "entitlements": [
                tenant("t0", "dedicated", 0.5, baseline={"slots": 2}),
                tenant("t1", "guaranteed", 1.0, baseline={"slots": 2, "tokens_per_s": 60}),
                tenant("t2", "elastic", 1.0, baseline={"slots": 3, "tokens_per_s": 60}),
                tenant("t3", "elastic", 30.0, baseline={"tokens_per_s": 30}, limit={"slots": 4, "kv_bytes": 120_000}),
                tenant("t4", "spot", None, limit={"tokens_per_s": 20}, from_s=3.25, until_s=33.0),
                tenant("t5", "preemptible", None),
            ],
        },
        "workload": [
            work(0, 0.8, (5, 20), (5, 30)),
            work(1, 1.5, (5, 30), (5, 30), client=retry),
            work(2, 2.0, (5, 30), (5, 30), ask_max_tokens=False, client={**retry, "honour_retry_after": False}),
            work(3, 1.0, (5, 55), (5, 50), priority=1),
            work(4, 1.0, (5, 60), (5, 25), priority=2, client={**retry, "delay_s": 0.0}),
            work(5, 2.0, (5, 10), (30, 60), priority=2, client=retry),
        ],
        "events": [
            {"at_s": 10.0, "capacity": {"slots": 5, "kv_blocks": 30}},
            {"at_s": 14.0, "capacity": "full"},
            {"at_s": 18.0, "fail": 0},
            {"at_s": 20.5, "fail": 1},
            {"at_s": 22.0, "restore": 0},
            {"at_s": 25.0, "restore": 1},
        ],
        "policies": [{"name": policy, **POLICIES[policy]}],
    }  # fmt: skip
