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

CHOICES = {"speculation", "answers"}
"""Those of them that are ours to make; the others follow a version."""

HEAD = """# Known divergences from vLLM's scheduler

Written by `make conformance`: vLLM's own scheduler and KV-cache manager and our replica, on the same random loads,
compared at every iteration: who is scheduled, with how many tokens, the KV blocks in use, who is preempted. Loads mix
chunked prefill, preemption and the features below; those with `pipeline` stages are loads of their own. `LOADS=` says
how many; `results/conformance` keeps what was found, and a run that was stopped goes on.
"""

TAIL = """
Not compared, because neither version's scheduler has it for text models on one GPU or because it lies outside: limits
on how many prompts may be partly computed at a time (gone from these versions' settings), the time that a grammar takes
to compile, encoder inputs, KV connectors, LoRA limits, hybrid models.
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
    lines += ["", *by_feature(results), "", *sizes_of_divergences(results)]
    return "\n".join(lines) + "\n" + TAIL


def by_feature(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the loads of each feature that have nothing known to differ, and how many of them do differ."""
    versions = [r["vllm"] for r in results]
    lines = [
        "Loads with a feature and nothing that is known to differ, and how many of them differ:",
        "",
        "| feature | " + " | ".join(f"{version}: loads | differ" for version in versions) + " |",
        "| --- |" + " --- | --- |" * len(versions),
    ]
    names = sorted({name for r in results for name in r["plain_runs"]} - {"all"})
    for name in [*names, "all"]:
        cells = [f"{r['plain_runs'].get(name, 0):,} | {r['plain_differ'].get(name, 0):,}" for r in results]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def sizes_of_divergences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is known to differ, and by how much that moves the means of the loads that differ."""
    lines = [
        "What differs, over loads with one such feature; and by how much the means over a load of 4 to 16 requests",
        "then move, median and 90th percentile over the loads that differ:",
        "",
        "| vLLM | loads with | differ | TTFT | TPOT | choice | why |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        for feature in KNOWN:
            why, found = reason_for(feature, r["vllm"]), r["alone"].get(feature)
            if not why or found is None:
                continue
            times = " | ".join(", ".join(f"{value:.1%}" for value in found[name]) or "-" for name in ("ttft", "tpot"))
            choice = "ours" if feature in CHOICES else "no"
            why = why.removeprefix("A choice. ")
            lines.append(
                f"| {r['vllm']} | {feature} ({found['loads']:,}) | {found['differ']:,} | {times} | {choice} | {why} |"
            )
    return lines
