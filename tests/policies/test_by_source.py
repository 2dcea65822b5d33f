"""Policies beside their sources: short sequences whose values were computed by hand, in the comments."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity.by_hand import A, Hand, P

from policies.adaptive import Adaptive
from policies.api import Finished
from policies.bands import Bands
from policies.cap import Cap
from policies.cohort import Cohort
from policies.dagor import Dagor
from policies.dedicated import Dedicated
from policies.fair_queue import Las, Vtc
from policies.meters import ContinuousBucket, FixedWindow, SlidingWindow
from policies.parts.saturation import InFlightShare, Ledger, QueueAndKv
from policies.rate_limit import RateLimit
from policies.slo_feasible import SloFeasible
from policies.window import Longer, Window


def gauge(hand: Hand, metric: str, name: str = "pool", now_s: float = 0.0) -> float:
    (value,) = [g.value for g in hand.policy.gauges(hand.core.pool, now_s) if (g.metric, g.name) == (metric, name)]
    return float(value)


# --------------------------------------------------------------------------------------------------------------------
# VTC: arXiv 2401.00588, Algorithm 2, weights 1 and 2


def test_vtc_lifts_who_comes_back_to_the_least_of_those_who_wait() -> None:
    hand = Hand(Vtc(), slots=1)
    assert hand.ask(0, "a0", 100) == "a0:in"  # a 100
    assert hand.ask(1, "a1", 100) == "a1:held"
    assert hand.ask(2, "b1", 100) == "b1:held"  # b 0, lifted to a's 100
    assert hand.end(3, "a0", 50) == "b1:in"  # a 100 + 2 * 50 = 200; b 100 is less, and is 200 with its prompt
    assert hand.ask(3, "b2", 100) == "b2:held"  # b 200, lifted to nothing above it
    assert hand.end(4, "b1", 1) == "a1:in"  # b 202, a 200 and then 300
    assert hand.ask(5, "a2", 100) == "a2:held"
    assert hand.end(6, "a1", 0) == "b2:in"  # a 300, b 202


def test_vtc_lifts_who_finds_nobody_waiting_to_whoever_left_last() -> None:
    hand = Hand(Vtc(), slots=1)
    assert hand.ask(0, "a0", 300) == "a0:in"  # a 300
    hand.ask(1, "a1", 50)
    assert hand.end(2, "a0", 0) == "a1:in"  # a 350, and the queue is empty: a left it last
    assert hand.ask(3, "b1", 30) == "b1:held"  # nobody waits: b is lifted from 0 to 350
    assert hand.ask(3, "b2", 30) == "b2:held"
    assert hand.ask(4, "a2", 30) == "a2:held"  # a 350, not below the least of those who wait
    assert hand.end(5, "a1", 0) == "b1:in"  # 350 both: who began to wait first; b 380
    # Without the lift b would be at 30 now, and come again before a.
    assert hand.end(6, "b1", 0) == "a2:in"


# --------------------------------------------------------------------------------------------------------------------
# DAGOR: arXiv 1806.04075, windows of 1 s or 2000 requests, 5 % down, 1 % up


def dagor_asks(hand: Hand, at_s: float, **counts: int) -> str:
    said = [
        hand.ask(at_s, f"{name}{at_s:g}/{k}", 10).rpartition(":")[2] for name, n in counts.items() for k in range(n)
    ]
    return " ".join(sorted(set(said)))


@pytest.mark.parametrize(("counts", "b_stays"), [
    ({"a": 90, "b": 4, "c": 6}, True),  # of 100 without c's 6 there are 94: at most 95, enough
    ({"a": 90, "b": 5, "c": 5}, True),  # 95 is enough
    ({"a": 90, "b": 6, "c": 4}, False),  # 96 are too many: b goes too
])  # fmt: skip
def test_dagor_shuts_out_a_twentieth_and_lets_a_hundredth_in(counts: dict[str, int], b_stays: bool) -> None:
    hand = Hand(Dagor(threshold_s=0.5), slots=1000)
    assert dagor_asks(hand, 0.1, **counts) == "in"
    hand.first(0.7, "a0.1/0")  # 0.6 s > 0.5 s: overload, seen when the window ends at 1 s
    assert dagor_asks(hand, 0.99, c=1) == "in"
    assert hand.ask(1.01, "c1") == "c1:overloaded/429/1"
    assert hand.ask(1.01, "b1") == ("b1:in" if b_stays else "b1:overloaded/429/1")
    assert hand.ask(1.01, "a1") == "a1:in"
    hand.first(1.1, "a1")  # the mean of this window is 0.09 s
    # One more of a hundredth: the next class that asks is let in at 2 s, c only where b was in already.
    assert hand.ask(2.01, "b2") == "b2:in"
    assert hand.ask(2.01, "c2").startswith("c2:in" if b_stays else "c2:overloaded")


def test_dagor_ends_a_window_after_two_thousand_requests_and_begins_the_next_one_then() -> None:
    hand = Hand(Dagor(threshold_s=0.5), slots=5000)
    assert dagor_asks(hand, 0.0, a=900, c=99) == "in"
    hand.first(0.51, "a0/0")  # overload
    assert dagor_asks(hand, 0.52, b=1000) == "in"  # 1999
    assert hand.ask(0.57, "c1") == "c1:in"  # the 2000th ends the window
    assert hand.ask(0.58, "c2") == "c2:overloaded/429/1"
    assert hand.ask(1.5, "a1") == "a1:in"  # at 1 s the window was 0.43 s old: it goes on
    hand.first(1.52, "a1")  # 0.02 s
    assert hand.ask(1.99, "c3").startswith("c3:overloaded")
    assert hand.ask(2.01, "c4") == "c4:in"


# --------------------------------------------------------------------------------------------------------------------
# Limits that find themselves: Netflix/concurrency-limits


def adaptive(limit: Any, initial: int, in_flight: int, **more: Any) -> tuple[Hand, Any]:
    """Return a hand with so many in flight, and what a TTFT makes of the limit; each sample's request is one more."""
    hand = Hand(Adaptive(limit=limit, initial=initial, **more), slots=5000)
    for k in range(in_flight - 1):
        assert hand.ask(0, f"a{k}").endswith(":in")
    clock = [0.0]

    def sample(ttft_s: float) -> float:
        name = f"a{clock[0]:g}"
        assert hand.ask(clock[0], f"{name}x").endswith(":in")
        hand.first(clock[0] + ttft_s, f"{name}x")
        clock[0] += 10
        hand.end(clock[0] - 1, f"{name}x", 1)
        return gauge(hand, "limit_slots")

    return hand, sample


