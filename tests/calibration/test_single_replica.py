"""What calibration simulates beside the engine: measured cache hits, a server's work, connections that run out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.calibration.single_replica import Requests, closed_loop, replay
from sim.engine.step_fitted import FittedStepTime
from sim.scenario.profile import Profile

STEP = FittedStepTime(weights_s=0.01, per_token_s=1e-4)


def engine(**changes: Any) -> Profile:
    return Profile(step_time=STEP, max_num_seqs=64, max_num_batched_tokens=4096, kv_blocks=20000, **changes)


def at_once(n: int, prompt: int = 1000, cached: int | None = None) -> Requests:
    hits = None if cached is None else np.full(n, cached)
    return Requests(np.zeros(n), np.full(n, prompt), np.full(n, 10), hits)


def test_measured_hits_are_not_computed_again_whatever_the_profile_says() -> None:
    plain, hit = (replay(engine(), at_once(1, cached=cached)).first_token_s[0] for cached in (None, 800))
    assert plain == pytest.approx(0.1)
    assert hit == pytest.approx(0.02)
    assert replay(engine(), at_once(1, 16, 16)).first_token_s[0] == pytest.approx(0.01)  # its last token is computed
    crowded = engine().model_copy(update={"kv_blocks": 130})
    made = replay(crowded, Requests(np.zeros(4), np.full(4, 1000), np.full(4, 200), np.full(4, 992)))
    assert np.isfinite(made.finish_s).all()
    assert made.preemptions > 0


def test_a_server_handles_requests_one_at_a_time_and_slower_the_more_are_running() -> None:
    alone = replay(engine(request_handling_s=0.005), at_once(1, 10)).first_token_s[0]
    assert alone == pytest.approx(0.015)
    three = replay(engine(request_handling_s=0.5), at_once(3, 10)).first_token_s
    assert np.diff(three) == pytest.approx([0.5, 0.5])
    apart = Requests(np.array([0.0, 0.05]), np.full(2, 10), np.full(2, 100))
    slow, quick = (replay(engine(request_per_running_s=s), apart).first_token_s[1] for s in (0.1, 0.0))
    assert slow - quick == pytest.approx(0.1, abs=0.011)


def test_who_finds_no_connection_waits_in_order() -> None:
    made = replay(engine(), at_once(3, 10), max_in_flight=1)
    assert made.first_token_s[1] == pytest.approx(made.finish_s[0] + 0.01)
    assert made.first_token_s[2] == pytest.approx(made.finish_s[1] + 0.01)
    loop = closed_loop(engine(), at_once(6, 10), 3, max_in_flight=1)
    assert loop.arrival_s is not None
    assert (np.diff(np.sort(loop.finish_s)) > 0.05).all()
    assert list(loop.arrival_s[:3]) == [0.0, 0.0, 0.0]
