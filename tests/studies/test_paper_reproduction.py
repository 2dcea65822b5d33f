"""The acceptance table: its judgement, its measures, what the command writes, and that the documents agree with it."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from studies import paper_by_hand as by_hand

from sim.analysis.markdown_tables import block, markdown, with_block
from sim.errors import InputError
from sim.studies import paper_acceptance as acceptance
from sim.studies import paper_measures as measures
from sim.studies import paper_reproduction as reproduce
from sim.studies.paper_measures import TENANTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shipped_run(tmp_path_factory):
    """The whole command at the shipped settings, once."""
    out = tmp_path_factory.mktemp("reproduction") / "out"
    return out, reproduce.reproduce(out)


# --------------------------------------------------------------------------------------------------------------------
# Judgement


def row(*values, accepted=None, **more):
    return acceptance.Row("a check", "1", np.array(values, dtype=np.float64), accepted, **more)


def test_the_mean_is_judged_not_the_single_replication():
    assert row(0.5, 1.5, accepted=acceptance.below(1.2)).verdict == acceptance.PASS
    assert row(1.0, 1.5, accepted=acceptance.below(1.2)).verdict == acceptance.FAIL
    assert row(99.0).verdict == acceptance.REPORTED


@pytest.mark.parametrize(
    ("accepted", "inside", "outside"),
    [
        (acceptance.between(28, 42), (28, 42), (27.99, 42.01)),
        (acceptance.below(1.2), (1.19,), (1.2,)),
        (acceptance.above(0), (1e-9,), (0.0,)),
        (acceptance.near(381, 0.1), (342.9, 419.1), (342.8, 419.2)),
        (acceptance.rounds_to(3.87, 2), (3.8651, 3.8749), (3.8649, 3.8751)),
    ],
)
def test_ranges_end_where_they_say(accepted, inside, outside):
    assert all(accepted.test(value) for value in inside)
    assert not any(accepted.test(value) for value in outside)
    assert not accepted.test(math.nan)


def test_a_value_that_never_comes_fails_and_says_so():
    never = row(10.0, math.inf, accepted=acceptance.between(0, 60), unit="s")
    assert never.verdict == acceptance.FAIL
    assert never.measured == "never (10.0 to never)"


def test_the_peak_gap_is_the_papers_own_arithmetic():
    """93.85 * (1 + 4 * 0.607) over 20.27 * (1 + 4 * 0.775), from equation 1 with mean_slo 15.25 s."""
    copilot = 100 / (1 + 2 * 0.5 / 15.25) * (1 + 4 * 0.607)
    synth = 100 / (1 + 2 * 30 / 15.25) * (1 + 4 * 0.775)
    assert acceptance.paper_peak_gap(reproduce.shipped("paper-exp2")) == pytest.approx(copilot / synth, rel=1e-12)


# --------------------------------------------------------------------------------------------------------------------
# Measures, on rows made by hand


def requests1(*rows):
    columns = ("entitlement", "service_class", "outcome", "reason", "first_arrival_s", "ttft_s")
    return pd.DataFrame(rows, columns=columns)


def samples(scope, name, **metrics):
    return pd.DataFrame(
        [(t_s, scope, name, metric, value) for metric, series in metrics.items() for t_s, value in series.items()],
        columns=["t_s", "scope", "name", "metric", "value"],
    )


def test_experiment_1_takes_the_worst_tenant_and_phase_and_counts_by_arrival():
    rows = requests1(
        ("a", "guaranteed", "finished", None, 29.9, 0.4),
        ("a", "guaranteed", "finished", None, 30.0, 0.8),
        ("c", "guaranteed", "finished", None, 59.9, 0.9),
        ("c", "guaranteed", "refused", "concurrency", 40.0, math.nan),
        ("a", "guaranteed", "refused", "low_priority", 41.0, math.nan),
        ("b", "spot", "refused", "low_priority", 30.0, math.nan),
        ("b", "spot", "finished", None, 59.0, 5.0),
        ("b", "spot", "finished", None, 60.0, 5.0),
    )
    rows = pd.concat([rows, requests1(("b", "spot", "finished", None, 1.0, 0.1))], ignore_index=True)
    pool = samples("pool", "pool", waiting={0.0: 1, 60.0: 30, 90.0: 35}, running={0.0: 2, 60.0: 16, 90.0: 16})
    found = measures.experiment1(reproduce.shipped("paper-exp1", 1))(rows, pool)
    assert found["guaranteed_p99_s"] == pytest.approx(0.9)
    assert found["phase_p99_s"] == pytest.approx(0.8 + 0.99 * 0.1)
    assert (found["low_priority"], found["own_limit"]) == (1, pytest.approx(1 / 5))
    assert (found["spot_before"], found["spot_phase"], found["spot_after"]) == (0.0, 0.5, 0.0)
    assert (found["peak_waiting"], found["waiting_at_end"], found["peak_running"]) == (35, 30, 16)


def measured2(debts, weights):
    """Experiment 2 on given series of debts and weights, one value for each of 0, 30, ..., 270 s."""
    times = [30.0 * i for i in range(10)]
    parts = [samples("pool", "pool", capacity_slots=dict.fromkeys(times, 16.0))]
    for tenant in measures.TENANTS:
        series = {"debt": debts[tenant], "weight": weights[tenant], "in_flight": [6.0] * 10}
        parts.append(samples("entitlement", tenant, **{m: dict(zip(times, v, strict=True)) for m, v in series.items()}))
    rows = pd.DataFrame(
        [("copilot", "finished", None, 120.0), ("copilot", "refused", "low_priority", 119.0)],
        columns=["entitlement", "outcome", "reason", "first_arrival_s"],
    )
    return measures.experiment2(reproduce.shipped("paper-exp2", 1))(rows, pd.concat(parts))


def test_experiment_2_reads_order_debt_and_stretch():
    debts = {"copilot": [0.0] * 10, "synth": [0, 0.2, 0.4, 0.5, 0.3, 0.04, -1, 0.9, 0, 0], "reports": [0.0] * 10}
    weights = {"copilot": [90.0] * 10, "synth": [20, 30, 45, 100, *[20] * 6], "reports": [*[60.0] * 7, 10, 30, 95]}
    found = measured2(debts, weights)
    assert found["settled_s"] == 30.0  # 0.3 at 120 s, 0.04 from 150 s; what comes with reports (210 s) does not count
    assert (found["synth_peak_debt"], found["synth_least_debt"]) == (0.9, -1.0)
    assert found["least_gap"] == pytest.approx(0.9)
    assert found["synth_over_copilot_s"] == 30.0
    assert (found["synth_over_reports_s"], found["reports_over_copilot_s"]) == (30.0, 30.0)
    assert found["most_over"] == 2.0
    assert (found["copilot_successes_recovered"], found["copilot_low_priority_outage"]) == (1, 1)


def test_a_debt_that_stays_never_settles():
    flat = {"copilot": [0.0] * 10, "synth": [0.5] * 10, "reports": [0.0] * 10}
    assert measured2(flat, dict.fromkeys(measures.TENANTS, [1.0] * 10))["settled_s"] == math.inf


# --------------------------------------------------------------------------------------------------------------------
# The command, whole


def test_every_judged_row_passes_at_the_shipped_settings(shipped_run):
    out, found = shipped_run
    with (out / "acceptance.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert found.passed
    assert {line["verdict"] for line in lines} == {acceptance.PASS, acceptance.REPORTED}
    judged = [line["check"] for line in lines if line["verdict"] == acceptance.PASS]
    assert len(judged) == 16  # the rows of paper.md section 6, one check a line
    assert found.table == (out / "acceptance.md").read_text().rstrip("\n")


def test_it_writes_results_and_figures_and_nothing_beside(shipped_run):
    out, _ = shipped_run
    assert sorted(path.name for path in out.iterdir()) == [
        "acceptance.csv", "acceptance.md", "figures", "paper-exp1", "paper-exp2",
    ]  # fmt: skip
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {f"{n}.{s}" for n in ("exp1-queue", "exp1-latency", "exp1-slots", "exp2") for s in ("png", "svg")}
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_document_shows_what_the_command_prints(shipped_run):
    _, found = shipped_run
    document = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert block(document, "acceptance") == found.table, "run: python docs/regenerate.py"


def test_a_used_folder_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "kept").write_text("mine")
    monkeypatch.setattr(reproduce, "run_scenario", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(InputError, match="not empty"):
        reproduce.reproduce(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_half_written_is_left(tmp_path, monkeypatch, error):
    def breaks(*_, **__):
        raise error

    monkeypatch.setattr(reproduce, "draw", breaks)
    with pytest.raises(error):
        reproduce.reproduce(tmp_path / "out", replications=1)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------------------
# Tables in documents


def test_a_block_takes_a_table_and_gives_it_back():
    document = "before\n<!-- begin x -->\nold\n<!-- end x -->\nafter\n"
    table = markdown(("a", "bb"), [("1", "2")])
    once = with_block(document, "x", table)
    assert block(once, "x") == table
    assert with_block(once, "x", table) == once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    with pytest.raises(InputError, match="no block 'y'"):
        block(document, "y")


# --------------------------------------------------------------------------------------------------------------------
# Once more, from outside


def test_a_second_simulator_gives_the_same(shipped_run):
    """`paper_by_hand` shares no code with the package; both are means, so they may differ by their standard errors."""
    out, _ = shipped_run
    with (out / "acceptance.csv").open() as file:
        rows = {row["check"]: (float(row["mean"]), int(row["replications"])) for row in csv.DictReader(file)}
    seeds = range(40)
    none = [by_hand.experiment_1(seed, pools=False) for seed in seeds]
    pools = [by_hand.experiment_1(seed, pools=True) for seed in seeds]
    second = [by_hand.experiment_2(seed) for seed in seeds]
    one, two = "exp. 1, ", "exp. 2: "
    pairs = [
        (one + "no control: peak queue", [run["queue"] for run in none], 1.0),  # sampled twice a second
        (one + "no control: guaranteed P99 TTFT, phase", [run["phase_p99_s"] for run in none], 0.2),
        (
            one + "token pools: guaranteed P99 TTFT, worst tenant and phase",
            [run["guaranteed_p99_s"] for run in pools], 0,
        ),
        (one + "token pools: guaranteed refused for low priority", [run["guaranteed_low"] for run in pools], 0),
        (one + "token pools: spot refused in the phase", [100 * run["spot_refused"] for run in pools], 0),
        *((f"{two}successes of {name}", [run[f"{name}_ok"] for run in second], 0) for name in TENANTS),
        *((f"{two}{name} refused for low priority", [run[f"{name}_low"] for run in second], 0) for name in TENANTS),
        *((f"{two}peak debt of {name}", [run[f"{name}_debt"] for run in second], 0.02) for name in TENANTS),
    ]
    for check, mine, slack in pairs:
        theirs, n = rows[check]
        error = float(np.std(mine, ddof=1)) * math.sqrt(1 / len(mine) + 1 / n)
        assert abs(np.mean(mine) - theirs) <= 4 * error + slack, check
