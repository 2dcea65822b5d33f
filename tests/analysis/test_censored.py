"""What a percentile of those that finished says while others wait."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from sim.analysis.cautions import cautions
from sim.analysis.censored import censored_cases, censored_p99_s
from sim.analysis.study import Study
from sim.cli import app
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


def test_the_terminal_says_so_too_of_each_policy_that_it_is_true_of(tmp_path) -> None:
    """The numbers once more from the records, request by request."""
    policies = "policies=[none, {kind: rate-limit, requests_per_min: 6}]"
    overrides = ["horizon_s=58", "warmup_s=10", "replications=2", policies]
    out = tmp_path / "out"
    result = run_scenario(load_scenario("paper-exp1", overrides=overrides), out)
    found = censored_cases(result.requests, result.manifest, result.summary)
    assert [one.case for one in found] == ["none"]
    frame = result.requests.to_pandas()
    frame = frame[(frame["policy"] == "none") & (frame["first_arrival_s"] >= 10) & frame["final"]]
    assert found[0].offered == len(frame)
    assert found[0].unfinished == (frame["outcome"].isin(["waiting", "running"])).sum() > 0
    shown_s, least_s = [], []
    for number in (0, 1):
        waits_s, all_s = [], []
        for one in frame[frame["replication"] == number].to_dict("records"):
            if one["outcome"] == "finished":
                waits_s.append(one["first_token_s"] - one["first_arrival_s"])
            elif math.isnan(one["first_token_s"]):
                all_s.append(58 - one["first_arrival_s"])
            else:
                all_s.append(one["first_token_s"] - one["first_arrival_s"])
        shown_s.append(np.quantile(waits_s, 0.99))
        least_s.append(np.quantile([*waits_s, *all_s], 0.99))
    assert found[0].shown_s == pytest.approx(np.mean(shown_s))
    assert found[0].least_s == pytest.approx(np.mean(least_s))
    (row,) = [row for row in result.summary if (row["policy"], row["tenant"]) == ("none", "all")]
    assert row["ttft_p99_s"] == pytest.approx(found[0].shown_s)
    options = [word for one in overrides for word in ("--set", one)]
    ran = CliRunner().invoke(app, ["run", "paper-exp1", "--out", str(tmp_path / "again"), *options])
    assert ran.exit_code == 0
    assert ran.stderr.count("had not finished at the horizon") == 1
    assert f"warning: {found[0]}" in ran.stderr
