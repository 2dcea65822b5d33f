"""Every policy in a scene it was made for, and in one where it should lose: what each is blind to."""

from __future__ import annotations

from typing import Any

from parity.by_hand import A, B, C, Hand, P, promised
from parity.tiny_world import Ask, TinyWorld, make_core

from policies.adaptive import Adaptive
from policies.api import EntitlementSpec, Evict, Finished, Refuse, Resources
from policies.api import ServiceClass as Class
from policies.bands import Bands
from policies.cap import Cap
from policies.class_slots import ClassSlots
from policies.cohort import Cohort
from policies.concur import Concur
from policies.dagor import Dagor
from policies.datarobot import DataRobot
from policies.dedicated import Dedicated
from policies.fair_queue import Drr, FairQueue, Las, Vtc
from policies.fairserve import FairServe
from policies.llm_d_flow_control import LlmDFlowControl
from policies.no_control import NoControl
from policies.parts.estimates import PromptOnly, Quantile, TenantMean
from policies.parts.orders import Debt, DominantResource, StrictClass
from policies.parts.saturation import PredictedTtft, QueueAndKv
from policies.polyserve import PolyServe
from policies.prio_reserve import PrioReserve
from policies.ptu import Ptu
from policies.reserve import Reserve
from policies.slo_feasible import SloFeasible
from policies.window import Longer, Window
from sim.experiments.run import run_scenario
from sim.scenario.load import load_scenario

TWO = (A, B)


def world(params: Any, asks: list[Ask], slots: int = 4, until_s: float = 60.0, **more: Any) -> TinyWorld:
    specs = more.pop("specs", [
        EntitlementSpec(name="noisy", tenant="n", service_class=Class.SPOT),
        EntitlementSpec(name="quiet", tenant="q", service_class=Class.GUARANTEED, ttft_slo_s=1.0,
                        baseline=Resources(50.0, None, 2)),
    ])  # fmt: skip
    one = TinyWorld(make_core(params, specs, slots=slots, **more), sorted(asks, key=lambda ask: ask.at_s))
    one.run(until_s)
    return one


def noisy(every_s: float = 0.05, count: int = 600, output: int = 32) -> list[Ask]:
    return [Ask(every_s * k, "noisy", output) for k in range(count)]


def quiet(every_s: float = 1.0, count: int = 20, output: int = 16) -> list[Ask]:
    return [Ask(5.0 + every_s * k, "quiet", output) for k in range(count)]


def worst_s(one: TinyWorld, name: str = "quiet") -> float:
    return max(one.waits_s(name))


# --------------------------------------------------------------------------------------------------------------------
# cap


def test_cap_keeps_the_engines_queue_short() -> None:
    free, capped = (world(params, noisy()) for params in (NoControl(), Cap(max_in_flight_per_replica=6)))
    assert free.peak_queue > 100
    assert capped.peak_queue <= 2


def test_cap_does_not_know_whose_flood_it_is() -> None:
    one = world(Cap(max_in_flight_per_replica=4, queue_requests=10), noisy() + quiet())
    assert one.refusals("quiet") > 10


# window


def test_window_holds_the_average_of_who_comes_one_by_one() -> None:
    hand = Hand(Window(tokens_per_min=1000), TWO)
    served = 0
    for k in range(60):
        if hand.ask(k, f"a{k}", 50, 50) == f"a{k}:in":
            hand.end(k + 0.5, f"a{k}", 50)
            served += 100
    assert served == 1000


def test_window_is_overshot_by_concurrency_times_cost() -> None:
    hand = Hand(Window(tokens_per_min=1000), TWO)
    assert all(hand.ask(0.0, f"a{k}", 500, 500) == f"a{k}:in" for k in range(20))
    for k in range(20):
        hand.end(1.0, f"a{k}", 500)
    (gauge,) = [one for one in hand.policy.gauges(hand.core.pool, 1.0) if one.name == "a"]
    assert gauge.value == 20  # twenty times what is allowed


