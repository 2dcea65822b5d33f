from __future__ import annotations

from sim.live.gateway.headers import client_id, to_client, to_upstream


def test_an_upstreams_address_is_told_to_nobody() -> None:
    raw = [(b"Location", b"http://10.0.0.7:8000/v1/models?a=1"), (b"Server", b"uvicorn"), (b"Content-Length", b"5"),
           (b"Transfer-Encoding", b"chunked"), (b"X-Own", b"1"), (b"Set-Cookie", b"a=b")]  # fmt: skip
    assert to_client(raw, "req-1", [(b"more", b"2")], length=False) == [
        (b"location", b"/v1/models?a=1"), (b"x-own", b"1"), (b"x-request-id", b"req-1"), (b"more", b"2"),
    ]  # fmt: skip
    assert (b"content-length", b"5") in to_client(raw, "req-1", [], length=True)


def test_of_two_limits_the_client_sees_the_gateways() -> None:
    raw = [(b"X-RateLimit-Limit-Requests", b"9999"), (b"x-ratelimit-other", b"1")]
    more = [(b"x-ratelimit-limit-requests", b"60")]
    assert to_client(raw, "req-1", more, length=False) == [
        (b"x-ratelimit-other", b"1"), (b"x-request-id", b"req-1"), (b"x-ratelimit-limit-requests", b"60"),
    ]  # fmt: skip


def test_what_connection_names_is_for_one_hop() -> None:
    sent = to_upstream(
        [(b"connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"x-own", b"2"), (b"authorization", b"Bearer k"),
         (b"accept-encoding", b"gzip"), (b"x-class", b"spot"), (b"x-twice", b"1"), (b"x-twice", b"2")],
        api_key="theirs", request_id="req-1", own=b"x-class", read=True,
    )  # fmt: skip
    assert sorted(sent) == [
        (b"accept-encoding", b"identity"), (b"authorization", b"Bearer theirs"), (b"x-own", b"2"),
        (b"x-request-id", b"req-1"), (b"x-twice", b"1"), (b"x-twice", b"2"),
    ]  # fmt: skip


def test_a_clients_own_id_is_fit_for_a_log() -> None:
    assert client_id({}) == ""
    assert client_id({b"x-request-id": b"abc"}) == "abc"
    assert client_id({b"x-request-id": b"a\x1b[31m\xff" + b"x" * 500}) == "a?[31m\u00ff" + "x" * 121
