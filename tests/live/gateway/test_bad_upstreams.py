from __future__ import annotations

import asyncio
import json
import resource
import socket
import threading
import time
from typing import Any

import pytest
from live.gate import Answer, Gate, gateway, head
from live.stand_in import Behaviour, StandIn, running

from sim.live.observability.observer import Ended

SHORT = {"first_byte_s": 0.5, "whole_s": 0.5, "idle_s": 0.5, "connect_s": 0.5, "client_stall_s": 0.6, "health_s": 0.5}

pytestmark = pytest.mark.usefixtures("books")


@pytest.fixture(scope="module")
def gate(stand_in: StandIn):  # type: ignore[no-untyped-def]
    with gateway(stand_in, timeouts=SHORT, policy="token-pool") as one:
        yield one


def last(gate: Gate) -> Any:
    gate.balanced()
    return gate.logs[-1]


def ended_with_an_error(answer: Answer, events: int, code: str) -> None:
    """Check a stream that broke off: whole events, a finish_reason, an error, [DONE]."""
    assert answer.status == 200
    assert answer.body.endswith(b"data: [DONE]\n\n")
    found = answer.events
    assert [one["choices"][0]["text"] for one in found[:events]] == [f" w{n}" for n in range(events)]
    assert found[events]["choices"][0]["finish_reason"] == "error"
    assert found[events + 1]["error"]["code"] == code
    assert len(found) == events + 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wish", [
    {"die": "before"}, {"die": "headers"}, {"die": "0"}, {"garbage": "http"}, {"half_line": 0},
], ids=str)  # fmt: skip
def test_an_upstream_that_dies_before_its_first_byte_is_503(gate: Gate, wish: dict[str, Any], stream: bool) -> None:
    answer = gate.ask(stream=stream, stand_in=wish)
    if not stream and "half_line" in wish:
        assert answer.status == 200  # a knob for streams alone
        return
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "upstream_failed", "1")
    log = last(gate)
    assert (log.outcome, log.output_tokens, log.http_status) == (Ended.FAILED, 0, 503)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_upstream_that_dies_in_mid_stream_ends_it_with_an_error(gate: Gate, after: int) -> None:
    answer = gate.ask(stream=True, stand_in={"die": str(after), "gap_s": 0.02})
    ended_with_an_error(answer, after, "upstream_failed")
    log = last(gate)
    assert (log.outcome, log.output_tokens) == (Ended.FAILED, after)


def test_half_a_line_reaches_nobody(gate: Gate) -> None:
    answer = gate.ask(stream=True, stand_in={"half_line": 2, "gap_s": 0.02})
    ended_with_an_error(answer, 2, "upstream_failed")
    assert b"half a li" not in answer.body


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_says_nothing_is_504(gate: Gate, stand_in: StandIn, stream: bool) -> None:
    began_s = time.monotonic()
    answer = gate.ask(stream=stream, stand_in={"silent_after": 0})
    assert (answer.status, answer.code) == (504, "upstream_timeout")
    assert 0.4 < time.monotonic() - began_s < 1.5
    gate.until(lambda: stand_in.running == 0)


def test_an_upstream_that_falls_silent_ends_the_stream(gate: Gate, stand_in: StandIn) -> None:
    ended_with_an_error(gate.ask(stream=True, stand_in={"silent_after": 2, "gap_s": 0.02}), 2, "upstream_timeout")
    gate.until(lambda: stand_in.running == 0)


def test_a_refused_stream_is_a_refusal_not_a_success(gate: Gate) -> None:
    answer = gate.ask(stream=True, stand_in={"error_after": 0})
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json["error"]["message"] == "the engine is full"
    assert last(gate).outcome == Ended.FAILED


def test_an_error_in_mid_stream_is_passed_on_and_is_a_failure(gate: Gate) -> None:
    answer = gate.ask(stream=True, stand_in={"error_after": 2, "gap_s": 0.02})
    assert [("error" in one) for one in answer.events] == [False, False, True]
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert last(gate).outcome == Ended.FAILED


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_an_upstreams_own_error_comes_through_with_a_time_to_come_back(gate: Gate, status: int) -> None:
    answer = gate.ask(stand_in={"status": status})
    assert (answer.status, answer.json["error"]["message"]) == (status, "so it was asked")
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert gate.ask(stand_in={"status": 503, "retry_after": "7"}).headers["retry-after"] == "7"


def test_a_status_that_is_none_is_a_broken_upstream(gate: Gate) -> None:
    answer = gate.ask(stand_in={"status": 999})
    assert (answer.status, answer.code) == (503, "upstream_failed")


