from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live.gate import Gate, gateway, head
from live.stand_in import StandIn

LIMITS = {"body_bytes": 100_000, "header_bytes": 8192}

pytestmark = pytest.mark.usefixtures("books")


@pytest.fixture(scope="module")
def gate(stand_in: StandIn):  # type: ignore[no-untyped-def]
    timeouts = {"header_s": 0.5, "body_s": 0.6, "keep_alive_s": 1.0}
    with gateway(stand_in, limits=LIMITS, timeouts=timeouts, policy="token-pool") as one:
        yield one


def plain(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny", "prompt": "a b", "max_tokens": 2, **fields}).encode()


MALFORMED = [
    b"", b"{", b"null", b"[]", b'"text"', b"1", b"{'a': 1}", b'{"a":1}}', b"\xff\xfe{}", b"\x00", b"{" * 5000,
    b"[" * 100_000, b'{"a":' * 400 + b"1" + b"}" * 400, b'{"model":"tiny","prompt":"a","max_tokens":NaN}',
    b'{"model":"tiny","prompt":"a","x":Infinity}', b'{"model":"tiny","model":"tiny","prompt":"a"}',
    b'{"model":"tiny","prompt":"a","max_tokens":' + b"9" * 5000 + b"}", '{"model":"tiny"}'.encode("utf-16"),
]  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_json_object_is_400(gate: Gate, body: bytes) -> None:
    answer = gate.ask(body)
    assert answer.status == 400
    assert answer.code in ("invalid_json", "invalid_value")
    assert answer.headers["x-should-retry"] == "false"


WRONG = [
    {"model": None}, {"model": ""}, {"model": 3}, {"model": ["tiny"]}, {"prompt": None}, {"prompt": 3}, {"prompt": {}},
    {"prompt": []}, {"prompt": [None]}, {"prompt": ["a", 1]}, {"prompt": [[1], ["a"]]}, {"prompt": [True]},
    {"max_tokens": "5"}, {"max_tokens": -1}, {"max_tokens": 1.5}, {"max_tokens": True}, {"max_tokens": 2**40},
    {"n": 0}, {"n": "2"}, {"n": 1000}, {"best_of": -3}, {"stream": "yes"}, {"stream": 1}, {"stream_options": []},
    {"stream_options": "x"}, {"priority": -1}, {"priority": "high"}, {"priority": 1.5},
]  # fmt: skip


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_wrong_types_are_400_and_say_which_field(gate: Gate, fields: dict[str, Any]) -> None:
    answer = gate.ask(plain(**fields))
    assert answer.status == 400
    assert answer.json["error"]["param"] in fields


@pytest.mark.parametrize("messages", [None, [], {}, "x", [1], [{}], [{"role": 1}], [{"role": "user", "content": 3}],
                                      [{"role": "user", "content": [1]}], [[]]], ids=str)
def test_wrong_messages_are_400(gate: Gate, messages: Any) -> None:
    answer = gate.ask({"model": "tiny", "messages": messages}, path="/v1/chat/completions")
    assert answer.status == 400
    assert answer.json["error"]["param"].startswith("messages")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = ["model", "prompt", "messages", "max_tokens", "max_completion_tokens", "n", "best_of", "stream", "priority",
         "stream_options", "tools", "suffix", "odd"]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(st.sampled_from(NAMES), values, max_size=6),
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"]),
    base=st.booleans(),
)
def test_whatever_fields_hold_the_answer_is_one_of_the_known(
    gate: Gate, fields: dict[str, Any], path: str, base: bool
) -> None:
    body = {"model": "tiny", "prompt": "a", "messages": [{"role": "user", "content": "a"}]} if base else {}
    answer = gate.ask({**body, **fields}, path=path)
    assert answer.status in (200, 400, 404, 429)
    gate.balanced()


def raw(gate: Gate, *pieces: bytes, timeout_s: float = 5.0) -> bytes:
    """Send bytes, piece by piece, and return whatever comes back until the gateway closes."""
    with gate.connect() as connection:
        connection.settimeout(timeout_s)
        try:
            for number, piece in enumerate(pieces):
                time.sleep(0.05 * (number > 0))
                connection.sendall(piece)
        except OSError:
            pass  # it did not want to read all of it
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
        return answer


@pytest.mark.parametrize("size", [150_000, 100 * 2**20])
def test_a_large_body_is_413(gate: Gate, size: int) -> None:
    answer = gate.ask(b"x" * size, timeout_s=60)
    assert (answer.status, answer.code) == (413, "request_too_large")


