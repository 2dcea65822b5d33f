"""What calibration simulates beside the engine: measured cache hits, a server's work, connections that run out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sim.calibration.measured import MeasuredRun
from sim.calibration.on_scenario import replay_on
from sim.calibration.single_replica import LoadGenerator, Requests, closed_loop, replay
from sim.cluster.engine_request import NEVER_S, EngineRequest
from sim.cluster.node import replica_of
from sim.cluster.replica import Replica
from sim.cluster.server_work import ServerWork
from sim.engine.step_fitted import FittedStepTime
from sim.errors import InputError
from sim.scenario.load import parse_scenario
from sim.scenario.profile import Profile, parse_profile

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


def test_who_is_handled_together_holds_up_those_before() -> None:
    shared = engine(request_handling_s=0.1, request_handling_shared=True)
    asked = Requests(np.array([0.0, 0.05, 10.0]), np.full(3, 10), np.full(3, 1))
    made = replay(shared, asked).first_token_s
    # Half of the first is done when the second comes; each then takes twice as long for what is left of the first.
    assert made - asked.arrival_s == pytest.approx([0.15 + 0.01, 0.15 + 0.01, 0.1 + 0.01])
    in_turn = replay(engine(request_handling_s=0.1), asked).first_token_s
    assert in_turn - asked.arrival_s == pytest.approx([0.1 + 0.01, 0.15 + 0.01, 0.1 + 0.01])
    at_once_s = replay(shared, at_once(20, 1)).first_token_s
    assert at_once_s == pytest.approx(np.full(20, 20 * 0.1 + 0.01))


@pytest.mark.parametrize(("per_prompt_token_s", "reaches_s"), [
    (0.0, [0.15, 0.24, 0.30, 0.60]),
    (0.01, [0.252, 0.354, 0.456, 0.702]),  # and then prompts of ten tokens are read, 2 ms after the first waits
])  # fmt: skip
def test_who_is_handled_has_a_share_of_the_time_as_long_as_others_are(
    per_prompt_token_s: float, reaches_s: list[float]
) -> None:
    # The second comes when half of the first's 0.1 s are done: both go on at half the speed, and the first is done at
    # 0.15. The third meets the second with 0.04 s to go, done at 0.24, and has 0.06 s left then. The last is alone.
    profile = engine(
        request_handling_s=0.1, request_handling_shared=True, request_per_prompt_token_s=per_prompt_token_s
    )
    asked = Requests(np.array([0.0, 0.05, 0.16, 0.5]), np.full(4, 10), np.full(4, 1))
    assert replay(profile, asked).first_token_s - 0.01 == pytest.approx(reaches_s)


@pytest.mark.parametrize("work", [
    "request_overhead_s", "request_handling_s", "request_per_prompt_token_s", "request_per_running_s"
])  # fmt: skip
def test_any_work_of_a_server_takes_time(work: str) -> None:
    assert ServerWork(engine(**{work: 0.1}), None).takes_time
    assert not ServerWork(engine(), None).takes_time


def test_a_request_that_is_aborted_while_it_is_handled_is_not_served() -> None:
    heard: list[tuple[str, object]] = []

    class Listener:
        def on_first_token(self, request: EngineRequest, _: float) -> None:
            heard.append(("first", request))

        def on_finish(self, request: EngineRequest, _: float) -> None:
            heard.append(("last", request))

    wakes: list[float] = []
    profile = engine(request_handling_s=0.1, request_handling_shared=True)
    replica: Replica[EngineRequest] = replica_of(profile, profile.step_time, Listener(), wakes.append)
    server = ServerWork(profile, replica)
    asked = [EngineRequest(10, 5) for _ in range(3)]
    for request in asked:
        server.submit(request, 0.0)
    replica.abort(asked[1], 0.05)
    for _ in range(20):
        if wakes[-1] == NEVER_S:
            break
        replica.boundary(wakes[-1])
    assert [request for what, request in heard if what == "last"] == [asked[0], asked[2]]
    assert asked[0].submitted_s == pytest.approx(0.3)
    assert replica.waiting_count == replica.running_count == 0


def test_prompts_are_read_one_after_another_cached_or_not() -> None:
    reading = engine(request_per_prompt_token_s=1e-4)
    first_s = replay(reading, at_once(3, 1000, 992)).first_token_s
    assert first_s == pytest.approx([0.11, 0.21, 0.31], abs=0.012)
    together = reading.model_copy(update={"request_handling_s": 0.2, "request_handling_shared": True})
    # All are handled by 0.6 s, gathered for 2 ms, and read at once.
    assert replay(together, at_once(3, 1000, 992)).first_token_s == pytest.approx(np.full(3, 0.912))


def test_a_generator_of_one_thread_sees_and_sends_when_it_has_time() -> None:
    asked, slow = at_once(6, 10), LoadGenerator(per_request_s=0.5, per_prompt_token_s=0.01, per_send_s=0.003)
    plain = closed_loop(engine(), asked, 2)
    idle = closed_loop(engine(), asked, 2, generator=LoadGenerator())
    assert idle.finish_s == pytest.approx(plain.finish_s)
    made = closed_loop(engine(), asked, 2, generator=slow)
    assert made.arrival_s is not None
    assert made.arrival_s[:2] == pytest.approx([0.0, 0.003])
    first, second = made.finish_s[:2]
    # One ends an iteration before the other, which is looked at after 0.6 s of work for that one, and a sending.
    assert made.arrival_s[2] == pytest.approx(first + 0.6)
    assert second == pytest.approx(first + 0.6 + 0.003)
    assert made.arrival_s[3] == pytest.approx(second + 0.6)
    one_open = closed_loop(engine(), asked, 2, max_in_flight=1, generator=slow)
    assert (np.diff(one_open.first_token_s) > 0.05).all()


@pytest.mark.parametrize(("changes", "said"), [
    ({"request_handling_shared": True}, "there is no request_handling_s to share"),
    ({"request_handling_shared": True, "request_handling_s": 0.1, "data_parallel": 2}, "set beside data_parallel"),
    ({"step_time": FittedStepTime(weights_s=0.01, prompt_launch_s=0.01), "pipeline_parallel": 2},
     "set beside pipeline_parallel, which has none"),
])  # fmt: skip
def test_where_a_server_or_a_launch_has_no_meaning_it_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Profile(**{"step_time": STEP, "max_num_seqs": 64, "max_num_batched_tokens": 4096, "kv_blocks": 20000} | changes)


def spread(n: int = 40) -> Requests:
    rng = np.random.default_rng(2)
    return Requests(np.cumsum(rng.exponential(0.02, n)), rng.integers(50, 900, n), rng.integers(5, 60, n))


LAYOUTS: dict[str, dict[str, Any]] = {
    "ranks": {"data_parallel": 2, "gpus": 2},
    "ranks in step": {"data_parallel": 2, "gpus": 2, "expert_parallel": True},
    "stages": {"pipeline_parallel": 2, "pipeline_transfer_s": 0.002, "gpus": 2, "prefix_caching": False},
    "prefill and decode apart": {
        "disaggregated": {"prefill_engines": 1, "decode_engines": 1, "kv_bytes_per_s": 5e10, "latency_s": 0.002},
        "kv_bytes_per_token": 1e5,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_replica_of_several_engines_is_all_of_them_as_in_a_scenario(layout: str) -> None:
    profile = parse_profile(
        {"step_time": {"kind": "fitted", "weights_s": 0.01, "per_token_s": 1e-4}, "max_num_seqs": 4,
         "max_num_batched_tokens": 4096, "kv_blocks": 20000, **LAYOUTS[layout]}, layout,
    )  # fmt: skip
    requests = spread()
    made = replay(profile, requests)
    scenario = parse_scenario(
        {
            "version": 1, "horizon_s": 60, "policies": [{"kind": "none"}],
            "pool": {
                "profile": profile.model_dump(mode="json", exclude={"name"}), "replicas": 1,
                "entitlements": [{"name": "a", "service_class": "spot"}],
            },
            "workload": [{
                "entitlement": "a", "arrivals": {"kind": "poisson", "rate_per_s": 1}, "prompt_tokens": 8,
                "output_tokens": 8,
            }],
        },
        "SCENARIO",
    )  # fmt: skip
    there = replay_on(scenario, MeasuredRun("run", requests, made))
    assert made.first_token_s == pytest.approx(there.first_token_s, abs=1e-9)
    assert made.finish_s == pytest.approx(there.finish_s, abs=1e-9)
    one = replay(engine().model_copy(update={"max_num_seqs": 4}), requests)
    assert not np.allclose(one.finish_s, made.finish_s)  # what it would be if the layout did not matter


def test_clients_of_a_closed_loop_are_spread_over_ranks() -> None:
    narrow = engine().model_copy(update={"max_num_seqs": 1})
    ranks = narrow.model_copy(update={"data_parallel": 2, "gpus": 2})
    waits = [np.ptp(closed_loop(each, at_once(2, 10), 2).first_token_s) for each in (narrow, ranks)]
    assert waits[0] > 0.09
    assert waits[1] == pytest.approx(0.0)


def test_measured_hits_are_those_of_each_rank_and_of_no_other_group() -> None:
    ranks = engine().model_copy(update={"data_parallel": 2, "gpus": 2})
    assert replay(ranks, at_once(2, cached=800)).first_token_s == pytest.approx([0.02, 0.02])
    staged = engine().model_copy(update={"pipeline_parallel": 2, "gpus": 2})
    with pytest.raises(InputError, match="made of several engines; leave cached_tokens out"):
        replay(staged, at_once(2, cached=800))
