"""The load client's clock where a run does not begin when the loop does, and what it keeps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from live.loadgen.test_open_loop import PROMPTS, SERVICE_S, Server, scenario
from parity.virtual_loop import VirtualLoop

from sim.experiments.demands import client_chances, demands
from sim.live.loadgen.attempt import LiveAttempt
from sim.live.loadgen.open_loop import LoadGenerator
from sim.records.schema import Outcome

ORIGIN_S = 40.0


class Stamping(Server):
    """Notes times of the run, as the client of completions does."""

    async def send(self, attempt: LiveAttempt, body: bytes, key: str | None) -> None:
        self.keys.append((attempt.workload, key))
        await super().send(attempt, body, key)
        attempt.first_token_s -= ORIGIN_S
        attempt.finish_s -= ORIGIN_S


def played(refuses: Any = lambda _: False, keys: Any = None, **changes: Any) -> tuple[LoadGenerator, Stamping, float]:
    loop = VirtualLoop()
    loop.call_at(ORIGIN_S - 0.5, lambda: None)
    loop.run()
    server = Stamping(loop, refuses)
    server.keys = []
    made = scenario(**changes)
    load = LoadGenerator(
        [w.spec() for w in made.workload], demands(made, 0), send=server.send, prompts=PROMPTS,
        chances=client_chances(made, 0), keys=keys, horizon_s=made.horizon_s,
    )  # fmt: skip
    task = loop.create_task(load.run(ORIGIN_S))
    loop.run(400.0)
    return load, server, task.result()


def test_every_request_leaves_when_it_is_due_after_the_origin() -> None:
    load, server, end_s = played()
    assert load.attempts
    assert [at_s - ORIGIN_S for _, _, at_s, _ in server.seen] == pytest.approx([a.arrival_s for a in load.attempts])
    assert end_s == 20.0
    assert server.loop.time() == ORIGIN_S + 20.0


def test_a_retry_leaves_when_it_was_told_to_after_the_refusal() -> None:
    load, server, _ = played(lambda a: a.workload == 0, client={"kind": "retry", "max_attempts": 3})
    again = [(a, at_s) for a, (_, number, at_s, _) in zip(load.attempts, server.seen, strict=True) if number > 1]
    assert again
    for attempt, at_s in again:
        assert at_s - ORIGIN_S == pytest.approx(attempt.first_arrival_s + 1.5 * (attempt.number - 1))


def test_patience_is_counted_from_the_first_arrival() -> None:
    load, _, _ = played(client={"kind": "impatient", "patience_s": 0.6, "waits_for": "last-token"})
    mine = [a for a in load.attempts if a.workload == 0]
    assert {a.outcome for a in mine} == {Outcome.CANCELLED}
    assert [a.finish_s - a.arrival_s for a in mine] == pytest.approx([0.6] * len(mine))


def test_a_retry_that_patience_does_not_reach_is_not_made() -> None:
    client = {"kind": "impatient", "patience_s": 2.0, "waits_for": "last-token", "max_attempts": 9}
    load, _, _ = played(lambda a: a.workload == 0, client=client)
    tries: dict[str, int] = {}
    for attempt in load.attempts:
        tries[attempt.request_id] = max(attempt.number, tries.get(attempt.request_id, 0))
    assert {n for name, n in tries.items() if name.startswith("a-")} <= {1, 2}  # at 0 and 1.5 s; 3 s is too late


def test_without_a_horizon_it_ends_with_the_last_answer_and_says_when() -> None:
    load, server, end_s = played(horizon_s=None)
    last_s = max(a.arrival_s for a in load.attempts) + SERVICE_S
    assert end_s == pytest.approx(last_s)
    assert server.loop.time() == pytest.approx(ORIGIN_S + last_s)


def test_each_entitlement_has_its_key_and_who_has_none_sends_none() -> None:
    _, server, _ = played(keys={"a": "key-a"})
    assert set(server.keys) == {(0, "key-a"), (1, None)}


def test_answers_free_the_timers_of_patience() -> None:
    loop = VirtualLoop()
    server = Server(loop)
    made = scenario(client={"kind": "impatient", "patience_s": 50.0, "waits_for": "last-token"}, horizon_s=None)
    load = LoadGenerator([w.spec() for w in made.workload], demands(made, 0), send=server.send, prompts=PROMPTS,
                         chances=client_chances(made, 0))  # fmt: skip
    loop.create_task(load.run(0.0))
    loop.run(6.0)
    waiting = [timer for *_, timer in loop._timers if not timer.cancelled() and timer._callback == load._lose_patience]
    open_now = [a for a in load.attempts if a.workload == 0 and a.outcome is Outcome.WAITING]
    assert len(waiting) == len(load._patience) == len(open_now) < len(load.attempts)
    loop.run()
    assert {a.outcome for a in load.attempts} == {Outcome.FINISHED}
    assert load._patience == {}


def test_a_fault_of_the_client_itself_ends_the_run_with_it() -> None:
    class Broken(Stamping):
        async def send(self, attempt: LiveAttempt, body: bytes, key: str | None) -> None:
            if len(self.seen) == 5:
                raise RuntimeError("a bug")
            await super().send(attempt, body, key)

    loop = VirtualLoop()
    server = Broken(loop)
    server.keys = []
    made = scenario()
    load = LoadGenerator([w.spec() for w in made.workload], demands(made, 0), send=server.send, prompts=PROMPTS,
                         chances=client_chances(made, 0), horizon_s=made.horizon_s)  # fmt: skip
    task = loop.create_task(load.run(0.0))
    loop.run(100.0)
    with pytest.raises(RuntimeError, match="a bug"):
        task.result()
    assert loop.time() < 10.0
    assert len(load.attempts) == 6


def test_no_more_than_64_requests_are_made_ready_ahead() -> None:
    made: list[float] = []

    class Counting:
        def body(self, attempt: LiveAttempt) -> bytes:
            made.append(loop.time())
            return PROMPTS.body(attempt)

    loop = VirtualLoop()
    server = Server(loop)
    ready = scenario(horizon_s=60, arrivals={"kind": "even", "rate_per_s": 10})
    load = LoadGenerator([w.spec() for w in ready.workload], demands(ready, 0), send=server.send,
                         prompts=Counting(), chances=client_chances(ready, 0), horizon_s=60)  # type: ignore[arg-type]  # fmt: skip
    task = loop.create_task(load.run(0.0))
    loop.run(0.001)
    assert len(made) == 64
    loop.run(100.0)
    assert task.done()
    assert len(made) == len(load.attempts) > 150
    assert not asyncio.all_tasks(loop)
