"""The load client on demands written out by hand: what leaves when, what follows what, and how it stands at the end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from parity.virtual_loop import VirtualLoop

from sim.live.loadgen.attempt import LiveAttempt
from sim.live.loadgen.completions_client import PromptKind
from sim.live.loadgen.open_loop import LoadGenerator
from sim.records.schema import Outcome
from workloads.arrivals import Even
from workloads.clients import Drop, Impatient, Retry
from workloads.generate import WorkloadSpec
from workloads.lengths import Constant
from workloads.requests import Demand, FollowUp

PROMPTS = PromptKind(model="tiny", seed=3)
ORIGIN_S = 64.0  # a power of two, and times in eighths: sums are exact


def demand(*at_s: float, prompt: int = 5, output: int = 7, most: int = 9, **more: Any) -> Demand:
    n = len(at_s)
    return Demand(
        np.asarray(at_s, dtype=np.float64), np.full(n, prompt), np.full(n, output), np.full(n, most), **more
    )


def spec(name: str, client: Any = None, priority: int = 0) -> WorkloadSpec:
    return WorkloadSpec(
        name=name, entitlement=name, arrivals=Even(rate_per_s=1.0), client=client or Drop(), priority=priority,
        prompt_tokens=Constant(value=5), output_tokens=Constant(value=7),
    )


class Prompts:
    """Notes when each body was made."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.made_s: list[float] = []

    def body(self, attempt: LiveAttempt) -> bytes:
        self.made_s.append(self.loop.time() - ORIGIN_S)
        return PROMPTS.body(attempt)


class Played:
    """A run of workloads, each with its demand, against ``serve``."""

    def __init__(
        self, workloads: Sequence[WorkloadSpec], demands: Sequence[Demand], *,
        serve: Callable[[Played, LiveAttempt], Any] | None = None, horizon_s: float | None = None,
        until_s: float = 1000.0,
    ) -> None:
        self.loop = VirtualLoop()
        self.loop.call_at(ORIGIN_S - 1.0, lambda: None)
        self.loop.run()
        self.sent: list[tuple[float, str, int]] = []
        self.prompts = Prompts(self.loop)
        self.serve = serve or Played.finish
        self.load = LoadGenerator(
            workloads, demands, send=self.send, prompts=self.prompts, horizon_s=horizon_s  # type: ignore[arg-type]
        )
        task = self.loop.create_task(self.load.run(ORIGIN_S))
        self.loop.run(ORIGIN_S + until_s)
        self.end_s = task.result()

    async def send(self, attempt: LiveAttempt, body: bytes, key: str | None) -> None:
        assert (bool(body), key) == (True, None)
        self.sent.append((self.load.now_s(), attempt.request_id, attempt.number))
        await self.serve(self, attempt)

    async def sleep(self, wait_s: float) -> None:
        future = self.loop.create_future()
        timer = self.loop.call_later(wait_s, lambda: future.done() or future.set_result(None))
        try:
            await future
        finally:
            timer.cancel()

    async def finish(self, attempt: LiveAttempt) -> None:
        """Half a second until the first token, half a second after it."""
        attempt.forwarded_s = attempt.arrival_s
        await self.sleep(0.5)
        attempt.first_token_s = self.load.now_s()
        await self.sleep(0.5)
        attempt.finish_s, attempt.outcome = self.load.now_s(), Outcome.FINISHED

    async def refuse(self, attempt: LiveAttempt) -> None:
        attempt.outcome, attempt.http_status, attempt.retry_after_s = Outcome.REFUSED, 429, 1.5
        attempt.finish_s = self.load.now_s()

    async def hang(self, attempt: LiveAttempt) -> None:
        await self.sleep(500.0)


def test_two_workloads_are_merged_by_time_and_ties_go_to_the_first_of_them() -> None:
    run = Played([spec("b", priority=3), spec("a")], [demand(1.0, 2.0, 3.5), demand(1.0, 2.5, 3.5, prompt=8)])
    assert run.sent == [(1.0, "b-0", 1), (1.0, "a-0", 1), (2.0, "b-1", 1), (2.5, "a-1", 1), (3.5, "b-2", 1),
                        (3.5, "a-2", 1)]  # fmt: skip
    made = [(a.workload, a.priority, a.number, a.arrival_s, a.first_arrival_s, a.prompt_tokens, a.output_tokens,
             a.asked_tokens) for a in run.load.attempts[:2]]  # fmt: skip
    assert made == [(0, 3, 1, 1.0, 1.0, 5, 7, 9), (1, 0, 1, 1.0, 1.0, 8, 7, 9)]
    assert run.end_s == 4.5  # the last begins at 3.5 and takes a second


