"""Every event of a gateway's core with its time and what the core said, as lines of JSON.

The first line says which pool and policy it was. Fed to a fresh core of that pool and policy, the events give the same
instructions: `sim.judging.parity` checks it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from policies.api import Event, Instruction, Tick
from policies.core import GatewayCore
from policies.wire import to_plain

LOG = logging.getLogger("tokenpools.recording")

VERSION = 1
_FLUSH_EVERY = 500


class Recording:
    """A recorder (`sim.live.observability.observer.Recorder`) that writes a file.

    What cannot be written ends it, not the gateway.

    Parameters
    ----------
    about : pool, policy and seed of the core, as plain values.
    """

    def __init__(self, path: str | Path, core: GatewayCore, about: Mapping[str, Any]) -> None:
        self._path = str(path)
        self._core = core
        self._about = about
        self._events = 0
        self._file: TextIO | None = None
        try:
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open as long as the gateway
        except OSError as error:
            LOG.error("%s: no events are recorded (%s)", self._path, error.strerror)

    def __call__(self, now_s: float, event: Event, instructions: Sequence[Instruction]) -> None:
        """See `sim.live.observability.observer.Recorder`."""
        if self._file is None:
            return
        try:
            if not self._events:
                head = {"version": VERSION, "started_s": self._core.started_s, **self._about}
                self._file.write(json.dumps(head) + "\n")
            self._events += 1
            self._file.write(json.dumps([now_s, to_plain(event), [to_plain(one) for one in instructions]]) + "\n")
            if self._events % _FLUSH_EVERY == 0 or type(event) is Tick:  # what is written can be read a tick later
                self._file.flush()
        except OSError as error:
            LOG.error("%s: recording ends after %d events (%s)", self._path, self._events, error.strerror)
            self.close()

    def close(self) -> None:
        """Write what is left."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                LOG.error("%s: the last events are not recorded (%s)", self._path, error.strerror)
