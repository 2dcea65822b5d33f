"""Token pools in numbers that were worked out on paper: what a slipped sign or a forgotten credit would change."""

from __future__ import annotations

import math
from typing import Any

import pytest
from parity.tiny_world import make_core, spec

from policies.api import (
    Arrived,
    CapacityChanged,
    EntitlementSpec,
    Finished,
    FirstToken,
    Forward,
    Margin,
    PoolCapacity,
    Progress,
    Reason,
    Refuse,
    RequestView,
    Resources,
    ServiceClass,
    Tick,
)
from policies.core import GatewayCore
from policies.token_pool.params import TokenPool

D, G, E, S, P = ServiceClass


class Gate:
    def __init__(self, params: TokenPool, *specs: EntitlementSpec, **pool: Any) -> None:
        self.core: GatewayCore = make_core(params, specs, **pool)
        self.core.start(0.0)
        self.policy: Any = self.core.policy

    def ask(self, request_id: str, now_s: float = 0.0, prompt: int = 10, most: int = 20) -> Any:
        """A request's entitlement is the first letter of its name."""
        return self.core.handle(Arrived(RequestView(request_id, request_id[0], "t", prompt, most)), now_s)[-1]

    def end(self, request_id: str, now_s: float, output: int) -> None:
        self.core.handle(FirstToken(request_id), now_s)
        self.core.handle(Finished(request_id, output), now_s)

    def tick(self, now_s: float) -> None:
        self.core.handle(Tick(), now_s)

    def shown(self, metric: str) -> dict[str, float]:
        return {each.name: each.value for each in self.core.gauges(0.0) if each.metric == metric}


def test_demand_is_what_is_asked_for_times_the_share_that_was_used_before() -> None:
    gate = Gate(TokenPool(), spec("e", E, rate=50.0), slots=100, tokens_per_s=1000.0)
    gate.ask("e1", 0.0, 10, 90)
    gate.end("e1", 1.0, 10)  # 20 of the 100 reserved were used: a fifth
    for k in range(2, 6):
        gate.ask(f"e{k}", 2.0, 10, 90)
    gate.tick(5.0)
    # Asked for in 5 s: 500 tokens, 100 a second; a fifth turns into work: 20. Half of the old demand (0) stays.
    # Requests: 1 a second for 1 s each, 1; half of it is 0.5, but four are in flight.
    tokens_per_s, _, slots = gate.policy.demand_of("e")
    assert tokens_per_s == pytest.approx(0.5 * 20)
    assert slots == 4
    for k in range(2, 6):
        gate.end(f"e{k}", 6.0, 10)
    # 4 s of service weigh a tenth against the first 1 s: 1 + 0.1 * 3 = 1.3, 1.57, 1.813, 2.0317.
    gate.ask("e6", 7.0, 10, 90)
    gate.tick(10.0)
    # Work: 80 tokens in 5 s, 16 a second. Asked for: a fifth of 20 a second is 4: 0.5 * 10 + 0.5 * 4 = 7 < 16.
    tokens_per_s, _, slots = gate.policy.demand_of("e")
    assert tokens_per_s == pytest.approx(16)
    # 0.2 requests a second for 2.0317 s, and half of the 4 before.
    assert slots == pytest.approx(0.5 * 4 + 0.5 * 0.2 * 2.0317)


def test_an_allocated_bucket_is_as_deep_as_ten_seconds_and_as_the_largest_request() -> None:
    for largest, depth in ((30, 400.0), (4096, 4096.0)):
        gate = Gate(TokenPool(max_request_tokens=largest), spec("e", E), slots=50, tokens_per_s=40.0)
        assert gate.core.allowance("e", 0.0).tokens == Margin(depth, depth, 0.0)
        gate.ask("e1", 0.0, 10, 20)
        assert gate.core.allowance("e", 0.0).tokens == Margin(depth, depth - 30, 30 / 40)
    gate = Gate(TokenPool(mode="paper", max_request_tokens=30), spec("g", G, rate=12.0), slots=50)
    assert gate.core.allowance("g", 0.0).tokens == Margin(120.0, 120.0, 0.0)


def test_a_request_enters_a_pool_whose_kv_cache_it_fills_exactly_and_no_larger_one() -> None:
    gate = Gate(TokenPool(kv_check=False), spec("e", E), slots=50, kv_bytes=1000.0, kv_bytes_per_token=10.0)
    assert isinstance(gate.ask("e1", 0.0, 10, 60), Forward)  # 70 of 100 tokens
    refused = gate.ask("e2", 0.0, 10, 21)  # one too many
    assert isinstance(refused, Refuse)
    assert (refused.reason, refused.status, refused.needed, refused.available) == (Reason.POOL_FULL, 429, 31, 30)
    assert isinstance(gate.ask("e3", 0.0, 10, 20), Forward)


