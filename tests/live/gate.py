"""A gateway on a loop and a thread of its own, before stand-ins, for tests that speak HTTP to it.

`Gate.balanced` is the ledger test: once nothing is on its way, every book of the core is back at zero.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from live.stand_in import StandIn
from policies.api import Event, Instruction
from policies.invariants import Checker, Violation
from sim.live.gateway.authentication import hashed
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.core_from_config import core_of_head, make_core, recorded_head
from sim.live.gateway.event_loop import loop_factory
from sim.live.gateway.service import Service
from sim.live.gateway.settings import Settings
from sim.live.gateway.settings_from_config import make_settings
from sim.live.gateway.shadowing import Shadowing
from sim.live.observability.observer import RequestLog
from sim.live.observability.wiring import Observability
from sim.live.shared_state.response_owners import ResponseOwners

PROFILE = {
    "step_time": {"kind": "linear", "base_s": 0.006, "per_decode_sequence_s": 1.0e-4},
    "max_num_seqs": 16, "max_num_batched_tokens": 2048, "kv_blocks": 4000, "block_tokens": 16,
}  # fmt: skip
ENTITLEMENTS = (
    {"name": "chat", "tenant": "acme", "service_class": "guaranteed", "ttft_slo_s": 1.2, "baseline": {"slots": 6}},
    {"name": "chat-spot", "tenant": "acme", "service_class": "spot"},
    {"name": "batch", "tenant": "other", "service_class": "spot", "limit": {"slots": 2}},
    {"name": "filler", "tenant": "third", "service_class": "preemptible"},
)
TIMEOUTS = {"health_every_s": 0.05, "health_s": 1.0, "drain_s": 5.0}


def secret(name: str) -> str:
    """Return the key of an entitlement in tests."""
    return f"tp-secret-of-{name}-0123456789abcdef"


def head(*lines: str, path: str = "/v1/completions", key: str = "chat") -> bytes:
    """Return the head of a request in bytes, with these lines added."""
    first = [f"POST {path} HTTP/1.1", "host: x", f"authorization: Bearer {secret(key)}", *lines]
    return ("\r\n".join(first) + "\r\n\r\n").encode("latin-1")


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass(slots=True, eq=False)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        return self.json["error"]["code"]

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events, [DONE] left out."""
        data = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [json.loads(one) for one in data if one != "[DONE]"]


@dataclass(slots=True, eq=False)
class Gate:
    """A running gateway."""

    service: Service
    loop: asyncio.AbstractEventLoop
    port: int
    server: Any = None
    observability: Observability = None  # type: ignore[assignment]
    logs: list[RequestLog] = field(default_factory=list)
    events: list[tuple[float, Event, Sequence[Instruction]]] = field(default_factory=list)
    broken: list[Violation] = field(default_factory=list)
    checker: Checker | None = None
    owners: ResponseOwners | None = None

    def ended(self, log: RequestLog) -> None:
        self.logs.append(log)

    def record(self, now_s: float, event: Event, instructions: Sequence[Instruction]) -> None:
        self.events.append((now_s, event, instructions))

    def check(self, now_s: float, event: Event, instructions: Sequence[Instruction]) -> None:
        """Hold the core to its invariants (`policies.invariants`)."""
        if self.service is None:  # it is being put together
            return
        if self.checker is None:
            self.checker = Checker(self.broken.append, every_events=50)
        self.checker.after(self.service.gateway.core, event, now_s, instructions)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        """Return a bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ask(
        self, body: object = None, *, path: str = "/v1/completions", method: str = "POST", key: str | None = "chat",
        headers: Mapping[str, str] | None = None, timeout_s: float = 10.0, **fields: Any,
    ) -> Answer:
        """Ask on a connection of its own. ``fields`` go into a plain request where ``body`` is None."""
        if body is None and method == "POST":
            body = {"model": "tiny", "prompt": "a b c", "max_tokens": 4, **fields}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"authorization": f"Bearer {secret(key)}"} if key is not None else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, data, {**sent, "content-type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def call(self, what: Callable[[], Any]) -> Any:
        """Run something on the gateway's loop and return its result."""

        async def run() -> Any:
            return what()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def until(self, what: Callable[[], Any], timeout_s: float = 5.0) -> None:
        """Wait until something is true on the gateway's loop."""
        deadline_s = time.monotonic() + timeout_s
        while not self.call(what):
            assert time.monotonic() < deadline_s, "it did not become true in time"
            time.sleep(0.005)

    def balanced(self) -> None:
        """Check that nothing is on its way and that every book is at zero."""
        self.until(lambda: not len(self.service.in_flight))
        self.call(self._audit)

    def _audit(self) -> None:
        core = self.service.gateway.core
        if self.checker is not None:
            self.checker.check_all(core, self.service.gateway.now_s())
        assert not self.broken, "; ".join(map(str, self.broken))
        assert not core.pool.in_flight
        for book in core.pool.entitlements.values():
            assert (book.in_flight, book.reserved_tokens) == (0, 0), book
        for replica in core.pool.replicas:
            assert (replica.in_flight, replica.outstanding_tokens) == (0, 0), replica
        assert getattr(core.policy, "_reserved_tokens", 0) == 0
        assert not getattr(core.policy, "_charges", None)
        assert not getattr(core.policy, "_preemptible", None)
        assert not self.service.gateway.requests
        admitted = sum(book.admitted for book in core.pool.entitlements.values())
        refused = sum(book.refused for book in core.pool.entitlements.values())
        asked = sum(type(event).__name__ == "Arrived" for _, event, _ in self.events)
        assert admitted + refused + core.withdrawn == asked


