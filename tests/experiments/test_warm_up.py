"""The warm-up that MSER-5 finds: where the transient is known, and one for all that are compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments.small import RATE, digest, scenario

from sim.analysis.cautions import cautions
from sim.analysis.report import report_html
from sim.analysis.study import Study
from sim.analysis.warm_up import Series, WarmUp, in_words, settled_s, warm_up_of
from sim.errors import InputError, ScenarioError
from sim.experiments.run import run_scenario
from sim.experiments.sweep import sweep

# For the first 60 of 600 s an iteration takes five times as long, and the queue that has grown by then drains.
SLOW: dict[str, Any] = {
    "horizon_s": 600,
    "vary": {},
    "events": [{"at_s": 0, "slow": 0, "factor": 5}, {"at_s": 60, "slow": 0, "factor": 1}],
    "workload": [
        {"entitlement": name, "arrivals": {"kind": "poisson", "rate_per_s": 2.5}, "prompt_tokens": 8,
         "output_tokens": 16}
        for name in ("chat", "batch")
    ],
}  # fmt: skip
RULED = SLOW | {"warmup_s": "mser-5"}


def noisy(rng: np.random.Generator, n: int, settles_at: int, height: float) -> Series:
    """Autocorrelated noise about 1, and before ``settles_at`` a straight way down to it."""
    noise, last = np.empty(n), 0.0
    for i, step in enumerate(rng.normal(0, 0.1, n)):
        noise[i] = last = 0.8 * last + step
    way = np.clip(height * (1 - np.arange(n) / settles_at), 0, None) if settles_at else 0.0
    return Series(np.arange(n, dtype=np.float64), 1 + noise + way)


@pytest.mark.parametrize(("settles_at", "height"), [(200, 2.0), (400, 2.0), (600, 4.0)])
def test_a_known_transient_is_cut_where_it_ends(settles_at: int, height: float) -> None:
    rng = np.random.default_rng(1)
    cuts = [settled_s([noisy(rng, 4000, settles_at, height) for _ in range(5)]) for _ in range(20)]
    # What is left of the way down at the cut is within the noise, whose deviation is 0.17.
    assert min(cuts) > settles_at * (1 - 0.34 / height)
    assert np.median(cuts) < 1.25 * settles_at


def test_nothing_is_cut_where_there_is_no_transient() -> None:
    rng = np.random.default_rng(2)
    cuts = [settled_s([noisy(rng, 4000, 0, 0.0) for _ in range(5)]) for _ in range(20)]
    assert np.median(cuts) <= 400


def test_a_series_that_never_settles_or_is_short_has_no_cut() -> None:
    ramp = Series(np.arange(1000.0), np.arange(1000.0))
    assert math.isnan(settled_s([ramp]))
    assert math.isnan(settled_s([Series(np.arange(99.0), np.ones(99))]))
    assert math.isnan(settled_s([]))
    flat = Series(np.arange(1000.0), np.ones(1000))
    found = warm_up_of({"grows": [ramp], "steady": [flat]})
    assert (found.warmup_s, found.unsettled) == (0.0, ("grows",))
    assert WarmUp({"a": 3.0, "b": 5.0}).warmup_s == 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ruled") / "s"
    sweep(scenario(**RULED, replications=3), place)
    return place


def test_a_slow_start_is_cut_from_every_cell_alike(folder: Path, tmp_path: Path) -> None:
    study = Study(folder)
    (only,) = study.manifest["warm_up"]["cuts"]
    assert study.manifest["warm_up"]["rule"] == "mser-5"
    assert only["warmup_s"] == max(only["by_policy"].values())
    assert 50 < only["warmup_s"] < 200  # slow until 60 s, then the queue of that minute drains
    assert {cell["warmup_s"] for cell in study.manifest["cells"]} == {only["warmup_s"]}
    # The same numbers as with that cut stated.
    sweep(scenario(**SLOW, warmup_s=only["warmup_s"], replications=3), tmp_path / "stated")
    assert (tmp_path / "stated/summary.csv").read_bytes() == (folder / "summary.csv").read_bytes()
    assert Study(tmp_path / "stated").replications.equals(study.replications)
    # And better ones than with none.
    sweep(scenario(**SLOW, replications=3), tmp_path / "none")
    whole = Study(tmp_path / "none")
    case = study.cases[0]
    assert whole.interval(case, "all", "ttft_p99_s").low > study.interval(case, "all", "ttft_p99_s").high
    assert any("Give warmup_s: mser-5" in text for text in cautions(whole))
    assert not any("MSER-5" in text for text in cautions(study))


def test_the_cut_is_in_the_report_and_in_cells_csv(folder: Path) -> None:
    study = Study(folder)
    cut_s = study.manifest["warm_up"]["cuts"][0]["warmup_s"]
    assert in_words(study.manifest) == f"{cut_s:.3g} s (MSER-5)"
    assert f"<dd>{cut_s:.3g} s (MSER-5)</dd>" in report_html(study)
    assert f",{cut_s!r}," in (folder / "cells.csv").read_text()


def test_a_run_cuts_as_a_sweep_does(folder: Path, tmp_path: Path) -> None:
    ran = run_scenario(scenario(**RULED, replications=3), tmp_path / "r")
    assert ran.manifest["warm_up"] == Study(folder).manifest["warm_up"]
    assert (tmp_path / "r/summary.csv").read_bytes() == (folder / "summary.csv").read_bytes()
    assert Study(tmp_path / "r").replications.equals(Study(folder).replications)


def test_more_replications_move_the_cut_and_measure_all_cells_again(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "s"
    sweep(scenario(**RULED, replications=2), place)
    assert sweep(scenario(**RULED, replications=3), place).count.kept == 4
    assert digest(place) == digest(folder)
    measured = [json.loads(path.read_text())["stats"]["warmup_s"] for path in place.glob("cells/*/cell.json")]
    assert len(set(measured)) == 1


def test_a_policy_that_never_settles_is_named(tmp_path: Path) -> None:
    # At nine requests a second the queue without a policy grows to the end.
    asked = scenario(horizon_s=300, warmup_s="mser-5", vary={RATE: [14]}, replications=2, policies=["none"])
    sweep(asked, tmp_path / "s")
    study = Study(tmp_path / "s")
    assert study.manifest["warm_up"]["cuts"][0]["by_policy"] == {"none": None}
    assert any(text.startswith("No steady state was found under none, rate_per_s=14") for text in cautions(study))


def test_a_cut_can_be_varied(tmp_path: Path) -> None:
    asked = scenario(**SLOW | {"vary": {"warmup_s": [0, "mser-5"]}}, policies=["none"])
    sweep(asked, tmp_path / "s")
    rows = Study(tmp_path / "s").replications.query("tenant == 'all'").set_index("warmup_s")
    assert rows.loc["mser-5", "offered"] < rows.loc["0", "offered"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mser5", "did you mean mser-5?"),
        ("auto", "or mser-5 to have them found in the data"),
        ("60 s", "give a plain number: 60"),
        (-1, "greater than or equal to 0"),
        (None, "should be a number"),
    ],
)
def test_what_is_neither_seconds_nor_the_rule_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ScenarioError, match=r"warmup_s: ") as caught:
        scenario(warmup_s=given)
    assert said in str(caught.value)


# --------------------------------------------------------------------------------------------------------------------
# Runs that end with their last request

DRAINED: dict[str, Any] = {
    "horizon_s": None,
    "workload": [
        {"entitlement": "chat", "arrivals": {"kind": "even", "rate_per_s": 3}, "requests": 30, "prompt_tokens": 8,
         "output_tokens": 16}
    ],
}  # fmt: skip


def test_a_run_that_ends_within_its_warm_up_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"warmup_s: 60 leaves nothing.*ended with its last request at 1\d.*give less"):
        run_scenario(scenario(**DRAINED, warmup_s=60), tmp_path / "r")
    assert not (tmp_path / "r").exists()
    swept = sweep(scenario(**DRAINED, warmup_s=60), tmp_path / "s")
    assert swept.count.failed == 2
    assert "warmup_s: 60 leaves nothing" in swept.errors[0]


def test_a_drained_run_is_measured_over_its_own_length(tmp_path: Path) -> None:
    # One policy refuses everything of batch and is done early; the other works on.
    asked = scenario(
        horizon_s=None,
        policies=["none", {"kind": "rate-limit", "requests_per_min": 1}],
        workload=[dict(one, requests=60) for one in DRAINED["workload"]],
    )
    ran, swept = run_scenario(asked, tmp_path / "r"), sweep(asked, tmp_path / "s")
    assert len({cell["end_s"] for cell in ran.manifest["cells"]}) == 2
    assert ran.summary == swept.summary
    assert Study(tmp_path / "r").replications.equals(Study(tmp_path / "s").replications)


def test_a_tenant_that_makes_no_request_in_a_replication_counts_as_none(tmp_path: Path) -> None:
    rare = {"entitlement": "batch", "arrivals": {"kind": "poisson", "rate_per_s": 0.01}, "prompt_tokens": 8,
            "output_tokens": 16}  # fmt: skip
    asked = scenario(workload=[*DRAINED["workload"], rare], replications=20, policies=["none"])
    sweep(asked, tmp_path / "s")
    run_scenario(asked, tmp_path / "r")
    assert (tmp_path / "r/summary.csv").read_bytes() == (tmp_path / "s/summary.csv").read_bytes()
    offered = Study(tmp_path / "s").replications.query("tenant == 'batch'")["offered"]
    assert len(offered) == 20
    assert 0.2 < offered.mean() < 1.4
    assert (offered == 0).any()