def test_a_pool_that_loses_kv_cache_takes_back_as_little_as_it_must() -> None:
    gate = Gate(TokenPool(), spec("e", E), spec("p", P), slots=50, kv_bytes=1000.0, kv_bytes_per_token=10.0)
    for name in ("e1", "p1", "p2", "p3"):
        assert isinstance(gate.ask(name, 0.0, 5, 15), Forward)  # 80 of 100 tokens
    said = gate.core.handle(CapacityChanged(PoolCapacity(1, 50, None, 500.0), (0,)), 1.0)
    # 30 over: the youngest two (40) go, one (20) would not do.
    assert [step.request_id for step in said if hasattr(step, "reason")] == ["p3", "p2"]
    assert not gate.core.handle(CapacityChanged(PoolCapacity(1, 50, None, 400.0), (0,)), 2.0)  # 40 of 40 fit


def test_a_pool_that_loses_slots_takes_back_as_many_as_it_must() -> None:
    gate = Gate(TokenPool(), spec("d", D, 2), spec("p", P), slots=8)
    for name in ("p1", "p2", "p3", "p4"):
        assert isinstance(gate.ask(name), Forward)
    # 5 slots less the 2 idle ones of d leave 3.
    said = gate.core.handle(CapacityChanged(PoolCapacity(1, 5), (0,)), 1.0)
    assert [step.request_id for step in said if hasattr(step, "reason")] == ["p4"]
    assert isinstance(gate.ask("d1", 2.0), Forward)
    assert gate.shown("in_flight")["p"] == 3


def test_the_equaliser_lifts_who_gets_less_than_the_mean_and_lowers_who_gets_more() -> None:
    params = TokenPool(mode="paper", equalise=0.3, alpha_debt=0.0, alpha_burst=0.0)
    gate = Gate(params, spec("a", E, rate=10.0), spec("b", E, rate=10.0), spec("g", G, 4, rate=10.0), slots=50)
    gate.ask("a1", 0.0, 10, 100)
    gate.ask("b1", 0.0, 10, 100)
    gate.core.handle(Progress("a1", 10), 5.0)  # 20 tokens in 5 s, 4 a second of 10: a gap of 0.6
    gate.core.handle(Progress("b1", 30), 5.0)  # 40 tokens: 0.2
    gate.tick(5.0)
    # The mean is 0.4: a is lifted by 0.3 * 0.2, b lowered by as much; without objectives the plain weight is 100 / 3.
    assert gate.shown("weight")["a"] == pytest.approx(100 / 3 * math.exp(0.06))
    assert gate.shown("weight")["b"] == pytest.approx(100 / 3 * math.exp(-0.06))
    assert gate.shown("weight")["g"] == pytest.approx(1000 / 3)
    gate.core.handle(Progress("a1", 80), 10.0)  # 70 tokens in 5 s: a surplus, which counts as a gap of nothing
    gate.tick(10.0)  # b: nothing in 5 s, a gap of 1; the mean is 0.5
    assert gate.shown("weight")["a"] == pytest.approx(100 / 3 * math.exp(0.98 * 0.06 - 0.15))
    assert gate.shown("weight")["b"] == pytest.approx(100 / 3 * math.exp(-0.98 * 0.06 + 0.15))


def test_a_lift_is_at_most_a_factor_of_twenty() -> None:
    params = TokenPool(mode="paper", equalise=10.0, alpha_debt=0.0, alpha_burst=0.0)
    gate = Gate(params, spec("a", E, rate=10.0), spec("b", E, rate=10.0), slots=50)
    gate.ask("b1", 0.0, 10, 100)
    gate.core.handle(Progress("b1", 90), 5.0)  # b has no gap, a has 1: 10 * 0.5 is more than log 20
    gate.tick(5.0)
    assert gate.shown("weight") == pytest.approx({"a": 100 / 3 * 20, "b": 100 / 3 / 20})


