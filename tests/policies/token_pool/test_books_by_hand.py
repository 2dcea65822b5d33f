"""Books, bounds and what goes from one token pool to the next, in numbers that were worked out on paper."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from parity.tiny_world import spec

from policies.api import (
    Arrived,
    Finished,
    Forward,
    PoolCapacity,
    Reason,
    RequestView,
    Resources,
    ServiceClass,
    Tick,
)
from policies.core import GatewayCore
from policies.handover import hand_over
from policies.routing import RoundRobinRouter
from policies.token_pool.params import TokenPool
from policies.token_pool.policy import TokenPoolPolicy

D, G, E, S, P = ServiceClass


class Chance:
    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


def policy_of(params: TokenPool, *specs: Any, per_token: float | None = None, chance: Any = None) -> TokenPoolPolicy:
    return TokenPoolPolicy(params, specs, kv_bytes_per_token=per_token, chance=chance or random.Random(0))


def core_of(policy: TokenPoolPolicy, *specs: Any, slots: int = 4, **more: Any) -> GatewayCore:
    made = GatewayCore(
        entitlements=specs, capacity=PoolCapacity(1, slots, **more), replica_ids=[0], policy=policy,
        router=RoundRobinRouter(),
    )  # fmt: skip
    made.start(0.0)
    return made


@pytest.mark.parametrize(("drawn", "told_s"), [(0.0, 8.0), (0.5, 10.0), (0.875, 12.0)])
def test_retry_after_varies_by_a_fifth_up_and_down(drawn: float, told_s: float) -> None:
    specs = spec("g", G, 4), spec("s", S)
    core = core_of(policy_of(TokenPool(mode="paper"), *specs, chance=Chance(drawn)), *specs)
    for k in range(4):
        core.handle(Arrived(RequestView(f"g{k}", "g", "t", 10, 20)), 0.0)
    core.handle(Finished("g0", 20), 40.0)  # the mean service time is 40 s
    core.handle(Arrived(RequestView("g4", "g", "t", 10, 20)), 40.0)
    said = core.handle(Arrived(RequestView("s1", "s", "t", 10, 20)), 40.0)[-1]
    assert said.reason is Reason.LOW_PRIORITY  # type: ignore[union-attr]
    assert said.retry_after_s == told_s  # type: ignore[union-attr]  # 40 s * 1 / 4, times 0.8, 1 and 1.15


def test_retry_after_is_from_one_to_thirty_seconds() -> None:
    policy = policy_of(TokenPool(retry_jitter=0.0), spec("s", S))
    assert [policy._retry_s(wait_s) for wait_s in (0.0, 0.2, 1.0, 1.1, 29.5, 30.0, 31.0, 1e9)] == [
        1, 1, 1, 2, 30, 30, 30, 30,
    ]  # fmt: skip


def test_where_nobody_knows_what_a_token_takes_a_limit_on_kv_cache_limits_nothing() -> None:
    one = spec("s", S, limit=Resources(None, 1.0, None))  # a byte
    core = core_of(policy_of(TokenPool(), one), one)
    assert isinstance(core.handle(Arrived(RequestView("s1", "s", "t", 10, 20)), 0.0)[-1], Forward)
    core = core_of(policy_of(TokenPool(), one, per_token=2.0), one, kv_bytes=1e9)
    said = core.handle(Arrived(RequestView("s1", "s", "t", 10, 20)), 0.0)[-1]
    assert (said.reason, said.needed, said.available) == (Reason.TOO_LARGE, 60.0, 1.0)  # type: ignore[union-attr]


def test_weights_are_those_of_inherited_debts_from_the_first_moment() -> None:
    specs = spec("e", E, 2, rate=100.0), spec("s", S)
    old = core_of(policy_of(TokenPool(tick_s=1.0), *specs), *specs)
    old.handle(Arrived(RequestView("e0", "e", "t", 10, 20)), 0.1)
    for second in range(1, 6):
        old.handle(Tick(), float(second))
    before = old.policy._accounts["e"]  # type: ignore[attr-defined]
    assert before.debt > 0.02
    policy = policy_of(TokenPool(tick_s=1.0), *specs)
    new = GatewayCore(
        entitlements=specs, capacity=PoolCapacity(1, 4), replica_ids=[0], policy=policy, router=RoundRobinRouter()
    )
    hand_over(old, new, PoolCapacity(1, 4), 5.5)
    after = policy._accounts["e"]
    assert (after.debt, after.burst, after.gap) == (before.debt, before.burst, before.gap)
    assert after.weight == pytest.approx(before.weight)
    assert before.weight > 1.05 * policy_of(TokenPool(tick_s=1.0), *specs)._accounts["e"].weight  # without a debt
    shown = {g.name: g.value for g in new.gauges(5.5) if g.metric == "weight"}
    assert shown["e"] == pytest.approx(before.weight)


def test_an_audit_finds_what_is_in_one_book_only() -> None:
    specs = spec("p", P), spec("d", D, 2), spec("s", S)
    policy = policy_of(TokenPool(), *specs)
    core = core_of(policy, *specs, slots=8)
    core.handle(Arrived(RequestView("p0", "p", "t", 10, 20)), 0.0)
    core.handle(Arrived(RequestView("s0", "s", "t", 10, 20)), 0.0)
    assert list(policy.faults(core.pool, {})) == []
    policy._preemptible["ghost"] = core.pool.in_flight["s0"]
    policy._reserved_tokens += 3
    policy._idle_dedicated += 1.5
    assert list(policy.faults(core.pool, {})) == [
        "63 tokens are reserved, requests in flight reserve 60",
        "['ghost'] are preemptible in one of the books only",
        "3.5 dedicated slots are idle, by entitlement 2.0",
    ]


BOUNDS = {
    "debt_factor_floor": {"gt": 0, "le": 1}, "tick_s": {"gt": 0}, "mean_slo_s": {"gt": 0}, "alpha_slo": {"ge": 0},
    "alpha_burst": {"ge": 0}, "alpha_debt": {"ge": 0}, "gamma_debt": {"ge": 0, "lt": 1}, "equalise": {"ge": 0},
    "gamma_burst": {"ge": 0, "lt": 1}, "gamma_demand": {"ge": 0, "lt": 1}, "demand_margin": {"ge": 0},
    "overcommit": {"gt": 0}, "bucket_s": {"gt": 0}, "max_request_tokens": {"ge": 1},
    "retry_jitter": {"ge": 0, "le": 1},
}  # fmt: skip
"""By what each means: shares from 0 to 1 (what a tick keeps is less than all of it), times and amounts above 0."""


def test_parameters_have_the_bounds_of_what_they_mean() -> None:
    found = {
        one.name: bounds for one in dataclasses.fields(TokenPool)
        if (bounds := {key: one.metadata[key] for key in ("gt", "ge", "lt", "le") if key in one.metadata})
    }  # fmt: skip
    assert found == BOUNDS


def test_an_account_begins_without_debt_burst_or_work() -> None:
    policy = policy_of(TokenPool(), spec("e", E, 2), spec("s", S))
    for name in "es":
        account = policy._accounts[name]
        assert (account.debt, account.burst, account.gap, account.lift) == (0.0, 0.0, 0.0, 0.0)
        assert (account.completed_tokens, account.released_tokens) == (0, 0)


def test_what_a_request_reserved_and_did_not_use_goes_back_to_its_bucket() -> None:
    one = spec("s", S, limit=Resources(100.0, None, None))
    policy = policy_of(TokenPool(mode="paper", max_request_tokens=500), one)
    core = core_of(policy, one, slots=9)
    bucket = policy._accounts["s"].bucket
    assert bucket is not None
    assert (bucket.depth, bucket.available(0.0)) == (1000.0, 1000.0)  # ten seconds of 100 a second
    core.handle(Arrived(RequestView("s0", "s", "t", 300, 500)), 0.0)
    assert bucket.available(0.0) == 200.0
    core.handle(Finished("s0", 50), 1.0)  # 100 came in, and of 800 only 350 were used
    assert bucket.available(1.0) == 200 + 100 + 450


def test_a_part_of_a_bucket_that_had_none_is_that_part_of_the_whole_rate() -> None:
    one = spec("s", S, limit=Resources(100.0, None, 7.0))
    policy = policy_of(TokenPool(mode="paper", max_request_tokens=500), one)
    core = core_of(policy, one, slots=9)
    bucket = policy._accounts["s"].bucket
    assert bucket is not None
    rates = []
    for part in (0.5, 0.0, 0.25, 1.0):
        policy.on_parts({"s": part}, core.pool, 1.0)
        rates.append((bucket.rate_per_s, bucket.depth))
    assert rates == [(50.0, 500.0), (0.0, 500.0), (25.0, 500.0), (100.0, 1000.0)]
