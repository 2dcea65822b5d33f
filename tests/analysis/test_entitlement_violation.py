from __future__ import annotations

import math

import numpy as np
import pytest
from analysis.toy import columns
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.api import EntitlementSpec, Resources, ServiceClass
from sim.analysis.entitlement_violation import _per_window, by_tenant, lost_tokens, violations
from sim.analysis.summary import format_table
from sim.experiments.run import run_scenario
from sim.records.schema import Outcome
from sim.scenario.load import load_scenario

ELASTIC = ServiceClass.ELASTIC


def spec(rate: float | None, **more: float) -> EntitlementSpec:
    return EntitlementSpec(name="a", tenant="a", service_class=ELASTIC, baseline=Resources(rate), **more)  # type: ignore[arg-type]


def served(at_s: float, prompt: int, output: int) -> dict[str, object]:
    return {
        "arrival_s": at_s, "forwarded_s": at_s, "first_token_s": at_s, "finish_s": at_s, "prompt_tokens": prompt,
        "output_tokens": output, "max_output_tokens": output, "outcome": Outcome.FINISHED,
    }  # fmt: skip


def refused(at_s: float, prompt: int, output: int) -> dict[str, object]:
    return {
        "arrival_s": at_s, "finish_s": at_s, "prompt_tokens": prompt, "output_tokens": 0, "max_output_tokens": output,
        "outcome": Outcome.REFUSED,
    }  # fmt: skip


def test_by_hand() -> None:
    # 100 tokens a second for 40 s are promised. First 10 s: 600 asked for and served. Then 500 served and 700 refused,
    # of 1,000 owed. Then 2,000 refused. The last window does not count.
    rows = [served(1, 300, 300), served(11, 250, 250), refused(12, 400, 300), refused(21, 1000, 1000)]
    rows.append(refused(31, 9, 9))
    assert violations(columns([spec(100.0)], rows), 40.0) == {
        "a": pytest.approx((0 + 500 + 1000) / (600 + 1000 + 1000))
    }
    assert violations(columns([spec(None)], rows), 40.0) == {}
    assert violations(columns([spec(100.0)], []), 40.0) == {}


def test_only_while_it_is_in_force() -> None:
    rows = [served(1, 100, 100), refused(11, 500, 500), refused(21, 500, 500)]
    made = columns([spec(100.0, from_s=5.0, until_s=15.0)], rows)
    assert violations(made, 40.0) == {"a": pytest.approx(500 / (200 + 500))}


def test_service_counts_when_it_comes_and_not_when_it_was_asked_for() -> None:
    late = {**served(2, 500, 500), "first_token_s": 22.0, "finish_s": 22.0}
    soon = [served(0.5, 1, 1) for _ in range(9)]
    found = violations(columns([spec(100.0)], [*soon, late]), 40.0)
    assert found["a"] == pytest.approx((1000 - 18) / 1000)


def test_a_retry_adds_no_demand() -> None:
    first = {**refused(1, 100, 100), "request_id": "x", "final": False}
    again = {**served(3, 100, 100), "request_id": "x", "attempt": 2, "first_arrival_s": 1.0}
    assert violations(columns([spec(100.0)], [first, again]), 40.0) == {"a": 0.0}


def test_tokens_lost() -> None:
    rows = [
        {**served(1, 10, 20), "outcome": Outcome.EVICTED}, {**served(1, 10, 5), "outcome": Outcome.FAILED},
        served(1, 10, 99), {**served(1, 10, 7), "outcome": Outcome.CANCELLED},
    ]  # fmt: skip
    assert lost_tokens(columns([spec(1.0)], rows)) == 25


hundredths = st.integers(1, 5000).map(lambda n: n / 100)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(hundredths, st.integers(0, 30), st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=8))
def test_windows_hold_what_comes_in_them(parts: list[tuple[float, int, float, float]]) -> None:
    edges_s = np.arange(0.0, 100.1, 10.0)
    begin_s, lasts_s, at_once, evenly = (np.asarray(each, dtype=float) for each in zip(*parts, strict=True))
    got = _per_window(edges_s, begin_s, begin_s + lasts_s, at_once, evenly)
    for window in range(10):
        low, high = 10.0 * window, 10.0 * window + 10
        wanted = 0.0
        for begin, lasts, once, even in parts:
            here = low < begin <= high
            wanted += once * here
            wanted += even * max(0.0, min(begin + lasts, high) - max(begin, low)) / lasts if lasts else even * here
        assert math.isclose(got[window], wanted, rel_tol=1e-6, abs_tol=1e-6)


def test_tenants_and_all_sum_over_their_entitlements_and_the_warm_up_is_left_out() -> None:
    specs = [
        EntitlementSpec(name=name, tenant=tenant, service_class=ServiceClass.GUARANTEED, baseline=Resources(10.0))
        for name, tenant in (("a", "x"), ("b", "x"), ("c", "y"))
    ]
    found = {"a": (10.0, 100.0), "b": (0.0, 300.0)}
    assert by_tenant(found, specs, "all") == {"x": 10 / 400, "all": 10 / 400}
    assert by_tenant({**found, "c": (50.0, 50.0)}, specs, "all") == {"x": 10 / 400, "y": 1.0, "all": 60 / 450}
    rows = [refused(1, 50, 50), served(12, 50, 50), refused(23, 50, 50)]
    made = columns([spec(100.0)], rows)
    assert violations(made, 50.0)["a"] == pytest.approx(2 / 3)
    assert violations(made, 50.0, from_s=10.0)["a"] == pytest.approx(1 / 2)
    assert violations(made, 5.0, from_s=10.0) == {}


def test_the_summary_has_the_violation_of_each_tenant_and_its_mean() -> None:
    scenario = load_scenario("five-classes", overrides=["horizon_s=120", "replications=2", "policies=[none]"])
    result = run_scenario(scenario)
    cells = [cell["violation_by_tenant"] for cell in result.manifest["cells"]]
    for row in result.summary:
        name = str(row["tenant"])
        if name in ("chat", "all"):
            assert row["violation"] == pytest.approx((cells[0][name] + cells[1][name]) / 2)
            assert 0 < float(row["violation"]) <= 1
        else:
            assert math.isnan(float(row["violation"]))
    assert "violated %" in format_table(result.summary)
    assert "violated %" not in format_table([{**row, "violation": math.nan} for row in result.summary])
