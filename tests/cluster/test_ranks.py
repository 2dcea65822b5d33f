"""Data-parallel ranks: one rank is the plain engine, in step is the plain loop written out, and the books balance."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.reference import Job, ReferenceReplica
from cluster.test_replica_against_reference import Story, Tagged, scripts
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.ranks import RankedReplica, RankInStep
from sim.cluster.replica import Replica
from sim.cluster.world import simulate
from sim.engine.ranks import RankLoad, Ranks, captured_tokens, choose_rank, rank_score, rank_score_of
from sim.engine.step_time import LinearStepTime
from sim.errors import ScenarioError
from sim.experiments.run import world_of
from sim.scenario.load import expand, parse_scenario

random_loads = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SETTING: dict[str, Any] = {
    "step_time": LinearStepTime(base_s=1.0, per_decode_sequence_s=0.25, per_prefill_token_s=0.01),
    "max_num_seqs": 4, "max_num_batched_tokens": 512, "kv_blocks": 1000, "block_tokens": 16,
}  # fmt: skip


def ranked(count: int, *, in_step: bool, score: Any = "in-flight", **experts: Any) -> Any:
    def make(setting: Any, *, listener: Any, arm: Any) -> RankedReplica[Any]:
        engine = RankInStep if in_step else Replica
        return RankedReplica(
            Ranks(count=count, in_step=in_step, score=score, **experts), listener=listener, arm=arm,
            make=lambda *, listener, arm: engine(setting, listener=listener, arm=arm),
        )  # fmt: skip

    return make


class LockStep:
    """The step-by-step engines side by side: all read, plan and then wait for the slowest."""

    count = 2

    def __init__(self, setting: Any, *, listener: Any, arm: Any) -> None:
        self.arm = arm
        self.listener = listener
        self.ranks = [ReferenceReplica(setting, listener=self, arm=lambda _: None) for _ in range(self.count)]
        self.sent: dict[Any, ReferenceReplica] = {}
        self.turn = 0
        self.seen_s = -math.inf
        self.seen: list[list[float]] = []
        self.end_s = math.inf

    def on_first_token(self, job: Any, now_s: float) -> None:
        self.listener.on_first_token(job, now_s)

    def on_finish(self, job: Any, now_s: float) -> None:
        del self.sent[job]
        self.listener.on_finish(job, now_s)

    def submit(self, job: Any, now_s: float) -> None:
        if now_s >= self.seen_s + 0.1:
            self.seen_s = now_s
            self.seen = [
                [
                    len(r.waiting) + sum(k == "submit" and not a.gone for _, k, a in r.inbox),
                    len(r.running),
                    r.used / r.total if r.total else 1.0,
                ]
                for r in self.ranks
            ]
        scores = []
        for i in range(self.count):
            rank = (self.turn + i) % self.count
            waiting, running, usage = self.seen[rank]
            inside = sum(r is self.ranks[rank] for r in self.sent.values())
            scores.append((max(inside, waiting + running) + 6 * waiting * max(0.0, usage - 0.5), i, rank))
        rank = min(scores)[2]
        self.turn += 1
        self.seen[rank][0] += 1
        self.sent[job] = self.ranks[rank]
        self.ranks[rank].submit(job, now_s)
        self._wake(now_s)

    def abort(self, job: Any, now_s: float) -> None:
        if job in self.sent:
            self.sent.pop(job).abort(job, now_s)
            self._wake(now_s)

    def set_slots(self, slots: int, now_s: float) -> None:
        for i, rank in enumerate(self.ranks):
            rank.set_slots(slots // self.count + (i < slots % self.count), now_s)
        self._wake(now_s)

    def set_kv_blocks(self, blocks: int, now_s: float) -> None:
        for i, rank in enumerate(self.ranks):
            rank.set_kv_blocks(blocks // self.count + (i < blocks % self.count), now_s)
        self._wake(now_s)

    def set_slowdown(self, factor: float, now_s: float) -> None:
        for rank in self.ranks:
            rank.set_slowdown(factor, now_s)
        self._wake(now_s)

    def fail(self, now_s: float) -> list[Any]:
        lost = [job for rank in self.ranks for job in rank.fail(now_s)]
        self.sent, self.turn, self.seen_s, self.end_s = {}, 0, -math.inf, math.inf
        self.arm(math.inf)
        return lost

    def _wake(self, now_s: float) -> None:
        if self.end_s == math.inf:
            self.arm(now_s)

    def boundary(self, now_s: float) -> None:
        lasts_s = []
        for rank in self.ranks:
            if rank.busy or rank.inbox:
                rank.boundary(now_s)
            if rank.busy:
                lasts_s.append(rank.wake_s - now_s)
        self.end_s = now_s + max(lasts_s) if lasts_s else math.inf
        self.arm(self.end_s)


def doubled(case: Any) -> Any:
    """Give each of two ranks what a script sets for one engine."""
    setting, script = case
    return setting, [(at_s, what, 2 * arg if what in ("slots", "kv") else arg) for at_s, what, arg in script]


def same(one: Story, other: Story) -> None:
    for mine, theirs in ((one.first, other.first), (one.finish, other.finish), (one.lost, other.lost)):
        assert mine.keys() == theirs.keys()
        assert all(math.isclose(mine[i], theirs[i], rel_tol=1e-9) for i in theirs)


@random_loads
@given(scripts(drafting=True, limits=True), st.booleans())
def test_one_rank_is_the_plain_engine(case: Any, in_step: bool) -> None:
    same(Story(ranked(1, in_step=in_step), Tagged, *case), Story(Replica, Tagged, *case))


@random_loads
@given(scripts(limits=True).map(doubled))
def test_in_step_is_the_plain_loop(case: Any) -> None:
    same(Story(ranked(2, in_step=True), Tagged, *case), Story(LockStep, Job, *case))


@random_loads
@given(scripts(limits=True).map(doubled), st.booleans(), st.sampled_from(["in-flight", "waiting"]))
def test_everything_ends_and_all_ranks_are_empty(case: Any, in_step: bool, score: str) -> None:
    setting, script = case
    story = Story(ranked(2, in_step=in_step, score=score), Tagged, setting, script)
    aborted = {arg for _, what, arg in script if what == "abort"}
    asked = {arg["id"] for _, what, arg in script if what == "submit"}
    assert asked - aborted <= story.finish.keys() | story.lost.keys()
    assert not story.replica._at
    for engine, load in zip(story.replica.engines, story.replica._loads, strict=True):
        assert engine.kv.used_blocks == engine.running_count == engine.waiting_count == load.in_flight == 0


def ask(at_s: float, number: int, prompt: int, output: int) -> tuple[float, str, Any]:
    return at_s, "submit", {"id": number, "prompt": prompt, "output": output, "priority": 0}


def test_iterations_last_as_long_as_the_busiest_ranks():
    # Rank 0 computes 100 tokens (2 s), then decodes (1.25 s each); rank 1 computes 10 (1.1 s alone), then decodes.
    story = Story(ranked(2, in_step=True), Tagged, SETTING, [ask(0, 0, 100, 3), ask(0, 1, 10, 4)])
    assert story.first == {0: 2.0, 1: 2.0}
    assert story.finish == {0: 2.0 + 2 * 1.25, 1: 2.0 + 3 * 1.25}
    alone = Story(ranked(2, in_step=False), Tagged, SETTING, [ask(0, 0, 100, 3), ask(0, 1, 10, 4)])
    assert alone.first == {0: 2.0, 1: pytest.approx(1.1)}


def test_beyond_captured_graphs_each_rank_brings_to_the_experts_what_it_has():
    def first_s(captured_tokens: int, *asked: Any) -> float:
        experts = {"experts_s": lambda tokens: 0.004 * tokens, "captured_tokens": captured_tokens}
        return float(Story(ranked(2, in_step=True, **experts), Tagged, SETTING, list(asked)).first[0])

    # Of the 0.01 s that a prompt's token takes, 0.004 are its experts': 100 tokens here and 10 there are 55 for each.
    both = ask(0, 0, 100, 3), ask(0, 1, 10, 4)
    assert first_s(512, *both) == pytest.approx(2.0)  # padded
    assert first_s(64, *both) == pytest.approx(2.0 - 0.004 * 45)
    assert first_s(64, ask(0, 0, 100, 3)) == pytest.approx(2.0 - 0.004 * 50)  # the other rank is idle


def test_a_version_of_vllm_routes_by_its_own_score():
    versions = {"0.19.0": "waiting", "0.8.5": "waiting", "0.20.1": "in-flight", "0.32.0": "in-flight", "": "in-flight"}
    assert {version: rank_score_of(version) for version in versions} == versions


def test_padding_is_to_the_largest_graph_that_vllm_captures():
    assert [captured_tokens(n) for n in (16, 128, 256, 1024)] == [32, 256, 512, 512]


def test_who_comes_to_an_idle_rank_waits_for_the_iteration_of_the_others():
    story = Story(ranked(2, in_step=True), Tagged, SETTING, [ask(0, 0, 100, 3), ask(0.5, 1, 10, 1)])
    assert story.first[1] == 2.0 + 1.25  # beside a decode, which lasts longer than its own 1.1 s


def test_the_router_goes_round_then_by_load():
    loads = [RankLoad(in_flight=2), RankLoad(in_flight=1), RankLoad(in_flight=1)]
    assert [choose_rank(loads, "in-flight", first) for first in (0, 1, 2)] == [1, 1, 2]
    assert rank_score(RankLoad(in_flight=3, waiting=2, running=5, kv_usage=0.75), "in-flight") == 7 + 2 * 6 * 0.25
    assert rank_score(RankLoad(in_flight=3, waiting=2, running=5, kv_usage=0.75), "waiting") == 13
    assert rank_score(RankLoad(waiting=1), "in-flight") == rank_score(RankLoad(running=1), "waiting") == 1


class Told:
    """A replica of ranks whose iterations take 10 ms each, asked at times; says where requests went."""

    def __init__(self, count: int, score: str) -> None:
        setting = EngineSettings(**SETTING | {"step_time": LinearStepTime(base_s=0.01)})
        self.replica = ranked(count, in_step=False, score=score)(setting, listener=self, arm=lambda _: None)

    def at(self, now_s: float, output_tokens: int = 1) -> tuple[Tagged, int | None]:
        while self.replica.wake_s < now_s:
            self.replica.boundary(self.replica.wake_s)
        self.replica.submit(request := Tagged(10, output_tokens), now_s)
        return request, self.replica.rank_of(request)

    def on_first_token(self, request: Any, now_s: float) -> None: ...

    def on_finish(self, request: Any, now_s: float) -> None: ...


def test_of_equal_ranks_the_newer_router_takes_the_next_and_the_older_the_first() -> None:
    newer, older = Told(3, "in-flight"), Told(3, "waiting")
    assert [newer.at(t)[1] for t in (0.0, 1.0, 2.0, 3.0)] == [0, 1, 2, 0]
    assert [older.at(t)[1] for t in (0.0, 1.0, 2.0, 3.0)] == [0, 0, 0, 0]


@pytest.mark.parametrize(("third_s", "rank"), [(0.06, 0), (0.11, 1)])
def test_the_routers_counts_are_a_tenth_of_a_second_old(third_s: float, rank: int) -> None:
    told = Told(2, "waiting")
    long, first = told.at(0.0, 100)
    _, second = told.at(0.03)
    assert (first, second) == (0, 1)
    assert told.at(third_s)[1] == rank  # the second rank has been idle since 0.04, of which a report at 0 knows nothing
    assert told.replica.outputs_at(long, third_s + 0.005) == round(100 * third_s)
    told.at(9.0)
    assert told.replica.outputs_at(long, 9.0) == 100


def test_who_is_aborted_makes_room_at_the_end_of_its_rank_s_iteration() -> None:
    # One slot a rank: the third waits behind the first, whose iterations end at 2, 3.25, 4.5 s and so on.
    script = [ask(0, 0, 100, 90), ask(0, 1, 10, 90), ask(0, 2, 10, 1), (2.5, "abort", 0)]
    story = Story(ranked(2, in_step=False), Tagged, SETTING | {"max_num_seqs": 1}, script)
    assert story.first[2] == pytest.approx(3.25 + 1.1)


def scenario(**profile: Any) -> dict[str, Any]:
    return {
        "version": 1, "horizon_s": 60,
        "pool": {
            "profile": {
                "step_time": {"kind": "linear", "base_s": 0.02, "per_prefill_token_s": 1e-5},
                "max_num_seqs": 8, "max_num_batched_tokens": 512, "kv_blocks": 400,
            } | profile,
            "entitlements": [{"name": "a", "service_class": "elastic", "baseline": {"slots": 1}}],
        },
        "workload": [{"entitlement": "a", "arrivals": {"kind": "poisson", "rate_per_s": 10}, "prompt_tokens": 64,
                      "output_tokens": 40}],
        "policies": ["none"],
    }  # fmt: skip


def test_behind_a_gateway_it_is_one_replica_with_the_sum_of_its_slots():
    (cell,) = expand(parse_scenario(scenario(data_parallel=2, expert_parallel=True), "test"))
    world = world_of(cell)
    assert world.profile.slots == 16
    assert world.profile.held_blocks == 800
    run = simulate(world)
    assert set(run.columns.replica.tolist()) <= {0, -1}
    (cell,) = expand(parse_scenario(scenario(), "test"))
    alone = simulate(world_of(cell))
    waits_s = [np.nanmean(r.columns.first_token_s - r.columns.arrival_s) for r in (run, alone)]
    assert waits_s[0] < 0.1 < 1 < waits_s[1]  # eight slots are too few for ten requests of 0.8 s a second; 16 are not


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"expert_parallel": True}, "profile.expert_parallel: true with one rank"),
        ({"data_parallel": 0}, "profile.data_parallel"),
        ({"data_parallel": 2, "gpus": 3}, "profile.gpus: 3 do not divide among 2 ranks"),
        ({"data_parallel": 2, "scheduling": "flow-prefill"}, "profile.scheduling: given beside data_parallel"),
        ({"data_parallel": 2, "data_parallel_score": "random"}, "profile.data_parallel_score"),
        ({"long_prefill_token_threshold_adaptive": True}, "long_prefill_token_threshold_adaptive: set, and there is"),
        ({"long_prefill_token_threshold": 90, "max_model_tokens": 64}, "long_prefill_token_threshold: 90 is more than"),
        ({"watermark": 1.0}, "profile.watermark"),
        ({"watermark": 0.1, "scheduling": "flow-prefill"}, "profile.watermark: given beside flow-prefill"),
    ],
)
def test_what_does_not_go_together_is_refused(profile: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said.replace("(", r"\(")):
        parse_scenario(scenario(**profile), "test")


def test_a_rank_more_is_as_fast_as_a_replica_more_where_nothing_is_shared():
    # Two ranks that are not in step do what two engines of their own do with the same requests.
    script = [ask(0.1 * i, i, 20 + i, 10) for i in range(12)]
    ranks = Story(ranked(2, in_step=False), Tagged, SETTING, script)
    for rank in range(2):
        mine = [entry for entry in script if entry[2]["id"] % 2 == rank]
        alone = Story(Replica, Tagged, SETTING, mine)
        assert all(math.isclose(ranks.finish[i], at_s) for i, at_s in alone.finish.items())
    assert replace(Ranks(count=2, in_step=False)).score == "in-flight"
