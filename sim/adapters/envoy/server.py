"""The gRPC server of the external processor, with health service and reflection."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from sim.adapters.admission.door import Door
from sim.adapters.admission.errors import AdmissionError
from sim.adapters.admission.waiting import verdict
from sim.adapters.envoy.config import ExtProcConfig
from sim.adapters.envoy.exchange import Exchange, Processor, Says
from sim.adapters.envoy.identity import identify_by
from sim.adapters.envoy.protos import external_processor_pb2
from sim.errors import InputError, RunError
from sim.live.gateway.prompt_tokens import EstimatingCounter, counter

LOG = logging.getLogger("tokenpools.ext_proc")

SERVICE = external_processor_pb2.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name
_MESSAGE_BYTES = 64 * 2**20


class ExtProc:
    """The service ``envoy.service.ext_proc.v3.ExternalProcessor``: one call for each HTTP exchange."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor

    def add_to(self, server: grpc.aio.Server) -> None:
        """Have a server offer it."""
        process = grpc.stream_stream_rpc_method_handler(
            self.process, request_deserializer=external_processor_pb2.ProcessingRequest.FromString,
            response_serializer=external_processor_pb2.ProcessingResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Process": process}),))

    async def process(self, requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:  # noqa: ARG002
        """Answer Envoy's messages about one exchange until it ends the call."""
        exchange = Exchange(self._processor)
        writing = asyncio.Lock()

        async def send(said: Says) -> None:
            async with writing:
                for one in said:
                    await context.write(one)

        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                await send(exchange.handle(message))
                if exchange.held is not None:
                    await self._wait(exchange, context, send)
                elif exchange.entry is not None and exchange.entry.on_evict is None:
                    exchange.entry.on_evict = _soon(lambda: send(exchange.evicted()))
        finally:
            exchange.left()

    async def _wait(
        self, exchange: Exchange, context: grpc.aio.ServicerContext[Any, Any], send: Callable[[Says], Any]
    ) -> None:
        """Wait for the core's verdict, or for Envoy to end the call: then the client has left."""
        assert exchange.held is not None
        processor, entry = self._processor, exchange.held
        deciding = asyncio.ensure_future(verdict(processor.admissions, entry, processor.config.held_s))
        reading = asyncio.ensure_future(context.read())
        try:
            await asyncio.wait((deciding, reading), return_when=asyncio.FIRST_COMPLETED)
            while not deciding.done():  # Envoy has said something before it had its answer, or has gone
                message = reading.result()
                if message is grpc.aio.EOF:
                    return
                await send(exchange.handle(message))
                if exchange.held is None:
                    return
                reading = asyncio.ensure_future(context.read())
                await asyncio.wait((deciding, reading), return_when=asyncio.FIRST_COMPLETED)
            try:
                deciding.result()
                said = exchange.decided()
            except AdmissionError as error:
                said = exchange.refuse(error)
            entry.on_evict = _soon(lambda: send(exchange.evicted()))
            await send(said)
            message = await reading
            if message is not grpc.aio.EOF:
                await send(exchange.handle(message))
        finally:
            for one in (deciding, reading):
                one.cancel()
            await asyncio.gather(deciding, reading, return_exceptions=True)


def _soon(make: Callable[[], Any]) -> Callable[[], object]:
    """Return what runs a coroutine on the loop when it is called; what goes wrong then is the call's end elsewhere."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[Any]] = set()

    def call() -> None:
        async def run() -> None:
            try:
                await make()
            except (grpc.RpcError, asyncio.InvalidStateError, RuntimeError) as error:
                LOG.debug("an eviction was not told: %s", error)

        task = loop.create_task(run())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return call


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
        self.admissions = admissions = door.admissions
        prompt_counter = counter(config.prompt_tokens, _asks_nobody)
        assert isinstance(prompt_counter, EstimatingCounter)
        processor = Processor(config, admissions, identify_by(config, admissions.tenants), prompt_counter)
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", _MESSAGE_BYTES), ("grpc.so_reuseport", 0)]
        )
        ExtProc(processor).add_to(self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.port = 0

    async def start(self) -> None:
        """Listen and serve.

        Raises
        ------
        RunError : the address cannot be had.
        """
        where = self._config.listen
        try:
            if self._config.tls is None:
                self.port = self._server.add_insecure_port(where)
            else:
                self.port = self._server.add_secure_port(where, _credentials(self._config))
        except RuntimeError as error:
            raise RunError(f"cannot listen on {where}: {error}") from None
        await self._door.ready()
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, drain_s: float | None = None) -> None:
        """Say that the end is near, let streams go on for a while, settle what is left, and stop."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._config.drain_s if drain_s is None else drain_s)
        await self._door.close()


async def _asks_nobody(*_: Any) -> None:
    return None


def _credentials(config: ExtProcConfig) -> grpc.ServerCredentials:
    tls = config.tls
    assert tls is not None
    read = {}
    for name in ("certificate", "key", "client_ca"):
        file = getattr(tls, name)
        try:
            read[name] = None if file is None else Path(file).read_bytes()
        except OSError as error:
            raise InputError(f"tls.{name}", f"{file} cannot be read: {error.strerror}", "give a file in PEM") from None
    pair = (read["key"] or b"", read["certificate"] or b"")
    return grpc.ssl_server_credentials([pair], read["client_ca"], require_client_auth=tls.client_ca is not None)


def serve(config: ExtProcConfig) -> None:
    """Serve until SIGTERM or SIGINT; streams then have ``drain_s`` to end."""
    with asyncio.Runner() as runner:  # gRPC polls in a thread of its own: uvloop brought nothing
        runner.run(_serve(config))


async def _serve(config: ExtProcConfig) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    server = ExtProcServer(config, Door(config))
    try:
        await server.start()
        LOG.info("listening on %s", config.listen)
        await stopped.wait()
    finally:
        await server.stop()
