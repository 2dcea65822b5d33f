"""Tables like those of the two experiments, from a replica that is nothing but slots in first-come order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from policies.api import EntitlementSpec, ServiceClass
from sim.records.schema import REASONS, Outcome, RequestColumns, TimelineBlock, requests_table, timeline_table

NAN = float("nan")


def spec(name: str, slo_s: float | None = None, tenant: str | None = None) -> EntitlementSpec:
    return EntitlementSpec(name=name, tenant=tenant or name, service_class=ServiceClass.ELASTIC, ttft_slo_s=slo_s)


def columns(entitlements: Sequence[EntitlementSpec], rows: Sequence[Mapping[str, object]]) -> RequestColumns:
    """Attempts by hand: what a row leaves out has the plainest value."""
    plain: dict[str, object] = {
        "attempt": 1, "final": True, "entitlement": 0, "prompt_tokens": 64, "max_output_tokens": 64,
        "output_tokens": 0, "cached_tokens": 0, "arrival_s": 0.0, "forwarded_s": NAN, "replica": -1,
        "first_token_s": NAN, "finish_s": NAN, "outcome": Outcome.WAITING, "reason": -1, "http_status": 0,
        "retry_after_s": NAN, "preemptions": 0,
    }  # fmt: skip
    full = [{"request_id": f"r{i}", **plain, **row} for i, row in enumerate(rows)]
    for row in full:
        row.setdefault("first_arrival_s", row["arrival_s"])
    names = [*plain, "request_id", "first_arrival_s"]
    return RequestColumns(entitlements=entitlements, **{name: [row[name] for row in full] for name in names})  # type: ignore[arg-type]


@dataclass
class Flight:
    entitlement: int
    arrival_s: float
    row: dict[str, object] = field(default_factory=dict)


Admit = Callable[[int, float, list[int], int], bool]


def run(
    policy: str,
    entitlements: Sequence[EntitlementSpec],
    arrivals: Sequence[tuple[float, int]],
    *,
    service_s: Sequence[float],
    tokens: Sequence[int],
    slots: Callable[[float], int],
    admit: Admit,
    horizon_s: float,
    retries: int = 0,
) -> tuple[pa.Table, pa.Table]:
    """``admit(entitlement, now_s, in_flight, slots)``; a refused request comes back after two seconds."""
    rows: list[dict[str, object]] = []
    events: list[tuple[float, int, str, int, float, int]] = []
    for i, (at_s, entitlement) in enumerate(arrivals):
        heapq.heappush(events, (at_s, i, "arrive", entitlement, at_s, 1))
    for i in range(int(horizon_s)):
        heapq.heappush(events, (float(i), -1, "sample", 0, 0.0, 0))
    in_flight, running, waiting = [0] * len(entitlements), 0, []
    count = [[0] * len(entitlements), [0] * len(entitlements)]
    samples: list[tuple[float, int, int, list[int], list[int], list[int], int]] = []
    while events:
        now, i, what, entitlement, first, attempt = heapq.heappop(events)
        if now > horizon_s:
            break
        if what == "sample":
            samples.append((now, running, len(waiting), list(in_flight), count[0], count[1], slots(now)))
            count = [[0] * len(entitlements), [0] * len(entitlements)]
        elif what == "end":
            running -= 1
            in_flight[entitlement] -= 1
            rows[attempt].update(finish_s=now, outcome=Outcome.FINISHED, http_status=200)
        else:
            row: dict[str, object] = {
                "request_id": f"r{i}", "attempt": attempt, "entitlement": entitlement, "arrival_s": now,
                "first_arrival_s": first, "output_tokens": 0,
            }  # fmt: skip
            rows.append(row)
            if admit(entitlement, now, in_flight, slots(now)):
                in_flight[entitlement] += 1
                count[0][entitlement] += 1
                row.update(forwarded_s=now, replica=0, output_tokens=tokens[entitlement], outcome=Outcome.WAITING)
                waiting.append(len(rows) - 1)
            else:
                count[1][entitlement] += 1
                row.update(outcome=Outcome.REFUSED, reason=REASONS.index("low_priority"), http_status=429,
                           retry_after_s=2.0)  # fmt: skip
                if attempt <= retries and now + 2.0 < horizon_s:
                    row["final"] = False
                    heapq.heappush(events, (now + 2.0, i, "arrive", entitlement, first, attempt + 1))
        while waiting and running < slots(now):
            at = waiting.pop(0)
            entitlement = int(rows[at]["entitlement"])  # type: ignore[call-overload]
            running += 1
            rows[at].update(first_token_s=now + 0.4, outcome=Outcome.RUNNING)
            heapq.heappush(events, (now + service_s[entitlement], 10**6 + at, "end", entitlement, 0.0, at))
    requests = requests_table(columns(entitlements, rows), run_id=policy, policy=policy, variant={}, replication=0)
    t_s = [s[0] for s in samples]
    blocks = [
        TimelineBlock("pool", "pool", t_s, {"running": [s[1] for s in samples], "waiting": [s[2] for s in samples],
                                            "capacity_slots": [s[6] for s in samples]})
    ]  # fmt: skip
    for k, entitlement_spec in enumerate(entitlements):
        held = np.array([s[3][k] for s in samples], dtype=float)
        refused = np.array([s[5][k] for s in samples], dtype=float)
        debt = np.convolve(refused, 0.04 * np.exp(-np.arange(40) / 12.0))[: len(held)]
        blocks.append(
            TimelineBlock("entitlement", entitlement_spec.name, t_s, {
                "in_flight": held, "admitted_per_s": [s[4][k] for s in samples], "refused_per_s": refused,
                "debt": debt, "weight": (94.0, 20.0, 60.0)[k % 3] * (1 + debt),
            })
        )  # fmt: skip
    return requests, timeline_table(blocks, run_id=policy, policy=policy, variant={}, replication=0)


def experiment1() -> tuple[pa.Table, pa.Table]:
    entitlements = [spec("guaranteed-a", 1.2), spec("spot-b"), spec("guaranteed-c", 1.2)]
    arrivals = [(i / 0.75, 0) for i in range(67)] + [(0.1 + i / 1.25, 1) for i in range(112)]
    arrivals += [(30.2 + i / 0.75, 2) for i in range(22)]
    buckets = [0.0, 0.0, 0.0]

    def pool(entitlement: int, now_s: float, in_flight: list[int], slots: int) -> bool:
        return in_flight[entitlement] < 7 if entitlement != 1 else sum(in_flight) < slots - 1

    def rate_limit(entitlement: int, now_s: float, in_flight: list[int], slots: int) -> bool:
        ready = now_s >= buckets[entitlement]
        buckets[entitlement] = now_s + 1.2 if ready else buckets[entitlement]
        return ready

    tables = [
        run(name, entitlements, sorted(arrivals), service_s=[8.3] * 3, tokens=[64] * 3, slots=lambda _: 16,
            admit=admit, horizon_s=90)
        for name, admit in (("none", lambda *_: True), ("rate-limit", rate_limit), ("token-pool", pool))
    ]  # fmt: skip
    return tables_of(tables)


def experiment2() -> tuple[pa.Table, pa.Table]:
    entitlements = [spec("copilot", 0.5), spec("synth", 30.0), spec("reports", 5.0)]
    rng = np.random.default_rng(1)
    arrivals = [(float(t), 0) for t in np.cumsum(rng.exponential(1 / 2.33, 690))]
    arrivals += [(float(t), 1) for t in np.cumsum(rng.exponential(1 / 2.33, 690))]
    arrivals += [(210 + float(t), 2) for t in np.cumsum(rng.exponential(1 / 0.8, 70))]

    def pool(entitlement: int, now_s: float, in_flight: list[int], slots: int) -> bool:
        return sum(in_flight) < slots if entitlement == 0 else sum(in_flight) < slots - 2

    return run("token-pool", entitlements, sorted(arrivals), service_s=[2.2, 4.6, 6.9], tokens=[32, 75, 112],
               slots=lambda t: 8 if 30 <= t < 120 else 16, admit=pool, horizon_s=300, retries=3)  # fmt: skip


def tables_of(parts: Sequence[tuple[pa.Table, pa.Table]]) -> tuple[pa.Table, pa.Table]:
    from sim.records.schema import join_tables

    return join_tables([part[0] for part in parts]), join_tables([part[1] for part in parts])