def test_a_longer_window_holds_beside_the_short_one() -> None:
    hand = Hand(Window(tokens_per_min=1000, also=(Longer(tokens=1500, window_s=3600),)), TWO)
    hand.ask(0, "a1", 500, 400)
    hand.end(1, "a1", 400)
    hand.ask(61, "a2", 500, 400)
    hand.end(62, "a2", 400)
    assert hand.ask(121, "a3") == "a3:tokens/429/3479"  # 1800 of 1500 until 3600


# reserve


def test_reserve_does_not_overshoot() -> None:
    hand = Hand(Reserve(tokens_per_min=1000), TWO)
    assert sum(hand.ask(0.0, f"a{k}", 250, 250) == f"a{k}:in" for k in range(20)) == 2


def test_reserve_wastes_the_rate_of_who_asks_for_more_than_it_takes() -> None:
    def served(params: Reserve) -> int:
        hand, tokens = Hand(params, TWO), 0
        for k in range(120):
            if hand.ask(k, f"a{k}", 10, 900) == f"a{k}:in":
                hand.end(k + 30, f"a{k}", 10) if k % 2 else hand.end(k + 0.9, f"a{k}", 10)
                tokens += 20
        return tokens

    inflated = served(Reserve(tokens_per_min=1000))
    assert inflated < 0.7 * served(Reserve(tokens_per_min=1000, estimate=TenantMean()))
    assert inflated < 0.7 * served(Reserve(tokens_per_min=1000, estimate=Quantile()))


def test_reserve_forgives_what_the_estimate_missed_only_where_told_so() -> None:
    for debt, left in ((True, -400), (False, 500)):
        hand = Hand(Reserve(tokens_per_min=600, estimate=PromptOnly(), debt=debt), TWO)
        hand.ask(0, "a1", 100, 1000)
        hand.end(0, "a1", 900)
        (gauge,) = [one for one in hand.policy.gauges(hand.core.pool, 0.0) if one.name == "a"]
        assert gauge.value == left


# ptu


def test_ptu_isolates_who_stays_below_its_rate() -> None:
    one = world(Ptu(tokens_per_min=6000, horizon_s=10), noisy() + quiet(), slots=16)
    assert one.refusals("quiet") == 0
    assert one.refusals("noisy") > 400


def test_ptu_refuses_in_an_idle_pool() -> None:
    one = world(Ptu(tokens_per_min=600, horizon_s=10), noisy(0.5, 60), slots=64)
    assert one.refusals("noisy") > 50
    assert one.peak_queue == 0


# prio-reserve


def test_prio_reserve_lends_what_nobody_uses_below_its_threshold() -> None:
    hand = Hand(PrioReserve(requests_per_min=100, weights={"a": 0.2}, cache_s=1), TWO)
    assert sum(hand.ask(0.01 * k, f"a{k}") == f"a{k}:in" for k in range(79)) == 79  # its share is 20


def test_prio_reserve_turns_a_floor_into_a_ceiling_above_it() -> None:
    hand = Hand(PrioReserve(requests_per_min=100, weights={"a": 0.2}, cache_s=1), TWO)
    let_in = sum(hand.ask(0.1 * k, f"a{k}") == f"a{k}:in" for k in range(400))
    assert let_in < 95  # alone in the pool, it stops near the threshold and not at 100


# bands


def test_bands_serve_the_high_band_first_in_a_flood() -> None:
    one = world(Bands(), noisy() + quiet())
    assert worst_s(one) < 3.0
    assert worst_s(world(NoControl(), noisy() + quiet())) > 10


def test_bands_starve_the_low_band() -> None:
    flood = [Ask(0.05 * k, "quiet", 32) for k in range(600)]
    one = world(Bands(timeout_s=20), [*flood, Ask(5.0, "noisy", 8)])
    assert one.refusals("noisy") == 1
    fair = world(FairQueue(timeout_s=20), [*flood, Ask(5.0, "noisy", 8)])
    assert fair.refusals("noisy") == 0


