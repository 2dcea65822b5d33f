"""The exchange of ext_proc, message by message: what upstream and client get, and what is settled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adapters.ext_proc import (
    ASK,
    BUFFERED,
    DONE,
    DUPLEX,
    LAST,
    NONE,
    STREAMED,
    USAGE,
    Seen,
    event,
    request_body,
    request_headers,
    response_body,
    response_headers,
    response_trailers,
    streamed_exchange,
    take,
)
from adapters.pools import assert_empty, config, worked
from sim.adapters.admission.requests import Admissions
from sim.adapters.envoy.config import ext_proc_config
from sim.adapters.envoy.exchange import Exchange, Processor
from sim.adapters.envoy.identity import identify_by
from sim.adapters.envoy.protos.external_processor_pb2 import ProcessingRequest
from sim.live.gateway.authentication import hashed
from sim.live.gateway.prompt_tokens import EstimatingCounter
from sim.live.gateway.settings import Estimate

MODES = pytest.mark.parametrize("mode", [STREAMED, DUPLEX, BUFFERED], ids=["streamed", "duplex", "buffered"])
Make = Callable[..., Admissions]


class Still:
    """A clock that stands, and calls nobody."""

    def time(self) -> float:
        return 0.0

    def call_at(self, when: float, callback: Callable[..., object], /, *args: Any) -> Still:
        return self

    def cancel(self) -> None:
        pass


class At:
    """A pool, and exchanges at it."""

    def __init__(self, **given: Any) -> None:
        identity = {} if "keys" in given else {"tenant_header": "x-tenant"}
        policy, pool = given.pop("policy", "token-pool"), given.pop("pool", None)
        self.config = ext_proc_config(config(policy, pool, **identity, **given))
        self.admissions = Admissions(self.config, Still())
        identify, counter = identify_by(self.config, self.admissions.tenants), EstimatingCounter(Estimate())
        self.processor = Processor(self.config, self.admissions, identify, counter)

    def exchange(self) -> Exchange:
        return Exchange(self.processor)

    def run(self, *messages: ProcessingRequest, exchange: Exchange | None = None, seen: Seen | None = None) -> Seen:
        at, seen = exchange or self.exchange(), seen or Seen()
        for message in messages:
            take(at.handle(message), seen, message)
        return seen


@pytest.fixture
def at() -> Iterator[Callable[..., At]]:
    made: list[At] = []

    def make(**given: Any) -> At:
        made.append(At(**given))
        return made[-1]

    yield make
    for one in made:
        assert_empty(one.admissions)
        one.admissions.close()


@MODES
def test_a_stream_reaches_both_ends_and_pays_its_usage(at: Callable[..., At], mode: Any) -> None:
    pool, seen = at(), Seen()
    exchange = pool.exchange()
    *first, last = streamed_exchange(mode)
    if mode == BUFFERED:  # one message for each body
        body = b"".join(one.request_body.body for one in first)
        answer = b"".join(one.response_body.body for one in (*first, last))
        first = [first[0], request_body(body), first[3]]
        last = response_body(answer, end=True)
    for message in first:
        take(exchange.handle(message), seen, message)
        if message.WhichOneof("request") == "response_headers":
            assert len(pool.admissions) == 1
    take(exchange.handle(last), seen, last)
    exchange.left()
    asked = json.loads(seen.upstream)
    assert asked == ASK | {"stream": True, "stream_options": {"include_usage": True}}
    assert seen.client == event("a") + event("b") + event("c") + LAST + DONE, "the usage was asked for by us alone"
    assert "content-length" in (seen.headers if mode == BUFFERED else seen.removed)
    assert "accept-encoding" in seen.removed
    assert seen.response_headers["x-request-id"].startswith("req-")
    assert worked(pool.admissions, "chat") == USAGE["prompt_tokens"] + USAGE["completion_tokens"]


@MODES
def test_an_answer_in_one_piece_pays_its_usage(at: Callable[..., At], mode: Any) -> None:
    pool, answer = at(), json.dumps({"choices": [], "usage": USAGE}).encode()
    pieces = [answer] if mode == BUFFERED else [answer[:9], answer[9:]]
    bodies = [response_body(piece, end=piece is pieces[-1]) for piece in pieces]
    seen = pool.run(request_headers(mode=mode), request_body(), response_headers(), *bodies)
    assert seen.client == answer
    assert worked(pool.admissions, "chat") == 10


@MODES
def test_the_upstream_gets_nothing_of_who_is_refused(at: Callable[..., At], mode: Any) -> None:
    pool = at()
    first = pool.exchange()
    pool.run(request_headers("other", mode=mode), request_body(), exchange=first)
    second = pool.exchange()
    ask = json.dumps(ASK).encode()
    pieces = [ask] if mode == BUFFERED else [ask[:5], ask[5:]]
    bodies = [request_body(piece, end=piece is pieces[-1]) for piece in pieces]
    seen = pool.run(request_headers("other", mode=mode), *bodies, exchange=second)
    assert (seen.status, seen.upstream) == (429, b"")
    assert int(seen.response_headers["retry-after"]) >= 1
    assert seen.response_headers["content-type"] == "application/json"
    assert seen.body["error"]["reason"] == "concurrency"
    assert second.is_over
    assert not second.handle(response_headers()), "nothing is said after an answer of ours"
    for exchange in (first, second):
        exchange.left()


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        (request_headers("nobody"), 403, "unknown_tenant"),
        (request_headers(None), 401, "unknown_tenant"),
        (request_headers("two"), 400, "ambiguous_tenant"),
        (request_headers("two", **{"x-service-class": "gold"}), 400, "invalid_service_class"),
        (request_headers("acme", **{"x-service-class": "spot"}), 403, "unknown_tenant"),
        (request_headers(path="/v1/./chat/completions"), 404, "not_found"),
        (request_headers(path="/v1/responses/resp_1", method="GET"), 404, "not_found"),
        (request_headers(method="PUT"), 405, "method_not_allowed"),
        (request_headers(mode=NONE), 500, "misconfigured"),
        (request_headers(answers=NONE), 500, "misconfigured"),
        (request_headers(**{"content-length": "99999999"}), 413, "request_too_large"),
    ],
)
def test_what_cannot_be_is_answered_at_its_headers(
    at: Callable[..., At], message: ProcessingRequest, status: int, code: str
) -> None:
    seen = at().run(message, request_body())
    assert (seen.status, seen.body["error"]["code"]) == (status, code)
    assert seen.upstream == b""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"), (b"\xff", "invalid_json"), (ASK | {"max_tokens": -1}, "invalid_value"),
        (ASK | {"n": 10_000}, "too_many_choices"), (ASK | {"kv_transfer_params": {}}, "field_not_allowed"),
        (b"[" * 100_000, "invalid_json"), (ASK | {"max_tokens": 10**7}, "context_length_exceeded"),
    ],
)  # fmt: skip
def test_a_body_that_makes_no_sense_is_400(at: Callable[..., At], body: Any, code: str) -> None:
    seen = at().run(request_headers(), request_body(body))
    assert (seen.status, seen.body["error"]["code"]) == (400, code)


def test_a_body_that_grows_too_large_is_413(at: Callable[..., At]) -> None:
    half = b"x" * 60
    seen = at(body_bytes=100).run(request_headers(mode=STREAMED), request_body(half, end=False), request_body(half))
    assert seen.status == 413


def test_anthropics_errors_have_its_shape(at: Callable[..., At]) -> None:
    seen = at().run(request_headers("nobody", "/v1/messages"))
    assert seen.body["type"] == "error"


def test_keys_name_the_entitlement_and_lower_it_only(at: Callable[..., At]) -> None:
    pool = at(keys=[
        {"name": "k", "entitlement": "two-a", "sha256": hashed("tp-secret").hex()},
        {"name": "l", "entitlement": "two-b", "sha256": hashed("tp-other").hex()},
    ])  # fmt: skip
    assert pool.run(request_headers(authorization="Bearer tp-wrong")).status == 401
    assert pool.run(request_headers("acme")).status == 401, "a tenant's header opens nothing"
    assert pool.run(request_headers(authorization="Bearer tp-other", **{"x-service-class": "elastic"})).status == 403
    exchange = pool.exchange()
    lowered = request_headers(authorization="Bearer tp-secret", **{"x-service-class": "spot"})
    pool.run(lowered, request_body(), exchange=exchange)
    assert exchange.entry is not None
    assert exchange.entry.entitlement == "two-b"
    exchange.left()


def test_the_endpoint_is_named_to_envoy_as_a_picker_does(at: Callable[..., At]) -> None:
    pool = at(destinations=["10.0.0.1:8000", "10.0.0.2:8000"], pool={"replicas": 2})
    exchanges = [pool.exchange() for _ in range(2)]
    named = set()
    for exchange in exchanges:
        seen = pool.run(request_headers(**FORGED), request_body(), exchange=exchange)
        assert seen.headers["x-gateway-destination-endpoint"] == seen.metadata
        named.add(seen.metadata)
    assert named == set(pool.config.destinations), "the core spreads them"
    for exchange in exchanges:
        exchange.left()
    seen = pool.run(request_headers(subset="10.0.0.7:8000, 10.0.0.8:8000"), request_body())
    assert (seen.status, seen.body["error"]["code"]) == (503, "no_capacity")
    assert seen.upstream == b""
    assert pool.run(request_headers(mode=STREAMED)).status == 500, "the headers are gone before anybody is let in"


def test_what_a_client_says_of_the_endpoint_is_dropped(at: Callable[..., At]) -> None:
    pool = at()
    exchange = pool.exchange()
    seen = pool.run(request_headers(**FORGED), request_body(), exchange=exchange)
    assert "x-gateway-destination-endpoint" in seen.removed
    exchange.left()


@pytest.mark.parametrize(("status", "worked_tokens"), [(500, None), (503, None), (429, None), (400, 0), (404, 0)])
def test_an_upstreams_error_is_passed_on_and_costs_no_output(
    at: Callable[..., At], status: int, worked_tokens: int | None
) -> None:
    pool = at()
    seen = pool.run(request_headers(), request_body(), response_headers(status), response_body({"error": {}}, end=True))
    assert seen.client == b'{"error": {}}'
    if worked_tokens is not None:
        assert worked(pool.admissions, "chat") == worked_tokens
    assert_empty(pool.admissions)


def test_without_a_usage_what_was_seen_is_paid_for_and_else_all(at: Callable[..., At]) -> None:
    pool = at()
    pool.run(*streamed_exchange(DUPLEX, usage=False))
    prompt = worked(pool.admissions, "chat") - 3
    assert 0 < prompt < 20
    pool.run(request_headers(), request_body(), response_headers(), response_body({"choices": []}, end=True))
    assert worked(pool.admissions, "chat") == 2 * prompt + 3 + 5


def test_a_stream_that_ends_before_its_end_has_failed(at: Callable[..., At]) -> None:
    pool = at()
    seen = pool.run(*streamed_exchange(STREAMED)[:-1], response_body(b"data: {", end=True))
    assert seen.client.endswith(b"data: {"), "bytes are passed on, whatever they are"
    assert_empty(pool.admissions)


def test_a_stream_may_end_with_trailers(at: Callable[..., At]) -> None:
    pool = at()
    *most, last = streamed_exchange(DUPLEX)
    seen = pool.run(*most, response_body(last.response_body.body, end=False), response_trailers())
    assert seen.client.endswith(DONE)
    assert worked(pool.admissions, "chat") == 10


@pytest.mark.parametrize("mode", [STREAMED, DUPLEX], ids=["streamed", "duplex"])
def test_whoever_leaves_at_any_message_leaves_nothing_behind(at: Callable[..., At], mode: Any) -> None:
    messages = streamed_exchange(mode)
    for count in range(len(messages) + 1):
        pool = at()
        exchange = pool.exchange()
        pool.run(*messages[:count], exchange=exchange)
        assert len(pool.admissions) == (3 <= count < len(messages)), count
        exchange.left()
        assert_empty(pool.admissions)
        exchange.left()
        assert not exchange.handle(messages[-1]), "what still comes is nobody's"


@pytest.mark.parametrize("mode", [STREAMED, DUPLEX], ids=["streamed", "duplex"])
def test_an_answer_of_envoys_own_settles_what_it_is_an_answer_to(at: Callable[..., At], mode: Any) -> None:
    messages = streamed_exchange(mode)
    for count in (1, 2, 3):
        pool = at()
        exchange = pool.exchange()
        seen = pool.run(*messages[:count], response_headers(503), response_body(b"slow", end=True), exchange=exchange)
        assert seen.client == b"slow"
        assert_empty(pool.admissions)


@pytest.mark.parametrize("mode", [STREAMED, DUPLEX], ids=["streamed", "duplex"])
@pytest.mark.parametrize("count", [3, 5], ids=["before its answer", "in its answer"])
def test_who_is_evicted_hears_of_it(at: Callable[..., At], mode: Any, count: int) -> None:
    pool, begun = at(), streamed_exchange(mode, "third")
    fillers = [pool.exchange() for _ in range(4)]
    for filler in fillers:
        pool.run(*begun[:count], exchange=filler)
    first = pool.exchange()
    pool.run(request_headers("acme"), request_body(), exchange=first)
    (out,) = (one for one in fillers if one.entry is not None and one.entry.error is not None)
    seen = take(out.evicted(), Seen())
    if count == 3:
        assert (seen.status, seen.body["error"]["code"]) == (503, "preempted")
    else:
        if mode == STREAMED:
            assert seen.client == b"", "Envoy takes nothing unasked in this mode"
            take(out.handle(begun[5]), seen, begun[5])
            assert take(out.handle(begun[6]), Seen()).status == 503, "then the stream is broken off"
        assert b'"finish_reason": "preempted"' in seen.client
        assert seen.client.endswith(DONE)
    assert not out.evicted(), "once"
    for one in (first, *fillers):
        one.left()


def test_paths_that_are_priced_and_paths_that_are_not(at: Callable[..., At]) -> None:
    pool = at(paths=[{"path": "/v1/audio/speech", "output_tokens": 40}], other_paths="pass")
    exchange = pool.exchange()
    seen = pool.run(request_headers(path="/v1/audio/speech?x=1"), request_body(b"x" * 40), exchange=exchange)
    assert seen.upstream == b"x" * 40
    assert exchange.entry is not None
    assert (exchange.entry.prompt_tokens, exchange.entry.max_output_tokens) == (10, 40)
    exchange.left()
    for mode in (STREAMED, DUPLEX):
        seen = pool.run(
            request_headers(None, "/else", mode=mode), request_body(b"ab", end=False), request_body(b"c"),
            response_headers(), response_body(b"de", end=True),
        )  # fmt: skip
        assert (seen.upstream, seen.client) == (b"abc", b"de")
    seen = pool.run(request_headers(path="/v1/models", method="GET", end=True), response_headers(end=True))
    assert seen.status == 0


FORGED = {"x-gateway-destination-endpoint": "10.9.9.9:1"}
