"""What is known to differ from vLLM's scheduler, by feature of a load and version, and the page that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KNOWN: Mapping[str, Mapping[str, str]] = {
    "speculation": {
        "all": "A choice. Here every sequence of a batch gets the mean number of tokens of an iteration, so that runs "
        "of iterations have a closed form; vLLM accepts drafts request by request, and takes KV blocks for drafts "
        "before they are rejected (at most one a sequence more than here).",
    },
    "answers": {
        "all": "A choice. vLLM lets others find the blocks of an answer while it is being made; here once its request "
        "has given them back. It takes a prompt that repeats an answer before that has ended, which clients cannot "
        "send.",
    },
    "priority": {
        "0.33": "vLLM's change after the version that is followed. Under `priority` a running request that finds no "
        "KV block and is itself the one to give way ends the planning of that iteration in 0.32; in 0.33 those after "
        "it are planned as well.",
    },
}
"""Reasons by feature and by the versions that they hold for."""

HEAD = """# Known divergences from vLLM's scheduler

Written by `make conformance`: vLLM's own scheduler and KV-cache manager and our replica, on the same random loads,
compared at every iteration: who is scheduled, with how many tokens, the KV blocks in use, who is preempted. Loads mix
chunked prefill, preemption, priorities, async scheduling, prefix caching, aborts, stop tokens, structured outputs,
`long_prefill_token_threshold` (adaptive too), prompts that are not reserved, watermarks, and the features below.
"""

TAIL = """
Not compared, because neither version's scheduler has it for text models on one GPU or because it lies outside: limits
on how many prompts may be partly computed at a time (gone from these versions' settings), the time that a grammar takes
to compile, encoder inputs, KV connectors, LoRA limits, hybrid models, pipeline parallelism.
"""


def reason_for(feature: str, version: str) -> str:
    """Return why loads of a feature differ with a version; empty where they do not."""
    reasons = KNOWN.get(feature, {})
    return reasons.get("all") or reasons.get(".".join(version.split(".")[:2]), "")


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of known divergences, with what was counted."""
    lines = [
        HEAD,
        "| vLLM | loads | iterations | preemptions | unexplained differences |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['vllm']} | {r['loads']:,} | {r['iterations']:,} | {r['preemptions']:,} | {len(r['unknown'])} |"
        for r in results
    ]
    lines += [
        "",
        "What differs, and by how much where it does (median over the loads that differ, of their means):",
        "",
    ]
    lines += ["| vLLM | loads with | differ | TTFT | TPOT | why |", "| --- | --- | --- | --- | --- | --- |"]
    for r in results:
        for feature in KNOWN:
            why = reason_for(feature, r["vllm"])
            if why and feature not in r["alone"] and feature in r["runs"]:
                lines.append(
                    f"| {r['vllm']} | {feature} ({r['runs'][feature]:,}) | {r['differ'][feature]:,} | not measured "
                    f"| not measured | {why} |"
                )
            elif why and feature in r["alone"]:
                count, differ, ttft, tpot = r["alone"][feature]
                lines.append(f"| {r['vllm']} | {feature} ({count:,}) | {differ:,} | {ttft:.1%} | {tpot:.1%} | {why} |")
    return "\n".join(lines) + "\n" + TAIL
