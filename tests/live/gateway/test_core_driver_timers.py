"""The driver's timers and what it carries out, on a virtual loop: which ticks come, when, and which do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from parity.virtual_loop import VirtualLoop

from policies.api import (
    Arrived,
    CallMeAt,
    Cancelled,
    Demote,
    EntitlementSpec,
    Event,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Instruction,
    PoolCapacity,
    Progress,
    Reason,
    Refuse,
    RequestView,
    Scale,
    ServiceClass,
    Tick,
)
from policies.core import GatewayCore
from policies.no_control import NoControlPolicy
from policies.routing import LeastOutstandingTokensRouter
from sim.live.gateway.core_driver import AsyncGateway, LocalLog


class Upstream:
    def __init__(self) -> None:
        self.did: list[tuple[Any, ...]] = []
        self.made: dict[str, int] = {}

    def start(self, request: RequestView, forward: Forward, emit: Callable[[Event], None]) -> None:
        self.did.append(("start", request.request_id, forward.replica_id, request.priority))
        self.emit = emit

    def abort(self, request_id: str) -> None:
        self.did.append(("abort", request_id))

    def progress(self) -> Iterable[Progress]:
        return [Progress(name, tokens) for name, tokens in self.made.items()]


class Ticking(NoControlPolicy):
    tick_s = 2.0
    wants_progress = True


class Leading(LocalLog):
    """A log that wants to hear of progress before a tick."""

    lead_s = 0.5


class Made:
    """A gateway that began when the loop said 100."""

    def __init__(self, policy: Any = None, log: Callable[[VirtualLoop], Any] | None = None, **more: Any) -> None:
        self.loop = VirtualLoop()
        self.loop.call_at(100.0, lambda: None)
        self.loop.run()
        self.upstream = Upstream()
        self.told: list[Any] = []
        self.recorded: list[tuple[float, Event]] = []
        self.scaled: list[int] = []
        core = GatewayCore(
            entitlements=[EntitlementSpec(name="e", tenant="t", service_class=ServiceClass.SPOT)],
            capacity=PoolCapacity(2, 8), replica_ids=[0, 1], policy=policy or NoControlPolicy(),
            router=LeastOutstandingTokensRouter(), max_context_tokens=100, **more,
        )
        self.gateway = AsyncGateway(
            core, self.upstream, loop=self.loop, answer=self.told.append, scale=self.scaled.append,
            record=lambda at_s, event, said: self.recorded.append((round(at_s, 5), event)),  # noqa: ARG005
            log=None if log is None else log(self.loop),
        )
        self.gateway.start()

    def ask(self, name: str, prompt_tokens: int = 8, priority: int = 0) -> None:
        self.gateway.send(Arrived(RequestView(name, "e", "t", prompt_tokens, 8, 1, priority)))

    def ticks(self) -> list[float]:
        return [at_s for at_s, event in self.recorded if isinstance(event, Tick)]


def test_ticks_come_on_time_and_progress_just_before() -> None:
    made = Made(Ticking())
    made.ask("r")
    made.upstream.made["r"] = 3
    made.loop.run(105.0)
    assert made.ticks() == [2.0, 4.0]
    at = [(at_s, type(event).__name__) for at_s, event in made.recorded]
    assert at == [(0.0, "Arrived"), (2.0, "Progress"), (2.0, "Tick"), (4.0, "Progress"), (4.0, "Tick")]
    assert made.gateway.core.pool.in_flight["r"].output_tokens == 3
    assert made.gateway.now_s() == pytest.approx(4.0, abs=2e-6)


def test_a_log_with_a_lead_hears_of_progress_that_long_before() -> None:
    made = Made(Ticking(), log=Leading)
    made.upstream.made["r"] = 3
    made.ask("r")
    made.loop.run(105.0)
    at = [(at_s, type(event).__name__) for at_s, event in made.recorded]
    assert at == [(0.0, "Arrived"), (1.5, "Progress"), (2.0, "Tick"), (3.5, "Progress"), (4.0, "Tick")]
    made.loop.run(105.6)
    assert [*at, (5.5, "Progress")] == [(at_s, type(event).__name__) for at_s, event in made.recorded]


def test_nobody_asks_for_progress_that_the_core_does_not_want() -> None:
    class Plain(NoControlPolicy):
        tick_s = 2.0

    for log in (None, Leading):
        made = Made(Plain(), log=log)
        made.upstream.made["r"] = 3
        made.ask("r")
        made.loop.run(103.0)
        assert [type(event) for _, event in made.recorded] == [Arrived, Tick]


def test_a_later_call_replaces_the_one_before_and_leaves_nothing_behind() -> None:
    made = Made()
    for due_s in (9.0, 7.0, 5.0):
        made.gateway.call_at(due_s)
        assert len(made.gateway._timers) == 1
    made.loop.run()
    assert made.ticks() == [5.0]


def test_after_a_stop_no_tick_comes() -> None:
    made = Made(Ticking())
    made.loop.run(103.0)
    made.gateway.stop()
    assert made.gateway._timers == []
    made.gateway.call_at(5.0)
    made.loop.run()
    assert made.ticks() == [2.0]


def test_times_of_the_core_are_times_of_the_loop_less_the_origin() -> None:
    loop = VirtualLoop()
    loop.call_at(100.0, lambda: None)
    loop.run()
    log = LocalLog(loop, 60.0)
    assert (log.now_s(), log.loop_time(2.5)) == (40.0, pytest.approx(62.5, abs=2e-6))
    with pytest.raises(RuntimeError, match=r"call AsyncGateway.start first"):
        log.append(Tick())
    at_once = Made()
    assert at_once.gateway.now_s() == 0.0  # the origin is when it began


def test_a_request_of_another_gateway_is_none_of_ours() -> None:
    made = Made()
    made.gateway.carry_out([Forward("x", 0, 8), Evict("x", Reason.PREEMPTED)])
    made.gateway.carry_out([Refuse("x", Reason.TOKENS, 429, 1.0, 1, 0)])
    made.gateway.carry_out([Demote("x", 5)])
    assert (made.upstream.did, made.told, made.gateway.requests, made.gateway.running) == ([], [], {}, {})


def test_a_request_starts_once_with_the_priority_it_has_by_then() -> None:
    made = Made()
    made.gateway.requests["r"] = RequestView("r", "e", "t", 8, 8, 1, 0)
    made.gateway.carry_out([Demote("r", 7), Forward("r", 1, 8), Forward("r", 0, 8)])
    assert made.upstream.did == [("start", "r", 1, 7)]
    made.gateway.carry_out([Refuse("r", Reason.TOKENS, 429, 1.0, 1, 0)])  # too late: it runs
    assert made.told == []
    made.gateway.carry_out([Evict("r", Reason.PREEMPTED)])
    assert made.upstream.did[1:] == [("abort", "r")]
    assert made.told == [Evict("r", Reason.PREEMPTED)]
    assert (made.gateway.requests, made.gateway.running) == ({}, {})
    made.gateway.tell(Evict("r", Reason.PREEMPTED))  # told once
    assert len(made.told) == 1


def test_whoever_speaks_for_the_pool_says_how_many_replicas_it_wants() -> None:
    made = Made()
    said: Sequence[Instruction] = [Scale(3), CallMeAt(4.0)]
    made.gateway.carry_out(said, lead=False)
    assert made.scaled == []
    made.gateway.carry_out(said)
    assert made.scaled == [3]
    made.loop.run()
    assert made.ticks() == [4.0]


def test_what_has_ended_is_kept_nowhere() -> None:
    made = Made()
    for name, end in (("a", Finished("a", 3)), ("b", Cancelled("b", 1)), ("c", Failed("c", 1))):
        made.ask(name)
        assert set(made.gateway.running) == {name}
        made.upstream.emit(FirstToken(name))
        made.upstream.emit(end)
        assert (made.gateway.requests, made.gateway.running) == ({}, {})
    assert made.told == [Failed("c", 1)]
    assert made.upstream.did == [("start", "a", 0, 0), ("start", "b", 0, 0), ("abort", "b"), ("start", "c", 0, 0)]
