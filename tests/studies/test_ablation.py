"""The ablation's tables and the settings of the sensitivity table."""

from __future__ import annotations

import pytest

from sim.analysis import style
from sim.scenario.load import expand
from sim.studies import debt_ablation as ablation
from sim.studies import paper_reproduction as reproduce
from sim.studies import paper_sensitivity as sensitivity


@pytest.fixture(scope="module")
def found():
    return ablation.ablation(replications=2)


def test_the_grid_is_whole_and_its_workload_that_of_experiment_2():
    scenario, experiment2 = reproduce.shipped(ablation.SCENARIO), reproduce.shipped("paper-exp2")
    assert len(expand(scenario)) == 24 * scenario.replications
    assert scenario.replications >= 10
    same = ("seed", "horizon_s", "pool", "workload", "events", "policies", "phases")
    assert all(getattr(scenario, name) == getattr(experiment2, name) for name in same)


def test_a_cell_of_the_grid_is_the_run_without_the_grid(found):
    """The paper's rules with debt are paper-exp2 itself, so both must give the same numbers."""
    scenario = reproduce.shipped("paper-exp2", 2)
    result = reproduce.run_scenario(scenario)
    alone = ablation._measured(scenario, result.requests, result.timeline)
    rules = {**ablation.PAPER_RULES, "alpha_debt": "4"}
    cell = found.measured
    for name, value in rules.items():
        cell = cell[cell[name] == value]
    names = [f"{tenant}_successes" for tenant in ("copilot", "synth", "reports")]
    assert cell[names].to_numpy().tolist() == alone[names].to_numpy().tolist()


def test_where_equality_suffices_and_weights_are_live_nobody_is_refused_for_priority(found):
    """Each entitlement in flight keeps the threshold at or below its own weight."""
    rows = found.measured[(found.measured["weight_at"] == "live") & (found.measured["threshold"] == "inclusive")]
    assert len(rows) == 2 * 3 * 2
    assert (rows[[f"{tenant}_low_priority" for tenant in ("copilot", "synth", "reports")]] == 0).all(axis=None)


def test_tables_have_a_line_for_each_setting(found):
    assert len(ablation.effects(found.measured).splitlines()) == 2 + 12
    assert len(ablation.levels(found.measured).splitlines()) == 2 + 24
    assert len(ablation.in_the_outage(found.measured).splitlines()) == 2 + 12
    lines = ablation.by_stretch(found.measured, found.scenario).splitlines()
    assert len(lines) == 2 + 2 * 3 + 3  # two tenants in three stretches, three in the last
    shares = [line.split("|")[2] for line in ablation.mechanism(found).splitlines()[2:]]
    assert sum(int(share.strip(" %")) for share in shares) in (99, 100, 101)


def test_the_figure_draws_and_saves(found, tmp_path):
    paths = style.save(ablation.figure(found), tmp_path, "debt")
    assert all(path.stat().st_size > 10_000 for path in paths)


def test_every_setting_of_the_sensitivity_table_loads_and_says_what_it_sets():
    for setting in sensitivity.SETTINGS:
        for name in reproduce.EXPERIMENTS:
            base = reproduce.shipped(name)
            scenario = reproduce.shipped(name, None, *setting.overrides(base))
            assert scenario.pool.profile.step_time.base_s == setting.base_s
            assert scenario.pool.profile.tokens_per_s == setting.tokens_per_s
            rates = [workload.arrivals.rate_per_s for workload in scenario.workload]
            assert rates == [workload.arrivals.rate_per_s for workload in base.workload]
    assert len(set(sensitivity.SETTINGS)) == len(sensitivity.SETTINGS)


def test_the_default_setting_is_the_shipped_one():
    for name in reproduce.EXPERIMENTS:
        base = reproduce.shipped(name)
        assert reproduce.shipped(name, None, *sensitivity.Setting().overrides(base)).workload == base.workload
        assert sensitivity.Setting().base_s == base.pool.profile.step_time.base_s
