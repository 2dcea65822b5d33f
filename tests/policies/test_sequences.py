"""A request of several sequences takes several slots in every policy, and what can never be served is no demand."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.adaptive import Adaptive
from policies.api import (
    Arrived,
    Cancelled,
    CapacityChanged,
    EntitlementSpec,
    Finished,
    Forward,
    PoolCapacity,
    Refuse,
    RequestView,
    Resources,
    ServiceClass,
    Tick,
)
from policies.bands import Bands
from policies.cap import Cap
from policies.class_slots import ClassSlots
from policies.cohort import Cohort
from policies.core import GatewayCore
from policies.dedicated import Dedicated
from policies.fair_queue import FairQueue
from policies.invariants import CheckedCore, Checker
from policies.parts.saturation import InFlightShare
from policies.registry import POLICIES
from policies.routing import RoundRobinRouter
from policies.slo_feasible import SloFeasible
from policies.token_pool.params import TokenPool
from policies.token_pool.policy import TokenPoolPolicy

SPECS = [
    EntitlementSpec(name="a", tenant="a", service_class=ServiceClass.ELASTIC, ttft_slo_s=5.0,
                    baseline=Resources(slots=8)),
    EntitlementSpec(name="b", tenant="b", service_class=ServiceClass.SPOT),
]  # fmt: skip


def core_of(policy: Any, **more: Any) -> GatewayCore:
    return GatewayCore(
        entitlements=SPECS, capacity=PoolCapacity(1, 16), replica_ids=[0], policy=policy, router=RoundRobinRouter(),
        max_context_tokens=1000, **more,
    )


@pytest.mark.parametrize("params", [
    FairQueue(), Cap(max_in_flight_per_replica=None), ClassSlots(), Cohort(), Adaptive(), TokenPool(), SloFeasible(),
    Dedicated(max_in_flight_per_replica=16), Bands(), Bands(saturation=InFlightShare(requests_per_replica=16)),
], ids=lambda one: one.kind)  # fmt: skip
def test_no_more_sequences_than_slots_are_let_in_and_all_are_served(params: Any) -> None:
    built = POLICIES[params.kind].build(params, entitlements=SPECS, kv_bytes_per_token=None, chance=Random(1))
    core, found = core_of(built), []
    checked = CheckedCore(core, Checker(found.append))
    checked.start(0.0)
    running: list[str] = []
    served, now_s = 0, 0.0
    waiting = [f"r{n}" for n in range(12)]
    for _ in range(400):
        now_s += 0.5
        said: list[Any] = []
        if waiting:
            name = waiting.pop(0)
            view = RequestView(name, "a" if len(name) % 2 else "b", "t", 8, 8, sequences=5)
            said += checked.handle(Arrived(view), now_s)
            waiting += [one.request_id + "+" for one in said if isinstance(one, Refuse)]
        elif running:
            said += checked.handle(Finished(running.pop(0), 8), now_s)
        else:
            said += checked.handle(Tick(), now_s)
        begun = [one.request_id for one in said if isinstance(one, Forward)]
        running += begun
        served += len(begun)
        assert core.pool.all_in_flight == 5 * len(running) <= 16
        if len(running) == 3 and waiting:
            said = list(checked.handle(Finished(running.pop(0), 8), now_s))
            begun = [one.request_id for one in said if isinstance(one, Forward)]
            running += begun
            served += len(begun)
    assert not found
    assert served == 12
    assert not core.held


BOUNDED = [
    Cap(max_in_flight_per_replica=4), Cap(max_in_flight_per_replica=None), Bands(), Bands(ceilings="holdback"),
    Bands(ceilings="soft-reflective"), Bands(saturation=InFlightShare(requests_per_replica=4)), FairQueue(),
    FairQueue(occupancy=0.5), ClassSlots(), Cohort(), TokenPool(), SloFeasible(),
]  # fmt: skip
# Nobody is promised a slot, since a promise holds also where a replica is lost.
UNPROMISED = [replace(SPECS[0], baseline=Resources()), SPECS[1]]
SIZES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 24), st.integers(0, 3)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(params=st.sampled_from(BOUNDED), asked=SIZES, halved_at=st.integers(0, 40))
def test_whatever_the_sizes_slots_are_kept_and_whoever_fits_alone_is_served(
    params: Any, asked: list[tuple[str, int, int]], halved_at: int
) -> None:
    """Two replicas of 8 slots, of which one goes; what was let in before that may stay."""
    built = POLICIES[params.kind].build(params, entitlements=UNPROMISED, kv_bytes_per_token=None, chance=Random(1))
    core = GatewayCore(
        entitlements=UNPROMISED, capacity=PoolCapacity(2, 16), replica_ids=[0, 1], policy=built,
        router=RoundRobinRouter(),
    )
    core.start(0.0)
    sizes = {f"r{n}": sequences for n, (_, sequences, _) in enumerate(asked)}
    running: list[str] = []
    per_replica = 4 if (getattr(params, "max_in_flight_per_replica", None) or getattr(
        getattr(params, "saturation", None), "requests_per_replica", None)) else 8  # fmt: skip
    most, now_s = 2 * per_replica, 0.0

    def hear(event: Any) -> None:
        before = core.pool.all_in_flight
        for said in core.handle(event, now_s):
            if isinstance(said, Forward):
                running.append(said.request_id)
            elif isinstance(said, Refuse) and said.retry_after_s is None:
                assert sizes[said.request_id] > servable(params, per_replica)
        assert core.pool.all_in_flight <= max(most, before), params

    for step in range(200):
        now_s += 0.1
        if step == halved_at:
            most = per_replica
            hear(CapacityChanged(PoolCapacity(1, 8), (0,)))
        elif step < len(asked):
            name, sequences, ends = asked[step]
            hear(Arrived(RequestView(f"r{step}", name, name, 8, 8, sequences=sequences)))
            for _ in range(min(ends, len(running))):
                hear(Finished(running.pop(0), 8))
        elif running:
            hear(Finished(running.pop(0), 8))
        else:
            hear(Tick())
    assert not core.held
    assert not core.pool.all_in_flight


def servable(params: Any, per_replica: int) -> float:
    """Return up to how many sequences nothing may be refused for good, in a pool that had two replicas."""
    if getattr(params, "ceilings", "") == "holdback":
        return 0.7 * 2 * per_replica
    return getattr(params, "occupancy", 1.0) * 2 * per_replica


def token_pool(**more: Any) -> GatewayCore:
    return core_of(TokenPoolPolicy(TokenPool(**more), SPECS, kv_bytes_per_token=None, chance=Random(0)))


HOPELESS = st.sampled_from([
    RequestView("", "b", "b", 10, 2**31 - 1), RequestView("", "b", "b", 2000, 1),
    RequestView("", "b", "b", 10, 10, sequences=4000), RequestView("", "b", "b", 10, 10, sequences=17),
    RequestView("", "b", "b", 10, 5000, context_tokens=5010),
])  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(hopeless=st.lists(HOPELESS, min_size=1, max_size=30), real=st.integers(0, 5))
def test_nobody_gains_by_asking_for_what_can_never_be_served(hopeless: list[RequestView], real: int) -> None:
    honest, loud = token_pool(), token_pool()
    refused_by_engine = 0
    for core, asks in ((honest, []), (loud, hopeless)):
        core.start(0.0)
        for n in range(real):
            core.handle(Arrived(RequestView(f"b{n}", "b", "b", 50, 50)), 1.0)
            core.handle(Arrived(RequestView(f"a{n}", "a", "a", 50, 50)), 1.0)
        for n, view in enumerate(asks):
            said = core.handle(Arrived(view._replace(request_id=f"x{n}")), 1.0)
            if isinstance(said[-1], Forward):  # the core does not know, so the engine says it
                core.handle(Cancelled(f"x{n}", 0, refused=True), 1.0)
                refused_by_engine += 1
        core.handle(Tick(), 5.0)
    ledgers = [(core.pool.entitlements["b"].demanded_tokens, core.pool.entitlements["b"].demanded_requests)
               for core in (honest, loud)]
    assert ledgers[0] == ledgers[1]
    assert honest.policy.demand_of("b") == loud.policy.demand_of("b")  # type: ignore[attr-defined]
    assert honest.policy.granted_of("a") == loud.policy.granted_of("a")  # type: ignore[attr-defined]


def test_what_a_replica_refuses_was_no_demand_even_after_it_was_metered() -> None:
    core = token_pool()
    core.start(0.0)
    core.handle(Arrived(RequestView("x", "b", "b", 50, 500, context_tokens=1)), 1.0)
    assert core.pool.entitlements["b"].demanded_tokens == 550
    core.handle(Tick(), 5.0)
    core.handle(Cancelled("x", 0, refused=True), 6.0)
    assert core.pool.entitlements["b"].demanded_tokens == core.pool.entitlements["b"].demanded_requests == 0
    core.handle(Tick(), 10.0)
    assert min(core.policy.demand_of("b")) >= 0  # type: ignore[attr-defined]


def test_a_prompt_that_was_begun_is_work_although_nobody_waited_for_it() -> None:
    core = token_pool()
    core.start(0.0)
    for name, begun in (("x", True), ("y", False)):
        core.handle(Arrived(RequestView(name, "b", "b", 50, 50)), 1.0)
        core.handle(Cancelled(name, 0, prompt_begun=begun), 2.0)
    assert core.pool.entitlements["b"].worked_tokens == 50


def test_who_is_refused_anyway_is_known_before_anybody_counts() -> None:
    spec = EntitlementSpec(name="a", tenant="a", service_class=ServiceClass.SPOT, limit=Resources(slots=1))
    core = GatewayCore(
        entitlements=[spec], capacity=PoolCapacity(1, 16), replica_ids=[0], router=RoundRobinRouter(),
        policy=TokenPoolPolicy(TokenPool(), [spec], kv_bytes_per_token=None, chance=Random(0)),
    )
    core.start(0.0)
    assert not core.refuses_any("a", 1, 0.0)
    assert core.refuses_any("a", 2, 0.0)
    core.handle(Arrived(RequestView("x", "a", "a", 5, 5)), 0.0)
    assert core.refuses_any("a", 1, 0.0)


def test_a_request_that_no_bucket_was_charged_for_gives_nothing_to_one() -> None:
    """An allocation may bring a bucket while a request runs that was let in without one."""
    core = token_pool()
    core.start(0.0)
    core.handle(Arrived(RequestView("x", "b", "b", 50, 500)), 1.0)
    account = core.policy._accounts["b"]  # type: ignore[attr-defined]
    from policies.meters import ContinuousBucket

    account.bucket = ContinuousBucket(rate_per_s=1.0, depth=1000.0)
    account.bucket.reserve(900, 1.0)
    core.handle(Finished("x", 1), 1.0)
    assert account.bucket.available(1.0) == 100
