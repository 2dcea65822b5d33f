"""The jumping replica and the step-by-step one must tell the same story, request by request."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.reference import Job, ReferenceReplica
from sim.cluster.engine_request import EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.replica import Replica
from sim.engine.speculation import Speculation, SpeculativeStepTime
from sim.engine.step_fitted import FittedStepTime
from sim.engine.step_time import LinearStepTime


class Tagged(EngineRequest):
    """Has a dict, and so room for the script's number."""

    tag: int


class Story:
    """Drives one replica through a script and keeps what it says."""

    def __init__(self, make: Any, request: Any, setting: dict[str, Any], script: list[tuple[float, str, Any]]) -> None:
        self.first: dict[int, float] = {}
        self.finish: dict[int, float] = {}
        self.lost: dict[int, float] = {}
        self.wake = math.inf
        self.replica = make(EngineSettings(**setting), listener=self, arm=self.arm)
        self.requests: dict[int, Any] = {}
        self.down = False
        for at_s, what, arg in script:
            self.until(at_s)
            if what == "submit":
                r = request(arg["prompt"], arg["output"], arg["priority"])
                r.tag = arg["id"]
                r.prefix = arg.get("prefix")
                r.stops = arg.get("stops", False)
                self.requests[arg["id"]] = r
                self.replica.submit(r, at_s)
            elif what == "abort" and arg in self.requests:
                self.replica.abort(self.requests[arg], at_s)
            elif what == "slots":
                self.replica.set_slots(arg, at_s)
            elif what == "kv":
                self.replica.set_kv_blocks(arg, at_s)
            elif what == "slowdown":
                self.replica.set_slowdown(arg, at_s)
            elif what == "fail":
                for r in self.replica.fail(at_s):
                    self.lost[r.tag] = at_s
        self.until(1e7)

    def arm(self, at_s: float) -> None:
        self.wake = at_s

    def until(self, at_s: float) -> None:
        steps = 0
        while self.wake < at_s:
            now, self.wake = self.wake, math.inf
            self.replica.boundary(now)
            steps += 1
            assert steps < 200_000, "the replica spins"

    def on_first_token(self, r: Any, now_s: float) -> None:
        assert r.tag not in self.first
        self.first[r.tag] = now_s

    def on_finish(self, r: Any, now_s: float) -> None:
        assert r.tag in self.first
        assert r.tag not in self.finish
        self.finish[r.tag] = now_s


PLACES = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 60), st.booleans(), st.integers(0, 9))


def prefix_of(prompt: int, root: int, branch: int, length: int, answers: bool, of_ten: int) -> Any:
    """Text of two levels: one of three roots, then one of its branches, for some also with what is answered."""
    root_tokens = (9, 16, 33)[root]
    if of_ten == 0:
        return None
    if of_ten == 1 or prompt <= root_tokens:
        return ((root, min(root_tokens, prompt)),)
    end = 1 << 40 if answers else min(prompt, root_tokens + length)
    return ((root, root_tokens), (100 + 10 * root + branch, end))


class Uneven(LinearStepTime):
    """Takes longer for contexts of different lengths."""

    skew = 0.3


class WaitsForTheLongest(LinearStepTime):
    """Takes as long as if some were as long as the longest, in batches of three and more."""

    saturating_sequences = 2.6
    unsplit_batch = 3