def test_aimd_adds_one_and_takes_a_tenth_between_its_bounds() -> None:
    _, sample = adaptive("aimd", 30, in_flight=15)
    assert sample(1.0) == 31  # 2 * 15 >= 30
    assert sample(1.0) == 31  # 30 < 31: the limit did not bind
    assert sample(5.0) == 31  # not above 5 s
    assert sample(5.1) == pytest.approx(27.9)
    assert sample(5.1) == pytest.approx(25.11)
    assert [sample(5.1) for _ in range(3)] == pytest.approx([22.599, 20.3391, 20.0])  # 18.3 is below the least
    _, sample = adaptive("aimd", 199, in_flight=100)
    assert [sample(1.0) for _ in range(2)] == [200, 200]
    assert Adaptive(limit="aimd").bounds() == Adaptive(limit="gradient2").bounds() == (20, 200)
    assert Adaptive(limit="vegas").bounds() == (1, 1000)


def test_vegas_estimates_a_queue_against_three_and_six_logarithms() -> None:
    _, sample = adaptive("vegas", 20, in_flight=17)  # times are eighths and the like, which floats have exactly
    assert sample(16 / 128) == 20  # the fastest
    assert sample(16 / 128) == 26  # queue ceil(20 * 0) = 0 <= 1: up by beta, 6
    assert sample(16 / 128) == 32
    assert sample(17 / 128) == 33  # 32 * (1 - 16/17) = 1.9, so 2 < alpha = 3: up by 1
    assert sample(19 / 128) == 33  # 33 * 3/19 = 5.2, so 6: between 3 and 6
    assert sample(32 / 128) == 32  # 33 * 1/2 = 16.5, so 17 > 6: down by 1
    assert sample(16 / 128) == 38
    assert sample(16 / 128) == 38  # 2 * 17 < 38: the limit did not bind
    _, sample = adaptive("vegas", 100, in_flight=60)  # log10 is 2: alpha 6, beta 12
    assert [sample(0.125), sample(0.125)] == [100, 112]
    assert sample(0.25) == 110  # 56 > 12: down by 2
    _, sample = adaptive("vegas", 1, in_flight=1)
    assert [sample(0.125), sample(0.25)] == [1, 7]  # queue ceil(1 * 1/2) = 1 <= 1; log10 of less than 10 counts 1
    _, sample = adaptive("vegas", 999, in_flight=501)
    assert [sample(0.125), sample(0.125)] == [999, 1000]


