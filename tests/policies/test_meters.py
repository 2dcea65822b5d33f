from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.meters import ContinuousBucket, SlidingWindow

steps = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 100)), max_size=60)


def test_a_bucket_by_hand() -> None:
    bucket = ContinuousBucket(rate_per_s=2, depth=10)
    assert bucket.available(0) == 10
    bucket.reserve(8, 0)
    assert bucket.wait_s(6, 1) == 1.0  # 2 left, 2 more after a second, 2 more after another
    assert bucket.wait_s(4, 1) == 0
    assert bucket.wait_s(11, 1) is None
    bucket.settle(8, 3, 2)  # 6 + 5 is more than it holds
    assert bucket.available(2) == 10
    bucket.reserve(1, 2)
    bucket.settle(1, 21, 2)
    assert bucket.available(2) == -11
    assert bucket.wait_s(1, 2) == 6.0


@given(steps=steps, rate=st.floats(0.1, 50), depth=st.integers(1, 200))
def test_a_bucket_never_gives_more_than_depth_and_rate_in_any_window(
    steps: list[tuple[float, int]], rate: float, depth: int
) -> None:
    bucket, now_s, taken = ContinuousBucket(rate_per_s=rate, depth=depth), 0.0, []
    for gap_s, need in steps:
        now_s += gap_s
        wait_s = bucket.wait_s(need, now_s)
        assert (wait_s is None) == (need > depth)
        if wait_s == 0:
            bucket.reserve(need, now_s)
            taken.append((now_s, need))
        elif wait_s is not None:
            assert bucket.wait_s(need, now_s + wait_s) == 0
            assert bucket.wait_s(need, now_s + 0.99 * wait_s) > 0 or wait_s < 1e-6
        assert bucket.available(now_s) <= depth
    for i, (from_s, _) in enumerate(taken):
        total = 0
        for at_s, amount in taken[i:]:
            total += amount
            assert total <= depth + rate * (at_s - from_s) + 1e-6 * depth


def test_a_client_that_keeps_to_its_rate_is_never_late_by_rounding() -> None:
    bucket = ContinuousBucket(rate_per_s=20 / 60, depth=1)
    for k in range(10_000):
        assert bucket.wait_s(1, 3.0 * k) == 0
        bucket.reserve(1, 3.0 * k)


def test_a_window_by_hand() -> None:
    window = SlidingWindow(limit=10)
    first = window.reserve(6, 0)
    window.reserve(3, 20)
    assert window.wait_s(1, 30) == 0
    assert window.wait_s(4, 30) == 30  # when the 6 of t = 0 leave, at 60
    assert window.wait_s(8, 30) == 50  # the 3 of t = 20 must leave too
    assert window.wait_s(11, 30) is None
    window.settle(first, 2, 30)
    assert window.available(30) == 5
    assert window.available(59.9) == 5
    assert window.available(60) == 7
    window.settle(first, 100, 61)  # it has left
    assert window.available(61) == 7
    assert window.available(80) == 10


@given(steps=steps, limit=st.integers(1, 200))
def test_a_window_never_holds_more_than_its_limit_and_waits_exactly(steps: list[tuple[float, int]], limit: int) -> None:
    window, now_s, taken = SlidingWindow(limit=limit), 0.0, []
    for gap_s, need in steps:
        now_s += gap_s
        recent = sum(amount for at_s, amount in taken if at_s + 60 > now_s)
        wait_s = window.wait_s(need, now_s)
        assert (wait_s is None) == (need > limit)
        assert (wait_s == 0) == (recent + need <= limit)
        if wait_s == 0:
            window.reserve(need, now_s)
            taken.append((now_s, need))
        elif wait_s is not None:
            due_s = [at_s + 60 for at_s, _ in taken if at_s + 60 - now_s == wait_s]
            assert due_s  # it ends when a charge leaves,
            assert sum(amount for at_s, amount in taken if at_s + 60 > due_s[0]) + need <= limit  # that one is enough,
            assert sum(amount for at_s, amount in taken if at_s + 60 >= due_s[0]) + need > limit  # and none before is


@pytest.mark.parametrize(("limit", "policy", "refused"), [(5, "LShare/rpm5", 919), (20, "LShare/rpm20", 342)])
def test_the_window_refuses_as_many_as_a_real_gateway_did(limit: int, policy: str, refused: int) -> None:
    if "TOKENPOOLS_DATA" not in os.environ:
        pytest.skip("TOKENPOOLS_DATA names no folder with lmsys-arena-vtc")
    folder = Path(os.environ["TOKENPOOLS_DATA"]) / "lmsys-arena-vtc"
    with gzip.open(folder / "measured_by_policy.csv.gz", "rt") as rows:
        measured = sum(
            row["policy"] == policy and float(row["first_token_latency"]) < 0 for row in csv.DictReader(rows)
        )
    assert measured == refused
    windows: dict[str, SlidingWindow] = {}
    predicted = 0
    with gzip.open(folder / "trace.csv.gz", "rt") as rows:
        for row in csv.DictReader(rows):
            window, now_s = windows.setdefault(row["tenant"], SlidingWindow(limit=limit)), float(row["req_time"])
            if window.wait_s(1, now_s) == 0:
                window.reserve(1, now_s)
            else:
                predicted += 1
    assert abs(predicted - measured) <= 1


def test_impossible_meters_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        ContinuousBucket(rate_per_s=0, depth=1)
    with pytest.raises(ValueError, match="above 0"):
        SlidingWindow(limit=0)