@st.composite
def scripts(
    draw: Any, *, drafting: bool = False, limits: bool = False, launches: bool = False
) -> tuple[dict[str, Any], list[tuple[float, str, Any]]]:
    slots = draw(st.integers(1, 8))
    block = draw(st.sampled_from([1, 4, 16]))
    batched = draw(st.integers(slots, slots + 40))
    longest = 90
    kv = draw(st.integers(math.ceil(longest / block) + 1, 4 * math.ceil(longest / block)))
    setting = {
        "step_time": draw(st.sampled_from([LinearStepTime, LinearStepTime, Uneven, WaitsForTheLongest]))(
            base_s=draw(st.sampled_from([0.0, 0.013, 0.1])),
            per_decode_sequence_s=draw(st.sampled_from([0.001, 0.02])),
            per_prefill_token_s=draw(st.sampled_from([0.0, 0.0007])),
            per_context_token_s=draw(st.sampled_from([0.0, 0.00031])),
            per_prefill_pair_s=draw(st.sampled_from([0.0, 0.000011])),
        ),
        "max_num_seqs": slots,
        "max_num_batched_tokens": batched,
        "kv_blocks": kv,
        "block_tokens": block,
        "scheduling": draw(st.sampled_from(["fcfs", "priority", "shortest-first"])),
        "async_scheduling": draw(st.booleans()),
        "prefix_caching": draw(st.booleans()),
    }
    if launches:
        setting["step_time"] = FittedStepTime(
            weights_s=draw(st.sampled_from([0.005, 0.013])), per_token_s=draw(st.sampled_from([0.0, 0.0007])),
            batched_s=draw(st.sampled_from([0.0, 0.0011])),
            prompt_launch_s=draw(st.sampled_from([0.004, 0.02, 0.3])),
            lone_prefill_s=draw(st.sampled_from([0.0, 0.05])), captured_tokens=draw(st.sampled_from([0, 30])),
            uncaptured_s=draw(st.sampled_from([0.0, 0.1])),
        )  # fmt: skip
    if limits and draw(st.booleans()):
        setting |= {
            "long_prefill_token_threshold": draw(st.sampled_from([0, 0, 1, 4, 20])),
            "long_prefill_token_threshold_adaptive": draw(st.booleans()),
            "scheduler_reserve_full_isl": draw(st.booleans()),
            "watermark": draw(st.sampled_from([0.0, 0.05, 0.3])),
        }
    if drafting and not setting.get("long_prefill_token_threshold") and draw(st.booleans()):
        drafts = Speculation(
            tokens=draw(st.integers(1, 4)), acceptance=draw(st.sampled_from([0.0, 0.3, 0.7, 0.9, 1.0])),
            per_draft_token_s=draw(st.sampled_from([0.0, 0.0003])), draft_s=draw(st.sampled_from([0.0, 0.002])),
        )  # fmt: skip
        setting["speculation"] = drafts
        setting["step_time"] = SpeculativeStepTime(setting["step_time"], drafts)
        setting["max_num_batched_tokens"] += slots * drafts.tokens
    script: list[tuple[float, str, Any]] = []
    shared = draw(st.booleans())
    now = 0.0
    for i in range(draw(st.integers(1, 25))):
        now += draw(st.one_of(st.just(0.0), st.floats(0, 0.05), st.floats(0, 3)))
        script.append(
            (
                now,
                "submit",
                {
                    "id": i,
                    "prompt": (prompt := draw(st.integers(1, 50))),
                    "output": draw(st.integers(1, 40)),
                    "priority": draw(st.integers(0, 2)),
                    "prefix": prefix_of(prompt, *draw(PLACES)) if shared else None,
                    "stops": limits and draw(st.booleans()),
                },
            )
        )
        kind = draw(st.sampled_from(["", "", "", "", "abort", "abort", "slots", "kv", "slowdown", "fail"]))
        at = now + draw(st.floats(0, 2))
        if kind == "abort":
            script.append((at, "abort", draw(st.integers(0, i))))
        elif kind == "slots":
            script.append((at, "slots", draw(st.integers(0, slots))))
            script.append((at + draw(st.floats(0, 2)), "slots", slots))
        elif kind == "kv":
            script.append((at, "kv", draw(st.integers(0, kv))))
            script.append((at + draw(st.floats(0, 2)), "kv", kv))
        elif kind == "slowdown":
            script.append((at, "slowdown", draw(st.sampled_from([0.5, 1.0, 3.0]))))
        elif kind == "fail":
            script.append((at, "fail", None))
    script.sort(key=lambda m: m[0])
    script.append((script[-1][0] + 5, "slots", slots))
    script.append((script[-1][0] + 5, "kv", kv))
    return setting, script


