"""Who makes the replicas that the autoscaler wants: nobody but the log, a command, Kubernetes, or processes of our own.

The core says how many replicas the pool should have (`policies.api.Scale`); a `Fleet` sees to it. What has become ready
comes back through the gateway's health checks as `CapacityChanged`, never from here: ``upstreams`` of the configuration
name every replica that there may be, and those that answer are ready. Where gateways share a pool, the leader speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sim.errors import InputError, RunError
from sim.extras import needs
from sim.live.replicas.command import run_command

LOG = logging.getLogger("tokenpools.scaling")

_AGAIN_S = (1.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogScale:
    """Say how many replicas are wanted, and do nothing."""

    kind: Literal["log"] = "log"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandScale:
    """Run a command; ``TOKENPOOLS_REPLICAS`` in its environment says how many are wanted. No shell reads it."""

    kind: Literal["command"] = "command"
    command: tuple[str, ...] = field(metadata={"min_length": 1, "description": "give its words, e.g. [./scale.sh]"})
    timeout_s: float = field(default=60.0, metadata={"gt": 0, "description": "give the longest that it may run"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesScale:
    """Set the ``scale`` subresource of a Deployment or StatefulSet, as the pod's service account or ~/.kube/config."""

    kind: Literal["kubernetes"] = "kubernetes"
    name: str = field(metadata={"min_length": 1, "description": "give the name of the Deployment or StatefulSet"})
    namespace: str = field(default="default", metadata={"min_length": 1, "description": "give its namespace"})
    resource: Literal["deployment", "statefulset"] = field(
        default="statefulset", metadata={"description": "give deployment or statefulset"}
    )
    timeout_s: float = field(default=10.0, metadata={"gt": 0, "description": "give the longest wait for the API"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessScale:
    """Run the servers as processes of this machine: the n-th upstream's command has ``{port}`` and ``{number}``."""

    kind: Literal["processes"] = "processes"
    command: tuple[str, ...] = field(
        metadata={"min_length": 1, "description": "give its words, e.g. [vllm, serve, MODEL, --port, '{port}']"}
    )
    stop_s: float = field(default=30.0, metadata={"gt": 0, "description": "give the seconds from SIGTERM to SIGKILL"})


SCALING: Mapping[str, type] = {
    "log": LogScale, "command": CommandScale, "kubernetes": KubernetesScale, "processes": ProcessScale,
}  # fmt: skip
"""How replicas are made, by name."""

Scaling = LogScale | CommandScale | KubernetesScale | ProcessScale


class Fleet(Protocol):
    """Makes replicas."""

    async def want(self, replicas: int) -> None:
        """See to it that there are so many; called again with the same number where it failed.

        Raises
        ------
        RunError : it did not work, and trying again may help.
        """
        ...

    async def close(self) -> None:
        """Let go of what belongs to this process."""
        ...


class LogFleet:
    """See `LogScale`."""

    async def want(self, replicas: int) -> None:
        """See `Fleet`."""
        LOG.info("the pool should have %d replicas", replicas)

    async def close(self) -> None:
        """Nothing to let go of."""


class CommandFleet:
    """See `CommandScale`."""

    def __init__(self, params: CommandScale) -> None:
        self._params = params

    async def want(self, replicas: int) -> None:
        """See `Fleet`."""
        words = self._params.command
        try:
            code = await run_command(words, {"TOKENPOOLS_REPLICAS": str(replicas)}, self._params.timeout_s)
        except TimeoutError:
            raise RunError(f"{words[0]} still ran after {self._params.timeout_s:g} s") from None
        except OSError as error:
            raise RunError(f"{words[0]} cannot be run ({error.strerror})") from None
        if code != 0:
            raise RunError(f"{words[0]} ended with code {code}")

    async def close(self) -> None:
        """Nothing to let go of."""


class KubernetesFleet:
    """See `KubernetesScale`.

    Parameters
    ----------
    api_client : a configured ``kubernetes.client.ApiClient``; made from where this runs if it is None.
    """

    def __init__(self, params: KubernetesScale, api_client: Any = None) -> None:
        self._params = params
        try:
            from kubernetes import client, config
            from kubernetes.config.config_exception import ConfigException
        except ImportError:
            raise InputError("scale: kubernetes", *needs("kubernetes", "kubernetes")) from None
        if api_client is None:
            load_config: Any = config.load_config
            try:
                load_config()
            except ConfigException as error:
                raise RunError(f"no Kubernetes cluster is configured here: {error}") from None
        apps = client.AppsV1Api(api_client)
        self._patch: Any = (
            apps.patch_namespaced_deployment_scale if params.resource == "deployment"
            else apps.patch_namespaced_stateful_set_scale
        )

    async def want(self, replicas: int) -> None:
        """See `Fleet`."""
        params = self._params
        try:
            await asyncio.to_thread(
                self._patch, params.name, params.namespace, {"spec": {"replicas": replicas}},
                _request_timeout=params.timeout_s, field_manager="tokenpools",
            )
        except Exception as error:  # ApiException, and whatever urllib3 says of the way there
            status, reason = getattr(error, "status", None), getattr(error, "reason", None)
            said = f"{status} {reason}" if status else f"{type(error).__name__}: {error}"
            raise RunError(f"{params.resource} {params.namespace}/{params.name} was not scaled: {said}") from None

    async def close(self) -> None:
        """Nothing to let go of: replicas stay."""


class ProcessFleet:
    """See `ProcessScale`. A process that dies is begun again, more slowly each time.

    Parameters
    ----------
    ports : of the upstreams, in their order.
    """

    def __init__(self, params: ProcessScale, ports: Sequence[int]) -> None:
        self._params = params
        self._ports = list(ports)
        self._keepers: dict[int, asyncio.Task[None]] = {}

    async def want(self, replicas: int) -> None:
        """See `Fleet`. Those of the highest numbers stop."""
        if replicas > len(self._ports):
            LOG.warning("%d replicas are wanted, and upstreams names %d", replicas, len(self._ports))
        surplus = [number for number in self._keepers if number >= replicas]
        for number in range(min(replicas, len(self._ports))):
            if number not in self._keepers:
                self._keepers[number] = asyncio.create_task(self._keep(number))
        await self._stop(surplus)

    async def close(self) -> None:
        """Stop them all."""
        await self._stop(list(self._keepers))

    async def _stop(self, numbers: Sequence[int]) -> None:
        tasks = [self._keepers.pop(number) for number in numbers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, number: int) -> None:
        port, again_s = self._ports[number], _AGAIN_S[0]
        words = [word.replace("{port}", str(port)).replace("{number}", str(number)) for word in self._params.command]
        while True:
            try:
                process = await asyncio.create_subprocess_exec(
                    *words, stdin=asyncio.subprocess.DEVNULL, start_new_session=True  # ^C is the gateway's: it drains
                )
            except OSError as error:
                LOG.error("replica %d: %s cannot be run (%s)", number, words[0], error.strerror)
            else:
                LOG.info("replica %d: process %d on port %d", number, process.pid, port)
                try:
                    code = await process.wait()
                finally:
                    await self._end(process)
                LOG.warning("replica %d: ended with code %d", number, code)
            await asyncio.sleep(again_s)
            again_s = min(_AGAIN_S[1], 2 * again_s)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._params.stop_s):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


class Wanted:
    """Hands the latest wish to a fleet, one at a time, and again where it failed. Call it with how many are wanted."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._replicas: int | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._work())

    def __call__(self, replicas: int) -> None:
        """Take a wish; does not wait."""
        self._replicas = replicas
        self._changed.set()

    async def close(self) -> None:
        """Stop, and let the fleet go."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._fleet.close()

    async def _work(self) -> None:
        again_s = _AGAIN_S[0]
        while True:
            await self._changed.wait()
            self._changed.clear()
            wanted = self._replicas
            assert wanted is not None
            try:
                await self._fleet.want(wanted)
                again_s = _AGAIN_S[0]
            except RunError as error:
                LOG.error("%s; trying again in %g s", error, again_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(again_s):
                        await self._changed.wait()
                self._changed.set()
                again_s = min(_AGAIN_S[1], 2 * again_s)


def fleet_of(params: Scaling, ports: Sequence[int]) -> Fleet:
    """Return what makes replicas; ``ports`` are those of the upstreams.

    Raises
    ------
    RunError : it cannot work here.
    """
    if isinstance(params, CommandScale):
        return CommandFleet(params)
    if isinstance(params, KubernetesScale):
        return KubernetesFleet(params)
    if isinstance(params, ProcessScale):
        return ProcessFleet(params, ports)
    return LogFleet()
