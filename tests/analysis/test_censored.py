"""What a percentile of those that finished says while others wait."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from sim.analysis.cautions import cautions, censored_p99_s
from sim.analysis.study import Study
from sim.experiments.run import run_scenario
from sim.scenario.load import load_scenario


def table(rows: list[tuple[float, float, str]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["first_arrival_s", "first_token_s", "outcome"])
    return frame.assign(final=True)


def test_who_still_waits_counts_at_what_it_had_waited() -> None:
    done = [(float(k), k + 1.0, "finished") for k in range(99)]  # each waited 1 s
    stuck = [(40.0, math.nan, "waiting"), (90.0, 92.0, "running"), (10.0, math.nan, "refused")]
    found = censored_p99_s(table(done + stuck), 100.0, 0.0)
    # 99 ones, a two and a sixty: of 101 values the 99th percentile is the 100th, 2; the refused is nobody's latency.
    assert found == (2, 1.0, pytest.approx(2.0))
    assert censored_p99_s(table(done), 100.0, 0.0) is None
    assert censored_p99_s(table(stuck), 100.0, 0.0) is None
    assert censored_p99_s(table(done + stuck), 100.0, 60.0) == (1, 1.0, pytest.approx(1 + 0.61))  # of 40, at 38.61


def test_a_result_under_overload_says_so(tmp_path) -> None:
    policies = "policies=[none, {kind: cap, max_in_flight_per_replica: 16, queue_requests: 1}]"
    overrides = ["horizon_s=58", "replications=2", policies]
    run_scenario(load_scenario("paper-exp1", overrides=overrides), tmp_path / "out")
    said = cautions(Study(tmp_path / "out"))
    (waiting,) = [text for text in said if "had not finished at the horizon" in text]
    assert "it is at least" in waiting
    (unequal,) = [text for text in said if "Compare SLO attainment" in text]
    assert "% against " in unequal
