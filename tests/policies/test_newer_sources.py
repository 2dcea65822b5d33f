"""Newer policies beside their sources: short sequences whose values were computed by hand, in the comments."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity.by_hand import A, B, C, Hand, P

from policies.concur import Concur
from policies.datarobot import DataRobot, QuotaRule
from policies.dlpm import Dlpm
from policies.fairserve import FairServe
from policies.llm_d_flow_control import LlmDFlowControl
from policies.polyserve import PolyServe


def text(name: int) -> dict[str, Any]:
    """A prompt that is all of one text."""
    return {"prefix": ((name, 1 << 40),)}


# --------------------------------------------------------------------------------------------------------------------
# DLPM: arXiv 2501.14312, fair_scheduler.py of tazjin/sglang


def test_dlpm_serves_the_longest_prefix_among_those_with_deficit_left() -> None:
    hand = Hand(Dlpm(quantum=100), slots=1)
    deficit = hand.policy.deficit
    assert hand.ask(0, "a0", 128, **text(1)) == "a0:in"  # alone: all get 100; 128 are computed
    assert [deficit(name) for name in "abc"] == [-28, 100, 100]
    assert hand.ask(1, "a1", 128, **text(1)) == "a1:held"
    assert hand.ask(2, "b1", 128, **text(2)) == "b1:held"
    assert hand.ask(2, "b2", 128, **text(1)) == "b2:held"
    assert hand.ask(3, "a2", 128, **text(3)) == "a2:held"
    # a is at -28 - 10. Of b's, b1 came first and nothing of it is cached; all of b2 is, and it costs nothing.
    assert hand.end(4, "a0", 10) == "b2:in"
    assert (deficit("a"), deficit("b")) == (-38, 100)
    assert hand.end(5, "b2", 40) == "b1:in"  # b 60, less 128
    assert (deficit("a"), deficit("b")) == (-38, -68)
    # Nobody who waits has any left: everybody at or below 0 gets 100, b too, which waits for nothing; c has enough.
    assert hand.end(6, "b1", 0) == "a1:in"  # text 1 again: nothing to compute
    assert [deficit(name) for name in "abc"] == [62, 32, 100]
    assert hand.end(7, "a1", 70) == "a2:in"  # -8, refilled to 92, less 128
    assert [deficit(name) for name in "abc"] == [-36, 32, 100]


def test_dlpm_refills_as_often_as_it_takes_and_corrects_what_it_took_for_uncached() -> None:
    hand = Hand(Dlpm(quantum=100), slots=1)
    hand.ask(0, "a0", 128, **text(1))
    hand.ask(1, "a1", 128, **text(2))
    # a is at -28 - 350 = -378. The replica had 96 of the 128 tokens after all: 96 back. -282 takes 3 refills: 18.
    assert hand.end(2, "a0", 350, cached=96) == "a1:in"
    assert hand.policy.deficit("a") == 18 - 128
    assert hand.policy.deficit("b") == 100  # never above one quantum


def test_dlpm_sends_a_request_to_the_replica_with_its_text_while_that_has_a_free_slot() -> None:
    hand = Hand(Dlpm(), slots=4, replicas=2)
    hand.ask(0, "a0", 128, **text(1))
    hand.ask(0, "a1", 128, **text(2))
    assert (hand.at("a0"), hand.at("a1")) == (0, 1)
    hand.ask(1, "a2", 128, **text(2))
    hand.ask(1, "a3", 128, **text(2))  # two slots a replica: there is none left where its text is
    assert (hand.at("a2"), hand.at("a3")) == (1, 0)


@given(
    sizes=st.lists(st.tuples(st.sampled_from("ab"), st.integers(64, 300), st.integers(0, 200)), min_size=4, max_size=60)
)
def test_dlpm_keeps_clients_that_wait_all_the_time_within_its_bound(sizes: list[tuple[str, int, int]]) -> None:
    quantum, hand = 128.0, Hand(Dlpm(quantum=128.0, timeout_s=None), (A, B), slots=1)
    served, worst = {"a": 0.0, "b": 0.0}, 0.0
    waiting: list[tuple[str, int, int]] = []
    running = ""
    for number, (name, prompt, output) in enumerate([("a", 64, 0), *[(n, p, o) for n in "ab" for _, p, o in sizes]]):
        said = hand.ask(0, f"{name}{number}", prompt, 300)
        if said.endswith(":in"):
            running = f"{name}{number}"
        waiting.append((f"{name}{number}", prompt, output))
    base = dict(served)
    left = dict.fromkeys("ab", len(sizes))
    for step in range(len(sizes)):
        name, prompt, output = next(one for one in waiting if one[0] == running)
        worst = max(worst, prompt + output)
        served[name[0]] += prompt + output
        said = hand.end(1 + step, running, output)
        running = said.partition(":")[0]
        if not running:
            break
        left[running[0]] -= 1
        if min(left.values()) <= 0:
            break  # one of them waits no longer
        assert abs((served["a"] - base["a"]) - (served["b"] - base["b"])) <= 2 * (quantum + worst)


# --------------------------------------------------------------------------------------------------------------------
# CONCUR: arXiv 2601.22705


def test_concur_admits_agents_and_moves_their_number_by_the_cache() -> None:
    hand = Hand(Concur(agents=1), slots=100)
    assert hand.ask(0.1, "a1", session="s1") == "a1:in"
    assert hand.ask(0.2, "a2", session="s1") == "a2:in"  # the same agent
    assert hand.ask(0.3, "b1", session="s2") == "b1:held"
    assert hand.end(0.4, "a1") + hand.end(0.5, "a2") == ""  # in a tool call it keeps its place
    hand.report(0.9, 0, 0.1)
    assert hand.wait(1.0) == "b1:in"  # 0.1 < 0.2: 1 + 2 = 3 agents
    assert hand.ask(1.1, "c1", session="s3") == "c1:in"
    hand.end(1.2, "b1")
    hand.report(1.9, 0, 0.6)
    assert hand.wait(2.0) == ""  # 0.6 > 0.5, and none of b1's prompt was found: floor(0.5 * 3) = 1
    assert hand.policy.agents_allowed == 1
    assert hand.ask(2.1, "a3", session="s1") == "a3:held"  # paused at its next call
    assert hand.ask(2.2, "c2", session="s3") == "c2:in"  # one of its calls runs: it is not at the end of a step
    assert hand.ask(2.3, "b9", session="s4") == "b9:held"
    hand.end(2.4, "c1")
    hand.end(2.5, "c2")
    hand.report(2.9, 0, 0.1)
    assert hand.wait(3.0) == "a3:in"  # 3 again; s2 and s3 have two, the paused come first
    assert hand.wait(4.0) == "b9:in"  # 5


def test_concur_holds_while_prefixes_are_found_and_frees_the_place_of_who_is_silent() -> None:
    hand = Hand(Concur(agents=2, idle_s=5.0), slots=100)
    hand.ask(0.1, "a1", session="s1")
    hand.ask(0.1, "a2", session="s2")
    hand.ask(0.2, "b1", session="s3")
    hand.end(0.3, "a1", cached=30)
    hand.report(0.9, 0, 0.9)
    hand.wait(1.0)
    assert hand.policy.agents_allowed == 2  # full, but 30 of 100 prompt tokens were found: not below 0.2
    assert hand.wait(5.0) == ""
    hand.report(5.1, 0, 0.3)
    assert hand.wait(6.0) == "b1:in"  # s1 was last heard of at 0.3; s2 still runs


# --------------------------------------------------------------------------------------------------------------------
# FairServe: arXiv 2411.15997, two re-implementations


def test_fairserve_throttles_what_begins_in_an_overloaded_pool_and_nothing_else() -> None:
    hand = Hand(FairServe(user_per_min=2, app_per_min=3, overloaded_running=1, overloaded_kv_tokens=10**6), slots=9)
    assert hand.ask(0, "a0", key="u1", session="s1") == "a0:in"
    assert hand.ask(1, "a1", key="u1") == "a1:in"  # one runs: overloaded; u1 has begun 1 of 2
    assert hand.ask(2, "a2", key="u1") == "a2:requests/429/58"  # 2 of 2; the one of 0 s leaves at 60 s
    assert hand.ask(3, "a3", key="u1", session="s1") == "a3:in"  # in the middle of s1
    assert hand.ask(4, "a4", key="u2") == "a4:requests/429/56"  # a has had 3 of 3
    assert hand.ask(5, "b1", key="u2") == "b1:in"
    for name in ("a0", "a1", "a3", "b1"):
        hand.end(6, name)
    assert hand.ask(7, "a5", key="u1") == "a5:in"  # not overloaded
    assert hand.ask(8, "a6", key="u1", session="s9") == "a6:requests/429/55"  # at 0, 1, 3, 7: the one of 3 must go


def test_fairserve_counts_an_application_s_tokens_by_what_is_usual_for_it() -> None:
    params = FairServe(usual_prompt_tokens=100, usual_output_tokens=100, usual_output_tokens_by={"b": 50.0},
                       system_tokens={"c": 50}, overloaded_running=99, overloaded_kv_tokens=10**6)  # fmt: skip
    hand = Hand(params, slots=1)
    assert hand.ask(0, "a0") == "a0:in"  # a 1
    assert hand.ask(1, "a1") == "a1:held"
    assert hand.ask(1, "b1") == "b1:held"  # b is lifted to 1, the least of those who wait
    assert hand.end(2, "a0", 50) == "b1:in"  # a 1 + 2 * 50/100 = 2; b 1, and 2 with its prompt
    assert hand.ask(2, "b2") == "b2:held"
    assert hand.end(3, "b1", 50) == "a1:in"  # b 2 + 2 * 50/50 = 4; a 2, and 3
    assert hand.ask(3, "c1", 100) == "c1:held"  # lifted to 4, the least of those who wait
    assert hand.end(4, "a1", 0) == "b2:in"  # 4 both: b came first; b 5
    assert hand.end(5, "b2", 0) == "c1:in"
    assert hand.policy._counters["c"] == pytest.approx(50 / 100 + 50 / 50)


# --------------------------------------------------------------------------------------------------------------------
# PolyServe: arXiv 2507.17769, the admission test of its port to Llumnix

POLY = PolyServe(
    tpot_slo_s={"a": 0.055, "b": 0.1}, base_s=0.02, per_sequence_s=0.01, per_context_token_s=0.0,
    per_prompt_token_s=0.001,
)  # fmt: skip


def test_polyserve_fills_a_tier_s_fullest_replica_then_tighter_ones_then_an_empty_one() -> None:
    hand = Hand(POLY, (A, B), slots=100, replicas=2)
    for number in range(3):  # iterations of 0.03, 0.04 and 0.05 s: 0.055 at most
        hand.ask(0, f"a{number}")
    assert [hand.at(f"a{number}") for number in range(3)] == [0, 0, 0]
    hand.ask(0, "a3")  # a fourth would make 0.06: an empty replica becomes a's
    hand.ask(0, "b0")  # none is b's and none empty: replica 1 by a's measure, 0.04
    hand.ask(0, "a4")  # and a's own, 0.05
    assert [hand.at(name) for name in ("a3", "b0", "a4")] == [1, 1, 1]
    assert hand.ask(0, "b1") == "b1:held"  # 0.06 on both
    assert hand.end(1, "a0") == "b1:in"
    assert hand.at("b1") == 0
    for name in ("a3", "b0"):
        hand.end(2, name)
    hand.end(2, "a1")
    # Replica 0 has two (a2, b1), replica 1 one (a4): the fuller takes it.
    hand.ask(3, "a5")
    assert hand.at("a5") == 0


def test_polyserve_keeps_first_tokens_in_time_and_waiting_eats_into_it() -> None:
    hand = Hand(POLY, (A, B), slots=100)
    assert hand.ask(0, "a0", 500) == "a0:in"  # empty: 0.5 s
    # 500 + 460 tokens and 0.03 s of the iteration are 0.99 s of 1; with 480 they are 1.01.
    assert hand.ask(0, "a1", 480) == "a1:held"
    hand.first(0.6, "a0")
    # 0.1 s later its own 480 tokens are all that is ahead: 0.6 s waited + 0.48 + 0.03 = 1.11, still too late.
    assert hand.wait(0.7) == ""
    assert hand.end(0.8, "a0") == "a1:in"  # an empty replica takes it, late as it is


def test_polyserve_may_refuse_what_is_late_everywhere() -> None:
    hand = Hand(PolyServe(tpot_slo_s={"a": 0.055}, per_prompt_token_s=0.001, refuse_late=True), (A, B), slots=100)
    hand.ask(0, "a0", 600)
    assert hand.ask(0, "a1", 600).startswith("a1:slo/429")  # 1.2 s of 1
    assert hand.ask(0, "a2", 300) == "a2:in"


# --------------------------------------------------------------------------------------------------------------------
# DataRobot 11.9


def test_datarobot_keeps_reserved_shares_from_the_threshold_on() -> None:
    hand = Hand(DataRobot(capacity=1000, threshold=0.5, reserved={"a": 0.4}), slots=9)
    hand.ask(0, "b1")
    hand.end(1, "b1", 300)  # 400 of 1000; the minute begins at 1 s
    assert hand.ask(2, "b2") == "b2:in"  # below 500: first come, first served
    hand.end(3, "b2", 100)  # 600
    assert hand.ask(4, "b3") == "b3:tokens/429/57"  # 400 left, and 400 are a's
    assert hand.ask(4, "a1") == "a1:in"
    hand.end(5, "a1", 50)  # 750, a 150
    assert hand.ask(6, "b4") == "b4:tokens/429/55"  # 250 left, 250 a's
    assert hand.ask(7, "a2") == "a2:in"
    hand.end(8, "a2", 100)  # 950, a 350 of its 400
    assert hand.ask(8, "b5") == "b5:tokens/429/53"  # 50 left, 50 a's
    assert hand.ask(8, "a3") == "a3:in"
    hand.end(9, "a3", 100)  # 1150
    assert hand.ask(9, "a4") == "a4:tokens/429/52"  # nothing is left at all
    assert hand.ask(61, "b6") == "b6:in"


def test_datarobot_limits_each_consumer_before_anything_else() -> None:
    rules = (
        QuotaRule(rule="concurrentRequests", limit=1), QuotaRule(rule="inputSequenceLength", limit=200),
        QuotaRule(rule="requests", limit=2, window="min"),
    )  # fmt: skip
    hand = Hand(DataRobot(capacity=10**6, rules=rules), slots=9)
    assert hand.ask(0, "a0", 201) == "a0:too_large/429/never"
    assert hand.ask(0, "a1") == "a1:in"
    assert hand.ask(0, "a2") == "a2:concurrency/429/1"
    hand.end(1, "a1")
    assert hand.ask(1, "a3") == "a3:in"
    hand.end(2, "a3")
    assert hand.ask(3, "a4") == "a4:requests/429/57"  # 2 in the minute that began at 0 s
    assert hand.ask(3, "b1") == "b1:in"
    with pytest.raises(ValueError, match=r"sum to 1\.1"):
        DataRobot(reserved={"a": 0.6, "b": 0.5})


# --------------------------------------------------------------------------------------------------------------------
# llm-d's flow control: llm-d-router, commit ebab687


def test_llm_d_lets_one_go_a_cycle_which_comes_with_arrivals_and_ticks() -> None:
    hand = Hand(LlmDFlowControl(tick_s=0.5, stale_s=10.0), slots=9)
    hand.report(0.0, 5, 0.0)  # 5 waiting of 5: full
    assert hand.ask(0.1, "a1") == "a1:held"
    assert hand.ask(0.1, "a2") == "a2:held"
    assert hand.ask(0.1, "b1") == "b1:held"
    assert hand.report(0.2, 0, 0.0) == ""  # open, but no cycle comes with a report
    assert hand.wait(0.5) == "a1:in"
    assert hand.wait(1.0) == "a2:in"
    assert hand.ask(1.2, "c1") == "c1:held b1:in"  # its cycle goes to the highest band that waits
    assert hand.wait(1.5) == "c1:in"
    assert hand.ask(1.6, "a3") + " " + hand.ask(1.6, "a4") == "a3:in a4:in"  # the gate remembers nothing


def test_llm_d_stops_at_a_shut_gate_and_takes_a_stale_replica_for_full() -> None:
    hand = Hand(LlmDFlowControl(tick_s=0.1), slots=9)
    assert hand.ask(0.0, "a1") == "a1:held"  # nobody has reported
    hand.report(0.05, 4, 0.0)
    assert hand.wait(0.1) == "a1:in"  # 0.8
    assert hand.ask(0.3, "a2") == "a2:held"  # 0.25 s old
    ignoring = Hand(LlmDFlowControl(tick_s=0.1, staleness="ignore"), slots=9)
    assert ignoring.ask(0.0, "a1") == "a1:in"
    # Held back from 1.0 for the highest of three bands to 0.7 for the lowest: at 0.8 the cycle ends before c.
    held_back = Hand(LlmDFlowControl(tick_s=0.1, stale_s=9, ceilings="holdback"), slots=9)
    held_back.report(0.0, 4, 0.0)
    assert [held_back.ask(0.01, name) for name in ("a1", "b1", "c1")] == ["a1:in", "b1:in", "c1:held"]


def test_llm_d_goes_by_the_fuller_stage_and_not_by_their_mean() -> None:
    hand = Hand(LlmDFlowControl(tick_s=0.1, stale_s=9, prefill_replicas=(0,)), slots=9, replicas=2)
    hand.report(0.0, 5, 0.0, replica=0)
    hand.report(0.0, 0, 0.0, replica=1)
    assert hand.ask(0.01, "a1") == "a1:held"  # 1.0 and 0; without stages 0.5
    assert Hand(LlmDFlowControl(detector="concurrency", prefill_replicas=(0,)), slots=9).ask(0, "a1") == "a1:in"


def test_llm_d_charges_programs_at_the_end_and_serves_the_least_served() -> None:
    twin = (B, type(B)(name="d", tenant="d", service_class=B.service_class))
    hand = Hand(LlmDFlowControl(tick_s=0.5, stale_s=99, fairness="program-aware"), twin, slots=9)
    hand.report(0.0, 0, 0.0)
    hand.ask(0, "b0", 1000)
    hand.end(0.1, "b0", 10)  # b 1000 + 2 * 10
    hand.report(0.2, 5, 0.0)
    for name in ("b1", "d1", "d2"):
        assert hand.ask(0.3, name) == f"{name}:held"
    hand.report(0.4, 0, 0.0)
    # d has used nothing: 0.8 for it against at most 0.2 for waiting. What d1 uses counts when it has ended: d2 follows.
    assert [hand.wait(at_s) for at_s in (0.5, 1.0, 1.5)] == ["d1:in", "d2:in", "b1:in"]


def test_llm_d_evicts_two_at_most_and_waits_until_reports_can_show_it() -> None:
    hand = Hand(LlmDFlowControl(tick_s=0.1, stale_s=99, evict=True), (A, C, P), slots=9)
    hand.report(0.0, 0, 0.0)
    for number in range(4):
        hand.ask(0.01, f"p{number}")
    hand.report(0.05, 8, 0.0)  # 1.6
    assert hand.ask(0.06, "a1") == "a1:held"
    # (1.6 - 1) / (1.6 / 4) = 1.5: two, the newest first.
    assert hand.wait(0.1) == "p3:evicted p2:evicted"
    assert hand.wait(2.3) == ""  # 2.3 s until the next
    assert "p1:evicted" in hand.wait(2.5)