def check_same(setting: dict[str, Any], script: list[tuple[float, str, Any]]) -> tuple[Story, Story]:
    fast = Story(Replica, Tagged, setting, script)
    slow = Story(ReferenceReplica, Job, setting, script)
    for mine, theirs in ((fast.first, slow.first), (fast.finish, slow.finish), (fast.lost, slow.lost)):
        assert mine.keys() == theirs.keys()
        for i, at_s in theirs.items():
            assert math.isclose(mine[i], at_s, rel_tol=1e-9), (i, mine[i], at_s)
    for i, r in fast.requests.items():
        assert r.preemptions == slow.requests[i].preemptions
        if setting["prefix_caching"]:
            assert r.cached_tokens == slow.requests[i].cached_tokens
    return fast, slow


def test_an_aborted_request_left_in_the_queue_keeps_no_arrival_waiting() -> None:
    """Found by the property below: who waited last was aborted, and a slot stayed free until a request ended."""
    setting = {
        "step_time": LinearStepTime(base_s=0.013, per_prefill_token_s=0.0, per_decode_sequence_s=0.001),
        "max_num_seqs": 2, "max_num_batched_tokens": 2, "kv_blocks": 91, "block_tokens": 1, "scheduling": "fcfs",
        "prefix_caching": False,
    }  # fmt: skip
    outputs = (1, 1, 9, 1, 1)
    script: list[tuple[float, str, Any]] = [
        (0.0, "submit", {"id": i, "prompt": 1, "output": output, "priority": 0}) for i, output in enumerate(outputs)
    ]
    script += [(0.0, "abort", 4), (0.03125, "submit", {"id": 5, "prompt": 1, "output": 1, "priority": 0})]
    fast, _ = check_same(setting, script)
    assert fast.first[5] < fast.finish[2]


def test_an_arrival_makes_the_chunk_of_a_stuck_head_smaller() -> None:
    """Found beside vLLM (seed 9590 of the conformance): all share the budget, so one more makes each one's part fit."""
    setting = {
        "step_time": LinearStepTime(
            base_s=0.01, per_prefill_token_s=0.001, per_decode_sequence_s=0.0013, per_context_token_s=1e-6,
            per_prefill_pair_s=1e-8,
        ),
        "max_num_seqs": 8, "max_num_batched_tokens": 40, "kv_blocks": 15, "block_tokens": 4, "scheduling": "fcfs",
        "prefix_caching": False, "long_prefill_token_threshold": 3, "long_prefill_token_threshold_adaptive": True,
        "scheduler_reserve_full_isl": False, "watermark": 0.1,
    }  # fmt: skip
    asked = [
        (0.118159, 21, 2, True), (0.138311, 21, 18, False), (0.139175, 4, 5, True), (0.189818, 14, 8, False),
        (0.191403, 24, 21, False), (0.265767, 3, 6, False), (0.2835, 6, 11, True),
    ]  # fmt: skip
    script: list[tuple[float, str, Any]] = [
        (at_s, "submit", {"id": i, "prompt": prompt, "output": output, "priority": 0, "stops": stops})
        for i, (at_s, prompt, output, stops) in enumerate(asked)
    ]
    fast, _ = check_same(setting, script)
    assert fast.requests[4].preemptions == 4


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scripts(drafting=True, limits=True))
def test_same_times_as_the_step_by_step_reference(case: Any) -> None:
    fast, _ = check_same(*case)
    _is_empty(fast.replica)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scripts(limits=True, launches=True))
def test_same_times_where_the_host_launches_prompts(case: Any) -> None:
    fast, _ = check_same(*case)
    _is_empty(fast.replica)


def _is_empty(replica: Any) -> None:
    assert replica.kv.used_blocks == 0
    assert sum(replica.kv.growing) == 0
    assert replica.running_count == replica.waiting_count == replica._context_tokens == replica._decoding == 0