def test_bands_let_a_burst_pass_before_reports_show_it() -> None:
    hand = Hand(Bands(saturation=QueueAndKv()), (A, C))
    hand.report(0.0, waiting=0, kv=0.0)
    burst = [hand.ask(0.5 + 0.002 * k, f"c{k}") for k in range(200)]
    assert burst == [f"c{k}:in" for k in range(200)]  # into four slots
    fresh = Hand(Bands(), (A, C))
    assert sum(fresh.ask(0.5 + 0.002 * k, f"c{k}") == f"c{k}:in" for k in range(200)) == 4


def test_bands_evict_what_is_sheddable_for_a_higher_band_and_nothing_else() -> None:
    hand = Hand(Bands(evict=True, tick_s=0.5), (A, C, P), slots=2)
    assert (hand.ask(0, "p1"), hand.ask(0.1, "c1")) == ("p1:in", "c1:in")
    assert hand.ask(0.2, "a1") == "a1:held"
    assert hand.wait(0.5) == "p1:evicted a1:in"
    assert hand.ask(0.6, "a2") == "a2:held"
    assert hand.wait(5) == ""  # c1 is a band of 0


def test_holdback_keeps_the_low_band_out_of_the_last_slots() -> None:
    hand = Hand(Bands(ceilings="holdback", min_ceiling=0.5), (A, C), slots=4)
    assert [hand.ask(k, f"c{k}") for k in range(3)] == ["c0:in", "c1:in", "c2:held"]
    assert [hand.ask(4 + k, f"a{k}") for k in range(3)] == ["a0:in", "a1:in", "a2:held"]


def test_a_predicted_ttft_shuts_the_gate_before_slots_are_taken() -> None:
    hand = Hand(Bands(saturation=PredictedTtft(budget_s=0.1)), (A, C), slots=100)
    # 8500 tokens/s at first: 0.1 s are 850 tokens of prompts that wait for their first token.
    assert [hand.ask(0.01 * k, f"c{k}", 425) for k in range(3)] == ["c0:in", "c1:in", "c2:held"]
    assert hand.first(0.05, "c0") == ""
    assert hand.wait(0.1) == "c2:in"


# class-slots


def test_class_slots_keep_room_for_the_class_that_comes_late() -> None:
    hand = Hand(ClassSlots(), (A, B, C), slots=8)  # reserves 0, 2, 1, 0
    assert [hand.ask(0, f"c{k}") for k in range(6)] == [*(f"c{k}:in" for k in range(5)), "c5:held"]
    assert [hand.ask(1, name) for name in ("a1", "a2", "b1")] == ["a1:in", "a2:in", "b1:in"]


def test_class_slots_are_blind_to_size() -> None:
    hand = Hand(ClassSlots(), (A, C), slots=8, kv_tokens=1000)
    assert [hand.ask(0, f"c{k}", 400, 400) for k in range(5)] == [f"c{k}:in" for k in range(5)]  # 4000 of 1000 tokens
    vtc = Hand(Vtc(), (A, C), slots=8, kv_tokens=1000)
    assert [vtc.ask(0, f"c{k}", 400, 400) for k in range(2)] == ["c0:in", "c1:held"]


# vtc, drr, las


def test_vtc_shields_the_quiet_from_the_noisy() -> None:
    assert worst_s(world(Vtc(), noisy() + quiet())) < 3.0


def test_vtc_has_no_floor() -> None:
    specs = [EntitlementSpec(name=f"n{k}", tenant="n", service_class=Class.SPOT) for k in range(9)]
    specs.append(promised("a", slots=4))
    flood = [Ask(0.01 * k, f"n{k % 9}", 64) for k in range(400)]
    mine = [Ask(1.0 + 0.01 * k, "a", 64) for k in range(4)]
    one = world(Vtc(timeout_s=None), flood + mine, specs=specs)
    assert worst_s(one, "a") > 8  # it was promised all four slots, and gets a tenth


