"""All parts of one gateway process, put together, and run.

`Service.open` makes them, in the order in which they need each other; observers, recorders and pages of others are
added to what it returns. `run` serves until a signal.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn

from policies.api import Event, Instruction
from policies.core import GatewayCore
from sim.live.gateway.app import Application
from sim.live.gateway.core_driver import AsyncGateway, EventLog, LocalLog
from sim.live.gateway.descriptors import fitted
from sim.live.gateway.http_protocol import HttpServer, protocol
from sim.live.gateway.in_flight import AbortReason, InFlightTable
from sim.live.gateway.prompt_tokens import counter
from sim.live.gateway.relay import Relay
from sim.live.gateway.settings import Settings
from sim.live.gateway.stored import Owners
from sim.live.gateway.tls import renew, server_options
from sim.live.observability.observer import Observer, Recorder
from sim.live.replicas.upstreams import Upstreams

_FORCE_S = 5.0
_COLLECT = (20_000, 20, 20)
"""Requests leave few cycles behind, so that looking for them rarely is enough and costs fewer pauses."""


@dataclass(slots=True, eq=False)
class Service:
    """One gateway process.

    Attributes
    ----------
    recorders : told of every event, with its time and what the core said.
    about : further facts for the admin page.
    http : of the server, once there is one.
    """

    settings: Settings
    gateway: AsyncGateway
    in_flight: InFlightTable
    upstreams: Upstreams
    app: Application
    recorders: list[Recorder]
    about: Callable[[], Mapping[str, Any]] = dict
    http: uvicorn.Config | None = None

    @classmethod
    async def open(
        cls, settings: Settings, core: GatewayCore, *, log: EventLog | None = None, observers: Sequence[Observer] = (),
        recorders: Sequence[Recorder] = (), scale: Callable[[int], None] | None = None,
        owners: Owners | None = None,
    ) -> Service:
        """Return a gateway that is ready to serve, with its upstreams looked at once.

        Parameters
        ----------
        log : what gives events their times; one of this process alone where it is None.
        scale : told how many replicas the pool should have.
        owners : whose stored responses are, in common with other gateways; None for what this process alone knows.
        """
        loop = asyncio.get_running_loop()
        told = list(recorders)

        def record(now_s: float, event: Event, instructions: Sequence[Instruction]) -> None:
            for recorder in told:
                recorder(now_s, event, instructions)

        events = LocalLog(loop) if log is None else log
        in_flight = InFlightTable(
            loop, prefix=f"req-{secrets.token_hex(4)}-", total_s=settings.timeouts.total_s, now_s=events.now_s
        )
        in_flight.observers += observers
        gateway = AsyncGateway(
            core, in_flight, loop=loop, answer=in_flight.answer, record=record, scale=scale, log=events
        )
        gateway.start()
        upstreams = Upstreams(
            settings.upstreams, timeouts=settings.timeouts, capacity_of=settings.capacity_of, emit=gateway.send,
            now_s=gateway.now_s, scrape_every_s=settings.scrape_interval_s,
        )
        relay = Relay(gateway, upstreams, settings, owners)
        app = Application(
            settings, gateway=gateway, in_flight=in_flight, upstreams=upstreams, relay=relay,
            counter=counter(settings.prompt_tokens, upstreams.post),
        )
        await upstreams.open()
        in_flight.begin()
        return cls(settings, gateway, in_flight, upstreams, app, told)

    async def close(self) -> None:
        """Stop everything."""
        self.gateway.stop()
        self.in_flight.end()
        self.app.intake.close()
        await self.upstreams.close()

    def server(self) -> HttpServer:
        """Return the HTTP server of this gateway."""
        settings = self.settings
        config = uvicorn.Config(
            self.app, host=settings.host, port=settings.port,
            http=protocol(fitted(settings.limits, len(settings.upstreams)), settings.timeouts),
            ws="none", lifespan="off", log_config=None, access_log=False, server_header=False, backlog=2048,
            proxy_headers=False, timeout_keep_alive=int(max(1, settings.timeouts.keep_alive_s)),
            timeout_graceful_shutdown=int(settings.timeouts.drain_s + _FORCE_S) + 1,
            **server_options(settings.tls),
        )
        self.http = config
        return HttpServer(config, on_stop=self.drain, notice_s=settings.timeouts.drain_notice_s)

    def renew_tls(self) -> None:
        """Read certificate and key again; new connections get them.

        Raises
        ------
        ScenarioError : they cannot be used; the old ones stay.
        """
        if self.settings.tls is not None and self.http is not None and self.http.ssl is not None:
            renew(self.http.ssl, self.settings.tls, "")

    def drain(self) -> None:
        """Say that the end is near; what is in flight then has ``drain_s`` to finish."""
        self.app.draining = True
        timeouts = self.settings.timeouts
        asyncio.get_running_loop().call_later(timeouts.drain_notice_s + timeouts.drain_s, self._cut_all)

    def _cut_all(self) -> None:
        for exchange in tuple(self.in_flight):
            exchange.cut(AbortReason.DRAINED)

    async def run(self, sockets: Any = None, on_started: Callable[[HttpServer], None] | None = None) -> None:
        """Serve until told to stop, and let what is in flight finish."""
        server = self.server()
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not look at it again and again
        gc.set_threshold(*_COLLECT)
        if on_started is not None:
            on_started(server)
        try:
            await server.serve(sockets)
        finally:
            await self.close()
