"""The state of a pool that several gateway processes share, in Redis.

`policies.core` is a state machine: the same events at the same times give the same instructions. So the processes
share not its books but its events. Each appends what happens to it to one log in Redis, which gives every event a time
and a place (`shared.lua`, atomically); each hands all events of the log, its own and the others', to a core of its own
in that order, and carries out what concerns its own requests. N gateways so decide what one would have decided,
whatever the policy. A newcomer begins with a snapshot of the core (`policies.snapshot`), which the leader leaves in
Redis now and then, and reads on from there.

A gateway renews its place with every call. One whose place runs out is lost: the log says so, and its requests leave
the books. While Redis is out of reach `sim.live.shared_state.fallback` decides. Once it is back, this gateway's
requests and the books are brought together: ends that the books have not heard of are told, requests that they do not
hold are adopted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import secrets
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any

from redis.exceptions import RedisError

from policies.api import (
    Arrived,
    CapacityChanged,
    Event,
    Failed,
    Forward,
    ReplicaReport,
    Tick,
)
from sim.errors import RunError
from sim.live.gateway.changeover import CoreOf
from sim.live.gateway.core_driver import AsyncGateway
from sim.live.gateway.settings import NO_SECRETS, FallbackSettings, SharedState, StateSecrets
from sim.live.shared_state.core_copy import CONFIGURED, ENDS, DamagedError, StaleError
from sim.live.shared_state.fallback import FallbackRules
from sim.live.shared_state.log_client import ENTRIES, LogClient, unless_cancelled
from sim.live.shared_state.pool_health import PoolHealth
from sim.live.shared_state.signing import Signer, gateway_name
from sim.live.shared_state.speaking_copy import SpeakingCopy, Status

LOG = logging.getLogger("tokenpools.state")

_BATCH = 256
_BLOCK_S = 1.0
_READ_PAUSE_S = 0.002
_BACKOFF_S = (0.05, 1.0)
_SLOW_S = 10.0


class SharedLog(SpeakingCopy):
    """See `sim.live.gateway.core_driver.EventLog`: the log of one pool in Redis, as one process sees it.

    Parameters
    ----------
    config : a digest of all that makes the core what it is; gateways of one pool must agree on it.
    head : the same as plain values, which ``core_of`` makes a core of. With it, a log that nobody has the configuration
        of any more is gone on with, changed to this one; without, this gateway is turned away.
    core_of : makes the core of another pool and policy, when a gateway has brought one (`configure`).
    name : this gateway's; `gateway_name` makes one. No other process may ever have it.
    secret : the key that entries are signed with, and Redis's password.
    client : in the place of a connection to ``settings.url``.
    """

    lead_s = 0.03

    def __init__(
        self, settings: SharedState, *, loop: asyncio.AbstractEventLoop, config: str, name: str | None = None,
        head: Mapping[str, Any] | None = None, core_of: CoreOf | None = None, secret: StateSecrets = NO_SECRETS,
        client: LogClient | None = None,
    ) -> None:
        signer = Signer(settings.pool, secret.key)
        super().__init__(gateway_name() if name is None else name, loop, config, core_of, signer)
        self._settings = settings
        self._head = None if core_of is None else head
        self._client = LogClient(settings, self.name, secret.password) if client is None else client
        self._task: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()
        self._fatal: RunError | None = None
        self._session = 0
        self._configurations = 0
        self._left_epochs: set[str] = set()
        self._healed = 0
        self._evicts = ""
        self._has_snapshot = 1
        self._rules: FallbackRules | None = None
        self._gateways = 1
        self._times_away = 0
        self._why = "not joined yet"

    # ----------------------------------------------------------------------------------------------------------------
    # For the gateway

    def open(self, gateway: AsyncGateway) -> None:
        """See `EventLog`. Requests are refused until the log was joined, see `joined`."""
        self._gateway = gateway
        gateway.core.start(0.0)
        self._health = PoolHealth(self.name, gateway.core.pool.capacity)
        self._rules = FallbackRules(
            FallbackSettings(dedicated="closed", guaranteed="closed"), gateway.core.pool, (), 1,
            gateway.core.default_max_output_tokens,
        )
        self._task = self._loop.create_task(self._run())

    @property
    def has_joined(self) -> bool:
        """Whether the log was joined once."""
        return self._joined.is_set() and bool(self._epoch)

    async def joined(self, timeout_s: float) -> None:
        """Wait until the log was joined, for a while; it goes on trying after that.

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
        """Leave: what this gateway still holds returns at once."""
        for task in (self._task, self._saving):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                if self._rules is None and self._outbox:
                    await self._send()
                await self._client.call("leave")
        except (RedisError, OSError, TimeoutError, StaleError) as error:
            LOG.warning("left without saying so (%s); what was in flight returns after %g s", error,
                        self._settings.ttl_s)
        await self._client.close()

    async def configure(self, config: str, head: Mapping[str, Any]) -> None:
        """Give all gateways another pool and policy, at one place of the log; nothing where they have it already.

        Raises
        ------
        RunError : the log is out of reach.
        """
        if self._fatal is not None:  # turned away: with what the others have, it is let in
            self._config, self._head = config, head
            return
        if self._rules is not None:
            raise RunError(f"the shared state is out of reach: {self._why}")
        try:
            await self._write_configuration(config, head)
        except (RedisError, OSError, TimeoutError) as error:
            raise RunError(f"the shared state is out of reach: {_reason(error)}") from None
        except StaleError:
            raise RunError("the shared state has begun anew meanwhile; send the signal again") from None
        self._config, self._head = config, head

    async def _write_configuration(self, config: str, head: Mapping[str, Any]) -> None:
        entry = json.dumps([CONFIGURED, config, head], separators=(",", ":"))
        self._configurations += 1
        number = self._configurations
        signature = self._signer.sign("event", self._epoch, self.name, number, entry)
        async with asyncio.timeout(_SLOW_S):
            answer = await self._client.call("configure", self._epoch, config, number, signature, entry)
        if answer[0] != "configured":
            raise StaleError

    def status(self) -> Status:
        """Return how the shared state is."""
        return Status(self._rules is None, self._leads, self._gateways, self._seq, len(self._outbox),
                      self._times_away, self._why, dict(self.skipped), self._healed, self._evicts)

    def loop_time(self, at_s: float) -> float:
        """See `EventLog`."""
        return at_s + self._offset_s

    def append(self, event: Event) -> None:
        """See `EventLog`."""
        if isinstance(event, CapacityChanged | ReplicaReport):
            self._saw(event, reachable=self._rules is None)
        elif self._rules is not None:
            self._append_in_fallback(event, self._rules)
        else:
            if isinstance(event, Arrived):
                self._undecided[event.request.request_id] = event
            elif isinstance(event, Failed):
                self._undecided[event.request_id] = event
            self._put(event)

    def tick(self, due_s: float) -> None:
        """See `EventLog`."""
        if self._rules is None:
            # A microsecond late, so that rounding never makes a tick early.
            self._put(Tick(), int(due_s * 1e6) + 1)

    # ----------------------------------------------------------------------------------------------------------------
    # Out of reach

    def _fall_back(self, why: str) -> None:
        """Decide by oneself from here on, first about who waits for an answer already."""
        self._why = why
        if self._rules is not None:
            return
        LOG.warning("the shared state is out of reach: %s", why)
        self._times_away += 1
        gateway = self._at()
        running = [(gateway.requests[each], forward) for each, forward in gateway.running.items()]
        self._rules = FallbackRules(
            self._settings.when_away, gateway.core.pool, running, self._gateways,
            gateway.core.default_max_output_tokens,
        )
        undecided, self._undecided = self._undecided, {}
        for event in undecided.values():
            self._decide_by_fallback(event, self._rules)

    def _append_in_fallback(self, event: Event, rules: FallbackRules) -> None:
        if isinstance(event, ENDS):
            rules.ended(event.request_id)
            self._begun.pop(event.request_id, None)
            if self._may_be_booked(event.request_id):
                self._put(event)
        if isinstance(event, Arrived | Failed):
            self._decide_by_fallback(event, rules)

    def _decide_by_fallback(self, event: Arrived | Failed, rules: FallbackRules) -> None:
        gateway = self._at()
        if isinstance(event, Failed):
            gateway.tell(event)
        elif event.request.request_id in gateway.requests and event.request.request_id not in gateway.running:
            verdict = rules.decide(gateway.requests[event.request.request_id])
            if isinstance(verdict, Forward):
                self._begun[event.request.request_id] = (self.now_s(), False, 0)
            gateway.carry_out([verdict])

    # ----------------------------------------------------------------------------------------------------------------
    # The conversation with Redis

    async def _run(self) -> None:
        backoff_s = _BACKOFF_S[0]
        while True:
            try:
                await self._join()
                unless_cancelled()
                backoff_s = _BACKOFF_S[0]
                await self._converse()
            except StaleError:
                LOG.info("joining the log again")
                await asyncio.sleep(_BACKOFF_S[0] / 10)
                continue
            except (RedisError, OSError, TimeoutError) as error:
                self._fall_back(_reason(error))
            except RunError as error:
                self._fatal = error
                self._fall_back(str(error))
                self._joined.set()
            except Exception as error:
                LOG.exception("the shared state could not be followed")
                self._fall_back(_reason(error))
            await self._client.disconnect()
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(_BACKOFF_S[1], backoff_s * 2)

    async def _converse(self) -> None:
        """Write and read until either fails."""
        both = [self._loop.create_task(self._write()), self._loop.create_task(self._read())]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        for task in done:
            task.result()

    async def _join(self) -> None:
        """Take a place in the log, bring the copy up to date, and this gateway's requests and the books together.

        Raises
        ------
        OSError : others bring the log in order first.
        """
        mine, head = self._config, self._head
        answer = await self._asked_to_join()
        _, epoch, seq, now_us, accepted, self._session, leader, self._gateways, resumes, config = answer[:10]
        if not resumes:
            try:
                if epoch in self._left_epochs:
                    raise DamagedError("it is a log that was left behind: Redis was set back")
                self._take_over(epoch, *answer[10:13])
            except DamagedError as error:
                LOG.error("log %s cannot be gone on with: %s", epoch, error)
                answer = await self._asked_to_join(epoch)
                _, epoch, seq, now_us, accepted, self._session, leader, self._gateways, resumes, config = answer[:10]
                self._take_over(epoch, *answer[10:13])
        if epoch != self._epoch:
            self._left_epochs |= {self._epoch} - {""}
            self._epoch = epoch
            self._health_of().hear("-1", {})
        self._offset_s = self._loop.time() - now_us / 1e6
        gateway = self._at()
        # Numbers that Redis has are in the log. Of the rest, arrivals that were answered meanwhile must not get there.
        self._outbox = deque(
            each for each in self._outbox if each.number > accepted
            and (not isinstance(each.event, Arrived) or self._waits(each.event.request.request_id))
        )
        self._leads, self._catching_up = False, True
        await self._catch_up(seq)
        if config != mine and head is not None:
            LOG.warning("nobody has the configuration of the log (%s) any more: it is changed to this one (%s)",
                        config, mine)  # fmt: skip
            await self._write_configuration(mine, head)
            await self._catch_up(seq + 1)
        self._catching_up = False
        self._bring_together()
        away, self._rules, self._why = self._rules, None, ""
        if away is not None and self._joined.is_set():
            LOG.warning("the shared state is back")
        self._set_leader(leader)
        if gateway.core.call_me_at_s < float("inf"):
            gateway.call_at(gateway.core.call_me_at_s)
        self._fatal = None
        if not self._joined.is_set():
            await self._look_for_eviction()
        self._joined.set()

    async def _catch_up(self, seq: int) -> None:
        while self._seq < seq:
            async with asyncio.timeout(_SLOW_S):
                entries = await self._client.entries_after(self._seq)
            if not entries:
                raise StaleError
            for number, text in entries:
                self._apply(number, text)
            await asyncio.sleep(0)

    async def _asked_to_join(self, damaged: str = "") -> list[Any]:
        """Return the script's answer; where there is no log to go on with, one begins with this gateway's copy.

        Parameters
        ----------
        damaged : the epoch that is not to be gone on with.
        """
        async with asyncio.timeout(self._settings.timeout_s if self._rules is None else 1.0):
            answer = await self._client.call("join", *self._place("", damaged))
        if answer[0] == "empty":
            self._healed += bool(self._epoch)
            async with asyncio.timeout(_SLOW_S):
                answer = await self._client.call("join", *self._place(self._written_down(0, ""), damaged))
        if answer[0] == "wait":
            raise OSError("the log is damaged, and a gateway that has a copy brings it in order")
        if answer[0] == "config":
            raise RunError(
                "other gateways of this pool run with another configuration, key or version "
                f"({answer[1]}, here {self._config}), or ended without a word in the last {self._settings.ttl_s:g} s; "
                "give all the same, send them SIGHUP, or give this pool another name"
            )
        return answer

    def _place(self, beginning: str, damaged: str) -> list[str | int]:
        owners = sorted({*self._owners.values(), self.name})
        now_us = max(self._us, int(self.now_s() * 1e6)) if self._epoch else 0
        epoch = secrets.token_hex(8)
        signature = self._signer.sign("snapshot", epoch, 0, beginning) if beginning else ""
        return [
            epoch, self._config, self._epoch, self._seq, self._entry, beginning, signature, now_us, damaged,
            int(self._head is not None), *owners,
        ]  # fmt: skip

    async def _look_for_eviction(self) -> None:
        """Say so where Redis may throw away a key of the log."""
        async with asyncio.timeout(self._settings.timeout_s):
            self._evicts = await self._client.evicts()
        if self._evicts:
            LOG.error("Redis evicts keys (maxmemory-policy %s), the log's among them: the pool's state would be lost; "
                      "set it with CONFIG SET maxmemory-policy noeviction", self._evicts)  # fmt: skip

    async def _write(self) -> None:
        """Send what there is to say, and a word at least three times in the time a gateway may be silent."""
        while True:
            if not self._outbox:
                try:
                    async with asyncio.timeout(self._settings.ttl_s / 3):
                        await self._wake.wait()
                except TimeoutError:
                    pass
            await self._send()
            unless_cancelled()
            if self._lost:  # the log says so, and this gateway lives: it takes its place again
                self._lost = False
                raise StaleError
            due = self._seq - self._saved >= self._settings.snapshot_every or not self._has_snapshot
            if self._leads and due and self._saving is None:
                # Written here, between two calls: it takes its time, and a call that waits meanwhile would seem late.
                self._saving = self._loop.create_task(self._save(self._seq, self._written_down(self._seq, self._entry)))

    async def _send(self) -> None:
        self._wake.clear()
        health = self._health_of()
        arguments: list[str | int] = [
            self._epoch, self._seq, self._entry, ENTRIES, self._session, self._signed_view(health.text), health.version,
        ]  # fmt: skip
        for item in islice(self._outbox, _BATCH):
            signature = self._signer.sign("event", self._epoch, self.name, item.number, item.text)
            arguments += (item.number, item.due_us, signature, item.text)
        begun_s = self._loop.time()
        async with asyncio.timeout(self._settings.timeout_s):
            answer = await self._client.call("append", *arguments)
        if answer[0] == "stale":
            raise StaleError
        _, _, now_us, accepted, leader, self._gateways, early, entries, version, views, self._has_snapshot = answer
        self._offset_s = (begun_s + self._loop.time()) / 2 - now_us / 1e6
        while self._outbox and self._outbox[0].number <= accepted:
            self._outbox.popleft()
        first = int(arguments[1]) + 1
        for number, text in enumerate(entries, first):
            self._apply(number, text)
        if version != health.version:
            health.hear(version, self._believed(views))
            self._speak_of_health()
        self._set_leader(leader)
        if early:
            self._at().call_at(self._at().core.call_me_at_s)

    async def _read(self) -> None:
        """Hear of what others append."""
        while True:
            async with asyncio.timeout(_BLOCK_S + max(1.0, self._settings.timeout_s)):
                entries = await self._client.wait_for_entries(self._seq, _BLOCK_S)
            unless_cancelled()
            for number, text in entries:
                self._apply(number, text)
            await asyncio.sleep(_READ_PAUSE_S)  # what comes at once is read at once

    async def _save(self, seq: int, written: str) -> None:
        """Leave a snapshot for newcomers, so that the log can be cut."""
        try:
            async with asyncio.timeout(_SLOW_S):
                await self._client.call(
                    "save", self._epoch, seq, written, self._settings.snapshot_every,
                    self._signer.sign("snapshot", self._epoch, seq, written),
                )
        except (RedisError, OSError, TimeoutError) as error:
            LOG.warning("no snapshot was left: %s", error)
        finally:
            self._saved = seq  # after a failure too: the next one is as far off
            self._saving = None


def _reason(error: Exception) -> str:
    return "it did not answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
