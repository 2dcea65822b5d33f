from __future__ import annotations

from functools import partial

import pytest

from policies.token_pool.priority import burst_excess, debt_gap, smoothed, weight

ELASTIC = partial(
    weight, class_weight=100, mean_slo_s=15.25, burst=0.0, debt=0.0,
    alpha_slo=2.0, alpha_burst=1.0, alpha_debt=4.0, debt_factor_floor=0.1,
)  # fmt: skip


@pytest.mark.parametrize(("slo_s", "published"), [(0.5, 93.85), (30.0, 20.27), (5.0, 60.40)])
def test_weights_of_the_second_experiment(slo_s: float, published: float) -> None:
    assert round(ELASTIC(slo_s=slo_s), 2) == published


def test_the_gap_at_peak_debts() -> None:
    copilot, synth = ELASTIC(slo_s=0.5, debt=0.607), ELASTIC(slo_s=30.0, debt=0.775)
    assert round(copilot / synth, 2) == 3.87
    assert synth == pytest.approx(83.2, abs=0.15)
    assert ELASTIC(slo_s=0.5) / ELASTIC(slo_s=30.0) == pytest.approx(4.6, abs=0.05)


def test_burst_halves_at_one_and_debt_cannot_turn_a_weight_negative() -> None:
    assert ELASTIC(slo_s=5.0, burst=1.0) == pytest.approx(ELASTIC(slo_s=5.0) / 2)
    assert ELASTIC(slo_s=5.0, debt=-0.2) == pytest.approx(ELASTIC(slo_s=5.0) * 0.2)
    assert ELASTIC(slo_s=5.0, debt=-0.25) == ELASTIC(slo_s=5.0, debt=-3.0) == pytest.approx(ELASTIC(slo_s=5.0) * 0.1)


def test_equations_2_and_3_by_hand() -> None:
    assert debt_gap(80.0, 20.0) == 0.75
    assert debt_gap(80.0, 120.0) == -0.5
    assert debt_gap(80.0, 20.0, wanted_tokens_per_s=40.0) == 0.25
    assert debt_gap(80.0, 0.0, wanted_tokens_per_s=0.0) == 0.0
    assert debt_gap(80.0, 20.0, wanted_tokens_per_s=500.0) == 0.75
    assert burst_excess([(120.0, 80.0), (7, 5), (1.0, 2.0)]) == pytest.approx(0.5 + 0.4)
    assert smoothed(0.0, 1.0, 0.7) == pytest.approx(0.3)
    debt = 0.775
    for _ in range(10):  # 50 s of full service at a tick of 5 s
        debt = smoothed(debt, 0.0, 0.7)
    assert debt < 0.05