def test_vtc_lets_a_tenant_with_many_keys_take_many_shares() -> None:
    specs = [EntitlementSpec(name=f"n{k}", tenant="n", service_class=Class.SPOT) for k in range(3)]
    specs += [EntitlementSpec(name="one", tenant="o", service_class=Class.SPOT)]
    asks = [Ask(0.01 * k, f"n{k % 3}", 32) for k in range(400)] + [Ask(0.01 * k, "one", 32) for k in range(400)]

    def share(params: Any) -> float:
        one = world(params, asks, specs=specs, until_s=40)
        return len(one.waits_s("one")) / len(one.first_token_s)

    assert abs(share(Vtc(timeout_s=None)) - 1 / 4) < 0.04
    assert abs(share(Vtc(timeout_s=None, flow="tenant")) - 1 / 2) < 0.04


def test_vtc_lifts_who_was_away_so_that_idling_earns_nothing() -> None:
    asks = [Ask(0.1 * k, "noisy", 32) for k in range(300)] + [Ask(20 + 0.001 * k, "quiet", 32) for k in range(60)]
    one = world(Vtc(timeout_s=None), asks, until_s=30)
    mine = [at_s for name, at_s in one.first_token_s.items() if one.asks[name].entitlement == "noisy" and at_s > 21]
    assert len(mine) > 0.35 * len([at_s for at_s in one.first_token_s.values() if at_s > 21])


def test_drr_shares_tokens_between_long_and_short_prompts() -> None:
    def ratio(params: Any) -> float:
        hand = Hand(params, TWO, slots=1)
        hand.ask(0, "a", 1, 1)
        for k in range(200):
            hand.ask(0, f"a{k}", 1000, 10)
            hand.ask(0, f"b{k}", 100, 10)
        done = {"a": 0, "b": 0}
        flying = "a"
        for k in range(110):
            flying = hand.end(k / 100, flying, 10).removesuffix(":in")
            done[flying[0]] += 1000 if flying[0] == "a" else 100
        return done["a"] / done["b"]

    assert 0.8 < ratio(Drr(quantum=500, charge="prompt")) < 1.25
    assert ratio(FairQueue()) > 5  # a request of each in turn


def test_drr_as_dynamo_has_it_ignores_decoding() -> None:
    asks = [Ask(0.01 * k, "noisy", 64, 10) for k in range(300)] + [Ask(0.01 * k, "quiet", 4, 10) for k in range(300)]

    def output_ratio(params: Any) -> float:
        one = world(params, asks, until_s=40)
        done = {name: len(one.waits_s(name)) for name in ("noisy", "quiet")}
        return 64 * done["noisy"] / (4 * max(1, done["quiet"]))

    assert output_ratio(Drr(charge="prompt", quantum=10, timeout_s=None)) > 10
    assert output_ratio(Drr(quantum=64, timeout_s=None)) < 3


def test_las_prefers_who_used_little_of_late() -> None:
    assert worst_s(world(Las(), noisy() + quiet())) < 4.0


def test_las_learns_only_when_an_answer_ends() -> None:
    """Long answers of a newcomer all start before the first of them counts; streamed charges stop it."""
    def newcomers(params: Any) -> int:
        hand = Hand(params, TWO, slots=8)
        for k in range(8):
            hand.ask(0, f"a{k}", 100, 100)
        for k in range(20):
            hand.ask(0.1, f"a1{k}", 100, 100)
            hand.ask(0.1, f"b1{k}", 100, 2000)
        got = [hand.end(1 + 0.01 * k, f"a{k}", 100) for k in range(8)]
        return sum(text.startswith("b") for text in got)

    assert newcomers(Las(wait_share=0.0)) == 8
    assert newcomers(Las(wait_share=0.0, charge="predicted")) < 3


# fair-queue's other orders


