"""Why a request was turned away, and whether that was right: the run again, up to it or with it let in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from cluster.busy_day import busy
from cluster.worlds import POLICIES
from experiments.small import TREE, scenario
from typer.testing import CliRunner

from policies.api import Evict, Forward, Reason, Refuse
from sim.cli import app
from sim.errors import InputError, RunError
from sim.experiments.run import run_scenario
from sim.experiments.sweep import sweep
from sim.judging.counterfactual import judge_refusals
from sim.judging.explain import explain
from sim.judging.explain_text import in_words
from sim.judging.judge import judge
from sim.judging.result_runs import alone_runs, result_runs
from sim.scenario.load import parse_scenario

RATE = {"kind": "rate-limit", "requests_per_min": 150, "burst_s": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain") / "r"
    run_scenario(scenario(policies=["none", "token-pool", RATE], replications=2), folder)
    return folder


@pytest.mark.parametrize("policy", list(POLICIES))
def test_every_reason_of_a_busy_day(policy: str, tmp_path: Path) -> None:
    result = run_scenario(parse_scenario(busy(policy), "busy"), tmp_path / "r")
    rows = result.requests.to_pylist()
    seen = {}
    for row in rows:
        if row["outcome"] in ("refused", "evicted"):
            seen.setdefault((row["outcome"], row["reason"]), row)
    assert len(seen) >= 3
    for (outcome, reason), row in seen.items():
        found = explain(tmp_path / "r", row["request_id"], attempt=row["attempt"])
        one = found.explanation
        assert one is not None
        assert one.arrived_s == row["arrival_s"]
        assert one.last.reason.value == reason  # type: ignore[union-attr]
        assert isinstance(one.last, Refuse if outcome == "refused" else Evict)
        if outcome == "refused":
            assert one.said[-1][0] == row["finish_s"]
            assert one.what_ifs
        text = in_words(found)
        assert reason in text
        assert one.request.request_id in text


def test_the_books_at_that_instant_by_hand(tmp_path: Path) -> None:
    # Two slots, three requests a tenth of a second apart, a limit of two in flight: the third finds both taken.
    tree: dict[str, Any] = TREE | {
        "workload": [{"entitlement": "batch", "arrivals": {"kind": "even", "rate_per_s": 10, "phase_s": 0.0},
                      "requests": 3, "prompt_tokens": 8, "output_tokens": 16}],
        "policies": [{"kind": "token-pool", "mode": "paper"}],
    }  # fmt: skip
    tree["pool"] = tree["pool"] | {"entitlements": [
        {"name": "chat", "service_class": "guaranteed", "baseline": {"slots": 4}},
        {"name": "batch", "service_class": "spot", "limit": {"slots": 2}},
    ]}  # fmt: skip
    run_scenario(parse_scenario(tree, "x"), tmp_path / "r")
    found = explain(tmp_path / "r", "batch-2")
    one = found.explanation
    assert one is not None
    last = one.last
    assert isinstance(last, Refuse)
    assert (last.reason, last.needed, last.available) == (Reason.CONCURRENCY, 3, 2)
    assert one.books[0].entitlement["in_flight"] == 2
    assert one.books[0].entitlement["reserved_tokens"] == 48
    assert one.books[0].pool["in_flight"] == 2
    assert one.what_ifs == [
        "no smaller max_tokens would have helped",
        "not by waiting up to 120 s while nothing ends",
        "with the longest running of the 2 in flight of its own ended",
        "with the longest running of the 2 in flight ended",
        "under another entitlement: chat would have been let in",
    ]
    first = explain(tmp_path / "r", "batch-0").explanation
    assert first is not None
    assert isinstance(first.last, Forward)
    assert not first.what_ifs


def test_what_ifs_about_tokens_and_time(tmp_path: Path) -> None:
    # A full bucket of 100 tokens, 10 a second: after 3 s at 24 tokens for each of 5 a second it is all but empty.
    limit = {"kind": "rate-limit", "tokens_per_min": 600, "burst_s": 10}
    tree = TREE | {
        "workload": [{"entitlement": "batch", "arrivals": {"kind": "even", "rate_per_s": 5, "phase_s": 0.0},
                      "requests": 6, "prompt_tokens": 8, "output_tokens": 16}],
        "policies": [limit],
    }  # fmt: skip
    run_scenario(parse_scenario(tree, "x"), tmp_path / "r")
    one = explain(tmp_path / "r", "batch-4").explanation
    assert one is not None
    assert isinstance(one.last, Refuse)
    assert one.last.needed == 24
    assert one.last.available == pytest.approx(100 - 4 * 24 + 8)
    assert one.what_ifs[0] == "with max_tokens of at most 4 instead of 16"
    assert one.what_ifs[1] == "2 s later, if nobody else had come and nothing ended before"


def test_which_run_and_which_attempt(small: Path) -> None:
    table = result_runs(small).requests(result_runs(small).cells[-1])
    refused = table.filter(pc.equal(table.column("outcome"), "refused")).column("request_id").to_pylist()[0]
    assert explain(small, refused, policy="rate-limit", replication=1).policy == "rate-limit"
    assert explain(small, refused, policy="none").row["outcome"] == "finished"
    with pytest.raises(InputError, match=r"no such request.*e\.g\. [a-z]+-[0-9]"):
        explain(small, "nobody-1")
    with pytest.raises(InputError, match="policy nothing; its policies are none, token-pool, rate-limit, its rep"):
        explain(small, refused, policy="nothing")
    with pytest.raises(InputError, match="has no attempt 2"):
        explain(small, refused, attempt=2)
    shown = CliRunner().invoke(app, ["explain", str(small), refused, "--policy", "rate-limit", "--replication", "1"])
    assert shown.exit_code == 0
    assert "refused" in shown.output
    assert "what would have let it in" in shown.output


def test_a_result_that_no_longer_repeats_is_told(small: Path, tmp_path: Path) -> None:
    import json
    import shutil

    from sim.records.result_folder import write_manifest

    shutil.copytree(small, tmp_path / "r")
    path = tmp_path / "r" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["scenario"]["seed"] += 1
    write_manifest(manifest, tmp_path / "r")
    with pytest.raises(RunError, match="does not repeat"):
        explain(tmp_path / "r", "chat-5")


def test_a_sweep_can_be_explained(tmp_path: Path) -> None:
    sweep(scenario(policies=[RATE], vary={"workload.batch.arrivals.rate_per_s": [2, 9]}), tmp_path / "s")
    found = result_runs(tmp_path / "s")
    table = found.requests(found.cells[1])
    refused = table.filter(pc.equal(table.column("outcome"), "refused")).column("request_id").to_pylist()[-1]
    assert explain(tmp_path / "s", refused).explanation is not None


def test_refusals_into_an_idle_pool_are_false(tmp_path: Path) -> None:
    # One request at a time would be quick; a limit far below what the pool serves refuses for nothing.
    folder = tmp_path / "idle"
    rate = {"kind": "rate-limit", "requests_per_min": 30, "burst_s": 2}
    workload = [TREE["workload"][0] | {"arrivals": {"kind": "poisson", "rate_per_s": 1}}]
    run_scenario(scenario(policies=[rate], workload=workload), folder)
    (found,) = judge_refusals(result_runs(folder), 6).values()
    assert found["chat"] == {"refusals_judged": 6, "false_reject_share": 1.0, "free_reject_share": 1.0}


def test_refusals_under_overload_are_right(tmp_path: Path) -> None:
    # Four times what the pool serves, and chat in it: whoever is let in besides waits longer than its objective.
    folder = tmp_path / "full"
    workload = [TREE["workload"][0] | {"arrivals": {"kind": "poisson", "rate_per_s": 60}}]
    rate = {"kind": "rate-limit", "requests_per_min": 1300, "burst_s": 1}
    run_scenario(scenario(policies=[rate], workload=workload, horizon_s=20), folder)
    (found,) = judge_refusals(result_runs(folder), 5).values()
    assert found["all"]["refusals_judged"] == 5
    assert float(found["all"]["free_reject_share"]) < 0.5


def test_alone_runs_are_kept_and_give_isolation(small: Path) -> None:
    found = result_runs(small)
    tables = alone_runs(found)
    assert {tenant for one in tables.values() for tenant in one} == {"chat", "batch"}
    stamp = {path: path.stat().st_mtime_ns for path in (small / "alone").rglob("*.parquet")}
    judged = judge(small, alone=True, refusals=1)
    assert {path: path.stat().st_mtime_ns for path in (small / "alone").rglob("*.parquet")} == stamp
    assert judged.path.read_text().startswith("policy,tenant,replications,offered")
    rows = {(row["policy"], row["tenant"]): row for row in judged.rows}
    assert float(rows["none", "chat"]["isolation_ttft_mean"]) > float(rows["token-pool", "chat"]["isolation_ttft_mean"])
    assert float(rows["none", "chat"]["isolation_ttft_mean"]) > 1
    assert rows["rate-limit", "all"]["refusals_judged"] == 1
    # Alone, the draws are the same: every request of the tenant, at its own time.
    both = found.requests(found.cells[0])
    chat = both.filter(pc.equal(both.column("tenant"), "chat")).sort_by("arrival_s")
    alone = next(iter(tables.values()))["chat"].sort_by("arrival_s")
    assert chat.column("arrival_s").to_pylist() == alone.column("arrival_s").to_pylist()
    assert chat.column("request_id").to_pylist() == alone.column("request_id").to_pylist()


def test_metrics_command(small: Path) -> None:
    shown = CliRunner().invoke(app, ["metrics", str(small), "--convergence"])
    assert shown.exit_code == 0, shown.output
    assert "Jain" in shown.output
    assert "--convergence: nothing changed" in shown.stderr
    as_csv = CliRunner().invoke(app, ["metrics", str(small), "--csv"])
    assert "gini_ci_low" in as_csv.output.splitlines()[0]


def test_a_guaranteed_tenant_at_its_own_limit_in_an_idle_pool_is_told_what_it_costs(tmp_path: Path) -> None:
    tree: dict[str, Any] = TREE | {
        "workload": [{"entitlement": "chat", "arrivals": {"kind": "even", "rate_per_s": 10, "phase_s": 0.0},
                      "requests": 3, "prompt_tokens": 8, "output_tokens": 16}],
        "policies": [{"kind": "token-pool", "mode": "paper"}],
    }  # fmt: skip
    tree["pool"] = tree["pool"] | {"entitlements": [
        {"name": "chat", "service_class": "guaranteed", "baseline": {"slots": 1}},
        {"name": "batch", "service_class": "spot"},
    ]}  # fmt: skip
    run_scenario(parse_scenario(tree, "x"), tmp_path / "r")
    text = in_words(explain(tmp_path / "r", "chat-1"))
    assert "slots were free: a guaranteed entitlement never exceeds its baseline" in text
    assert "docs/which-class.md" in text


def test_what_stands_above_the_policy_is_explained_too(tmp_path: Path) -> None:
    tree: dict[str, Any] = TREE | {
        "workload": [{"entitlement": "chat", "arrivals": {"kind": "even", "rate_per_s": 10, "phase_s": 0.0},
                      "requests": 6, "prompt_tokens": 8, "output_tokens": 16}],
        "policies": ["none"],
    }  # fmt: skip
    tree["pool"] = tree["pool"] | {
        "groups": [{"name": "org", "limit": {"slots": 2}, "budgets": [{"per": "day", "limit": 100}]}],
        "entitlements": [{"name": "chat", "service_class": "spot", "parent": "org"}],
    }
    result = run_scenario(parse_scenario(tree, "x"), tmp_path / "r")
    reasons = {row["reason"]: row["request_id"] for row in result.requests.to_pylist() if row["outcome"] == "refused"}
    assert "parent_limit" in reasons
    for reason, request_id in reasons.items():
        assert reason in in_words(explain(tmp_path / "r", request_id))
