"""Runs a gateway process: `tokenpools serve`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop

from policies.core import GatewayCore
from sim.live.logs import set_up
from sim.live.lookout import Lookout
from sim.live.recording import Recording
from sim.live.service import Service
from sim.live.settings import Settings
from sim.live.tables import Tables


def serve(settings: Settings, core: GatewayCore, about: Mapping[str, Any] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, and return once what was in flight has ended.

    Parameters
    ----------
    about : pool, policy and seed as plain values, for the head of a recording.
    """
    set_up(style=settings.logs.style, level=settings.logs.level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, core, about or {}))


async def _serve(settings: Settings, core: GatewayCore, about: Mapping[str, Any]) -> None:
    recording = None if settings.recording is None else Recording(settings.recording, core, about)
    service = await Service.open(settings, core, recorders=[] if recording is None else [recording])
    try:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(Lookout(service))
            if settings.records is not None:
                tables = Tables(Path(settings.records), settings.entitlements, settings.policy)
                service.desk.observers.append(await stack.enter_async_context(tables))
            await service.run()
    finally:
        if recording is not None:
            recording.close()
