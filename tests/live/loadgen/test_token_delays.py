"""Iterations out of tokens that come late: what a busy machine does to a stream must not change what it tells."""

from __future__ import annotations

import random
from statistics import median

import pytest

from sim.live.loadgen.token_delays import longer_iteration_s, pace

ITERATION_S, GROWTH_S = 0.020, 2e-6


def ends(count: int, *, longer_at: int = -1, longer_s: float = 0.0) -> list[float]:
    at_s, found = 1.0, []
    for i in range(count):
        at_s += ITERATION_S + GROWTH_S * i + (longer_s if i == longer_at else 0.0)
        found.append(at_s)
    return found


def late(times: list[float], seed: int, share: float = 0.3) -> list[float]:
    """Return the times at which a client saw tokens: some late by up to three iterations, none before the last."""
    rng = random.Random(seed)
    seen: list[float] = []
    for at_s in times:
        behind_s = rng.uniform(0, 0.06) if rng.random() < share else rng.uniform(0, 2e-5)
        seen.append(max([at_s + behind_s, *seen[-1:]]))
    return seen


def test_on_time_the_pace_is_the_mean_of_the_iterations_it_names() -> None:
    found = pace(ends(60), 10, 50)
    assert found is not None
    assert found.iteration_s == pytest.approx(ITERATION_S + GROWTH_S * found.token, rel=1e-9)
    assert 20 < found.token < 40


@pytest.mark.parametrize("seed", range(20))
def test_late_tokens_do_not_change_the_pace(seed: int) -> None:
    times = late(ends(80), seed)
    found = pace(times, 0, 80)
    assert found is not None
    assert found.iteration_s == pytest.approx(ITERATION_S + GROWTH_S * found.token, rel=0.003)


def test_a_machine_that_gets_quieter_shows_no_faster_server() -> None:
    times = ends(80)
    slower = [at_s + 0.3 * max(0.0, 1 - i / 20) for i, at_s in enumerate(times)]
    found = pace(slower, 0, 80)
    assert found is not None
    plain_s = (slower[39] - slower[0]) / 39
    assert plain_s < 0.7 * ITERATION_S  # what means or medians of a short watch would say
    assert found.iteration_s == pytest.approx(ITERATION_S + GROWTH_S * found.token, rel=0.003)


def test_a_longer_iteration_is_found_among_late_tokens() -> None:
    found = []
    for seed in range(40):
        times = late(ends(24, longer_at=11, longer_s=0.010), seed)
        found.append(longer_iteration_s(times, 11, ITERATION_S, 8) / (ITERATION_S + 0.010))
    assert median(found) == pytest.approx(1, rel=0.005)
    assert sum(abs(one - 1) < 0.01 for one in found) >= 36  # in the others none of eight tokens came on time


def test_on_time_a_longer_iteration_is_exact() -> None:
    times = ends(18, longer_at=8, longer_s=0.010)
    assert longer_iteration_s(times, 8, ITERATION_S, 5) == pytest.approx(times[8] - times[7], rel=1e-12)


def test_too_few_tokens_show_no_pace() -> None:
    assert pace([1.0, 1.1], 0, 2) is None


def test_a_batch_whose_first_ended_before_its_last_began_shows_no_pace() -> None:
    """Which a client on a busy machine makes of a thousand streams."""
    times = [0.01 * i for i in range(20)]
    for first, stop in ((10, 9), (15, 3), (20, 0)):
        assert pace(times, first, stop) is None
