"""The event loop of a gateway: uvloop where it can be installed, else asyncio's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop for `asyncio.Runner`; None stands for asyncio's own."""
    try:
        import uvloop
    except ImportError:  # no wheel for this system or interpreter: slower, and otherwise the same
        return None
    return uvloop.new_event_loop