def test_strict_class_and_debt_and_drf_say_who_is_next() -> None:
    strict = Hand(FairQueue(order=StrictClass()), (A, B, C), slots=1)
    for name in ("c0", "c1", "b1", "a1"):
        strict.ask(0, name)
    assert strict.end(1, "c0") == "a1:in"
    drf = Hand(FairQueue(order=DominantResource()), TWO, slots=4, kv_tokens=1000)
    # a holds 400 of 1000 tokens, b two slots of 4: b's share is larger.
    for name, size in (("a0", 200), ("b0", 10), ("b1", 10), ("a1", 150), ("b2", 10), ("b3", 10)):
        drf.ask(0, name, size, size)
    assert drf.said[-1] == (0.0, "b3:held")
    owed = promised("b", tokens_per_s=100.0)
    debt = Hand(FairQueue(order=Debt(), timeout_s=None), (A, owed), slots=1)
    for name in ("a0", "a1", "b1"):
        debt.ask(0, name)
    debt.wait(5)
    assert debt.end(5.5, "a0") == "b1:in"


def test_a_full_queue_can_turn_away_the_last_of_the_longest_line_instead_of_who_comes() -> None:
    hand = Hand(Drr(queue_requests=3, when_full="displace"), TWO, slots=1)
    assert [hand.ask(0, f"a{k}") for k in range(4)] == ["a0:in", "a1:held", "a2:held", "a3:held"]
    assert hand.ask(1, "b1") == "b1:held a3:queue_full/429/1"
    assert hand.ask(2, "a4") == "a4:held a4:queue_full/429/1"
    strict = Hand(Drr(queue_requests=3), TWO, slots=1)
    assert [strict.ask(0, f"a{k}") for k in range(4)][-1] == "a3:held"
    assert strict.ask(1, "b1") == "b1:queue_full/429/1"


# cohort


def test_cohort_lends_idle_slots_after_a_period() -> None:
    hand = Hand(Cohort(), TWO, slots=8)  # nominal 4 and 4, at least 2 and 2
    assert sum(hand.ask(0, f"a{k}") == f"a{k}:in" for k in range(8)) == 4
    assert hand.wait(10) == "a4:in a5:in"


def test_cohort_leaves_slots_idle_for_ten_seconds() -> None:
    one = world(Cohort(), [Ask(0.01 * k, "noisy", 16) for k in range(40)], slots=8, until_s=9.0)
    idle = world(Vtc(), [Ask(0.01 * k, "noisy", 16) for k in range(40)], slots=8, until_s=9.0)
    assert len(one.waits_s("noisy")) < 0.8 * len(idle.waits_s("noisy"))


# slo-feasible


def test_slo_feasible_serves_the_nearest_deadline_and_refuses_what_is_too_late() -> None:
    one = world(SloFeasible(), noisy() + quiet())
    assert worst_s(one) < 1.5
    hand = Hand(SloFeasible(first_tokens_per_s=100.0), (A, C), slots=4)
    assert hand.ask(0, "c1", 1000) == "c1:in"
    assert hand.ask(0, "a1", 100) == "a1:slo/429/13"  # 1.2 * (1000 + 100) / 100 = 13.2 s, objective 1 s


def test_slo_feasible_counts_only_what_is_ahead_by_its_deadline() -> None:
    hand = Hand(SloFeasible(first_tokens_per_s=1000.0), (A, B, C), slots=1)
    hand.ask(0, "c0", 10)
    hand.first(0.01, "c0")
    for k in range(20):
        hand.ask(0.1, f"c{k + 1}", 1000)  # no objective: behind whoever has one
    assert hand.ask(0.2, "b1", 5000) == "b1:held"  # 1.2 * 5 s of 10
    assert hand.ask(0.2, "a1", 500) == "a1:held"  # 1.2 * 0.5 s of 1
    assert hand.ask(0.2, "a2", 400) == "a2:slo/429/1"  # 1.2 * (0.5 + 0.4) s
    assert hand.ask(0.2, "b2", 4000) == "b2:slo/429/2"  # 1.2 * (5 + 0.5 + 4) = 11.4 s of 10
    assert hand.end(0.4, "c0") == "a1:in"


