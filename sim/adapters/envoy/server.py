"""The server of the external processor: gRPC, with health service and reflection."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import ssl
from typing import Any

from sim.adapters.admission.door import Door
from sim.adapters.envoy.config import ExtProcConfig
from sim.adapters.envoy.exchange import Processor
from sim.adapters.envoy.grpc_calls import calls
from sim.adapters.envoy.http2 import Connection
from sim.adapters.envoy.identity import identify_by
from sim.adapters.envoy.process import Processing
from sim.adapters.envoy.protos import external_processor_pb2
from sim.adapters.envoy.service_calls import HEALTH, REFLECTION, Health, Reflection
from sim.errors import InputError, RunError
from sim.live.gateway.event_loop import loop_factory
from sim.live.gateway.prompt_tokens import EstimatingCounter, counter

LOG = logging.getLogger("tokenpools.ext_proc")

SERVICE = external_processor_pb2.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name
_BACKLOG = 1024


class ExtProcServer:
    """The server of one process.

    Attributes
    ----------
    admissions : the core and its requests.
    port : where it listens; 0 for a socket of the file system.
    """

    def __init__(self, config: ExtProcConfig, door: Door) -> None:
        self._config = config
        self._door = door
        self.admissions = door.admissions
        prompt_counter = counter(config.prompt_tokens, _asks_nobody)
        assert isinstance(prompt_counter, EstimatingCounter)
        identify = identify_by(config, door.admissions.tenants)
        self._processor = Processor(config, door.admissions, identify, prompt_counter)
        self._connections: set[Connection] = set()
        self._running: set[Processing] = set()
        self._health = Health(("", SERVICE))
        services = (SERVICE, HEALTH, REFLECTION)
        self._accept = calls({
            f"/{SERVICE}/Process": lambda call: Processing(self._processor, call, self._running),
            **self._health.methods(),
            f"/{REFLECTION}/ServerReflectionInfo": lambda call: Reflection(call, services),
        })  # fmt: skip
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen and serve.

        Raises
        ------
        RunError : the address cannot be had.
        """
        where, loop = self._config.listen, asyncio.get_running_loop()
        tls = _context(self._config)
        await self._door.ready()
        try:
            if where.startswith("unix:"):
                self._server = await loop.create_unix_server(self._connection, where[len("unix:") :], ssl=tls)
            else:
                host, _, port = where.rpartition(":")
                self._server = await loop.create_server(
                    self._connection, host.strip("[]"), int(port), ssl=tls, backlog=_BACKLOG
                )
                self.port = self._server.sockets[0].getsockname()[1]
        except (OSError, OverflowError) as error:
            raise RunError(f"cannot listen on {where}: {error}") from None
        self._health.set(serving=True)

    async def stop(self, drain_s: float | None = None) -> None:
        """Say that the end is near, let streams go on for a while, settle what is left, and stop."""
        self._health.set(serving=False)
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.goaway()
            connection.flush()
        left_s = self._config.drain_s if drain_s is None else drain_s
        deadline_s = asyncio.get_running_loop().time() + left_s
        while self._running and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(min(0.01, left_s))
        for one in tuple(self._running):
            one.stop()
        self._health.close()
        for connection in tuple(self._connections):
            connection.close()
        await self._door.close()

    def _connection(self) -> Connection:
        return Connection(self._accept, self._connections)


async def _asks_nobody(*_: Any) -> None:
    return None


def _context(config: ExtProcConfig) -> ssl.SSLContext | None:
    tls = config.tls
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    name = "certificate"
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            name = "client_ca"
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise InputError(f"tls.{name}", f"cannot be read: {error.strerror or error}", "give files in PEM") from None
    return context


def serve(config: ExtProcConfig) -> None:
    """Serve until SIGTERM or SIGINT; streams then have ``drain_s`` to end."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(config))


async def _serve(config: ExtProcConfig) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    server = ExtProcServer(config, Door(config))
    try:
        await server.start()
        LOG.info("listening on %s", config.listen)
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not look at it again and again
        await stopped.wait()
    finally:
        await server.stop()
