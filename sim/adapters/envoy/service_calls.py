"""What a gRPC service has besides its own methods: health (``grpc.health.v1``) and reflection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from sim.adapters.envoy.grpc_calls import INVALID, NOT_FOUND, Call, Method

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION = reflection.SERVICE_NAME
_Status = health_pb2.HealthCheckResponse


class Health:
    """How services are, and who watches them.

    Parameters
    ----------
    services : by name; the empty name is the whole server.
    """

    def __init__(self, services: tuple[str, ...]) -> None:
        self._status: dict[str, Any] = dict.fromkeys(services, _Status.NOT_SERVING)
        self._watchers: set[_Watch] = set()

    def set(self, *, serving: bool) -> None:
        """Say how all services are, and tell who watches."""
        for name in self._status:
            self._status[name] = _Status.SERVING if serving else _Status.NOT_SERVING
        for watch in tuple(self._watchers):
            watch.tell()

    def close(self) -> None:
        """End the calls of those who watch."""
        for watch in tuple(self._watchers):
            watch.close()

    def status(self, service: str) -> Any:
        """Return how a service is; None where there is none of that name."""
        return self._status.get(service)

    def methods(self) -> dict[str, Callable[[Call], Method]]:
        """Return the methods by path."""
        return {
            f"/{HEALTH}/Check": lambda call: _Check(self, call),
            f"/{HEALTH}/Watch": lambda call: _Watch(self, call, self._watchers),
        }


class _Check:
    def __init__(self, health: Health, call: Call) -> None:
        self._health = health
        self._call = call

    def message(self, data: bytes) -> None:
        service = _service(data)
        status = None if service is None else self._health.status(service)
        if service is None:
            self._call.end(INVALID, "This is no HealthCheckRequest.")
        elif status is None:
            self._call.end(NOT_FOUND, "There is no such service.")
        else:
            self._call.send([_Status(status=status).SerializeToString()])
            self._call.end()

    def ended(self) -> None:
        self._call.end(INVALID, "There was no request.")

    def gone(self) -> None:
        pass


class _Watch:
    def __init__(self, health: Health, call: Call, watchers: set[_Watch]) -> None:
        self._health = health
        self._call = call
        self._watchers = watchers
        self._service: str | None = None

    def message(self, data: bytes) -> None:
        self._service = _service(data)
        if self._service is None:
            self._call.end(INVALID, "This is no HealthCheckRequest.")
            return
        self._watchers.add(self)
        self.tell()

    def tell(self) -> None:
        assert self._service is not None
        status = self._health.status(self._service)
        said = _Status.SERVICE_UNKNOWN if status is None else status
        self._call.send([_Status(status=said).SerializeToString()])
        self._call.flush()

    def ended(self) -> None:
        """Do nothing: who watches has said all there is to say, and hears until it leaves."""

    def close(self) -> None:
        self._watchers.discard(self)
        self._call.end()
        self._call.flush()

    def gone(self) -> None:
        self._watchers.discard(self)


def _service(data: bytes) -> str | None:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(data).service)
    except DecodeError:
        return None


class Reflection:
    """What tells a tool which services and messages there are: the servicer of gRPC's own package, asked by hand."""

    def __init__(self, call: Call, services: tuple[str, ...]) -> None:
        self._call = call
        self._servicer = reflection.ReflectionServicer(services)

    def message(self, data: bytes) -> None:
        """See `Method`."""
        try:
            asked = reflection_pb2.ServerReflectionRequest.FromString(data)
        except DecodeError:
            self._call.end(INVALID, "This is no ServerReflectionRequest.")
            return
        nobody: Any = None  # the servicer looks at no context
        said = self._servicer.ServerReflectionInfo(iter([asked]), nobody)
        self._call.send([one.SerializeToString() for one in said])

    def ended(self) -> None:
        """See `Method`."""
        self._call.end()

    def gone(self) -> None:
        """See `Method`."""