def test_gradient2_follows_a_long_average_between_a_half_and_one() -> None:
    _, sample = adaptive("gradient2", 100, in_flight=52)
    # long 1; gradient 1: 0.8 * 100 + 0.2 * (100 + 4)
    assert sample(1.0) == pytest.approx(100.8)
    # long 1 + 3 * 2/601 = 1.009983; 1.5 * 1.009983 / 4 = 0.379, at least 0.5: 0.8 * 100.8 + 0.2 * (50.4 + 4)
    assert sample(4.0) == pytest.approx(91.52)
    # long 1.009983 + 0.990017 * 2/601 = 1.013278; gradient 0.759958: 0.8 * 91.52 + 0.2 * (69.551392 + 4)
    assert sample(2.0) == pytest.approx(87.926278, abs=1e-4)
    # long 1.011237, 2.5 times the 0.4: it becomes 0.95 of that, 0.960675; gradient 1
    assert sample(0.4) == pytest.approx(88.726278, abs=1e-4)
    # long 0.960675 + 1.039325 * 2/601 = 0.964134; gradient 0.723100: 0.8 * 88.726278 + 0.2 * (64.157993 + 4)
    assert sample(2.0) == pytest.approx(84.612621, abs=1e-4)
    _, sample = adaptive("gradient2", 20, in_flight=11)
    assert [sample(0.1), sample(5.0)] == pytest.approx([20.8, 20.0])  # 0.8 * 20.8 + 0.2 * 14.4 = 19.5 < 20


# --------------------------------------------------------------------------------------------------------------------
# LAS: llm-d's program-aware plugin, 0.8 and 0.2, half-life 60 s


def test_las_halves_what_was_used_and_adds_a_fifth_for_waiting() -> None:
    hand = Hand(Las(timeout_s=None), slots=1)
    assert hand.ask(0, "a0", 100) == "a0:in"
    assert hand.end(0, "a0", 70) == ""  # a 100 + 2 * 70 = 240 at 0 s
    assert hand.ask(0, "b0", 4) == "b0:in"
    assert hand.end(0, "b0", 10) == ""  # b 24
    assert hand.ask(1, "c0", 0) == "c0:in"
    for at_s, name in ((30, "b1"), (50, "a1"), (58, "c1")):
        hand.ask(at_s, name)
    # At 60 s: a 120, b 12, c 0, from the least to the most 1, 0.1, 0. Waited 10, 30 and 2 s: 0.29, 1, 0.
    # a: 0.2 * 0.29 = 0.06; b: 0.8 * 0.9 + 0.2 = 0.92; c: 0.8. What was used alone would say c.
    assert hand.end(60, "c0", 0) == "b1:in"
    # At 120 s: a 60, c 0: 1, 0. Waited 70 and 62 s: 1, 0. a: 0.2; c: 0.8.
    assert hand.end(120, "b1", 0) == "c1:in"
    hand.ask(120, "b2", 100)
    # At 180 s: b 6 at 120 s and its prompt of 100: 53; a 30; c 0 + 2 * 30 = 60, and does not wait: b 1, a 0.
    assert hand.end(180, "c1", 30) == "a1:in"


# --------------------------------------------------------------------------------------------------------------------
# Windows and buckets


def test_fixed_windows_begin_with_the_clock_or_with_a_request_and_forget_at_once() -> None:
    for starts, retry in (("by-clock", (10, 10)), ("first-request", (55, 55))):
        hand = Hand(Window(requests_per_min=2, starts=starts), slots=100)
        assert (hand.ask(45, "a1"), hand.ask(50, "a2")) == ("a1:in", "a2:in")
        # By the clock the window is [0, 60); by the first request [45, 105).
        assert hand.ask(50, "a3") == f"a3:requests/429/{retry[0]}"
        assert hand.ask(60, "a4") == ("a4:in" if starts == "by-clock" else "a4:requests/429/45")
        assert hand.ask(104.5, "a5") == ("a5:in" if starts == "by-clock" else "a5:requests/429/1")
        assert hand.ask(105, "a6") == ("a6:requests/429/15" if starts == "by-clock" else "a6:in")


