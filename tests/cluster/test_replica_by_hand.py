"""One replica in times that were worked out on paper, and the books that must balance at every boundary."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cluster.engine_request import DECODE, ENDED, NEVER_S, PREFILL, WAITING, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.kv_cache import KvCache
from sim.cluster.replica import Replica
from sim.engine.step_time import LinearStepTime

SECOND = LinearStepTime(base_s=1.0, per_prefill_token_s=0.0, per_decode_sequence_s=0.0)
"""Every iteration takes a second, whatever is in it."""


class Engine:
    """A replica with a clock beside it."""

    def __init__(self, step: Any = SECOND, **changes: Any) -> None:
        given: dict[str, Any] = {
            "step_time": step, "max_num_seqs": 4, "max_num_batched_tokens": 64, "kv_blocks": 100, "block_tokens": 4,
        }  # fmt: skip
        self.heard: list[tuple[str, EngineRequest, float]] = []
        self.wake_s = NEVER_S
        self.replica: Replica[EngineRequest] = Replica(
            EngineSettings(**given | changes), listener=self, arm=self._arm
        )

    def _arm(self, at_s: float) -> None:
        self.wake_s = at_s

    def on_first_token(self, request: EngineRequest, now_s: float) -> None:
        self.heard.append(("first", request, now_s))

    def on_finish(self, request: EngineRequest, now_s: float) -> None:
        self.heard.append(("end", request, now_s))

    def submit(self, at_s: float, prompt: int, output: int, priority: int = 0) -> EngineRequest:
        while self.wake_s < at_s:
            self.until(self.wake_s)
        request = EngineRequest(prompt, output, priority)
        self.replica.submit(request, at_s)
        return request

    def until(self, until_s: float, check: Any = None) -> None:
        """Let every boundary up to ``until_s`` happen, that one included."""
        while self.wake_s <= until_s:
            at_s, self.wake_s = self.wake_s, NEVER_S
            self.replica.boundary(at_s)
            if check is not None:
                check()

    def when(self, what: str, request: EngineRequest) -> float:
        (found,) = [at_s for said, one, at_s in self.heard if said == what and one is request]
        return found


def test_what_a_request_has_made_at_any_time() -> None:
    engine = Engine()
    a = engine.submit(10.0, 6, 5)
    engine.until(10.5)
    # The prompt from 10 to 11, which makes the first token; then one a second: 12, 13, 14, 15.
    made = [(t, engine.replica.outputs_at(a, t)) for t in (10.5,)]
    engine.until(11.0)
    made += [(t, engine.replica.outputs_at(a, t)) for t in (11.0, 11.9, 12.0 + 1e-6, 13.5, 14.9, 15.0 + 1e-6, 20.0)]
    assert [n for _, n in made] == [0, 1, 1, 2, 3, 4, 5, 5]
    engine.until(15.0)
    assert (engine.when("first", a), engine.when("end", a)) == (11.0, 15.0)
    assert engine.replica.kv.used_blocks == 0


def test_a_slower_engine_has_made_less() -> None:
    engine = Engine()
    a = engine.submit(10.0, 6, 9)
    engine.until(11.0)
    engine.replica.set_slowdown(4.0, 11.5)
    engine.until(12.0)  # from here on an iteration takes four seconds
    assert [engine.replica.outputs_at(a, t) for t in (12.5, 15.9, 16.1, 19.9, 20.1)] == [2, 2, 3, 3, 4]
    engine.replica.set_slowdown(1.0, 20.5)
    engine.until(24.0)
    assert [engine.replica.outputs_at(a, t) for t in (24.5, 25.1)] == [5, 6]


def test_blocks_in_use_at_any_time() -> None:
    engine = Engine()
    engine.submit(10.0, 6, 5)  # 6 prompt tokens in blocks of 4: two; the third begins with the ninth token
    engine.until(11.0)
    # Of the run from 11 on, the iteration under way counts: the 7th token from 11, the 8th from 12, the 9th from 13.
    used = [engine.replica.kv_used_blocks_at(t) for t in (11.1, 12.5, 13.5, 14.5)]
    assert used == [2, 2, 3, 3]
    assert engine.replica.kv_total_blocks == 100


def test_a_crash_says_what_each_had() -> None:
    engine = Engine()
    a = engine.submit(10.0, 6, 9)
    engine.until(11.0)
    b = engine.submit(13.2, 6, 9)  # joins at 14
    engine.until(14.0)
    assert (a.state, b.state) == (DECODE, PREFILL)
    c = engine.submit(14.2, 6, 9)
    lost = engine.replica.fail(14.5)
    assert [(one.outputs, one.state) for one in lost] == [(4, ENDED), (0, ENDED), (0, ENDED)]
    assert lost == [a, b, c]
    assert (engine.replica.kv.used_blocks, engine.replica.running_count, engine.replica.waiting_count) == (0, 0, 0)
    assert engine.wake_s == NEVER_S
    again = engine.submit(20.0, 6, 2)
    engine.until(30.0)
    assert (engine.when("first", again), engine.when("end", again)) == (21.0, 22.0)


def test_slots_that_are_taken_away_and_given_back() -> None:
    engine = Engine()
    runs = [engine.submit(0.0, 4, 4) for _ in range(2)]
    engine.replica.set_slots(1, 0.5)
    third, fourth = engine.submit(0.5, 4, 2), engine.submit(0.5, 4, 2)
    engine.until(4.5)
    assert [engine.when("end", one) for one in runs] == [4.0, 4.0]  # who runs goes on
    engine.until(5.5)
    assert (third.state, fourth.state) == (DECODE, WAITING)
    engine.until(10.0)
    # One at a time: the third from 4 to 6, the fourth from 6 to 8.
    assert (engine.when("end", third), engine.when("end", fourth)) == (6.0, 8.0)


def test_whoever_leaves_makes_room_at_the_next_boundary() -> None:
    engine = Engine(max_num_seqs=1)
    a = engine.submit(0.0, 4, 50)
    b = engine.submit(0.5, 4, 2)
    engine.until(2.0)
    engine.replica.abort(a, 2.5)
    engine.replica.abort(a, 2.6)  # said twice
    engine.until(10.0)
    assert engine.when("first", b) == 4.0  # from 3 on
    assert [(said, one) for said, one, _ in engine.heard] == [("first", a), ("first", b), ("end", b)]
    assert engine.replica.kv.used_blocks == 0


def test_blocks_that_are_taken_away_preempt_the_last_admitted() -> None:
    engine = Engine()
    a, b = engine.submit(0.0, 8, 20), engine.submit(0.0, 8, 20)
    engine.until(1.0)
    engine.replica.set_kv_blocks(4, 1.5)  # each has two, and needs a third for its ninth token
    engine.until(2.0)
    assert (a.state, b.state, b.preemptions, engine.replica.preemptions) == (DECODE, WAITING, 1, 1)
    assert b.target_tokens == 8 + b.outputs
    engine.replica.set_kv_blocks(100, 2.5)
    engine.until(60.0)
    # b had tokens at 1 and 2, is computed anew from 3 to 4 with them (10 tokens), which makes its third; 17 more.
    assert engine.when("end", b) == 21.0
    assert engine.when("end", a) == 20.0


def test_growth_of_blocks_by_counting_every_iteration() -> None:
    for starts in ([0, 3, 3, 5], [1, 1, 2, 7, 6]):
        cache = KvCache(1000, 8)
        for start in starts:
            cache.growing[start] += 1
        for at in (0, 5, 21):
            for run in (1, 2, 7, 8, 9, 16, 23):
                counted = sum(starts.count(iteration % 8) for iteration in range(at, at + run))
                assert cache.growth(at, run) == counted, (at, run)
            for free in range(12):
                cache.total_blocks, cache.used_blocks = 100 + free, 100
                fits = 0
                while fits < 40 and sum(starts.count(i % 8) for i in range(at, at + fits + 1)) <= free:
                    fits += 1
                assert cache.run_that_fits(at, 40, len(starts)) == fits, (at, free)


def blocks(tokens: int, each: int = 4) -> int:
    return (tokens + each - 1) // each


asks = st.lists(
    st.tuples(st.floats(0, 30), st.integers(1, 24), st.integers(1, 30), st.integers(-2, 2)), min_size=1, max_size=14
)


@settings(max_examples=60, deadline=None)
@given(asks=asks, kv_blocks=st.integers(14, 30), asynchronous=st.booleans(),
       scheduling=st.sampled_from(["fcfs", "priority", "shortest-first"]))  # fmt: skip
def test_the_blocks_in_use_are_those_of_who_runs(
    asks: Any, kv_blocks: int, asynchronous: bool, scheduling: str
) -> None:
    """Also where somebody is left out of an iteration or preempted: no block is forgotten, none counted twice."""
    changes = {"scheduling": scheduling, "async_scheduling": asynchronous}
    engine = Engine(kv_blocks=kv_blocks, max_num_batched_tokens=16, **changes)
    replica = engine.replica
    made: list[EngineRequest] = []

    def check() -> None:
        held = lingering = 0
        for one in made:
            if one.state == DECODE:
                # What is computed, and the token of the iteration under way where it was planned with chunks.
                computed = one.target_tokens + replica.clock - one.base_clock
                in_it = replica._busy and replica._chunks is not None and one not in replica._paused
                held += blocks(computed + in_it)
            elif one.state == PREFILL:
                chunk = sum(tokens for request, tokens in replica._chunks or () if request is one)
                held += blocks(one.computed_tokens + chunk)
        lingering = sum(held_blocks for _, held_blocks, _ in replica._lingering)
        assert replica.kv.used_blocks == held + lingering
        assert replica.kv_used_blocks_at(engine.wake_s) <= kv_blocks
        assert replica.running_count == sum(one.state in (PREFILL, DECODE) for one in made)
        assert replica.waiting_count <= sum(one.state == WAITING for one in made)

    for at_s, prompt, output, priority in sorted(asks):
        engine.until(at_s, check)
        made.append(engine.submit(at_s, prompt, output, priority))
    engine.until(10_000.0, check)
    assert all(one.state == ENDED and one.outputs == one.output_tokens for one in made)
    assert replica.kv.used_blocks == 0
    assert not any(replica.kv.growing)


def test_a_prompt_that_is_longer_than_the_budget_is_computed_in_chunks() -> None:
    step = LinearStepTime(base_s=1.0, per_prefill_token_s=0.01, per_decode_sequence_s=0.1)
    engine = Engine(step, max_num_batched_tokens=16)
    a = engine.submit(0.0, 4, 4)
    engine.until(1.04)
    # a: 1 + 4 * 0.01, then decodes (0.1).
    b = engine.submit(1.5, 40, 2)
    # b joins at 2.14: 15 tokens beside a's one (1 + 0.15 + 0.1), 15, then 10 with a gone: a ends with its 4th.
    engine.until(2.14)
    assert engine.replica.prompt_under_way_tokens == 0
    engine.until(2.14 + 1.25)
    assert engine.replica.prompt_under_way_tokens == 15
    engine.until(20.0)
    assert engine.when("end", a) == pytest.approx(2.14 + 2 * 1.25)
    assert engine.when("first", b) == pytest.approx(2.14 + 2 * 1.25 + 1.10)
    assert engine.when("end", b) == pytest.approx(2.14 + 2 * 1.25 + 1.10 + 1.1)


def test_a_token_is_due_when_the_most_pressed_request_says() -> None:
    engine = Engine()
    a, b = engine.submit(0.0, 4, 20), engine.submit(0.0, 4, 20)
    engine.until(1.0)
    assert engine.replica.token_due_s(0.5) == NEVER_S
    a.due_s, b.due_s = 3.0, 2.0
    # Both have one token; the next is due half a second after the first one was.
    assert engine.replica.token_due_s(0.5) == 2.5
