"""What a door opens on an asyncio loop: the core and its requests, the state that it shares, and its pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from policies.api import Event, Instruction, ServiceClass
from sim.adapters.admission.config import GateConfig
from sim.adapters.admission.ended_requests import EndedRequests
from sim.adapters.admission.requests import Admissions
from sim.adapters.admission.shared import SharedState, join, shared_state
from sim.errors import InputError
from sim.extras import needs
from sim.live.gateway.core_driver import Timers

if TYPE_CHECKING:
    from sim.adapters.admission.pages import DoorPages


class Door:
    """A configuration at work, on the loop that runs.

    Parameters
    ----------
    timers : the core's clock; the loop if not given.
    prefix, recorders : see `Admissions`.

    Raises
    ------
    TokenpoolsError : something that the configuration asks for is not installed, or not set.
    """

    def __init__(
        self, config: GateConfig, *, timers: Timers | None = None, prefix: str | None = None,
        recorders: Sequence[Callable[[float, Event, Sequence[Instruction]], None]] = (),
    ) -> None:
        loop = asyncio.get_running_loop()
        self.config = config
        self.shared: SharedState | None = shared_state(config)
        self.pages: DoorPages | None = None
        self._shown = False
        told = [*recorders]
        if config.admin is not None:
            self.pages = self._pages(config)
            ended = EndedRequests(self._class_of, [self.pages])
            told.append(ended)
        self.admissions = Admissions(
            config, loop if timers is None else timers, prefix=prefix, recorders=told, log=self.shared
        )
        if self.pages is not None:
            ended.prefix = self.admissions.prefix

    def _pages(self, config: GateConfig) -> DoorPages:
        try:
            from sim.adapters.admission.pages import DoorPages
        except ImportError:
            raise InputError("admin", *needs("live", "starlette, uvicorn and prometheus-client")) from None
        assert config.admin is not None
        return DoorPages(config.admin.settings(), str(config.policy.name), lambda: self.admissions)

    def _class_of(self, entitlement: str) -> ServiceClass | None:
        book = self.admissions.core.pool.entitlements.get(entitlement)
        return None if book is None else book.spec.service_class

    @property
    def is_ready(self) -> bool:
        """Whether `ready` has nothing left to do."""
        return (self.pages is None or self._shown) and (self.shared is None or self.shared.has_joined)

    async def ready(self) -> None:
        """Show the pages and wait for the shared state, for a while; until it is there, everybody is refused.

        Raises
        ------
        RunError : other processes of the pool have another configuration.
        """
        if self.pages is not None and not self._shown:
            self._shown = True
            await self.pages.open()
        if self.shared is not None and not self.shared.has_joined:
            await join(self.shared)

    async def close(self) -> None:
        """Let nobody in any more, and leave what is shared."""
        self.admissions.close()
        if self.pages is not None:
            await self.pages.close()
        if self.shared is not None:
            await self.shared.close()
