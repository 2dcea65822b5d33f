"""What happens around iterations: the way to the engine, and plans made one iteration ahead."""

from __future__ import annotations

import numpy as np
import pytest

from sim.calibration.single_replica import Latencies, Requests, replay
from sim.cluster.engine_request import EngineRequest
from sim.cluster.node import replica_of
from sim.cluster.replica import Replica
from sim.engine.step_fitted import FittedStepTime
from sim.engine.step_time import LinearStepTime
from sim.scenario.profile import Profile


def run(arrival_s: list[float], output_tokens: list[int], **changes: object) -> Latencies:
    profile = Profile(
        step_time=LinearStepTime(base_s=0.1), max_num_seqs=8, max_num_batched_tokens=64, kv_blocks=100, **changes
    )
    prompts = np.full(len(arrival_s), 10)
    return replay(profile, Requests(np.array(arrival_s), prompts, np.array(output_tokens)))


def test_a_request_on_its_way_is_not_served_before_it_arrives() -> None:
    # The engine falls idle at 0.55 + 0.1, while the second request is on its way until 0.95.
    found = run([0.0, 0.4], [1, 1], request_overhead_s=0.55)
    assert found.first_token_s.tolist() == pytest.approx([0.65, 1.05])


def test_an_arrival_waits_for_the_iteration_that_is_already_planned() -> None:
    # Iterations of the first request begin at 0, 0.1, 0.2, ...; the second arrives at 0.25.
    planned_late = run([0.0, 0.25], [9, 1], async_scheduling=False)
    planned_ahead = run([0.0, 0.25], [9, 1], async_scheduling=True)
    assert planned_late.first_token_s[1] == pytest.approx(0.4)
    assert planned_ahead.first_token_s[1] == pytest.approx(0.5)
    assert planned_ahead.finish_s[0] == planned_late.finish_s[0] == pytest.approx(0.9)


def test_an_idle_engine_has_nothing_planned() -> None:
    for ahead in (False, True):
        assert run([1.0], [3], async_scheduling=ahead).finish_s.tolist() == pytest.approx([1.3])


def test_what_is_left_of_a_preempted_request_is_not_computed_again() -> None:
    def finish_s(*, prefix_caching: bool) -> float:
        profile = Profile(
            step_time=LinearStepTime(base_s=0.01, per_prefill_token_s=0.01),
            max_num_seqs=8, max_num_batched_tokens=200, kv_blocks=13, prefix_caching=prefix_caching,
        )  # fmt: skip
        asked = Requests(np.array([0.0, 0.0]), np.array([96, 96]), np.array([20, 20]))
        made = replay(profile, asked)
        assert made.preemptions == 1
        return float(made.finish_s.max())

    # 13 blocks hold 12 of prompts and one more: the second request loses its 6, and finds again 5 or 6 of them.
    assert finish_s(prefix_caching=False) - finish_s(prefix_caching=True) == pytest.approx(0.01 * 80, abs=0.17)


def test_the_next_launch_comes_before_the_tokens_of_the_iteration_before_are_looked_at() -> None:
    step_time = FittedStepTime(weights_s=0.1, prompt_launch_s=0.25, lone_prefill_s=0.15)

    def first_and_last_s(*arrival_s: float, async_scheduling: bool = True) -> tuple[list[float], list[float]]:
        profile = Profile(
            step_time=step_time, max_num_seqs=8, max_num_batched_tokens=64, kv_blocks=100,
            async_scheduling=async_scheduling,
        )  # fmt: skip
        n = len(arrival_s)
        made = replay(profile, Requests(np.array(arrival_s), np.full(n, 10), np.array([4, 2, 2][:n])))
        return made.first_token_s.tolist(), made.finish_s.tolist()

    first, last = first_and_last_s(0.0)
    assert first == pytest.approx([0.15])  # alone, a prompt takes its launch
    assert last == pytest.approx([0.45])
    # The plan of 0.15 knows nothing of the second, so the next one launches it: from 0.25, where an iteration begins.
    first, last = first_and_last_s(0.0, 0.16)
    assert first == pytest.approx([0.15, 0.5])
    assert last == pytest.approx([0.5, 0.6])
    # One that comes before the plan is launched next: the first token of the one before waits for that.
    first, last = first_and_last_s(0.0, 0.1)
    assert first == pytest.approx([0.4, 0.4])
    in_turn, _ = first_and_last_s(0.0, 0.1, async_scheduling=False)
    assert in_turn == pytest.approx([0.4, 0.4])


