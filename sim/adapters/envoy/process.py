"""The service ``envoy.service.ext_proc.v3.ExternalProcessor``: one call for each HTTP exchange."""

from __future__ import annotations

import asyncio
import logging

from google.protobuf.message import DecodeError

from sim.adapters.admission.errors import closing, held_long
from sim.adapters.envoy.exchange import Exchange, Processor, Says
from sim.adapters.envoy.grpc_calls import FAILED_PRECONDITION, INVALID, UNAVAILABLE, Call
from sim.adapters.envoy.protos.external_processor_pb2 import ProcessingRequest

LOG = logging.getLogger("tokenpools.ext_proc")

WATCHED_ONLY = (
    "The filter ext_proc has observability_mode, in which Envoy waits for no answer, so that nobody could be refused: "
    "leave it out. With policy: none everybody is metered and nobody refused."
)


class Processing:
    """One call. What the core says later, of requests that are held or evicted, is said to Envoy from the loop.

    Parameters
    ----------
    calls : those that run; this one is among them until it is over.
    """

    __slots__ = ("_call", "_calls", "_exchange", "_held", "_loop", "_timer")

    def __init__(self, processor: Processor, call: Call, calls: set[Processing]) -> None:
        self._exchange = Exchange(processor)
        self._call = call
        self._calls = calls
        self._loop = asyncio.get_running_loop()
        self._held = processor.config.held_s
        self._timer: asyncio.TimerHandle | None = None
        calls.add(self)

    def message(self, data: bytes) -> None:
        """Answer a message of Envoy's."""
        try:
            message = ProcessingRequest.FromString(data)
        except DecodeError:
            self._call.end(INVALID, "This is no ProcessingRequest.")
            self.gone()
            return
        if message.observability_mode:
            LOG.error("%s", WATCHED_ONLY)
            self._call.end(FAILED_PRECONDITION, WATCHED_ONLY)
            self.gone()
            return
        exchange = self._exchange
        self._say(exchange.handle(message))
        entry = exchange.entry
        if entry is None:
            return
        if exchange.held is not None:
            if self._timer is None:
                entry.wake = lambda: self._loop.call_soon(self._decided)  # the core is in the middle of something
                self._timer = self._loop.call_later(self._held, self._too_long)
        elif entry.on_evict is None:
            entry.on_evict = lambda: self._loop.call_soon(self._evicted)

    def ended(self) -> None:
        """Settle, and end the call: Envoy has ended it on its side."""
        self.gone()
        self._call.end()

    def gone(self) -> None:
        """Settle."""
        self._unset()
        self._exchange.left()
        self._calls.discard(self)

    def stop(self) -> None:
        """Refuse what is still held, since this process ends; settle the rest.

        It ends as unavailable: to Envoy, a call that ends well says that an exchange needs no processor any more.
        """
        entry = self._exchange.held
        if entry is not None:
            self._say(self._exchange.refuse(closing()))
        self.gone()
        self._call.end(UNAVAILABLE, "The processor stops.")
        self._call.flush()

    def _decided(self) -> None:
        if self._exchange.held is None:
            return
        self._unset()
        entry = self._exchange.held
        said = self._exchange.decided()
        entry.on_evict = lambda: self._loop.call_soon(self._evicted)
        self._say(said)
        self._call.flush()

    def _too_long(self) -> None:
        entry = self._exchange.held
        if entry is not None and entry.is_held:
            self._say(self._exchange.refuse(held_long()))
            self._call.flush()

    def _evicted(self) -> None:
        self._say(self._exchange.evicted())
        self._call.flush()

    def _unset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        entry = self._exchange.entry
        if entry is not None:
            entry.wake = None

    def _say(self, said: Says) -> None:
        if said:
            self._call.send([one.SerializeToString() for one in said])
