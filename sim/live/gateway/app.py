"""The gateway as an ASGI application: who asks, for what, may they, and on to the relay.

The paths of the OpenAI API are plain ASGI, since every request goes through here; all other pages (health, metrics, the
admin page) are Starlette routes that `Application.routes` collects.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from policies.api import Arrived, RequestView
from sim.live.gateway.authentication import Identity
from sim.live.gateway.core_driver import AsyncGateway
from sim.live.gateway.error_responses import ApiError, allowance_headers
from sim.live.gateway.headers import client_id
from sim.live.gateway.in_flight import Cut, Exchange, InFlightTable
from sim.live.gateway.openapi import description
from sim.live.gateway.prompt_tokens import PromptCounter
from sim.live.gateway.relay import Outgoing, Relay, Send
from sim.live.gateway.request_body import Endpoint, ParsedBody, endpoint_of, parse_body, read_json, upstream_body
from sim.live.gateway.settings import Settings
from sim.live.observability.observer import Ended
from sim.live.replicas.upstreams import Upstreams

LOG = logging.getLogger("tokenpools.app")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_LINGER_BYTES = 256 * 2**20
_LINGER_S = 5.0
_MOST_ATTEMPTS = 100
_NEVER_PASSED = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""They change the upstream for everybody. [choice]"""


