from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity.tiny_world import Ask, TinyWorld, make_core, spec

from policies.api import (
    Arrived,
    CapacityChanged,
    EntitlementSpec,
    Evict,
    Failed,
    Finished,
    Forward,
    Instruction,
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
from policies.token_pool.params import MODES, Rules, TokenPool
from policies.token_pool.threshold import FrozenFloor, LiveFloor

ELASTIC, GUARANTEED, SPOT = ServiceClass.ELASTIC, ServiceClass.GUARANTEED, ServiceClass.SPOT


G = spec("g", GUARANTEED, 2)
E = spec("e", ELASTIC, 2, ttft_slo_s=1.0)
S = spec("s", SPOT)
P = spec("p", ServiceClass.PREEMPTIBLE)
D = spec("d", ServiceClass.DEDICATED, 2)


class Gate:
    def __init__(self, params: TokenPool, *specs: EntitlementSpec, **pool: Any) -> None:
        self.core = make_core(params, specs, **pool)
        self.core.start(0.0)
        self.sent = 0

    def __call__(
        self, entitlement: str, now_s: float = 0.0, prompt: int = 10, most: int = 20
    ) -> tuple[Instruction, ...]:
        self.sent += 1
        view = RequestView(f"{entitlement}{self.sent}", entitlement, "t", prompt, most)
        return tuple(self.core.handle(Arrived(view), now_s))

    def fill(self, names: str) -> None:
        for name in names:
            assert isinstance(self(name)[-1], Forward), name

    def reason(self, name: str, now_s: float = 0.0) -> Reason | None:
        last = self(name, now_s)[-1]
        return last.reason if isinstance(last, Refuse) else None

    def shown(self, metric: str) -> dict[str, float]:
        return {each.name: each.value for each in self.core.gauges(0.0) if each.metric == metric}


def test_rows_left_out_come_from_the_mode() -> None:
    assert {*MODES["paper"]} == {*MODES["robust"]} < {*Rules.__slots__}
    assert TokenPool(mode="paper").resolved().full_pool == "admit"
    assert TokenPool(mode="robust").resolved().full_pool == "free-or-evict"
    mixed = TokenPool(mode="robust", full_pool="admit", tick_s=1.0, exempt_guaranteed=False).resolved()
    assert (mixed.full_pool, mixed.tick_s, mixed.exempt_guaranteed, mixed.order) == ("admit", 1.0, False, "class")


def test_concurrency_is_checked_first_against_limit_or_baseline() -> None:
    limited = spec("l", ELASTIC, 2, limit=Resources(1.0, None, 3))
    gate = Gate(TokenPool(mode="paper"), G, limited, S)
    gate.fill("ggl")
    (refusal,) = gate("g")
    assert (refusal.reason, refusal.needed, refusal.available, refusal.retry_after_s) == (Reason.CONCURRENCY, 3, 2, 1)  # type: ignore[union-attr]
    gate.fill("llssss")
    assert gate.reason("l") is Reason.CONCURRENCY
    literal = Gate(TokenPool(mode="paper", concurrency_check="baseline"), G, limited)
    literal.fill("ll")
    assert literal.reason("l") is Reason.CONCURRENCY


def test_tokens_are_a_bucket_of_ten_seconds_and_never_below_one_request() -> None:
    limited = spec("e", ELASTIC, limit=Resources(10.0))
    gate = Gate(TokenPool(mode="paper", max_request_tokens=40, retry_jitter=0.0), limited)
    gate.fill("eee")  # 90 of 100
    assert gate("e", 0.0) == (Refuse("e4", Reason.TOKENS, 429, 2.0, 30, 10),)
    assert gate("e", 0.0, most=200) == (Refuse("e5", Reason.TOO_LARGE, 429, None, 210, 100),)
    gate.core.handle(Finished("e1", 5), 0.0)  # 15 used: 15 come back
    gate.core.handle(Failed("e2", 0), 0.0)  # nothing came of it
    assert gate("e", 0.0, most=45) == (Forward("e6", 0, 45),)
    deep = Gate(TokenPool(mode="paper"), spec("e", ELASTIC, limit=Resources(10.0)))
    assert isinstance(deep("e", most=4000)[0], Forward)


def test_guaranteed_rates_are_limits_and_elastic_ones_are_not() -> None:
    params = TokenPool(mode="paper", max_request_tokens=1)
    gate = Gate(params, spec("g", GUARANTEED, rate=5.0), spec("e", ELASTIC, rate=5.0))
    gate.fill("geeee")
    assert gate.reason("g") is Reason.TOKENS
    assert gate.shown("limit_tokens_per_s") == {"g": 5.0}


def test_who_is_not_above_the_least_in_flight_is_refused_once_the_pool_is_full() -> None:
    gate = Gate(TokenPool(mode="paper"), G, E, S, slots=3)
    gate.fill("sse")
    (refusal,) = gate("s")
    assert (refusal.reason, refusal.needed, refusal.available) == (Reason.LOW_PRIORITY, 1 / 3, 1 / 3)  # type: ignore[union-attr]
    gate.fill("eg")  # above: into a full pool, as the paper has it
    for number, name in enumerate("ss", 1):
        gate.core.handle(Finished(f"{name}{number}", 1), 1.0)
    assert gate.reason("e", 1.0) is Reason.LOW_PRIORITY  # 3 in flight, the least of them its own
    assert gate.reason("g", 1.0) is None
    inclusive = Gate(TokenPool(mode="paper", threshold="inclusive"), G, E, S, slots=3)
    inclusive.fill("sses")


def test_guaranteed_is_exempt_inside_its_baseline_slots() -> None:
    urgent = spec("u", ELASTIC, ttft_slo_s=0.001)
    loose = spec("l", GUARANTEED, 2, ttft_slo_s=500.0)  # weighs 15, less than any elastic here
    for exempt, reason in ((True, None), (False, Reason.LOW_PRIORITY)):
        gate = Gate(TokenPool(mode="paper", exempt_guaranteed=exempt), urgent, loose, slots=2)
        gate.fill("uu")
        assert gate.reason("l") is reason
    by_class = Gate(TokenPool(mode="paper", exempt_guaranteed=False, order="class"), urgent, loose, slots=2)
    by_class.fill("uul")


def test_idle_dedicated_slots_are_never_lent() -> None:
    gate = Gate(TokenPool(mode="paper"), D, E, S, slots=4)
    gate.fill("se")
    assert gate.reason("s") is Reason.LOW_PRIORITY
    gate.fill("dd")
    gate.core.handle(Finished("d4", 1), 1.0)
    assert gate.reason("s", 1.0) is Reason.LOW_PRIORITY
    gate.core.handle(Finished("s1", 1), 1.0)
    gate.fill("s")


def test_contended_by_kv_cache_and_by_throughput_too() -> None:
    by_kv = Gate(TokenPool(mode="paper"), S, slots=100, kv_bytes=60.0, kv_bytes_per_token=1.0)
    by_kv.fill("ss")
    assert by_kv.reason("s") is Reason.LOW_PRIORITY
    by_kv.core.handle(Finished("s1", 1), 1.0)
    by_kv.fill("s")
    assert by_kv.reason("s") is Reason.LOW_PRIORITY
    by_rate = Gate(TokenPool(mode="paper"), S, slots=100, tokens_per_s=3.0)
    by_rate.fill("ss")
    by_rate.core.handle(Progress("s1", 5), 5.0)  # 15 tokens in 5 s
    by_rate.core.handle(Tick(), 5.0)
    assert by_rate.reason("s", 5.0) is Reason.LOW_PRIORITY
    by_rate.core.handle(Tick(), 10.0)
    assert by_rate.reason("s", 10.0) is None


def test_robust_admits_into_free_places_or_evicts_the_youngest_preemptible() -> None:
    gate = Gate(TokenPool(mode="robust"), G, E, S, P, slots=4)
    gate.fill("sppe")
    assert gate("e") == (Evict("p3", Reason.PREEMPTED), Forward("e5", 0, 20))
    assert gate("g") == (Evict("p2", Reason.PREEMPTED), Forward("g6", 0, 20))
    assert gate.reason("e") is Reason.POOL_FULL  # above spot, but nothing to evict
    assert gate.reason("s") is Reason.LOW_PRIORITY
    assert gate.reason("g") is None  # promised, and so over the top
    assert gate.reason("g") is Reason.CONCURRENCY


def test_kv_limits_are_checked_where_asked_for() -> None:
    small = spec("k", SPOT, limit=Resources(None, 100.0, None))
    gate = Gate(TokenPool(mode="paper", kv_check=True), small, kv_bytes_per_token=2.0)
    gate.fill("k")
    (refusal,) = gate("k")
    assert (refusal.reason, refusal.needed, refusal.available) == (Reason.KV_CACHE, 60, 40)  # type: ignore[union-attr]
    assert gate("k", most=41) == (Refuse("k3", Reason.TOO_LARGE, 429, None, 102, 100),)
    Gate(TokenPool(mode="paper"), small, kv_bytes_per_token=2.0).fill("kkkk")


def test_retry_after_by_the_rules_of_each_check() -> None:
    gate = Gate(TokenPool(mode="paper", retry_jitter=0.0), G, S, slots=4)
    gate.fill("ggss")
    gate.core.handle(Finished("g1", 1), 9.0)
    gate.core.handle(Finished("s3", 1), 15.0)  # pool: 9 + 0.1 * 6 = 9.6
    gate.fill("g")
    assert gate("g", 15.0)[0].retry_after_s == 5  # type: ignore[union-attr]  # 9 s / 2 slots, in whole seconds
    gate.fill("s")
    gate.core.handle(CapacityChanged(PoolCapacity(1, 2), (0,)), 15.0)
    assert gate("s", 15.0)[0].retry_after_s == 15  # type: ignore[union-attr]  # 9.6 s * (4 + 1 - 2) / 2 = 14.4


@given(seed=st.integers(0, 1000), wait_s=st.floats(0, 100))
def test_retry_after_is_whole_bounded_and_within_a_fifth(seed: int, wait_s: float) -> None:
    policy = make_core(TokenPool(mode="paper"), [S], seed=seed)._policy
    retry_s = policy._retry_s(wait_s)  # type: ignore[attr-defined]
    assert retry_s == int(retry_s)
    assert 1 <= retry_s <= 30
    assert min(30.0, 0.8 * wait_s) <= retry_s <= max(1.0, 1.2 * wait_s + 1)


def test_debt_and_burst_of_a_tick_by_hand() -> None:
    elastic = spec("e", ELASTIC, 1, rate=8.0, ttft_slo_s=15.25)
    spot = spec("s", SPOT, limit=Resources(None, None, 1))
    gate = Gate(TokenPool(mode="paper"), elastic, spot, spec("g", GUARANTEED, 4, rate=9.0))
    gate.fill("ee")
    gate.core.handle(Progress("e1", 10), 5.0)  # 20 tokens in 5 s: 4 per second of 8, in 2 slots of 1
    assert gate.core.handle(Tick(), 5.0)
    assert gate.shown("metered_tokens_per_s")["e"] == 4.0
    assert gate.shown("debt") == {"e": pytest.approx(0.3 * 0.5), "s": 0.0, "g": 0.0}
    assert gate.shown("burst") == {"e": pytest.approx(0.3 * 1.0), "s": 0.0, "g": 0.0}
    assert gate.shown("weight")["e"] == pytest.approx(100 / 3 / 1.3 * (1 + 4 * 0.15))
    gate.core.handle(Finished("e1", 20), 6.0)
    gate.core.handle(Progress("e2", 20), 10.0)  # 10 + 30 tokens: 8 per second
    gate.core.handle(Tick(), 10.0)
    assert gate.shown("debt")["e"] == pytest.approx(0.7 * 0.15)
    assert gate.shown("burst")["e"] == pytest.approx(0.7 * 0.3)


def test_completions_count_nothing_before_the_end() -> None:
    gate = Gate(TokenPool(mode="paper", metering="completions"), spec("e", ELASTIC, rate=8.0))
    assert not gate.core.wants_progress
    gate.fill("e")
    gate.core.handle(Progress("e1", 10), 1.0)
    gate.core.handle(Tick(), 5.0)
    assert gate.shown("metered_tokens_per_s")["e"] == 0.0
    gate.core.handle(Finished("e1", 20), 6.0)
    gate.core.handle(Tick(), 10.0)
    assert gate.shown("metered_tokens_per_s")["e"] == 6.0


def test_the_idle_run_debts_unless_the_gap_is_capped_by_demand() -> None:
    for gap, debt in (("promised", 0.3), ("demanded", 0.0)):
        gate = Gate(TokenPool(mode="paper", debt_gap=gap), spec("e", ELASTIC, rate=8.0))  # type: ignore[arg-type]
        gate.core.handle(Tick(), 5.0)
        assert gate.shown("debt")["e"] == pytest.approx(debt)


def test_debt_starts_when_the_entitlement_is_bound_and_ends_with_it() -> None:
    late = spec("e", ELASTIC, rate=8.0, from_s=7.0, until_s=12.0, ttft_slo_s=1.0)
    gate = Gate(TokenPool(mode="paper", mean_slo="bound"), late, spec("s", SPOT, ttft_slo_s=3.0))
    gate.core.handle(Tick(), 5.0)
    assert gate.shown("debt")["e"] == 0.0
    assert gate.shown("weight")["s"] == pytest.approx(1 / 3)
    gate.core.handle(Tick(), 7.0)
    assert gate.shown("weight")["s"] == pytest.approx(1 / (1 + 2 * 3 / 2))
    gate.core.handle(Tick(), 10.0)
    assert gate.shown("debt")["e"] == pytest.approx(0.3)
    gate.core.handle(Tick(), 12.0)
    assert gate.shown("debt")["e"] == 0.0


def test_the_threshold_follows_the_weights_or_stays_as_it_was() -> None:
    rich, poor = spec("r", ELASTIC, rate=8.0, ttft_slo_s=10.0), spec("p", ELASTIC, rate=8.0, ttft_slo_s=20.0)
    for weight_at in ("live", "admission"):
        gate = Gate(TokenPool(mode="paper", weight_at=weight_at), rich, poor, slots=2)  # type: ignore[arg-type]
        gate.fill("rp")
        first = gate.shown("threshold")["pool"]
        gate.core.handle(Progress("r1", 90), 5.0)
        gate.core.handle(Tick(), 5.0)  # rich is served above its promise, poor not at all
        weights = gate.shown("weight")
        assert weights["p"] > weights["r"]
        assert gate.shown("threshold")["pool"] == (weights["r"] if weight_at == "live" else first)
        assert gate.reason("p", 5.0) is None


@given(
    st.lists(st.tuples(st.sampled_from("arpt"), st.integers(0, 2)), max_size=120),
    st.sampled_from(["live", "admission"]),
)
def test_the_threshold_is_the_least_of_all_in_flight(steps: list[tuple[str, int]], weight_at: str) -> None:
    names = [f"e{i}" for i in range(3)]
    specs = [spec(name, ELASTIC, rate=8.0, ttft_slo_s=1.0 + i) for i, name in enumerate(names)]
    gate = Gate(TokenPool(mode="paper", weight_at=weight_at, tick_s=1.0), *specs, slots=10_000)  # type: ignore[arg-type]
    frozen: dict[str, float] = {}
    now_s = 0.0
    for what, which in steps:
        flying = list(gate.core.pool.in_flight)
        if what == "a":
            (forward,) = gate(names[which], now_s)
            frozen[forward.request_id] = gate.shown("weight")[names[which]]  # type: ignore[union-attr]
        elif what == "r" and flying:
            gate.core.handle(Failed(flying[which % len(flying)]), now_s)
        elif what == "p" and flying:
            gate.core.handle(Progress(flying[which % len(flying)], 7 * which), now_s)
        elif what == "t":
            now_s += 1.0
            gate.core.handle(Tick(), now_s)
        weights = gate.shown("weight")
        expected = [
            weights[flight.request.entitlement] if weight_at == "live" else frozen[name]
            for name, flight in gate.core.pool.in_flight.items()
        ]
        assert gate.shown("threshold") == ({"pool": min(expected)} if expected else {})


def test_finding_the_threshold_keeps_no_more_than_what_is_in_flight() -> None:
    for weight_at, floor in (("admission", FrozenFloor), ("live", LiveFloor)):
        gate = Gate(TokenPool(mode="paper", weight_at=weight_at), S, E, slots=2)  # type: ignore[arg-type]
        gate.fill("se")
        for _ in range(1000):
            (forward,) = gate("e")
            gate.core.handle(Finished(forward.request_id, 1), 0.0)  # type: ignore[union-attr]
        kept = gate.core._policy._floor  # type: ignore[attr-defined]
        assert isinstance(kept, floor)
        assert len(kept._heap) < 100


def crowd(seed: int = 3) -> list[Ask]:
    rng = random.Random(seed)
    asks = [Ask(at_s, "g", 32) for at_s in (k * 1.2 for k in range(75))]
    asks += [Ask(at_s + rng.random(), "s", 48) for at_s in (k * 0.4 for k in range(220))]
    return sorted(asks, key=lambda ask: ask.at_s)


def test_it_protects_the_guaranteed_from_spot() -> None:
    specs = [spec("g", GUARANTEED, 4, ttft_slo_s=1.2), S]
    pools = TinyWorld(make_core(TokenPool(mode="paper"), specs, slots=6), crowd())
    pools.run(300)
    assert pools.refusals("g", Reason.LOW_PRIORITY) == 0
    assert pools.waits_s("g")[-1] < 1.2 + 0.2
    assert pools.refusals("s", Reason.LOW_PRIORITY) > 40


def test_it_loses_to_no_control_on_a_burst_that_a_queue_would_have_served() -> None:
    burst = [Ask(0.01 * k, "s", 8) for k in range(24)]
    pools = TinyWorld(make_core(TokenPool(mode="paper"), [S], slots=6), burst)
    pools.run(60)
    assert pools.refusals("s") == 18
    assert len(pools.waits_s("s")) == 6


def test_a_client_can_be_told_what_is_left_to_it() -> None:
    limited = EntitlementSpec(
        name="s", tenant="t", service_class=SPOT, limit=Resources(tokens_per_s=30.0, kv_bytes=None, slots=3),
    )
    gate = Gate(TokenPool(mode="paper", max_request_tokens=200), limited, D, slots=16)
    gate.fill("ss")  # 30 tokens each
    requests, tokens = gate.core.allowance("s", 0.0)
    assert requests == Margin(3, 1, 1.0)
    assert tokens is not None
    assert tokens == Margin(300, 300 - 60, 2.0)
    assert gate.core.allowance("d", 0.0).tokens is None
