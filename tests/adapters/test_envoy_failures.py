"""The real Envoy and a processor that is killed, hangs, is slow or is restarted under load.

Who is served meanwhile is configured: tenant acme (guaranteed) has a route that fails open, all others fail closed.
``make envoy`` runs it; TOKENPOOLS_ENVOY is the program.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from live.stand_in import StandIn, running

from adapters import envoy_proxy
from adapters.envoy_proxy import ASK, LONG_S, Proxy, behaves, filter_of

pytestmark = envoy_proxy.MARKS
LIMIT_S = 0.5
"""The filter's message_timeout here."""


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with running() as one:
        yield one


def quick(envoys: Any) -> None:
    filter_of(envoys)["message_timeout"] = f"{LIMIT_S}s"


@pytest.fixture(params=["FULL_DUPLEX_STREAMED", "STREAMED", "BUFFERED"])
def proxy(request: Any, stand_in: StandIn, tmp_path: Path) -> Iterator[Proxy]:
    with envoy_proxy.proxy(tmp_path, request.param, stand_in.port, change=quick) as made:
        yield made


def ask(proxy: Proxy, tenant: str, **how: Any) -> int:
    """Return the status of an answer in one piece; 0 where there was none."""
    try:
        answer = httpx2.post(
            f"{proxy.url}/v1/chat/completions", json=ASK | ({"stand_in": how} if how else {}), timeout=LONG_S,
            headers={"x-tenant": tenant, "x-gateway-destination-endpoint": "127.0.0.1:1"},
        )  # fmt: skip
    except httpx2.HTTPError:
        return 0
    return answer.status_code


def open_stream(proxy: Proxy, tenant: str) -> Any:
    """Begin a stream that goes on for long, and read its first event."""
    given = behaves(gap_s=0.05, output_tokens=1000) | {"max_tokens": 1000}
    stream = proxy.client(tenant).chat.completions.create(**given, stream=True)
    next(iter(stream))
    return stream


def check_open_and_closed(proxy: Proxy, stand_in: StandIn) -> None:
    """Acme is served by nobody's budget, others are not, and neither goes where it says itself.

    What Envoy was in the middle of when it found out ends with an error.
    """
    proxy.wait_for(lambda: ask(proxy, "acme") == 200)
    before = len(stand_in.seen) - 1
    for tenant in ("other", "third", "nobody"):
        assert ask(proxy, tenant) in (503, 504)
    assert len(stand_in.seen) == before + 1


def test_a_processor_that_is_killed(proxy: Proxy, stand_in: StandIn) -> None:
    streams = [open_stream(proxy, tenant) for tenant in ("acme", "third")]
    proxy.processor.send_signal(signal.SIGKILL)
    proxy.processor.wait(LONG_S)
    check_open_and_closed(proxy, stand_in)
    for stream in streams:
        with contextlib.suppress(openai.APIError, httpx2.HTTPError, StopIteration):
            next(iter(stream))  # it is broken off, or goes on as the route says
        stream.close()
    proxy.recording.unlink()
    proxy.start_processor()
    assert [ask(proxy, tenant) for tenant in ("acme", "other", "nobody")] == [200, 200, 403]
    proxy.wait_for(lambda: not stand_in.running)
    held = open_stream(proxy, "other")
    assert ask(proxy, "other") == 429
    held.close()
    proxy.stop_processor()


def test_a_processor_that_hangs(proxy: Proxy, stand_in: StandIn) -> None:
    assert ask(proxy, "other") == 200
    proxy.processor.send_signal(signal.SIGSTOP)
    try:
        check_open_and_closed(proxy, stand_in)
    finally:
        proxy.processor.send_signal(signal.SIGCONT)
    proxy.wait_for(lambda: proxy.status("/nothing") == 404)
    assert ask(proxy, "other") == 200, "its one slot is free: what was asked meanwhile was taken back by Envoy"
    proxy.stop_processor()


