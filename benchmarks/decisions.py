"""What a decision of each policy costs, with 100 entitlements; and a tick, by policy.

    python benchmarks/decisions.py [--entitlements 10,100] [--policies vtc,drr] [--held 2000] [--events 4000]

The pool is full, and where a policy queues, ``--held`` requests wait at all times: the state in which a decision is
most work. An arrival is judged, and held, refused or let in; an end frees a slot, and the policy says who gets it.
Times are medians over single calls of the whole gateway core, in microseconds; a tick is the mean of ten. Each event is
measured alone, so that what the garbage collector or another process takes is not in the median.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

from policies.adaptive import Adaptive
from policies.api import (
    Arrived,
    EntitlementSpec,
    Event,
    Finished,
    FirstToken,
    Forward,
    PoolCapacity,
    ReplicaReport,
    RequestView,
    Resources,
    ServiceClass,
    Tick,
)
from policies.bands import Bands
from policies.cap import Cap
from policies.concur import Concur
from policies.core import GatewayCore
from policies.fair_queue import FairQueue
from policies.fairserve import FairServe
from policies.parts.orders import Debt, DominantResource, RoundRobin, StrictClass
from policies.parts.saturation import QueueAndKv
from policies.predictive_pool.params import PredictivePool
from policies.prio_reserve import PrioReserve
from policies.ptu import Ptu
from policies.rate_limit import RateLimit
from policies.registry import POLICIES, ROUTERS
from policies.reserve import Reserve
from policies.token_pool.params import TokenPool
from policies.window import Window

CLASSES = (ServiceClass.GUARANTEED, ServiceClass.ELASTIC, ServiceClass.ELASTIC, ServiceClass.SPOT)
_RATES = {"requests_per_min": 6000.0, "tokens_per_min": 600_000.0}
PARAMS: dict[str, Any] = {
    "rate-limit": RateLimit(**_RATES), "window": Window(**_RATES), "reserve": Reserve(**_RATES), "ptu": Ptu(**_RATES),
    "prio-reserve": PrioReserve(requests_per_min=1e9, tokens_per_min=1e9),
    "cap": Cap(max_in_flight_per_replica=None, queue_requests=10**6),
    "predictive-pool": PredictivePool(prefill_ahead_s=1e6),  # a full pool, though nobody's prompt is taken in here
    "adaptive": Adaptive(initial=200, most=1000),
    "concur": Concur(agents=200, queue_requests=10**6),
    "fairserve": FairServe(user_per_min=1e9, app_per_min=1e9, queue_requests=10**6),
    "token-pool, paper": TokenPool(mode="paper"),
    "bands, reports": Bands(saturation=QueueAndKv(), queue_requests=10**6),
    "fair-queue, rr": FairQueue(order=RoundRobin(), queue_requests=10**6),
    "fair-queue, strict": FairQueue(order=StrictClass(), queue_requests=10**6),
    "fair-queue, drf": FairQueue(order=DominantResource(), queue_requests=10**6),
    "fair-queue, debt": FairQueue(order=Debt(), queue_requests=10**6),
}
"""Parameters where a kind has none that limit nothing, or is measured more than once."""


def core_of(params: Any, entitlements: int, slots: int) -> GatewayCore:
    """Return a gateway with so many entitlements, a quarter of them guaranteed, half elastic, the others spot."""
    specs = [
        EntitlementSpec(
            name=f"e{i}",
            tenant=f"t{i}",
            service_class=CLASSES[i % 4],
            ttft_slo_s=1000.0 + i % 5,
            baseline=Resources(10.0, None, 0.9 * slots / entitlements) if i % 4 < 3 else Resources(),
        )
        for i in range(entitlements)
    ]
    policy = POLICIES[params.kind].build(
        params, entitlements=specs, kv_bytes_per_token=1.0, chance=random.Random(1)
    )
    return GatewayCore(
        entitlements=specs,
        capacity=PoolCapacity(4, slots, 1e9, 1e12),
        replica_ids=range(4),
        policy=policy,
        router=ROUTERS["least-outstanding-tokens"].build(ROUTERS["least-outstanding-tokens"].params()),
    )


class Bench:
    """Feeds a core and measures it."""

    def __init__(self, core: GatewayCore, entitlements: int) -> None:
        self.core = core
        self.flying: list[str] = []
        self.now_s = 0.0
        self._came = 0
        self._entitlements = entitlements
        self._chance = random.Random(2)
        core.start(0.0)

    def tell(self, event: Event) -> int:
        """Hand over one event; return the nanoseconds it took."""
        began_ns = time.perf_counter_ns()
        said = self.core.handle(event, self.now_s)
        took_ns = time.perf_counter_ns() - began_ns
        self.flying += [step.request_id for step in said if isinstance(step, Forward)]
        return took_ns

    def arrival(self) -> int:
        """Let one more arrive."""
        self._came += 1
        name = f"e{self._chance.randrange(self._entitlements)}"
        view = RequestView(f"r{self._came}", name, "t", self._chance.randint(10, 500), self._chance.randint(10, 500))
        return self.tell(Arrived(view))

    def end(self) -> int:
        """Let one of those in flight end, after its first token."""
        request_id = self.flying.pop(self._chance.randrange(len(self.flying)))
        self.core.handle(FirstToken(request_id), self.now_s)
        return self.tell(Finished(request_id, self._chance.randint(1, 100)))

    def reports(self) -> None:
        """Scrape."""
        for book in self.core.pool.replicas:
            self.core.handle(ReplicaReport(book.replica_id, self.now_s, book.in_flight, 0, 0.5), self.now_s)


def costs(params: Any, entitlements: int, held: int, events: int) -> tuple[float, float, float, int]:
    """Return the median microseconds of an arrival and of an end, the milliseconds of a tick, and how many waited."""
    slots = 2 * entitlements
    bench = Bench(core_of(params, entitlements, slots), entitlements)
    for _ in range(slots + held):
        bench.now_s += 1e-4
        bench.arrival()
    arrivals: list[int] = []
    ends: list[int] = []
    for number in range(events):
        bench.now_s += 1e-3
        if bench.core.wants_reports and number % 100 == 0:
            bench.reports()
        arrivals.append(bench.arrival())
        if bench.flying and len(bench.flying) >= slots // 2:
            ends.append(bench.end())
    waited = len(bench.core.held)
    began_ns = time.perf_counter_ns()
    for _ in range(10):
        bench.now_s += 10.0
        bench.core.handle(Tick(), bench.now_s)
    tick_ms = (time.perf_counter_ns() - began_ns) / 10 / 1e6
    return statistics.median(arrivals) / 1e3, statistics.median(ends or [0]) / 1e3, tick_ms, waited


def chosen(names: str) -> Iterator[tuple[str, Any]]:
    """Yield the policies to measure: those named, or all that are registered and the variants here."""
    wanted = [name for name in names.split(",") if name]
    for name in [*POLICIES, *(name for name in PARAMS if name not in POLICIES)]:
        if wanted and name not in wanted:
            continue
        yield name, PARAMS.get(name) or POLICIES[name].params()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entitlements", default="100")
    parser.add_argument("--policies", default="")
    parser.add_argument("--held", type=int, default=2000)
    parser.add_argument("--events", type=int, default=4000)
    options = parser.parse_args()
    print(f"{'policy':<20}{'entitlements':>14}{'arrival, us':>14}{'end, us':>10}{'tick, ms':>10}{'waiting':>10}")
    for name, params in chosen(options.policies):
        for count in (int(text) for text in options.entitlements.split(",")):
            arrival_us, end_us, tick_ms, waited = costs(params, count, options.held, options.events)
            print(f"{name:<20}{count:>14}{arrival_us:>14.1f}{end_us:>10.1f}{tick_ms:>10.2f}{waited:>10}")


if __name__ == "__main__":
    main()
