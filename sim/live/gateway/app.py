"""The gateway as an ASGI application: who asks, for what, may they, and on to the relay.

The paths of the OpenAI API are plain ASGI, since every request goes through here; all other pages (health, metrics, the
admin page) are Starlette routes that `Application.routes` collects.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import time
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from policies.api import Arrived, RequestView
from sim.live.gateway.authentication import Identity
from sim.live.gateway.core_driver import AsyncGateway
from sim.live.gateway.cors import Cors
from sim.live.gateway.endpoints import Endpoints, stored_id
from sim.live.gateway.error_responses import ApiError, allowance_headers, budget_headers
from sim.live.gateway.headers import Headers, client_id, single_headers
from sim.live.gateway.in_flight import AbortReason, Exchange, InFlightTable
from sim.live.gateway.intake import Intake, Receive
from sim.live.gateway.media import sound_sequences
from sim.live.gateway.openapi import description
from sim.live.gateway.prompt_text import session_name, session_said
from sim.live.gateway.prompt_tokens import PromptCounter
from sim.live.gateway.relay import Relay
from sim.live.gateway.replies import Outgoing
from sim.live.gateway.request_body import Endpoint, upstream_body
from sim.live.gateway.settings import Settings
from sim.live.gateway.settling import Send
from sim.live.observability.observer import Ended
from sim.live.replicas.upstreams import Upstreams

LOG = logging.getLogger("tokenpools.app")

Scope = MutableMapping[str, Any]

_MOST_ATTEMPTS = 100
_LONGEST_SOUND = 11
"""So many times as long is sound of a codec's lowest rate (Opus: 6 kbit/s) as one of 64 kbit/s, by which bytes are
counted before an answer tells the length."""


class Application:
    """Everything the server serves.

    Attributes
    ----------
    routes : pages beside the API; add to it before the first request.
    draining : set when the gateway was told to stop: readyz says so.
    wall_clock : the time of the calendar that budgets go by, in seconds since 1970.
    unavailable : says why nobody is served now; None where they are.
    waits_for : says what else keeps the gateway from being ready; empty for nothing.
    """

    def __init__(
        self, settings: Settings, *, gateway: AsyncGateway, in_flight: InFlightTable, upstreams: Upstreams,
        relay: Relay, counter: PromptCounter,
    ) -> None:
        self.settings = settings
        self.identity = Identity(settings.keys, settings.entitlements, settings.class_header)
        self.endpoints = Endpoints(settings.paths)
        self.cors = Cors(settings.cors_origins)
        self.intake = Intake(settings, counter, self._refuses_any)
        self.gateway = gateway
        self.in_flight = in_flight
        self.upstreams = upstreams
        self.draining = False
        self.wall_clock: Callable[[], float] = time.time
        self.waits_for: Callable[[], str] = str
        self.unavailable: Callable[[], ApiError | None] = _available
        self.routes: list[BaseRoute] = [
            Route("/healthz", self._healthz), Route("/readyz", self._readyz), Route("/openapi.json", self._openapi),
            Route("/health", self._readyz),  # as at vLLM, which clients ask before they begin (guideLLM)
        ]  # fmt: skip
        self._relay = relay
        self._pages: Starlette | None = None
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            return
        raw_path = scope["raw_path"].decode("latin-1")
        endpoint = self.endpoints.find(raw_path)
        if endpoint is not None:
            scope["tokenpools.endpoint"] = endpoint
            headers = dict(scope["headers"])
            if scope["method"] == "OPTIONS":
                await _options(self.cors.preflight(endpoint.methods, headers), send)
                return
            origin = headers.get(b"origin")
            await self._exchange(scope, receive, send if origin is None else self.cors.through(origin, send))
        else:
            if self._pages is None:
                self._pages = Starlette(routes=self.routes, exception_handlers={404: _nothing, 405: _not_so})
            await self._pages(scope, receive, send)

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

    def _refuses_any(self, entitlement: str, sequences: int) -> bool:
        return self.gateway.core.refuses_any(entitlement, sequences, self.gateway.now_s())

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
            self._relay.settling.cancel(exchange)
            self.intake.budget.give_back(exchange)
            self.in_flight.close(exchange)

    async def _to_an_end(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request and turn what goes wrong into an answer."""
        try:
            try:
                await self._serve(exchange, scope, receive, send)
            except asyncio.CancelledError:
                if exchange.cut_by is None:  # the server is told to stop, and will not wait
                    raise
                if not await self._relay.settling.settle_cut(exchange, send):
                    _abort(scope)
        except ApiError as problem:
            await self._answer(exchange, problem, send)
        except Exception:
            LOG.exception("%s: an error of the gateway's own", exchange.request_id)
            self._relay.settling.cancel(exchange)
            exchange.error, exchange.outcome = "internal_error", Ended.FAILED
            if exchange.started:
                _abort(scope)
            else:
                failed = ApiError(500, "internal_error", "The gateway failed.", kind="server_error", may_retry=True)
                await self._answer(exchange, failed, send)

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        outgoing = await self._admission(exchange, scope, receive)
        await self._relay.serve(exchange, outgoing, send)

    async def _admission(self, exchange: Exchange, scope: Scope, receive: Receive) -> Outgoing:
        """Find out who asks for what, tell the core of it, and return what a replica would be asked for.

        Raises
        ------
        ApiError : it is nobody's, makes no sense, or there is nothing such.
        """
        raw_headers, method = scope["headers"], scope["method"]
        try:
            headers = single_headers(raw_headers, needs_host=scope["http_version"] == "1.1")
        except ValueError as error:
            raise ApiError(400, "invalid_request", str(error), close=True) from None
        exchange.client_request_id = client_id(headers)
        endpoint: Endpoint = scope["tokenpools.endpoint"]
        raw_path = scope["raw_path"].decode("latin-1")
        key, spec = self.identity.identify(headers, by_x_api_key=raw_path.startswith("/v1/messages"))
        exchange.key_name, exchange.tenant, exchange.entitlement = key.name, spec.tenant, spec.name
        exchange.service_class = spec.service_class
        exchange.attempt = _attempt(headers)
        if self.gateway.core.wants_sessions:
            exchange.session = session_said(headers.get)
        if (why := self.unavailable()) is not None:
            raise why
        if self.in_flight.identified(exchange) > self.settings.limits.requests_per_key:
            raise ApiError(
                429, "too_many_requests", "This key has as many requests on their way as it may.", kind="requests",
                retry_after_s=1.0, close=True,
            )  # fmt: skip
        if method not in endpoint.methods:
            raise ApiError(405, "method_not_allowed", f"{scope['path'][:200]} takes {', '.join(endpoint.methods)}.")
        body = (await self.intake.body(exchange, headers, receive)).removeprefix(codecs.BOM_UTF8)
        _watch(exchange, scope, receive)
        outgoing = Outgoing(
            method=method, raw_path=raw_path, headers=raw_headers, body_for=lambda *_: body, endpoint=endpoint,
            answers=1, show_usage=True, show_continuous=True, tenant=spec.tenant,
            let_go=partial(self.intake.budget.give_back, exchange),
        )  # fmt: skip
        if scope["query_string"]:
            outgoing.raw_path += f"?{scope['query_string'].decode('latin-1')}"
        if endpoint.owned:
            outgoing.replica_id = (await self._relay.stored.of(stored_id(raw_path), spec.tenant)).replica_id
        if endpoint.read:
            await self._read(exchange, outgoing, endpoint, body)
        else:
            exchange.prompt_tokens = self.intake.price(endpoint, len(body))
            exchange.max_output_tokens = endpoint.output_tokens if endpoint.generates else 0
            sequences = endpoint.sequences
            if endpoint.shape == "audio":
                exchange.most_prompt_tokens = _LONGEST_SOUND * exchange.prompt_tokens
                sequences = sound_sequences(exchange.prompt_tokens)
                if sequences > 1:
                    exchange.max_output_tokens = self.settings.default_max_output_tokens * sequences
                    exchange.most_output_tokens = exchange.max_output_tokens
            exchange.sequences = self._slots(sequences)
        exchange.arrived = True
        self.gateway.send(Arrived(self._view(exchange)))
        return outgoing

    async def _read(self, exchange: Exchange, outgoing: Outgoing, endpoint: Endpoint, body: bytes) -> None:
        """Read a body, and note what it asks for in the exchange and in what goes to a replica."""
        salted, core = self.settings.metering.cache_salt and endpoint.generates, self.gateway.core
        salt = self.identity.salt(exchange.tenant) if salted else None
        parsed = await self.intake.read(endpoint, body, (salt or "") if core.wants_prefixes else None)
        self._check_model(endpoint, parsed.model)
        exchange.prefix = parsed.prefix
        if core.wants_sessions and not exchange.session:
            exchange.session = parsed.session
        exchange.model, exchange.stream, exchange.background = parsed.model, parsed.stream, parsed.background
        before_tokens = 0
        if parsed.previous is not None:
            known = await self._relay.stored.of(parsed.previous, exchange.tenant)
            outgoing.replica_id, before_tokens = known.replica_id, known.tokens
        counted = await self.intake.count(endpoint, parsed, exchange.entitlement, len(body))
        most, context = parsed.max_output_tokens, self.gateway.core.max_context_tokens
        exchange.prompt_tokens = counted.tokens + before_tokens
        exchange.context_tokens = counted.least_tokens
        exchange.asked_priority = parsed.priority
        exchange.sequences = self._slots(parsed.sequences)
        outgoing.answers = parsed.sequences
        if not endpoint.generates:
            exchange.max_output_tokens = 0
        elif most is not None:
            if endpoint.refuses_long:
                exchange.context_tokens += most
            elif context is not None:
                most = min(most, context)
            exchange.max_output_tokens = most * parsed.sequences
        elif parsed.sequences > 1:
            exchange.max_output_tokens = self.settings.default_max_output_tokens * parsed.sequences
        if exchange.max_output_tokens is not None:
            exchange.most_output_tokens = exchange.max_output_tokens
        elif context is not None:
            exchange.most_output_tokens = context
        outgoing.show_usage, outgoing.show_continuous = parsed.wants_usage, parsed.wants_continuous
        parsed.drop_fields()
        default = self.settings.metering.write_default_limit

        def body_for(default_tokens: int, priority: int, continuous: bool) -> bytes:
            return upstream_body(
                body, endpoint, parsed, default_output_tokens=default_tokens if default else None, priority=priority,
                continuous=continuous, cache_salt=salt,
            )

        outgoing.body_for = body_for

    def _check_model(self, endpoint: Endpoint, model: str) -> None:
        known = self.settings.models or self.upstreams.models()
        if known and model not in known and (model or endpoint.needs_model):
            said = f"The model {model[:100]!r} is not served here."
            raise ApiError(404, "model_not_found", said, param="model")

    def _slots(self, sequences: int) -> int:
        """Return how many slots so many sequences take: a replica never runs more at a time than it has slots."""
        if sequences == 1:
            return 1
        return max(1, min(sequences, self.settings.capacity_of(1).slots))

    def _view(self, exchange: Exchange) -> RequestView:
        view = RequestView(
            exchange.request_id, exchange.entitlement, exchange.tenant, exchange.prompt_tokens,
            exchange.max_output_tokens, exchange.attempt, exchange.asked_priority, exchange.sequences,
            exchange.context_tokens, prefix=exchange.prefix, session=session_name(exchange.session, exchange.tenant),
        )  # fmt: skip
        if self.gateway.core.hierarchy is None:
            return view
        return view._replace(key=exchange.key_name, model=exchange.model, wall_s=self.wall_clock())

    async def _answer(self, exchange: Exchange, problem: ApiError, send: Send) -> None:
        """Send an error."""
        exchange.started = True
        exchange.http_status, exchange.retry_after_s = problem.status, problem.retry_after_s
        exchange.error = exchange.error or problem.code
        exchange.wait(self._loop.time() + self.settings.timeouts.client_stall_s, AbortReason.CLIENT_STALLED)
        body = problem.body(anthropic=exchange.endpoint.startswith("/v1/messages"))
        headers = problem.headers()
        headers += [(b"content-length", b"%d" % len(body)), (b"x-request-id", exchange.request_id.encode())]
        if exchange.entitlement and problem.status in (429, 503):
            core, now_s = self.gateway.core, self.gateway.now_s()
            headers += allowance_headers(core.allowance(exchange.entitlement, now_s))
            headers += budget_headers(core.budgets(exchange.entitlement, exchange.key_name, now_s))
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _available() -> None:
    """Return why nobody is served: for no reason."""


