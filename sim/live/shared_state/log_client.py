"""The connections to Redis: the calls of the scripts (`shared.lua`, `leases.lua`) and the reading of a log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from sim.live.gateway.settings import SharedState
from sim.live.redis_options import unnamed

ENTRIES = 1000
"""How many entries are read at once."""

_SCRIPT = Path(__file__).with_name("shared.lua").read_text(encoding="utf-8")
_LEASES = Path(__file__).with_name("leases.lua").read_text(encoding="utf-8")
_RESPONSES = Path(__file__).with_name("responses.lua").read_text(encoding="utf-8")


class Client:
    """A connection to Redis, and one script that is called on it.

    Parameters
    ----------
    password : in the place of the URL's.
    """

    def __init__(self, settings: SharedState, script: str, keys: Sequence[str], password: str | None = None) -> None:
        self._script = script
        self._keys = keys
        given: dict[str, Any] = unnamed() | ({} if password is None else {"password": password})
        self._client = redis.Redis.from_url(
            settings.url, decode_responses=True, encoding_errors="replace", **given, retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=settings.timeout_s, health_check_interval=0,
        )
        self._sha = ""

    async def run(self, *arguments: str | int) -> list[Any]:
        """Call the script on its keys.

        Raises
        ------
        RedisError, OSError : Redis is out of reach.
        """
        return await self.run_on(self._keys, *arguments)

    async def run_on(self, keys: Sequence[str], *arguments: str | int) -> list[Any]:
        """Call the script on some keys, and load it first where Redis does not have it.

        Raises
        ------
        RedisError, OSError : Redis is out of reach.
        """
        if not self._sha:
            self._sha = await self._client.script_load(self._script)
        try:
            return await self._evaluate(keys, arguments)
        except NoScriptError:  # Redis was restarted
            self._sha = await self._client.script_load(self._script)
            return await self._evaluate(keys, arguments)

    async def _evaluate(self, keys: Sequence[str], arguments: Sequence[str | int]) -> list[Any]:
        reply = self._client.evalsha(self._sha, len(keys), *keys, *cast("Any", arguments))
        return await cast("Awaitable[list[Any]]", reply)

    async def evicts(self) -> str:
        """Return by what rule Redis throws keys away when its memory is full; empty where it does not, or says nothing.

        Only rules that may throw away keys without a time to live count: all of the log but one key is such.
        """
        try:
            found: Any = await self._client.info("memory")
            policy = str(found.get("maxmemory_policy", ""))
        except (RedisError, AttributeError):  # a rule of access may forbid INFO
            return ""
        return policy if policy.startswith("allkeys-") else ""

    async def disconnect(self) -> None:
        """Drop the connections; the next call opens one."""
        await self._client.connection_pool.disconnect(inuse_connections=True)

    async def close(self) -> None:
        """Close for good."""
        await self._client.aclose()


class ResponseClient(Client):
    """The connection of one gateway to what is known of its pool's stored responses."""

    def __init__(self, settings: SharedState, password: str | None = None) -> None:
        super().__init__(settings, _RESPONSES, (), password)
        self._prefix = f"tokenpools:{{{settings.pool}}}:responses"

    async def call(self, command: str, tenant: str, *arguments: str | int) -> str:
        """Call the script; ``tenant`` is its digest. See there for the commands.

        Raises
        ------
        RedisError, OSError : Redis is out of reach.
        """
        (found,) = await self.run_on((self._prefix, f"{self._prefix}:{tenant}"), command, *arguments)
        return str(found)


class LeaseClient(Client):
    """The connection of one gateway to the book of leases of its pool."""

    def __init__(self, settings: SharedState, password: str | None = None) -> None:
        super().__init__(settings, _LEASES, [f"tokenpools:{{{settings.pool}}}:leases"], password)


class LogClient(Client):
    """The connection of one gateway to the log of its pool.

    Parameters
    ----------
    name : the gateway's.
    """

    def __init__(self, settings: SharedState, name: str, password: str | None = None) -> None:
        prefix = f"tokenpools:{{{settings.pool}}}:"
        keys = [prefix + each for each in ("events", "meta", "alive", "snapshot", f"sender:{name}", "views")]
        super().__init__(settings, _SCRIPT, keys, password)
        self._name = name
        self._ttl_us = int(settings.ttl_s * 1e6)

    async def call(self, command: str, *arguments: str | int) -> list[Any]:
        """Call the script; see there for the commands.

        Raises
        ------
        RedisError, OSError : Redis is out of reach.
        """
        return await self.run(command, self._name, str(self._ttl_us), *arguments)

    async def entries_after(self, seq: int) -> list[tuple[int, str]]:
        """Return the next entries that the log has, with their numbers."""
        found: Any = await self._client.xrange(self._keys[0], f"{seq + 1}-0", "+", count=ENTRIES)
        return list(_numbered(found))

    async def wait_for_entries(self, seq: int, block_s: float) -> list[tuple[int, str]]:
        """Return the next entries once there are some; none where none came in time."""
        found: Any = await self._client.xread({self._keys[0]: f"{seq}-0"}, count=ENTRIES, block=int(block_s * 1000))
        streams = found.items() if isinstance(found, dict) else found or ()
        return [entry for _, entries in streams for entry in _numbered(entries)]


def unless_cancelled() -> None:
    """Stop where redis-py kept the cancellation of the task that runs to itself (seen with 8.1)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _numbered(entries: Any) -> Iterator[tuple[int, str]]:
    for number, fields in entries:
        yield int(number.partition("-")[0]), next(iter(fields.values()), "")