def test_a_run_of_nothing_ends_at_once_and_one_with_a_horizon_lasts_that_long() -> None:
    assert Played([spec("a")], [demand()]).end_s == -1.0  # the loop says 63, the run begins at 64
    assert Played([spec("a")], [demand()], horizon_s=8.0).end_s == 8.0
    assert Played([spec("a")], [demand(1.0)], horizon_s=8.0).end_s == 8.0


def test_the_next_are_made_ready_when_half_of_64_are_left() -> None:
    """200 of them, one each quarter of a second from 1 s on, answered before the next one comes."""
    at_s = [1.0 + 0.25 * k for k in range(200)]

    async def at_once(run: Played, attempt: LiveAttempt) -> None:
        attempt.outcome = Outcome.FINISHED

    made_s = Played([spec("a")], [demand(*at_s)], serve=at_once).prompts.made_s
    assert made_s[:64] == [-1.0] * 64
    # When the 33rd leaves, at 1 + 32 / 4 = 9 s, 31 are left: 33 are made, so that there are 64 again.
    assert made_s[64:97] == [9.0] * 33
    # And again when the 66th leaves, at 17.25 s.
    assert made_s[97:130] == [17.25] * 33
    assert len(made_s) == 200


def test_nothing_is_made_ready_within_five_milliseconds_of_a_request() -> None:
    """One each 4 ms (as close as 1/256 s): the 64 of the beginning run out, and then each is made when it must be."""
    at_s = [1.0 + k / 256 for k in range(100)]

    async def at_once(run: Played, attempt: LiveAttempt) -> None:
        attempt.outcome = Outcome.FINISHED

    made_s = Played([spec("a")], [demand(*at_s)], serve=at_once).prompts.made_s
    assert made_s[64:] == at_s[63:99]  # each as the one before it leaves
    # One each 8 ms leaves time: the 33rd brings the next 33.
    made_s = Played([spec("a")], [demand(*(1.0 + k / 128 for k in range(100)))], serve=at_once).prompts.made_s
    assert made_s[64:97] == [1.0 + 32 / 128] * 33


def test_retries_are_new_attempts_of_the_same_request() -> None:
    run = Played([spec("a", Retry(max_attempts=3), 2)], [demand(1.0, most=11)], serve=Played.refuse)
    assert run.sent == [(1.0, "a-0", 1), (2.5, "a-0", 2), (4.0, "a-0", 3)]
    assert [(a.final, a.workload, a.priority, a.arrival_s, a.first_arrival_s, a.prompt_tokens, a.output_tokens,
             a.asked_tokens) for a in run.load.attempts] == [
        (False, 0, 2, 1.0, 1.0, 5, 7, 11), (False, 0, 2, 2.5, 1.0, 5, 7, 11), (True, 0, 2, 4.0, 1.0, 5, 7, 11),
    ]  # fmt: skip
    assert run.end_s == 4.0
    # At a horizon of 3 s the third never leaves, and the second was the last.
    run = Played([spec("a", Retry(max_attempts=3))], [demand(1.0)], serve=Played.refuse, horizon_s=3.0)
    assert [(a.number, a.final) for a in run.load.attempts] == [(1, False), (2, True)]


def test_a_retry_at_the_very_end_of_patience_is_not_made() -> None:
    for patience_s, tries in ((1.5, 1), (1.75, 2), (3.0, 2), (3.25, 3)):  # retries would be after 1.5 and 3 s
        client = Impatient(patience_s=patience_s, max_attempts=9, waits_for="last-token")
        run = Played([spec("a", client)], [demand(1.0)], serve=Played.refuse)
        assert [a.number for a in run.load.attempts] == list(range(1, tries + 1)), patience_s


def test_who_waits_for_a_first_token_stays_once_it_has_come_even_in_the_first_second() -> None:
    # Due at 0.25 s, first token at 0.75 s, patience until 0.875 s; and one that waits for the last token.
    client = Impatient(patience_s=0.625, waits_for="first-token")
    (one,) = Played([spec("a", client)], [demand(0.25)]).load.attempts
    assert (one.outcome, one.finish_s) == (Outcome.FINISHED, 1.25)
    client = Impatient(patience_s=0.625, waits_for="last-token")
    (one,) = Played([spec("a", client)], [demand(0.25)]).load.attempts
    assert (one.outcome, one.http_status, one.finish_s) == (Outcome.CANCELLED, 499, 0.875)
    client = Impatient(patience_s=0.375, waits_for="first-token")
    first, second = Played([spec("a", client)], [demand(0.25, 4.0)]).load.attempts
    assert (first.outcome, first.finish_s, second.finish_s) == (Outcome.CANCELLED, 0.625, 4.375)


