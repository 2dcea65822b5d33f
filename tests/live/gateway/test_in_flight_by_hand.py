"""The in-flight table on a virtual loop: deadlines to the tenth of a second, and who is told what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from parity.virtual_loop import VirtualLoop

from policies.api import Evict, Failed, Forward, Progress, Reason, Refuse, RequestView
from sim.live.gateway.in_flight import AbortReason, Exchange, InFlightTable
from sim.live.observability.observer import RequestLog


class Task:
    """Counts how often it was cancelled, and how often that was taken back."""

    def __init__(self) -> None:
        self.cancelled = self.uncancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1

    def uncancel(self) -> None:
        self.uncancelled += 1


def on(loop: VirtualLoop, call: Callable[..., object], *args: Any) -> None:
    """Call something on the loop, in no task."""
    loop.call_soon(call, *args)
    loop.run(loop.time())


class Looker:
    def __init__(self, *, fails: bool = False) -> None:
        self.logs: list[RequestLog] = []
        self.fails = fails

    def ended(self, log: RequestLog) -> None:
        if self.fails:
            raise RuntimeError("no")
        self.logs.append(log)


def table(total_s: float = 10.0) -> tuple[VirtualLoop, InFlightTable]:
    loop = VirtualLoop()
    made = InFlightTable(loop, prefix="g-", total_s=total_s, now_s=lambda: loop.time() - 3.0)
    return loop, made


def opened(loop: VirtualLoop, made: InFlightTable) -> Exchange:
    found: list[Exchange] = []

    async def open_one() -> None:
        found.append(made.open("/v1/completions"))

    loop.create_task(open_one())
    loop.run(loop.time())
    found[0].task = Task()  # type: ignore[assignment]
    return found[0]


def test_requests_are_numbered_and_known_until_they_are_closed() -> None:
    loop, made = table()
    one, two = opened(loop, made), opened(loop, made)
    assert (one.request_id, two.request_id) == ("g-1", "g-2")
    assert (len(made), list(made)) == (2, [one, two])
    assert (one.arrival_s, one.last_s, one.deadline_s, one.on_deadline) == (-3.0, 10.0, 10.0, AbortReason.TOTAL)
    looker, broken = Looker(), Looker(fails=True)
    made.observers += [broken, looker]
    made.close(one)
    made.close(one)  # said twice, told once
    assert one.answered
    assert [log.request_id for log in looker.logs] == ["g-1"]
    assert list(made) == [two]


def test_the_log_says_what_became_of_it() -> None:
    loop, made = table()
    one = opened(loop, made)
    made.observers.append(looker := Looker())
    one.prompt_tokens, one.output_tokens, one.tries, one.http_status = 7, 5, 2, 200
    loop.call_at(6.0, lambda: None)
    loop.run()
    made.close(one)
    (log,) = looker.logs
    assert (log.arrival_s, log.finish_s) == (-3.0, 3.0)
    assert (log.prompt_tokens, log.output_tokens, log.tries, log.http_status) == (7, 5, 2, 200)


def test_a_deadline_cuts_at_the_next_look_and_says_why() -> None:
    loop, made = table()
    one, two, three = (opened(loop, made) for _ in range(3))
    made.begin()
    one.wait(0.25, AbortReason.BODY_SLOW)
    two.wait(0.85, AbortReason.UPSTREAM_SILENT)
    loop.run(0.21)
    assert one.cut_by is None
    loop.run(0.31)
    assert (one.cut_by, two.cut_by) == (AbortReason.BODY_SLOW, None)
    two.wait(50.0, AbortReason.UPSTREAM_SILENT)  # it was heard of in time
    loop.run(9.95)
    assert two.cut_by is None
    loop.run(10.2)
    assert (two.cut_by, three.cut_by) == (AbortReason.TOTAL, AbortReason.TOTAL)  # ten seconds are the longest for all
    made.end()
    four = opened(loop, made)
    four.wait(10.3, AbortReason.BODY_SLOW)
    loop.run(30.0)
    assert four.cut_by is None


def test_the_first_cut_counts_and_stops_the_task_once() -> None:
    loop, made = table()
    one = opened(loop, made)
    task: Any = one.task
    on(loop, one.cut, AbortReason.EVICTED)
    on(loop, one.cut, AbortReason.TOTAL)
    assert (one.cut_by, task.cancelled) == (AbortReason.EVICTED, 1)
    one.uncut()
    assert (one.cut_by, task.uncancelled) == (None, 1)
    on(loop, one.cut, AbortReason.TOTAL)
    assert (one.cut_by, task.cancelled) == (AbortReason.TOTAL, 2)


def test_what_is_answered_is_cut_no_more() -> None:
    loop, made = table()
    one = opened(loop, made)
    one.answered = True
    on(loop, one.cut, AbortReason.TOTAL)
    task: Any = one.task
    assert (one.cut_by, task.cancelled) == (None, 0)


def test_verdicts_wait_for_who_takes_them() -> None:
    loop, made = table()
    one = opened(loop, made)
    taken: list[Any] = []

    async def take() -> None:
        taken.append(await one.decided())
        taken.append(await one.decided())

    task = loop.create_task(take())
    loop.run(0.0)
    assert taken == []
    loop.call_at(2.0, lambda: None)
    loop.run()
    view = RequestView("g-1", "e", "t", 1, 1, 1, 4)
    made.start(view, Forward("g-1", 0, 8), lambda event: None)  # noqa: ARG005
    loop.run(2.0)
    assert taken == [Forward("g-1", 0, 8)]
    assert (one.priority, one.forwarded_s) == (4, -1.0)
    refused = Refuse("g-1", Reason.TOKENS, 429, 1.0, 1, 0)
    made.answer(refused)
    loop.run(2.0)
    assert taken[1:] == [refused]
    assert task.done()
    assert one.verdict is None


def test_evictions_cut_and_failures_are_verdicts() -> None:
    loop, made = table()
    one, two = opened(loop, made), opened(loop, made)
    on(loop, made.answer, Evict("g-1", Reason.PREEMPTED))
    assert (one.cut_by, one.reason, one.verdict) == (AbortReason.EVICTED, Reason.PREEMPTED, None)
    made.answer(Failed("g-2"))
    assert (two.cut_by, two.verdict) == (None, Failed("g-2"))
    made.answer(Failed("g-9"))  # nobody's
    made.start(RequestView("g-9", "e", "t", 1, 1), Forward("g-9", 0, 8), lambda event: None)  # noqa: ARG005
    made.abort("g-2")
    assert two.cut_by is None


def test_progress_is_said_once() -> None:
    loop, made = table()
    one, two = opened(loop, made), opened(loop, made)
    one.output_tokens = 3
    assert list(made.progress()) == [Progress("g-1", 3)]
    assert list(made.progress()) == []
    one.output_tokens, two.output_tokens = 4, 1
    assert list(made.progress()) == [Progress("g-1", 4), Progress("g-2", 1)]


def test_cancelling_a_task_is_what_a_cut_does() -> None:
    async def story() -> AbortReason | None:
        made = InFlightTable(asyncio.get_running_loop(), prefix="", total_s=1.0, now_s=lambda: 0.0)
        one = made.open("/")
        asyncio.get_running_loop().call_soon(one.cut, AbortReason.DRAINED)
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            why = one.cut_by
            one.uncut()
            await asyncio.sleep(0)  # it may go on
            return why
        return None

    assert asyncio.run(story()) is AbortReason.DRAINED


def test_of_a_request_of_which_nothing_is_known_yet_the_log_says_nothing() -> None:
    fresh = Exchange("g-1", "/v1/completions", 5.0, 9.0)
    log = fresh.log(6.0)
    assert (log.needed, log.available, log.http_status, log.tries, log.retry_after_s) == (0.0, 0.0, 0, 0, None)
    assert (log.prompt_tokens, log.output_tokens, log.cached_tokens, log.counted_prompt_tokens) == (0, 0, 0, None)
    assert (log.attempt, log.stream, log.replica, log.reason, log.error) == (1, False, None, None, "")
    assert (fresh.sequences, fresh.answers, fresh.priority, fresh.asked_priority, fresh.kept_bytes) == (1, 1, 0, 0, 0)
    assert not any((fresh.sent, fresh.arrived, fresh.started, fresh.answered, fresh.background, fresh.in_background))
    assert (fresh.deadline_s, fresh.on_deadline, fresh.cut_by) == (9.0, AbortReason.TOTAL, None)
    assert (fresh.context_tokens, fresh.reported_tokens, fresh.sent_s, fresh.first_seen_s) == (0, 0, 0.0, 0.0)


def test_an_observer_that_fails_is_logged_and_the_others_hear(caplog: Any) -> None:
    loop, made = table()
    good = Looker()
    made.observers += [Looker(fails=True), good]
    made.close(opened(loop, made))
    assert [record.getMessage() for record in caplog.records] == ["an observer failed"]
    assert caplog.records[0].exc_info is not None
    assert len(good.logs) == 1


def test_requests_of_a_key_are_counted_until_they_end() -> None:
    loop, made = table()
    one, other, third = (opened(loop, made) for _ in range(3))
    one.key_name = other.key_name = "k"
    third.key_name = "l"
    assert [made.identified(each) for each in (one, other, third)] == [1, 2, 1]
    made.close(one)
    again = opened(loop, made)
    again.key_name = "l"
    assert made.identified(again) == 2
    assert len(made) == 3
    last = opened(loop, made)
    last.key_name = "k"
    assert made.identified(last) == 2  # with the one that is left of two
    made.close(other)
    made.close(last)
    assert made._by_key == {"l": 2}  # nothing is kept of a key that asks for nothing


def test_a_key_is_counted_down_once_and_only_by_who_counted_it_up() -> None:
    loop, made = table()
    one, two, turned_away = opened(loop, made), opened(loop, made), opened(loop, made)
    for exchange in (one, two, turned_away):
        exchange.key_name = "key"
    assert [made.identified(one), made.identified(two)] == [1, 2]
    made.close(turned_away)  # before anybody asked how many there are
    made.close(one)
    made.close(one)
    three = opened(loop, made)
    three.key_name = "key"
    assert made.identified(three) == 2
    for exchange in (two, three, three, two):
        made.close(exchange)
    four = opened(loop, made)
    four.key_name = "key"
    assert made.identified(four) == 1
