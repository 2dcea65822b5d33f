"""Random loads for one engine, by feature: what `vllm_trace.py` gives vLLM's scheduler and `run.py` our replica.

A load is plain JSON: settings under vLLM's names, and a script of requests and aborts in seconds. Standard library
only, because it is read by both Python environments.
"""

from __future__ import annotations

import math
import random
from typing import Any

FEATURES = (
    "priority", "async", "caching", "aborts", "stops", "long_prefill", "long_prefill_adaptive", "no_reserve",
    "watermark", "structured", "speculation", "answers",
)  # fmt: skip
"""What a load may have beside chunked prefill, preemption and first come, first served, which all have."""

PIPELINE_SEEDS = 1_000_000
"""From this seed on loads have ``pipeline`` stages, and nothing that an engine of several does not have here."""

UNSTAGED = ("async", "caching", "answers", "structured", "speculation")

SHARE = {"speculation": 0.02, "long_prefill_adaptive": 0.15, "structured": 0.2, "answers": 0.05}
"""How likely a feature is in a mixed load; 0.4 where nothing is said."""

ENDLESS = 1 << 40
TOKENS = 24


def features_of(rng: random.Random) -> list[str]:
    """Return what a mixed load has."""
    chosen = [name for name in FEATURES if rng.random() < SHARE.get(name, 0.4)]
    if "long_prefill_adaptive" in chosen and "long_prefill" not in chosen:
        chosen.append("long_prefill")
    if "speculation" in chosen:  # the two ways to draft differ by engine: see docs/known-divergences.md
        chosen = [name for name in chosen if name not in ("async", "structured")]
    return chosen


def staged(setting: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return what a load says of its pipeline stages, under a budget that prompts exceed more often than not."""
    slots = setting["max_num_seqs"]
    return {
        "stages": rng.choice([2, 3, 4]), "transfer_s": rng.choice([0.0, 0.002]),
        "max_num_batched_tokens": max(rng.choice([1, 4, 8, 12]), slots),
    }  # fmt: skip


def load(seed: int, features: list[str] | None = None) -> dict[str, Any]:
    """Return the load of a seed; of these features, or a random choice of them."""
    rng = random.Random(seed)
    chosen = features_of(rng) if features is None else features
    if seed >= PIPELINE_SEEDS:
        chosen = [*(name for name in chosen if name not in UNSTAGED), "pipeline"]
    block = rng.choice([1, 4, 4, 16])
    slots = rng.choice([1, 2, 4, 8])
    drafts = rng.choice([1, 2, 3]) if "speculation" in chosen else 0
    budget = max(rng.choice([1, 4, 12, 40, 100]), slots * (1 + drafts))
    longest = math.ceil(2 * TOKENS / block) + 1
    setting = {
        "max_num_seqs": slots,
        "max_num_batched_tokens": budget,
        "block_tokens": block,
        "kv_blocks": rng.randint(longest, 4 * longest),
        "scheduling": "priority" if "priority" in chosen else "fcfs",
        "async_scheduling": "async" in chosen,
        "prefix_caching": "caching" in chosen,
        "long_prefill_token_threshold": rng.choice([1, 3, 8, 16]) if "long_prefill" in chosen else 0,
        "long_prefill_token_threshold_adaptive": "long_prefill_adaptive" in chosen,
        "reserve_full_prompt": "no_reserve" not in chosen,
        "watermark": rng.choice([0.02, 0.1, 0.3]) if "watermark" in chosen else 0.0,
        "drafts": drafts,
        "accepted": [rng.randint(0, drafts) for _ in range(7)] if drafts else [],
        "step": {"base_s": 0.01, "per_prefill_token_s": 0.001, "per_decode_sequence_s": 0.0013,
                 "per_context_token_s": 1e-6, "per_prefill_pair_s": 1e-8},
    }  # fmt: skip
    if "pipeline" in chosen:
        setting |= staged(setting, random.Random(-seed))
    script: list[dict[str, Any]] = []
    rate_per_s, lines, now_s = rng.choice([4, 20, 80]), rng.randint(1, 4), 0.0
    for number in range(rng.choice([4, 8, 16])):
        now_s += rng.expovariate(rate_per_s)
        prompt, output = rng.randint(1, TOKENS), rng.randint(1, TOKENS)
        asked: dict[str, Any] = {"at_s": round(now_s, 6), "what": "submit", "id": number, "prompt": prompt,
                                 "output": output}  # fmt: skip
        if "priority" in chosen:
            asked["priority"] = rng.randint(0, 2)
        if "stops" in chosen and rng.random() < 0.5:
            asked["stops"] = True  # ends by a stop token, which nobody foresees
        if "structured" in chosen and rng.random() < 0.4:
            asked["structured"] = True
        if "caching" in chosen and rng.random() < 0.7:
            end = ENDLESS if "answers" in chosen and rng.random() < 0.5 else rng.randint(1, prompt)
            asked["prefix"] = [[rng.randint(1, lines), end]]
        script.append(asked)
        if "aborts" in chosen and rng.random() < 0.2:
            script.append({"at_s": round(now_s + rng.random(), 6), "what": "abort", "id": number})
    return {"seed": seed, "features": sorted(chosen), "setting": setting, "script": script}


def in_order(script: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a script by time; what comes at the same instant stays in its order."""
    return sorted(script, key=lambda entry: entry["at_s"])
