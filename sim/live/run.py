"""Runs a gateway process: `tokenpools serve`."""

from __future__ import annotations

import asyncio
import logging

import uvloop

from policies.core import GatewayCore
from sim.live.service import Service
from sim.live.settings import Settings


def serve(settings: Settings, core: GatewayCore) -> None:
    """Serve until SIGTERM or SIGINT, and return once what was in flight has ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, core))


async def _serve(settings: Settings, core: GatewayCore) -> None:
    service = await Service.open(settings, core)
    await service.run()
