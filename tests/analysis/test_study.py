"""Comparisons, findings and cautions of results that the simulator made."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from experiments.small import RATE, scenario

from sim.analysis.cautions import cautions
from sim.analysis.compare import compare, in_words, parse_limit, scenario_changes
from sim.analysis.findings import findings
from sim.analysis.statistics import paired_difference
from sim.analysis.study import Case, Study
from sim.errors import InputError
from sim.experiments.run import run_scenario
from sim.experiments.sweep import sweep
from sim.scenario.load import Scenario


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


def swept(folder: Path, name: str, asked: Scenario) -> Study:
    if not (folder / name).exists():
        sweep(asked, folder / name)
    return Study(folder / name)


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return swept(folder, "base", scenario(replications=6))


def test_a_run_and_a_sweep_read_alike(folder: Path, study: Study) -> None:
    run_scenario(scenario(replications=6), folder / "run")
    other = Study(folder / "run")
    key = ["policy", "replication", "tenant"]
    mine, theirs = (one.replications.sort_values(key).reset_index(drop=True) for one in (study, other))
    pd.testing.assert_frame_equal(mine[theirs.columns], theirs, check_dtype=False)
    assert study.tenants == other.tenants == ["chat", "batch", "all"]


def test_policies_are_compared_on_the_same_arrivals(study: Study) -> None:
    offered = study.differences(["offered"])
    assert (offered["difference"] == 0).all()
    (row,) = study.differences(["ttft_p99_s"]).query("tenant == 'chat'").to_dict("records")
    frame = study.replications.query("tenant == 'chat'").pivot(
        index="replication", columns="policy", values="ttft_p99_s"
    )
    expected = paired_difference(frame["none"].to_numpy(), frame["token-pool"].to_numpy())
    assert row["difference"] == pytest.approx((frame["token-pool"] - frame["none"]).mean())
    assert row["relative_ci_low"] == pytest.approx(expected.relative.low)
    assert row["refused_share"] > row["baseline_refused_share"] == 0


def test_findings_name_refusals_beside_latency(study: Study) -> None:
    found = findings(study)
    assert found[0].startswith("token-pool met the objective of")
    assert all("Refused:" in text for text in found if "P99" in text)


def test_cautions_name_unequal_refusals_and_few_requests(study: Study, folder: Path) -> None:
    text = "\n".join(cautions(study))
    assert "refused" in text
    assert "of different requests" in text
    assert "P99 rests on few requests" in text
    one = swept(folder, "single", scenario(policies=["none"], replications=1))
    assert any(caution.startswith("One replication") for caution in cautions(one))


def test_a_long_quiet_run_needs_no_caution(folder: Path) -> None:
    quiet = scenario(
        policies=["none"], replications=5, horizon_s=2000, timeline_interval_s=None,
        workload=[{"entitlement": "chat", "arrivals": {"kind": "poisson", "rate_per_s": 2}, "prompt_tokens": 8,
                   "output_tokens": 8}],
    )  # fmt: skip
    assert cautions(swept(folder, "quiet", quiet)) == []


def test_what_changed_in_the_scenario_is_named_by_path() -> None:
    before, after = (scenario(**change).model_dump(mode="json") for change in ({}, {"horizon_s": 61, "title": "b"}))
    assert [str(change) for change in scenario_changes(before, after)] == ["horizon_s: 60.0 -> 61.0"]
    policies = scenario(policies=["none", {"kind": "token-pool", "alpha_debt": 0}]).model_dump(mode="json")
    assert [change.path for change in scenario_changes(before, policies)] == ["policies.token-pool.alpha_debt"]


def test_a_result_compared_with_itself_changes_in_nothing(study: Study) -> None:
    found = compare(study, study)
    assert found.paired
    assert found.changes == []
    assert (found.table["difference"].fillna(0) == 0).all()
    assert found.broken([parse_limit("ttft_p99_s:+0%"), parse_limit("none/chat/slo_attainment:-0.0")]) == []


def test_a_regression_breaks_its_limit_and_noise_does_not(folder: Path, study: Study) -> None:
    slow = {
        "step_time": {"kind": "linear", "base_s": 0.06},
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "kv_blocks": 1000,
    }
    tree = scenario().model_dump(mode="json")
    worse = swept(folder, "worse", scenario(replications=6, pool=tree["pool"] | {"profile": slow}))
    found = compare(study, worse)
    assert [str(change) for change in found.changes] == ["pool.profile.step_time.base_s: 0.05 -> 0.06"]
    assert found.paired
    broken = found.broken([parse_limit("tpot_mean_s:+10%")])
    assert len(broken) == 2
    assert "tpot_mean_s changed by +20.0%" in broken[0]
    assert len(found.broken([parse_limit("token-pool/chat/tpot_mean_s:+10%")])) == 1
    assert found.broken([parse_limit("tpot_mean_s:+30%")]) == []
    assert found.broken([parse_limit("slo_attainment:-0.9")]) == []
    assert "worse" in in_words(found)
    noise = compare(study, swept(folder, "noise", scenario(seed=99, replications=6)))
    assert not noise.paired
    interval = noise.differences[Case("none"), "chat", "ttft_p50_s"]
    assert not interval.clear
    assert noise.broken([parse_limit("none/chat/ttft_p50_s:+1%"), parse_limit("none/chat/ttft_p50_s:-1%")]) == []


def test_what_was_not_measured_breaks_every_limit(folder: Path, study: Study) -> None:
    """A server that finishes nothing has no latency, which is within no bound."""
    stuck = {
        "step_time": {"kind": "linear", "base_s": 1e4}, "max_num_seqs": 8, "max_num_batched_tokens": 64,
        "kv_blocks": 1000,
    }  # fmt: skip
    tree = scenario().model_dump(mode="json")
    dead = swept(folder, "dead", scenario(replications=2, pool=tree["pool"] | {"profile": stuck}))
    for text in ("ttft_p99_s:+10%", "ttft_p99_s:+1", "ttft_p99_s:-10%", "chat/ttft_p99_s:+1000000%"):
        for found in (compare(study, dead), compare(dead, dead), compare(dead, study)):
            broken = found.broken([parse_limit(text)])
            assert len(broken) == len(dead.cases)
            assert all("was not measured" in line and "nobody can say" in line for line in broken)
    assert compare(study, study).broken([parse_limit("ttft_p99_s:+10%")]) == []


def test_a_case_that_is_gone_breaks_the_limit_that_was_set_on_it(folder: Path, study: Study) -> None:
    alone = swept(folder, "alone", scenario(policies=["none"], replications=6))
    found = compare(study, alone)
    (line,) = found.broken([parse_limit("ttft_p99_s:+10%")])
    assert line.startswith("token-pool: is in the first result alone")
    assert found.broken([parse_limit("none/chat/ttft_p99_s:+10%")]) == []


@pytest.mark.parametrize(
    ("before", "after", "text", "broken"),
    [
        ([0.0, 0.0], [3.0, 3.0], "refused:+10%", True),
        ([0.0, 0.0], [0.0, 0.0], "refused:+10%", False),
        ([0.0, 0.0], [3.0, 4.0], "refused:-10%", False),
        ([0.0, 0.0], [3.0, 3.0], "refused:+5", False),
    ],
)
def test_a_share_of_nothing_is_beyond_every_bound_where_there_is_something(
    before: list[float], after: list[float], text: str, broken: bool
) -> None:
    assert parse_limit(text).broken_by(paired_difference(before, after)) is broken


def test_cases_that_only_one_has_are_said(folder: Path, study: Study) -> None:
    alone = swept(folder, "alone", scenario(policies=["none"], replications=6))
    found = compare(study, alone)
    assert found.only_before == [Case("token-pool")]
    assert set(found.table["policy"]) == {"none"}


@pytest.mark.parametrize(
    "text", ["ttft_p99_s", "ttft_p99_s:10%", "ttft_p9_s:+10%", "a/b/c/ttft_p99_s:+1", "x:+%", "refused:+1e400"]
)
def test_a_bad_limit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--fail-if"):
        parse_limit(text)


def test_a_limit_that_matches_nothing_is_refused(study: Study) -> None:
    with pytest.raises(InputError, match="matches nothing"):
        compare(study, study).broken([parse_limit("nobody/ttft_p99_s:+10%")])


def test_the_interval_of_a_sweep_is_by_variant(folder: Path) -> None:
    study = swept(folder, "varied", scenario(replications=3, vary={RATE: [3, 9]}))
    offered = [study.interval(case, "batch", "offered").estimate for case in study.cases if case.policy == "none"]
    assert np.allclose(offered, [180, 540], rtol=0.15)
    assert len(study.differences(["offered"])) == 2 * 3


def test_one_policy_over_variants_is_said_by_its_ends(tmp_path: Path) -> None:
    sweep(scenario(policies=["token-pool"], replications=3, vary={RATE: [2, 6, 12]}), tmp_path / "s")
    found = findings(Study(tmp_path / "s"))
    assert [text.split("'")[0] for text in found] == ["All tenants", "chat", "batch"]
    refused = found[2].partition("refused ")[2]
    assert re.match(r"\S+% \[.*\] at rate_per_s=2 to \S+% \[.*\] at rate_per_s=12\.$", refused), refused


def test_a_comparison_says_where_latencies_are_of_different_requests(tmp_path: Path) -> None:
    changes = {"before": {"policies": ["token-pool"]}, "after": {"policies": [{"kind": "none", "name": "token-pool"}]}}
    for name, change in changes.items():
        sweep(scenario(replications=3, **change), tmp_path / name)
    before, after = Study(tmp_path / "before"), Study(tmp_path / "after")
    care = [one for one in in_words(compare(before, after, ["ttft_p99_s"])).splitlines() if "care" in one]
    assert "of different requests; compare slo_attainment" in care[0]
    assert [one.split(": ")[1] for one in care[1:]] == ["before", "after"]
    assert "P99 rests on few requests" in care[1]
    assert "care" not in in_words(compare(before, after, ["slo_attainment"]))
    assert "different requests" not in in_words(compare(before, before, ["ttft_p99_s"]))