def test_burst_adds_up_what_is_above_the_promise_in_each_of_three_resources() -> None:
    entitlement = EntitlementSpec(
        name="e", tenant="t", service_class=E, baseline=Resources(10.0, 1000.0, 2), limit=Resources(None, None, None)
    )
    gate = Gate(TokenPool(mode="paper"), entitlement, slots=50, kv_bytes=1e6, kv_bytes_per_token=10.0)
    for k in range(5):
        gate.ask(f"e{k}", 0.0, 10, 30)
    for k in range(5):
        gate.core.handle(Progress(f"e{k}", 10), 5.0)
    gate.tick(5.0)
    # 100 tokens in 5 s: 20 of 10, excess 1. 200 tokens of cache: 2000 of 1000 bytes, 1. 5 of 2 slots: 1.5.
    assert gate.shown("burst")["e"] == pytest.approx(0.3 * 3.5)
    assert gate.shown("debt")["e"] == pytest.approx(0.3 * -1.0)


def test_what_each_check_needed_and_found() -> None:
    limited = EntitlementSpec(
        name="e", tenant="t", service_class=E, limit=Resources(3.0, 400.0, 3), baseline=Resources(None, None, None)
    )
    gate = Gate(TokenPool(mode="paper", kv_check=True, max_request_tokens=35), limited, spec("s", S), slots=3,
                kv_bytes=1e6, kv_bytes_per_token=10.0)  # fmt: skip
    never = gate.ask("e0", 0.0, 10, 26)  # the bucket holds max(30, 35)
    assert (never.reason, never.needed, never.available, never.retry_after_s) == (Reason.TOO_LARGE, 36, 35, None)
    assert isinstance(gate.ask("e1", 0.0, 10, 15), Forward)
    later = gate.ask("e2", 0.0, 10, 15)  # 10 of 25 are there
    assert (later.reason, later.needed, later.available) == (Reason.TOKENS, 25, 10)
    assert 4 <= later.retry_after_s <= 6  # 15 tokens at 3 a second, a fifth up or down
    stuck = gate.ask("e3", 9.0, 10, 10)  # 25 + 20 tokens are 450 of 400 bytes
    assert (stuck.reason, stuck.needed, stuck.available) == (Reason.KV_CACHE, 200, 150)
    assert isinstance(gate.ask("e4", 9.0, 10, 5), Forward)
    assert isinstance(gate.ask("s1", 9.0), Forward)
    low = gate.ask("s2", 9.0)  # the pool is full, and one of its own is the least
    assert (low.reason, low.status, low.needed, low.available) == (Reason.LOW_PRIORITY, 429, 1 / 3, 1 / 3)


def test_a_dedicated_entitlement_that_uses_its_slots_holds_none_idle() -> None:
    gate = Gate(TokenPool(mode="paper"), spec("d", D, 2), spec("s", S), slots=4)
    assert [type(gate.ask(name)) for name in ("s1", "s2", "s3")] == [Forward, Forward, Refuse]  # 4 - 2 idle
    assert [type(gate.ask(name)) for name in ("d1", "d2")] == [Forward, Forward]
    gate.end("s1", 1.0, 5)
    # One place is free and d holds none idle any more: contended at 3 of 4? No.
    assert isinstance(gate.ask("s4", 1.0), Forward)
    gate.end("d1", 2.0, 5)
    assert isinstance(gate.ask("s5", 2.0), Refuse)  # the free place is d's again


def test_the_place_of_an_ended_request_counts_for_nobody() -> None:
    gate = Gate(TokenPool(mode="paper", weight_at="admission"), spec("e", E, ttft_slo_s=1.0), spec("s", S), slots=2)
    gate.ask("s1")
    gate.ask("e1")
    assert gate.shown("threshold")["pool"] == pytest.approx(1 / 3)
    gate.end("s1", 1.0, 5)
    assert gate.shown("threshold")["pool"] == pytest.approx(100 / (1 + 2 / 15.25))
    gate.end("e1", 1.0, 5)
    assert "pool" not in gate.shown("threshold")


def test_retry_after_contention_grows_with_the_excess() -> None:
    params = TokenPool(mode="paper", retry_jitter=0.0)
    gate = Gate(params, spec("g", G, 4), spec("s", S), slots=4)
    for k in range(4):
        gate.ask(f"g{k}", 0.0)
    gate.end("g0", 40.0, 20)  # the mean service time is 40 s
    gate.ask("g4", 40.0)
    refused = gate.ask("s1", 40.0)  # one more than 4: 40 s * 1 / 4
    assert (refused.reason, refused.retry_after_s) == (Reason.LOW_PRIORITY, 10.0)
    over = gate.ask("g5", 40.0)  # its limit is its baseline: 40 / 4
    assert (over.reason, over.needed, over.available, over.retry_after_s) == (Reason.CONCURRENCY, 5, 4, 10.0)
