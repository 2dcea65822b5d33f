"""The model servers of a world, in memory: slow, lying, breaking off, gone, or out of one gateway's reach."""

from __future__ import annotations

import asyncio
import json
import random
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from parity.virtual_loop import VirtualLoop

from sim.live.replicas.http_client import BrokenBodyError, ConnectError

_NONSENSE = (b"data: 1\n\n", b"data: [[[\n\n", b"\x00\xff\xfe", b'data: {"error":{}}\n\n')


class Content:
    """The body of an answer, piece by piece; a piece that is an exception breaks off."""

    def __init__(self, pieces: list[tuple[float, Any]]) -> None:
        self._pieces = pieces

    def at_eof(self) -> bool:
        return not self._pieces

    async def readany(self, through: Any = None) -> bytes:
        while self._pieces:
            wait_s, piece = self._pieces.pop(0)
            await asyncio.sleep(wait_s)
            if isinstance(piece, Exception):
                self._pieces.clear()
                raise piece
            if through is None or not through(bytes(piece)):
                return bytes(piece)
        return b""

    async def read(self, _most: int = -1) -> bytes:
        return await self.readany()


class Answer:
    def __init__(self, status: int, kind: str, pieces: list[tuple[float, Any]], more: dict[str, str]) -> None:
        self.status, self.content_type = status, kind
        self.headers = {"content-type": kind, **more}
        self.raw_headers = tuple((name.encode(), value.encode()) for name, value in self.headers.items())
        self.content = Content(pieces)

    def close(self) -> None:
        pass

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class Upstreams:
    """The model servers of a world: how each is, and who cannot reach which."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, number: int) -> None:
        self.loop, self.rng = loop, rng
        self.down: set[int] = set()
        self.slow: set[int] = set()
        self.blind: set[tuple[str, int]] = set()
        self.lies = 0.0
        self.number = number

    def client(self, gateway: str) -> Any:
        """What one gateway asks them through, in place of an `HttpClient`."""

        async def close() -> None:
            pass

        return SimpleNamespace(request=lambda *a, **k: self._request(gateway, *a, **k), close=close)

    async def _request(self, gateway: str, method: str, url: str, *, headers: Any = (), body: bytes = b"") -> Answer:
        at = urlsplit(url)
        which, rng = int(at.port or 0) - 9000, self.rng
        await asyncio.sleep(rng.uniform(0.0005, 0.005))
        if which in self.down or (gateway, which) in self.blind:
            raise ConnectError(111, "refused")
        if which in self.slow:
            await asyncio.sleep(rng.uniform(0.5, 4.0))
        return self._answer(at.path, body)

    def _answer(self, path: str, data: Any) -> Answer:
        rng = self.rng
        if path == "/health":
            return Answer(200, "text/plain", [(0.0, b"")], {})
        if path == "/v1/models":
            return Answer(200, "application/json", [(0.0, b'{"data":[{"id":"tiny","max_model_len":2000}]}')], {})
        if path == "/metrics":
            bad = rng.random() < self.lies
            text = b"vllm:num_requests_running NaN\nvllm:num_requests_waiting -3\n" if bad else (
                b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.1\n"
            )
            return Answer(200, "text/plain", [(0.0, text)], {})
        try:
            fields = json.loads(data)
        except (TypeError, ValueError):
            fields = {}
        return self._generate(fields if isinstance(fields, dict) else {})

    def _generate(self, fields: dict[str, Any]) -> Answer:
        rng = self.rng
        tokens = rng.randint(1, 12)
        usage: Any = {"prompt_tokens": rng.randint(1, 40), "completion_tokens": tokens, "total_tokens": 50}
        what = rng.random() if rng.random() < self.lies else 1.0
        if what < 0.15:
            return Answer(rng.choice((500, 503, 429, 404, 302, 999)), "application/json", [(0.01, b'{"error":{}}')],
                          {"retry-after": rng.choice(("0", "-3", "soon", "86400000"))})  # fmt: skip
        if what < 0.35:
            usage = rng.choice((
                [], {"completion_tokens": -5}, {"completion_tokens": 2**40, "prompt_tokens": 2**40}, "x", None,
                {"completion_tokens": 1e300, "prompt_tokens": -1},
            ))  # fmt: skip
        if not fields.get("stream"):
            body = json.dumps({"choices": [{"text": "x" * tokens, "finish_reason": "stop"}], "usage": usage}).encode()
            pieces: list[tuple[float, Any]] = [(0.02 * tokens, body)]
            if what < 0.5:
                pieces = [(0.05, body[: len(body) // 2]), (0.05, BrokenBodyError("gone"))]
            return Answer(200, "application/json", pieces, {})
        one = b'data: {"choices":[{"index":0,"text":"x","finish_reason":null}]}\n\n'
        pieces = [(rng.uniform(0.005, 0.06), one) for _ in range(tokens)]
        if what < 0.45:
            pieces.append((0.01, BrokenBodyError("broke off")))
        elif what < 0.55:
            pass  # a plain end, and no [DONE]
        elif what < 0.62:
            pieces.append((100.0, b"data: too late\n\n"))
        elif what < 0.7:
            pieces.append((0.01, rng.choice(_NONSENSE)))
            pieces.append((0.01, b"data: [DONE]\n\n"))
        else:
            last = {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}], "usage": usage}
            pieces.append((0.01, b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n"))
        return Answer(200, "text/event-stream", pieces, {})