def test_garbage_instead_of_json_is_passed_on(gate: Gate) -> None:
    answer = gate.ask(stand_in={"garbage": "json"})
    assert (answer.status, answer.body[:6]) == (200, b"<html>")


@pytest.mark.parametrize("wish", [
    {"crlf": True}, {"split_bytes": 1}, {"split_bytes": 7, "crlf": True}, {"chunk_tokens": 3}, {"no_done": True},
    {"no_usage": True},
], ids=str)  # fmt: skip
def test_streams_of_any_cut_come_through_whole(gate: Gate, wish: dict[str, Any]) -> None:
    answer = gate.ask(stream=True, max_tokens=6, stand_in=wish)
    assert "".join(one["choices"][0]["text"] for one in answer.events) == " w0 w1 w2 w3 w4 w5"
    assert not any("usage" in one for one in answer.events)
    log = last(gate)
    assert (log.outcome, log.output_tokens) == (Ended.FINISHED, 6)


def test_an_event_without_end_is_a_broken_upstream(stand_in: StandIn) -> None:
    with gateway(stand_in, limits={"event_bytes": 10_000}, timeouts=SHORT) as gate:
        answer = gate.ask(stream=True, stand_in={"padding_bytes": 200_000})
        assert (answer.status, answer.code) == (503, "upstream_failed")


