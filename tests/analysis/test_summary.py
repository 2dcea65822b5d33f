from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from analysis.toy import NAN, columns, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.analysis.summary import (
    LATENCY_COLUMNS,
    average_cells,
    format_table,
    interval,
    summarise,
    summary_table,
    with_violations,
    within_bounds,
)
from sim.records import metrics
from sim.records.schema import REASONS, Outcome, join_tables, requests_table

F, R = Outcome.FINISHED, Outcome.REFUSED


def reason(name):
    return REASONS.index(name)


def table(entitlements, rows, *, policy="none", variant=None, replication=0):
    made = columns(entitlements, rows)
    return requests_table(made, run_id="x", policy=policy, variant=variant or {}, replication=replication)


def done(arrival_s, first_token_s, finish_s, tokens, **more):
    return {
        "arrival_s": arrival_s, "forwarded_s": arrival_s, "first_token_s": first_token_s, "finish_s": finish_s,
        "output_tokens": tokens, "outcome": F, **more,
    }  # fmt: skip


def one(rows, tenant="all", **labels):
    (row,) = [row for row in rows if row["tenant"] == tenant and all(row[k] == v for k, v in labels.items())]
    return row


# Tenant a has an objective of 1 s, b has none. Horizon 20 s, warm-up 10 s: 10 s count.
HAND = [
    done(9.9, 10.0, 11.0, 50),  # before the warm-up: not counted at all
    done(10.0, 10.5, 12.5, 5),  # ttft 0.5, tpot 0.5, e2e 2.5; met
    # refused at 11, again at 12, let in at 13: ttft 3 from the first attempt, tpot 1, e2e 5; not met
    {"request_id": "x", "arrival_s": 11.0, "final": False, "outcome": R, "reason": reason("low_priority")},
    {"request_id": "x", "arrival_s": 12.0, "first_arrival_s": 11.0, "attempt": 2, "final": False, "outcome": R,
     "reason": reason("tokens")},
    done(13.0, 14.0, 16.0, 3, request_id="x", first_arrival_s=11.0, attempt=3),
    {"arrival_s": 14.0, "outcome": R, "reason": reason("low_priority"), "finish_s": 14.0},
    {"arrival_s": 15.0, "forwarded_s": 15.0, "first_token_s": 15.5, "output_tokens": 7, "outcome": Outcome.RUNNING},
    {"arrival_s": 16.0, "forwarded_s": 16.0, "outcome": Outcome.WAITING},
    {"arrival_s": 17.0, "forwarded_s": 17.0, "first_token_s": 17.5, "output_tokens": 2, "finish_s": 18.0,
     "outcome": Outcome.EVICTED, "reason": reason("preempted")},
    done(12.0, 12.2, 12.2, 1, entitlement=1),  # one token: no tpot
    {"arrival_s": 13.0, "entitlement": 1, "outcome": R, "reason": reason("concurrency")},
    {"arrival_s": 14.0, "entitlement": 1, "outcome": Outcome.CANCELLED},
    {"arrival_s": 14.0, "entitlement": 1, "forwarded_s": 14.0, "outcome": Outcome.FAILED},
]  # fmt: skip


@pytest.fixture
def hand():
    return summarise(table([spec("a", 1.0), spec("b")], HAND), horizon_s=20.0, warmup_s=10.0)


def test_every_count_by_hand(hand):
    expected = {
        "offered": (6, 4, 10), "admitted": (5, 2, 7), "finished": (2, 1, 3), "refused": (1, 1, 2),
        "refused_low_priority": (1, 0, 1), "refused_concurrency": (0, 1, 1), "evicted": (1, 0, 1), "failed": (0, 1, 1),
        "cancelled": (0, 1, 1), "unfinished": (2, 0, 2), "attempts": (8, 4, 12), "latency_n": (2, 1, 3),
    }  # fmt: skip
    assert [row["tenant"] for row in hand] == ["a", "b", "all"]
    for column, values in expected.items():
        assert tuple(row[column] for row in hand) == values, column
    assert "refused_tokens" not in hand[0]  # a refusal that was followed by another attempt is not the outcome


