"""What is seen of a running gateway: its observers, and the pages on their own address or beside the API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import uvicorn
from starlette.applications import Starlette

from policies.core import GatewayCore
from sim.errors import InputError
from sim.extras import needs
from sim.live.gateway.service import Service
from sim.live.gateway.settings import LOOPBACK
from sim.live.gateway.tls import server_options
from sim.live.observability.admin import Pages
from sim.live.observability.logs import RequestLogger
from sim.live.observability.prometheus import Metrics
from sim.live.observability.state import State

LOG = logging.getLogger("tokenpools.admin")

_CLOSE_S = 5.0


class _QuietServer(uvicorn.Server):
    """A server that leaves signals to the gateway's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class Observability:
    """Observers and pages of a gateway, within its ``async with``.

    Attributes
    ----------
    port : of the pages' own address, once they are served there.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._server: _QuietServer | None = None
        self._task: asyncio.Task[None] | None = None
        self.port: int | None = None
        gateway = service.gateway

        def core() -> GatewayCore:
            return gateway.core

        self.metrics = Metrics(core, gateway.now_s, models=self._models)
        self.state = State(core, gateway.now_s, about=self._about, replica_names=self._names)
        service.in_flight.observers += [self.metrics, self.state, RequestLogger()]
        self._end_telemetry: Callable[[], None] | None = None
        if service.settings.telemetry == "otlp":
            try:
                from sim.live.observability.opentelemetry import exported
            except ImportError:
                raise InputError("telemetry: otlp", *needs("otel", "opentelemetry")) from None

            telemetry, self._end_telemetry = exported()
            service.in_flight.observers.append(telemetry)

    async def __aenter__(self) -> Observability:
        """Show the pages, if there are to be any."""
        service, admin = self._service, self._service.settings.admin
        if admin is None:
            return self
        pages = Pages(admin, self.state, self.metrics.registry, service.upstreams.set_slots)
        if admin.port is None:
            service.app.routes += pages.routes()
            return self
        app = Starlette(routes=[*pages.routes(), *service.app.routes])
        config = uvicorn.Config(
            app, host=admin.host, port=admin.port, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, timeout_graceful_shutdown=1, limit_concurrency=64,
            **server_options(None if admin.host in LOOPBACK else service.settings.tls),
        )
        self._server = _QuietServer(config)
        self._task = asyncio.get_running_loop().create_task(self._serve(self._server))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)
        if self._server.started:
            self.port = self._server.servers[0].sockets[0].getsockname()[1]
            LOG.info("admin page, state and metrics on http://%s:%d/", admin.host, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop showing them."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._task, _CLOSE_S)
        if self._end_telemetry is not None:  # it sends what is left, and waits for that
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(self._end_telemetry), _CLOSE_S)

    async def _serve(self, server: _QuietServer) -> None:
        try:
            await server.serve()
        except SystemExit:  # uvicorn's answer to an address that is taken
            LOG.error("the admin pages cannot be shown: their address is taken")

    def _about(self) -> Mapping[str, Any]:
        settings = self._service.settings
        models = sorted(self._models())
        return {
            "policy": settings.policy, "models": list(models), "draining": self._service.app.draining,
            **self._service.about(),
        }

    def _models(self) -> Collection[str]:
        return self._service.settings.models or self._service.upstreams.models()

    def _names(self) -> Mapping[int, str]:
        return {number: one.address.name for number, one in self._service.upstreams.replicas.items()}
