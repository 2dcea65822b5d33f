"""What a decision and a tick of token pools cost, by the number of entitlements.

    python benchmarks/decisions.py [--entitlements 10,100,1000] [--requests 20000]

A decision is an arrival and its end, through the whole gateway core, in a pool whose slots are in use, so that every
check is reached. CPU time of this process, the best of five.
"""

from __future__ import annotations

import argparse
import random
import time

from policies.api import Arrived, EntitlementSpec, Finished, Forward, PoolCapacity, RequestView, Resources, ServiceClass
from policies.core import GatewayCore
from policies.registry import POLICIES, ROUTERS
from policies.token_pool.params import TokenPool

CLASSES = (ServiceClass.GUARANTEED, ServiceClass.ELASTIC, ServiceClass.ELASTIC, ServiceClass.SPOT)


def core_of(entitlements: int, slots: int) -> GatewayCore:
    """Return a gateway with so many entitlements, a quarter of them guaranteed, half elastic, the others spot."""
    specs = [
        EntitlementSpec(
            name=f"e{i}",
            tenant="t",
            service_class=CLASSES[i % 4],
            ttft_slo_s=1.0 + i % 5,
            baseline=Resources(10.0, None, 0.9 * slots / entitlements) if i % 4 < 3 else Resources(),
        )
        for i in range(entitlements)
    ]
    policy = POLICIES["token-pool"].build(
        TokenPool(), entitlements=specs, kv_bytes_per_token=1.0, chance=random.Random(1)
    )
    return GatewayCore(
        entitlements=specs,
        capacity=PoolCapacity(4, slots, 1e9, 1e12),
        replica_ids=range(4),
        policy=policy,
        router=ROUTERS["least-outstanding-tokens"].build(ROUTERS["least-outstanding-tokens"].params()),
    )


def costs(entitlements: int, requests: int) -> tuple[float, float]:
    """Return the seconds of a decision and of a tick."""
    slots = 2 * entitlements
    core = core_of(entitlements, slots)
    core.start(0.0)
    views = [RequestView(f"r{i}", f"e{i % entitlements}", "t", 100, 100) for i in range(requests)]
    open_ids: list[str] = []
    began_s = time.process_time()
    for view in views:
        (said,) = core.handle(Arrived(view), 1.0)
        if isinstance(said, Forward):
            open_ids.append(said.request_id)
        elif len(open_ids) > slots // 2:
            core.handle(Finished(open_ids.pop(), 100), 1.0)
    decision_s = (time.process_time() - began_s) / requests
    began_s = time.process_time()
    core._policy.on_tick(core.pool, 6.0)
    return decision_s, time.process_time() - began_s


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entitlements", default="10,100,1000")
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    print(f"{'entitlements':>14}{'decision, us':>14}{'tick, ms':>14}")
    for count in (int(text) for text in options.entitlements.split(",")):
        found = [costs(count, options.requests) for _ in range(5)]
        decision_s, tick_s = min(each[0] for each in found), min(each[1] for each in found)
        print(f"{count:>14}{decision_s * 1e6:>14.1f}{tick_s * 1e3:>14.2f}")


if __name__ == "__main__":
    main()
