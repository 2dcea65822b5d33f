"""Both experiments of arXiv 2603.00356 once more, from its facts: a simulator that shares no code with the product.

Marked [choice] is what the paper leaves open, filled in as docs/reproduction.md says. Times in seconds, tokens counted.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

STEP_S, PER_SEQUENCE_S, PER_PROMPT_TOKEN_S = 0.130, 2e-4, 5e-5  # [choice] an iteration, and what is in it
TICK_S, KEEP, BASELINE_PER_S, BASELINE_SLOTS = 5.0, 0.7, 75.0, 5  # [choice] but for gamma_d and the 5 slots
CLASS = {"guaranteed": 1000.0, "elastic": 100.0, "spot": 1.0}


@dataclass
class Tenant:
    kind: str
    rate_per_s: float
    prompt: int
    output: int
    from_s: float = 0.0
    until_s: float = 1e9
    most: float = 1e9  # in flight
    slo_s: float = 15.25
    debt: float = 0.0
    burst: float = 0.0
    in_flight: int = 0
    worked: int = 0  # tokens since the last tick
    ok: int = 0
    low: int = 0  # refused for low priority
    own: int = 0  # refused at its own limit
    peak_debt: float = 0.0
    came: list[float] = field(default_factory=list)
    turned_away: list[float] = field(default_factory=list)
    ttft: list[tuple[float, float]] = field(default_factory=list)  # arrival, time to first token

    def weight(self) -> float:
        urgency = 1 / (1 + 2.0 * self.slo_s / 15.25)
        return CLASS[self.kind] * urgency / (1 + self.burst) * max(0.1, 1 + 4.0 * self.debt)


def play(tenants: list[Tenant], *, pools: bool, until_s: float, seed: int, slots: int = 16,
         outage: tuple[float, float, int] | None = None) -> int:  # fmt: skip
    """Play one experiment; returns the longest queue at the replica."""
    chance = random.Random(seed)
    agenda: list[tuple[float, int, str, int]] = []  # when, tie-break, what, which tenant
    for i, one in enumerate(tenants):
        at_s = one.from_s + chance.random() / one.rate_per_s  # [choice] evenly spaced, their phase drawn
        while at_s < min(one.until_s, until_s):
            heapq.heappush(agenda, (at_s, len(agenda), "arrive", i))
            at_s += 1 / one.rate_per_s
    for k in range(1, int(until_s / TICK_S) + 1):
        heapq.heappush(agenda, (k * TICK_S, len(agenda), "tick", 0))
    queue: list[list[float]] = []  # tenant, arrival, tokens made
    running: list[list[float]] = []
    step_ends_s, longest, number = float("inf"), 0, 10**6
    room = slots

    def begin(now_s: float) -> None:
        nonlocal step_ends_s, number
        decoding, prompts = len(running), 0
        while queue and len(running) < room:
            running.append(queue.pop(0))
            prompts += tenants[int(running[-1][0])].prompt
        step_s = STEP_S + PER_SEQUENCE_S * decoding + PER_PROMPT_TOKEN_S * prompts
        step_ends_s = now_s + step_s if running else float("inf")
        if running:
            number += 1
            heapq.heappush(agenda, (step_ends_s, number, "step", 0))

    while agenda:
        now_s, _, what, which = heapq.heappop(agenda)
        if now_s > until_s:
            break
        if outage is not None:
            room = outage[2] if outage[0] <= now_s < outage[1] else slots
        if what == "tick":
            for one in tenants:
                if one.kind == "elastic" and one.from_s < now_s:
                    hat_per_s = one.worked / TICK_S
                    one.debt = KEEP * one.debt + (1 - KEEP) * (BASELINE_PER_S - hat_per_s) / BASELINE_PER_S
                    over = max(0.0, hat_per_s / BASELINE_PER_S - 1) + max(0.0, one.in_flight / BASELINE_SLOTS - 1)
                    one.burst = KEEP * one.burst + (1 - KEEP) * over
                    one.peak_debt = max(one.peak_debt, one.debt)
                one.worked = 0
        elif what == "arrive":
            one = tenants[which]
            one.came.append(now_s)
            if pools:
                contended = sum(each.in_flight for each in tenants) >= room
                exempt = one.kind == "guaranteed"  # inside its baseline, which is its limit
                least = min((each.weight() for each in tenants if each.in_flight), default=-1.0)
                if one.in_flight >= one.most:
                    one.own += 1
                elif contended and not exempt and not one.weight() > least:
                    one.low += 1
                if one.own + one.low > len(one.turned_away):
                    one.turned_away.append(now_s)
                    continue
            one.in_flight += 1
            queue.append([which, now_s, 0])
            if step_ends_s == float("inf"):
                begin(now_s)
            longest = max(longest, len(queue))
        else:
            for request in list(running):
                one = tenants[int(request[0])]
                request[2] += 1
                one.worked += 1 + (one.prompt if request[2] == 1 else 0)
                if request[2] == 1:
                    one.ttft.append((request[1], now_s - request[1]))
                if request[2] == one.output:
                    running.remove(request)
                    one.in_flight -= 1
                    one.ok += 1
            begin(now_s)
    return longest


def experiment_1(seed: int, *, pools: bool) -> dict[str, float]:
    tenants = [
        Tenant("guaranteed", 6 * 0.125, 64, 64, until_s=90, most=6),  # [choice] 0.125 requests/s a slot, for 90 s
        Tenant("spot", 10 * 0.125, 64, 64, until_s=90, most=10),
        Tenant("guaranteed", 6 * 0.125, 64, 64, from_s=30, until_s=60, most=6),
    ]
    queue = play(tenants, pools=pools, until_s=120, seed=seed)
    spot = tenants[1]
    phases = ((0, 30), (30, 60), (60, 90))
    guaranteed = [
        p99([wait_s for at_s, wait_s in one.ttft if low <= at_s < high])
        for one in (tenants[0], tenants[2]) for low, high in phases
    ]  # fmt: skip
    return {
        "queue": queue,
        "guaranteed_p99_s": max(guaranteed),
        "phase_p99_s": max(guaranteed[1], guaranteed[4]),
        "spot_refused": sum(30 <= at_s < 60 for at_s in spot.turned_away) / sum(30 <= at_s < 60 for at_s in spot.came),
        "guaranteed_low": tenants[0].low + tenants[2].low,
    }


def experiment_2(seed: int) -> dict[str, float]:
    tenants = [  # [choice] rates and lengths
        Tenant("elastic", 2.3333, 16, 16, slo_s=0.5),
        Tenant("elastic", 2.3333, 38, 37, slo_s=30.0),
        Tenant("elastic", 0.9111, 56, 56, slo_s=5.0, from_s=210),
    ]
    play(tenants, pools=True, until_s=300, seed=seed, outage=(30, 120, 8))
    found: dict[str, float] = {}
    for name, one in zip(("copilot", "synth", "reports"), tenants, strict=True):
        found |= {f"{name}_ok": one.ok, f"{name}_low": one.low, f"{name}_debt": one.peak_debt}
    return found


def p99(values: list[float]) -> float:
    """The 99th percentile, straight lines between neighbours."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    at = 0.99 * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])
