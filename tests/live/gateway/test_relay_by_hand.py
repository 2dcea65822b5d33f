"""The relay between a core, a client and a replica that are all functions, on a loop whose clock jumps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from parity.virtual_loop import VirtualLoop

from policies.api import Failed, Forward, Reason, Refuse
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.in_flight import AbortReason, Exchange
from sim.live.gateway.relay import Relay
from sim.live.gateway.replies import RawResponse, UpstreamFailedError
from sim.live.gateway.sse import Usage
from sim.live.gateway.stored import Stored
from sim.live.observability.observer import Ended
from sim.live.replicas.http_client import ConnectError, ConnectTimeoutError, NoHttpError


class Answer:
    """What a replica answers: a `Response`, as far as the relay looks at one."""

    def __init__(self, status: int = 200, kind: str = "application/json", body: Any = None) -> None:
        self.status, self.content_type, self.raw_headers = status, kind, ((b"content-type", kind.encode()),)
        self.body = json.dumps(body).encode()
        self.content = self
        self.closed = False

    async def read(self, most: int = -1) -> bytes:
        return self.body

    def close(self) -> None:
        self.closed = True

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None: ...


class Asked:
    """What `HttpClient.request` returns: to be awaited."""

    def __init__(self, give: Callable[[], Answer]) -> None:
        self.give = give

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self.give()


class World:
    """A relay whose replicas answer with ``answers``, one after the other; an exception is raised instead."""

    def __init__(self, *answers: Answer | BaseException | None, tells_usage: bool = False, usage: str = "auto") -> None:
        self.loop = VirtualLoop()
        self.loop.call_at(50.0, lambda: None)
        self.loop.run()
        self.answers = list(answers)
        self.asked: list[tuple[float, str, str, dict[str, Any]]] = []
        self.did: list[tuple[Any, ...]] = []
        self.sent: list[Any] = []
        self.bodies: list[tuple[int, int, bool]] = []
        replicas = {
            number: SimpleNamespace(
                replica_id=number, address=SimpleNamespace(name=f"r{number}", api_key=f"key-{number}"),
                url=lambda path, number=number: f"http://r{number}{path}", tells_usage=tells_usage,
            ) for number in (0, 1)
        }  # fmt: skip
        self.upstreams = SimpleNamespace(
            replicas=replicas, client=self, unreachable=lambda number: self.did.append(("unreachable", number))
        )
        settings = SimpleNamespace(
            timeouts=SimpleNamespace(held_s=30.0, first_byte_s=20.0, whole_s=300.0), class_header="X-Class",
            metering=SimpleNamespace(continuous_usage=usage), decode_s=None,
        )  # fmt: skip
        self.exchange = Exchange("g-1", "/v1/completions", 0.0, self.loop.time() + 600.0)
        self.exchange.arrived = True
        self.exchange.tenant = "acme"
        self.outgoing = SimpleNamespace(
            method="POST", raw_path="/v1/completions", headers=[(b"x-class", b"gold"), (b"accept-encoding", b"gzip")],
            body_for=self.body_for, answers=1, tenant="acme", drop_body=lambda: self.did.append(("dropped",)),
            replica_id=None,
        )  # fmt: skip
        self.body = b"{}"

        def make() -> None:
            self.relay = Relay(SimpleNamespace(), self.upstreams, settings)  # type: ignore[arg-type]

        self.loop.within(make)
        self.relay.settling = self  # type: ignore[assignment]
        self.relay._replies = self  # type: ignore[assignment]
        self.background: str | None = None

    def request(self, method: str, url: str, **more: Any) -> Asked:
        self.asked.append((self.loop.time() - 50.0, method, url, more))
        if not self.answers:
            return Asked(Answer)

        def give() -> Answer:
            found = self.answers.pop(0)
            if isinstance(found, BaseException):
                raise found
            assert found is not None
            return found

        return Asked(give)

    def body_for(self, most: int, priority: int, continuous: bool) -> bytes:
        self.bodies.append((most, priority, continuous))
        return self.body

    # What settles, and what passes answers on.

    def fail(self, exchange: Exchange, *, final: bool) -> None:
        self.did.append(("fail", final))
        if final:
            exchange.arrived = False

    def cancel(self, exchange: Exchange) -> None:
        self.did.append(("cancel",))

    def finish(self, exchange: Exchange, usage: Usage | None, seen_tokens: int) -> None:
        exchange.output_tokens = seen_tokens
        self.did.append(("finish", None if usage is None else usage.prompt_tokens, seen_tokens))

    def made_tokens(self, exchange: Exchange) -> int:
        return 11

    async def start(self, exchange: Exchange, status: int, headers: Any, send: Any) -> None:
        self.did.append(("start", status, headers))

    async def end_stream(self, exchange: Exchange, answer: ApiError, reason: str, send: Any) -> None:
        self.did.append(("end_stream", answer.code, reason))

    async def error(self, exchange: Exchange, response: Answer, send: Any) -> None:
        self.did.append(("error", response.status))
        if response.status >= 500:
            raise UpstreamFailedError(RawResponse(response.status, [], b"busy"))

    async def events(self, *_: Any) -> None:
        self.did.append(("events",))

    async def whole(self, *_: Any) -> str | None:
        self.did.append(("whole",))
        return self.background

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    # ---

    def serve(self, *verdicts: Any, until_s: float = 1000.0) -> BaseException | None:
        """Let the core say these, one after the other; return what was raised."""

        left = list(verdicts)

        async def play() -> None:
            await self.relay.serve(self.exchange, self.outgoing, self.send)  # type: ignore[arg-type]

        def say_next() -> None:  # whenever it waits for one
            if left and self.exchange.verdict is None and not task.done():
                self.exchange.tell(left.pop(0))
            if left:
                self.loop.call_later(0.25, say_next)

        self.loop.call_soon(say_next)
        task = self.loop.create_task(play())
        self.exchange.task = task
        self.loop.run(50.0 + until_s)
        self.task, self.pending = task, not task.done()
        raised = None if self.pending or task.cancelled() else task.exception()
        self.loop.forget()
        return raised


def completed(**usage: int) -> Answer:
    return Answer(body={"status": "completed", "usage": usage} if usage else {"status": "completed"})


def test_a_refusal_says_what_was_needed_and_is_no_longer_the_cores() -> None:
    world = World()
    error = world.serve(Refuse("g-1", Reason.TOKENS, 429, 3.0, 12.0, 5.0))
    assert isinstance(error, ApiError)
    assert (error.status, error.retry_after_s) == (429, 3.0)
    one = world.exchange
    assert (one.outcome, one.reason, one.needed, one.available, one.arrived) == (
        Ended.REFUSED, Reason.TOKENS, 12.0, 5.0, False,
    )  # fmt: skip
    assert (one.tries, one.on_deadline, one.deadline_s) == (0, AbortReason.HELD_LONG, 80.0)
    assert not world.asked


@pytest.mark.parametrize(("stream", "longest_s"), [(True, 20.0), (False, 300.0)])
def test_a_request_goes_to_the_replica_that_the_core_chose(stream: bool, longest_s: float) -> None:
    world = World(Answer(kind="text/event-stream" if stream else "application/json"))
    world.exchange.stream, world.exchange.priority, world.outgoing.answers = stream, 4, 3
    assert world.serve(Forward("g-1", 1, 100)) is None
    ((at_s, method, url, more),) = world.asked
    assert (at_s, method, url) == (0, "POST", "http://r1/v1/completions")
    assert more["body"] == b"{}"
    headers = dict(more["headers"])
    assert b"x-class" not in headers
    assert headers.get(b"accept-encoding", b"identity") == b"identity"  # it reads the answer
    assert headers[b"authorization"] == b"Bearer key-1"
    assert world.bodies == [(33, 4, False)]  # a hundred tokens for three answers
    assert world.did == [("dropped",), ("events" if stream else "whole",)]
    one = world.exchange
    assert (one.tries, one.replica_id, one.sent, one.sent_s, one.answers) == (1, 1, True, 50.0, 3)
    assert (one.deadline_s, one.on_deadline) == (50.0 + longest_s, AbortReason.UPSTREAM_SILENT)


@pytest.mark.parametrize(("usage", "tells", "continuous"), [
    ("always", False, True), ("never", True, False), ("auto", True, True), ("auto", False, False),
])  # fmt: skip
def test_usage_is_asked_for_in_each_event_where_wanted_and_told(usage: str, tells: bool, continuous: bool) -> None:
    world = World(Answer(), usage=usage, tells_usage=tells)
    world.outgoing.answers = 9
    world.serve(Forward("g-1", 0, 4))
    assert world.bodies == [(1, 0, continuous)]  # at least one token each


def test_what_a_replica_loses_goes_elsewhere_and_its_last_word_is_passed_on() -> None:
    world = World(Answer(503), Answer())
    assert world.serve(Forward("g-1", 0, 4), Forward("g-1", 1, 4)) is None
    assert [url for _, _, url, _ in world.asked] == ["http://r0/v1/completions", "http://r1/v1/completions"]
    assert world.did == [("error", 503), ("fail", False), ("dropped",), ("whole",)]
    assert (world.exchange.tries, world.exchange.replica_id) == (2, 1)
    world = World(Answer(503))
    assert world.serve(Forward("g-1", 0, 4), Failed("g-1")) is None
    assert world.did == [("error", 503), ("fail", False), ("start", 503, [])]
    assert world.sent == [{"type": "http.response.body", "body": b"busy"}]
    assert (world.exchange.error, world.exchange.arrived) == ("upstream_error", False)
    world = World()
    error = world.serve(Failed("g-1"))
    assert isinstance(error, ApiError)
    assert (error.code, world.exchange.arrived) == ("upstream_failed", False)


def test_whoever_can_go_to_one_replica_only_fails_with_it() -> None:
    world = World(Answer(503))
    world.outgoing.replica_id = 1
    assert world.serve(Forward("g-1", 0, 4)) is None
    assert world.asked[0][2] == "http://r1/v1/completions"
    assert world.did == [("error", 503), ("fail", True), ("start", 503, [])]
    world = World()
    world.outgoing.replica_id = 7  # which is gone
    error = world.serve(Forward("g-1", 0, 4))
    assert isinstance(error, ApiError)
    assert (error.code, world.asked, world.did) == ("upstream_failed", [], [("fail", True)])


def test_a_connection_that_cannot_be_made_was_never_sent_and_one_that_breaks_was() -> None:
    world = World(ConnectError(111, "no"), Answer())
    world.serve(Forward("g-1", 0, 4), until_s=0.1)
    assert (world.exchange.sent, world.did, world.exchange.error) == (
        False, [("unreachable", 0), ("fail", False)], "upstream_failed",
    )  # fmt: skip
    world = World(ConnectTimeoutError("not in time"))  # which says nothing of other requests
    world.serve(Forward("g-1", 0, 4), until_s=0.1)
    assert (world.exchange.sent, world.did) == (False, [("fail", False)])
    world = World(NoHttpError())
    world.serve(Forward("g-1", 0, 4), until_s=0.1)
    assert (world.exchange.sent, world.did) == (True, [("fail", False)])
    world = World(OSError(24, "too many open files"))
    error = world.serve(Forward("g-1", 0, 4))
    assert isinstance(error, ApiError)
    assert (error.status, error.code, world.did) == (503, "overloaded", [("fail", True)])  # nobody else has any


@pytest.mark.parametrize("stream", [True, False])
def test_what_has_begun_is_ended_with_an_event_where_it_is_a_stream(stream: bool) -> None:
    world = World(NoHttpError())
    world.exchange.started, world.exchange.stream = True, stream
    assert world.serve(Forward("g-1", 0, 4)) is None
    ending = [("end_stream", "upstream_failed", "error")] if stream else []
    assert world.did == [*ending, ("fail", True)]
    assert not world.sent


@pytest.mark.parametrize("stream", [True, False])
def test_a_replica_that_says_nothing_is_left_and_only_a_stream_goes_elsewhere(stream: bool) -> None:
    class Silent(Asked):
        async def silence(self) -> Answer:
            await asyncio.sleep(900.0)
            raise AssertionError

        def __await__(self) -> Any:
            return self.silence().__await__()

    world = World()
    world.exchange.stream = stream
    world.request = lambda *_, **__: Silent(Answer)  # type: ignore[method-assign]
    world.loop.call_at(52.0, lambda: world.exchange.cut(AbortReason.UPSTREAM_SILENT))
    error = world.serve(Forward("g-1", 0, 4), until_s=3.0)
    assert world.exchange.cut_by is None
    if stream:  # it waits for the next verdict
        assert (error, world.did, world.pending) == (None, [("fail", False)], True)
    else:
        assert isinstance(error, ApiError)
        assert (error.status, world.did) == (504, [("fail", True)])


@pytest.mark.parametrize("status", [199, 600, 700])
def test_a_status_that_is_none_is_a_failure_and_the_answer_is_closed(status: int) -> None:
    bad = Answer(status)
    world = World(bad)
    world.serve(Forward("g-1", 0, 4), until_s=0.1)
    assert (world.did, bad.closed) == ([("fail", False)], True)
    for good in (200, 399, 400, 599):
        one = Answer(good)
        world = World(one)
        world.serve(Forward("g-1", 0, 4), until_s=0.1)
        assert world.did[0] == (("dropped",) if good < 400 else ("error", good))
        assert one.closed


def test_an_answer_that_is_no_http_is_a_failure_of_the_replica() -> None:
    bad = Answer()
    bad.raw_headers = ((b"x-name", b"a\x01b"),)
    world = World(bad)
    world.serve(Forward("g-1", 0, 4), until_s=0.1)
    assert (world.did, world.exchange.error, bad.closed) == ([("fail", False)], "bad_upstream_answer", True)
    world = World(bad)
    error = world.serve(Forward("g-1", 0, 4), Failed("g-1"))
    assert isinstance(error, ApiError)
    assert (error.status, error.code) == (502, "bad_upstream_answer")


# --------------------------------------------------------------------------------------------------------------------
# Responses in the background


def in_background(*answers: Answer | BaseException, until_s: float = 100.0) -> World:
    world = World(Answer(), *answers)
    world.background = "resp_1"
    world.serve(Forward("g-1", 1, 4), until_s=until_s)
    return world


def test_a_response_in_the_background_is_looked_at_each_second_until_it_is_made() -> None:
    states = [Answer(body={"status": state}) for state in ("queued", "in_progress")]
    lost = NoHttpError()  # says nothing about it
    world = in_background(*states, lost, completed(input_tokens=7, output_tokens=3))
    polls = world.asked[1:]
    assert [(at_s, method, url) for at_s, method, url, _ in polls] == [
        (float(k), "GET", "http://r1/v1/responses/resp_1") for k in (1, 2, 3, 4)
    ]
    assert all((b"authorization", b"Bearer key-1") in more["headers"] for *_, more in polls)
    assert world.did[-1] == ("finish", 7, 11)
    stored = asyncio.run(world.relay.stored.of("resp_1", "acme"))
    assert (stored.replica_id, stored.tokens) == (1, 7 + 11)
    one = world.exchange
    assert (one.in_background, one.answered, one.deadline_s, one.on_deadline) == (True, False, 650.0, AbortReason.TOTAL)


def test_one_that_ends_without_a_usage_is_finished_and_not_stored() -> None:
    world = in_background(completed())
    assert world.did[-1] == ("finish", None, 11)
    assert len(world.relay.stored) == 0


@pytest.mark.parametrize(("answer", "known", "ended"), [
    (Answer(404), True, ("fail", True)), (Answer(body={"status": "failed"}), True, ("fail", True)),
    (Answer(404), False, ("cancel",)), (Answer(body={"status": "cancelled"}), True, ("cancel",)),
])  # fmt: skip
def test_one_that_is_gone_or_failed_is_a_failure_unless_its_client_stopped_it(
    answer: Answer, known: bool, ended: tuple[Any, ...]
) -> None:
    world = World(Answer(), answer)
    world.background = "resp_1"
    if known:
        asyncio.run(world.relay.stored.add("resp_1", Stored("acme", 1, 0)))
    world.serve(Forward("g-1", 1, 4), until_s=100.0)
    assert world.did[-1] == ended


@pytest.mark.parametrize("cut", [AbortReason.EVICTED, None])
def test_one_that_is_evicted_is_told_to_stop(cut: AbortReason | None) -> None:
    world = World(Answer(), *(Answer(body={"status": "queued"}) for _ in range(9)))
    world.background = "resp_1"

    def stop() -> None:
        if cut is not None:
            world.exchange.cut(cut)
        else:
            assert world.exchange.task is not None
            world.exchange.task.cancel()

    world.loop.call_at(52.5, stop)
    world.serve(Forward("g-1", 1, 4), until_s=10.0)
    assert world.task.cancelled()
    told = [(at_s, url) for at_s, method, url, _ in world.asked[1:] if method == "POST"]
    assert told == ([(2.5, "http://r1/v1/responses/resp_1/cancel")] if cut is not None else [])