def test_slo_feasible_is_unfair_to_long_prompts() -> None:
    hand = Hand(SloFeasible(first_tokens_per_s=100.0), (A, B), slots=4)
    assert hand.ask(0, "a0", 10) == "a0:in"
    assert hand.ask(0, "a1", 50) == "a1:in"
    assert hand.ask(0, "a2", 200) == "a2:slo/429/3"
    assert hand.end(0.5, "a0") == hand.end(0.6, "a1") == ""
    assert hand.ask(0.7, "a3", 200) == "a3:in"  # only an idle pool takes it


def test_slo_feasible_relegates_behind_all_others_and_in_the_engine() -> None:
    hand = Hand(SloFeasible(infeasible="relegate"), (A, B), slots=1)
    hand.ask(0, "b0")
    assert [hand.ask(0.1, name) for name in ("a1", "b1")] == ["a1:held", "b1:held"]
    assert hand.end(3, "b0") == "b1:in"  # a1's second is over
    assert hand.end(4, "b1") == "a1:demoted=10 a1:in"


def test_slo_feasible_lets_waves_in_where_its_prediction_lags() -> None:
    """Mooncake's oscillation: a burst is let in on an old rate, the next is refused whole."""
    hand = Hand(SloFeasible(first_tokens_per_s=10_000.0, smoothing=0.2), (A, C), slots=1000)
    waves = []
    for wave in range(6):
        names = [f"a{wave}x{k}" for k in range(30)]
        inside = [name for name in names if hand.ask(10.0 * wave, name, 100) == f"{name}:in"]
        for k, name in enumerate(inside):  # the replica takes in 500 tokens a second, not 10,000
            hand.end(10.0 * wave + (k + 1) * 0.2, name)
        waves.append(len(inside))
    assert waves[0] == 30
    assert max(waves[1:]) < 6


# adaptive


def test_adaptive_finds_a_limit_near_what_fits() -> None:
    params = Adaptive(limit="aimd", initial=40, least=4, most=200, slow_s=1.0)
    assert world(params, noisy(), slots=8).peak_queue < 60
    assert world(NoControl(), noisy(), slots=8).peak_queue > 200


def test_adaptive_gives_a_partition_its_part_at_the_limit() -> None:
    hand = Hand(Adaptive(initial=20, least=20, most=20), TWO, slots=100)
    assert sum(hand.ask(0, f"a{k}") == f"a{k}:in" for k in range(30)) == 20
    assert sum(hand.ask(1, f"b{k}") == f"b{k}:in" for k in range(30)) == 10  # half of the limit, above it


def test_adaptive_takes_long_prompts_for_congestion() -> None:
    hand = Hand(Adaptive(limit="gradient2", initial=100, least=4, most=200), TWO, slots=1000)
    for k in range(400):
        hand.ask(k, f"a{k}", 100)
        hand.end(k + 0.1, f"a{k}")
    for k in range(60):  # an idle pool, and prompts ten times as long
        hand.ask(1000 + k, f"b{k}", 1000)
    for k in range(60):
        hand.end(1060 + k, f"b{k}")
    (gauge,) = hand.policy.gauges(hand.core.pool, 1060.0)
    assert gauge.value < 60


# dagor


def test_dagor_sheds_the_low_class_first() -> None:
    one = world(Dagor(threshold_s=0.5), noisy() + quiet(), until_s=60)
    assert one.refusals("quiet") == 0
    assert one.refusals("noisy") > 200


def test_dagor_needs_many_priorities() -> None:
    """One entitlement is one priority: each second lets in all of it or nothing."""
    one = world(Dagor(threshold_s=0.5), noisy(), until_s=30)
    refused = [0] * 30
    for at_s, _, said in one.log:
        refused[min(29, int(at_s))] += sum(isinstance(step, Refuse) for step in said)
    assert {count for count in refused if 1 < count < 18} == set()
    assert sum(refused) > 100


# dedicated


def test_dedicated_replicas_isolate() -> None:
    hand = Hand(Dedicated(), TWO, slots=8, replicas=2)
    for k in range(50):
        assert hand.ask(0, f"a{k}") == f"a{k}:in"
    assert hand.ask(1, "b1") == "b1:in"
    assert {flight.replica_id for flight in hand.core.pool.in_flight.values() if flight.ledger.spec.name == "b"} == {1}


