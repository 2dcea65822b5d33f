"""The pages of our own gateway at a door: metrics, the admin page, the state as JSON, and the pool's capacity."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from sim.adapters.admission.requests import Admissions
from sim.live.gateway.settings import Admin
from sim.live.observability.admin import Pages
from sim.live.observability.page_server import PageServer
from sim.live.observability.prometheus import Metrics
from sim.live.observability.state import State

if TYPE_CHECKING:
    from policies.core import GatewayCore
    from sim.live.observability.observer import RequestLog


class DoorPages:
    """An observer of a door's requests, and the pages that show what it saw.

    Parameters
    ----------
    policy : its name, for the page.
    admissions : returns the core and its requests.
    """

    def __init__(self, admin: Admin, policy: str, admissions: Callable[[], Admissions]) -> None:
        def core() -> GatewayCore:
            return admissions().core

        def now_s() -> float:
            return admissions().now_s()

        def about() -> dict[str, object]:
            return {"policy": policy, "models": [], "draining": False}

        self._metrics = Metrics(core, now_s)
        self._state = State(core, now_s, about=about)
        pages = Pages(admin, self._state, self._metrics.registry, lambda slots: admissions().set_slots(slots))
        assert admin.port is not None  # `GateConfig` asks for one
        self._server = PageServer(
            Starlette(routes=pages.routes()), admin.host, admin.port, "admin page, state and metrics"
        )

    @property
    def port(self) -> int | None:
        """Where they are, once they are."""
        return self._server.port

    def ended(self, log: RequestLog) -> None:
        """See `sim.live.observability.observer.Observer`."""
        self._metrics.ended(log)
        self._state.ended(log)

    async def open(self) -> None:
        """Show them."""
        await self._server.open()

    async def close(self) -> None:
        """Stop showing them."""
        await self._server.close()