def test_a_launch_takes_what_the_host_does_for_its_batch() -> None:
    assert FittedStepTime(weights_s=0.006, lone_prefill_s=0.016).launching is None  # nobody measured launches
    step = FittedStepTime(
        weights_s=0.006, prompt_launch_s=0.009, lone_prefill_s=0.016, captured_tokens=512, uncaptured_s=0.042
    )
    launch = step.launching
    assert launch is not None
    assert [launch(2, 2, 5), launch(0, 0, 600)] == [0.0, 0.0]  # a token each: a decode's graph
    assert [launch(100, 1, 5), launch(509, 1, 3)] == [0.009, 0.009]
    assert [launch(100, 1, 0), launch(512, 1, 0)] == [0.016, 0.016]
    assert [launch(510, 1, 3), launch(600, 1, 0)] == [0.042, 0.042]  # 513 and more: kernel by kernel
    all_captured = FittedStepTime(weights_s=0.006, prompt_launch_s=0.009, lone_prefill_s=0.016).launching
    assert all_captured is not None
    assert [all_captured(600, 1, 4), all_captured(600, 1, 0)] == [0.009, 0.016]


def test_a_launch_that_ends_within_its_iteration_holds_up_tokens_and_no_iteration() -> None:
    # Iterations take 0.3 s, whatever is in them. That from 0.6 on computes the last prompt beside the second's decodes:
    # planned and launched from 0.3 to 0.7, so that the first's last token, made by 0.6, is told at 0.7; it ends at 0.9.
    profile = Profile(
        step_time=FittedStepTime(weights_s=0.3, prompt_launch_s=0.4), max_num_seqs=8, max_num_batched_tokens=64,
        kv_blocks=100, async_scheduling=True,
    )  # fmt: skip
    made = replay(profile, Requests(np.array([0.0, 0.0, 0.1]), np.full(3, 10), np.array([2, 9, 2])))
    assert made.first_token_s.tolist() == pytest.approx([0.3, 0.3, 0.9])
    assert made.finish_s.tolist() == pytest.approx([0.7, 2.7, 1.2])


def test_a_launch_beyond_the_captured_graphs_is_as_long_as_its_kernels() -> None:
    # With graphs of 8 tokens two prompts are launched, and computed, until 0.5. Then the host launches the third, which
    # came at 0.1, beside two decodes, kernel by kernel until 1.0, and only then looks at the first tokens.
    step_time = FittedStepTime(weights_s=0.3, prompt_launch_s=0.4, captured_tokens=8, uncaptured_s=0.5)
    profile = Profile(
        step_time=step_time, max_num_seqs=8, max_num_batched_tokens=64, kv_blocks=100, async_scheduling=True
    )
    made = replay(profile, Requests(np.array([0.0, 0.0, 0.1]), np.full(3, 10), np.array([2, 9, 2])))
    assert made.first_token_s.tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert made.finish_s.tolist() == pytest.approx([1.0, 1.0 + 7 * 0.3, 1.3])


@pytest.mark.parametrize("slowdown", [1.0, 2.0])
def test_who_gives_up_before_its_last_token_is_told_is_told_nothing(slowdown: float) -> None:
    profile = Profile(
        step_time=FittedStepTime(weights_s=0.3, prompt_launch_s=0.4), max_num_seqs=8, max_num_batched_tokens=64,
        kv_blocks=100, async_scheduling=True,
    )  # fmt: skip
    heard: list[tuple[str, EngineRequest, float]] = []

    class Listener:
        def on_first_token(self, request: EngineRequest, now_s: float) -> None:
            heard.append(("first", request, round(now_s / slowdown, 9)))

        def on_finish(self, request: EngineRequest, now_s: float) -> None:
            heard.append(("last", request, round(now_s / slowdown, 9)))

    replica: Replica[EngineRequest] = replica_of(profile, profile.step_time, Listener(), lambda _: None)

    def until(at_s: float) -> float:
        while replica.wake_s < at_s * slowdown:
            replica.boundary(replica.wake_s)
        return at_s * slowdown

    given_up, ended, going_on, late = (EngineRequest(10, n) for n in (2, 2, 9, 1))
    replica.set_slowdown(slowdown, 0.0)
    for request in (given_up, ended, going_on):
        replica.submit(request, 0.0)
    replica.submit(late, until(0.1))
    now_s = until(0.65)
    assert replica.iteration_end_s(now_s) == pytest.approx(0.9 * slowdown)
    replica.abort(given_up, now_s)
    until(2.0)
    # The two that ended at 0.6 are told at 0.7, after the launch; one of them has gone by then.
    assert [(what, at_s) for what, request, at_s in heard if request is given_up] == [("first", 0.3)]
    assert [(what, at_s) for what, request, at_s in heard if request is ended] == [("first", 0.3), ("last", 0.7)]
    assert [(what, at_s) for what, request, at_s in heard if request is late] == [("first", 0.9), ("last", 0.9)]