def test_every_rate_and_latency_by_hand(hand):
    a, b, both = hand
    # Of a's 6 offered the quick one and the running one met the objective; the evicted one was cut off.
    assert a["slo_attainment"] == both["slo_attainment"] == pytest.approx(2 / 6)
    assert math.isnan(b["slo_attainment"])
    assert (a["goodput_per_s"], b["goodput_per_s"], both["goodput_per_s"]) == pytest.approx((0.1, 0.1, 0.2))
    assert (a["output_tokens_per_s"], both["output_tokens_per_s"]) == pytest.approx((1.7, 1.8))
    expected = {  # two values x < y: mean (x+y)/2, p50 the same, p95 = x + 0.95 (y-x), p99 = x + 0.99 (y-x)
        "ttft_mean_s": 1.75, "ttft_p50_s": 1.75, "ttft_p95_s": 2.875, "ttft_p99_s": 2.975,
        "tpot_mean_s": 0.75, "tpot_p50_s": 0.75, "tpot_p95_s": 0.975, "tpot_p99_s": 0.995,
        "e2e_mean_s": 3.75, "e2e_p50_s": 3.75, "e2e_p95_s": 4.875, "e2e_p99_s": 4.975,
    }  # fmt: skip
    for column, value in expected.items():
        assert a[column] == pytest.approx(value), column
    assert tuple(expected) == LATENCY_COLUMNS
    assert math.isnan(b["tpot_p99_s"])
    assert b["ttft_p50_s"] == b["e2e_p99_s"] == pytest.approx(0.2)
    assert both["ttft_p50_s"] == pytest.approx(0.5)
    assert not any(name.endswith(("_ci_low", "_ci_high")) for name in a)


def test_the_columns_start_with_the_labels_and_the_counts(hand):
    assert list(hand[0])[:8] == [
        "policy", "tenant", "replications", "offered", "admitted", "finished", "refused", "refused_low_priority",
    ]  # fmt: skip


def test_metrics_take_arrays_and_series():
    first, finish, tokens = [1.5, 1.0, NAN], [3.5, 1.0, NAN], [5.0, 1.0, 0.0]
    for kind in (np.asarray, pd.Series):
        result = metrics.tpot_s(kind(first), kind(finish), kind(tokens))
        assert type(result) is type(kind(first))
        np.testing.assert_array_equal(np.asarray(result), [0.5, NAN, NAN])
        np.testing.assert_array_equal(metrics.ttft_s(kind(first), kind([1.0, 0.5, 0.0])), [0.5, 0.5, NAN])
        np.testing.assert_array_equal(metrics.e2e_s(kind(finish), kind([1.0, 0.5, 0.0])), [2.5, 0.5, NAN])


def test_variants_and_policies_have_rows_of_their_own():
    parts = [
        table([spec("a")], [done(0.0, ttft, 9.0, 9)], policy=policy, variant={"x.y": value})
        for policy, value, ttft in (("p", "2", 1.0), ("p", "10", 2.0), ("none", "2", 3.0))
    ]
    rows = summarise(join_tables(parts), horizon_s=10.0, warmup_s=0.0)
    assert [(r["policy"], r["x.y"], r["tenant"], r["ttft_p50_s"]) for r in rows] == [
        ("p", "2", "a", 1.0), ("p", "2", "all", 1.0), ("p", "10", "a", 2.0), ("p", "10", "all", 2.0),
        ("none", "2", "a", 3.0), ("none", "2", "all", 3.0),
    ]  # fmt: skip


def test_a_tenant_without_requests_after_the_warm_up_still_has_a_row():
    rows = summarise(table([spec("a"), spec("b")], [done(0.0, 1, 2, 2, entitlement=1), done(5.0, 6, 7, 2)]),
                     horizon_s=10.0, warmup_s=5.0)  # fmt: skip
    assert one(rows, "b")["offered"] == 0
    assert math.isnan(one(rows, "b")["ttft_p99_s"])
    assert one(rows)["offered"] == 1


def test_a_tenant_that_is_asked_for_has_a_row_without_any_request():
    made = table([spec("a"), spec("b"), spec("c")], [done(0.0, 1, 2, 2)])
    assert [row["tenant"] for row in summarise(made, horizon_s=10.0, warmup_s=0.0)] == ["a", "all"]
    rows = summarise(made, horizon_s=10.0, warmup_s=0.0, tenants=("c",))
    assert [(row["tenant"], row["offered"]) for row in rows] == [("a", 1), ("c", 0), ("all", 1)]


