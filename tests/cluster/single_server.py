"""The single server that a replica is with a batch of one: what a request takes, and when each is served."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np

from cluster.queues import demand_of, profile, run
from sim.cluster.replica import TIE_S, Replica
from sim.engine.step_time import LinearStepTime

Job = tuple[float, int, int, int]  # gap to the one before in seconds, prompt and output tokens, priority


def prefill_s(step: LinearStepTime, prompt_tokens: int, chunk_tokens: int) -> float:
    total_s, computed = 0.0, 0
    while computed < prompt_tokens:
        tokens = min(chunk_tokens, prompt_tokens - computed)
        pairs = sum(computed + k for k in range(1, tokens + 1))  # each token attends to itself and all before it
        total_s += step.base_s + step.per_prefill_token_s * tokens + step.per_prefill_pair_s * pairs
        computed += tokens
    return total_s


def decode_s(step: LinearStepTime, prompt_tokens: int, output_tokens: int) -> float:
    return sum(
        step.base_s + step.per_decode_sequence_s + step.per_context_token_s * (prompt_tokens + k)
        for k in range(1, output_tokens)
    )


def service_s(step: LinearStepTime, prompt_tokens: int, output_tokens: int, chunk_tokens: int = 8192) -> float:
    return prefill_s(step, prompt_tokens, chunk_tokens) + decode_s(step, prompt_tokens, output_tokens)


def one_by_one(
    arrivals_s: Sequence[float], services_s: Sequence[float], priorities: Sequence[int]
) -> tuple[list[float], list[int]]:
    """Return when a single server starts each job, and in which order: lowest (priority, arrival) first.

    It sees who came at least TIE_S before it becomes free, and, if nobody did, who comes first.
    """
    starts_s = [0.0] * len(arrivals_s)
    waiting: list[tuple[int, float, int]] = []
    order: list[int] = []
    free_s, n = 0.0, 0
    while len(order) < len(arrivals_s):
        seen_s = free_s - TIE_S
        if not waiting and arrivals_s[n] >= seen_s:
            seen_s = math.nextafter(arrivals_s[n], math.inf)
        while n < len(arrivals_s) and arrivals_s[n] < seen_s:
            heapq.heappush(waiting, (priorities[n], arrivals_s[n], n))
            n += 1
        _, arrival_s, job = heapq.heappop(waiting)
        starts_s[job] = max(free_s, arrival_s)
        free_s = starts_s[job] + services_s[job]
        order.append(job)
    return starts_s, order


def play_alone(
    requests: list[Job], step: LinearStepTime, chunk: int, scheduling: str, replica: type = Replica
) -> None:
    """Check every time of a run with a batch of one against the single server."""
    gaps, prompts, outputs, priorities = (list(column) for column in zip(*requests, strict=True))
    arrivals_s = np.cumsum(gaps).tolist()
    if scheduling == "fcfs":
        priorities = [0] * len(priorities)
    kinds = sorted(set(priorities))
    # A workload for each priority; the gateway meets requests of one instant in the order of the workloads.
    order = sorted(range(len(requests)), key=lambda i: (arrivals_s[i], priorities[i]))
    arrivals_s, prompts, outputs, priorities = (
        [column[i] for i in order] for column in (arrivals_s, prompts, outputs, priorities)
    )
    demands = []
    for kind in kinds:
        mine = [i for i, priority in enumerate(priorities) if priority == kind]
        demands.append(demand_of(*([column[i] for i in mine] for column in (arrivals_s, prompts, outputs))))
    path = run(
        demands, profile(step, slots=1, batched_tokens=chunk, scheduling=scheduling, block_tokens=4),
        priorities=kinds, replica=replica,
    )  # fmt: skip
    assert path.arrival_s.tolist() == arrivals_s
    assert path.output_tokens.tolist() == outputs
    services_s = [service_s(step, p, o, chunk) for p, o in zip(prompts, outputs, strict=True)]
    starts_s, turns = one_by_one(arrivals_s, services_s, priorities)
    first_s = [start + prefill_s(step, p, chunk) for start, p in zip(starts_s, prompts, strict=True)]
    finish_s = [start + service for start, service in zip(starts_s, services_s, strict=True)]
    np.testing.assert_allclose(path.first_token_s, first_s, rtol=1e-9)
    np.testing.assert_allclose(path.finish_s, finish_s, rtol=1e-9)
    assert np.argsort(path.finish_s, kind="stable").tolist() == turns
