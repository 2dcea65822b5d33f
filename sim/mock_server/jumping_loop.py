"""An event loop with real sockets whose clock jumps to the next timer when nobody has anything to say.

Server and clients on one such loop talk through the machine's own sockets in no time at all: what is measured is the
modelled time alone, on a machine however busy. Sockets of one machine deliver at once, so a short look that finds
nothing means that everybody waits for a timer.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

_LOOK_S = 0.0005


class _Jumping(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0 if timeout is not None and timeout <= 0 else _LOOK_S)
        if not found and timeout is not None and timeout > 0:
            self.now_s += timeout
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the clock's time in seconds; it begins at 0."""
        return self._jumping.now_s
