"""Pipeline stages: one stage is the plain engine, several are what a queue of batches says on paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.test_ranks import same
from cluster.test_replica_against_reference import Story, Tagged, scripts
from sim.cluster.pipeline import PipelinedReplica
from sim.cluster.replica import Replica
from sim.engine.pipeline import Stages

random_loads = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
