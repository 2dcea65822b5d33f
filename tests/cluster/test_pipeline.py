"""Pipeline stages: one stage is the plain engine, several are what a queue of batches says on paper."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.test_ranks import SETTING, ask, same, scenario
from cluster.test_replica_against_reference import Story, Tagged, scripts
from sim.cluster.pipeline import PipelinedReplica
from sim.cluster.replica import Replica
from sim.cluster.world import simulate
from sim.engine.pipeline import Stages
from sim.errors import ScenarioError
from sim.experiments.run import world_of
from sim.scenario.load import expand, parse_scenario
from sim.scenario.profile import with_settings

random_loads = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def staged(count: int, transfer_s: float = 0.0) -> Callable[..., Any]:
    def make(setting: Any, *, listener: Any, arm: Any) -> PipelinedReplica[Any]:
        return PipelinedReplica(setting, Stages(count=count, transfer_s=transfer_s), listener=listener, arm=arm)

    return make


def plain(case: Any) -> Any:
    setting, script = case
    return setting | {"async_scheduling": False, "prefix_caching": False}, script


@random_loads
@given(scripts(limits=True).map(plain))
def test_one_stage_is_the_plain_engine(case: Any) -> None:
    mine, theirs = Story(staged(1), Tagged, *case), Story(Replica, Tagged, *case)
    same(mine, theirs)
    for number, request in mine.requests.items():
        assert request.preemptions == theirs.requests[number].preemptions
    assert mine.replica.iterations == theirs.replica.iterations


@random_loads
@given(scripts(limits=True).map(plain), st.integers(2, 4), st.sampled_from([0.0, 0.003]))
def test_everything_ends_and_the_stages_are_empty(case: Any, count: int, transfer_s: float) -> None:
    setting, script = case
    story = Story(staged(count, transfer_s), Tagged, setting, script)
    aborted = {arg for _, what, arg in script if what == "abort"}
    asked = {arg["id"] for _, what, arg in script if what == "submit"}
    assert asked - aborted <= story.finish.keys() | story.lost.keys()
    replica = story.replica
    assert replica.running_count == replica.waiting_count == replica.kv_used_blocks_at(0.0) == 0
    assert not replica._under_way
    assert not replica._batches


def test_a_lone_request_takes_as_long_as_without_stages_and_what_lies_between_them() -> None:
    # 100 prompt tokens take 1 + 0.01 * 100 = 2 s, each further token 1.25 s, whatever the number of stages.
    for count, transfer_s in ((1, 0.0), (2, 0.0), (4, 0.125)):
        story = Story(staged(count, transfer_s), Tagged, SETTING, [ask(0, 0, 100, 5)])
        more_s = (count - 1) * transfer_s
        assert story.first[0] == 2.0 + more_s
        assert story.finish[0] == pytest.approx(2.0 + 4 * 1.25 + 5 * more_s)


def test_a_batch_waits_for_every_stage_that_is_not_free() -> None:
    free_s = [2.0, 5.0, 0.0]
    assert Stages(count=3).leaves_s(1.0, 3.0, free_s) == 7.0  # from 2 to 3 in the first, from 5 to 6 in the second
    assert free_s == [3.0, 6.0, 7.0]


def test_as_many_batches_as_stages_decode_as_fast_as_that_many_engines() -> None:
    # Four prompts fill an iteration each, so they are in four batches, which never meet again: an iteration of one
    # takes 1.25 s and begins when the quarter before it has left the first stage, so each decodes as if alone.
    setting = SETTING | {"max_num_batched_tokens": 20, "max_num_seqs": 4}
    script = [ask(0, number, 20, 41) for number in range(4)]
    story = Story(staged(4), Tagged, setting, script)
    prefill_s, decode_s = 1.2, 1.25
    assert [story.first[i] for i in range(4)] == pytest.approx([prefill_s * (1 + i / 4) for i in range(4)])
    tokens = sum(40 for _ in script)
    took_s = max(story.finish.values()) - max(story.first.values())
    assert tokens / took_s == pytest.approx(4 / decode_s, rel=0.03)
    # One stage decodes all four in one batch of 1 + 4 * 0.25 = 2 s, and overlaps none.
    alone = Story(staged(1), Tagged, setting, script)
    assert max(alone.finish.values()) - max(alone.first.values()) == pytest.approx(40 * 2.0, rel=0.03)


def test_requests_that_are_planned_together_stay_together() -> None:
    # Both fit into one iteration: three of four stages are idle, and stages bring nothing, as in vLLM.
    script = [ask(0, 0, 10, 20), ask(0, 1, 10, 20)]
    one, four = (Story(staged(count), Tagged, SETTING, script) for count in (1, 4))
    same(four, one)
    assert one.replica.iterations == four.replica.iterations == 20


def test_chunks_of_a_prompt_follow_each_other_through_the_stages() -> None:
    # Eight chunks of 50 tokens, 1.5 s each: the last has left after the first's 1.5 s and seven halves.
    setting = SETTING | {"max_num_batched_tokens": 50}
    story = Story(staged(2), Tagged, setting, [ask(0, 0, 400, 1)])
    assert story.finish[0] == pytest.approx(1.5 + 7 * 0.75)
    assert Story(staged(1), Tagged, setting, [ask(0, 0, 400, 1)]).finish[0] == pytest.approx(8 * 1.5)


@pytest.mark.parametrize("count", [1, 2])
def test_an_abort_is_carried_out_before_the_tokens_that_come_with_it(count: int) -> None:
    # Tokens come at 2, 3.25 and 4.5 s; whoever gives up at 3 has seen the first, and the slot is free at 3.25.
    script = [ask(0, 0, 100, 5), ask(1, 1, 10, 1), (3.0, "abort", 0)]
    story = Story(staged(count), Tagged, SETTING | {"max_num_seqs": 1}, script)
    assert story.requests[0].outputs == 1
    assert story.finish == {1: pytest.approx(3.25 + 1.1)}


@pytest.mark.parametrize(("watermark", "waits"), [(0.0, False), (0.5, True)])
def test_a_newcomer_leaves_blocks_to_those_who_run(watermark: float, waits: bool) -> None:
    # Of ten blocks the first takes three and the second needs three; half of eleven, rounded down, are left free.
    setting = SETTING | {"kv_blocks": 10, "watermark": watermark}
    story = Story(staged(2), Tagged, setting, [ask(0, 0, 40, 3), ask(0, 1, 40, 3)])
    assert (story.first[1] > story.finish[0]) == waits


def test_behind_a_gateway_stages_are_one_replica_and_ranks_may_have_them() -> None:
    given = scenario(pipeline_parallel=2, tensor_parallel=2, pipeline_transfer_s=0.001, data_parallel=2)
    (cell,) = expand(parse_scenario(given, "test"))
    world = world_of(cell)
    assert world.profile.gpus == 8
    assert with_settings(world.profile, ["max_num_seqs=9"]).gpus == 8
    (cell_of_one,) = expand(parse_scenario(scenario(), "test"))
    assert with_settings(world_of(cell_of_one).profile, ["pipeline_parallel=2"]).gpus == 2
    run = simulate(world)
    assert np.isfinite(run.columns.finish_s).sum() > 500
    (cell,) = expand(parse_scenario(scenario(pipeline_parallel=1), "test"))
    (plain_cell,) = expand(parse_scenario(scenario(), "test"))
    one, without = (simulate(world_of(each)).columns.finish_s for each in (cell, plain_cell))
    assert np.array_equal(one, without, equal_nan=True)


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"pipeline_parallel": 2, "async_scheduling": True}, "async_scheduling: given beside pipeline_parallel (2)"),
        ({"pipeline_parallel": 2, "prefix_caching": True}, "prefix_caching: given beside pipeline_parallel"),
        ({"pipeline_parallel": 2, "scheduling": "flow-prefill"}, "scheduling: given beside pipeline_parallel"),
        ({"pipeline_parallel": 2, "data_parallel": 2, "expert_parallel": True}, "expert_parallel: given beside"),
        ({"pipeline_parallel": 0}, "profile.pipeline_parallel"),
        ({"pipeline_transfer_s": 0.1}, "pipeline_transfer_s: given with one stage"),
        ({"pipeline_parallel": 2, "gpus": 3}, "gpus: 3 do not divide among 2 stages"),
        ({"tensor_parallel": 2, "gpus": 4}, "gpus: 4 beside tensor_parallel 2"),
    ],
)
def test_what_does_not_go_together_is_refused(profile: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(said)):
        parse_scenario(scenario(**profile), "test")
