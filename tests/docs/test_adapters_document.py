"""The examples of docs/adapters.md, as they stand there."""

from __future__ import annotations

import asyncio
import csv
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from sim.adapters.admission.config import gate_config
from tokenpools import Gate

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT = (DOCS / "adapters.md").read_text()
CONFIG = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)[0])
ASK = {"prompt": "a prompt of some words", "max_tokens": 4}


def example(module: str) -> dict[str, Any]:
    (code,) = (one for one in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if f"from {module} import" in one)
    found: dict[str, Any] = {}
    exec(compile(code, f"docs/adapters.md ({module})", "exec"), found)
    return found


def empty(gate: Gate) -> bool:
    return not len(gate) and not any(book.reserved_tokens for book in gate.core.pool.entitlements.values())


@pytest.mark.parametrize("name", ["doors", "door-parity"])
def test_the_tables_are_those_that_make_doors_wrote(name: str) -> None:
    with (DOCS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = [f"| {' | '.join(row)} |" for row in csv.reader(file)]
    assert len(rows) == 5
    assert "\n".join([rows[0], "|" + "---|" * (rows[0].count("|") - 1), *rows[1:]]) in DOCUMENT


def test_the_configuration_is_one() -> None:
    assert gate_config(CONFIG).held_s == 30


def test_aiohttp() -> None:
    async def go() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def ask(replica_id: int, asked: Any) -> dict[str, Any]:
            begun.set()
            await go_on.wait()
            return {"replica": replica_id, "usage": {"prompt_tokens": 5, "completion_tokens": 4}}

        app: web.Application = example("aiohttp")["application"](CONFIG, ask)
        async with TestClient(TestServer(app)) as client:
            first = asyncio.create_task(client.post("/complete", json=ASK, headers={"x-tenant": "other"}))
            await begun.wait()
            refused = await client.post("/complete", json=ASK, headers={"x-tenant": "other"})
            assert (refused.status, "retry-after" in refused.headers) == (429, True)
            unknown = await client.post("/complete", json=ASK, headers={"x-tenant": "nobody"})
            assert unknown.status == 403
            go_on.set()
            assert (await first).status == 200
            assert empty(app["gate"])
            assert app["gate"].core.pool.entitlements["batch"].worked_tokens == 9

    with pytest.warns(web.NotAppKeyWarning):
        asyncio.run(go())


def test_fastapi() -> None:
    fastapi = pytest.importorskip("fastapi")
    assert fastapi.__version__

    async def words_of(replica_id: int, asked: Any) -> AsyncIterator[str]:
        for number in range(asked["max_tokens"]):
            if asked["prompt"] == "break":
                raise ConnectionResetError
            yield f"w{number} "

    async def ask(app: Any, tenant: str, body: bytes) -> list[Any]:
        sent: list[Any] = []
        incoming = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return incoming.pop() if incoming else await asyncio.Future()

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"x-tenant", tenant.encode()), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "path": "/stream", "raw_path": b"/stream", "query_string": b"", "headers": headers, "scheme": "http",
        }  # fmt: skip
        await app(scope, receive, send)
        return sent

    async def go() -> None:
        app = example("fastapi")["application"](CONFIG, words_of)
        async with app.router.lifespan_context(app):
            gate = app.state.gate
            sent = await ask(app, "other", b'{"prompt": "some words", "max_tokens": 3}')
            assert b"".join(one.get("body", b"") for one in sent) == b"w0 w1 w2 "
            assert gate.core.pool.entitlements["batch"].worked_tokens == 5
            with pytest.raises(BaseException):  # noqa: B017, PT011 - a group, or what is in it: it is the example's
                await ask(app, "other", b'{"prompt": "break", "max_tokens": 3}')
            assert empty(gate)
            async with gate.admit(tenant="other", prompt_tokens=1, max_tokens=1):
                refused = await ask(app, "other", b'{"prompt": "some words", "max_tokens": 3}')
            assert refused[0]["status"] == 429
            assert b"retry-after" in dict(refused[0]["headers"])
            assert empty(gate)

    asyncio.run(go())