def config(stand_ins: Sequence[StandIn], **changed: Any) -> dict[str, Any]:
    """Return a configuration; what is given replaces, in mappings adds to, what stands there."""
    entitlements = changed.pop("entitlements", ENTITLEMENTS)
    pool = {"profile": PROFILE, "entitlements": list(entitlements), **changed.pop("pool", {})}
    return {
        "version": 1,
        "listen": {"port": 0, **changed.pop("listen", {})},
        "pool": pool,
        "policy": changed.pop("policy", "none"),
        "upstreams": [{"name": f"up{n}", "base_url": one.base_url} for n, one in enumerate(stand_ins)],
        "keys": [
            {"name": f"key-{one['name']}", "entitlement": one["name"], "sha256": hashed(secret(one["name"])).hex()}
            for one in entitlements
        ],
        "timeouts": {**TIMEOUTS, **changed.pop("timeouts", {})},
        **changed,
    }


@contextmanager
def gateway(
    *stand_ins: StandIn, owners: Callable[[Settings], ResponseOwners] | None = None, **changed: Any
) -> Iterator[Gate]:
    """Run a gateway before stand-ins, and check its books at the end; ``owners`` makes what it shares of responses."""
    read = parse_config(config(stand_ins, **changed), "test.yaml")
    settings, core = make_settings(read), make_core(read)
    started, stopped = threading.Event(), threading.Event()
    found: list[Gate] = []
    servers: list[Any] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            gate = Gate(
                None, asyncio.get_running_loop(), listening.getsockname()[1],  # type: ignore[arg-type]
            )
            gate.owners = None if owners is None else owners(settings)
            gate.service = await Service.open(
                settings, core, observers=[gate], recorders=[gate.record, gate.check], owners=gate.owners
            )
            found.append(gate)
            server = gate.service.server()
            servers.append(server)
            gate.server = server

            async def tell() -> None:
                while not server.started:
                    await asyncio.sleep(0.001)
                started.set()

            telling = asyncio.create_task(tell())
            try:
                async with Observability(gate.service) as gate.observability:
                    await server.serve([listening])
                    await telling
            finally:
                await gate.service.close()
                if gate.owners is not None:
                    await gate.owners.close()

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            started.set()
            stopped.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(10), "the gateway did not start"
    if failed:
        raise failed[0]
    (gate,) = found
    try:
        yield gate
        if not stopped.is_set():
            gate.balanced()
    finally:
        if not stopped.is_set():
            servers[0].stop()
        thread.join(15)
        assert not thread.is_alive(), "the gateway did not stop"
        if failed:
            raise failed[0]


def shadowed(gate: Any, given: dict[str, Any], tell: Callable[[Any], None]) -> tuple[Shadowing, dict[str, Any]]:
    """Put the shadows of a configuration beside a running gateway's core, as a reload does."""
    read = parse_config(given, "test.yaml")
    shadowing = Shadowing(lambda found, leaving: core_of_head(found, "test.yaml", leaving), tell)
    about = recorded_head(read)

    def change() -> None:
        service = gate.service
        core, said = shadowing.change_over(about, service.gateway.core, service.gateway.now_s())
        service.gateway.core = core
        service.gateway.carry_out(said)

    gate.call(change)
    return shadowing, about