def test_a_flood_from_upstream_goes_through_in_little_memory(gate: Gate) -> None:
    gate.ask(stream=True, stand_in={"padding_bytes": 100_000}, max_tokens=20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = gate.ask(stream=True, stand_in={"padding_bytes": 100_000}, max_tokens=300, timeout_s=60)
    assert len(answer.body) > 300 * 100_000
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 100_000, grown_kib  # the client's own copies of 30 MB are in it
    assert last(gate).output_tokens == 300


@pytest.fixture
def new_gate(stand_in: StandIn):  # type: ignore[no-untyped-def]
    """Give a gateway that has seen no pace: what it books of a broken stream is what passed through it."""
    with gateway(stand_in, timeouts=SHORT, policy="token-pool") as one:
        yield one


def test_a_stream_that_nobody_reads_stops_its_upstream_and_is_given_up(new_gate: Gate, stand_in: StandIn) -> None:
    gate = new_gate
    body = json.dumps({
        "model": "tiny", "prompt": "a", "max_tokens": 5000, "stream": True, "stand_in": {"padding_bytes": 100_000},
    }).encode()  # fmt: skip
    with gate.connect() as connection:
        # A kernel lets a receive buffer grow to 32 MB where it finds time to; here it may hold no more than this.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        began_s = time.monotonic()
        connection.sendall(head(f"content-length: {len(body)}") + body)
        gate.until(lambda: stand_in.running == 1)
        gate.until(lambda: stand_in.running == 0)
        assert 0.5 < time.monotonic() - began_s < 3
    log = last(gate)
    assert (log.outcome, log.error) == (Ended.CANCELLED, "client_stalled")
    assert log.output_tokens < 300  # at most what socket buffers hold


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_upstream_at_once(gate: Gate, stand_in: StandIn, stream: bool) -> None:
    body = json.dumps({
        "model": "tiny", "prompt": "a", "max_tokens": 5000, "stream": stream, "stand_in": {"gap_s": 0.01},
    }).encode()  # fmt: skip
    with gate.connect() as connection:
        connection.sendall(head(f"content-length: {len(body)}") + body)
        gate.until(lambda: stand_in.running == 1)
        time.sleep(0.1)
    left_s = time.monotonic()
    gate.until(lambda: stand_in.running == 0)
    assert stand_in.aborted_s[-1] - left_s < 0.5
    log = last(gate)
    assert (log.outcome, log.http_status) == (Ended.CANCELLED, 200 if stream else 499)
    assert log.error == "client_left"


def test_a_request_that_failed_before_its_first_byte_goes_elsewhere_once() -> None:
    retrying = {"on_failure": "retry", "router": "round-robin"}
    with running() as bad, running() as good, gateway(bad, good, pool=retrying) as gate:
        bad.behaviour = Behaviour(die="before")
        answers = [gate.ask(stream=bool(n % 2)) for n in range(4)]
        assert [answer.status for answer in answers] == [200] * 4
        gate.balanced()
        assert sorted(log.tries for log in gate.logs) == [1, 1, 2, 2]
        good.behaviour = bad.behaviour
        answer = gate.ask()
        assert (answer.status, answer.code) == (503, "upstream_failed")
        gate.balanced()
        assert gate.logs[-1].tries == 2
        bad.behaviour = Behaviour(die="2", gap_s=0.02)
        good.behaviour = bad.behaviour
        ended_with_an_error(gate.ask(stream=True), 2, "upstream_failed")  # not after it
        gate.balanced()
        assert gate.logs[-1].tries == 1


def test_an_upstream_that_is_gone_is_left_out_and_taken_in_again() -> None:
    with running() as stand_in, gateway(stand_in) as gate:
        assert gate.ask().status == 200

        def restart(start: bool) -> None:
            loop = stand_in._server.get_loop() if stand_in._server is not None else loops[0]
            loops.append(loop)
            asyncio.run_coroutine_threadsafe(stand_in.start() if start else stand_in.stop(), loop).result(5)

        loops: list[asyncio.AbstractEventLoop] = []
        restart(False)
        first = gate.ask()
        assert (first.status, first.code) in [(503, "upstream_failed"), (503, "no_capacity")]
        gate.until(lambda: not gate.service.upstreams.ready())
        assert gate.ask().code == "no_capacity"
        assert gate.service.gateway.core.pool.capacity.slots == 0
        restart(True)
        gate.until(lambda: gate.service.upstreams.ready())
        assert gate.ask().status == 200
        assert gate.service.gateway.core.pool.capacity.slots == 16


@pytest.mark.parametrize("on_failure", ["fail", "retry"])
def test_a_request_whose_lost_replica_costs_it_its_place_is_answered(on_failure: str) -> None:
    """The eviction comes within the task that serves it: it found the replica gone, and the pool has less room."""
    pool = {"on_failure": on_failure}
    slow = {"health_every_s": 3600.0}  # nobody else finds out
    with running() as stand_in, gateway(stand_in, pool=pool, policy={"kind": "token-pool"}, timeouts=slow) as gate:
        gate.until(lambda: gate.service.upstreams.ready())
        loop = stand_in._server.get_loop()  # type: ignore[union-attr]
        asyncio.run_coroutine_threadsafe(stand_in.stop(), loop).result(5)
        answer = gate.ask(key="filler")
        assert (answer.status, answer.code) == (503, "preempted")
        gate.balanced()
        assert gate.logs[-1].outcome is Ended.EVICTED


def test_clocks_that_jump_do_not_matter(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for jump_s in (3600.0, -86400.0, 0.0):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
        assert gate.ask().status == 200
        assert gate.ask(stream=True).status == 200
        log = last(gate)
        assert 0 <= log.finish_s - log.arrival_s < 1
    monkeypatch.undo()
    assert gate.loop.time is not time.time
    assert abs(gate.call(gate.loop.time) - time.monotonic()) < 5  # the loop's clock is the monotonic one


def test_what_is_in_flight_finishes_when_the_gateway_is_told_to_stop() -> None:
    found: list[Answer] = []
    with running() as stand_in, gateway(stand_in, timeouts={"drain_notice_s": 0.3}) as gate:
        slow = {"stream": True, "max_tokens": 20, "stand_in": {"gap_s": 0.05}}
        thread = threading.Thread(target=lambda: found.append(gate.ask(**slow)))
        thread.start()
        gate.until(lambda: stand_in.running == 1)
        gate.call(gate.server.stop)
        assert gate.ask(path="/readyz", method="GET", key=None).status == 503
        assert gate.ask().status == 200  # until the notice is over
        gate.until(lambda: gate.server.should_exit)
        gate.until(lambda: not any(one.is_serving() for one in gate.server.servers))
        with pytest.raises(ConnectionRefusedError):
            gate.ask(timeout_s=1)
        thread.join(10)
        assert len(found[0].events) == 20


def test_what_does_not_finish_in_time_is_told_so() -> None:
    found: list[Answer] = []
    with running() as stand_in, gateway(stand_in, timeouts={"drain_s": 0.4}) as gate:
        slow = {"max_tokens": 400, "stand_in": {"gap_s": 0.05}}
        threads = [
            threading.Thread(target=lambda stream=stream: found.append(gate.ask(stream=stream, **slow)))
            for stream in (False, True)
        ]
        for thread in threads:
            thread.start()
        gate.until(lambda: stand_in.running == 2)
        gate.call(gate.server.stop)
        for thread in threads:
            thread.join(10)
        whole, stream = sorted(found, key=lambda answer: answer.status, reverse=True)
        assert (whole.status, whole.code) == (503, "shutting_down")
        assert stream.events[-1]["error"]["code"] == "shutting_down"
