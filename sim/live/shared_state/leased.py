"""Several gateways that each decide alone, on parts of the limits that they lease through Redis.

Under `sim.live.shared_state.replicated_core` every gateway handles every event of the pool. Here each handles its own:
it holds a part of every limit (`policies.limit_leases`), decides on that part with no word to anybody, and every
``every_s`` it renews what it holds in a common book: one read, one write that fails if another was faster
(`leases.lua`). What it gives back it stops using before it says so; what it takes it uses once that is in the book.
While it has enough and nobody else has said that it lacks something, it only looks (one short call, which prolongs its
parts), and renews every fourth time, so that others hear what it has done.

A part is good until ``ttl_s`` after the renewal that it comes from was begun, on this gateway's own clock; Redis gives
it to others no earlier. After that, and before the first renewal, `when_away` decides, in this gateway's even part of
the baselines. So all gateways together pass a limit of slots only by what a gateway that was lost for longer than
``ttl_s`` still has in flight, or lets in under ``when_away``; a rate only by one depth of the bucket for each gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from redis.exceptions import RedisError

from policies.api import Arrived, CapacityChanged, Event, Reason, Refuse
from policies.limit_leases import POOL, SLOTS, Book, Holder, Share, lacks, renew
from policies.sharing import Peers
from sim.errors import RunError
from sim.live.gateway.changeover import CoreOf, changeover
from sim.live.gateway.core_driver import AsyncGateway, LocalLog
from sim.live.gateway.settings import NO_SECRETS, SharedState, StateSecrets
from sim.live.shared_state.fallback import RETRY_S, share_of
from sim.live.shared_state.lease_text import book_from, prolonged, text_of
from sim.live.shared_state.log_client import LeaseClient, unless_cancelled
from sim.live.shared_state.signing import Signer, gateway_name
from sim.live.shared_state.speaking_copy import Status

LOG = logging.getLogger("tokenpools.state")

_TRIES = 8
_NOBODY = Share(0, {}, {})
_LOOKS = 3
"""Rounds in a row that may be looks. [choice]"""
_SOONEST = 0.3
"""Share of ``every_s`` after which a gateway that is short asks again."""


class Books(Protocol):
    """Where the book is; see `sim.live.shared_state.log_client.LeaseClient`."""

    async def run(self, *arguments: str | int) -> list[Any]:
        """Call `leases.lua`."""
        ...

    async def evicts(self) -> str:
        """Return by what rule keys are thrown away, if they are."""
        ...

    async def disconnect(self) -> None:
        """Drop the connections."""
        ...

    async def close(self) -> None:
        """Close for good."""
        ...


class LeasedLog(LocalLog):
    """See `sim.live.gateway.core_driver.EventLog`: the events of this process alone, decided on leased parts.

    Parameters
    ----------
    config, core_of, name, secret : as for `sim.live.shared_state.replicated_core.SharedLog`.
    books : in the place of a connection to ``settings.url``.
    """

    def __init__(
        self, settings: SharedState, *, loop: asyncio.AbstractEventLoop, config: str, name: str | None = None,
        core_of: CoreOf | None = None, secret: StateSecrets = NO_SECRETS, books: Books | None = None,
    ) -> None:
        super().__init__(loop)
        self._loop = loop
        self.name = gateway_name() if name is None else name
        self._settings = settings
        self._config = config
        self._core_of = core_of
        self._signer = Signer(settings.pool, secret.key)
        self._books: Books = LeaseClient(settings, secret.password) if books is None else books
        self._gateway: AsyncGateway | None = None
        self._holder: Holder | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._joined = asyncio.Event()
        self._good_until_s = float("-inf")
        self._expiry: asyncio.TimerHandle | None = None
        self._version = 0
        self._short = 0  # how often somebody had lacked something when the book was read
        self._looks = _LOOKS  # the first round is none
        self._gateways = 1
        self._rounds = self._times_away = self._skipped = 0
        self._away = True
        self._fatal: RunError | None = None
        self._why = "no part was leased yet"
        self._evicts = ""
        self._warned_of: set[str] = set()
        self._looking: asyncio.Task[None] | None = None

    # ----------------------------------------------------------------------------------------------------------------
    # For the gateway

    def open(self, gateway: AsyncGateway) -> None:
        """See `EventLog`. Requests are refused until parts were leased, see `joined`."""
        self._gateway = gateway
        super().open(gateway)
        self._bind()
        self._task = self._loop.create_task(self._run())

    @property
    def has_joined(self) -> bool:
        """Whether parts were leased once."""
        return self._joined.is_set() and self._fatal is None

    async def joined(self, timeout_s: float) -> None:
        """Wait until parts were leased, for a while; it goes on trying after that.

        Raises
        ------
        RunError : other gateways of the pool have another configuration.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._joined.wait()
        if self._fatal is not None:
            raise self._fatal

    async def close(self) -> None:
        """Give all parts back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._expiry is not None:
            self._expiry.cancel()
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._leave()
        except (RedisError, OSError, TimeoutError) as error:
            LOG.warning("left without saying so (%s); its parts return after %g s", error, self._settings.ttl_s)
        await self._books.close()

    async def configure(self, config: str, head: Mapping[str, Any]) -> None:
        """Change this gateway over to another pool and policy; the others do so when they are told.

        Raises
        ------
        RunError : it cannot be made.
        """
        if self._core_of is None:
            raise RunError("this gateway cannot change its pool while it runs")
        gateway = self._at()
        self._config = config
        gateway.core, said = changeover(self._core_of, head, gateway.core, self.now_s())
        self._bind()
        gateway.carry_out(said)
        self._wake.set()

    def status(self) -> Status:
        """Return how the shared state is."""
        return Status(
            not self._away, False, self._gateways, self._rounds, 0, self._times_away, self._why,
            {"malformed": 0, "unsigned": self._skipped, "replayed": 0}, 0, self._evicts,
        )  # fmt: skip

    @property
    def peers(self) -> Peers | None:
        """What the core's books show as the others'."""
        return None if self._holder is None else self._holder.peers

    @property
    def parts(self) -> Mapping[str, float]:
        """What it holds of each limit."""
        return {} if self._holder is None else self._holder.parts

    def append(self, event: Event) -> None:
        """See `EventLog`."""
        holder = self._held()
        if isinstance(event, Arrived) and self._away and not self._is_open(event):
            self._at().tell(Refuse(event.request.request_id, Reason.STATE_UNAVAILABLE, 503, RETRY_S, 1, 0))
            return
        if isinstance(event, CapacityChanged):
            holder.before(event)
        said = self._at().deliver(event, self.now_s())
        if isinstance(event, Arrived):
            holder.heard({event.request.request_id: event.request.entitlement}, said)
            if holder.is_short:
                self._wake.set()

    def _is_open(self, event: Arrived) -> bool:
        ledger = self._at().core.pool.entitlements.get(event.request.entitlement)
        return ledger is not None and self._joined.is_set() and (
            self._settings.when_away.of(ledger.spec.service_class) == "open"
        )

    def _bind(self) -> None:
        """Hold the parts in the books of the core that there is now."""
        holder = Holder(self._at().core)
        if self._holder is not None:
            known = holder.limits()
            holder.parts = {limit: part for limit, part in self._holder.parts.items() if limit in known}
        self._holder = holder
        holder.hold(holder.parts, self.now_s())

    def _held(self) -> Holder:
        assert self._holder is not None, "LeasedLog.open comes first"
        return self._holder

    def _at(self) -> AsyncGateway:
        assert self._gateway is not None, "LeasedLog.open comes first"
        return self._gateway

    # ----------------------------------------------------------------------------------------------------------------
    # The conversation with Redis

    async def _run(self) -> None:
        every_s = self._settings.every_s
        while True:
            begun_s = self._loop.time()
            self._wake.clear()
            try:
                if not await self._look():
                    await self._renew()
            except (RedisError, OSError, TimeoutError) as error:
                self._why = "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
                await self._books.disconnect()
            except RunError as error:
                self._fatal = error
                self._joined.set()
                self._go_away(str(error))
            except Exception as error:
                LOG.exception("the leases could not be renewed")
                self._why = str(error)
            unless_cancelled()
            # Not all at one time, or they would be in each other's way.
            await asyncio.sleep(every_s * _SOONEST * random.uniform(0.5, 1.5))
            left_s = begun_s + every_s * random.uniform(0.8, 1.0) - self._loop.time()
            if left_s > 0 and not self._wake.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await self._wake.wait()

    async def _look(self) -> bool:
        """Prolong what this gateway holds; return whether that is all that there is to do in this round."""
        self._looks += 1
        if self._away or self._looks > _LOOKS or not self._held().has_enough(self.now_s()):
            return False
        begun_s = self._loop.time()
        _, version, is_good, short = await self._call("look", self._stays_ms, self.name, self._ttl_us)
        if not is_good or version < self._version:
            return False
        self._good(begun_s + self._settings.ttl_s, self._gateways, is_dealt=True)
        return bool(short == self._short)

    async def _renew(self) -> None:
        """Renew all parts.

        What it holds stays good from each read on, whoever is faster in writing: the more are in each other's way, the
        longer a round takes, and a part that runs out for that would make them more.

        Raises
        ------
        RunError : the other gateways have another configuration.
        """
        ttl_us = self._ttl_us
        begun_s = self._loop.time()
        for tried in range(_TRIES):
            known, version, now_us = await self._read(ttl_us)
            if not self._away and known.shares.get(self.name, _NOBODY).until_us >= now_us + ttl_us:
                self._prolong(begun_s + self._settings.ttl_s)
            holder = self._held()
            now_s = self.now_s()
            needs = holder.needs(now_s)
            book, parts = renew(known, self.name, holder.parts, needs, now_us, ttl_us)
            # What is given back is used no more from here on: once it is in the book, others may have it.
            less = {limit: min(part, holder.parts.get(limit, 0.0)) for limit, part in parts.items()}
            holder.hold({limit: max(part, needs[limit].in_use) for limit, part in less.items()}, now_s)
            entitlements, replicas = holder.own()
            own = replace(book.shares[self.name], entitlements=entitlements, replicas=replicas)
            book = replace(book, shares={**book.shares, self.name: own})
            gone = known.shares.keys() - book.shares.keys()
            if await self._write(version, book, now_us, gone, is_short=lacks(parts, needs)):
                self._looks = 0
                if holder is self._held():
                    others = {name: share for name, share in book.shares.items() if name != self.name}
                    holder.hold(parts, self.now_s(), others)
                self._good(begun_s + self._settings.ttl_s, len(book.shares), now_us >= book.dealt_from_us)
                return
            took_s = self._loop.time() - begun_s
            await asyncio.sleep(random.uniform(0, min(took_s * tried, self._settings.every_s)))
            begun_s = self._loop.time()
        raise OSError(f"{_TRIES} times another gateway was faster")

    async def _read(self, ttl_us: int) -> tuple[Book, int, int]:
        now, version, text, signature, self._short, *until = await self._call(
            "read", self._stays_ms, self.name, ttl_us
        )
        now_us = int(now)
        fresh = Book(now_us + ttl_us)
        if not text:
            return fresh, version, now_us
        config, _, data = text.partition(" ")
        if not self._signer.believes(signature, "leases", version, text):
            self._skip("is not signed with the pool's key")
            return fresh, version, now_us
        if version < self._version:
            self._skip(f"is version {version}, and {self._version} was seen")
            return fresh, version, now_us
        book = book_from(data)
        if book is None:
            self._skip("cannot be read")
            return fresh, version, now_us
        if config != self._config and config not in self._warned_of:
            self._warned_of.add(config)
            LOG.warning("another gateway has another configuration (%s, here %s): until all have the same, the larger "
                        "of each limit holds", config, self._config)  # fmt: skip
        return prolonged(book, dict(zip(until[::2], until[1::2], strict=True))), version, now_us

    async def _write(
        self, version: int, book: Book, now_us: int, gone: Iterable[str] = (), *, is_short: bool = False
    ) -> bool:
        # Versions only grow: of a book that begins anew it is the time, which is far more than there were writes.
        following = max(version + 1, self._version + 1, now_us if version == 0 else 0)
        text = f"{self._config} {text_of(book)}"
        signature = self._signer.sign("leases", following, text)
        ttl_us = self._ttl_us if self.name in book.shares else 0
        _, is_written = await self._call(
            "write", self._stays_ms, version, following, text, signature, self.name, ttl_us, int(is_short),
            *sorted(gone),
        )
        if is_written:
            self._version = following
            self._short += is_short
        return bool(is_written)

    async def _call(self, *arguments: str | int) -> list[Any]:
        """Call the script, and wait for it no longer than a round lasts."""
        async with asyncio.timeout(max(self._settings.timeout_s, self._settings.every_s)):
            return await self._books.run(*arguments)

    @property
    def _ttl_us(self) -> int:
        return int(self._settings.ttl_s * 1e6)

    @property
    def _stays_ms(self) -> int:
        return int(self._settings.ttl_s * 4000)

    async def _leave(self) -> None:
        for _ in range(_TRIES):
            book, version, now_us = await self._read(self._ttl_us)
            shares = {name: share for name, share in book.shares.items() if name != self.name}
            if await self._write(version, replace(book, shares=shares), now_us):
                return

    def _skip(self, why: str) -> None:
        self._skipped += 1
        LOG.error("the book of leases %s; it begins anew, and deals out nothing for %g s", why, self._settings.ttl_s)

    # ----------------------------------------------------------------------------------------------------------------
    # Good or not

    def _good(self, until_s: float, gateways: int, is_dealt: bool) -> None:
        self._rounds += 1
        self._gateways = gateways
        self._prolong(until_s)
        if not is_dealt and not self._joined.is_set():
            self._why = "the book has just begun, and others may hold parts that it does not know of"
            return
        if self._away and self._joined.is_set():
            LOG.warning("the shared state is back")
        self._away, self._why = False, ""
        if not self._joined.is_set():
            self._joined.set()
            self._looking = self._loop.create_task(self._look_for_eviction())

    def _prolong(self, until_s: float) -> None:
        """Take what is held to be good for longer."""
        self._good_until_s = until_s
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self._loop.call_at(until_s, self._run_out)

    async def _look_for_eviction(self) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._settings.timeout_s):
                self._evicts = await self._books.evicts()
        if self._evicts:
            LOG.error("Redis evicts keys (maxmemory-policy %s), the leases among them; set it with "
                      "CONFIG SET maxmemory-policy noeviction", self._evicts)  # fmt: skip

    def _run_out(self) -> None:
        self._go_away(self._why or "it was not renewed in time")

    def _go_away(self, why: str) -> None:
        """Hold this gateway's even part of what is open, until parts are leased again."""
        if not self._away:
            LOG.warning("the leases have run out: %s", why)
            self._times_away += 1
        self._away, self._why = True, why
        holder, core = self._held(), self._at().core
        when, parts, whole = self._settings.when_away, {}, 0.0
        for name, book in core.pool.entitlements.items():
            share = share_of(book.spec, self._gateways) if when.of(book.spec.service_class) == "open" else 0
            whole += share
            parts[SLOTS + name] = float(share)
        even = {limit: 1.0 / max(1, self._gateways) for limit in holder.limits()}
        parts = {limit: parts.get(limit, even[limit]) for limit in holder.limits()}
        parts[POOL] = whole if self._joined.is_set() else 0.0
        holder.hold(parts, self.now_s())