def test_patience_lasts_over_attempts_and_cancels_the_right_one() -> None:
    async def serve(run: Played, attempt: LiveAttempt) -> None:
        await (run.refuse(attempt) if attempt.number == 1 and attempt.request_id == "a-0" else run.hang(attempt))

    client = Impatient(patience_s=2.0, max_attempts=9, waits_for="last-token")
    run = Played([spec("a", client)], [demand(1.0, 1.25)], serve=serve)
    assert [(a.request_id, a.number, a.outcome, a.finish_s, a.final) for a in run.load.attempts] == [
        ("a-0", 1, Outcome.REFUSED, 1.0, False), ("a-1", 1, Outcome.CANCELLED, 3.25, True),
        ("a-0", 2, Outcome.CANCELLED, 3.0, True),
    ]  # fmt: skip


class Chains:
    """A plan that notes what it is told, and follows each end with the next of two steps."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, bool, float]] = []

    def begin(self) -> Chains:
        return self

    def ended(self, chain: int, step: int, succeeded: bool, now_s: float) -> Sequence[FollowUp]:
        self.told.append((chain, step, succeeded, now_s))
        return [FollowUp(step + 1, 0.25 * step, 20 + step, 30 + step, 40 + step)] if step < 3 else []


def test_what_follows_comes_so_long_after_the_end_that_it_waited_for() -> None:
    plan = Chains()
    run = Played([spec("other"), spec("chat", priority=4)], [demand(), demand(1.0, 1.5, plan=plan)])
    # chat-0: 1 to 2, a quarter later 2.25 to 3.25, a half later 3.75 to 4.75; chat-1 half a second behind it.
    assert run.sent == [(1.0, "chat-0", 1), (1.5, "chat-1", 1), (2.25, "chat-0.2", 1), (2.75, "chat-1.2", 1),
                        (3.75, "chat-0.3", 1), (4.25, "chat-1.3", 1)]  # fmt: skip
    assert plan.told == [(0, 1, True, 2.0), (1, 1, True, 2.5), (0, 2, True, 3.25), (1, 2, True, 3.75),
                         (0, 3, True, 4.75), (1, 3, True, 5.25)]  # fmt: skip
    third = run.load.attempts[4]
    assert (third.workload, third.priority, third.arrival_s, third.first_arrival_s, third.prompt_tokens,
            third.output_tokens, third.asked_tokens) == (1, 4, 3.75, 3.75, 22, 32, 42)  # fmt: skip
    assert run.end_s == 5.25  # not before what was on its way had come


def test_what_was_refused_for_good_is_told_as_that_and_a_retry_is_no_end() -> None:
    plan = Chains()
    run = Played([spec("chat", Retry(max_attempts=2))], [demand(1.0, plan=plan)], serve=Played.refuse, horizon_s=4.0)
    # Refused at 1 and 2.5 s, which ends chat-0; chat-0.2 at 2.75 s is refused and would come again at 4.25 s.
    assert plan.told == [(0, 1, False, 2.5)]
    assert [(a.request_id, a.number, a.final) for a in run.load.attempts] == [
        ("chat-0", 1, False), ("chat-0", 2, True), ("chat-0.2", 1, True),
    ]  # fmt: skip


def test_how_what_is_open_stands_at_the_horizon() -> None:
    async def serve(run: Played, attempt: LiveAttempt) -> None:
        if attempt.request_id == "a-0":  # let in, and answers only when it is dropped: too late
            attempt.forwarded_s = attempt.arrival_s
            try:
                await run.sleep(500.0)
            except asyncio.CancelledError:
                attempt.outcome, attempt.finish_s = Outcome.FINISHED, run.load.now_s()
        elif attempt.request_id == "a-1":  # nobody has said anything yet
            await run.sleep(500.0)
        else:  # refused, but the connection is not closed yet
            await run.refuse(attempt)
            await run.sleep(500.0)

    run = Played([spec("a")], [demand(1.0, 1.5, 2.0, 9.0)], serve=serve, horizon_s=4.0)
    stood = [(a.request_id, a.outcome, a.finish_s) for a in run.load.attempts]
    assert stood[0][:2] == ("a-0", Outcome.RUNNING)
    assert stood[1][:2] == ("a-1", Outcome.WAITING)
    assert all(math.isnan(finish_s) for *_, finish_s in stood[:2])
    assert stood[2:] == [("a-2", Outcome.REFUSED, 2.0)]
    assert run.end_s == 4.0
    assert not asyncio.all_tasks(run.loop)
    assert not [timer for *_, timer in run.loop._timers if not timer.cancelled() and timer.when() < ORIGIN_S + 4.0]


def test_no_alarm_of_a_client_rings_after_the_end() -> None:
    client = Impatient(patience_s=3.0, waits_for="last-token")
    run = Played([spec("a", client)], [demand(1.0, 1.5)], serve=Played.hang, horizon_s=2.0, until_s=2.0)
    assert [a.outcome for a in run.load.attempts] == [Outcome.WAITING] * 2
    ringing = [timer._callback for *_, timer in run.loop._timers if not timer.cancelled()]
    assert run.load._lose_patience not in ringing
