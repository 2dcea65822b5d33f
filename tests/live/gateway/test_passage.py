"""The short way of a stream's events: what goes it, what is left to the task; nothing is lost or said twice."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from live.gate import Gate, gateway, head
from live.stand_in import running
from parity.virtual_loop import VirtualLoop

from policies.api import Forward
from sim.live.gateway.http_protocol import Client
from sim.live.gateway.in_flight import AbortReason, Exchange
from sim.live.gateway.replies import Replies, _Passage
from sim.live.gateway.sse import BrokenStreamError, Splitter
from sim.live.gateway.stream_reader import StreamReader
from sim.live.replicas.http_client import Body

WORD = b'data: {"choices":[{"index":0,"text":"w","finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Reading:
    """A client that takes pieces as long as ``takes``."""

    def __init__(self) -> None:
        self.takes, self.sent = True, b""

    def takes_chunks(self) -> bool:
        return self.takes

    def write_chunk(self, data: bytes) -> None:
        self.sent += data


def passage(shape: str = "completion") -> tuple[_Passage, Reading, Exchange, VirtualLoop, StreamReader]:
    loop, client = VirtualLoop(), Reading()
    loop.call_at(7.0, lambda: None)
    loop.run()
    exchange = Exchange("g-1", "/v1/completions", 0.0, 600.0)
    exchange.client, exchange.first_seen_s = client, 5.0
    reader = StreamReader(shape, False, False)
    reader.read(WORD)
    exchange.on_deadline = AbortReason.UPSTREAM_SILENT  # as the task has said before it waits
    return _Passage(exchange, client, Splitter(1000), reader, loop, 30.0), client, exchange, loop, reader


def test_what_needs_no_waiting_goes_at_once_and_is_counted() -> None:
    one, client, exchange, _, reader = passage()
    assert one.through(WORD + WORD)
    assert one.through(WORD[:20])  # half an event waits for the rest
    assert one.through(WORD[20:] + DONE)
    assert client.sent == WORD * 3 + DONE
    assert (exchange.output_tokens, reader.events, reader.done, one.out) == (4, 4, True, None)
    assert (exchange.last_token_s, exchange.deadline_s) == (7.0, 37.0)
    assert exchange.on_deadline is AbortReason.UPSTREAM_SILENT


def test_usage_that_nobody_asked_for_stays_here() -> None:
    one, client, exchange, _, _ = passage()
    assert one.through(WORD.replace(b"}]}", b'}],"usage":{"prompt_tokens":1,"completion_tokens":9}}'))
    assert one.through(b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":9}}\n\n')
    assert (client.sent, exchange.output_tokens) == (WORD, 9)


@pytest.mark.parametrize("why", ["unread", "cut"])
def test_what_must_be_waited_for_is_left_as_it_came(why: str) -> None:
    one, client, exchange, _, reader = passage()
    if why == "unread":
        client.takes = False
    else:
        exchange.cut_by = AbortReason.EVICTED
    assert not one.through(WORD)
    assert (client.sent, reader.events, one.out, one._splitter.rest) == (b"", 1, None, b"")


def test_an_error_and_whose_a_response_is_are_the_tasks() -> None:
    one, client, _, _, reader = passage()
    assert not one.through(WORD + b'data: {"error":{"message":"full"}}\n\n')
    assert (one.out, client.sent, reader.error) == (WORD, b"", {"message": "full"})
    one, client, _, _, _ = passage("responses")
    created = b'data: {"type":"response.created","response":{"id":"r"}}\n\n'
    assert not one.through(created)
    assert (one.out, client.sent) == (created, b"")
    one.out = None
    assert one.through(b'data: {"type":"response.output_text.delta","delta":"a"}\n\n')
    completed = b'data: {"type":"response.completed","response":{"id":"r"}}\n\n'
    assert not one.through(completed)
    assert one.out == completed


def test_what_comes_behind_what_the_task_must_see_is_not_lost() -> None:
    """The task is handed both in one piece, of which only the first was read on its way."""
    say = b'data: {"type":"response.output_text.delta","delta":"%b"}\n\n'
    created = b'data: {"type":"response.created","response":{"id":"r"}}\n\n'
    completed = b'data: {"type":"response.completed","response":{"id":"r"}}\n\n'
    client, sent, exchange = Reading(), [], Exchange("g-1", "/v1/responses", 0.0, 600.0)
    exchange.client = client

    async def send(message: Any) -> None:
        client.sent += message["body"]

    async def begin(*_: object, **__: object) -> None:
        exchange.started = True

    async def add(*_: object) -> None:
        sent.append(client.sent)  # before the client hears of it

    async def story() -> None:
        settling: Any = SimpleNamespace(
            pace=SimpleNamespace(tokens_per_event=lambda _: 1.0), pass_head=begin, finish=lambda *_: None,
            last=lambda _, body, send: send({"body": body}),
        )  # fmt: skip
        settings: Any = SimpleNamespace(
            timeouts=SimpleNamespace(idle_s=9.0, client_stall_s=9.0), limits=SimpleNamespace(event_bytes=1000)
        )
        gateway: Any = SimpleNamespace(now_s=lambda: 0.0, send=lambda _: None)
        outgoing: Any = SimpleNamespace(
            endpoint=SimpleNamespace(shape="responses"), show_usage=True, show_continuous=False, answers=1,
            replica_id=None, tenant="acme",
        )  # fmt: skip
        response: Any = SimpleNamespace(content=Body(SimpleNamespace(pause=None, resume=None)))  # type: ignore[arg-type]
        replies = Replies(gateway, settings, settling, SimpleNamespace(add=add))  # type: ignore[arg-type]
        task = asyncio.create_task(replies.events(exchange, Forward("g-1", 0, 9), response, outgoing, send))
        for together in ([say % b"a"], [say % b"b"], [created, say % b"c"], [completed, b": end\n\n"]):
            for piece in together:
                response.content.feed(piece)
            for _ in range(3):
                await asyncio.sleep(0)
        response.content.end()
        await task

    asyncio.run(story())
    both = say % b"a" + say % b"b"
    assert client.sent == both + created + say % b"c" + completed + b": end\n\n"
    assert sent == [both, both + created + say % b"c"]
    assert exchange.output_tokens == 3


def test_an_event_that_is_too_large_is_a_broken_stream() -> None:
    one, *_ = passage()
    with pytest.raises(BrokenStreamError):
        one.through(b"x" * 1001)


class Transport:
    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data


def test_a_client_takes_chunks_while_its_answer_in_chunks_is_under_way() -> None:
    class Flow:
        write_paused = False

    class Cycle:
        chunked_encoding: Any = True
        response_started, flow = True, Flow()

    transport = Transport()
    client = Client(transport)  # type: ignore[arg-type]
    assert not client.takes_chunks()
    cycle = Cycle()
    client.begin(cycle)
    assert client.takes_chunks()
    client.write_chunk(b"x" * 17)
    assert transport.sent == b"11\r\n" + b"x" * 17 + b"\r\n"
    cycle.flow.write_paused = True
    assert not client.takes_chunks()


@pytest.mark.parametrize(("name", "value"), [("chunked_encoding", None), ("response_started", False)])
def test_a_client_takes_no_chunks_before_its_answer_in_chunks_has_begun(name: str, value: Any) -> None:
    class Cycle:
        chunked_encoding: Any = True
        response_started = True
        flow = type("Flow", (), {"write_paused": False})

    client, cycle = Client(Transport()), Cycle()  # type: ignore[arg-type]
    setattr(cycle, name, value)
    client.begin(cycle)
    assert not client.takes_chunks()
    setattr(cycle, name, True)
    assert client.takes_chunks()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_most_events_of_a_stream_wake_no_task(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a client of HTTP/1.0, which knows no chunks, gets the same bytes by the long way."""
    said: list[bool] = []
    plain = _Passage.through

    def seen(self: _Passage, data: bytes) -> bool:
        said.append(plain(self, data))
        return said[-1]

    monkeypatch.setattr(_Passage, "through", seen)
    with running() as stand_in, gateway(stand_in) as gate:
        body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 20, "stream": True,
                           "stand_in": {"gap_s": 0.01}}).encode()  # fmt: skip
        found = _read(gate, head(f"content-length: {len(body)}", "connection: close").replace(b"1.1", version.encode())
                      + body)  # fmt: skip
        assert found.count(b"data: {") >= 20
        assert found.count(b"[DONE]") == 1
    assert (sum(said) >= 15) == (version == "1.1")


def _read(gate: Gate, request: bytes) -> bytes:
    with gate.connect() as connection:
        connection.sendall(request)
        found = b""
        while data := connection.recv(65_536):
            found += data
    return found