def test_a_processor_that_is_restarted_under_load(proxy: Proxy, stand_in: StandIn) -> None:
    found: Counter[tuple[str, int]] = Counter()
    over, lock = threading.Event(), threading.Lock()

    def load(tenant: str) -> None:
        while not over.is_set():
            status = ask(proxy, tenant, gap_s=0.01)
            with lock:
                found[tenant, status] += 1

    def served(tenant: str) -> int:
        with lock:
            return found[tenant, 200]

    threads = [threading.Thread(target=load, args=(one,)) for one in ("acme", "other", "other", "third", "nobody")]
    for one in threads:
        one.start()
    try:
        for how in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
            before = {tenant: served(tenant) for tenant in ("acme", "other", "third")}
            proxy.wait_for(lambda before=before: all(served(name) > count + 3 for name, count in before.items()))  # type: ignore[misc]
            if how == signal.SIGTERM:
                proxy.stop_processor()
            else:
                proxy.processor.send_signal(how)
                proxy.processor.wait(LONG_S)
            proxy.recording.unlink(missing_ok=True)
            proxy.start_processor()
        before = {tenant: served(tenant) for tenant in ("acme", "other", "third")}
        proxy.wait_for(lambda: all(served(name) > count + 3 for name, count in before.items()))
    finally:
        over.set()
        for one in threads:
            one.join(LONG_S)
    assert not found["nobody", 200], found
    assert found["other", 429], "two at once have one slot"
    proxy.stop_processor()
    has_slot: set[str] = set()
    most = 0
    for _, event, said in proxy.rows():  # never two of a tenant that has one slot
        if event[0] == "arrived" and event[1][1] == "batch" and any(one[0] == "forward" for one in said):
            has_slot.add(event[1][0])
        elif event[0] in ("finished", "failed", "cancelled"):
            has_slot.discard(event[1])
        most = max(most, len(has_slot))
    assert most == 1


def test_who_is_held_waits_for_longer_than_a_message_may(stand_in: StandIn, tmp_path: Path) -> None:
    """A processor that is slow on purpose asks Envoy for time; the same request from a hanging one is given up."""
    with envoy_proxy.proxy(tmp_path, "FULL_DUPLEX_STREAMED", stand_in.port, change=quick, policy="fair-queue") as made:
        streams = [open_stream(made, "acme") for _ in range(4)]
        got: list[int] = []
        waiting = threading.Thread(target=lambda: got.append(ask(made, "acme")))
        waiting.start()
        made.wait_for(lambda: sum(event[0] == "arrived" for event in made.events()) == 5)
        waiting.join(3 * LIMIT_S)
        assert waiting.is_alive(), "it is held, and Envoy waits"
        streams[0].close()
        waiting.join(LONG_S)
        assert got == [200]
        for one in streams:
            one.close()
        made.stop_processor()


BODY = json.dumps(ASK | {"max_tokens": 100, "stream": True}).encode()[:-1] + b", "
STAGES: dict[str, Callable[[socket.socket], object]] = {
    "after half of the headers": lambda one: one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"),
    "after the headers": lambda one: one.sendall(head(len(BODY) + 50)),
    "in the body": lambda one: one.sendall(head(len(BODY) + 50) + BODY),
    "before the answer": lambda one: one.sendall(whole({"ttft_s": 30.0})),
    "after the answer's headers": lambda one: (one.sendall(whole({"role_first": True, "role_s": 0.0, "gap_s": 30.0})),
                                               one.recv(15)),
    "in the answer": lambda one: (one.sendall(whole({"gap_s": 0.02})), [one.recv(300) for _ in range(4)]),
}  # fmt: skip


def head(size: int) -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-tenant: other\r\ncontent-type: application/json\r\n"
        f"content-length: {size}\r\n\r\n"
    ).encode()


def whole(how: dict[str, Any]) -> bytes:
    body = BODY + b'"stand_in": ' + json.dumps(how).encode() + b"}"
    return head(len(body)) + body


def test_a_client_that_resets_its_connection_at_any_moment(proxy: Proxy, stand_in: StandIn) -> None:
    """The tenant has one slot: each next request shows that the last one has given it back."""
    for stage, go in STAGES.items():
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) as one:
            go(one)
            if stage == "before the answer":
                proxy.wait_for(lambda: stand_in.running)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closed by a reset
        proxy.wait_for(lambda: not stand_in.running)
        proxy.wait_for(lambda: ask(proxy, "other") == 200)
    for died in ("before", "headers", "2"):
        status = ask(proxy, "other", die=died)
        assert status != 200 or died != "before"
        proxy.wait_for(lambda: ask(proxy, "other") == 200)
    proxy.stop_processor()


def test_a_filter_that_only_watches_serves_everybody_and_the_log_says_why(stand_in: StandIn, tmp_path: Path) -> None:
    def watch(envoys: Any) -> None:
        given = filter_of(envoys)
        given["observability_mode"] = True
        del given["status_on_error"]
        given["processing_mode"] |= {"request_body_mode": "STREAMED", "response_body_mode": "STREAMED"}

    with envoy_proxy.proxy(tmp_path, "STREAMED", stand_in.port, change=watch, answers=False) as made:
        log = tmp_path / "processor.log"
        made.wait_for(lambda: ask(made, "nobody") == 200 and "observability_mode" in log.read_text())
        assert ask(made, "acme") == 200
        assert not made.events()