class Application:
    """Everything the server serves.

    Attributes
    ----------
    routes : pages beside the API; add to it before the first request.
    draining : set when the gateway was told to stop: readyz says so.
    waits_for : says what else keeps the gateway from being ready; empty for nothing.
    """

    def __init__(
        self, settings: Settings, *, gateway: AsyncGateway, in_flight: InFlightTable, upstreams: Upstreams,
        relay: Relay, counter: PromptCounter,
    ) -> None:
        self.settings = settings
        self.identity = Identity(settings.keys, settings.entitlements, settings.class_header)
        self.gateway = gateway
        self.in_flight = in_flight
        self.upstreams = upstreams
        self.draining = False
        self.waits_for: Callable[[], str] = str
        self.routes: list[BaseRoute] = [
            Route("/healthz", self._healthz), Route("/readyz", self._readyz), Route("/openapi.json", self._openapi),
        ]  # fmt: skip
        self._relay = relay
        self._counter = counter
        self._pages: Starlette | None = None
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if self._passes(path):
            await self._exchange(scope, receive, send)
        else:
            if self._pages is None:
                self._pages = Starlette(routes=self.routes, exception_handlers={404: _nothing, 405: _not_so})
            await self._pages(scope, receive, send)

    def _passes(self, path: str) -> bool:
        """Return whether a path is the upstream's: as it stands, with no way out of it."""
        return (
            path.startswith(self.settings.passthrough) and path not in _NEVER_PASSED and not path.endswith("/")
            and ".." not in path and "//" not in path and "\\" not in path
        )

    async def _healthz(self, request: Request) -> Response:  # noqa: ARG002
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> Response:  # noqa: ARG002
        if self.draining:
            return PlainTextResponse("draining\n", 503)
        if missing := self.waits_for():
            return PlainTextResponse(f"{missing}\n", 503)
        ready, known = len(self.upstreams.ready()), len(self.upstreams.replicas)
        return PlainTextResponse(f"{ready} of {known} replicas ready\n", 200 if ready else 503)

    async def _openapi(self, request: Request) -> Response:  # noqa: ARG002
        models = self.settings.models or sorted(self.upstreams.models())
        return JSONResponse(description(self.settings.class_header, models))

    # ----------------------------------------------------------------------------------------------------------------

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request of the API, whatever becomes of it."""
        exchange = self.in_flight.open(scope["path"])
        client = scope.get("extensions", {}).get("tokenpools")
        try:
            await self._to_an_end(exchange, scope, receive, send)
        except asyncio.CancelledError:
            if client is not None:  # it would not even read the error
                client.abort()
            if exchange.cut_by is None:
                raise
            exchange.uncut()
        finally:
            if client is not None:
                client.left = None
            self._relay.cancel(exchange)
            self.in_flight.close(exchange)

    async def _to_an_end(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request and turn what goes wrong into an answer."""
        try:
            try:
                await self._serve(exchange, scope, receive, send)
            except asyncio.CancelledError:
                if exchange.cut_by is None:  # the server is told to stop, and will not wait
                    raise
                if not await self._relay.settle_cut(exchange, send):
                    _abort(scope)
        except ApiError as problem:
            await self._answer(exchange, problem, send)
        except Exception:
            LOG.exception("%s: an error of the gateway's own", exchange.request_id)
            self._relay.cancel(exchange)
            exchange.error, exchange.outcome = "internal_error", Ended.FAILED
            if exchange.started:
                _abort(scope)
            else:
                failed = ApiError(500, "internal_error", "The gateway failed.", kind="server_error", may_retry=True)
                await self._answer(exchange, failed, send)

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        raw_headers = scope["headers"]
        headers = dict(raw_headers)
        exchange.client_request_id = client_id(headers)
        key, spec = self.identity.identify(headers)
        exchange.key_name, exchange.tenant, exchange.entitlement = key.name, spec.tenant, spec.name
        exchange.service_class = spec.service_class
        exchange.attempt = _attempt(headers)
        body = await self._read_body(exchange, headers, receive)
        path, method = scope["path"], scope["method"]
        _watch(exchange, scope, receive)
        raw_path = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            raw_path = f"{raw_path}?{scope['query_string'].decode('latin-1')}"
        endpoint = endpoint_of(path)
        if method in ("GET", "HEAD", "OPTIONS"):
            if endpoint.read_by_gateway:
                raise ApiError(405, "method_not_allowed", f"{path} takes POST.")
            await self._relay.look_up(exchange, method, raw_path, raw_headers, send)
            return
        try:
            parsed = self._parse_body(endpoint, body)
            counted = None if parsed is None else await self._counter.count(parsed.fields)
        except RecursionError:
            raise ApiError(400, "invalid_json", "The body is nested too deeply.") from None
        exchange.prompt_tokens = max(1, len(body) // 4) if counted is None else counted
        choices = 1
        most: int | None = 0
        if parsed is None:
            most = None if endpoint.generates else 0
        else:
            exchange.model, exchange.stream, choices = parsed.model, parsed.stream, parsed.choices
            most = parsed.max_output_tokens
            if most is not None:
                most *= choices
            elif choices > 1:
                most = self.settings.default_max_output_tokens * choices
        exchange.max_output_tokens = most
        view = RequestView(
            exchange.request_id, spec.name, spec.tenant, exchange.prompt_tokens, most, exchange.attempt,
            0 if parsed is None else parsed.priority,
        )
        outgoing = Outgoing(
            method=method, raw_path=raw_path, headers=raw_headers, choices=choices,
            body_for=(lambda *_: body) if parsed is None else partial(upstream_body, body, endpoint, parsed),
            hide_usage=parsed is not None and parsed.hide_usage,
        )
        exchange.arrived = True
        self.gateway.send(Arrived(view))
        await self._relay.serve(exchange, outgoing, send)

    def _parse_body(self, endpoint: Endpoint, body: bytes) -> ParsedBody | None:
        """Return what a body asks for; None where it is for a path that the gateway need not understand."""
        if not endpoint.read_by_gateway:
            return None
        parsed = parse_body(endpoint, read_json(body), self.settings.limits.choices)
        known = self.settings.models or self.upstreams.models()
        if known and parsed.model not in known:
            said = f"The model {parsed.model[:100]!r} is not served here."
            raise ApiError(404, "model_not_found", said, param="model")
        return parsed

    async def _read_body(self, exchange: Exchange, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Return the body, if it is not too large and comes in time."""
        limit = self.settings.limits.body_bytes
        exchange.wait(self._loop.time() + self.settings.timeouts.body_s, Cut.BODY_SLOW)
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            await self._refuse_body(exchange, headers, receive, limit)
        message = await receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body"):
            if message["type"] == "http.disconnect":
                self._left(exchange)
            return body
        parts, size = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                self._left(exchange)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                await self._refuse_body(exchange, headers, receive, limit)
        return b"".join(parts)

    async def _answer(self, exchange: Exchange, problem: ApiError, send: Send) -> None:
        """Send an error."""
        exchange.started = True
        exchange.http_status, exchange.retry_after_s = problem.status, problem.retry_after_s
        exchange.error = exchange.error or problem.code
        exchange.wait(self._loop.time() + self.settings.timeouts.client_stall_s, Cut.CLIENT_STALLED)
        body = problem.body()
        headers = problem.headers()
        headers += [(b"content-length", b"%d" % len(body)), (b"x-request-id", exchange.request_id.encode())]
        if exchange.entitlement and problem.status in (429, 503):
            headers += allowance_headers(self.gateway.core.allowance(exchange.entitlement, self.gateway.now_s()))
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _left(self, exchange: Exchange) -> NoReturn:
        exchange.cut_by = Cut.CLIENT_LEFT
        raise asyncio.CancelledError

    async def _refuse_body(
        self, exchange: Exchange, headers: dict[bytes, bytes], receive: Receive, limit: int
    ) -> None:
        """Answer 413. What still comes is read and thrown away for a while: most clients read no answer before."""
        if b"expect" not in headers:
            exchange.wait(self._loop.time() + _LINGER_S + 1, Cut.BODY_SLOW)
            read = 0
            try:
                async with asyncio.timeout(_LINGER_S):
                    while read < _LINGER_BYTES:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            self._left(exchange)
                        read += len(message.get("body", b""))
                        if not message.get("more_body"):
                            break
            except TimeoutError:
                pass
        raise ApiError(413, "request_too_large", f"The body is larger than {limit} bytes.", close=True)


def _attempt(headers: dict[bytes, bytes]) -> int:
    """Return which attempt this is, as OpenAI's clients count their retries."""
    said = headers.get(b"x-stainless-retry-count", b"0")
    return 1 + min(_MOST_ATTEMPTS, int(said)) if said.isdigit() and len(said) < 6 else 1


def _watch(exchange: Exchange, scope: Scope, receive: Receive) -> None:
    """Cut the request when its client leaves."""
    client = scope.get("extensions", {}).get("tokenpools")
    if client is not None:
        client.left = partial(exchange.cut, Cut.CLIENT_LEFT)
        return

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        exchange.cut(Cut.CLIENT_LEFT)

    scope["tokenpools.watcher"] = asyncio.get_running_loop().create_task(listen())  # kept as long as the request


def _abort(scope: Scope) -> None:
    """Close the connection without regard to what is not written yet."""
    client = scope.get("extensions", {}).get("tokenpools")
    if client is not None:
        client.abort()


async def _nothing(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return _page(ApiError(404, "not_found", f"There is nothing at {request.url.path[:200]!r}."))


async def _not_so(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return _page(ApiError(405, "method_not_allowed", f"{request.url.path[:200]} does not take {request.method}."))


def _page(problem: ApiError) -> Response:
    return Response(problem.body(), problem.status, {a.decode(): b.decode() for a, b in problem.headers()})

