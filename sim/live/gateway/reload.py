"""A new configuration for a running gateway (SIGHUP), without dropping a request.

Keys, entitlements, policy, limits of the pool and models change at once; what is in flight stays in the books, under
its old entitlement even where that is gone. A file that is not good changes nothing. What a running server cannot
change (addresses, upstreams, timeouts, where the state is) is named in the log and waits for the next start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from policies.api import Instruction
from policies.core import GatewayCore
from sim.errors import RunError, TokenpoolsError
from sim.live.gateway.authentication import Identity
from sim.live.gateway.changeover import CoreOf, changeover
from sim.live.gateway.service import Service
from sim.live.gateway.settings import Settings

LOG = logging.getLogger("tokenpools.reload")

_FIXED = (
    "host", "port", "tls", "upstreams", "prompt_tokens", "limits", "timeouts", "paths", "metering", "cors_origins",
    "decode_s", "scrape_interval_s", "records",
    "admin", "accounts", "logs", "recording", "telemetry", "scaling", "state", "class_header",
)  # fmt: skip

ChangeOver = Callable[[Mapping[str, Any], GatewayCore, float], tuple[GatewayCore, Sequence[Instruction]]]
"""Returns the core of a pool and policy that has taken over from another at a time, and what it says to do."""


class Loaded(NamedTuple):
    """A configuration as it was read."""

    settings: Settings
    head: Mapping[str, Any]


class Shared(Protocol):
    """The part of `sim.live.shared_state.replicated_core.SharedLog` that is needed here."""

    async def configure(self, config: str, head: Mapping[str, Any]) -> None:
        """Give all gateways another pool and policy, at one place of the log."""
        ...


class Reloader:
    """Reads the configuration again when it is called.

    Parameters
    ----------
    load : reads it.
    began : what the gateway runs with now.
    change_over : puts a new core in the place of the old one; `changeover` where it is None.
    shared : the log that gateways share; None where this process has the pool for itself.
    """

    def __init__(
        self, service: Service, load: Callable[[], Loaded], began: Loaded, core_of: CoreOf,
        shared: Shared | None = None, change_over: ChangeOver | None = None,
    ) -> None:
        self._service = service
        self._load = load
        self._now = began
        self._shared = shared
        self._change_over = change_over or partial(changeover, core_of)
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self) -> None:
        """Begin to change over (a signal handler)."""
        task = asyncio.get_running_loop().create_task(self.reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def reload(self) -> None:
        """Change over to what the file says now, or keep what there is and say why."""
        async with self._lock:
            try:
                self._service.renew_tls()
                await self._change(self._load())
            except TokenpoolsError as error:
                LOG.error("the configuration stays as it was: %s", error)
            except Exception:
                LOG.exception("the configuration stays as it was")

    async def go_by_changes(self) -> None:
        """Change over to what file and store say now.

        Raises
        ------
        TokenpoolsError : they cannot be used; RunError : the shared state is out of reach. What there is stays.
        """
        async with self._lock:
            await self._change(self._load())

    async def _change(self, found: Loaded) -> None:
        now, service, gateway = self._now, self._service, self._service.gateway
        waiting = [name for name in _FIXED if getattr(found.settings, name) != getattr(now.settings, name)]
        if waiting:
            LOG.warning("%s: new from the next start on", ", ".join(waiting))
        if found.head != now.head:
            if now.settings.recording is not None:
                raise RunError("a recording holds one pool and policy; stop recording, or start anew")
            if self._shared is None:
                core, said = self._change_over(found.head, gateway.core, gateway.now_s())
                gateway.core = core
                gateway.carry_out(said)
            else:
                await self._shared.configure(found.settings.state_config, found.head)
        changed = found.settings
        settings = replace(
            now.settings, keys=changed.keys, entitlements=changed.entitlements, models=changed.models,
            default_max_output_tokens=changed.default_max_output_tokens, policy=changed.policy,
            capacity_of=changed.capacity_of, state_config=changed.state_config,
        )
        service.settings = service.app.settings = settings
        service.app.identity = Identity(settings.keys, settings.entitlements, settings.class_header)
        service.upstreams.recount(settings.capacity_of)
        self._now = Loaded(settings, found.head)
        LOG.info("changed over: %d entitlements, %d keys", len(settings.entitlements), len(settings.keys))