def test_twice_the_limit_passes_where_fixed_windows_meet_and_not_in_a_sliding_one() -> None:
    """The known fault of fixed windows: the end of one and the beginning of the next."""
    fixed, sliding = FixedWindow(limit=10, window_s=60, by_clock=True), SlidingWindow(limit=10, window_s=60)
    passed = [0, 0]
    for k in range(40):  # two a second from 50 s to 70 s
        now_s = 50 + k / 2
        if fixed.available(now_s) >= 1:
            fixed.reserve(1, now_s)
            passed[0] += 1
        if sliding.wait_s(1, now_s) == 0:
            sliding.reserve(1, now_s)
            passed[1] += 1
    assert passed == [20, 10]


def test_of_several_windows_the_longest_wait_is_said() -> None:
    hand = Hand(Window(tokens_per_min=1000, also=(Longer(tokens=1500, window_s=3600),)), slots=10)
    assert hand.ask(0, "a1", 1000) == "a1:in"
    hand.end(10, "a1", 0)  # 1000 of 1000, and of 1500
    assert hand.ask(20, "a2") == "a2:tokens/429/40"
    assert hand.ask(60, "a3", 600) == "a3:in"
    hand.end(61, "a3", 0)  # 600 of 1000, 1600 of 1500
    assert hand.ask(70, "a4") == "a4:tokens/429/3530"


def test_a_bucket_is_the_generic_cell_rate_algorithm_by_hand() -> None:
    """ITU-T I.371: one each 6 s, three at once: increment T = 6, tolerance 12. TAT is the theoretical arrival time."""
    bucket = ContinuousBucket(rate_per_s=1 / 6, depth=3)
    # time: TAT before -> whether time >= TAT - 12, and how long until then
    steps = [
        (0, 0),  # TAT 0 -> 6
        (0, 0),  # 6 -> 12
        (0, 0),  # 12 -> 18
        (0, 6),  # 18 - 12 = 6
        (6, 0),  # 18 -> 24
        (11, 1),  # 24 - 12 = 12
        (12, 0),  # 24 -> 30
        (40, 0),  # max(40, 30) -> 46
        (40, 0),  # -> 52
        (40, 0),  # -> 58
        (45, 1),  # 58 - 12 = 46
    ]
    for at_s, wait_s in steps:
        assert bucket.wait_s(1, at_s) == pytest.approx(wait_s), at_s
        if not wait_s:
            bucket.reserve(1, at_s)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), max_size=60), st.integers(1, 9), st.integers(12, 90))
def test_a_bucket_is_the_generic_cell_rate_algorithm(steps: list[tuple[int, int]], each_s: int, depth: int) -> None:
    bucket, now_s, arrival_s = ContinuousBucket(rate_per_s=1 / each_s, depth=depth), 0, 0
    for gap_s, need in steps:
        now_s += gap_s
        early_s = max(0, max(arrival_s, now_s) + need * each_s - depth * each_s - now_s)  # whole seconds: exact
        assert bucket.wait_s(need, now_s) == pytest.approx(early_s, abs=1e-6)
        if early_s == 0:
            bucket.reserve(need, now_s)
            arrival_s = max(arrival_s, now_s) + need * each_s


def test_a_rate_limit_waits_for_the_bucket_that_lacks_most() -> None:
    hand = Hand(RateLimit(requests_per_min=60, tokens_per_min=6000, burst_s=2), slots=100)
    # Two requests and 200 tokens at once, then one request and 100 tokens a second.
    assert hand.ask(0, "a1", 50, 50) == "a1:in"  # 1 request, 100 tokens left
    assert hand.ask(0, "a2", 100, 50) == "a2:tokens/429/1"  # 50 tokens are missing: 0.5 s
    assert hand.ask(0.5, "a2", 100, 50) == "a2:in"  # 150 - 150; 1.5 - 1 requests
    assert hand.ask(0.5, "a3", 1, 1) == "a3:requests/429/1"  # half a request is missing
    assert hand.ask(2, "a4", 300, 1) == "a4:too_large/429/never"


# --------------------------------------------------------------------------------------------------------------------
# llm-d: evictions and their grace


