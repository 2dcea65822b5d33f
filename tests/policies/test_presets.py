"""Products by name: each against a sequence of verdicts that was computed by hand, in the comments beside it."""

from __future__ import annotations

from typing import Any

import pytest
from parity.by_hand import Hand

from policies.fair_queue import Drr
from policies.presets.gateways import AzurePtu, Bedrock, EnvoyAiGateway, Kuadrant, LiteLlm, SmgTenants
from policies.presets.schedulers import Dynamo, K8sApf, Kthena, LlmD, Smg
from policies.prio_reserve import PrioReserve
from policies.registry import POLICIES

PRESETS = {kind: entry for kind, entry in POLICIES.items() if hasattr(entry.params, "expand")}


def test_litellm_alone_stops_at_the_greater_of_share_and_threshold() -> None:
    """litellm-docs 735: a team alone gets max(reservation, threshold) of the capacity, never all of it."""
    for weight, most in ((0.25, 3000), (0.75, 4500)):  # of 6000; the threshold is 0.5
        hand = Hand(LiteLlm(tokens_per_min=6000, weights={"a": weight}), slots=1000)
        used = [0] * 3
        for k in range(180):  # 400 tokens a second for three windows, each known at once
            if hand.ask(k, f"a{k}", 100) == f"a{k}:in":
                hand.end(k, f"a{k}", 300)
                used[k // 60] += 400
        # The first sixteen (twelve) hundred tokens beyond the last that still fits: one request more at most.
        assert [most <= tokens < most + 400 for tokens in used] == [True] * 3


def test_litellm_s_reservations_above_one_are_scaled_and_the_default_pool_is_outside_that_sum() -> None:
    hand = Hand(LiteLlm(tokens_per_min=6000, weights={"a": 1.5, "b": 0.5}, cache_s=60))
    # a: 1.5 / 2 of 6000 = 4500, b: 1500, and all others 0.25 of 6000 = 1500 whatever the others sum to.
    assert hand.ask(0, "c1", 1000) == "c1:in"
    hand.end(1, "c1", 499)  # c has 1499 of its 1500 in [1, 61)
    assert hand.ask(2, "b1", 1000) == "b1:in"
    hand.end(2, "b1", 501)  # b has 1501 of 1500; the model 3000 of 6000
    hand.wait(60)  # 3000 / 6000 = 0.5 is the threshold
    assert hand.ask(60.2, "c2") == "c2:in"  # 1499 < 1500
    assert hand.ask(60.2, "b2") == "b2:tokens/429/2"  # until 62
    assert hand.ask(60.2, "a1") == "a1:in"


def test_litellm_with_a_cache_enforces_shares_late() -> None:
    hand = Hand(PrioReserve(tokens_per_min=6000, weights={"a": 0.5}, threshold=0.8, cache_s=60))  # a 3000, others 1500
    assert hand.ask(0, "a1", 1000) == "a1:in"
    hand.end(10, "a1", 3000)  # model 4000 in the window [10, 70); more than a's share, but nobody looks
    assert hand.ask(61, "a2", 1000) == "a2:in"  # at 60: 4000 / 6000 = 0.67 < 0.8
    hand.end(62, "a2", 500)  # model 5500
    assert hand.ask(63, "b1", 100) == "b1:in"  # 5500 < 6000
    hand.end(64, "b1", 500)  # model 6100
    assert hand.ask(65, "a3") == "a3:tokens/429/5"  # the model's limit always holds; 70 - 65
    assert hand.ask(70, "a4", 1000) == "a4:in"
    hand.end(100, "a4", 4000)  # model and a: 5000 in [100, 160)
    assert hand.ask(119, "a5") == "a5:in"  # what was seen at 60 still counts
    assert hand.ask(121, "a6") == "a6:tokens/429/39"  # at 120: 5000 / 6000 = 0.83; a has 5000 >= 3000; 160 - 121
    assert hand.ask(121, "b2") == "b2:in"  # 600 of 1500 in [64, 124)


def test_envoy_charges_after_the_answer_and_lets_concurrent_requests_overshoot() -> None:
    hand = Hand(EnvoyAiGateway(tokens=1000, cached_weight=0.1, output_weight=1.5))
    assert [hand.ask(0, name, 200, 400) for name in ("a1", "a2", "a3")] == ["a1:in", "a2:in", "a3:in"]
    hand.end(10, "a1", 400)  # 200 + 1.5 * 400 = 800
    assert hand.ask(11, "a4") == "a4:in"  # 800 < 1000
    hand.end(12, "a2", 400)  # 1600
    assert hand.ask(20, "a5") == "a5:tokens/429/40"  # until the clock's window [0, 60) ends
    assert hand.refusals[-1].available == -600
    assert hand.ask(20, "b1") == "b1:in"  # another key
    assert hand.ask(60, "a6") == "a6:in"
    hand.end(61, "a3", 594, cached=100)  # 100 + 0.1 * 100 + 1.5 * 594 = 1001
    assert hand.ask(62, "a7") == "a7:tokens/429/58"


def test_kuadrant_reserves_a_flat_amount_and_gives_back_what_leaked() -> None:
    hand = Hand(Kuadrant(tokens=12_000, ttl_s=30))
    assert hand.ask(0, "a1", 300) == "a1:in"  # 5000
    assert hand.ask(0, "a2", 300) == "a2:in"  # 10,000
    assert hand.ask(1, "a3", 300) == "a3:tokens/429/59"  # 2000 left, 5000 needed
    hand.end(20, "a1", 700)  # 10,000 - 5000 + 1000 = 6000
    assert hand.ask(21, "a3", 300) == "a3:in"  # 11,000
    assert hand.ask(29, "a4", 300) == "a4:tokens/429/31"
    assert hand.ask(31, "a4", 300) == "a4:in"  # a2's reservation ended at 30: 6000, then 11,000
    assert hand.policy.leaked == 1
    hand.end(32, "a2", 100)  # what it used is charged all the same: 11,400
    assert hand.ask(60, "a5", 300) == "a5:in"


def test_kuadrant_check_report_counts_afterwards() -> None:
    hand = Hand(Kuadrant(tokens=1000, mode="check-report"))
    assert [hand.ask(0, name, 400) for name in ("a1", "a2", "a3", "a4")] == ["a1:in", "a2:in", "a3:in", "a4:in"]
    hand.end(5, "a1", 599)  # 999
    assert hand.ask(6, "a5") == "a5:in"
    hand.end(7, "a2", 600)  # 1999
    assert hand.ask(8, "a6") == "a6:tokens/429/52"


def test_llm_d_gates_by_what_replicas_reported_and_serves_bands_from_the_top() -> None:
    hand = Hand(LlmD())
    hand.report(0.0, waiting=5, kv=0.1)  # max(5/5, 0.1/0.8) = 1: shut
    assert hand.ask(0.1, "c1") == "c1:held"
    assert hand.ask(0.2, "a1") == "a1:held"
    assert hand.report(1.0, waiting=0, kv=0.4) == "a1:in c1:in"  # 0.5: open, the guaranteed band first
    assert hand.ask(1.1, "c2") == "c2:in"  # the same report still says 0.5: a burst passes
    hand.report(1.5, waiting=2, kv=0.88)  # max(0.4, 1.1) = 1.1
    assert hand.ask(1.61, "b1") == "b1:held"
    # Reports are too old from 6.5 on, and something is in flight: still shut. 60 s later, at the next 0.05 s, 429.
    assert hand.wait(61.6) == ""
    assert hand.wait(62.0).startswith("b1:queue_timeout/429/")


def test_smg_shrinks_its_reserves_and_keeps_them_from_lower_classes() -> None:
    hand = Hand(Smg(), slots=160)
    # Reserves 32, 128, 16, 0 sum to 176: shrunk by 160/176 to 29.1, 116.4, 14.5, 0. The default class (b) may use
    # 160 - 29.1 - 116.4 = 14.5 slots, the bulk class (c) none of its own.
    said = [hand.ask(0, f"b{i}") for i in range(15)]
    assert said == [f"b{i}:in" for i in range(14)] + ["b14:held"]
    assert hand.ask(0, "c1") == "c1:held"
    assert hand.ask(1, "a1") == "a1:in"  # 160 - 14 - 29.1 > 1
    assert hand.end(2, "a1") == ""  # its slot is reserved
    assert hand.end(3, "b0") == "b14:in"
    assert hand.wait(120) == ""
    assert hand.wait(121.5) == "c1:in"  # starved for more than 120 s: any free slot will do


def test_smg_preempts_the_newest_of_the_lowest_class_before_its_first_token() -> None:
    hand = Hand(Smg(classes={"a": "system", "b": "bulk", "c": "bulk"}), slots=2)
    # Reserves 32, 128, 1, 0 shrink to 0.4, 1.59, 0.01, 0: the bulk class waits for 120 s, then takes both slots.
    assert (hand.ask(0, "b1"), hand.ask(0, "c1")) == ("b1:held", "c1:held")
    assert hand.wait(122) == "b1:in c1:in"
    hand.first(123, "c1")
    assert hand.ask(124, "a1") == "b1:evicted a1:in"  # c1 is newer, but has its first token
    assert hand.ask(125, "a2") == "a2:held"  # nobody is left to preempt


def test_smg_tenants_reserve_the_prompt_and_go_into_debt() -> None:
    hand = Hand(SmgTenants(tokens_per_min=600))  # 10 a second, 600 deep
    assert hand.ask(0, "a1", 500, 1000) == "a1:in"  # 100 left
    assert hand.ask(0, "a2", 200) == "a2:tokens/429/10"  # (200 - 100) / 10
    hand.end(1, "a1", 300)  # 110 - 300 = -190
    assert hand.ask(2, "a2", 200) == "a2:tokens/429/38"  # (200 + 180) / 10
    assert hand.ask(40, "a2", 200) == "a2:in"  # -190 + 390 = 200
    assert hand.ask(41, "a3", 700) == "a3:too_large/429/never"


def test_azure_ptu_turns_away_above_one_and_says_when_it_is_one() -> None:
    hand = Hand(AzurePtu(units=2))  # 5000 a minute: 83.3 a second, 5000 are utilisation 1
    assert hand.ask(0, "a1", 2000, 1500) == "a1:in"  # 2000 + 3 * 1500 = 6500, found 0
    assert hand.ask(0, "a2", 1000, 500) == "a2:tokens/429/18"  # (6500 - 5000) / 83.3
    hand.end(6, "a1", 500)  # 6500 - 500 drained - 3 * 1000 = 3000
    assert hand.ask(6, "a2", 1000, 500) == "a2:in"  # 5500
    assert hand.ask(6, "a3", 10, 10) == "a3:tokens/429/6"  # 500 / 83.3
    assert hand.ask(12, "a3", 10, 10) == "a3:in"  # 5000 is not above


def test_bedrock_reserves_max_tokens_and_burns_output_five_times() -> None:
    hand = Hand(Bedrock(tokens_per_min=60_000))  # 1000 a second
    assert hand.ask(0, "a1", 1000, 9000) == "a1:in"  # 50,000 left
    assert hand.ask(0, "a2", 1000, None) == "a2:too_large/429/never"  # 1000 + 64,000
    assert hand.ask(0, "a3", 1000, 49_000) == "a3:in"  # 0 left
    assert hand.ask(0, "a4", 1, 999) == "a4:tokens/429/1"
    hand.end(1, "a1", 2000)  # 1000 + 5 * 2000 = 11,000 in place of 10,000: 1000 - 1000 = 0
    assert hand.ask(1, "a4", 1, 999) == "a4:tokens/429/1"
    assert hand.ask(2, "a4", 1, 999) == "a4:in"
    hand.end(3, "a4", 0, cached=1)  # 999 come back, and the cached token: 1000 + 1000
    assert hand.ask(3, "a5", 0, 2000) == "a5:in"
    assert hand.ask(3, "a6", 1, 0) == "a6:tokens/429/1"


def test_dynamo_takes_turns_by_prompt_tokens_and_never_charges_the_output() -> None:
    hand = Hand(Dynamo(quantum=100), slots=1)
    hand.ask(0, "a0", 100)  # in at once, with nobody waiting: it leaves no debt
    for name, prompt in (("a1", 100), ("b1", 300), ("a2", 100), ("a3", 100)):
        assert hand.ask(0, name, prompt) == f"{name}:held"
    # a: 100 pays for a1.
    assert hand.end(1, "a0", 5000) == "a1:in"
    # a: 0 has had its turn, b: 100; then a: 100 pays for a2.
    assert hand.end(2, "a1", 5000) == "a2:in"
    # a: 0 has had its turn, b: 200; then a: 100 pays for a3, and nobody of a waits any more.
    assert hand.end(3, "a2", 5000) == "a3:in"
    # b: 300 pays for b1.
    assert hand.end(4, "a3", 1) == "b1:in"


def test_a_deficit_starts_at_nothing_whenever_nobody_of_a_flow_waited() -> None:
    """Neither credit nor debt outlives a queue (Shreedhar and Varghese 1995): here the debt of 900 tokens would."""
    hand = Hand(Drr(quantum=100, charge="prompt"), slots=1)
    for k in range(3):  # three requests that never waited
        assert hand.ask(2 * k, f"a{k}", 300) == f"a{k}:in"
        hand.end(2 * k + 1, f"a{k}", 10)
    assert hand.ask(10, "c0", 100) == "c0:in"
    for name in ("a3", "b1", "a4", "b2"):
        assert hand.ask(10, name, 100) == f"{name}:held"
    # Each turn's 100 tokens pay for one: a, b, a, b. With a's debt of 900 b would have come twice before it.
    turns = [hand.end(11 + i, name, 10) for i, name in enumerate(("c0", "a3", "b1", "a4"))]
    assert turns == ["a3:in", "b1:in", "a4:in", "b2:in"]


def test_kthena_serves_who_used_least_in_five_minutes() -> None:
    hand = Hand(Kthena(), slots=1)
    assert hand.ask(0, "a0") == "a0:in"
    hand.ask(1, "a1")
    hand.ask(2, "b1")
    assert hand.end(10, "a0", 100) == "b1:in"  # a 100 + 2 * 100 = 300, b 0
    hand.ask(11, "b2")
    assert hand.end(20, "b1", 200) == "a1:in"  # b 500
    hand.ask(21, "a2")
    assert hand.end(30, "a1", 150) == "b2:in"  # a 300 + 400 = 700, b 500
    assert hand.wait(81) == ""
    assert hand.wait(83).startswith("a2:queue_timeout/504/")  # it came at 21, and 60 s are over
    hand.ask(300, "b3")
    hand.ask(301, "a3")
    assert hand.end(311, "b2", 0) == "a3:in"  # a0's 300 are five minutes old: a 400, b 600


def test_k8s_apf_lends_what_is_not_wanted_every_ten_seconds() -> None:
    hand = Hand(K8sApf(shares={"a": 3}), slots=10)  # nominal 6, 2, 2; at least 3, 1, 1
    assert [hand.ask(0, f"b{i}") for i in range(4)] == ["b0:in", "b1:in", "b2:held", "b3:held"]
    assert hand.ask(0, "a0") == "a0:in"
    assert hand.wait(9) == ""
    # Demand was 1, 4, 0: targets 3, 4, 1 between least 3, 2, 1 and 10. F = 10/8: 3.75, 5, 1.25, in whole 4, 5, 1.
    assert hand.wait(10) == "b2:in b3:in"
    limits = {g.name: g.value for g in hand.policy.gauges(hand.core.pool, 10.0) if g.metric == "limit_slots"}
    assert limits == {"a": 4, "b": 5, "c": 1}
    assert [hand.ask(11, f"b{i}") for i in (4, 5)] == ["b4:in", "b5:held"]


@pytest.mark.parametrize("kind", PRESETS)
def test_a_preset_names_a_version_and_its_source(kind: str) -> None:
    params: Any = PRESETS[kind].params()
    assert params.version
    assert "Source:" in (PRESETS[kind].params.__doc__ or "")
    assert POLICIES[params.expand().kind].params is type(params.expand())
