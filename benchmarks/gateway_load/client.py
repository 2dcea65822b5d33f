"""A client that costs little: keep-alive connections, fixed requests, times by the monotonic clock. Prints JSON.

    python -m benchmarks.gateway_load.client MODE PORT [--key KEY] [--connections N] [--seconds S] ...

Modes: ``closed`` (each connection asks again as soon as it is answered), ``paced`` (requests at a fixed rate, each on a
free connection), ``streams`` (so many streams at a time, each event's delay since it was written), ``idle`` (streams
that stay open; says when all of them have had their first event, and waits for a line on stdin).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import httptools
import uvloop

_STAMP = re.compile(rb'"content":" t(\d+)"')


class Connection(asyncio.Protocol):
    """Asks one request at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.on_done: Callable[[Connection], None] = lambda _: None
        self.on_data: Callable[[Connection, bytes], None] | None = None
        self.began_s = 0.0
        self.bad = 0

    def connection_made(self, transport: Any) -> None:
        """Remember where to write."""
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Count it: nobody should close."""
        self.bad += 1

    def ask(self, request: bytes, due_s: float | None = None) -> None:
        """Send a request; its latency counts from ``due_s``, or from now."""
        self.began_s = time.monotonic() if due_s is None else due_s
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Take a part of an answer."""
        if self.on_data is not None:
            self.on_data(self, body)

    def on_message_complete(self) -> None:
        """Take note of the end of an answer."""
        if self._parser.get_status_code() != 200:
            self.bad += 1
        self._parser = httptools.HttpResponseParser(self)
        self.on_done(self)


def request(port: int, key: str, *, tokens: int = 9, gap_ms: int = 0, stream: bool = False) -> bytes:
    """Return a request in bytes."""
    body = {
        "model": "tiny", "max_tokens": tokens, "user": str(gap_ms), "stream": stream,
        "messages": [{"role": "system", "content": "You are a helpful assistant. " * 4},
                     {"role": "user", "content": "Say something that is always the same, please. " * 8}],
    }  # fmt: skip
    data = json.dumps(body).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    ).encode() + data


async def connect(port: int, count: int) -> list[Connection]:
    """Return so many connections."""
    loop = asyncio.get_running_loop()
    made = []
    for first in range(0, count, 200):
        some = range(first, min(count, first + 200))
        made += await asyncio.gather(*(loop.create_connection(Connection, "127.0.0.1", port) for _ in some))
    return [protocol for _, protocol in made]


async def closed(args: argparse.Namespace) -> dict[str, Any]:
    """Ask as fast as the answers come."""
    connections = await connect(args.port, args.connections)
    asked = request(args.port, args.key)
    latencies: list[float] = []
    counting = False

    answers = 0

    def again(connection: Connection) -> None:
        nonlocal answers
        answers += 1
        if counting:
            latencies.append(time.monotonic() - connection.began_s)
        connection.ask(asked)

    for connection in connections:
        connection.on_done = again
        connection.ask(asked)
    await asyncio.sleep(args.warm_up)
    counting, began_s = True, time.monotonic()
    await asyncio.sleep(args.seconds)
    counting, took_s = False, time.monotonic() - began_s
    return {"requests_per_s": len(latencies) / took_s, "bad": sum(one.bad for one in connections),
            "answers": answers, "latency_ms": _spread(latencies)}


async def paced(args: argparse.Namespace) -> dict[str, Any]:
    """Ask at a fixed rate; what finds no free connection waits for one, and its wait counts."""
    connections = await connect(args.port, args.connections)
    asked, free = request(args.port, args.key), list(connections)
    latencies: list[float] = []
    late = 0

    def done(connection: Connection) -> None:
        latencies.append(time.monotonic() - connection.began_s)
        free.append(connection)

    loop = asyncio.get_running_loop()
    for connection in connections:
        connection.on_done = done
    next_s, count = loop.time(), int(args.rate * (args.seconds + args.warm_up))
    for _ in range(count):
        next_s += 1 / args.rate
        await asyncio.sleep(max(0.0, next_s - loop.time()))
        due_s = time.monotonic()
        while not free:
            late += 1
            await asyncio.sleep(0.001)
        free.pop().ask(asked, due_s)
    await asyncio.sleep(1.0)
    kept = latencies[int(args.rate * args.warm_up):]
    return {"requests": len(kept), "missing": count - len(latencies), "late": late,
            "bad": sum(one.bad for one in connections), "latency_ms": _spread(kept)}


async def streams(args: argparse.Namespace) -> dict[str, Any]:
    """Keep so many streams open and time every event on its way."""
    connections = await connect(args.port, args.connections)
    asked = request(args.port, args.key, tokens=args.tokens, gap_ms=args.gap_ms, stream=True)
    firsts: list[float] = []
    others: list[float] = []
    first_of: dict[Connection, bool] = {}
    counting = False
    events = 0

    def data(connection: Connection, body: bytes) -> None:
        nonlocal events
        now_ns = time.monotonic_ns()
        for stamp in _STAMP.findall(body):
            events += 1
            if first_of.pop(connection, False):
                if counting:
                    firsts.append(time.monotonic() - connection.began_s)
            elif counting:
                others.append((now_ns - int(stamp)) / 1e9)

    def again(connection: Connection) -> None:
        first_of[connection] = True
        connection.ask(asked)

    for connection in connections:
        connection.on_done, connection.on_data = again, data
        again(connection)
        await asyncio.sleep(args.tokens * args.gap_ms / 1000 / args.connections)  # spread evenly over a stream's length
    await asyncio.sleep(args.warm_up)
    counting = True
    await asyncio.sleep(args.seconds)
    return {"bad": sum(one.bad for one in connections), "events": events, "ttft_ms": _spread(firsts),
            "event_ms": _spread(others)}


async def idle(args: argparse.Namespace) -> dict[str, Any]:
    """Open streams that say one word and then nothing for long."""
    asked = request(args.port, args.key, tokens=2, gap_ms=3_600_000, stream=True)
    started: set[Connection] = set()
    connections: list[Connection] = []
    while len(connections) < args.connections:  # as fast as they are taken, and no faster
        some = await connect(args.port, min(50, args.connections - len(connections)))
        connections += some
        for connection in some:
            connection.on_data = lambda one, _: started.add(one)
            connection.ask(asked)
        while len(started) < len(connections) - 200:
            await asyncio.sleep(0.005)
    for _ in range(600):
        if len(started) == len(connections):
            break
        await asyncio.sleep(0.1)
    print(json.dumps({"open": len(started), "bad": sum(one.bad for one in connections)}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return {}


def _spread(seconds: list[float]) -> dict[str, float]:
    """Return quantiles in milliseconds, and of how many."""
    ordered = sorted(seconds)
    if not ordered:
        return {"n": 0}
    at = {f"p{share * 100:g}": ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.9, 0.99)}
    return {"n": len(ordered), **{name: round(value * 1000, 4) for name, value in at.items()}}


def main() -> None:
    """Run one mode."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["closed", "paced", "streams", "idle"])
    parser.add_argument("port", type=int)
    parser.add_argument("--key", default="none")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--gap-ms", type=int, default=50)
    args = parser.parse_args()
    run = {"closed": closed, "paced": paced, "streams": streams, "idle": idle}[args.mode]
    print(json.dumps(uvloop.run(run(args))))


if __name__ == "__main__":
    main()
