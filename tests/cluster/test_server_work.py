"""A server's work on requests before its engine, by hand: handled at once, read together, and told anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.calibration.single_replica import Requests, replay
from sim.cluster.engine_request import EngineRequest
from sim.cluster.server_work import ServerWork
from sim.engine.step_fitted import FittedStepTime
from sim.scenario.profile import Profile

MS = 1e-3


class Told:
    """An engine that notes when it will have whom."""

    running_count = waiting_count = 0

    def __init__(self) -> None:
        self.due_s: dict[EngineRequest, float] = {}

    def submit(self, request: EngineRequest, at_s: float) -> None:
        self.due_s[request] = at_s

    def reschedule(self, due_s: dict[EngineRequest, float]) -> None:
        assert set(due_s) <= set(self.due_s)
        self.due_s |= due_s


def profile(**changes: Any) -> Profile:
    settings: dict[str, Any] = {
        "step_time": FittedStepTime(weights_s=0.01), "max_num_seqs": 64, "max_num_batched_tokens": 8192,
        "kv_blocks": 20000, "request_handling_s": 1 * MS, "request_handling_shared": True,
        "request_per_prompt_token_s": 1 * MS, "prefix_caching": False,
    }  # fmt: skip
    return Profile(**settings | changes)


def told(*asked: tuple[float, int], **changes: Any) -> list[float]:
    """Return when the engine has each, in ms: of when it was sent, in ms, and the tokens of its prompt."""
    engine = Told()
    server = ServerWork(profile(**changes), engine)
    requests = [EngineRequest(tokens, 1) for _, tokens in asked]
    for (at_ms, _), request in zip(asked, requests, strict=True):
        server.submit(request, at_ms * MS)
    return [engine.due_s[request] / MS for request in requests]


def test_prompts_that_wait_within_two_milliseconds_are_read_together() -> None:
    # Handled by 1, 2.5 and 41 ms; the first two are read from 3 on, the third from 43 on.
    assert told((0, 10), (1.5, 20), (40, 5)) == pytest.approx([33, 33, 48])
    # While one is read others gather: handled by 11 and 14 ms, they are read from 15 on. The last is handled by 15.5.
    assert told((0, 10), (10, 20), (13, 30), (14.5, 40)) == pytest.approx([13, 65, 65, 107])


def test_thirty_two_are_read_at_once_and_those_are_not_waited_for() -> None:
    together = told(*[(0, 1)] * 40, request_handling_s=1e-9)
    assert together[:32] == pytest.approx([32] * 32, abs=1e-3)
    assert together[32:] == pytest.approx([32 + 2 + 8] * 8, abs=1e-3)


def test_prompts_that_take_no_time_to_read_are_not_gathered() -> None:
    assert told((0, 10), (0.5, 10), request_per_prompt_token_s=0) == pytest.approx([1.5, 2])


def test_who_is_held_up_misses_the_reading_and_those_before_come_sooner() -> None:
    # The second would be handled at 2.9 ms, in time for the first's reading at 3; the third holds it up to 3.8.
    assert told((0, 10), (1.9, 100)) == pytest.approx([113, 113])
    assert told((0, 10), (1.9, 100), (2, 100)) == pytest.approx([13, 215, 215])


READ_AT_ONCE = {"request_handling_s": 1e-9, "request_per_prompt_token_s": 0.01 * MS}
"""Then 31 prompts of 10 tokens are read from 2 to 5.1 ms; if one of a token comes at 1 ms, from 1 to 4.11."""


def first_tokens_of_32(at_ms: float, before: tuple[int, ...] = (), **changes: Any) -> Any:
    """Return when each of them has its first token, in ms from when the 31 came, with one that decodes meanwhile."""
    asked = [0.0] * len(before) + [at_ms * MS] * 31 + [(at_ms + 1) * MS]
    prompts, outputs = [1] * len(before) + [10] * 31 + [1], [*before] + [1] * 32
    requests = Requests(np.array(asked), np.array(prompts), np.array(outputs))
    made = replay(profile(**READ_AT_ONCE, **changes), requests).first_token_s
    return made[len(before) :] / MS - at_ms


@pytest.mark.parametrize("stages", [1, 2])
def test_an_engine_that_fell_idle_is_woken_for_who_comes_sooner_than_was_told(stages: int) -> None:
    # One decodes from 2.01 ms on, a token each millisecond, or of two stages each second. It ends half a millisecond
    # after the 31 came: the engine has nothing else to do, and means to sleep until 5.1.
    quick = {"step_time": FittedStepTime(weights_s=stages * MS), "async_scheduling": False}
    made = first_tokens_of_32(1002.01 - 0.5, before=(1000 // stages,), pipeline_parallel=stages, **quick)
    assert made == pytest.approx([4.11 + 1 * stages] * 32, abs=1e-3)