def _attempt(headers: dict[bytes, bytes]) -> int:
    """Return which attempt this is, as OpenAI's clients count their retries."""
    said = headers.get(b"x-stainless-retry-count", b"0")
    return 1 + min(_MOST_ATTEMPTS, int(said)) if said.isdigit() and len(said) < 6 else 1


def _watch(exchange: Exchange, scope: Scope, receive: Receive) -> None:
    """AbortReason the request when its client leaves."""
    client = scope.get("extensions", {}).get("tokenpools")
    if client is not None:
        client.left = partial(exchange.cut, AbortReason.CLIENT_LEFT)
        exchange.client = client
        return

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        exchange.cut(AbortReason.CLIENT_LEFT)

    scope["tokenpools.watcher"] = asyncio.get_running_loop().create_task(listen())  # kept as long as the request


def _abort(scope: Scope) -> None:
    """Close the connection without regard to what is not written yet."""
    client = scope.get("extensions", {}).get("tokenpools")
    if client is not None:
        client.abort()


async def _options(headers: Headers, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _nothing(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return _page(ApiError(404, "not_found", f"There is nothing at {request.url.path[:200]!r}."))


async def _not_so(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return _page(ApiError(405, "method_not_allowed", f"{request.url.path[:200]} does not take {request.method}."))


def _page(problem: ApiError) -> Response:
    return Response(problem.body(), problem.status, {a.decode(): b.decode() for a, b in problem.headers()})