def test_cells_average_to_what_all_records_together_give():
    """Two ways to the same table; a reason for refusal that one replication never met counts 0 there."""
    first = [done(0.0, 1.0, 9.0, 9), {"arrival_s": 1.0, "outcome": R, "reason": reason("tokens")}]
    second = [done(0.0, 3.0, 9.0, 9), {"arrival_s": 1.0, "outcome": R, "reason": reason("concurrency")}]
    parts = [table([spec("a")], rows, replication=i) for i, rows in enumerate((first, second))]
    cells = [row for part in parts for row in summarise(part, horizon_s=10.0, warmup_s=0.0)]
    (averaged,) = [row for row in average_cells(cells) if row["tenant"] == "a"]
    whole = one(summarise(join_tables(parts), horizon_s=10.0, warmup_s=0.0), "a")
    assert list(averaged) == list(whole)
    assert {k: v for k, v in averaged.items() if v == v} == {k: v for k, v in whole.items() if v == v}
    assert (averaged["refused_tokens"], averaged["refused_concurrency"], averaged["refused_low_priority"]) == (
        0.5, 0.5, 0.0,
    )  # fmt: skip
    assert average_cells([]) == []


def test_violations_are_put_beside_their_tenants():
    rows = [{"tenant": "a", "offered": 1}, {"tenant": "all", "offered": 1}]
    found = with_violations(rows, {"violation_by_tenant": {"a": 0.25}})
    assert found[0] == {"tenant": "a", "offered": 1, "violation": 0.25}
    assert math.isnan(found[1]["violation"])
    assert math.isnan(with_violations(rows, {})[0]["violation"])


def test_the_table_has_a_column_for_what_was_promised_only_where_something_was(hand):
    promised = [{**row, "violation": 0.125} for row in hand]
    heads = summary_table(promised).heads
    assert heads == (
        "policy", "tenant", "offered", "admitted", "finished", "refused", "SLO met %", "violated %", "TTFT p50 s",
        "TTFT p99 s", "TPOT mean ms", "TPOT p99 ms", "E2E p99 s", "output tok/s",
    )  # fmt: skip
    assert summary_table(promised).rows[0][7] == "12.5"
    assert "violated %" not in summary_table(hand).heads
    assert summary_table([]) is None


def test_replications_are_averaged_with_student_intervals():
    ttfts = [[1.0, 2.0], [2.0, 4.0], [4.0, 5.0, 6.0]]
    parts = [
        table([spec("a")], [done(0.0, ttft, 9.0, 9) for ttft in each], replication=i) for i, each in enumerate(ttfts)
    ]
    row = one(summarise(join_tables(parts), horizon_s=10.0, warmup_s=0.0), "a")
    assert row["replications"] == 3
    assert row["offered"] == pytest.approx(7 / 3)
    assert row["latency_n"] == 7
    means = [1.5, 3.0, 5.0]
    low, high = scipy.stats.t.interval(0.95, df=2, loc=np.mean(means), scale=scipy.stats.sem(means))
    assert row["ttft_mean_s"] == pytest.approx(np.mean(means))
    assert low < 0  # which no time can be
    assert (row["ttft_mean_s_ci_low"], row["ttft_mean_s_ci_high"]) == pytest.approx((0.0, high))
    assert {name.removesuffix("_ci_low") for name in row if name.endswith("_ci_low")} == set(LATENCY_COLUMNS)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_scipys(values, level):
    low, high = interval(np.asarray(values), level)
    half = scipy.stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    scale = max(1.0, *map(abs, values))
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=1e-9 * scale)


def test_one_value_has_no_interval():
    assert all(math.isnan(end) for end in interval(np.asarray([1.0])))


