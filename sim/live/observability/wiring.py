"""What is seen of a running gateway: its observers, and the pages on their own address or beside the API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from starlette.applications import Starlette

from policies.core import GatewayCore
from sim.errors import InputError
from sim.extras import needs
from sim.live.gateway.service import Service
from sim.live.gateway.settings import LOOPBACK
from sim.live.gateway.tls import server_options
from sim.live.observability.admin import Pages
from sim.live.observability.logs import RequestLogger
from sim.live.observability.page_server import PageServer
from sim.live.observability.prometheus import Metrics
from sim.live.observability.state import State

_CLOSE_S = 5.0


class Observability:
    """Observers and pages of a gateway, within its ``async with``.

    Attributes
    ----------
    port : of the pages' own address, once they are served there.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._server: PageServer | None = None
        self.port: int | None = None
        gateway = service.gateway

        def core() -> GatewayCore:
            return gateway.core

        self.metrics = Metrics(core, gateway.now_s, models=self._models, reaches=self._reaches)
        self.state = State(
            core, gateway.now_s, about=self._about, replica_names=self._names, reaches=self._reaches
        )
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
        self._server = PageServer(
            Starlette(routes=[*pages.routes(), *service.app.routes]), admin.host, admin.port,
            "admin page, state and metrics",
            **server_options(None if admin.host in LOOPBACK else service.settings.tls),
        )
        await self._server.open()
        self.port = self._server.port
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop showing them."""
        if self._server is not None:
            await self._server.close()
        if self._end_telemetry is not None:  # it sends what is left, and waits for that
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(self._end_telemetry), _CLOSE_S)

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

    def _reaches(self, replica_id: int) -> bool:
        upstream = self._service.upstreams.replicas.get(replica_id)
        return upstream is not None and upstream.ready