@pytest.mark.parametrize(("saturation", "next_s"), [
    (Ledger(), 1.51),  # 0.5 s after 1.01
    (InFlightShare(requests_per_replica=4), 1.02),  # 10 ms
])  # fmt: skip
def test_llm_d_evicts_the_newest_and_waits_until_it_shows(saturation: Any, next_s: float) -> None:
    hand = Hand(Bands(evict=True, saturation=saturation, tick_s=0.01), (A, P), slots=4)
    for k in range(4):
        assert hand.ask(0.1 * k, f"p{k}") == f"p{k}:in"
    # Saturation 1 has reached the ceiling of 1; the excess is 0, so one goes: the newest.
    assert (hand.ask(1, "a1"), hand.ask(1.002, "a2")) == ("a1:held", "a2:held")
    hand.wait(3)
    evictions = [(pytest.approx(at_s), text) for at_s, text in hand.said if text.endswith("evicted")]
    assert evictions == [(1.01, "p3:evicted"), (next_s, "p2:evicted")]


def test_llm_d_evicts_as_many_as_the_excess_calls_for_but_two_at_most_and_waits_2_3_s_for_reports() -> None:
    hand = Hand(Bands(evict=True, saturation=QueueAndKv(), tick_s=0.1), (A, P), slots=100)
    hand.report(0, waiting=0, kv=0.1)
    for k in range(6):
        assert hand.ask(0, f"p{k}") == f"p{k}:in"
    hand.report(1, waiting=7, kv=0.1)  # 7/5 = 1.4, of six in flight 0.233 each: an excess of 0.4 are 1.7 of them
    assert hand.ask(1.05, "a1") == "a1:held"
    assert hand.wait(1.15) == "p5:evicted p4:evicted"
    hand.report(2, waiting=15, kv=0.1)  # 3, of four 0.75 each: 2.7 of them, so 3; two at most
    assert hand.wait(3.35) == ""  # until 1.1 + 2.3 = 3.4
    assert hand.wait(3.45) == "p3:evicted p2:evicted"
    hand.report(4, waiting=4, kv=0.1)  # 0.8: open
    assert hand.wait(4.1) == "" or hand.said[-1][1] == "a1:in"
    assert (hand.said[-1][1], hand.core.pool.all_in_flight) == ("a1:in", 3)


# --------------------------------------------------------------------------------------------------------------------
# Deadlines, cohorts, caps, endpoints of one's own


def test_slo_feasible_predicts_from_what_is_ahead() -> None:
    """Niyama's 8500 tokens a second at first, a margin of 1.2; the objective of a is 1 s, of b 10 s."""
    hand = Hand(SloFeasible(), slots=100)
    assert hand.ask(0, "a0", 17_000) == "a0:in"  # 2.4 s > 1 s, but the pool is idle
    assert hand.ask(0, "a1", 100) == "a1:slo/429/2"  # 1.2 * 17,100 / 8500 = 2.41 s: 1.41 s too late
    assert hand.ask(0, "b1", 51_000) == "b1:in"  # 1.2 * 68,000 / 8500 = 9.6 s <= 10 s
    assert hand.ask(0, "b2", 17_000) == "b2:slo/429/2"  # 12 s
    assert hand.ask(0, "c1", 10**6) == "c1:in"  # no objective
    hand.first(4, "a0")  # 17,000 in 4 s is 4250 a second: 8500 - 0.005 * 4250 = 8478.75
    assert gauge(hand, "prefill_tokens_per_s") == pytest.approx(8478.75)


def test_slo_feasible_puts_long_prompts_behind_by_eight_milliseconds_a_token() -> None:
    hand = Hand(SloFeasible(infeasible="relegate", margin=0.001), slots=1)
    hand.ask(0, "a0")
    hand.ask(0, "a1", 1000)  # 0 + 1 + 0.008 * 1000 = 9
    hand.ask(0.5, "a2", 900)  # 0.5 + 1 + 7.2 = 8.7
    hand.ask(0.6, "b1", 10)  # 0.6 + 10 + 0.08 = 10.68
    assert [hand.end(0.7, name, 1) for name in ("a0", "a2", "a1")] == ["a2:in", "a1:in", "b1:in"]