attempts = st.lists(
    st.tuples(
        st.integers(0, 2), st.floats(0, 20), st.sampled_from(Outcome), st.booleans(), st.integers(0, 3),
        st.sampled_from([-1, 0, 1, 6]),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(attempts)
def test_the_books_balance_and_agree_with_pandas(drawn):
    rows = [
        {"entitlement": who, "arrival_s": at, "outcome": outcome, "final": final, "output_tokens": tokens,
         "forwarded_s": at if outcome != R else NAN, "first_token_s": at + tokens, "finish_s": at + 2 * tokens,
         "reason": why}
        for who, at, outcome, final, tokens, why in drawn
    ]  # fmt: skip
    made = table([spec("a", 1.0), spec("b"), spec("c", 2.0)], rows)
    summary = summarise(made, horizon_s=20.0, warmup_s=5.0)
    frame = made.to_pandas()
    frame = frame[frame["first_arrival_s"] >= 5.0]
    for row in summary:
        own = frame if row["tenant"] == "all" else frame[frame["tenant"] == row["tenant"]]
        last = own[own["final"]]
        assert row["offered"] == len(last)
        ends = ("finished", "refused", "evicted", "failed", "cancelled", "unfinished")
        assert sum(row[end] for end in ends) == row["offered"]
        assert sum(value for name, value in row.items() if name.startswith("refused_")) == row["refused"]
        assert row["attempts"] == len(own)
        e2e = (last["finish_s"] - last["first_arrival_s"])[last["outcome"] == "finished"]
        assert row["e2e_p95_s"] == pytest.approx(e2e.quantile(0.95), nan_ok=True)


def test_the_table_shows_counts_beside_latency(hand):
    lines = format_table(hand).splitlines()
    assert len(lines) == 2 + 3
    assert len({len(line) for line in lines}) == 1
    for head in ("offered", "admitted", "finished", "refused", "SLO met %", "TTFT p99 s", "TPOT mean ms", "E2E p99 s"):
        assert head in lines[0]
    assert lines[2].split()[:2] == ["none", "a"]
    shown = [float(cell) for cell in lines[2].split()[2:]]
    assert shown == pytest.approx([6, 5, 2, 1, 33.3, 1.75, 2.975, 750.0, 995.0, 4.975, 1.7], abs=0.006)
    assert lines[3].split()[6] == "-"
    assert format_table([]) == "no requests"


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match="leaves nothing"):
        summarise(table([spec("a")], HAND[:1]), horizon_s=10.0, warmup_s=10.0)


def test_a_hundred_thousand_rows_take_a_moment():
    n = 100_000
    rng = np.random.default_rng(0)
    arrival = np.sort(rng.uniform(0, 1000, n))
    plain = columns([spec(f"t{i}", 1.0) for i in range(5)], [{}])
    spread = {
        name: np.resize(np.asarray(getattr(plain, name)), n) for name in plain.__slots__ if name != "entitlements"
    }
    spread |= {
        "request_id": [f"r{i}" for i in range(n)],
        "entitlement": rng.integers(0, 5, n), "outcome": rng.integers(0, 2, n),
        "arrival_s": arrival, "first_arrival_s": arrival, "first_token_s": arrival + rng.exponential(1, n),
        "finish_s": arrival + 9.0, "output_tokens": rng.integers(1, 99, n),
    }  # fmt: skip
    begun = time.process_time()
    made = requests_table(type(plain)(entitlements=plain.entitlements, **spread), run_id="x", policy="p", variant={},
                          replication=0)  # fmt: skip
    built = time.process_time()
    summarise(made, horizon_s=1000.0, warmup_s=10.0)
    ended = time.process_time()
    # Measured at 0.1 and 0.07 s; the bounds leave room for a slow machine but none for a loop over rows.
    assert built - begun < 0.5
    assert ended - built < 0.5


@pytest.mark.parametrize(
    ("name", "given", "within"),
    [
        ("ttft_p99_s", (-0.2, 3.0), (0.0, 3.0)),
        ("slo_attainment", (0.9, 1.1), (0.9, 1.0)),
        ("offered", (-3.0, 12.0), (0.0, 12.0)),
        ("ttft_p99_s", (0.1, 0.2), (0.1, 0.2)),
    ],
)
def test_an_interval_has_no_values_that_its_measure_cannot_have(name, given, within):
    assert within_bounds(name, *given) == within
    assert all(np.isnan(within_bounds(name, NAN, NAN)))