def test_dedicated_replicas_stand_idle_beside_full_ones() -> None:
    hand = Hand(Dedicated(max_in_flight_per_replica=4), TWO, slots=8, replicas=2)
    assert [hand.ask(0, f"a{k}") for k in range(5)][-1] == "a4:concurrency/429/1"
    assert hand.core.pool.replicas[1].in_flight == 0


# over a limit


def test_over_its_limit_a_request_may_be_demoted_or_spilled_uncharged() -> None:
    demoting = Hand(Reserve(tokens_per_min=600, over="demote"), TWO)
    assert [demoting.ask(0, f"a{k}", 200, 300) for k in range(2)] == ["a0:in", "a1:demoted=10 a1:in"]
    demoting.end(1, "a1", 300)
    demoting.end(1, "a0", 300)
    assert demoting.ask(6, "a2", 60, 100) == "a2:in"  # 600 - 500 + 6 * 10 = 160
    assert demoting.ask(6, "a3", 1, 1) == "a3:demoted=10 a3:in"
    spilling = Hand(Reserve(tokens_per_min=600, over="spill"), TWO, slots=8, replicas=3)
    for k in range(4):
        spilling.ask(0, f"a{k}", 150, 150)
    at = {name: flight.replica_id for name, flight in spilling.core.pool.in_flight.items()}
    assert {at["a0"], at["a1"]} == {0, 1}
    assert (at["a2"], at["a3"]) == (2, 2)
    assert spilling.ask(0, "a4", 700, 1) == "a4:too_large/429/never"


def test_nothing_is_evicted_or_refused_by_who_does_neither() -> None:
    one = world(NoControl(), noisy() + quiet())
    assert not any(isinstance(step, Evict | Refuse) for _, _, said in one.log for step in said)


def test_prompts_that_the_upstream_counts_otherwise_leave_nothing_behind() -> None:
    for params in (SloFeasible(), Bands(saturation=PredictedTtft()), Vtc(), Las()):
        hand = Hand(params, TWO, slots=100)
        for k in range(20):
            hand.ask(k, f"a{k}", 100)
            hand.core.handle(Finished(f"a{k}", 10, 0, 250), k + 0.5)  # in one piece: no first token of its own
        clock = getattr(hand.policy, "_clock", None) or getattr(getattr(hand.policy, "_signal", None), "_clock", None)
        assert clock is None or clock.outstanding_tokens == 0
        used = {one.name: one.value for one in hand.policy.gauges(hand.core.pool, 30.0) if one.metric == "charged"}
        assert used.get("a", 20 * 270) == 20 * 270


# --------------------------------------------------------------------------------------------------------------------
# dlpm, concur, fairserve, polyserve, datarobot, llm-d-flow-control


def simulated(name: str, policy: str, *overrides: str) -> Any:
    """Requests of a shipped scenario under a policy, as a table of pandas."""
    scenario = load_scenario(name, overrides=[*overrides, "timeline_interval_s=null", f"policies=[{policy}]"])
    return run_scenario(scenario).requests.to_pandas()


PREFIXES = (
    "horizon_s=80", "warmup_s=20", "pool.replicas=4", "pool.router=least-outstanding-tokens",
    "pool.scrape_interval_s=0.5", "pool.entitlements[0].baseline={slots: 40}",
    "pool.entitlements[1].baseline={slots: 14}",
)  # fmt: skip


def test_dlpm_finds_more_in_caches_than_vtc_and_lets_who_has_no_text_in_common_wait() -> None:
    dlpm, vtc = (simulated("prefix-routing", policy, *PREFIXES) for policy in ("dlpm", "vtc"))

    def hits(found: Any) -> float:
        done = found[found["outcome"] == "finished"]
        return float(done["cached_tokens"].sum() / done["prompt_tokens"].sum())

    def waits_s(found: Any) -> float:
        tools = found[(found["entitlement"] == "tools") & (found["outcome"] == "finished")]
        return float((tools["first_token_s"] - tools["arrival_s"]).mean())

    assert hits(dlpm) > hits(vtc) + 0.05
    assert waits_s(dlpm) > 3 * waits_s(vtc)  # vtc serves the light tenant at once; dlpm asks first whose text is there


