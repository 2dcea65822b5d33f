"""Whose stored responses are, in Redis (`responses.lua`), so that any gateway of a pool knows.

What is kept of a response is its tenant's digest, the digest of its replica's address and how many tokens its context
has, signed where the pool has a key; it is kept for ``stored_ttl_s``, and of each tenant the newest ``stored_most``.
While Redis is away a gateway knows its own responses only, and tells of them once Redis is back.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from redis.exceptions import RedisError

from sim.live.gateway.settings import NO_SECRETS, SharedState, StateSecrets
from sim.live.gateway.stored import AwayError, Stored
from sim.live.shared_state.log_client import ResponseClient, unless_cancelled
from sim.live.shared_state.signing import Signer

LOG = logging.getLogger("tokenpools.state")

_AGAIN_S = 1.0


class Keeper(Protocol):
    """Where they are kept; see `sim.live.shared_state.log_client.ResponseClient`."""

    async def call(self, command: str, tenant: str, *arguments: str | int) -> str:
        """Call `responses.lua`."""
        ...

    async def disconnect(self) -> None:
        """Drop the connections."""
        ...

    async def close(self) -> None:
        """Close for good."""
        ...


class ResponseOwners:
    """See `sim.live.gateway.stored.Owners`.

    Parameters
    ----------
    addresses : of the replicas, in the order of their ids.
    keeper : in the place of a connection to ``settings.url``.
    """

    def __init__(
        self, settings: SharedState, addresses: Sequence[str], secret: StateSecrets = NO_SECRETS,
        keeper: Keeper | None = None,
    ) -> None:
        self._settings = settings
        self._signer = Signer(settings.pool, secret.key)
        self._names = [_digest(address) for address in addresses]
        self._keeper: Keeper = ResponseClient(settings, secret.password) if keeper is None else keeper
        self._untold: OrderedDict[str, Stored] = OrderedDict()
        self._telling: asyncio.Task[None] | None = None

    @property
    def untold(self) -> int:
        """How many responses the others could not be told of yet."""
        return len(self._untold)

    async def add(self, response_id: str, stored: Stored) -> None:
        """See `Owners.add`."""
        try:
            await self._add(response_id, stored)
        except AwayError as error:
            LOG.warning("others do not know of a response yet: %s", error)
            self._untold[response_id] = stored
            if len(self._untold) > self._settings.stored_most:
                self._untold.popitem(last=False)
            if self._telling is None or self._telling.done():
                self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def find(self, response_id: str, tenant: str) -> Stored | None:
        """See `Owners.find`."""
        said = await self._call("find", tenant, response_id)
        owner, _, rest = said.partition(" ")
        name, _, rest = rest.partition(" ")
        tokens, _, signature = rest.partition(" ")
        if owner != _digest(tenant) or name not in self._names or not tokens.isdecimal() or len(tokens) > 15:
            return None
        if not self._signer.believes(signature, "response", response_id, owner, name, tokens):
            LOG.error("what Redis says of a response is not signed with the pool's key, and is left out")
            return None
        return Stored(tenant, self._names.index(name), int(tokens))

    async def forget(self, response_id: str, tenant: str) -> None:
        """See `Owners.forget`. Where it cannot be said, the replica says that it is gone."""
        self._untold.pop(response_id, None)
        try:
            await self._call("forget", tenant, response_id)
        except AwayError:
            LOG.warning("others do not know yet that a response was deleted")

    async def tell_again(self) -> bool:
        """Tell of what could not be told; return whether all is."""
        while self._untold:
            response_id, stored = next(iter(self._untold.items()))
            try:
                await self._add(response_id, stored)
            except AwayError:
                return False
            if self._untold.get(response_id) is stored:
                del self._untold[response_id]
        return True

    async def close(self) -> None:
        """Close the connection; what others were not told of is lost with this process."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        await self._keeper.close()

    async def _tell(self) -> None:
        while not await self.tell_again():
            await asyncio.sleep(_AGAIN_S)

    async def _add(self, response_id: str, stored: Stored) -> None:
        owner, name = _digest(stored.tenant), self._names[stored.replica_id]
        signature = self._signer.sign("response", response_id, owner, name, stored.tokens)
        await self._call(
            "add", stored.tenant, response_id, owner, f"{owner} {name} {stored.tokens} {signature}",
            self._settings.stored_most,
        )

    async def _call(self, command: str, tenant: str, response_id: str, *more: str | int) -> str:
        ttl_us = int(self._settings.stored_ttl_s * 1e6)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                found = await self._keeper.call(command, _digest(tenant), response_id, ttl_us, *more)
        except (RedisError, OSError, TimeoutError) as error:
            await self._keeper.disconnect()
            raise AwayError(str(error) or "it did not answer in time") from None
        unless_cancelled()
        return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
