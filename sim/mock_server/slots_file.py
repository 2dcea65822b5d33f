"""A replica whose slots follow a file, as the paced vLLM's do: ``tokenpools replay --slots-file`` writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

LOOK_EVERY_S = 0.02
"""How often the file is looked at. [choice]"""


class SlotsFile:
    """What a file says of the slots; a missing file says nothing, and neither does one that is half written.

    Parameters
    ----------
    most : of the replica.
    change : told of another number.
    """

    def __init__(self, path: Path, most: int, change: Callable[[int], None]) -> None:
        self._path = path
        self._most = most
        self._change = change
        self._seen_ns: int | None = None
        self._slots = most

    def look(self) -> None:
        """Look once."""
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns == self._seen_ns:
                return
            slots = min(self._most, max(0, int(self._path.read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            return
        self._seen_ns = changed_ns
        if slots != self._slots:
            self._slots = slots
            self._change(slots)

    async def follow(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)