def test_slo_feasible_follows_the_line_of_times_per_token() -> None:
    hand = Hand(SloFeasible(tpot_slo_s=0.05, smoothing=0.995), slots=100)
    for at_s, others, tpot_s in ((0, 0, 0.01), (100, 3, 0.04)):
        for k in range(others):
            hand.ask(at_s, f"c{at_s}/{k}")
        hand.ask(at_s, f"b{at_s}", 10)
        hand.first(at_s + 1, f"b{at_s}")
        hand.core.handle(Finished(f"b{at_s}", 101), at_s + 1 + 100 * tpot_s)
    # Points (1, 0.01 s) and (4, 0.04 s): 0.01 s for each in flight. Three run: one more makes 0.04 s; two, 0.05 s.
    assert hand.ask(200, "b1", 10) == "b1:in"
    assert hand.ask(200, "b2", 10) == "b2:in"  # five in flight: 0.05 is not above it
    assert hand.ask(200, "b3", 10) == "b3:held"  # 0.06


def test_a_cohort_smooths_an_envelope_of_demand() -> None:
    """KEP-1040: mean and a standard deviation over the period; what it falls by fades by 0.977 a period."""
    hand = Hand(Cohort(shares={"a": 5, "b": 5, "c": 2}), slots=12)  # nominal 5, 5, 2; at least 2.5, 2.5, 1
    for k in range(4):
        hand.ask(5, f"a{k}")
    # Over [0, 10): demand 0 for 5 s and 4 for 5 s: mean 2, deviation 2, envelope 4. b and c: 0. The high is 4.
    assert hand.wait(10) == ""
    limits = [gauge(hand, "limit_slots", name) for name in "abc"]
    # Targets 4, 2.5, 1 are 7.5 of 12: factor 1.6: 6.4, 4, 1.6; whole: 6, 4, 1 and the largest rest, c's.
    assert limits == [6, 4, 2]
    for k in range(4):
        hand.end(10, f"a{k}", 1)
    # Over [10, 20): nothing, so a's smoothed demand is 0.977 * 4 = 3.908. Targets 3.908, 2.5, 1 are 7.408 of 12:
    # factor 1.61987: 6.3304, 4.0497, 1.6199; whole 6, 4, 1, and c again. In the k-th such period it is 4 * 0.977^k.
    hand.wait(20)
    assert [gauge(hand, "limit_slots", name) for name in "abc"] == [6, 4, 2]
    # After 21 periods: 4 * 0.977^21 = 2.45 is below the least of 2.5: 2.5, 2.5, 1: factor 2: 5, 5, 2.
    hand.wait(230)
    assert [gauge(hand, "limit_slots", name) for name in "abc"] == [5, 5, 2]


def test_a_cap_counts_slots_then_requests_then_prompt_tokens() -> None:
    hand = Hand(Cap(max_in_flight_per_replica=2, queue_requests=3, queue_tokens=250, status=529), slots=1, replicas=2)
    assert [hand.ask(0, f"a{k}") for k in range(5)] == [*[f"a{k}:in" for k in range(4)], "a4:held"]
    assert hand.ask(0, "a5", 200) == "a5:held"  # 100 < 250 waited before it
    assert hand.ask(0, "a6", 1) == "a6:queue_full/529/1"  # 300 >= 250
    assert hand.end(4, "a0") == "a4:in"  # 200 wait
    assert (hand.ask(5, "a7", 10), hand.ask(5, "a8", 10)) == ("a7:held", "a8:held")
    assert hand.ask(5, "a9", 10) == "a9:queue_full/529/4"  # three wait; a4 waited 4 s


def test_endpoints_of_ones_own_are_dealt_evenly_and_the_rest_to_who_comes_first() -> None:
    hand = Hand(Dedicated(), slots=4, replicas=5)
    hand.ask(0, "c1")
    hand.ask(1, "a1")
    hand.ask(2, "b1")
    # 5 over 3 are one each, and two more, for c and a.
    assert [gauge(hand, "own_replicas", name) for name in "abc"] == [2, 1, 2]
    hand = Hand(Dedicated(replicas={"b": 3}, max_in_flight_per_replica=1), slots=4, replicas=5)
    assert [hand.ask(0, f"b{k}") for k in range(4)] == ["b0:in", "b1:in", "b2:in", "b3:concurrency/429/1"]
    assert [gauge(hand, "own_replicas", name) for name in "abc"] == [2, 3, 2]  # a and c share what is left
    assert [hand.ask(0, name) for name in ("a1", "c1", "a2")] == ["a1:in", "c1:in", "a2:concurrency/429/1"]