def test_a_large_body_that_is_announced_with_expect_is_never_sent(gate: Gate) -> None:
    answer = raw(gate, head("content-length: 1000000000", "expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_large_body_in_chunks_is_413(gate: Gate) -> None:
    chunk = b"%x\r\n%b\r\n" % (50_000, b"x" * 50_000)
    answer = raw(gate, head("transfer-encoding: chunked") + chunk * 10 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("data", [
    head(*(f"x-{n}: {'y' * 90}" for n in range(200))),
    head("x-long: " + "y" * 60_000),
    head("x-long: " + "y" * 60_000)[:-4],
    head(path="/" + "a" * 60_000),
    b"GET /" + b"a" * 60_000,
], ids=["many", "long", "unfinished", "path", "unfinished path"])
def test_a_header_bomb_is_431(gate: Gate, data: bytes) -> None:
    assert raw(gate, data[:100], data[100:]).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("data", [
    b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 20 + b"nonsense\r\n\r\n",
    head("content-length: abc"), head("content-length: -5"), head("content-length: 5", "content-length: 6"),
    head("content-length: 5", "transfer-encoding: chunked") + b"hello", head("bad header"), head("x: \x00"),
    head("transfer-encoding: chunked") + b"zz\r\n", b"GET /\xff HTTP/1.1\r\n\r\n",
])  # fmt: skip
def test_what_is_no_http_is_400_and_closed(gate: Gate, data: bytes) -> None:
    assert raw(gate, data).startswith(b"HTTP/1.1 400 ")


def test_endless_chunk_framing_is_refused(gate: Gate) -> None:
    tiny = b"1;" + b"e" * 3000 + b"\r\nx\r\n"
    assert b" 431 " in raw(gate, head("transfer-encoding: chunked"), tiny * 20)[:60]


def test_slow_headers_are_given_up(gate: Gate) -> None:
    for begun in (b"P", b"POST /v1/comp", head()[:-2]):
        began_s = time.monotonic()
        answer = raw(gate, begun)
        assert 0.3 < time.monotonic() - began_s < 2.0
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_unused_connection_is_closed_like_one_between_two_requests(gate: Gate) -> None:
    began_s = time.monotonic()
    assert raw(gate, b"") == b""
    assert 0.8 < time.monotonic() - began_s < 3.0


def test_a_slow_second_request_on_a_connection_is_given_up_too(gate: Gate) -> None:
    body = plain()
    with gate.connect() as connection:
        connection.sendall(head(f"content-length: {len(body)}") + body)
        connection.settimeout(3)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
        assert b"408" in answer


def test_a_connection_goes_on_after_an_answer_that_came_before_the_body(gate: Gate) -> None:
    body = plain()
    length = f"content-length: {len(body)}"
    with gate.connect() as connection:
        connection.sendall(head(length, key="nobody"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        connection.sendall(body)
        time.sleep(0.7)  # longer than a head may take
        connection.sendall(head(length) + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_goes_on_after_its_answer_is_cut(gate: Gate) -> None:
    with gate.connect() as connection:
        connection.sendall(head("content-length: 1000000", key="nobody"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        began_s = time.monotonic()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):  # noqa: PT012
            while time.monotonic() < began_s + 5:
                connection.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() - began_s < 2


def test_a_slow_body_is_given_up(gate: Gate) -> None:
    answer = raw(gate, head("content-length: 500") + b'{"model"')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in answer


def test_pipelined_requests_are_answered_in_order(gate: Gate) -> None:
    bodies = [plain(max_tokens=count) for count in (1, 2, 3)]
    data = b"".join(head(f"content-length: {len(body)}") + body for body in bodies)
    answer = raw(gate, data + head("connection: close", "content-length: 2") + b"{}", timeout_s=10)
    assert [b'"w0"' in answer, b'"w0 w1"' in answer, b'"w0 w1 w2"' in answer] == [True] * 3
    assert answer.index(b'"w0"') < answer.index(b'"w0 w1"') < answer.index(b'"w0 w1 w2"') < answer.index(b" 400 ")


def test_a_client_may_leave_after_any_byte_of_its_request(gate: Gate, stand_in: StandIn) -> None:
    body = plain(stream=True, stand_in={"ttft_s": 0.02})
    data = head(f"content-length: {len(body)}") + body
    for length in range(0, len(data) + 1, 3):
        with gate.connect() as connection:
            connection.sendall(data[:length])
    gate.balanced()
    gate.until(lambda: stand_in.running == 0)


def test_a_client_may_leave_after_any_byte_of_its_answer(gate: Gate, stand_in: StandIn) -> None:
    body = plain(stream=True, max_tokens=3, stand_in={"gap_s": 0.005})
    data = head("connection: close", f"content-length: {len(body)}") + body
    whole = len(raw(gate, data))
    for length in range(0, whole, 17):
        with gate.connect() as connection:
            connection.sendall(data)
            left = length
            while left and (part := connection.recv(left)):
                left -= len(part)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    gate.balanced()
    gate.until(lambda: stand_in.running == 0)
    assert not any(log.http_status >= 500 for log in gate.logs)
