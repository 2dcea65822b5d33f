"""Engine-level schedulers and divided replicas: the plain engine where they must be, exact by hand elsewhere."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.test_replica_against_reference import Story, Tagged, scripts
from sim.cluster.disaggregated import DecodeReplica, DisaggregatedReplica
from sim.cluster.engine_request import NEVER_S
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.fair_batching import FairBatcher
from sim.cluster.flow_prefill import FlowReplica
from sim.cluster.replica import Replica
from sim.engine.disaggregation import Disaggregated
from sim.engine.step_time import LinearStepTime

STEP = LinearStepTime(base_s=0.01, per_prefill_token_s=0.001, per_decode_sequence_s=0.001)
SETTING: dict[str, Any] = {
    "step_time": STEP, "max_num_seqs": 8, "max_num_batched_tokens": 512, "kv_blocks": 1000, "block_tokens": 16,
}  # fmt: skip


class Dated(Tagged):
    """Is due ``slo_s`` after time 0 plus its tag: the scripts below give both."""

    due: dict[int, float] = {}  # noqa: RUF012

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "tag":
            self.due_s = self.due.get(value, NEVER_S)


def ask(at_s: float, number: int, prompt: int, output: int, priority: int = 0) -> tuple[float, str, Any]:
    return at_s, "submit", {"id": number, "prompt": prompt, "output": output, "priority": priority}


def play(make: Any, script: list[tuple[float, str, Any]], due: dict[int, float] | None = None, **changes: Any) -> Story:
    request = type("Request", (Dated,), {"due": due or {}})
    return Story(make, request, SETTING | changes, script)


def flow(settings: EngineSettings, **heard: Any) -> FlowReplica[Any]:
    return FlowReplica(settings, operator_s=0.0045, **heard)


def fair(tpot_slo_s: float) -> Any:
    def make(settings: EngineSettings, **heard: Any) -> Replica[Any]:
        return Replica(replace(settings, batcher=FairBatcher(settings.step_time, tpot_slo_s)), **heard)

    return make


def divided(prefill: int = 1, decode: int = 1, kv_bytes_per_s: float = 1e6, latency_s: float = 0.0) -> Any:
    layout = Disaggregated(
        prefill_engines=prefill, decode_engines=decode, kv_bytes_per_s=kv_bytes_per_s, latency_s=latency_s
    )

    def make(settings: EngineSettings, *, listener: Any, arm: Any) -> DisaggregatedReplica[Any]:
        decode_settings = replace(settings, prefix_caching=False, scheduling="fcfs")
        return DisaggregatedReplica(
            layout, listener=listener, arm=arm, kv_bytes_per_token=1000.0,
            make_prefill=lambda heard, wake: Replica(settings, listener=heard, arm=wake),
            make_decode=lambda heard, wake: DecodeReplica(decode_settings, listener=heard, arm=wake),
        )  # fmt: skip

    return make


def plain(case: Any) -> tuple[dict[str, Any], list[tuple[float, str, Any]]]:
    """Return a random load for an engine without async scheduling and prefix caching, first come, first served."""
    setting, script = case
    return setting | {"scheduling": "fcfs", "async_scheduling": False, "prefix_caching": False}, script


def same(one: Story, other: Story) -> None:
    for mine, theirs in ((one.first, other.first), (one.finish, other.finish), (one.lost, other.lost)):
        assert mine.keys() == theirs.keys()
        assert all(math.isclose(mine[i], theirs[i], rel_tol=1e-9) for i in theirs)


random_loads = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@random_loads
@given(scripts())
def test_where_nothing_is_due_flow_prefill_is_first_come_first_served(case: Any) -> None:
    setting, script = plain(case)
    same(Story(flow, Tagged, setting, script), Story(Replica, Tagged, setting, script))


@random_loads
@given(scripts(), st.booleans())
def test_fair_batching_without_objectives_is_first_come_first_served(case: Any, pipelined: bool) -> None:
    setting, script = plain(case)
    setting["async_scheduling"] = pipelined
    same(Story(fair(1e9), Tagged, setting, script), Story(Replica, Tagged, setting, script))


@random_loads
@given(scripts(), st.dictionaries(st.integers(0, 24), st.floats(0, 20)), st.sampled_from(["flow", "fair", "divided"]))
def test_everything_ends_and_the_cache_is_empty_whatever_is_due(case: Any, due: dict[int, float], kind: str) -> None:
    setting, script = plain(case)
    if kind == "divided":  # half of what is set goes to each of two engines
        script = [(at_s, what, 2 * arg if what in ("slots", "kv") else arg) for at_s, what, arg in script]
    request = type("Request", (Dated,), {"due": due})
    make = {"flow": flow, "fair": fair(0.05), "divided": divided(2, 2)}[kind]
    story = Story(make, request, setting, script)
    replica = story.replica
    assert replica.running_count == replica.waiting_count == 0
    for engine in replica.engines if kind == "divided" else [replica]:
        assert engine.kv.used_blocks == sum(engine.kv.growing) == engine._context_tokens == engine._decoding == 0
    aborted = {arg for _, what, arg in script if what == "abort"}
    asked = {arg["id"] for _, what, arg in script if what == "submit"}
    assert asked - aborted <= set(story.finish) | set(story.lost)
    assert not set(story.finish) & set(story.lost)
    for number, finish_s in story.finish.items():
        assert story.first[number] <= finish_s


def test_an_urgent_prompt_waits_for_one_operator_and_what_was_interrupted_keeps_its_work() -> None:
    # Alone, the long one takes 0.01 + 0.400 s. At 0.1005 it stops at the 23rd operator, 0.1035: 100 of its 400 tokens
    # are kept (0.1035 / 0.41 * 400 = 100.97). The short one takes 0.01 + 0.02, and the rest 0.01 + 0.3.
    script = [ask(0.0, 0, 400, 1), ask(0.1005, 1, 20, 1)]
    story = play(flow, script, {0: 10.0, 1: 0.2}, max_num_batched_tokens=400, max_num_seqs=2)
    assert story.first[1] == pytest.approx(0.1035 + 0.01 + 0.02)
    assert story.first[0] == pytest.approx(0.1035 + 0.01 + 0.02 + 0.01 + 0.3)
    narrow = play(flow, script, {0: 10.0, 1: 0.2}, max_num_batched_tokens=20, max_num_seqs=2)
    assert narrow.first[1] <= 0.1005 + 0.0045 + 0.03
    assert narrow.first[1] < play(Replica, script, max_num_batched_tokens=400).first[1]


def test_who_is_late_already_goes_after_those_that_can_still_be_on_time() -> None:
    script = [ask(0.0, 0, 100, 1), ask(0.01, 1, 100, 1), ask(0.01, 2, 100, 1)]
    story = play(flow, script, {0: 9.0, 1: 0.02, 2: 5.0}, max_num_batched_tokens=100)
    assert story.first[2] < story.first[0] < story.first[1]


def test_fair_batching_gives_prompts_just_the_time_that_decodes_can_spare() -> None:
    # One decodes, its tokens due every 0.1 s. A prompt of 500 comes: an iteration beside it may take 0.1 s, which is
    # (0.1 - 0.01 - 0.001) / 0.001 = 89 tokens; what the decode ran ahead of its deadlines comes on top.
    script = [ask(0.0, 0, 1, 200), ask(0.0005, 1, 500, 1)]
    story = play(fair(0.1), script, {0: 0.0})
    greedy = play(Replica, script)
    assert story.first[1] > greedy.first[1]
    assert story.first[1] <= 0.011 + math.ceil(500 / 89) * 0.1
    assert story.finish[0] <= 200 * 0.1  # every token was on time, so the last one is
    ahead = play(fair(0.1), [ask(0.0, 0, 1, 200), ask(1.0, 1, 500, 1)], {0: 0.0})
    assert ahead.first[1] < 1.0 + 0.011 + 0.01 + 0.001 + 0.5 + 1e-9  # 90 tokens ahead: one chunk


def test_shortest_first_takes_the_short_prompt_that_came_last() -> None:
    script = [ask(0.0, 0, 50, 1), ask(0.001, 1, 40, 1), ask(0.002, 2, 10, 1)]
    story = play(Replica, script, max_num_batched_tokens=50, max_num_seqs=1, scheduling="shortest-first")
    assert story.first[0] < story.first[2] < story.first[1]


def test_a_divided_replica_by_hand() -> None:
    # Prefill 0.01 + 0.1; 100 tokens of 1000 bytes at 1 MB/s: 0.1, and 0.02 besides; 9 further tokens of 0.011.
    story = play(divided(latency_s=0.02), [ask(0.0, 0, 100, 10)])
    assert story.first[0] == pytest.approx(0.11)
    assert story.finish[0] == pytest.approx(0.11 + 0.12 + 9 * 0.011)
    one = play(divided(), [ask(0.0, 0, 100, 1)])
    assert one.first[0] == one.finish[0] == pytest.approx(0.11)


def test_prompts_delay_no_decoding_in_a_divided_replica_and_links_carry_one_cache_at_a_time() -> None:
    script = [ask(0.0, 0, 10, 50), ask(0.2, 1, 500, 2), ask(0.2, 2, 500, 2)]
    story = play(divided(), script)
    assert story.finish[0] - story.first[0] == pytest.approx(0.01 + 49 * 0.011)  # the transfer, and pure decoding
    together = play(Replica, script)
    assert together.finish[0] - together.first[0] > 49 * 0.011 + 0.5
    # Both prompts share the first iteration of 512 tokens; the second is done with its last 488. 0.5 s each to cross.
    crossed = sorted(story.finish[i] - 0.011 for i in (1, 2))
    assert crossed[1] - crossed[0] == pytest.approx(0.5, abs=0.02)


def test_a_divided_replica_with_an_instant_link_decodes_as_one_engine_that_is_handed_computed_prompts() -> None:
    script = [ask(0.0, i, 16, 40) for i in range(4)]
    story = play(divided(kv_bytes_per_s=1e15), script)
    first_s = 0.01 + 4 * 16 * 0.001
    assert all(story.first[i] == pytest.approx(first_s) for i in range(4))
    # The first one's cache is there an instant before the others': they join its second iteration.
    alone_s, all_s, three_s = 0.011, 0.014, 0.013
    assert story.finish[0] == pytest.approx(first_s + alone_s + 38 * all_s, abs=1e-6)
    assert all(story.finish[i] == pytest.approx(first_s + alone_s + 38 * all_s + three_s, abs=1e-6) for i in (1, 2, 3))