def test_fairserve_lets_interactions_under_way_pass_and_is_blind_to_who_is_promised_what() -> None:
    params = FairServe(user_per_min=5, app_per_min=5, overloaded_running=4, overloaded_kv_tokens=10**9, timeout_s=None)
    hand = Hand(params, TWO, slots=100)
    for number in range(5):
        hand.ask(0, f"a{number}", session=f"s{number}")
    assert hand.ask(1, "a9", session="s9").startswith("a9:requests/429")
    assert hand.ask(1, "a5", session="s0") == "a5:in"
    both = (promised("a", 50), B)  # a is promised half of the pool, and refused beside 96 free slots
    hand = Hand(params, both, slots=100)
    said = [hand.ask(0.1 * number, f"a{number}") for number in range(6)]
    assert said[-1].startswith("a5:requests/429")


def test_polyserve_leaves_replicas_empty_for_tight_tiers_and_lets_a_long_prompt_wait() -> None:
    hand = Hand(PolyServe(tpot_slo_s={"a": 0.05, "b": 0.2}), TWO, slots=40, replicas=4)
    for number in range(30):
        hand.ask(0, f"b{number}")
    assert {hand.at(f"b{number}") for number in range(30)} == {0}  # the fullest that keeps everybody in time
    assert hand.ask(1, "a0") == "a0:in"
    assert hand.at("a0") == 1
    full = Hand(PolyServe(), TWO, slots=40)
    full.ask(0, "a0", 9000)
    assert full.ask(0, "a1", 9000) == "a1:held"  # 1.1 s of its 1 s, beside 39 free slots


def test_datarobot_lends_below_the_threshold_and_refuses_beside_idle_replicas_above_it() -> None:
    hand = Hand(DataRobot(capacity=1000, threshold=0.8, reserved={"a": 0.9}), TWO, slots=100)
    for number in range(4):
        hand.ask(number, f"b{number}")
        hand.end(number + 0.5, f"b{number}", 100)  # 800: four times its own tenth
    assert hand.ask(5, "b9").startswith("b9:tokens/429")  # nothing runs, and a asks for nothing


def test_llm_d_flow_control_serves_the_high_band_first_and_a_burst_passes_between_two_reports() -> None:
    hand = Hand(LlmDFlowControl(stale_s=9.0), (A, C), slots=4)
    hand.report(0, 0, 0.0)
    assert {hand.ask(0.01, f"c{number}") for number in range(200)} == {f"c{number}:in" for number in range(200)}
    hand.report(0.1, 196, 1.0)
    assert hand.ask(0.2, "c200") == "c200:held"
    assert hand.ask(0.2, "a0") == "a0:held"  # behind 196 of a lower band, in the engine
    hand.report(0.3, 0, 0.0)
    assert hand.wait(0.31).split()[0] == "a0:in"


def test_concur_keeps_agents_text_in_the_cache_and_replicas_idle() -> None:
    crowded = ("horizon_s=150", "pool.scrape_interval_s=0.5")
    concur, none = (simulated("agents-thrashing", policy, *crowded) for policy in ("concur", "none"))

    def worth(found: Any) -> tuple[float, int]:
        done = found[found["outcome"] == "finished"]
        return float(done["cached_tokens"].sum() / done["prompt_tokens"].sum()), int(found["output_tokens"].sum())

    (hits, tokens), (hits_without, tokens_without) = worth(concur), worth(none)
    assert hits > hits_without + 0.1
    assert tokens < tokens_without  # its thresholds let few agents work, and replicas idle while tools run
    hand = Hand(Concur(agents=1), TWO, slots=100)
    hand.ask(0, "a0", session="s")
    assert hand.ask(0, "b0") == "b0:held"  # beside 99 free slots
