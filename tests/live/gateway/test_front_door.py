"""Clients of every kind, and what they may not do: paths, headers, protocols, bytes, connections."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import resource
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from live.gate import Gate, gateway, head, secret
from live.stand_in import StandIn, running

from sim.errors import ScenarioError
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.descriptors import exhausted, fitted
from sim.live.gateway.relay import Relay
from sim.live.gateway.settings import Limits
from sim.live.gateway.settings_from_config import make_settings
from sim.live.observability.observer import Ended

pytestmark = pytest.mark.usefixtures("books")
UPGRADE = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA")


@pytest.fixture(scope="module")
def gate(stand_in: StandIn):  # type: ignore[no-untyped-def]
    with gateway(stand_in, timeouts={"keep_alive_s": 2.0}) as one:
        yield one


def plain(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny", "prompt": "a b", "max_tokens": 2, **fields}).encode()


def read(connection: socket.socket, until: bytes = b"", timeout_s: float = 5.0) -> bytes:
    """Return what comes, up to an end or that of the connection."""
    connection.settimeout(timeout_s)
    found = b""
    while not until or until not in found:
        part = connection.recv(65536)
        if not part:
            break
        found += part
    return found


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_of_http2_is_not_taken_and_the_body_is_read(gate: Gate, chunked: bool, pause_s: float) -> None:
    body = plain()
    framing = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    with gate.connect() as connection:
        for lines in ((*UPGRADE, framing), (framing,), (*UPGRADE, framing)):  # and on the same connection again
            for piece in (head(*lines), sent) if pause_s else (head(*lines) + sent,):
                connection.sendall(piece)
                time.sleep(pause_s)
            assert read(connection, b'"w0 w1"').startswith(b"HTTP/1.1 200 ")


def test_who_begins_in_http2_is_told_what_is_spoken(gate: Gate) -> None:
    with gate.connect() as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
        answer = read(connection)
    settings, goaway = answer[:9], answer[9:]
    assert (int.from_bytes(settings[:3]), settings[3]) == (0, 4)
    assert (int.from_bytes(goaway[:3]), goaway[3], goaway[5:9]) == (len(goaway) - 9, 7, bytes(4))
    assert goaway[9:13] == bytes(4)  # no stream was worked on: all may be tried again
    assert int.from_bytes(goaway[13:17]) == 13  # HTTP_1_1_REQUIRED


@pytest.mark.parametrize("cut", [1, 3, 15])
def test_who_begins_in_http2_is_told_so_however_the_bytes_come(gate: Gate, cut: int) -> None:
    begins = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    with gate.connect() as connection:
        for piece in (begins[:cut], begins[cut:]):
            connection.sendall(piece)
            time.sleep(0.05)
        assert read(connection)[3] == 4  # SETTINGS
    body = plain()
    whole = head(f"content-length: {len(body)}") + body
    with gate.connect() as connection:  # what begins alike is read as ever
        connection.sendall(whole[:1])
        time.sleep(0.05)
        connection.sendall(whole[1:])
        assert read(connection, b'"w0 w1"').startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("trailer", [
    f"authorization: Bearer {secret('batch')}", "x-tokenpools-class: spot", "host: other", "x-request-id: theirs",
])  # fmt: skip
def test_what_stands_behind_a_body_is_no_header(gate: Gate, stand_in: StandIn, trailer: str) -> None:
    body = plain()
    chunks = b"%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (len(body), body, trailer.encode())
    with gate.connect() as connection:
        for _ in range(2):
            connection.sendall(head("transfer-encoding: chunked") + chunks)
            assert read(connection, b'"w0 w1"').startswith(b"HTTP/1.1 200 ")
            gate.balanced()
            assert (gate.logs[-1].entitlement, gate.logs[-1].client_request_id) == ("chat", "")


def test_whole_numbers_may_be_written_as_others_and_a_mark_of_byte_order_is_left_out(
    gate: Gate, stand_in: StandIn
) -> None:
    assert gate.ask(max_tokens=2.0, n=1.0).json["usage"]["completion_tokens"] == 2
    gate.balanced()
    assert gate.logs[-1].max_output_tokens == 2
    assert gate.ask(max_tokens=2.5).status == 400
    assert gate.ask(b"\xef\xbb\xbf" + plain()).status == 200
    assert stand_in.seen[-1].body == plain()


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0_gets_no_chunks(gate: Gate, stream: bool) -> None:
    body = plain(stream=stream)
    data = head(f"content-length: {len(body)}").replace(b"HTTP/1.1", b"HTTP/1.0") + body
    with gate.connect() as connection:
        connection.sendall(data)
        answer = read(connection)
    top, _, rest = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in top.lower()
    assert b"connection: close" in top.lower()
    assert rest.endswith(b"data: [DONE]\n\n" if stream else b"}")
    assert rest.startswith(b"data: {" if stream else b"{")


def test_a_preflight_needs_no_key_and_an_answer_says_who_may_see_it(gate: Gate) -> None:
    asked = {"origin": "https://chat.example.com", "access-control-request-method": "POST",
             "access-control-request-headers": "authorization, content-type"}
    answer = gate.ask(method="OPTIONS", path="/v1/chat/completions", key=None, headers=asked)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert gate.ask(headers={"origin": "https://chat.example.com"}).headers["access-control-allow-origin"] == "*"
    assert gate.ask(key=None, headers={"origin": "x"}).headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in gate.ask().headers
    assert gate.ask(method="OPTIONS", path="/v1/nothing", key=None).status == 404


def test_origins_may_be_named(stand_in: StandIn) -> None:
    with gateway(stand_in, listen={"port": 0, "cors_origins": ["https://mine.example.com"]}) as gate:
        for origin, seen in (("https://mine.example.com", True), ("https://other.example.com", False)):
            asked = {"origin": origin, "access-control-request-method": "POST"}
            answer = gate.ask(method="OPTIONS", key=None, headers=asked)
            assert (answer.headers.get("access-control-allow-origin") == origin) == seen


MESSAGES = [
    {"type": "message_start", "message": {"id": "m", "type": "message", "role": "assistant", "content": [],
     "model": "tiny", "stop_reason": None, "usage": {"input_tokens": 3, "output_tokens": 0}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "w0 w1"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]  # fmt: skip


def events(values: list[dict[str, Any]], end: str = "\n\n") -> str:
    top = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    return top + "".join(f"event: {one.get('type', 'x')}{end[:1]}data: {json.dumps(one)}{end}" for one in values)


def test_anthropics_client_works_with_its_own_header(gate: Gate) -> None:
    import anthropic  # here: it takes four seconds, of every run of whatever tests

    client = anthropic.Anthropic(base_url=gate.base_url, api_key=secret("chat"), max_retries=0)
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "a b"}]}
    with client.messages.stream(**asked, extra_body={"stand_in": {"raw": events(MESSAGES)}}) as stream:
        assert "".join(stream.text_stream) == "w0 w1"
    gate.balanced()
    log = gate.logs[-1]
    assert (log.outcome, log.output_tokens, log.counted_prompt_tokens) == (Ended.FINISHED, 2, 3)
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=gate.base_url, api_key="wrong", max_retries=0).messages.create(**asked)
    with pytest.raises(anthropic.APIError), client.messages.stream(
        **asked, extra_body={"stand_in": {"raw": events(MESSAGES[:3])}}
    ) as stream:
        list(stream.text_stream)
    gate.balanced()
    assert gate.logs[-1].outcome is Ended.FAILED
    client.close()


def test_two_keys_are_none(gate: Gate) -> None:
    answer = gate.ask({"model": "tiny"}, path="/v1/messages", headers={"x-api-key": "another"})
    assert answer.status == 400
    assert gate.ask(key=None, headers={"x-api-key": secret("chat")}).status == 401  # nobody sends it there


@pytest.mark.parametrize("lines", [
    ("authorization: Bearer x",), ("host: y",), ("content-type: a", "content-type: b"),
], ids=str)  # fmt: skip
def test_a_header_that_says_who_or_whom_stands_there_once(gate: Gate, lines: tuple[str, ...]) -> None:
    body = plain()
    with gate.connect() as connection:
        connection.sendall(head(f"content-length: {len(body)}", "connection: close", *lines) + body)
        assert read(connection).startswith(b"HTTP/1.1 400 ")
    with gate.connect() as connection:
        whole = head(f"content-length: {len(body)}", "connection: close") + body
        connection.sendall(whole.replace(b"host: x\r\n", b""))
        assert read(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", [
    "/v1/chat/completions/batch", "/v1/./completions", "/v1/completions;x", "/v1/completions%3Fx", "/v1/complet%69ons",
    "/v1//completions", "/v1/completions/", "/V1/completions", "/v1/files", "/v1/batches", "/v1/audio/speech",
    "/v1/images/generations", "/v1/models/../completions", "/v1/fine_tuning/jobs", "/v1/load_lora_adapter", "/sleep",
])  # fmt: skip
def test_what_is_not_in_the_table_is_not_there(gate: Gate, stand_in: StandIn, path: str) -> None:
    before = len(stand_in.seen)
    for method in ("POST", "GET"):
        assert gate.ask(path=path, method=method).status == 404
    assert len(stand_in.seen) == before


def test_a_method_that_a_path_does_not_take_is_405(gate: Gate) -> None:
    for method, path in (("GET", "/v1/completions"), ("POST", "/v1/models"), ("PUT", "/v1/responses")):
        assert gate.ask(path=path, method=method).status == 405


def test_a_further_path_has_a_price(stand_in: StandIn) -> None:
    paths = [{"path": "/v1/audio/speech", "output_tokens": 500, "sequences": 3}]
    with gateway(stand_in, paths=paths) as gate:
        assert gate.ask({"input": "x"}, path="/v1/audio/speech").status == 200
        gate.balanced()
        book = gate.service.gateway.core.pool.entitlements["chat"]
        assert gate.call(lambda: (book.demanded_requests, book.demanded_tokens)) == (3, 500 + 3)


def test_what_only_reads_is_metered_too(stand_in: StandIn) -> None:
    with gateway(stand_in, policy={"kind": "rate-limit", "requests_per_min": 2}) as gate:
        found = [gate.ask(path="/v1/models", method="GET").status for _ in range(4)]
        assert found == [200, 200, 429, 429]


def made(response_id: str, status: str = "completed", **more: Any) -> str:
    body = json.dumps({"id": response_id, "object": "response", "status": status, **more})
    return f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"


def test_a_stored_response_belongs_to_who_made_it(gate: Gate) -> None:
    usage = {"input_tokens": 30, "output_tokens": 20}
    ask = {"model": "tiny", "input": "a", "stand_in": {"raw": made("resp_1", usage=usage)}}
    assert gate.ask(ask, path="/v1/responses").status == 200
    assert gate.ask(path="/v1/responses/resp_1", method="GET").status == 200
    assert gate.ask(path="/v1/responses/resp_1", method="GET", key="batch").status == 404
    assert gate.ask(path="/v1/responses/resp_2", method="GET").status == 404
    assert gate.ask(path="/v1/responses/resp_1/cancel", key="batch").status == 404
    on = {"model": "tiny", "input": "abcd", "previous_response_id": "resp_1"}
    assert gate.ask(on, path="/v1/responses", key="batch").status == 404
    assert gate.ask(on, path="/v1/responses").status == 200
    gate.balanced()
    assert gate.logs[-1].prompt_tokens == 1 + 50  # what went before is read again
    assert gate.ask(path="/v1/responses/resp_1", method="DELETE").status == 200
    assert gate.ask(path="/v1/responses/resp_1", method="GET").status == 404


def test_what_another_gateway_stored_is_refused_and_says_why(gate: Gate, stand_in: StandIn) -> None:
    ask = {"model": "tiny", "input": "a", "stand_in": {"raw": made("resp_other")}}
    with gateway(stand_in) as other:
        assert other.ask(ask, path="/v1/responses").status == 200
        assert other.ask(path="/v1/responses/resp_other", method="GET").status == 200
    on = {"model": "tiny", "input": "abcd", "previous_response_id": "resp_other"}
    for answer in (
        gate.ask(path="/v1/responses/resp_other", method="GET"), gate.ask(on, path="/v1/responses"),
        gate.ask(path="/v1/responses/resp_other", method="DELETE"),
    ):  # fmt: skip
        assert (answer.status, answer.code) == (404, "not_found")
        assert "made through another gateway" in answer.json["error"]["message"]
    gate.balanced()


def test_a_response_in_the_background_counts_until_it_ends(gate: Gate, stand_in: StandIn) -> None:
    ask = {"model": "tiny", "input": "a", "background": True, "stand_in": {"raw": made("resp_b", "queued")}}
    assert gate.ask(ask, path="/v1/responses").json["status"] == "queued"
    core = gate.service.gateway.core
    assert gate.call(lambda: core.pool.entitlements["chat"].in_flight) == 1
    time.sleep(1.2)  # the stand-in answers the poll without a status that is known to run: it goes on
    assert gate.call(lambda: core.pool.entitlements["chat"].in_flight) == 1
    (exchange,) = gate.call(lambda: list(gate.service.in_flight))
    from sim.live.gateway.in_flight import AbortReason

    gate.call(lambda: exchange.cut(AbortReason.TOTAL))
    gate.balanced()
    assert any(one.path == "/v1/responses/resp_b/cancel" for one in stand_in.seen)
    assert gate.ask({**ask, "stream": True}, path="/v1/responses").status == 400


@pytest.mark.parametrize("stopped", ["cancelled", "deleted"])
def test_who_stops_a_response_in_the_background_pays_for_what_was_made(
    gate: Gate, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    ask = {"model": "tiny", "input": "a", "background": True, "max_output_tokens": 1000}
    raw = made(f"resp_{stopped}", "queued")
    assert gate.ask({**ask, "stand_in": {"raw": raw}}, path="/v1/responses").json["status"] == "queued"

    async def poll(*_: object) -> tuple[int, dict[str, object] | None]:
        return (404, None) if stopped == "deleted" else (200, {"status": "cancelled"})

    if stopped == "deleted":
        assert gate.ask(path=f"/v1/responses/resp_{stopped}", method="DELETE").status == 200
    monkeypatch.setattr(Relay, "_poll", poll)
    gate.until(lambda: not len(gate.service.in_flight))
    log = next(one for one in reversed(gate.logs) if one.max_output_tokens == 1000)
    assert log.outcome is Ended.CANCELLED
    assert 100 <= log.output_tokens <= 1000  # a second or so at 6 ms a token


@pytest.mark.parametrize("fields", [
    {"kv_transfer_params": {"do_remote_decode": True}}, {"data_parallel_rank": 3}, {"bootstrap_room": 1},
    {"vllm_xargs": {"kv_transfer_params": {"a": 1}}}, {"request_id": "theirs"},
], ids=str)  # fmt: skip
def test_what_routers_tell_engines_no_client_may(gate: Gate, fields: dict[str, Any]) -> None:
    answer = gate.ask(plain(**fields))
    assert (answer.status, answer.code) == (400, "field_not_allowed")


def test_headers_of_routers_stay_here(gate: Gate, stand_in: StandIn) -> None:
    gate.ask(headers={"X-data-parallel-rank": "3", "x-prefiller-host-port": "a:1", "x-mine": "1"})
    seen = stand_in.seen[-1].headers
    assert "x-mine" in seen
    assert not {"x-data-parallel-rank", "x-prefiller-host-port"} & set(seen)


def test_a_name_of_half_a_character_is_refused_and_never_a_label(gate: Gate) -> None:
    answer = gate.ask(b'{"model":"\\ud800","prompt":"a"}')
    assert answer.status == 400
    for n in range(5):
        gate.ask({"model": f"invented-{n}", "prompt": "a"})
    from prometheus_client import generate_latest

    text = generate_latest(gate.observability.metrics.registry).decode()
    assert "invented" not in text


def test_a_model_of_half_a_character_at_an_upstream_is_left_out() -> None:
    with running(model="\ud800") as odd, running() as good, gateway(odd, good) as gate:
        assert gate.ask(path="/openapi.json", method="GET").status == 200
        assert gate.ask(model="\ud800").status == 400
        assert gate.call(gate.service.upstreams.models) == {"tiny"}


def test_a_repeated_field_costs_no_more_than_another(gate: Gate) -> None:
    body = b'{"model":"tiny","prompt":"a",' + b",".join(b'"a%d":1' % n for n in range(20_000)) + b',"a19999":2}'
    began_s = time.process_time()
    answer = gate.ask(body)
    assert (answer.status, answer.code) == (400, "invalid_json")
    assert time.process_time() - began_s < 1.0  # it was 12 s
    many = b'{"model":"tiny","prompt":"a",' + b",".join(b'"a%d":1' % n for n in range(300_000)) + b"}"
    assert gate.ask(many).code == "too_many_fields"
    quoted = plain(prompt='{"a": "b"}' * 200_000)  # text in which quotes are escaped
    assert gate.ask(quoted).status == 200


def test_a_long_body_is_read_off_the_loop(gate: Gate) -> None:
    parsed = gate.service.app.intake
    body = plain(prompt="a " * 100_000)
    assert len(body) > 64 * 2**10
    assert gate.ask(body).status == 200
    assert parsed._threads._threads  # at least one was needed


def test_bodies_that_wait_are_bounded_for_each_key_and_in_all(stand_in: StandIn) -> None:
    limits = {"waiting_bytes": 300_000, "waiting_bytes_per_key": 200_000}
    with gateway(stand_in, limits=limits) as gate:
        half = [gate.connect() for _ in range(4)]
        for connection, key in zip(half, ("chat", "chat", "batch", "filler"), strict=True):
            connection.sendall(head("content-length: 150000", key=key) + b" " * 140_000)
            time.sleep(0.1)
        budget = gate.service.app.intake.budget
        assert gate.call(lambda: budget.kept_bytes) <= 300_000
        said = [read(half[n], b"}}")[:13] for n in (1, 3)]
        assert said == [b"HTTP/1.1 429 ", b"HTTP/1.1 503 "]
        for connection in half:
            connection.close()
        gate.balanced()
        assert gate.call(lambda: (budget.kept_bytes, dict(budget._by_key))) == (0, {})
        assert gate.ask().status == 200


def test_connections_are_bounded_by_address_and_told_so(stand_in: StandIn) -> None:
    with gateway(stand_in, limits={"connections_per_address": 3, "requests_per_key": 2}) as gate:
        held = [gate.connect() for _ in range(3)]
        time.sleep(0.1)
        with gate.connect() as one_more:
            one_more.sendall(head("content-length: 2") + b"{}")
            answer = read(one_more)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        body = plain(max_tokens=50, stand_in={"gap_s": 0.02})
        for connection in held:
            connection.sendall(head(f"content-length: {len(body)}") + body)
        first = [read(connection, b"\r\n\r\n")[:13] for connection in held]
        assert sorted(first) == [b"HTTP/1.1 200 ", b"HTTP/1.1 200 ", b"HTTP/1.1 429 "]
        for connection in held:
            connection.close()
        gate.until(lambda: not gate.server.server_state.connections)
        assert gate.ask().status == 200


def test_limits_follow_from_what_may_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    found = fitted(Limits(), upstreams=2)
    assert found.connections == (1024 - 64 - 8) * 10 // 21
    assert found.connections_per_address <= found.connections
    assert fitted(Limits(connections=100), upstreams=2).connections == 100
    assert exhausted(OSError(errno.EMFILE, "x"))
    assert not exhausted(ConnectionRefusedError(errno.ECONNREFUSED, "x"))
    assert not exhausted(ValueError("x"))


def test_no_upstream_is_blamed_for_descriptors_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as stand_in, gateway(stand_in) as gate:
        upstreams = gate.service.upstreams

        def broken(*_: object, **__: object) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(upstreams.client, "request", broken)
        answer = gate.ask()
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "overloaded", "1")
        time.sleep(0.4)  # eight looks at its health
        assert len(gate.call(upstreams.ready)) == 1
        monkeypatch.undo()
        assert gate.ask().status == 200


def test_a_request_sent_ahead_does_not_hide_that_its_client_has_gone(gate: Gate, stand_in: StandIn) -> None:
    body = plain(max_tokens=5000, stream=True, stand_in={"gap_s": 0.02})
    data = head(f"content-length: {len(body)}") + body
    with gate.connect() as connection:
        connection.sendall(data)
        gate.until(lambda: stand_in.running == 1)
        connection.sendall(head("content-length: 10") + b"{")
        time.sleep(0.1)
    left_s = time.monotonic()
    gate.until(lambda: stand_in.running == 0)
    assert time.monotonic() - left_s < 1.0


def test_a_long_body_that_came_at_once_does_not_hide_it_either(gate: Gate, stand_in: StandIn) -> None:
    body = plain(prompt=["a " * 200_000], max_tokens=5000, stream=True, stand_in={"gap_s": 0.02})
    with gate.connect() as connection:
        connection.sendall(head(f"content-length: {len(body)}") + body)
        gate.until(lambda: stand_in.running == 1)
    gate.until(lambda: stand_in.running == 0, timeout_s=2.0)


def test_tls_with_clients_that_prove_themselves_and_another_certificate(tmp_path: Path, stand_in: StandIn) -> None:
    authority, mine = trustme.CA(), trustme.CA()
    files = {name: str(tmp_path / name) for name in ("certificate", "key", "client_ca")}

    def issue() -> bytes:
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(files["key"])
        Path(files["certificate"]).write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        return issued.cert_chain_pems[0].bytes()

    issue()
    mine.cert_pem.write_to_path(files["client_ca"])
    context = ssl.create_default_context()
    authority.configure_trust(context)
    body = plain()
    request = head(f"content-length: {len(body)}", "connection: close") + body

    def ask(gate: Gate) -> tuple[bytes, bytes | None]:
        with context.wrap_socket(gate.connect(), server_hostname="127.0.0.1") as connection:
            shown = connection.getpeercert(binary_form=True)
            connection.sendall(request)
            return read(connection), shown

    with gateway(stand_in, listen={"port": 0, "tls": files}) as gate:
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert not ask(gate)[0]  # a client that shows none
        mine.issue_cert("client@example.com").configure_cert(context)
        answer, first = ask(gate)
        assert answer.startswith(b"HTTP/1.1 200 ")
        issue()
        gate.call(gate.service.renew_tls)
        answer, second = ask(gate)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert first != second
        Path(files["key"]).write_text("no key")
        with pytest.raises(ScenarioError, match=re.escape("listen.tls.certificate")):
            gate.call(gate.service.renew_tls)
        assert ask(gate)[0].startswith(b"HTTP/1.1 200 ")
        with gate.connect() as connection:  # in clear
            connection.sendall(request)
            assert b"200 OK" not in connection.recv(100)


def test_an_address_of_ipv6_may_stand_in_brackets(stand_in: StandIn) -> None:
    from live.gate import config

    read_back = parse_config(config([stand_in], listen={"host": "[::1]", "port": 0}), "c.yaml")
    assert make_settings(read_back).host == "::1"
