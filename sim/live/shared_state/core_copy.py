"""One gateway's copy of the core that all gateways of a pool keep alike, and what it has to say to the others.

The entries of the log are applied here, in their order; `sim.live.shared_state.replicated_core` brings them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from policies import snapshot
from policies.api import (
    Adopted,
    Arrived,
    Cancelled,
    Event,
    Evict,
    Failed,
    Finished,
    Forward,
    PoolCapacity,
    Reason,
    Refuse,
    Tick,
)
from policies.wire import event_from, to_plain
from sim.live.gateway.changeover import CoreOf, changeover
from sim.live.gateway.core_driver import AsyncGateway
from sim.live.shared_state.fallback import RETRY_S
from sim.live.shared_state.signing import Signer

LOG = logging.getLogger("tokenpools.state")

CONFIGURED = "configured"
ENDS = (Finished, Failed, Cancelled)
_TICK = json.dumps(to_plain(Tick()))
_LOST = '["gateway_lost"]'
_CONFIGURED_BEGINS = f'["{CONFIGURED}",'
_MOST_SENDERS = 10_000
"""Names of gateways whose last numbers are kept: a process more than this many starts ago says nothing any more."""


class DamagedError(Exception):
    """What Redis holds of the log cannot be gone on with: it is to begin anew."""


class StaleError(Exception):
    """The place of this gateway in the log, or its copy of it, is no longer good: it is time to join again."""


class Outgoing(NamedTuple):
    """An event that waits to be appended to the log."""

    number: int
    due_us: int
    text: str
    event: Event


class CoreCopy:
    """What the log has made of the core, and the events that this gateway has not appended yet.

    Parameters
    ----------
    name : this gateway's.
    config, core_of : as for `sim.live.shared_state.replicated_core.SharedLog`.

    Attributes
    ----------
    skipped : how many entries were left out, by why: malformed, unsigned (or signed with another key), replayed.
    """

    def __init__(
        self, name: str, loop: asyncio.AbstractEventLoop, config: str, core_of: CoreOf | None, signer: Signer
    ) -> None:
        self.name = name
        self.skipped: Counter[str] = Counter(malformed=0, unsigned=0, replayed=0)
        self._signer = signer
        self._epoch = ""
        self._heard: dict[str, int] = {}
        self._loop = loop
        self._config = config
        self._core_of = core_of
        self._head: Mapping[str, Any] | None = None
        self._gateway: AsyncGateway | None = None
        self._leads = False
        self._offset_s = loop.time()
        # Which entry was applied last, and whose the requests in the books are.
        self._seq = 0
        self._entry = ""
        self._us = 0
        self._saved = 0
        self._owners: dict[str, str] = {}
        # What this gateway has to say, and what it waits for.
        self._number = 0
        self._wake = asyncio.Event()
        self._outbox: deque[Outgoing] = deque()
        self._undecided: dict[str, Arrived | Failed] = {}
        self._begun: dict[str, tuple[float, bool, int]] = {}

    def now_s(self) -> float:
        """See `EventLog`."""
        return max(self._us / 1e6, self._loop.time() - self._offset_s)

    def _put(self, event: Event, due_us: int = -1) -> None:
        self._number += 1
        text = _TICK if due_us >= 0 else json.dumps(to_plain(event), separators=(",", ":"))
        self._outbox.append(Outgoing(self._number, due_us, text, event))
        self._wake.set()

    def _written_down(self, seq: int, entry: str) -> str:
        return json.dumps({
            "seq": seq, "entry": entry, "us": self._us, "owners": self._owners, "heard": self._heard,
            "core": snapshot.take(self._at().core),
        }, separators=(",", ":"), allow_nan=False)  # fmt: skip

    def _take_over(self, epoch: str, seq: int, text: str, signature: str) -> None:
        """Put the copy that Redis has in the place of this one.

        Raises
        ------
        DamagedError : it is no copy, or not one that a gateway of this pool has left.
        """
        if not self._signer.believes(signature, "snapshot", epoch, seq, text):
            self.skipped["unsigned"] += 1
            raise DamagedError("the snapshot is not signed with the pool's key")
        try:
            written = json.loads(text)
            core = snapshot.restore(written["core"], chance=random.Random)
            owners = {str(each): str(owner) for each, owner in written["owners"].items()}
            heard = {str(each): int(number) for each, number in written["heard"].items()}
            us, seq, entry = int(written["us"]), int(written["seq"]), str(written["entry"])
        except Exception as error:  # what was written there may be anything
            self.skipped["malformed"] += 1
            raise DamagedError(f"the snapshot cannot be read: {type(error).__name__}: {error}") from None
        self._at().core = core
        self._owners, self._heard, self._us, self._seq, self._entry = owners, heard, us, seq, entry
        self._saved = seq
        LOG.info("took over the state of log %s at entry %d", epoch, seq)

    def _bring_together(self) -> None:
        """See that the books hold what runs here, and nothing of this gateway's that does not."""
        gateway = self._at()
        core = gateway.core
        unsaid = self._unsaid()
        told = {each.event.request_id for each in unsaid if isinstance(each.event, ENDS)}
        arriving = {each.event.request.request_id for each in unsaid if isinstance(each.event, Arrived)}
        for request_id, owner in list(self._owners.items()):
            if owner == self.name and request_id not in told:
                flight = core.pool.in_flight.get(request_id)
                if request_id not in gateway.requests:
                    self._put(Cancelled(request_id, 0 if flight is None else flight.output_tokens))
                elif flight is not None and request_id not in gateway.running:
                    # It was let in where this gateway could not hear it.
                    gateway.carry_out([Forward(request_id, flight.replica_id, flight.max_output_tokens)])
        for request_id, request in list(gateway.requests.items()):
            forward = gateway.running.get(request_id)
            if forward is not None:
                if request_id not in core.pool.in_flight:
                    forwarded_s, credited, output_tokens = self._begun.get(request_id, (self.now_s(), False, 0))
                    self._put(Adopted(
                        request, forward.replica_id, forward.max_output_tokens, forwarded_s, credited, output_tokens,
                    ))
            elif not any(request_id in some for some in (core.held, core.pool.in_flight, arriving, told)):
                self._undecided[request_id] = Arrived(request)
                self._put(Arrived(request))

    def _may_be_booked(self, request_id: str) -> bool:
        core = self._at().core
        if request_id in core.pool.in_flight or request_id in core.held:
            return True
        return any(isinstance(each.event, Arrived | Adopted) and each.event.request.request_id == request_id
                   for each in self._outbox)

    def _apply(self, seq: int, entry: str) -> None:
        """Hand the next entry of the log to the core."""
        if seq <= self._seq:
            return
        if seq != self._seq + 1:
            raise StaleError
        self._seq, self._entry = seq, entry
        try:
            written_us, origin, written_number, signature, text = entry.split(" ", 4)
            us, number = int(written_us), int(written_number)
        except ValueError:
            self._skip("malformed", seq, "it has not the five parts of an entry")
            return
        # What the script wrote is never earlier than what it wrote before; somebody else may have.
        self._us = max(self._us, us)
        now_s = self._us / 1e6
        try:
            if text == _LOST:
                self._lose(origin, now_s)
            elif self._is_heard(seq, origin, number, signature, text):
                data = json.loads(text)
                if text.startswith(_CONFIGURED_BEGINS):
                    self._change_over(data[1], data[2], now_s)
                else:
                    self._deliver(event_from(data), now_s, origin)
        except Exception as error:  # the same for every gateway that reads it
            self._skip("malformed", seq, f"{type(error).__name__}: {error}")

    def _is_heard(self, seq: int, origin: str, number: int, signature: str, text: str) -> bool:
        """Whether an entry is one that its gateway wrote, and that was not there before; take note of its number."""
        if not self._signer.believes(signature, "event", self._epoch, origin, number, text):
            self._skip("unsigned", seq, f"it is not signed by {origin} with the pool's key")
            return False
        # A configuration overtakes what waits to be sent, so it has numbers of its own.
        sender = f"{origin} {CONFIGURED}" if text.startswith(_CONFIGURED_BEGINS) else origin
        if number <= self._heard.get(sender, 0):
            self._skip("replayed", seq, f"number {number} of {origin} was heard already")
            return False
        self._heard.pop(sender, None)
        self._heard[sender] = number
        if len(self._heard) > _MOST_SENDERS:
            del self._heard[next(iter(self._heard))]
        return True

    def _skip(self, why: str, seq: int, what: str) -> None:
        self.skipped[why] += 1
        if self.skipped[why] <= 100:
            LOG.error("entry %d of the log is left out (%s): %s", seq, why, what)

    def _lose(self, lost: str, now_s: float) -> None:
        for request_id in [each for each, owner in self._owners.items() if owner == lost]:
            flight = self._at().core.pool.in_flight.get(request_id)
            if flight is not None and lost == self.name:  # of this gateway, which still runs it
                self._begun[request_id] = (flight.forwarded_s, flight.prompt_credited, flight.output_tokens)
            self._deliver(Cancelled(request_id, 0 if flight is None else flight.output_tokens), now_s, lost)

    def _change_over(self, config: str, head: Mapping[str, Any], now_s: float) -> None:
        gateway = self._at()
        self._config, self._head = config, head
        assert self._core_of is not None, "SharedLog has no core_of"
        gateway.core, said = changeover(self._core_of, head, gateway.core, now_s)
        gateway.carry_out(said, lead=self._leads)
        core = gateway.core
        for request_id in [each for each in self._owners if each not in core.pool.in_flight and each not in core.held]:
            del self._owners[request_id]
        self._changed_over(self._core_of(head, ()).pool.capacity)
        LOG.info("changed over to the pool and policy that a gateway has brought")

    def _changed_over(self, whole: PoolCapacity) -> None:
        """Take note that all replicas provide something else now."""

    def _deliver(self, event: Event, now_s: float, origin: str) -> None:
        gateway, mine = self._at(), origin == self.name
        if isinstance(event, Arrived | Adopted):
            self._owners.setdefault(event.request.request_id, origin)
        try:
            instructions = gateway.deliver(event, now_s, lead=self._leads)
        except Exception:
            LOG.exception("an event of gateway %s was left out", origin)
            instructions = ()
        core, ended = gateway.core, [step.request_id for step in instructions if isinstance(step, Refuse | Evict)]
        if isinstance(event, Arrived | Adopted):
            ended.append(event.request.request_id)
        elif isinstance(event, ENDS):
            ended.append(event.request_id)
        for request_id in ended:
            if request_id not in core.pool.in_flight and request_id not in core.held:
                self._owners.pop(request_id, None)
        if mine and isinstance(event, Arrived):
            self._answered(event.request.request_id)
        elif mine and isinstance(event, Failed):
            self._answered(event.request_id)

    def _answered(self, request_id: str) -> None:
        """Give back what was let in for a request that was turned away meanwhile, or whose client has left."""
        gateway = self._at()
        self._undecided.pop(request_id, None)
        if request_id in gateway.requests:
            if request_id not in self._owners and request_id not in gateway.running:  # the core could not take it
                gateway.tell(Refuse(request_id, Reason.STATE_UNAVAILABLE, 503, RETRY_S, 1, 0))
        elif request_id in self._owners and not any(
            isinstance(each.event, ENDS) and each.event.request_id == request_id for each in self._unsaid()
        ):
            self._put(Cancelled(request_id))

    def _unsaid(self) -> list[Outgoing]:
        """Return what waits to be sent and is not in the log: what is there may be read before Redis has said so."""
        heard = self._heard.get(self.name, 0)
        return [each for each in self._outbox if each.number > heard]

    def _waits(self, request_id: str) -> bool:
        gateway = self._at()
        return request_id in gateway.requests and request_id not in gateway.running

    def _at(self) -> AsyncGateway:
        assert self._gateway is not None, "SharedLog.open comes first"
        return self._gateway
