from __future__ import annotations

import pytest
from parity.tiny_world import Ask, TinyWorld, make_core

from policies.api import (
    Allowance,
    Arrived,
    EntitlementSpec,
    Finished,
    Forward,
    Instruction,
    Margin,
    Reason,
    Refuse,
    RequestView,
    ServiceClass,
)
from policies.core import GatewayCore
from policies.rate_limit import Limits, RateLimit

A = EntitlementSpec(name="a", tenant="t", service_class=ServiceClass.SPOT)
B = EntitlementSpec(name="b", tenant="t", service_class=ServiceClass.SPOT)


class Caller:
    def __init__(self, params: RateLimit) -> None:
        self.core: GatewayCore = make_core(params, [A, B])
        self.core.start(0.0)
        self.sent = 0

    def __call__(self, now_s: float, entitlement: str = "a", prompt: int = 10, most: int = 20) -> Instruction:
        self.sent += 1
        (one,) = self.core.handle(Arrived(RequestView(f"r{self.sent}", entitlement, "t", prompt, most)), now_s)
        return one


def let_in(*instructions: Instruction) -> list[bool]:
    return [isinstance(each, Forward) for each in instructions]


def test_requests_through_a_bucket_by_hand() -> None:
    call = Caller(RateLimit(requests_per_min=6, burst_s=20))  # one every 10 s, two at once
    assert let_in(call(0), call(0), call(0, "b")) == [True, True, True]
    assert call(1) == Refuse("r4", Reason.REQUESTS, 429, 9.0, 1, pytest.approx(0.1))
    assert call(9.5).retry_after_s == 1.0  # type: ignore[union-attr]
    assert let_in(call(10), call(10), call(29.9), call(30), call(30)) == [True, False, True, True, False]


def test_requests_through_a_window_by_hand() -> None:
    call = Caller(RateLimit(requests_per_min=2, window="sliding"))
    assert let_in(call(0), call(20), call(30)) == [True, True, False]
    assert call(45.5) == Refuse("r4", Reason.REQUESTS, 429, 15.0, 1, 0)  # 14.5 s, in whole seconds
    assert let_in(call(60), call(60), call(80), call(119.9), call(120)) == [True, False, True, False, True]


@pytest.mark.parametrize("window", ["continuous", "sliding"])
def test_tokens_are_reserved_and_settled(window: str) -> None:
    call = Caller(RateLimit(tokens_per_min=60, window=window))  # type: ignore[arg-type]
    assert let_in(call(0, most=40)) == [True]  # 50 of 60
    refusal = call(0)
    assert refusal == Refuse("r2", Reason.TOKENS, 429, 20.0 if window == "continuous" else 60.0, 30, 10)
    call.core.handle(Finished("r1", 5), 1.0)  # 15 used: 35 come back
    assert let_in(call(1), call(1)) == [True, False]
    call.core.handle(Finished("r3", 5), 1.0)
    assert not call.core._policy._charges  # type: ignore[attr-defined]
    assert call(1, most=51) == Refuse("r5", Reason.TOO_LARGE, 429, None, 61, 60)


@pytest.mark.parametrize("window", ["continuous", "sliding"])
def test_a_prompt_that_was_estimated_too_large_comes_back(window: str) -> None:
    call = Caller(RateLimit(tokens_per_min=60, window=window))  # type: ignore[arg-type]
    assert let_in(call(0, most=40)) == [True]  # 50 of 60
    call.core.handle(Finished("r1", 5, prompt_tokens=2), 0.0)  # 7 used: 43 come back
    assert call(0, most=44) == Refuse("r2", Reason.TOKENS, 429, 1.0 if window == "continuous" else 60.0, 54, 53)


def test_each_entitlement_has_its_own_limits() -> None:
    call = Caller(RateLimit(requests_per_min=1, per_entitlement={"b": Limits(requests_per_min=3, tokens_per_min=1000)}))
    assert let_in(*(call(0, name) for name in "aabbbb")) == [True, False, True, True, True, False]
    shown = [(each.name, each.value) for each in call.core.gauges(0) if each.metric == "limit_tokens_per_s"]
    assert shown == [("b", pytest.approx(1000 / 60))]
    with pytest.raises(ValueError, match=r"names 'c', which is no entitlement; give one of \['a', 'b'\]"):
        make_core(RateLimit(per_entitlement={"c": Limits()}), [A, B])
    with pytest.raises(ValueError, match="limits nothing; give requests_per_min"):
        RateLimit()


def test_a_rate_below_one_per_bucket_still_lets_one_in() -> None:
    call = Caller(RateLimit(requests_per_min=0.5, burst_s=1))
    assert let_in(call(0), call(119), call(120)) == [True, False, True]


def noisy() -> list[Ask]:
    steady = [Ask(2.0 * k, "a", 32) for k in range(30)]
    return sorted(steady + [Ask(0.1 * k, "b", 32) for k in range(600)], key=lambda ask: ask.at_s)


def test_it_keeps_a_noisy_neighbour_from_the_others() -> None:
    limited = TinyWorld(make_core(RateLimit(requests_per_min=60, burst_s=5), [A, B], slots=4), noisy())
    free = TinyWorld(make_core(RateLimit(requests_per_min=6000), [A, B], slots=4), noisy())
    limited.run(100)
    free.run(100)
    assert limited.refusals("a") == free.refusals("a") == 0
    assert limited.waits_s("a")[-1] < 3 < free.waits_s("a")[-1]


def test_it_loses_where_capacity_is_free_or_shrinks() -> None:
    alone = [Ask(0.5 * k, "b", 16) for k in range(120)]
    idle = TinyWorld(make_core(RateLimit(requests_per_min=60, burst_s=5), [A, B], slots=16), alone)
    idle.run(100)
    assert idle.refusals("b") > 40  # with nobody else there
    assert idle.peak_queue == 0
    longer = [Ask(0.5 * k, "b", 32) for k in range(120)]
    shrunk = TinyWorld(make_core(RateLimit(requests_per_min=60, burst_s=5), [A, B], slots=4), longer, [(10, 1)])
    shrunk.run(100)
    assert shrunk.peak_queue > 20  # from 10 s on one a second comes in and one in 2.2 s is served


@pytest.mark.parametrize("window", ["continuous", "sliding"])
def test_a_client_can_be_told_what_is_left_to_it(window: str) -> None:
    call = Caller(RateLimit(requests_per_min=2, tokens_per_min=60, window=window))  # type: ignore[arg-type]
    assert let_in(call(0, most=20)) == [True]  # 30 of 60
    reset_s = 30.0 if window == "continuous" else 60.0
    assert call.core.allowance("a", 0.0) == Allowance(Margin(2, 1, reset_s), Margin(60, 30, reset_s))
    assert call.core.allowance("b", 0.0) == Allowance(Margin(2, 2, 0.0), Margin(60, 60, 0.0))
